"""Every name the documentation uses exists: settings, variables, metrics, commands, files, events, replies, fields."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from proxy import cli, docs, settings, strictyaml
from proxy.inbound import commands, content, listeners, server, session
from proxy.mail import reply
from proxy.problems import ProblemsError
from proxy.record import log
from proxy.record.metrics import REMARK_KINDS, Metrics, SupervisorMetrics
from proxy.route import OUTCOMES
from proxy.settings.environment import lay_over
from proxy.settings.fields import rows
from proxy.settings.model import LATER_KEYS
from proxy.settings.values import Findings
from proxy.translate import model, parse, values
from tests.docs.pages import (
    DOCS,
    PAGES,
    README,
    ROOT,
    anchors,
    block,
    blocks,
    calls,
    coded,
    links,
    prose,
    spans,
    table,
)

KEYS = {row.key for row in rows()}
TOP = {key for key in KEYS if "." not in key}
OPERATION = DOCS / "operation.md"
RULES = DOCS / "rules.md"


def matching(pattern: str, *, at_least: int, pages: tuple[Path, ...] = PAGES) -> list[str]:
    """All different code spans of that form; the number shows that the form still finds what it should."""
    found = sorted({span for span in spans(*pages) if re.fullmatch(pattern, span)})
    assert len(found) >= at_least, found
    return found


# Settings


def test_setting_keys_in_the_docs_exist() -> None:
    """A dotted path that begins with a section is a key path of the settings, or one refused until a later version."""
    sections = "|".join(sorted({key.partition(".")[0].removesuffix("[]") for key in KEYS if "." in key}))
    found = matching(rf"(?:{sections})(?:\[\])?(?:\.[a-z_]+(?:\[\])?)+", at_least=40)
    assert [key for key in found if key not in KEYS | LATER_KEYS | {settings.TOKENS_FILE}] == []


def contexts(text: str) -> Iterator[str]:
    """Settings in which a span such as ``relay.tls: required`` or ``tls: auto`` may stand."""
    path, _, value = text.partition(": ")
    *sections, key = path.split(".")
    inner = f"{key}: {value}"
    yield "".join(f"{{{section}: " for section in sections) + f"{{{inner}}}" + "}" * len(sections)
    yield f"listeners: [{{{inner}}}]"
    yield f"logins: [{{name: a, password: b, {inner}}}]"
    yield f"deliver: {{{inner}}}"


def problems(folder: Path, text: str) -> list[str]:
    """What the loader says to these settings."""
    file = folder / "span.yaml"
    file.write_text(text, "utf-8")
    try:
        settings.load(file, {})
    except ProblemsError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_settings_with_a_value_in_the_docs_load(tmp_path: Path) -> None:
    """A key with a value, as it stands in running text, is taken by the loader."""
    keys = "|".join(sorted({key.rpartition(".")[2].removesuffix("[]") for key in KEYS}))
    found = matching(rf"(?:[a-z_]+\.)*(?:{keys}): .+", at_least=20)
    bad = {text: [problems(tmp_path, given) for given in contexts(text)] for text in found}
    assert {text: said for text, said in bad.items() if all(said)} == {}


def test_environment_variables_in_the_docs_exist() -> None:
    """A variable with our prefix means something; with a value, the value is taken."""
    for text in matching(r"CMAIL_PROXY_[A-Z0-9_]+(?:=.+)?", at_least=4):
        name, _, value = text.partition("=")
        known = {row.variable for row in rows()} | {settings.CONFIG_VARIABLE, settings.TEST_TOKEN_VARIABLE}
        assert name in known
        if value:
            findings = Findings("")
            lay_over(strictyaml.Mapping({}, {}, 0), {name: value.strip("'")}, findings)
            assert [str(problem) for problem in findings.problems] == []


def test_example_settings_name_variables_that_exist() -> None:
    """The variables in the comments of the example are real, too."""
    text = (ROOT / "examples" / "cmail-proxy.yaml").read_text("utf-8")
    assert set(re.findall(r"CMAIL_PROXY_\w+", text)) <= {row.variable for row in rows()}
    assert "docs/settings.md" in text


# Metrics, events, replies


def test_metrics_in_the_docs_exist() -> None:
    """Every name with our prefix is a metric, and labels next to it are its labels."""
    metrics = Metrics("1")
    metrics.delivery.kept(0)  # made only where somebody asks for them
    families = [*metrics.registry.collect(), *SupervisorMetrics().registry.collect()]
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    for text in matching(r"cmail_proxy_\w+(?: == 0)?", at_least=30):
        assert text.partition(" ")[0] in names


def test_labels_of_alerts_exist() -> None:
    """The label values that the docs give to alert on are among those of the metric."""
    text = docs.metrics()
    for label, value in re.findall(r"`(\w+)=\"(\w+)\"`", prose(OPERATION)):
        assert re.search(rf"`{label}`:[^;|]*`{value}`", text)


LEVELS = {level: level for level in log.LEVELS} | {"tell": "info"}
"""Methods of a log; where a name stands for one of two, the lower level is the documented one."""

SPREAD = {
    "self._who()": {"session", "client", "listener", "login"},
    "tls_failure(error)": {"reason", "hint"},
    "fields": set(),  # of a library's line, see below
}
"""What is spread into a log line by a function, and the fields it gives."""


def logged() -> dict[str, dict[str, set[str]]]:
    """Every event in the program, with its levels and fields."""
    events: dict[str, dict[str, set[str]]] = {}
    for call in calls():
        if call.args and isinstance(call.args[0], ast.Constant):
            name = call.args[0].value
            level = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
            keywords = {keyword.arg for keyword in call.keywords if keyword.arg}
            for keyword in call.keywords:
                keywords |= SPREAD[ast.unparse(keyword.value)] if keyword.arg is None and level in LEVELS else set()
            if level in LEVELS and isinstance(name, str) and name.isidentifier():  # else it is a library's way to log
                event = events.setdefault(name, {"levels": set(), "fields": set()})
                event["levels"].add(LEVELS[level])
                event["fields"] |= keywords
            elif level == "_tell":  # a line for each problem
                events[str(name)] = {"levels": {"error"}, "fields": {"problem"}}
    # These two are written past the methods for the levels.
    events["log_lines_dropped"] = {"levels": {"warning"}, "fields": {"lines"}}
    events["library"] = {"levels": {"warning"}, "fields": {"logger", "message", "exc"}}
    return events


def test_event_table_is_what_the_program_logs() -> None:
    """Each event stands in the table once, with its level and its fields, and no other does."""
    events = logged()
    message = events.pop("message")
    told = {coded(row[0])[0]: row for row in table(OPERATION, "Event")}
    assert {name: sorted(coded(row[2])) for name, row in told.items()} == {
        name: sorted(event["fields"]) for name, event in events.items()
    }
    assert {name: row[1] for name, row in told.items()} == {
        name: min(event["levels"]) for name, event in events.items()
    }
    fields = [name for row in table(OPERATION, "Field") for name in coded(row[0])]
    assert sorted(fields) == sorted({"ts", "level", "event", *message["fields"]})


def reply_patterns() -> list[str]:
    """Every reply the program can write, as a pattern: what it fills in may be anything."""
    found = []
    for call in calls():
        if isinstance(call.func, ast.Name) and call.func.id == "Reply" and len(call.args) == 3:
            code, enhanced, text = call.args
            if isinstance(code, ast.Constant) and isinstance(enhanced, ast.Constant):
                found.append(" ".join((_pattern(code), _pattern(enhanced), _pattern(text))))
    return found


def _pattern(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return re.escape(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(_pattern(part) for part in node.values)
    return ".+"


def test_replies_in_the_docs_are_in_the_program() -> None:
    """A reply with its text is word for word one that the program writes."""
    patterns = reply_patterns()
    for text in matching(r"[2-5]\d\d [245]\.\d+\.\d+ .+", at_least=25):
        assert any(re.fullmatch(pattern, text) for pattern in patterns), text


def test_reply_codes_in_the_docs_are_in_the_program() -> None:
    """A reply without its text has the two codes of one that the program writes."""
    codes = {" ".join(pattern.replace("\\", "").split(" ")[:2]) for pattern in reply_patterns()}
    for text in matching(r"[2-5]\d\d [245]\.\d+\.\d+", at_least=2):
        assert text in codes


# Commands and files


def command_lines() -> set[str]:
    """All command lines of the program, from text and blocks."""
    found = {span for span in spans() if span.startswith("cmail-proxy ")}
    for page in PAGES:
        for name in ("serve", "explain", "check"):
            for each in blocks(page, "sh", name):
                found |= {line.removeprefix(".venv/bin/") for line in each.text.splitlines()}
    return found


def test_commands_in_the_docs_exist() -> None:
    """Every command line names a command of the program, and options that this command has."""
    lines = command_lines()
    assert len(lines) >= 10
    for line in lines:
        _, *words = line.split()
        command: click.Command = cli.main
        while isinstance(command, click.Group) and words:
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, line
            command = found
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
    options = {name for parameter in cli.main.commands["translate"].params for name in parameter.opts}
    assert {"--explain", "--recipient", "--provider"} <= options


def test_commands_of_the_program_are_all_told() -> None:
    """The table of commands leaves out none but the one that only the program itself starts."""
    told = {span for row in table(OPERATION, "Command") for span in coded(row[0])}
    context = click.Context(cli.main)
    known = {name: cli.main.get_command(context, name) for name in cli.main.list_commands(context)}
    visible = {name: command for name, command in known.items() if command is not None and not command.hidden}
    names: set[str] = set()
    for name, command in visible.items():
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        names |= {f"cmail-proxy {name} {each}".strip() for each in inner}
    assert told == names


def test_make_targets_in_the_docs_exist() -> None:
    """Every `make` line names a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    found = {span for span in spans() if span.startswith("make ")}
    assert {"make demo", "make test", "make bench"} <= found
    assert {span.split()[1] for span in found} <= targets
    assert block(README, "sh", "install") == "make venv\n"
    assert "venv" in targets


