"""
What has no counterpart: when it counts as in use, and what then happens to the message.

Longer than other modules: the five classes of loss are held against the same few rule files.
"""

import pytest

from proxy.translate.model import DEFAULT_ACTIONS, Action, Strip
from proxy.translate.outcome import Loss, Remark
from tests.translate.drive import CLICKS, FIVE, GROUP, engine, kinds, octets, own, run, shipped, values

PLAIN = "title: x\nfields: [X-A]\nuntranslatable: [{{field: X-A, class: text, loses: it, {}}}]\n"
JSON = (
    "title: x\nfields: [X-J]\njson: {{X-J: {{}}}}\n"
    "untranslatable: [{{field: X-J, class: text, loses: it, at: a.b, {}}}]\n"
)


def in_use(text: str, *fields: str | bytes, to: int | tuple[str, ...] = 1) -> bool:
    return bool(run(own(text), *fields, to=to).losses)


# Conditions


@pytest.mark.parametrize(
    ("condition", "value", "lost"),
    [
        ("when: set", "v", True),
        ("when: set", "0", False),
        ("when: set", "00", True),
        ("when: set", "", False),
        ("when: set", " \t ", False),
        ("when: present", "v", True),
        ("when: enabled", "Yes", True),
        ("when: enabled", "no", False),
        ("when: enabled", "perhaps", False),
        ("when: enabled", "", False),
        ("when: enabled", '""', False),
        ("when: filled", "0", True),
        ("when: filled", "", False),
        ("when: filled, contains: '0'", "0", True),
        ("when: filled, contains: '0'", "1", False),
        ("when: disabled", "Off", True),
        ("when: disabled", "none", True),
        ("when: disabled", "on", False),
        ("when: disabled", "", False),
        ("is: [Two, '2']", "2", True),
        ("is: [Two, '2']", ' "TWO" ', True),
        ("is: [Two, '2']", "22", False),
        ("is: [Two, '2']", "", False),
        ("is: [0]", "0", True),
        ("contains: Broad", "my-BROADcast", True),
        ("contains: Broad", "narrow", False),
        ("contains: a b", b"a\r\n b", True),
        ("contains: a b", b"=?utf-8?q?a_b?=", True),
        ('list: ",", is: [x]', "a, X ,b", True),
        ('list: ",", is: [x]', "a,xx", False),
        ('list: ","', ", ,", False),
        ('list: ",", skip_prefix: _', "_a,_b", False),
        ('list: ",", skip_prefix: _', "_a,b", True),
        ('list: ";", key: k, when: enabled', "j=0; K = on", True),
        ('list: ";", key: k, when: enabled', "j=on; k=off", False),
        ('list: ";", key: k', "j=1", False),
        ('list: ";", key: k', "k", True),
        ("contains: '(a+)+$'", "an (A+)+$", True),
        ("contains: '(a+)+$'", "a" * 5000, False),
        ("contains: a.c", "abc", False),
        ("is: ['.*']", "a", False),
        ("is: ['.*']", ".*", True),
        ("list: '|', skip_prefix: '[ab]'", "a|b", True),
        ("list: '|', skip_prefix: '[ab]'", "[ab]c", False),
        ("when: enabled, contains: y", "yes", True),
        ("when: enabled, contains: y", "on", False),
    ],
)
def test_condition_on_a_plain_field_holds_when_it_is_in_use(condition: str, value: str | bytes, lost: bool) -> None:
    """A field that is switched off or empty is harmless; each condition says what counts, and all must hold."""
    field = b"X-A: " + (value.encode() if isinstance(value, str) else value)
    assert in_use(PLAIN.format(condition), field) is lost


