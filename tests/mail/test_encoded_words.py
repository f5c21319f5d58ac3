"""RFC 2047 encoded words: read as clients write them, written as the RFC wants them."""

import re
from base64 import b64encode
from email.header import decode_header

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.mail.encoded_words import decode, encode


def by_the_old_helper(value: str) -> str:
    """What the standard library's old decoder makes of *value* (ASCII, one line)."""
    pieces = decode_header(value)
    return "".join(
        piece if isinstance(piece, str) else piece.decode(charset or "latin-1", "replace") for piece, charset in pieces
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"", ""),
        (b"plain, with = and ? and =?", "plain, with = and ? and =?"),
        (b"=?utf-8?q?caf=C3=A9?=", "caf\u00e9"),
        (b"=?UTF-8?B?Y2Fmw6k=?=", "caf\u00e9"),
        (b"=?utf-8?Q?a_b=5Fc=3Dd=3F?=", "a b_c=d?"),
        (b"=?utf-8?q?caf=c3=a9?=", "caf\u00e9"),
        (b"=?iso-8859-1?q?caf=E9?=", "caf\u00e9"),
        (b"=?windows-1252?q?=80?=", "\u20ac"),
        (b"=?koi8-r?b?8NLJ18XU?=", "\u041f\u0440\u0438\u0432\u0435\u0442"),
        (b"=?gb2312?b?xOO6ww==?=", "\u4f60\u597d"),
        (b"=?shift_jis?b?k/qWew==?=", "\u65e5\u672c"),
        (b"=?iso-2022-jp?b?GyRCRnxLXBsoQg==?=", "\u65e5\u672c"),
        (b"=?ks_c_5601-1987?b?x9GxuQ==?=", "\ud55c\uad6d"),
        (b"=?utf-8*en-GB?q?colour?=", "colour"),
        # Neighbours: blanks between two words vanish, between word and text they stay.
        (b"=?utf-8?q?a?= =?utf-8?q?b?=", "ab"),
        (b"=?utf-8?q?a?=\t  =?utf-8?b?Yg==?=", "ab"),
        (b"=?utf-8?q?a?==?utf-8?q?b?=", "ab"),
        (b"=?utf-8?q?a?= =?iso-8859-1?q?=E9?=", "a\u00e9"),
        (b"=?utf-8?q?a?= , =?utf-8?q?b?=", "a , b"),
        (b"one =?utf-8?q?two?= three", "one two three"),
        (b'{"a":=?utf-8?q?1=2C=22b=22=3A?=2}', '{"a":1,"b":2}'),
        # A character whose octets are parted between two words of one charset.
        (b"=?utf-8?q?caf=C3?= =?utf-8?q?=A9?=", "caf\u00e9"),
        (b"=?utf-8?b?Y2Fmww==?= =?UTF8?q?=A9?=", "caf\u00e9"),
        (b"=?utf-8?b?8J8=?= =?utf-8?b?mIA=?=", "\U0001f600"),
        # Octets outside ASCII that nobody encoded: UTF-8, and if it is none, Latin-1.
        ("caf\u00e9".encode(), "caf\u00e9"),
        (b"caf\xe9", "caf\u00e9"),
        ("caf\u00e9 ".encode() + b"=?iso-8859-1?q?=E9?=", "caf\u00e9 \u00e9"),
        (b"\xff =?utf-8?q?a?=", "\u00ff a"),
        # Odd, and lawful or harmless.
        (b"=?utf-8?q??=", ""),
        (b"=?utf-8?q?what?now?=", "what?now"),
        (b"=?utf-8?q?a b?=", "a b"),
        (b"=?utf-8?q?100=?=", "100="),
        (b"=?utf-8?q?=G1?=", "=G1"),
        (b"=?utf-8?b?YQ?=", "a"),
        (b"=?us-ascii?q?caf=E9?=", "caf\ufffd"),
        (b"=?utf-8?q?=FF?=", "\ufffd"),
        (b"=?utf-8?q?=00=0D=0A?=", "\x00\r\n"),
        (b"=?utf-8?b?" + b64encode(b"long " * 60) + b"?=", "long " * 60),
        (b"=?utf-8?q?" + b"x" * 5000 + b"?=", "x" * 5000),
    ],
)
def test_decode_of_what_clients_write_gives_the_text(value: bytes, text: str) -> None:
    """Words are decoded however long they are, whatever they touch, and however their octets are parted."""
    assert decode(value) == text


NEVER = (
    *("idna", "punycode", "zlib", "bz2", "hex", "rot13", "uu", "undefined", "unicode_escape", "raw_unicode_escape"),
    *("utf-7", "utf_8", "unknown-8bit", "x-none", "mbcs", "base64", "." * 40),
)


