"""Rule files: how they are found and read, what their words become, and that every shipped rule can fire."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.problems import ProblemsError
from proxy.translate.model import (
    DEFAULT_ACTIONS,
    DELIVER_AT,
    SWITCHES,
    TIMES,
    FieldPatterns,
    JsonField,
    LossRule,
    Reading,
    Repeat,
    Selector,
    TranslateRule,
    When,
)
from proxy.translate.outcome import Loss, Setting
from proxy.translate.parse import find, load
from tests.translate.drive import (
    FIVE,
    GROUP,
    MAPPINGS,
    OPENS,
    SHIPPED,
    engine,
    rules_of,
    run,
    shipped,
    values,
    written_out,
)

GOOD = "title: Acme\nfields: X-Acme-Tag\ntranslate:\n  - {field: X-Acme-Tag, to: X-Cmail-GroupName}\n"

# Reading


def test_rule_file_becomes_values() -> None:
    """Every key of the format arrives where the engine looks for it."""
    file = written_out(
        """\
title: Acme
reference: https://docs.example.com/
fields: [X-Acme-*, X-Track, "!X-Acme-Id", "!X-Acme-Out-*"]
json: {X-Acme-Data: {}, X-Acme-First: {repeat: first, on_invalid: refuse}}
translate:
  - {field: [X-Acme-Data, x-acme-FIRST], at: [a.b, c], to: X-Cmail-GroupName, optional: deep, list: ";", skip_prefix: _}
  - field: X-Track
    key: Opens
    to: X-Cmail-TrackOpens
    as: switch
    true_if: [Html, 2]
    false_if: never
    known: [true, default]
    on_invalid: refuse
  - {field: X-Acme-At, to: deliver_at, as: unix_time, class: time, loses: sent at once, on_invalid: pass}
when_absent: {X-Cmail-TrackOpens: false, X-Cmail-InlineCSS: true}
untranslatable:
  - {field: X-Acme-Meta-*, class: metadata, loses: webhook data}
  - {field: X-Acme-To, when: other_recipients, min_recipients: 2, is: [A, 7], contains: B c, class: privacy, loses: it}