@pytest.mark.parametrize(
    ("condition", "document", "lost"),
    [
        ("when: set", "v", True),
        ("when: set", 1, True),
        ("when: set", "0", False),
        ("when: set", "false", False),
        ("when: set", "null", False),
        ("when: set", '""', False),
        ("when: set", '" "', False),
        ("when: set", '"0"', False),
        ("when: set", "[]", False),
        ("when: set", "{}", False),
        ("when: set", '[null, 0, {"c": ""}]', False),
        ("when: set", '[null, 0, {"c": "v"}]', True),
        ("when: set", "0.5", True),
        ("when: filled", "v", True),
        ("when: filled", '""', True),
        ("when: filled", "0", True),
        ("when: filled", "false", True),
        ("when: filled", "[null]", False),
        ("when: filled", "{}", False),
        ("when: present", "null", True),
        ("when: present", "{}", True),
        ("when: enabled", "true", True),
        ("when: enabled", "1", True),
        ("when: enabled", "1.0", True),
        ("when: enabled", "0.0", False),
        ("when: enabled", '"1"', True),
        ("when: enabled", "[0, true]", True),
        ("when: enabled", "0", False),
        ("when: enabled", "null", False),
        ("when: disabled", "false", True),
        ("when: disabled", '"No"', True),
        ("when: disabled", "null", False),
        ("is: ['7']", "7", True),
        ("is: [false]", "false", True),
        ("is: [false]", "0", False),
        ("contains: 'ru'", "true", True),
        ("contains: x", '{"c": ["ax"]}', True),
    ],
)
def test_condition_on_a_json_value_holds_when_it_is_in_use(condition: str, document: str | int, lost: bool) -> None:
    """Some leaf must be more than null, false, 0 or empty; a key that is missing is never in use."""
    document = '"v"' if document == "v" else document
    assert in_use(JSON.format(condition), f'X-J: {{"a":{{"b":{document}}}}}') is lost
    assert not in_use(JSON.format(condition), 'X-J: {"a":{"c":true}}')
    assert not in_use(JSON.format(condition), "X-J: {}")
    assert not in_use(JSON.format(condition), "X-J:")


@pytest.mark.parametrize(("recipients", "lost"), [(0, False), (1, False), (2, True), (25, True)])
def test_condition_on_the_number_of_recipients_counts_the_envelope(recipients: int, lost: bool) -> None:
    """A single recipient has nobody to be hidden from."""
    assert (
        in_use(PLAIN.format("min_recipients: 2"), "X-A: v", "To: a@example.com, b@example.com", to=recipients) is lost
    )


@pytest.mark.parametrize(
    ("named", "accepted", "lost"),
    [
        ("a@example.com", ("a@example.com",), False),
        ("Jane <A@Example.com>", ("a@example.COM",), False),
        ("a@example.com", ("b@example.com",), True),
        ("a@example.com", ("a@example.com", "b@example.com"), True),
        ("a@example.com, b@example.com", ("b@example.com", "a@example.com"), False),
        ("a@example.com, a@example.com", ("a@example.com",), False),
        ("", ("a@example.com",), False),
        (" , ", ("a@example.com",), False),
    ],
)
def test_condition_on_other_recipients_compares_bare_addresses(
    named: str, accepted: tuple[str, ...], lost: bool
) -> None:
    """Order, case, names and repetition make no difference; an empty list names nobody."""
    assert in_use(PLAIN.format('when: other_recipients, list: ","'), f"X-A: {named}", to=accepted) is lost


@pytest.mark.parametrize(
    ("named", "lost"),
    [("V <r0@example.com>, X <r1@example.com>", False), ("V <r0@example.com>, X <x@example.com>", True)],
)
def test_condition_on_other_recipients_takes_all_addresses_of_one_text(named: str, lost: bool) -> None:
    """A client that writes all addresses into one string names as many people as one that writes a list."""
    found = run(engine(), f'X-SMTPAPI: {{"to": "{named}"}}', to=2)
    assert ("recipients" in [loss.loss_class for loss in found.losses]) is lost


