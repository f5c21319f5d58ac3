"""
Switches, lists, JSON, times and names as providers write them; and names as they are written for the platform.

Longer than other modules: every kind of value is best looked up in one place.
"""

import json
import re
import unicodedata
from email.header import decode_header

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.mail import encoded_words
from proxy.mail.fields import HeaderSection
from proxy.translate.model import Action
from proxy.translate.outcome import Remark
from proxy.translate.values import MAX_JSON_NODES, bare_addresses, clean_name, fit_name, write_name
from tests.translate.drive import CLICKS, GROUP, OPENS, engine, kinds, own, run, values, written

SWITCH = "title: x\nfields: [X-A]\ntranslate:\n  - {field: X-A, to: X-Cmail-TrackOpens, as: switch"


# Switches and lists


@pytest.mark.parametrize("word", ["true", "yes", "y", "on", "1", "enabled", "TRUE", "Yes", '"true"', "'1'", ' " on " '])
def test_switch_knows_the_words_that_switch_on(word: str) -> None:
    """In any case, with blanks or quotes around them."""
    assert values(run(own(f"{SWITCH}}}"), f"X-A: {word}")) == {OPENS: "true"}


@pytest.mark.parametrize("word", ["false", "no", "n", "off", "0", "disabled", "none", "False", "NONE", '"0"'])
def test_switch_knows_the_words_that_switch_off(word: str) -> None:
    """In any case, with blanks or quotes around them."""
    assert values(run(own(f"{SWITCH}}}"), f"X-A: {word}")) == {OPENS: "false"}


@pytest.mark.parametrize("word", ["2", "yess", "-1", "1.0", "true false", "htmlonly", "null", "\u0131", "\uff11"])
def test_switch_with_an_unknown_word_is_invalid(word: str) -> None:
    """Nothing is set, and that is told."""
    found = run(own(f"{SWITCH}}}"), f"X-A: {word}")
    remark = Remark("invalid_value", "acme", "X-A", f"{OPENS} not set: an unknown word", "acme.yaml:4")
    assert (values(found), found.remarks) == ({}, (remark,))


@pytest.mark.parametrize(
    ("word", "value"),
    [("Html", {OPENS: "true"}), ("never", {OPENS: "false"}), ("no", {OPENS: "true"}), ("default", {}), ("on", {})],
)
def test_switch_of_a_rule_adds_words_and_outranks_the_common_ones(word: str, value: dict[str, str]) -> None:
    """A provider's own meaning of a word counts; a word that is only known decides nothing and is no mistake."""
    rules = own(f"{SWITCH}, true_if: [html, no], false_if: Never, known: [default, on]}}")
    found = run(rules, f"X-A: {word}")
    assert (values(found), found.remarks) == (value, ())


@pytest.mark.parametrize("quotes", ['""', "''", ' "" ', "'\"'"])
def test_switch_of_nothing_but_quotes_says_nothing(quotes: str) -> None:
    """What a client writes for an empty value is an empty value: an alias may speak, and nothing is remarked."""
    found = run(engine(), f"X-PM-TrackOpens: {quotes}", "X-PM-Track-Opens: no")
    assert (values(found), found.remarks) == ({OPENS: "false"}, ())
    found = run(engine(), f"X-PM-TrackOpens: {quotes}")
    assert (values(found), found.remarks) == ({}, ())


@pytest.mark.parametrize(
    ("value", "opens", "clicks"),
    [
        ("opens,clicks", "true", "true"),
        (" opens , clicks_all ", "true", "true"),
        ("OPENS", "true", "false"),
        ("clicks_textonly", "false", "false"),
        ("disable", "false", "false"),
        (", ,", "false", "false"),
        ('"opens"', "true", "false"),
        ("opens,none", "true", "false"),
        ("False, False", "false", "false"),
        ("noopens, clicks", "false", "true"),
    ],
)
def test_allow_list_switches_on_what_it_names_and_off_what_it_does_not(value: str, opens: str, clicks: str) -> None:
    """The list decides on both as soon as it is there, even empty."""
    assert values(run(engine(), f"X-MC-Track: {value}")) == {OPENS: opens, CLICKS: clicks}


def test_allow_list_of_the_first_field_counts_even_empty() -> None:
    """Present but empty is the one empty value that says something."""
    found = run(engine(), "X-MC-Track:", "X-MC-Track: opens", "X-MC-Tracks: clicks")
    assert values(found) == {OPENS: "false", CLICKS: "false"}


