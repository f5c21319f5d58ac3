"""What holds for every message: bytes kept, one pass enough, no exception, output that any parser reads alike."""

import re
from collections.abc import Callable
from email.header import decode_header
from email.parser import BytesParser
from email.policy import compat32

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from proxy.mail.data_stage import mend_line_ends
from proxy.mail.envelope import Envelope
from proxy.mail.fields import HeaderSection
from proxy.translate.engine import Engine
from proxy.translate.explain import explain
from proxy.translate.model import Action, Strip
from proxy.translate.outcome import Translation
from tests.translate.drive import CLICKS, CSS, FIVE, GROUP, OPENS, SHIPPED, engine, rules_of, shipped

NATIVE = {name.lower() for name in (GROUP, OPENS, CLICKS, CSS)}
TABLE = {provider: {OPENS: False, CSS: True} for provider in (*FIVE, "nobody")}
WHEN_ABSENT = {"platform": {}, "provider": None, "table": TABLE}
OPTIONAL = frozenset({"customid", "subaccount", "message_stream"})

ENGINES = {
    (strip, when_absent): engine(*SHIPPED, strip=strip, when_absent=table, optional=OPTIONAL)
    for strip in Strip
    for when_absent, table in WHEN_ABSENT.items()
}
EVERY_POLICY = pytest.mark.parametrize(("strip", "when_absent"), ENGINES, ids=lambda part: getattr(part, "value", part))


def control(name: str) -> bool:
    return any(file.controls.match(name.lower().encode()) for file in shipped(*SHIPPED))


# Messages

RULE_NAMES = sorted(
    {
        name.removesuffix("*") + ("key" if name.endswith("*") else "")
        for file in shipped(*SHIPPED)
        for rule in rules_of(file)
        for name in rule.selector.names.values()
    }
    | {"X-Mailgun-Unknown", "X-MJ-Unknown"}
)
WORDS = [
    *("", "yes", "No", "1", "0", "2", "none", "default", "opens", "clicks, opens", "htmlonly", "TextOnly", "perhaps"),
    *("a", "two words", "_a, b,c", "opens=false; clicks=default", "x" * 1000, "word " * 250, "a  \x01 b", "caf\u00e9"),
    *("=?utf-8?q?caf=C3=A9?=", "=?utf-8?b?e30=?=", "=?utf-8?q?a=0D=0AX-Evil=3A_1?=", "=?a?b", "deliver", "broadcast"),
    *("{}", "{", "[]", "null", '{"category":"c"}', '{"category":["","d"]}', '{"category":{"x":1},"category":"e"}'),
    *('{"to":["r0@example.com","x@example.com"],"send_at":1800000000}', '{"category":"\\ud800","sub":{"a":["b"]}}'),
    '{"filters":{"opentrack":{"settings":{"enable":"0"}},"clicktrack":{"settings":{"enable":1}}},"unique_args":{"a":1}}',
    *("Mon, 23 Nov 2026 09:00:00 +0100", "2026-11-23 09:00:00", "multipart/mailgun-variables", "<%unsubscribe_url%>"),
    *("v=1; h=from:x-pm-tag:x-mc-tags; b=x", "(", '"', "\\", "<", ":", "\u2028", "\x00"),
]