"""
    )
    assert (file.provider, file.title, file.reference, file.file) == (
        "acme",
        "Acme",
        "https://docs.example.com/",
        "acme.yaml",
    )
    assert file.spelled == ("X-Acme-*", "X-Track", "!X-Acme-Id", "!X-Acme-Out-*")
    assert file.json == {b"x-acme-data": JsonField(), b"x-acme-first": JsonField(Repeat.FIRST, refuse_invalid=True)}
    assert file.when_absent == {"X-Cmail-TrackOpens": False, "X-Cmail-InlineCSS": True}
    deep, track, at = file.translate
    assert deep.selector.names == {b"x-acme-data": "X-Acme-Data", b"x-acme-first": "x-acme-FIRST"}
    assert deep.selector.paths == (("a", "b"), ("c",))
    assert (deep.selector.separator, deep.selector.skip_prefix, deep.optional) == (";", "_", "deep")
    assert (deep.target, deep.reading, deep.where, deep.refuse_invalid) == (GROUP, Reading.TEXT, "acme.yaml:6", None)
    assert (track.target, track.reading, track.selector.key) == (OPENS, Reading.SWITCH, "opens")
    words = [sorted(each) for each in (track.true_words, track.false_words, track.known)]
    assert words == [["2", "html"], ["never"], ["default", "true"]]
    assert (track.where, track.refuse_invalid) == ("acme.yaml:7", True)
    assert (at.loss_class, at.loses, at.refuse_invalid) == ("time", "sent at once", False)
    meta, other = file.untranslatable
    assert (meta.when, meta.min_recipients, meta.words, meta.contains) == (When.SET, 0, frozenset(), "")
    assert (other.when, other.min_recipients, other.contains) == (When.OTHER_RECIPIENTS, 2, "b c")
    assert sorted(other.words) == ["7", "a"]
    assert (other.loss_class, other.loses, other.where) == ("privacy", "it", "acme.yaml:19")


@pytest.mark.parametrize(
    ("name", "control"),
    [
        (b"x-a", True),
        (b"x-a-", False),
        (b"x-b-c", True),
        (b"x-b-", True),
        (b"x-b", False),
        (b"x-b-id", False),
        (b"x-b-ids", True),
        (b"subject", False),
    ],
)
def test_field_patterns_match_names_prefixes_and_except_names(name: bytes, control: bool) -> None:
    """A star stands for any end of a name; an exception is one name."""
    patterns = written_out("title: x\nfields: [X-A, X-B-*, '!X-B-Id']\n").controls
    assert patterns == FieldPatterns(frozenset({b"x-a"}), (b"x-b-",), frozenset({b"x-b-id"}))
    assert patterns.match(name) is control


def test_field_pattern_that_is_excepted_as_a_whole_keeps_every_field_of_it() -> None:
    """An exception may end in a star as well."""
    patterns = written_out("title: x\nfields: [X-B-*, '!X-B-Out-*']\n").controls
    assert [patterns.match(name) for name in (b"x-b-in", b"x-b-out-", b"x-b-out-id")] == [True, False, False]


@pytest.mark.parametrize("text", [GOOD, "\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), f"---\n{GOOD}...\n"])
def test_rule_file_from_any_editor_is_read(text: str) -> None:
    """A byte order mark, CRLF and document marks make no difference to the rules."""
    assert [rule.target for rule in written_out(text).translate] == [GROUP]


# Finding


def test_files_are_read_in_the_order_named() -> None:
    """The settings name the providers."""
    assert [file.provider for file in load(["sendgrid", "mailgun"], (), MAPPINGS)] == ["sendgrid", "mailgun"]


def test_file_of_the_operator_replaces_the_shipped_one(tmp_path: Path) -> None:
    """Folders count in order, before ours; a shipped file is called by its place in the program."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, title in ((first, "First"), (second, "Second")):
        folder.mkdir()
        (folder / "acme.yaml").write_text(GOOD.replace("Acme\n", f"{title}\n", 1))
    (second / "mailgun.yaml").write_text(GOOD)
    files = load(["acme", "mailgun", "postmark"], (tmp_path / "missing", first, second), MAPPINGS)
    assert [file.title for file in files] == ["First", "Acme", "Postmark"]
    assert [file.file for file in files] == [
        str(first / "acme.yaml"),
        str(second / "mailgun.yaml"),
        "mappings/postmark.yaml",
    ]


@pytest.mark.parametrize(
    "name", ["../mailgun", "Mailgun", "", "mailgun.yaml", "mail gun", "-x", "/etc/passwd", "a" * 41]
)
def test_name_that_is_no_name_of_a_provider_finds_no_file(name: str) -> None:
    """Names are words, never paths."""
    assert find(name, (MAPPINGS,), MAPPINGS) is None


def test_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    """One run of ``check`` shows every mistake: unknown providers, unreadable files, bad rules."""
    (tmp_path / "acme.yaml").write_text("title: Acme\nfields: [Subject]\ntranslate: {}\n")
    (tmp_path / "latin.yaml").write_bytes(b"title: Caf\xe9\n")
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ProblemsError) as error:
        load(["good", "acme", "latin", "nobody", "folder", "mailgun"], (tmp_path,), MAPPINGS)
    known = "acme, folder, good, latin, mailgun, mailjet, mandrill, postmark, sendgrid, symfony"
    hint = "(it would remove subject)"
    assert str(error.value).splitlines() == [
        f"{tmp_path}/acme.yaml:2: fields[0]: found 'Subject'; expected fields of this provider {hint}",
        f"{tmp_path}/acme.yaml:3: translate: found a mapping; expected a list of rules",
        f"{tmp_path}/latin.yaml: found octets that are not UTF-8; expected a readable rule file in UTF-8",
        f"rules.providers: found 'nobody'; expected one of {known}",
        f"rules.providers: found 'folder'; expected one of {known}",
    ]