@pytest.mark.parametrize(
    ("value", "setting", "remarks"),
    [
        ("opens=true; clicks=false", {OPENS: "true", CLICKS: "false"}, []),
        ("OPENS = off ;clicks", {OPENS: "false"}, ["invalid_value"]),
        ("clicks=default;opens=default", {}, []),
        ("opens=", {}, []),
        ("other=true", {}, []),
        ("false", {}, ["invalid_value", "invalid_value"]),
        ("opens; clicks", {}, ["invalid_value", "invalid_value"]),
        ("", {}, []),
        (" ; ", {}, []),
        ("opens=perhaps; clicks=on", {CLICKS: "true"}, ["invalid_value"]),
        ("opens=default; opens=false", {OPENS: "false"}, []),
    ],
)
def test_key_selects_its_own_items(value: str, setting: dict[str, str], remarks: list[str]) -> None:
    """Of ``k=v`` items only those with the key count, and one that decides nothing lets the next one speak."""
    found = run(engine("symfony"), f"X-Track: {value}")
    assert (values(found), kinds(found)) == (setting, remarks)


# What stands in a field


@pytest.mark.parametrize(
    "field",
    [
        b"X-MC-Tags: =?utf-8?q?a=2Cb?=",
        b"X-MC-Tags: =?utf-8?q?_=2C_a?= ,b",
        b"X-MC-Tags:\r\n =?us-ascii?q?=5Fx=2C?=\r\n =?us-ascii?q?a?=,b",
        b"X-MC-Tags:\r\n\t,\r\n\ta\t,\r\n b",
    ],
)
def test_value_is_unfolded_and_decoded_before_it_is_split(field: bytes) -> None:
    """Clients encode commas too, and fold wherever there is a blank."""
    assert values(run(engine(), field)) == {GROUP: "a"}


def test_value_in_raw_8_bit_is_read_as_utf_8_or_latin_1() -> None:
    """Octets outside ASCII that nobody declared are still a name."""
    for field in ("X-PM-Tag: caf\u00e9".encode(), "X-PM-Tag: caf\u00e9".encode("latin-1")):
        assert values(run(engine(), field)) == {GROUP: "caf\u00e9"}


# JSON


CATEGORY = "X-SMTPAPI: {}"


@pytest.mark.parametrize(
    ("document", "group"),
    [
        ('{"category": "a\\u00e9"}', "a\u00e9"),
        ('{"category": "a\\ud83d\\ude00"}', "a\U0001f600"),
        ('{"category": "a\\ud83d"}', "a\ufffd"),
        ('{"category": "\\ude00\\ud83d"}', "\ufffd\ufffd"),
        ('{"category": 1.5}', "1.5"),
        ('{"category": 1.0}', "1"),
        ('{"category": -0.0}', "0"),
        ('{"category": 1e300}', "1e+300"),
        ('{"category": "tab\there"}', "tab here"),
        ('{"category": "a\\r\\nX-Evil: 1"}', "a X-Evil: 1"),
        ('{"category": "a\\u0000b\\u0085c\\u2028d"}', "abcd"),
        (' { "category" : [ null , "x" ] } ', "x"),
        (f'{{"category": {"1" * 4000}}}', "1" * 900),
    ],
)
def test_json_value_becomes_a_name(document: str, group: str) -> None:
    """Escapes, lone surrogates, control characters and numbers of any size give a name that can be written."""
    found = run(engine(), CATEGORY.format(document))
    assert kinds(found) in ([], ["name_cut"])
    assert written(found)[GROUP].isascii()
    assert encoded_words.decode(written(found)[GROUP]) == group