@pytest.mark.parametrize("when", ["enabled", "disabled"])
@pytest.mark.parametrize(
    ("field", "source", "text"),
    [
        ("X-A: perhaps", "X-A", "title: x\nfields: [X-A]\nuntranslatable: [{field: X-A, "),
        (
            'X-A: {"a": ["perhaps", null]}',
            "X-A a",
            "title: x\nfields: [X-A]\njson: {X-A: {}}\nuntranslatable: [{field: X-A, at: a, ",
        ),
    ],
)
def test_condition_on_a_switch_with_an_unknown_word_is_told_and_refused_if_so_set(
    when: str, field: str, source: str, text: str
) -> None:
    """Whether it is on cannot be known: no loss is made up, and the operator decides as for every value."""
    rule = f"{text}when: {when}, class: text, loses: it}}]\n"
    found = run(own(rule), field)
    where = f"acme.yaml:{rule.count(chr(10))}"
    remark = Remark("invalid_value", "acme", source, "an unknown word; taken as not in use", where)
    assert (found.losses, found.remarks, found.action) == ((), (remark,), Action.IGNORE)
    refused = run(own(rule, refuse_invalid=True), field)
    assert (refused.action, refused.reason) == (Action.REFUSE, f"{source} cannot be read: an unknown word")


def test_condition_on_a_switch_that_holds_for_one_of_several_words_is_no_riddle() -> None:
    """A known word that switches on is enough."""
    found = run(own(PLAIN.format('list: ",", when: enabled')), "X-A: perhaps, on")
    assert (len(found.losses), found.remarks) == (1, ())


# Actions


@pytest.mark.parametrize("loss_class", DEFAULT_ACTIONS)
def test_class_of_a_loss_decides_what_happens(loss_class: str) -> None:
    """Each class has its action, which the message gets."""
    action = {
        "test_mode": "discard",
        **dict.fromkeys(("recipients", "privacy", "text"), "refuse"),
        **dict.fromkeys(("metadata", "infrastructure"), "ignore"),
    }.get(loss_class, "warn")
    found = run(own(PLAIN.format("").replace("text", loss_class)), "X-A: v")
    assert found.losses == (Loss("acme", "X-A", loss_class, Action(action), "it", "acme.yaml:3"),)
    assert found.action is Action(action)
    reasons = {"refuse": "No counterpart here for X-A (lost: it)", "discard": "X-A (it)"}
    assert found.reason == reasons.get(action, "")


def test_actions_of_the_operator_replace_the_default_by_class_and_by_provider() -> None:
    """The word on one provider's class outranks the word on the class."""
    rules = engine(
        actions_by_class={"time": Action.REFUSE, "privacy": Action.IGNORE},
        actions_by_provider={"mandrill": {"time": Action.DISCARD}},
    )
    assert run(rules, "X-Mailgun-Deliver-Within: 1h").action is Action.REFUSE
    assert run(rules, "X-MC-SendAt: 2026-11-23 09:00:00").action is Action.DISCARD
    assert run(rules, "X-MC-PreserveRecipients: no", to=2).action is Action.IGNORE
    assert run(rules, "X-MC-Template: t").action is Action.REFUSE


@pytest.mark.parametrize("strip", Strip)
def test_softened_rules_refuse_nothing_and_still_discard_test_mode(strip: Strip) -> None:
    """For a first look at live traffic; test mail reaches nobody unless its own provider still gets the field."""
    rules = engine(soften=True, strip=strip, actions_by_class={"time": Action.REFUSE})
    for field in ("X-MC-Template: t", "X-MC-BccAddress: a@example.com", "X-Mailgun-Deliver-Within: 1h"):
        assert run(rules, field).action is Action.WARN
    drop = run(rules, "X-Mailgun-Drop-Message: yes").action
    assert drop is (Action.WARN if strip is Strip.NONE else Action.DISCARD)


