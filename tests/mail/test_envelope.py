"""Paths of MAIL and RCPT: what is an address, taken exactly as written, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.mail.envelope import MAX_PATH_OCTETS, parse_path


@pytest.mark.parametrize(
    ("text", "address", "parameters"),
    [
        ("<a@example.com>", "a@example.com", ""),
        (" \t<a@example.com>", "a@example.com", ""),
        ("<a@example.com> SIZE=1 BODY=8BITMIME", "a@example.com", "SIZE=1 BODY=8BITMIME"),
        ("<a@example.com> \tSMTPUTF8 ", "a@example.com", "SMTPUTF8 "),
        ("<a@example.com> ", "a@example.com", ""),
        ("<>", "", ""),
        ("<> SIZE=1", "", "SIZE=1"),
        ("<Postmaster>", "Postmaster", ""),
        ("<a+b=c/d@EXAMPLE.com>", "a+b=c/d@EXAMPLE.com", ""),
        ("<a..b.@example.com>", "a..b.@example.com", ""),
        ("<a@under_score.example>", "a@under_score.example", ""),
        ("<a@[192.0.2.1]>", "a@[192.0.2.1]", ""),
        ("<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]", ""),
        ("<@one.example,@two.example:a@example.com>", "a@example.com", ""),
        ("<@one.example:a@example.com> SIZE=1", "a@example.com", "SIZE=1"),
        ('<"a b"@example.com>', '"a b"@example.com', ""),
        ('<"a>b@c"@example.com> SIZE=1', '"a>b@c"@example.com', "SIZE=1"),
        (r'<"a\"b\\"@example.com>', r'"a\"b\\"@example.com', ""),
        ('<""@example.com>', '""@example.com', ""),
        ('<"postmaster">', '"postmaster"', ""),
        ("<=?utf-8?q?x=40evil.example?=@example.com>", "=?utf-8?q?x=40evil.example?=@example.com", ""),
        ("<x%40evil.example@example.com>", "x%40evil.example@example.com", ""),
        ("<j\u00f6rg@example.com>", "j\u00f6rg@example.com", ""),
        ("<a@b\u00fccher.example> SMTPUTF8", "a@b\u00fccher.example", "SMTPUTF8"),
        ('<"\u00e9 \u00e8"@example.com>', '"\u00e9 \u00e8"@example.com', ""),
    ],
)
def test_path_in_brackets_is_taken_exactly_as_written(text: str, address: str, parameters: str) -> None:
    """Nothing in an address is decoded, re-quoted or changed in case; only a source route is left out."""
    assert parse_path(text) == (address, parameters)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a@example.com",
        "<a@example.com",
        "a@example.com>",
        "<a@example.com>SIZE=1",
        "<<a@example.com>>",
        "Jane <a@example.com>",
        "<a@b@example.com>",
        "<@example.com>",
        "<a@>",
        "<a b@example.com>",
        "< a@example.com>",
        "<a@example.com >",
        "<a@exam ple.com>",
        "<a@example.com>, <b@example.com>",
        "<a(comment)@example.com>",
        "<a,b@example.com>",
        "<a:b@example.com>",
        "<a;b@example.com>",
        r"<a\@b@example.com>",
        '<"a@example.com>',
        '<"a"b@example.com>',
        '<"a"b"@example.com>',
        '<"a\\"@example.com>',
        "<a@[192.0.2.1>",
        "<a@[192.0.2.1]x>",
        "<a@[]>",
        "<a@[192.0.2.1 ]>",
        "<@one.example a@example.com>",
        "<@one.example:>",
        "\n<a@example.com>",
    ],
)
def test_path_that_is_none_is_refused(text: str) -> None:
    """An address without brackets, with two domains, loose quotes or blanks is not guessed at."""
    assert parse_path(text) is None


PLACES = ["<a{}b@example.com>", "<a@exa{}mple.com>", '<"a{}b"@example.com>', '<"a\\{}b"@example.com>', "<{}>"]


@pytest.mark.parametrize("control", [*map(chr, range(0x20)), "\x7f"], ids=lambda control: f"U+{ord(control):04X}")
@pytest.mark.parametrize("place", PLACES)
def test_path_with_a_control_character_is_refused(place: str, control: str) -> None:
    """No CR, NUL or other control character passes, in quotes or out: one has sent mail to another domain."""
    assert parse_path(place.format(control)) is None
    assert parse_path(place.format(f"\u00e9{control}")) is None


def test_path_with_a_control_character_beyond_ascii_is_refused() -> None:
    """The controls U+0080 to U+009F, which terminals obey, are no part of an address either."""
    paths = [place.format(chr(control)) for place in PLACES for control in range(0x80, 0xA0)]
    assert [path for path in paths if parse_path(path) is not None] == []


@pytest.mark.parametrize("character", ["a", "\u00e9", "\U0001f600"])
def test_path_over_the_limit_of_octets_is_refused(character: str) -> None:
    """The bound counts the octets that go on, not characters."""
    room = MAX_PATH_OCTETS - len("@example.com")
    width = len(character.encode())
    local = character * (room // width) + "x" * (room % width)
    assert parse_path(f"<{local}@example.com>") == (f"{local}@example.com", "")
    assert parse_path(f"<x{local}@example.com>") is None


TEXT = st.text(st.sampled_from('<>@"\\ \t\r\n\0[]:,.ab\u00e9=?'), max_size=14)


@given(st.one_of(TEXT, TEXT.map(lambda text: f"<{text}>"), TEXT.map(lambda text: f'<"{text}"@example.com>')))
def test_path_of_any_text_is_an_address_that_reads_back_or_none(text: str) -> None:
    """An accepted address stands in the text as it is and reads back as itself: every hop sees the same one."""
    found = parse_path(text)
    if found is not None:
        assert f"{found[0]}>" in text
        assert parse_path(f"<{found[0]}>") == (found[0], "")