@pytest.mark.parametrize("charset", NEVER)
@pytest.mark.parametrize("encoded", ["q?a=2B", "b?YQ=="])
def test_decode_leaves_a_word_of_an_unknown_charset_as_written(charset: str, encoded: str) -> None:
    """Names from the wire never reach Python's codec registry, where quadratic and non-text codecs wait."""
    word = f"=?{charset}?{encoded}?="
    assert decode(f"a {word} b".encode()) == f"a {word} b"
    assert decode(f"=?utf-8?q?a?= {word} =?utf-8?q?b?=".encode()) == f"a {word} b"


@pytest.mark.parametrize(
    "word",
    [
        "=?utf-8?b?Y?=",
        "=?utf-8?b?Y2Fm?w6k?=",
        "=?utf-8?x?a?=",
        "=?utf-8?q?a",
        "=?utf-8?q?a=",
        "=?utf-8??a?=",
        "=??q?a?=",
        "=?utf 8?q?a?=",
        "=?" + "a" * 41 + "?q?a?=",
        "=?utf-8?q?caf\u00e9?=",
        "=?utf-8?b?caf\u00e9?=",
    ],
)
def test_decode_leaves_a_broken_word_as_written(word: str) -> None:
    """What is no encoded word is text; nothing is repaired by guessing."""
    assert decode(word.encode()) == word


@pytest.mark.parametrize("piece", [b"=?a?q?x", b"=?a?q?x?y ", b"=?utf-8?b?YQ", b"=?utf-8", b"=?", b"?="])
def test_decode_of_many_unfinished_words_ends(piece: bytes) -> None:
    """The work grows with the length of the value, not with its square: a sender cannot stall the process."""
    value = piece * (2_000_000 // len(piece))
    assert decode(value) == value.decode()


CHARSETS = ["utf-8", "iso-8859-1", "iso-8859-15", "windows-1252", "koi8-r", "euc-jp", "big5", "us-ascii"]


@st.composite
def _word(draw: st.DrawFn) -> str:
    octets = draw(st.binary(min_size=1, max_size=8))
    if draw(st.booleans()):
        encoded = "b?" + b64encode(octets).decode()
    else:
        encoded = "Q?" + "".join(chr(each) if chr(each).isalnum() and each < 128 else f"={each:02X}" for each in octets)
    return f"=?{draw(st.sampled_from(CHARSETS))}?{encoded}?="


_PLAIN = st.text("abc ,.:;=_{}\"'\t", min_size=1, max_size=6).filter(lambda text: not text.startswith("="))


@given(st.lists(st.one_of(_word(), _PLAIN, st.just(" ")), max_size=6).map("".join))
@example("=?utf-8?q?a?= \t =?utf-8?b?Yg==?= c =?koi8-r?q?=C1?==?KOI8-R?q?=C2?=")
def test_decode_agrees_with_the_old_helper_where_that_is_right(value: str) -> None:
    """On proper words of all kinds, next to each other and to plain text, both decoders give the same."""
    assert decode(value.encode()).strip() == by_the_old_helper(value.strip()).strip()


@given(st.binary(max_size=60))
def test_decode_of_any_octets_gives_text(value: bytes) -> None:
    """No octets make the decoder raise."""
    assert isinstance(decode(value), str)
    assert isinstance(decode(b"=?utf-8?q?" + value + b"?= =?iso-2022-jp?b?" + value + b"?="), str)


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=120)


@given(NAMES, st.integers(0, 60))
@example("\U0001f600" * 60, 19)
@example("=?utf-8?q?a?=", 19)
def test_encode_gives_lawful_words_that_decode_back(text: str, used: int) -> None:
    """Words have at most 75 characters, lines 76, no character is parted, and every decoder reads the same text."""
    written = encode(text, used)
    lines = written.split(b"\r\n")
    words = [line.removeprefix(b" ") for line in lines]
    assert all(re.fullmatch(rb"=\?utf-8\?b\?[A-Za-z0-9+/=]+\?=", word) and len(word) <= 75 for word in words)
    assert all(line.startswith(b" ") and len(line) <= 76 for line in lines[1:])
    assert used > 47 or used + len(lines[0]) <= 76
    unfolded = written.replace(b"\r\n", b"")
    assert decode(unfolded) == by_the_old_helper(unfolded.decode()) == text
    assert "".join(decode(word) for word in words) == text


def test_encode_of_a_lone_surrogate_writes_a_question_mark() -> None:
    """Text that has no UTF-8 form is written all the same."""
    assert decode(encode("a\ud800b", 0)) == "a?b"