def test_files_in_the_docs_exist() -> None:
    """Every path into this repository leads to a file or folder."""
    found = matching(r"(?:proxy|mappings|docs|examples|fixtures|tests|bench)/[\w./-]*", at_least=15)
    assert [path for path in found if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link leads to a file of this repository and, where it names one, to a heading in it."""
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_probe_paths_in_the_docs_are_those_of_the_program() -> None:
    """The table of probes has the paths that are served."""
    told = {span for row in table(OPERATION, "Path") for span in coded(row[0])}
    (served,) = (
        {each.value for each in node.elts if isinstance(each, ast.Constant)}
        for node in ast.walk(ast.parse((ROOT / "proxy" / "web" / "probes.py").read_text("utf-8")))
        if isinstance(node, ast.Tuple)
        and any(isinstance(each, ast.Constant) and each.value == "/livez" for each in node.elts)
    )
    assert told == served


# Fields, rules, standards


def test_fields_in_the_docs_are_known_to_the_rules() -> None:
    """Every X- field is a field of the platform or one that a rule file knows; X-Acme is invented."""
    files = docs.rule_files()
    for name in matching(r"!?X-[A-Za-z-]+\*?", at_least=80):
        lower = name.lower().strip("!*").encode()
        known = name in model.NATIVE or name in ("X-Cmail-*", "X-Acme-Received")
        excepted = any(lower in file.controls.excepted for file in files)
        assert known or excepted or any(file.controls.match(lower) for file in files), name


def test_rule_keys_in_the_docs_are_those_of_the_format() -> None:
    """The tables of the format have every key a rule file may have, and no other."""
    text = RULES.read_text("utf-8")
    tables = re.findall(r"^\| Key \| What it says \|\n\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    told = [{key for line in rows.splitlines() for key in coded(line.split(" | ")[0])} for rows in tables]
    top, selector, translate, loss = told
    assert top == set(parse._TOP_KEYS)
    assert selector == set(parse._SELECTOR_KEYS)
    assert selector | translate == set(parse._TRANSLATE_KEYS)
    assert selector | loss == set(parse._LOSS_KEYS)


def test_rule_words_in_the_docs_are_those_of_the_format() -> None:
    """Readings, conditions, targets and switch words are told in full."""
    text = RULES.read_text("utf-8")
    assert {coded(row[0])[0] for row in table(RULES, "Reading")} == {each.value for each in model.Reading}
    assert {each.value for each in model.When} <= set(coded(text))
    assert set(model.TARGETS) <= set(coded(text))
    for page in (RULES, DOCS / "providers.md"):
        assert set(coded(page.read_text("utf-8"))) >= values.TRUE_WORDS | values.FALSE_WORDS


def test_remarks_and_outcomes_in_the_docs_are_those_of_the_program() -> None:
    """The message line's closed lists are told in full."""
    told = {coded(row[0])[0]: set(coded(row[1])) for row in table(OPERATION, "Field")}
    assert told["remarks"] == set(REMARK_KINDS)
    outcomes = {
        node.value.value
        for module in (ROOT / "proxy" / "inbound" / "message.py", ROOT / "proxy" / "inbound" / "discard.py")
        for node in ast.walk(ast.parse(module.read_text("utf-8")))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and _assigns_outcome(node)
    }
    assert told["outcome"] == outcomes | set(OUTCOMES) | {"client_gone"}


def _assigns_outcome(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Attribute) and target.attr == "outcome" for target in node.targets)