def test_json_with_raw_line_breaks_in_a_string_is_read() -> None:
    """Encoders hide line breaks in encoded words; SendGrid's old guide even asked for them."""
    found = run(engine(), b"X-SMTPAPI: =?utf-8?q?=7B=22category=22=3A=0D=0A_=22new=0Auser=22=7D?=")
    assert written(found) == {GROUP: b"new user"}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("{", "not JSON"),
        ('{"category": "a"', "not JSON"),
        ("{'category': 'a'}", "not JSON"),
        ('{"category": "a"},', "not JSON"),
        ('{"category": "a",}', "not JSON"),
        ('{"category": NaN}', "not JSON"),
        ('{"category": [1, -Infinity]}', "not JSON"),
        (f'{{"category": {"9" * 5000}}}', "not JSON"),
        (f'{{"category": "a", "x": -{"9" * 5000}}}', "not JSON"),
        ("=?utf-8?b?AAAA?=", "not JSON"),
        ('["a"]', "JSON, but not an object"),
        ('"category"', "JSON, but not an object"),
        ("7", "JSON, but not an object"),
        ("null", "JSON, but not an object"),
        ("[" * 100_000, "JSON nested too deep"),
        ("[" * 100_000 + "]" * 100_000, "JSON nested too deep"),
        ('{"a":' * 100_000, "JSON nested too deep"),
        ('{"category":' + "[" * 100_000 + "]" * 100_000 + "}", "JSON nested too deep"),
    ],
)
def test_json_that_is_none_is_told_once_and_nothing_in_it_is_used(document: str, problem: str) -> None:
    """One remark for the document, nothing set, the field removed; refused where so decided."""
    found = run(engine(), CATEGORY.format(document), "X-SendGrid-Category: c")
    assert found.remarks == (Remark("invalid_value", "sendgrid", "X-SMTPAPI", f"{problem}; nothing in it is used"),)
    assert (found.section, found.action) == (b"", Action.IGNORE)
    refused = run(engine(refuse_invalid=True), CATEGORY.format(document))
    assert (refused.action, refused.reason) == (Action.REFUSE, f"X-SMTPAPI cannot be read: {problem}")


def test_json_with_a_duplicate_key_counts_the_last_and_tells_it() -> None:
    """Two answers in one document: the last one counts, as in most parsers, and an operator can see it."""
    found = run(engine(), 'X-SMTPAPI: {"category":"a","category":"b","sub":{"x":[],"x":[]}}')
    assert values(found) == {GROUP: "b"}
    text = "a key occurs twice in one object; the last one counts"
    assert found.remarks == (Remark("repeated_key", "sendgrid", "X-SMTPAPI", text),)


def test_json_with_a_key_in_several_objects_tells_nothing() -> None:
    """The same key in different objects is not repeated."""
    assert kinds(run(engine(), 'X-SMTPAPI: {"category":"a","unique_args":{"category":"b"}}')) == []


@pytest.mark.parametrize("first", ['{"category":"a"}', "{}", "{bad", '{"category":true}'])
def test_json_field_of_which_only_the_first_counts_ignores_the_second(first: str) -> None:
    """SendGrid reads the first of several, whatever stands in it; a field without a value is none."""
    found = run(engine(), "X-SMTPAPI:", f"X-SMTPAPI: {first}", 'X-SMTPAPI: {"category":"b","to":["x@example.com"]}')
    assert values(found) == ({GROUP: "a"} if '"a"' in first else {})
    remark = Remark("repeated_field", "sendgrid", "X-SMTPAPI", "only the first one counts")
    assert remark in found.remarks
    assert found.action is Action.IGNORE
    assert found.section is not None and b"SMTPAPI" not in found.section


def test_json_field_of_which_each_counts_takes_the_first_with_a_value() -> None:
    """Without ``repeat: first`` repeated documents are looked through in message order."""
    rules = own("title: x\nfields: [X-J]\njson: {X-J: {}}\ntranslate: [{field: X-J, at: a.b, to: X-Cmail-GroupName}]\n")
    assert values(run(rules, "X-J: {}", 'X-J: {"a":[]}', 'X-J: {"a":[1,{"b":""},{"b":["v"]}]}')) == {GROUP: "v"}
    assert values(run(rules, 'X-J: {"a":{"b":null}}', 'X-J: {"a":{"c":1}}', 'X-J: {"a":"b"}')) == {}


@pytest.mark.parametrize(
    ("document", "group"),
    [
        ('{"a":{"b":"deep"},"c":"flat"}', "deep"),
        ('{"c":"flat"}', "flat"),
        ('{"a":[{"b":""},{"b":"item"}]}', "item"),
        ('{"a":[[{"b":"nested"}]],"c":"flat"}', "flat"),
        ('{"a":{"b":[]},"c":7}', "7"),
        ('{"a":{"b":[" ",null]},"c":["",  " x "]}', "x"),
        ('{"a.b":"literal"}', None),
    ],
)
def test_json_paths_count_by_rank_and_go_through_lists(document: str, group: str | None) -> None:
    """The first path that yields something counts; an array on the way gives its items."""
    rule = "{field: X-J, at: [a.b, c], to: X-Cmail-GroupName}"
    found = run(own(f"title: x\nfields: [X-J]\njson: {{X-J: {{}}}}\ntranslate: [{rule}]\n"), f"X-J: {document}")
    assert found.group == group
    assert not found.settings or found.settings[0].source == ("X-J a.b" if group in ("deep", "item") else "X-J c")