@pytest.mark.parametrize("action", [Action.REFUSE, Action.DISCARD])
@pytest.mark.parametrize("strip", Strip)
def test_softened_rules_keep_what_the_operator_decided_on_test_mode(action: Action, strip: Strip) -> None:
    """A message in test mode reaches nobody, whether the operator has it refused or discarded."""
    for decided in (
        {"actions_by_class": {"test_mode": action}},
        {"actions_by_provider": {"mailgun": {"test_mode": action}}},
    ):
        found = run(engine(soften=True, strip=strip, **decided), "X-Mailgun-Drop-Message: yes")
        assert found.action is (Action.WARN if strip is Strip.NONE else action)
    for weak in (Action.IGNORE, Action.WARN):
        rules = engine(soften=True, strip=strip, actions_by_class={"test_mode": weak})
        assert run(rules, "X-Mailgun-Drop-Message: yes").action is weak


def test_softened_rules_refuse_the_test_mode_of_another_provider() -> None:
    """Its own provider would deliver the message, so it is not lost in silence; and it must not reach people either."""
    assert run(engine(soften=True), "X-Mailgun-Drop-Message: yes", provider="postmark").action is Action.REFUSE


def test_softened_rules_do_not_let_invalid_values_through() -> None:
    """Refusing what cannot be read is a decision of its own."""
    assert run(engine(soften=True, refuse_invalid=True), "X-SMTPAPI: {").action is Action.REFUSE


@pytest.mark.parametrize("order", [1, -1])
def test_strongest_action_decides_whatever_stands_first(order: int) -> None:
    """Test mode outranks a refusal, a refusal a warning; all losses are told."""
    fields = ["X-Mailgun-Drop-Message: on", "X-MC-Template: t", "X-MC-AutoHtml: y", "X-MC-IpPool: p"][::order]
    found = run(engine(), *fields)
    assert (found.action, found.reason) == (Action.DISCARD, "X-Mailgun-Drop-Message (test mode that delivers nothing)")
    assert sorted(loss.action.value for loss in found.losses) == ["discard", "ignore", "refuse", "warn"]
    assert run(engine(), *fields[1:3]).action is Action.REFUSE


def test_first_of_two_refusals_gives_the_reason() -> None:
    """One line for the peer: what stands first in the message."""
    found = run(engine(), "X-MJ-TemplateID: 1", "X-MC-BccAddress: a@example.com")
    assert found.reason == "No counterpart here for X-MJ-TemplateID (lost: body from the stored template)"


@pytest.mark.parametrize(
    ("provider", "action"), [("", "discard"), ("mailgun", "discard"), ("mandrill", "refuse"), ("nobody", "refuse")]
)
def test_test_mode_of_another_provider_than_that_of_the_login_is_refused(provider: str, action: str) -> None:
    """The login's own provider would deliver the message: to lose it in silence is worse than to say no."""
    found = run(engine(), "X-Mailgun-Drop-Message: yes", provider=provider)
    assert (found.action, found.losses[0].action) == (Action(action), Action(action))


@pytest.mark.parametrize("first", ["metadata", "text"])
def test_two_losses_of_one_place_with_the_same_words_both_decide(first: str) -> None:
    """What is told once is not decided once: the stronger class counts, whichever rule stands first."""
    second = "text" if first == "metadata" else "metadata"
    rules = "".join(f"  - {{field: X-A, class: {name}, loses: it}}\n" for name in (first, second))
    assert run(own(f"title: x\nfields: [X-A]\nuntranslatable:\n{rules}"), "X-A: v").action is Action.REFUSE


def test_refused_message_still_has_its_whole_translation() -> None:
    """The log line of a refused message tells all that an accepted one would."""
    found = run(engine(), "X-MC-Template: t", "X-MC-Tags: a")
    assert (found.action, found.group, found.section) == (Action.REFUSE, "a", octets(f"{GROUP}: a"))


# Places


def test_loss_of_a_wildcard_is_told_once_by_the_name_of_the_rule() -> None:
    """The message's own names never get into logs or metric labels."""
    found = run(engine(), "X-PM-Metadata-a: 1", "X-PM-Metadata-secret: 2", "X-PM-Metadata-: 3", "X-PM-Metadata: 4")
    assert [loss.source for loss in found.losses] == ["X-PM-Metadata-*"]
    assert found.removed == ("X-PM-Metadata-a", "X-PM-Metadata-secret", "X-PM-Metadata-")


