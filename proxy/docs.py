"""
The generated parts of the documentation: tables written from rule files, settings and metrics, so that none grows old.

``python -m proxy.docs``, in a checkout, names each part that is out of date, and ends with exit code 1 if there is one;
``--write`` rewrites them. A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from prometheus_client import Metric

from proxy import docs_chart
from proxy.policy.outcome import Outcome
from proxy.record.exposition import GROUP_LABEL_LIMIT, OTHER_GROUP
from proxy.record.metrics import NO_PROVIDER, UNGROUPED, Metrics, SupervisorMetrics
from proxy.rulebook import shipped_rules
from proxy.settings import Rules, reference
from proxy.translate import parse
from proxy.translate.model import (
    DEFAULT_ACTIONS,
    DELIVER_AT,
    INLINE_CSS,
    NATIVE,
    TARGETS,
    TRACK_CLICKS,
    TRACK_OPENS,
    Action,
    LossRule,
    Reading,
    RuleFile,
    Selector,
    TranslateRule,
    When,
)
from proxy.translate.outcome import Loss, Translation

PAGES = ("README.md", "docs/*.md", "charts/*/README.md")
SCHEMA = "charts/*/values.schema.json"
CHART = Path(__file__).parent.parent / "charts" / "cmail-proxy"

CLASSES: Mapping[str, str] = {
    "test_mode": "The provider would accept the message and deliver nothing.",
    "recipients": "The provider would send to others than the envelope names, or an additional copy.",
    "privacy": "The provider would send each recipient a copy of its own; here all would see each other.",
    "text": "The text is not complete: the provider would fill in place-holders or a stored template.",
    "unsubscribe": "Links, groups and lists for people who do not want the mail.",
    "time": "A time at which to send, or after which to give up.",
    "duplicates": "Protection from sending the same thing twice to the same person.",
    "links": "Parameters added to links.",
    "content": "Parts that the provider would add, leave out or treat differently.",
    "ambiguous": "A value that has more than one reading; it was translated all the same.",
    "metadata": "Data for webhooks and statistics.",
    "infrastructure": "Choice of IP addresses, domains and queues.",
}
"""What the classes of loss are about."""

LABELS: Mapping[str, str] = {
    "destination": "the first 50 domains, `other` for all others; or the smarthost or mailbox",
    "version": "of the program",
    "python": "version of Python",
    "listener": "address and port",
    "provider": "name of the rule file",
    "field": "as the rule file spells it",
    "class": "class of loss",
    "action": ", ".join(f"`{action.value}`" for action in Action),
    "group": f"the first {GROUP_LABEL_LIMIT} names, `{OTHER_GROUP}` for all others, `{UNGROUPED}` for none",
}
"""What labels say whose values are no closed list, or one that cannot be read off a fresh registry."""

_SWITCH_NAMES = {TRACK_OPENS: "opens", TRACK_CLICKS: "clicks", INLINE_CSS: "inline CSS"}
CONDITIONS = {
    When.SET: "set",
    When.PRESENT: "present",
    When.ENABLED: "switched on",
    When.DISABLED: "switched off",
    When.FILLED: "any value",
    When.OTHER_RECIPIENTS: "others than the envelope's recipients",
}
READINGS = {
    Reading.TEXT: "text",
    Reading.SWITCH: "switch",
    Reading.ALLOW_LIST: "list of what is on",
    Reading.UNIX_TIME: "time",
    Reading.UTC_TIME: "time",
    Reading.DATE_TIME: "time",
}
_ELSE = ", else "
_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

T = TypeVar("T")


def rule_files() -> tuple[RuleFile, ...]:
    """Load every rule file that comes with the program: those in force by default, then the others by name."""
    default = Rules().providers
    others = sorted(path.stem for path in shipped_rules().glob("*.yaml") if path.stem not in default)
    return parse.load((*default, *others), (), shipped_rules())


# Parts


def provider_matrix() -> str:
    """Write which field of a provider gives each field of the platform, and what the provider leaves off by itself."""
    rows = []
    for file in rule_files():
        sources = (_ELSE.join(_source(rule) for rule in file.translate if rule.target == target) for target in NATIVE)
        off = [_SWITCH_NAMES[name] for name, value in file.when_absent.items() if not value]
        link = f"[{_short(file)}](docs/providers.md#{_anchor(file.title)})"
        rows.append((link, *(source or "none" for source in sources), ", ".join(off) or "nothing"))
    return _table(("Provider", *(f"`{name}`" for name in NATIVE), "Off there where an app says nothing"), rows)


def losses() -> str:
    """Write the classes of loss, what each does by default, and the fields in it."""
    files = rule_files()
    rows = [
        (f"`{name}`", text, _do(name), "<br>".join(_fields_of_class(files, name))) for name, text in CLASSES.items()
    ]
    return _table(("Class", "What it is about", "By default", "Fields"), rows)


def providers() -> str:
    """Write a section for each provider, with every field its rule file knows."""
    return "\n".join("".join(_provider(file)) for file in rule_files())


def settings() -> str:
    """Write the reference of the settings."""
    return reference.markdown()


def metrics() -> str:
    """Write every metric with its labels."""
    program = Metrics(_open("version"), [_open("listener")], [_open("provider")])
    loss = Loss(_open("provider"), _open("field"), _open("class"), Action.WARN, "", "")
    program.translation(Translation(losses=(loss,)))
    for outcome in Outcome:
        program.delivery.attempted(outcome.value, _open("destination"), 0)
    rows = []
    for metric in (*program.registry.collect(), *SupervisorMetrics().registry.collect()):
        if metric.name.startswith("cmail_proxy_"):
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            rows.append((f"`{name}`", metric.type, "; ".join(_labels(metric)), metric.documentation))
    return _table(("Name", "Type", "Labels", "Meaning"), rows)


def chart_values() -> str:
    """Write the values of the chart."""
    return docs_chart.values_table((CHART / "values.yaml").read_text("utf-8"))


PARTS: Mapping[str, Callable[[], str]] = {
    "provider-matrix": provider_matrix,
    "losses": losses,
    "providers": providers,
    "settings": settings,
    "metrics": metrics,
    "chart-values": chart_values,
}


# Rules in words


def _source(rule: TranslateRule) -> str:
    selector = rule.selector
    text = _place(selector)
    if selector.key:
        text += f", the item `{selector.key}=…`"
    elif selector.separator and rule.reading is Reading.TEXT:
        text += ", its first item"
        if selector.skip_prefix:
            text += f" without `{selector.skip_prefix}` in front"
    elif rule.reading is Reading.ALLOW_LIST:
        text += f", on if it lists {_words(rule.true_words, ' or ')}"
    return f"{text} (with `rules.optional: [{rule.optional}]`)" if rule.optional else text


def _place(selector: Selector, parting: str = _ELSE) -> str:
    names = _words(selector.names.values(), parting)
    return f"{names}: {parting.join(map(_path, selector.paths))}" if selector.paths else names


def _path(path: tuple[str, ...]) -> str:
    return f"`{'.'.join(path)}`"


def _fields_of_class(files: Iterable[RuleFile], name: str) -> Iterator[str]:
    for file in files:
        inside: dict[str, list[str]] = {}
        for rule in losses_of(file):
            if rule.loss_class == name:
                for field in rule.selector.names.values():
                    inside.setdefault(field, []).extend(map(_path, rule.selector.paths))
        fields = [f"`{field}`: {', '.join(paths)}" if paths else f"`{field}`" for field, paths in inside.items()]
        if fields:
            yield f"{_short(file)}: {', '.join(fields)}"


def losses_of(file: RuleFile) -> list[LossRule | TranslateRule]:
    """List what has no counterpart, by class; a time to send at has none where all is sent at once."""
    late = (rule for rule in file.translate if rule.target == DELIVER_AT)
    return sorted((*file.untranslatable, *late), key=lambda rule: list(CLASSES).index(rule.loss_class))


def _provider(file: RuleFile) -> Iterator[str]:
    active = file.provider in Rules().providers
    yield f"## {file.title}\n\n"
    yield f"Rule file: [`mappings/{file.provider}.yaml`](../mappings/{file.provider}.yaml), "
    yield "in force by default. " if active else f"in force only where `rules.providers` names `{file.provider}`. "
    yield f"Source: <{file.reference}>.\n\n"
    yield f"Removed from the message: {_words(name for name in file.spelled if not name.startswith('!'))}"
    excepted = [name.removeprefix("!") for name in file.spelled if name.startswith("!")]
    yield f", but not {_words(excepted)}.\n\n" if excepted else ".\n\n"
    rules = sorted(
        (rule for rule in file.translate if rule.target in NATIVE), key=lambda rule: TARGETS.index(rule.target)
    )
    rows = [(f"`{rule.target}`", _source(rule), _read_as(rule)) for rule in rules]
    yield _table(("Becomes", "From; of several the first that has a value", "Read as"), rows)
    if file.when_absent:
        said = [f"{_SWITCH_NAMES[name]} {'on' if value else 'off'}" for name, value in file.when_absent.items()]
        yield f"\nWhere an app says nothing, {_short(file)} has {', '.join(said)} (`rules.when_absent: provider`).\n"
    lost = [
        (_place(rule.selector, ", "), _counts_when(rule), f"`{rule.loss_class}`", _do(rule.loss_class), rule.loses)
        for rule in losses_of(file)
    ]
    if lost:
        yield "\n" + _table(("No counterpart", "Counts when", "Class", "By default", "What is lost"), lost)


def _do(loss_class: str) -> str:
    return f"`{DEFAULT_ACTIONS[loss_class].value}`"


def _read_as(rule: TranslateRule) -> str:
    texts = [READINGS[rule.reading]]
    if rule.reading is Reading.SWITCH:
        texts += [f"on too: {_words(rule.true_words)}"] if rule.true_words else []
        texts += [f"off too: {_words(rule.false_words)}"] if rule.false_words else []
    elif rule.reading is Reading.ALLOW_LIST:
        texts.append("what it does not name is off")
    texts += [f"decides nothing: {_words(rule.known)}"] if rule.known else []
    return "; ".join(texts)


def _counts_when(rule: LossRule | TranslateRule) -> str:
    if isinstance(rule, TranslateRule):
        return "set"
    conditions = [CONDITIONS[rule.when]] if rule.when is not When.SET else []
    if rule.words:
        conditions.append(f"it is {_words(rule.words, ' or ')}")
    if rule.contains:
        conditions.append(f"it contains `{rule.contains}`")
    if rule.min_recipients:
        conditions.append(f"{rule.min_recipients} or more recipients")
    return ", ".join(conditions) or CONDITIONS[When.SET]


def _labels(metric: Metric) -> Iterator[str]:
    for name in _unique(name for sample in metric.samples for name in sample.labels if name != "le"):
        values = _unique(sample.labels[name] for sample in metric.samples)
        closed = [value for value in values if value != _open(name)]
        if len(closed) == len(values) and name not in ("python", "action", "group"):
            yield f"`{name}`: {_words(values)}"
        else:
            none = f", or `{NO_PROVIDER}`" if NO_PROVIDER in closed else ""
            yield f"`{name}`: {LABELS[name]}{none}"


def _open(label: str) -> str:
    """Stand for any value of a label."""
    return f"<{label}>"


# Markdown


def _words(words: Iterable[str], parting: str = ", ") -> str:
    quoted = [f"`{word}`" for word in (sorted(words) if isinstance(words, frozenset) else words)]
    return parting.join(quoted)


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _anchor(title: str) -> str:
    """Name the anchor that a heading gets on the usual forges."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _short(file: RuleFile) -> str:
    return file.title.partition(" (")[0]


# Pages


def render(page: str) -> str:
    """
    Write the generated parts of a page anew; the schema of the chart's values is a page with one part.

    Raises:
        KeyError: The page names a part that there is not.
    """
    if page.startswith("{"):
        return docs_chart.schema(page)
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", page)


def pages(folder: Path) -> list[Path]:
    """List the pages of a checkout."""
    return [path for pattern in (*PAGES, SCHEMA) for path in sorted(folder.glob(pattern))]


def main(arguments: Sequence[str], folder: Path) -> int:
    """
    Bring the pages below *folder* up to date, or say which are not.

    Returns:
        The exit code.
    """
    if arguments not in ([], ["--write"]):
        print("usage: python -m proxy.docs [--write]", file=sys.stderr)
        return 2
    stale = [path for path in pages(folder) if render(path.read_text("utf-8")) != path.read_text("utf-8")]
    for path in stale:
        if arguments:
            path.write_text(render(path.read_text("utf-8")), encoding="utf-8")
        print(
            f"{path.relative_to(folder)}: {'written' if arguments else 'out of date; run python -m proxy.docs --write'}"
        )
    return 0 if arguments or not stale else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).parent.parent))