def cased(names: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    cases: list[Callable[[str], str]] = [str, str.lower, str.upper, str.title]
    return st.tuples(names, st.sampled_from(cases)).map(lambda pair: pair[1](pair[0]))


TOKENS = st.text("abcXYZ019-_.!#", min_size=1, max_size=8)
OTHER_NAMES = st.one_of(
    cased(
        st.sampled_from(
            ["Subject", "To", "Received", "Content-Type", "List-Unsubscribe", "X-MC-User", "X-PM-Message-Id"]
        )
    ),
    st.just("DKIM-Signature"),
    TOKENS.filter(lambda name: not control(name)),
)
NAMES = st.one_of(
    cased(st.sampled_from(RULE_NAMES)),
    cased(st.sampled_from(RULE_NAMES)),
    cased(st.sampled_from([GROUP, OPENS, CLICKS, CSS])),
    OTHER_NAMES,
)
VALUES = st.one_of(
    st.sampled_from(WORDS).map(str.encode),
    st.binary(max_size=20).map(lambda value: re.sub(rb"[\r\n]", b"", value)),
    st.text(max_size=20).map(lambda value: re.sub(r"[\r\n]", "", value).encode("utf-8", "replace")),
)
FOLDS = st.sampled_from([b" ", b"", b"\t", b" \r\n ", b"\r\n\t"])


def field(names: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    parts = st.tuples(names, FOLDS, VALUES, FOLDS, VALUES)
    return parts.map(lambda part: part[0].encode() + b":" + b"".join(part[1:]) + b"\r\n")


def sections(names: st.SearchStrategy[str] = NAMES) -> st.SearchStrategy[bytes]:
    return st.lists(field(names), max_size=7).map(b"".join)


LINES = st.one_of(
    field(NAMES),
    st.sampled_from(
        [b"From x\r\n", b">From x\r\n", b"no field\r\n", b" folded\r\n", b"\r\n", b"\n", b"\r", b"X-PM-Tag", b": "]
    ),
    st.binary(max_size=10),
)
ANYTHING = st.one_of(st.binary(max_size=80), st.lists(LINES, max_size=8).map(b"".join))
PROVIDERS = st.sampled_from(["", "", *SHIPPED, "nobody"])


def translated(rules: Engine, data: bytes, provider: str, recipients: int = 1) -> tuple[Translation, bytes]:
    """The translation and the section that leaves."""
    section = HeaderSection.split(data)
    envelope = Envelope("", tuple(f"r{number}@example.com" for number in range(recipients)))
    found = rules.translate(section, envelope, provider)
    return found, data[: section.end] if found.section is None else found.section


# Promises


@EVERY_POLICY
@settings(max_examples=40)
@given(data=sections(st.one_of(OTHER_NAMES, cased(st.sampled_from([GROUP, OPENS])))), provider=PROVIDERS)
def test_message_without_control_fields_is_byte_identical(
    strip: Strip, when_absent: str, data: bytes, provider: str
) -> None:
    """Nothing is removed, changed or moved; only a configured provider's defaults may be added, in one piece."""
    found, output = translated(ENGINES[strip, when_absent], data, provider)
    assert found.removed == () or when_absent != "platform"
    if when_absent == "platform" or not provider:
        assert found.section is None
    elif found.settings and not found.removed:
        assert output.startswith(data)
        assert re.fullmatch(rb"(X-Cmail-[A-Za-z]+: (true|false)\r\n)+", output[len(data) :])


@EVERY_POLICY
@settings(max_examples=60)
@given(data=sections(), provider=PROVIDERS)
@example(data=b"X-Cmail-GroupName:\r\nX-PM-Tag: a\r\n", provider="")
def test_translating_twice_equals_once(strip: Strip, when_absent: str, data: bytes, provider: str) -> None:
    """
    A second proxy on the way changes nothing more.

    Where defaults are written, a value that cannot be read and a second provider are left out: once their fields are
    gone, a second proxy sees an app that says nothing, or another provider.
    """
    rules = ENGINES[strip, when_absent]
    found, once = translated(rules, data, provider)
    if when_absent != "platform":
        assume(all(remark.kind != "invalid_value" for remark in found.remarks))
        assume(strip is not Strip.TRANSLATED or len(found.providers) < 2)
    again, twice = translated(rules, once, provider)
    assert twice == once
    assert again.settings == ()
    assert again.group == found.group


@EVERY_POLICY
@settings(max_examples=60)
@given(data=ANYTHING, provider=PROVIDERS, recipients=st.integers(0, 3))
def test_any_octets_give_a_translation_that_touches_nothing_else(
    strip: Strip, when_absent: str, data: bytes, provider: str, recipients: int
) -> None:
    """
    Whatever comes, there is a result and no exception; other fields keep their bytes and order.

    What is written is printable ASCII, and no line becomes longer than the standard allows.
    """
    for octets in (data, mend_line_ends(data)):
        found, output = translated(ENGINES[strip, when_absent], octets, provider, recipients)
        before, after = HeaderSection.split(octets), HeaderSection.split(output)
        assert after.end == len(output)
        assert output[: after.start] == octets[: before.start]
        kept = [each.raw for each in before if each.name.lower() not in NATIVE and not control(each.name)]
        assert [each.raw for each in after if each.name.lower() not in NATIVE and not control(each.name)] == kept
        if strip is Strip.ALL:
            assert not any(control(each.name) for each in after)
        known = {each.raw for each in before}
        new = [each for each in after if each.raw not in known]
        assert [each.name for each in new] == [setting.target for setting in found.settings]
        assert all(re.fullmatch(rb"[\x20-\x7e]+(\r\n [\x20-\x7e]+)*\r\n", each.raw) for each in new)
        long = {line for line in output.split(b"\r\n") if len(line) > 998}
        assert long <= {line for line in octets.split(b"\r\n") if len(line) > 998}
        assert (found.action in (Action.REFUSE, Action.DISCARD)) == bool(found.reason)
        assert found.reason.isascii() and (found.reason + "x").isprintable()
        assert explain(found).endswith("\n")


@EVERY_POLICY
@settings(max_examples=15)
@given(data=st.lists(sections(), min_size=1, max_size=3), more=field(OTHER_NAMES), provider=PROVIDERS)
@example(data=[b'X-SMTPAPI: {"to": ["r0@example.com"]}\r\n'], more=b"X-Own: o\r\n", provider="")
@example(data=[b'X-Mailgun-Recipient-Variables: {"r0@example.com": {}}\r\n'], more=b"X-Own: o\r\n", provider="")
def test_what_came_before_changes_nothing(
    strip: Strip, when_absent: str, data: list[bytes], more: bytes, provider: str
) -> None:
    """What is kept from message to message is right for each of them: as if each were the first one."""
    table = WHEN_ABSENT[when_absent]
    used = engine(*SHIPPED, strip=strip, when_absent=table, optional=OPTIONAL)
    messages = [each for part in data for each in (part, part, part + more, more + part)]
    for octets in (*messages, *messages):
        for recipients in (1, 3):
            new = engine(*SHIPPED, strip=strip, when_absent=table, optional=OPTIONAL)
            assert translated(used, octets, provider, recipients) == translated(new, octets, provider, recipients)


def by_the_standard_library(section: bytes) -> list[tuple[str, str]]:
    message = BytesParser(policy=compat32).parsebytes(section + b"\r\nbody\r\n", headersonly=True)
    assert message.get_payload() == "body\r\n"
    return list(message.raw_items())


@EVERY_POLICY
@settings(max_examples=40)
@given(data=sections())
def test_output_reads_the_same_to_the_standard_library(strip: Strip, when_absent: str, data: bytes) -> None:
    """Another parser finds the same other fields before and after, and in the new ones what was reported."""
    # A lone CR or LF cannot be in a value; NUL and the like it may, and that parser keeps them.
    found, output = translated(ENGINES[strip, when_absent], data, "")
    before, after = by_the_standard_library(data), by_the_standard_library(output)

    def others(items: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [item for item in items if item[0].lower() not in NATIVE and not control(item[0])]

    assert others(after) == others(before)
    for setting in found.settings:
        values = [value for name, value in after if name == setting.target]
        pieces = decode_header(values[0].replace("\r\n", ""))
        text = "".join(piece if isinstance(piece, str) else piece.decode(charset or "") for piece, charset in pieces)
        assert text.strip() == setting.value or "name_cut" in {remark.kind for remark in found.remarks}
        assert len(values) == 1