def test_loss_of_a_repeated_field_is_told_once_and_of_each_alias() -> None:
    """One fact for one place."""
    found = run(engine(), "X-MC-Meta: a", "X-MC-Metadata: b", "X-MC-META: c")
    assert [loss.source for loss in found.losses] == ["X-MC-Meta", "X-MC-Metadata"]


def test_loss_in_any_occurrence_counts() -> None:
    """The first field being empty or off does not hide the second."""
    assert run(engine(), "X-Mailgun-Drop-Message: no", "X-Mailgun-Drop-Message: yes").action is Action.DISCARD


@pytest.mark.parametrize(
    ("field", "losses"),
    [
        ("Content-Type: multipart/mailgun-variables; boundary=b", 2),
        ("content-type : Multipart/Mailgun-Variables", 2),
        (b"Content-Type:\r\n\tmultipart/mailgun-\r\n variables", 0),
        (b"Content-Type:\r\n\tmultipart/mailgun-variables;\r\n boundary=b", 2),
        ("Content-Type: =?us-ascii?q?multipart/mailgun-variables?=", 2),
        ("Content-Type: text/plain; name=mailgun-variables", 0),
        ("List-Unsubscribe: <%unsubscribe_url%>", 1),
        ("List-Unsubscribe: <mailto:%TAG_unsubscribe_email%>", 1),
        ("List-Unsubscribe: <https://example.com/unsubscribe_me?a=%20>", 0),
    ],
)
def test_loss_in_a_field_of_mail_itself_is_seen_and_the_field_stays(field: str | bytes, losses: int) -> None:
    """A container or a mark that only the old provider understands is noticed in a message without other controls."""
    found = run(engine(), "Subject: s", field, to=2)
    assert len(found.losses) == losses
    assert (found.section, found.removed, found.providers) == (None, (), ())


def test_loss_in_a_broken_document_counts_only_where_the_rule_wants_the_whole_of_it() -> None:
    """What stands in it cannot be known, but that the app wanted merge tags filled is plain."""
    merge = run(engine(), "X-MC-MergeVars: {bad")
    assert (merge.action, kinds(merge)) == (Action.REFUSE, ["invalid_value"])
    assert merge.reason == "No counterpart here for X-MC-MergeVars (lost: merge tags stay unfilled)"
    found = run(engine(), 'X-SMTPAPI: {"to":["x@example.com"]')
    assert (found.losses, found.action) == ((), Action.IGNORE)


JSON_WATCHED = (
    "title: x\nfields: [X-J]\njson: {{X-J: {}}}\n"
    "untranslatable: [{{field: X-J, at: a, min_recipients: 2, class: text, loses: it}}]\n"
)


@pytest.mark.parametrize(
    ("options", "setting", "refused"),
    [
        ("{}", False, False),
        ("{}", True, True),
        ("{on_invalid: refuse}", False, True),
        ("{on_invalid: pass}", True, False),
        ("{repeat: first, on_invalid: refuse}", False, True),
    ],
)
def test_broken_document_is_treated_as_its_field_says_rather_than_the_setting(
    options: str, setting: bool, refused: bool
) -> None:
    """Also where only rules about losses look at it, and none of their conditions holds."""
    found = run(own(JSON_WATCHED.format(options), refuse_invalid=setting), "X-J: {bad")
    assert kinds(found) == ["invalid_value"]
    assert found.action is (Action.REFUSE if refused else Action.IGNORE)
    assert found.reason == ("X-J cannot be read: not JSON" if refused else "")