def test_json_of_very_many_values_is_looked_at_up_to_a_bound() -> None:
    """A document of a hundred thousand values is not walked to its end: it is told, and taken as in use."""
    many = CATEGORY.format(json.dumps({"asm_group_id": [0] * MAX_JSON_NODES + [1]}))
    found = run(engine(), many)
    assert [loss.source for loss in found.losses] == ["X-SMTPAPI asm_group_id"]
    assert [(each.kind, each.source, each.text) for each in found.remarks] == [
        ("invalid_value", "X-SMTPAPI asm_group_id", "more than 20000 values; taken as in use")
    ]
    refused = run(engine(refuse_invalid=True), many)
    assert refused.reason == "X-SMTPAPI asm_group_id cannot be read: more than 20000 values"
    few = run(engine(), CATEGORY.format(json.dumps({"asm_group_id": [0] * 100 + [1]})))
    assert (len(few.losses), few.remarks) == (1, ())
    early = run(engine(), CATEGORY.format(json.dumps({"unique_args": [1] * (MAX_JSON_NODES + 1)})))
    assert (len(early.losses), early.remarks) == (1, ())  # a lawful document of which the first value says it all


def test_json_of_a_value_at_the_limit_of_depth_translates_or_is_told() -> None:
    """Wherever the parser gives up, the result is a translation."""
    outcomes = set()
    for depth in (1, 10, 100, *range(200, 1200, 50), 3000):
        found = run(engine(), CATEGORY.format('{"category":"c","unique_args":' + "[" * depth + "1" + "]" * depth + "}"))
        outcomes.add((found.group, *kinds(found)))
    assert outcomes <= {("c",), (None, "invalid_value")}
    assert ("c",) in outcomes


# Times


TIMES = "title: x\nfields: [X-A]\ntranslate:\n  - {field: X-A, to: deliver_at, class: time, loses: sent at once, as: "


@pytest.mark.parametrize(
    ("reading", "value"),
    [
        ("unix_time", "1800000000"),
        ("unix_time", " 1 "),
        ("unix_time", "-1"),
        ("utc_time", "2026-11-23 09:00:00"),
        ("date_time", "Mon, 23 Nov 2026 09:00:00 +0100"),
        ("date_time", "Mon, 23 Nov 2026 09:00:00 GMT"),
        ("date_time", "23 Nov 2026 09:00:00 -0000"),
    ],
)
def test_time_that_is_one_is_lost_where_nobody_waits_and_kept_where_somebody_can(reading: str, value: str) -> None:
    """A delivery time is a loss on a route that sends at once, and none on one that can wait."""
    text = f"{TIMES}{reading}}}"
    found = run(own(text), f"X-A: {value}")
    assert [(loss.source, loss.loss_class, loss.loses, loss.where) for loss in found.losses] == [
        ("X-A", "time", "sent at once", "acme.yaml:4")
    ]
    assert (found.action, found.settings, found.section) == (Action.WARN, (), b"")
    later = run(own(text, deliver_later=True), f"X-A: {value}")
    assert (later.losses, later.remarks, later.action) == ((), (), Action.IGNORE)


@pytest.mark.parametrize("reading", ["unix_time", "utc_time", "date_time"])
def test_time_zero_is_no_time(reading: str) -> None:
    """Clients write 0 for "now"; that loses nothing and is no mistake."""
    found = run(own(f"{TIMES}{reading}}}"), "X-A: 0")
    assert (found.losses, found.remarks) == ((), ())