def test_file_that_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system's reason is the operator's hint."""
    (tmp_path / "locked.yaml").write_text(GOOD)

    def refuse(path: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)  # a test may run as root, whom no file mode stops
    with pytest.raises(ProblemsError) as error:
        load(["locked"], (tmp_path,), MAPPINGS)
    assert str(error.value) == (
        f"{tmp_path}/locked.yaml: found Permission denied; expected a readable rule file in UTF-8"
    )


# Shipped files


def test_shipped_files_are_the_known_ones_and_load_without_problems() -> None:
    """Every rule file in the program is right, and none is forgotten here."""
    assert sorted(path.stem for path in MAPPINGS.glob("*.yaml")) == sorted(SHIPPED)
    assert [file.provider for file in shipped(*SHIPPED)] == list(SHIPPED)


@pytest.mark.parametrize("provider", SHIPPED)
def test_shipped_file_has_a_title_a_reference_and_plain_text(provider: str) -> None:
    """The matrix in the README is made of it."""
    file = shipped(provider)[0]
    assert file.title
    assert file.reference.startswith("https://")
    assert (MAPPINGS / f"{provider}.yaml").read_bytes().isascii()


def rules(provider: str) -> list[TranslateRule | LossRule]:
    return rules_of(shipped(provider)[0])


@pytest.mark.parametrize("provider", SHIPPED)
def test_shipped_rules_are_about_control_fields(provider: str) -> None:
    """A field that is translated or lost is one that is removed, but for two that mail itself needs."""
    controls = shipped(provider)[0].controls
    for rule in rules(provider):
        for name in rule.selector.names:
            assert controls.match(name.removesuffix(b"*")) or name in (b"content-type", b"list-unsubscribe")


@pytest.mark.parametrize("provider", SHIPPED)
def test_shipped_rules_say_where_they_stand(provider: str) -> None:
    """File and line of a rule are those of the line that names its field."""
    lines = (MAPPINGS / f"{provider}.yaml").read_text().splitlines()
    for rule in rules(provider):
        name, _, number = rule.where.rpartition(":")
        assert name == f"mappings/{provider}.yaml"
        assert all(spelled in lines[int(number) - 1] for spelled in rule.selector.names.values())


def test_no_two_of_the_five_claim_one_field() -> None:
    """A name belongs to one provider, so the provider of a message is plain."""
    names = {name for provider in FIVE for rule in rules(provider) for name in rule.selector.names}
    for name in names - {b"content-type", b"list-unsubscribe"}:
        assert sum(file.controls.match(name) for file in shipped(*FIVE)) == 1


def field(name: str, path: tuple[str, ...], selector: Selector, value: str) -> str:
    """A field that holds *value* at the place the selector looks at."""
    value = f"{selector.key}={value}" if selector.key else value
    document: object = value
    for key in reversed(path):
        document = {key: document}
    return f"{name.replace('*', 'key')}: {json.dumps(document) if path else value}"


def samples(rule: TranslateRule) -> Iterator[tuple[str, str]]:
    """Values that a rule reads, and what they become."""
    if rule.reading is Reading.TEXT:
        yield "generated", "generated"
    elif rule.reading in TIMES:
        yield (
            {
                Reading.UNIX_TIME: "1800000000",
                Reading.UTC_TIME: "2027-01-15 08:00:00",
                Reading.DATE_TIME: "Fri, 15 Jan 2027 08:00:00 +0000",
            }[rule.reading],
            "",
        )
    else:
        yield from ((word, "true") for word in sorted(rule.true_words))
        yield from ((word, "false") for word in sorted(rule.false_words))
        if rule.reading is Reading.SWITCH:
            yield from (("yes", "true"), ("No", "false"))
        else:
            yield from ((word, "false") for word in ("", *sorted(rule.known)))


TRANSLATE_CASES = [
    pytest.param(provider, rule, name, path, id=f"{rule.where}-{rule.selector.label(name, path)}")
    for provider in SHIPPED
    for rule in shipped(provider)[0].translate
    for name in rule.selector.names
    for path in rule.selector.paths or ((),)
]
OPTIONAL = frozenset(rule.optional for file in shipped(*SHIPPED) for rule in file.translate if rule.optional)


@pytest.mark.parametrize(("provider", "rule", "name", "path"), TRANSLATE_CASES)
def test_shipped_translate_rule_fires(provider: str, rule: TranslateRule, name: bytes, path: tuple[str, ...]) -> None:
    """Each name and path of each rule yields each value it knows: none is shadowed or misspelt."""
    every = engine(*SHIPPED, optional=OPTIONAL)
    label = rule.selector.label(name, path)
    for value, expected in samples(rule):
        found = run(every, field(rule.selector.names[name], path, rule.selector, value))
        assert found.remarks == ()
        if rule.target == DELIVER_AT:
            assert [(loss.source, loss.where, loss.loses) for loss in found.losses] == [(label, rule.where, rule.loses)]
        else:
            assert Setting(rule.target, expected, provider, label, rule.where) in found.settings
    if rule.reading is Reading.SWITCH:
        for word in rule.known:
            found = run(every, field(rule.selector.names[name], path, rule.selector, word))
            assert (found.remarks, rule.target in values(found)) == ((), False)


def harmful(rule: LossRule) -> str:
    """A value under which all conditions of a rule hold."""
    if rule.words:
        return min(rule.words)
    words = {When.ENABLED: "true", When.DISABLED: "false", When.OTHER_RECIPIENTS: "other@example.com"}
    return f"a {rule.contains} b" if rule.contains else words.get(rule.when, "v")


LOSS_CASES = [
    pytest.param(provider, rule, name, path, id=f"{rule.where}-{rule.selector.label(name, path)}")
    for provider in SHIPPED
    for rule in shipped(provider)[0].untranslatable
    for name in rule.selector.names
    for path in rule.selector.paths or ((),)
]


@pytest.mark.parametrize(("provider", "rule", "name", "path"), LOSS_CASES)
def test_shipped_loss_rule_fires(provider: str, rule: LossRule, name: bytes, path: tuple[str, ...]) -> None:
    """Each name and path of each rule is told when it is in use, and not when it is empty or switched off."""
    every = engine(*SHIPPED)
    selector = rule.selector
    label = " ".join(part for part in (selector.label(name, path), rule.contains) if part)
    document = json.dumps({"a@example.com": {"name": "A"}}) if name in shipped(provider)[0].json and not path else ""
    text = field(selector.names[name], path, selector, document or harmful(rule))
    loss = Loss(provider, label, rule.loss_class, DEFAULT_ACTIONS[rule.loss_class], rule.loses, rule.where)
    assert loss in run(every, text, to=max(1, rule.min_recipients)).losses
    if rule.min_recipients > 1:
        assert loss not in run(every, text, to=rule.min_recipients - 1).losses
    harmless = [f"{selector.names[name].replace('*', 'key')}: {value}" for value in ("", "{}"[: 2 * bool(path)])]
    if rule.when in (When.ENABLED, When.DISABLED):
        switched = "0" if rule.when is When.ENABLED else "yes"
        harmless.append(field(selector.names[name], path, selector, switched))
    for text in harmless:
        assert loss not in run(every, text, to=max(1, rule.min_recipients)).losses


def test_shipped_rules_reach_every_switch_and_class() -> None:
    """No target and no class of loss is there for nothing."""
    every = list(itertools.chain.from_iterable(rules(provider) for provider in SHIPPED))
    assert {rule.target for rule in every if isinstance(rule, TranslateRule)} == {GROUP, *SWITCHES, DELIVER_AT}
    assert {rule.loss_class for rule in every if rule.loss_class} == set(DEFAULT_ACTIONS)