@pytest.mark.parametrize(("word", "refused"), [("refuse", True), ("pass", False)])
def test_broken_document_is_refused_for_a_rule_that_wants_it_so(word: str, refused: bool) -> None:
    """A rule cannot let a document pass that is to be refused, but it can refuse one."""
    text = (
        "title: x\nfields: [X-J]\njson: {X-J: {}}\n"
        f"translate: [{{field: X-J, at: a, to: {GROUP}, on_invalid: {word}}}]\n"
    )
    assert (run(own(text), "X-J: {bad").action is Action.REFUSE) is refused
    assert run(own(text, refuse_invalid=True), "X-J: {bad").action is Action.REFUSE


def test_loss_and_setting_may_come_from_one_field() -> None:
    """A value that is translated may still lose something."""
    found = run(engine(), "X-MC-Track: opens, clicks_textonly")
    assert values(found)[CLICKS] == "false"
    assert [loss.loses for loss in found.losses] == ["click counts of the text part"]


def test_losses_beyond_what_is_noted_still_decide() -> None:
    """The list for the log is bounded; the decision is not."""
    rules = "".join(f"  - {{field: X-A{number}, class: metadata, loses: it}}\n" for number in range(60))
    last = "  - {field: X-Last, class: test_mode, loses: test mode}\n"
    found = run(
        own(f"title: x\nfields: [X-A*, X-Last]\nuntranslatable:\n{rules}{last}"),
        *(f"X-A{number}: v" for number in range(60)),
        "X-Last: v",
    )
    assert (len(found.losses), found.action, len(found.removed)) == (50, Action.DISCARD, 61)


def test_remarks_are_bounded_and_not_repeated() -> None:
    """A message made to fill the log fills a bounded part of it."""
    rules = "".join(f"  - {{field: X-A{number}, at: a, to: {CLICKS}, as: switch}}\n" for number in range(60))
    json = ", ".join(f"X-A{number}: {{}}" for number in range(60))
    found = run(
        own(f"title: x\nfields: [X-A*]\njson: {{{json}}}\ntranslate:\n{rules}"),
        *(f"X-A{number % 60}: {{" for number in range(120)),
    )
    assert kinds(found) == ["invalid_value"]
    lossy = "".join(f"  - {{field: X-A{number}, class: metadata, loses: it}}\n" for number in range(60))
    found = run(
        own(f"title: x\nfields: [X-A*]\njson: {{{json}}}\nuntranslatable:\n{lossy}"),
        *(f"X-A{number % 60}: {{" for number in range(120)),
    )
    assert kinds(found) == ["invalid_value"] * 50


def test_remark_on_a_document_that_only_a_wildcard_watches_names_it_as_the_file_does() -> None:
    """Remarks are counted by the rule file's spelling of a name, as losses are."""
    text = "title: x\nfields: [X-A-*]\njson: {X-A-Vars: {}}\nuntranslatable: [{field: X-A-*, class: text, loses: it}]\n"
    assert [remark.source for remark in run(own(text), "x-a-VARS: {").remarks] == ["X-A-*"]


def test_names_without_end_do_not_wear_the_engine_out() -> None:
    """What it remembers about names is bounded, and forgetting changes nothing."""
    rules = engine()
    run(rules, *(f"X-Junk-{number}: v" for number in range(4000)))
    found = run(rules, "X-PM-Tag: a", *(f"X-Other-{number}: v" for number in range(500)), "X-PM-KeepID: true")
    assert (values(found), found.removed) == ({GROUP: "a"}, ("X-PM-Tag", "X-PM-KeepID"))


# What the provider's rules know of these fields