@pytest.mark.parametrize(
    ("reading", "value"),
    [
        ("unix_time", "soon"),
        ("unix_time", "1.5"),
        ("unix_time", "9" * 30),
        ("unix_time", "9" * 5000),
        ("unix_time", "-" + "9" * 12),
        ("utc_time", "2026-11-23T09:00:00Z"),
        ("utc_time", "2026-02-30 09:00:00"),
        ("utc_time", "2026-11-23"),
        ("date_time", "2026-11-23 09:00:00"),
        ("date_time", "tomorrow"),
        ("date_time", "Mon, 32 Nov 2026 09:00:00 +0000"),
        ("date_time", "Mon, 23 Nov 2026 09:00:00 +9900"),
        ("date_time", "Fri, 31 Dec 9999 23:59:59 -0100"),
        ("date_time", "Mon, 23 Nov 99999 09:00:00 +0000"),
        ("date_time", "Mon, 23 Nov 2026 09:00:00 +" + "9" * 400),
        ("date_time", ","),
        ("date_time", "()"),
    ],
)
def test_time_that_is_none_is_invalid_and_lost_where_nobody_waits(reading: str, value: str) -> None:
    """A time that cannot be read, or that no clock can hold, was a wish to wait all the same: it is told and lost."""
    remark = Remark("invalid_value", "acme", "X-A", "deliver_at not set: not a time", "acme.yaml:4")
    found = run(own(f"{TIMES}{reading}}}"), f"X-A: {value}")
    assert ([loss.loss_class for loss in found.losses], found.remarks) == (["time"], (remark,))
    refused = run(own(f"{TIMES}{reading}}}", actions_by_class={"time": Action.REFUSE}), f"X-A: {value}")
    assert (refused.action, refused.reason) == (Action.REFUSE, "No counterpart here for X-A (lost: sent at once)")
    later = run(own(f"{TIMES}{reading}}}", deliver_later=True), f"X-A: {value}")
    assert (later.losses, later.remarks) == ((), (remark,))


@pytest.mark.parametrize(
    ("document", "lost"),
    [
        ("1800000000.0", True),
        ('"soon"', True),
        ("[0, 1800000000]", True),
        ('{"a": 1}', True),
        ("true", True),
        ("0", False),
        ("0.0", False),
        ("null", False),
        ('""', False),
        ("[]", False),
    ],
)
def test_time_in_json_is_lost_where_it_is_more_than_0_or_empty(document: str, lost: bool) -> None:
    """Whatever the app wrote there, unless it is nothing; a document that cannot be read says nothing of times."""
    found = run(engine(), f'X-SMTPAPI: {{"send_at": {document}}}')
    assert [loss.source for loss in found.losses] == ["X-SMTPAPI send_at"] * lost
    assert not run(engine(), f'X-SMTPAPI: {{"send_at": {document}').losses


# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("  two  words ", "two words"),
        ("tab\tand\u00a0no-break", "tab and no-break"),
        ("a\r\n b", "a b"),
        ("a\x00b\x1fc\x7fd\x85e", "abcde"),
        ("a\u2028b\u2029c", "abc"),
        ("a \x00 b", "a b"),
        ("\x00 a \x00", "a"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u212b", "\u00c5"),
        ("a\ud800b\udfff", "a\ufffdb\ufffd"),
        ("\x00\x01 \u2028", ""),
        ("\u202egnp.exe", "\u202egnp.exe"),
    ],
)
def test_name_is_cleaned_of_what_no_report_should_hold(text: str, name: str) -> None:
    """No control characters or separators of lines, one blank for many, composed characters."""
    assert clean_name(text) == name


@given(st.text())
@example("a \x00 b")
@example("\x00 a")
def test_name_that_is_clean_stays_as_it_is(text: str) -> None:
    """Cleaning twice is cleaning once, and the result can go into any log or report."""
    name = clean_name(text)
    assert clean_name(name) == name
    assert not any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in name)
    assert "  " not in name


ENCODED_ATTACKS = [
    b"=?utf-8?q?a=0D=0AX-Cmail-TrackOpens=3A_false?=",
    b"=?utf-8?q?a=0D=0A=0D=0Abody?=",
    b"=?utf-8?q?a=0AX-Evil=3A_1?=",
    b"=?utf-8?q?a=0DX-Evil=3A_1?=",
    b"=?utf-8?q?a=00=0D=00=0AX-Evil=3A_1?=",
    b"=?utf-16be?b?AGEADQAKAFgALQBFAHYAaQBsADoAIAAx?=",
    "a\u2028X-Evil: 1".encode(),
    "a\u0085X-Evil: 1".encode(),
    b"a\x0bX-Evil: 1\x0c\x1c\x1d\x1e",
    b"=?utf-8?q?=3D=3Futf-8=3Fq=3Fa=3D0D=3D0AX-Evil=3A1=3F=3D?=",
]