def test_fixed_limits_in_the_docs_are_those_of_the_program() -> None:
    """Each row of the table of limits has the numbers of the code."""
    told = [
        [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", row[1])]
        for row in table(OPERATION, "Limit")
    ]
    assert told == [
        [server.MAX_ERRORS],
        [server.MAX_IDLE_COMMANDS],
        [session.MAX_AUTH_FAILURES],
        [session.MAX_EXCESS_RECIPIENTS],
        [commands.DEFAULT_LINE_OCTETS, commands.MAX_LINE_OCTETS["MAIL"], commands.MAX_LINE_OCTETS["AUTH"]],
        [session._BLOCK_SECONDS],
        [content._MIN_OCTETS_PER_SECOND],
        [server._TLS_SECONDS],
        [listeners._CROWDED_IDLE_SECONDS],
        [reply.MAX_LINES, reply.MAX_LINE_OCTETS],
        [values.MAX_JSON_NODES],
        [strictyaml.MAX_OCTETS, strictyaml.MAX_DEPTH, strictyaml.MAX_ALIASES],
    ]
    assert commands.MAX_LINE_OCTETS["RCPT"] == commands.MAX_LINE_OCTETS["MAIL"]
    assert f"waited for {content._SLOW_AFTER_SECONDS:g} s" in prose(OPERATION)


def test_standards_in_the_docs_are_those_the_code_names() -> None:
    """Each RFC of the README is the source of some module."""
    named = {number for module in sources_text() for number in re.findall(r"RFC (\d+)", module)}
    standards = prose(README).partition("## Standards")[2].partition("## Working")[0]
    told = set(re.findall(r"RFC (\d+)", standards))
    assert len(told) >= 15
    assert told <= named


def sources_text() -> list[str]:
    """The text of every module."""
    return [path.read_text("utf-8") for path in sorted((ROOT / "proxy").rglob("*.py"))]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "examples" / "cmail-proxy.yaml"], ids=lambda page: page.name
)
def test_pages_name_no_hosts_but_examples_and_providers(page: Path) -> None:
    """Mail addresses and hosts to connect to are invented, or those of the old providers."""
    for host in re.findall(r"[\w.+-]+@([\w.-]+\w)", page.read_text("utf-8")):
        assert host in {"example.com", "example.net", "example.org", "mg.example.com", "127.0.0.1"}