@pytest.mark.parametrize(
    ("field", "classes"),
    [
        ("X-Mailjet-Prio: 2", []),
        ("X-Mailjet-Prio: 0", ["infrastructure"]),
        ("X-Mailjet-Prio: 3", ["infrastructure"]),
        ('X-MJ-Vars: {"a": ""}', ["content"]),
        ("X-Mailgun-Template-Version: v2", ["content"]),
        ('X-Mailgun-Template-Variables: {"a": 1}', ["content"]),
        ("X-MJ-CustomID: 0", ["metadata"]),
        ("X-MJ-EventPayload: 0", ["metadata"]),
        ("X-PM-Metadata-customer: 0", ["metadata"]),
        ('X-SMTPAPI: {"unique_args": {"customer": 0}}', ["metadata"]),
        ('X-SMTPAPI: {"unique_args": {}}', []),
        ("X-MJ-CustomID:", []),
    ],
)
def test_field_that_asks_for_nothing_alone_or_for_zero_has_the_class_of_what_it_does(
    field: str, classes: list[str]
) -> None:
    """A default loses nothing, 0 is data, and what only serves another field refuses no message."""
    assert [loss.loss_class for loss in run(engine(), field).losses] == classes


# Fields that nothing is known of


def test_field_that_only_a_pattern_knows_is_told_by_the_pattern() -> None:
    """The label is the file's own word; the text has the name as it was sent, cut."""
    long = "X-Mailgun-" + "n" * 200
    found = run(engine(), "x-mailgun-NEW: secret", "X-Mailgun-New: again", f"{long}: v", "X-MJ-Future: 1")
    text = "no rule knows {}; it was removed"
    assert [each for each in found.remarks if each.kind == "unknown_field"] == [
        Remark("unknown_field", "mailgun", "X-Mailgun-*", text.format("x-mailgun-NEW")),
        Remark("unknown_field", "mailgun", "X-Mailgun-*", text.format(long[:100])),
        Remark("unknown_field", "mailjet", "X-MJ-*", text.format("X-MJ-Future")),
    ]
    assert len(found.removed) == 4


@pytest.mark.parametrize(
    "field",
    [
        "X-Mailgun-Native-Send: true",
        "X-Mailgun-Track-Pixel-Location-Top: yes",
        "X-MJ-CustomID: 1",
        "X-MC-Important: no",
        "X-PM-KeepID: true",
        "X-PM-Metadata-a: 1",
        "X-Mailgun-Sid: 1",
        'X-SMTPAPI: {"future": 1, "filters": {"new": 1}}',
    ],
)
def test_field_that_is_named_somewhere_is_not_told(field: str) -> None:
    """By its exact name among the fields, or by any rule, one that is off too; keys in a document are let alone."""
    assert "unknown_field" not in kinds(run(engine(), field))


def test_field_that_the_rules_of_another_file_name_is_not_told() -> None:
    """A team may put what it knows into a file of its own."""
    shared = "title: x\nfields: [X-A-*]\n"
    other = "title: y\nfields: [X-B]\nuntranslatable: [{field: X-A-New, class: metadata, loses: it}]\n"
    assert kinds(run(own(shared), "X-A-New: v")) == ["unknown_field"]
    assert kinds(run(own(shared, other), "X-A-New:")) == []


@pytest.mark.parametrize("strip", [Strip.TRANSLATED, Strip.NONE])
def test_field_that_stays_in_the_message_is_not_told(strip: Strip) -> None:
    """Whoever keeps the fields loses nothing."""
    assert kinds(run(engine(strip=strip), "X-Mailgun-New: v")) == []


def test_fields_that_nobody_knows_hide_no_other_remark() -> None:
    """They are told last, because the number of remarks is limited."""
    found = run(engine(), *(f"X-Mailgun-New{number}: v" for number in range(80)), "X-Mailgun-Track-Opens: perhaps")
    assert (kinds(found)[0], len(found.remarks)) == ("invalid_value", 50)


def test_every_field_that_the_files_name_in_their_comments_as_harmless_is_silent() -> None:
    """No field of the five that is documented without a loss is remarked on."""
    every = [name for file in shipped(*FIVE) for name in file.spelled if not name.startswith("!") and "*" not in name]
    assert "X-Mailgun-Native-Send" in every
    assert kinds(run(engine("mailgun"), *(f"{name}: v" for name in every if name.startswith("X-Mailgun")))) == []