@pytest.mark.parametrize("value", ENCODED_ATTACKS)
@pytest.mark.parametrize("name", ["X-PM-Tag", "X-MC-Tags", "X-Mailjet-Campaign", "X-Mailgun-Tag"])
def test_name_with_an_encoded_line_break_makes_no_field(name: str, value: bytes) -> None:
    """Whatever a value hides, one field with one value leaves, in printable ASCII."""
    found = run(engine(), name.encode() + b": " + value, "Subject: s")
    assert found.section is not None
    section = HeaderSection.split(found.section + b"\r\n")
    assert [field.name for field in section] == [GROUP, "Subject"]
    assert re.fullmatch(rb"[\x20-\x7e\r\n]+", section[0].raw)
    assert encoded_words.decode(section[0].value) == found.group


@pytest.mark.parametrize("name", ["=?utf-8?q?a?=", "a =?b", "?==?", "=?utf-8?q?a"])
def test_name_that_looks_like_an_encoded_word_is_encoded(name: str) -> None:
    """A reader that decodes must get the name as the app meant it."""
    field = write_name(GROUP, name)
    assert b"=?utf-8?b?" in field
    assert encoded_words.decode(field.partition(b": ")[2].replace(b"\r\n", b"")) == name


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("short", "short"),
        ("x" * 900, "x" * 900),
        ("x" * 850 + " " + "y" * 49, "x" * 850 + " " + "y" * 49),
        ("x" * 901, "x" * 900),
        ("x" * 900 + " y", "x" * 900),
        ("x" * 850 + " " + "y" * 100, "x" * 850),
        ("x" * 850 + " y " + "z" * 100, "x" * 850 + " y"),
        ("x" * 800 + " " + "y" * 200, "x" * 800),
        ("x" * 799 + " " + "y" * 200, "x" * 799 + " " + "y" * 100),
        ("word " * 250 + "end", ("word " * 180)[:-1]),
        ("\u00e9" * 1000, "\u00e9" * 900),
        ("=?" + "x" * 1000, "=?" + "x" * 898),
    ],
)
def test_name_that_is_too_long_is_cut_at_a_blank_if_one_is_near(name: str, kept: str) -> None:
    """At most 900 characters, in one line where they are ASCII; what is cut is told, by the name that was written."""
    assert fit_name(name) == kept
    found = run(engine(), f"X-PM-Tag: {name}")
    assert found.group == found.settings[0].value == kept
    assert encoded_words.decode(written(found)[GROUP]) == kept
    where = found.settings[0].where
    cut = Remark("name_cut", "postmark", "X-PM-Tag", "a name of over 900 characters was cut", where)
    assert found.remarks == ((cut,) if kept != name else ())
    assert found.section is not None
    assert kept.isascii() == (found.section.count(b"\r\n") == 1) or "=?" in kept


@given(st.text(min_size=1, max_size=1200).map(clean_name).filter(bool).map(fit_name))
@example("\u00e9" * 900)
@example("word " * 179 + "end")
def test_name_written_is_lawful_and_reads_back_everywhere(name: str) -> None:
    """One field, printable ASCII, no line over 998 octets; both our reader and the standard library's give it back."""
    field = write_name(GROUP, name)
    assert re.fullmatch(rb"X-Cmail-GroupName: [\x21-\x7e][\x20-\x7e]*(\r\n [\x21-\x7e][\x20-\x7e]*)*\r\n", field)
    assert max(map(len, field.split(b"\r\n"))) <= 998
    value = HeaderSection.split(field)[0].value
    assert encoded_words.decode(value) == name
    if b"=?" in value:
        pieces = decode_header(value.decode())
        assert "".join(text.decode(charset) for text, charset in pieces) == name


# Addresses


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("V <v@q.z>, X <x@y.z>", {"v@q.z", "x@y.z"}),
        ("v@q.z,X@Y.z", {"v@q.z", "x@y.z"}),
        ('"Doe, Jane" <j@x.z>', {"j@x.z"}),
        ("<a@x.z> <b@x.z>", {"a@x.z", "b@x.z"}),
        ("Jane, root", {"jane", "root"}),
        ("root", {"root"}),
        (" , ,", set()),
        ("<>", set()),
    ],
)
def test_addresses_in_one_text_are_all_found(text: str, addresses: set[str]) -> None:
    """A comma parts addresses, unless it stands in a name."""
    assert bare_addresses(text) == addresses


@pytest.mark.parametrize("text", ["<" * 1_000_000, "<a" * 500_000, "," * 1_000_000, "<" + "a," * 500_000])
def test_addresses_in_a_text_made_to_be_slow_take_no_longer(text: str) -> None:
    """The work grows with the length alone: quadratic work would outlive any test."""
    assert len(bare_addresses(text)) <= 2