SWITCHING = DOCS / "switching.md"


def told_losses(section: str) -> Iterator[tuple[str, model.Action]]:
    """The code spans that a section of the switching page lists as lost, with what it says is done about them."""
    kinds = {"refused": model.Action.REFUSE, "reported": model.Action.WARN, "counted only": model.Action.IGNORE}
    for bullet in re.findall(r"^- Lost((?:.|\n(?!- ))*)", section, re.MULTILINE):
        parts = re.split(r"(refused|reported|counted only):", bullet, flags=re.IGNORECASE)
        for kind, text in zip(parts[1::2], parts[2::2], strict=True):
            yield from ((span, kinds[kind.lower()]) for span in coded(text))


@pytest.mark.parametrize("file", docs.rule_files(), ids=lambda file: file.provider)
def test_losses_on_the_switching_page_are_those_of_the_rules(file: model.RuleFile) -> None:
    """What the page says is refused, reported or counted only is what the rule file makes of it by default."""
    title = "Symfony and Laravel" if file.provider == "symfony" else file.title.partition(" (")[0]
    section = prose(SWITCHING).partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    done: dict[str, set[model.Action]] = {}
    for rule in docs.losses_of(file):
        paths = {".".join(path[:depth]) for path in rule.selector.paths for depth in range(1, len(path) + 1)}
        contains = {getattr(rule, "contains", "")}
        for name in {*rule.selector.names.values(), *paths, *contains}:
            done.setdefault(name, set()).add(model.DEFAULT_ACTIONS[rule.loss_class])
    told = list(told_losses(section))
    assert told
    for name, action in told:
        assert action in done.get(name, set()), (name, action, done.get(name))
