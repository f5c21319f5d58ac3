"""
RFC 2047 encoded words, read leniently and written strictly.

Reading: clients make words longer than 75 characters, put plain text right next to them, and mix encodings in one
field; all of that is decoded. Charset names come from the wire and are looked up in a fixed list, because Python's
codec registry also holds quadratic and non-text codecs. Octets split inside a character between two adjacent words of
one charset are joined before decoding.

Source: RFC 2047, sections 2, 4 and 6.2; RFC 2231, section 5 (a language tag after the charset).
"""

import binascii
import re
from base64 import b64encode

# Question marks inside are against the RFC, yet seen; a few are taken, and a bound keeps the work linear. That repeat
# is not possessive: before Python 3.11.5 a possessive one that finds nothing to repeat does not match.
_WORD = re.compile(
    r"=\?([A-Za-z0-9_.:+-]{1,40})(?:\*[A-Za-z0-9-]{0,40})?\?([QqBb])\?([^?\r\n]*+(?:(?<!=)\?(?!=)[^?\r\n]*+){0,4})\?="
)
_HEX = re.compile(rb"=([0-9A-Fa-f]{2})")

_CHARSETS = {
    "us-ascii": "ascii",
    "ascii": "ascii",
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "utf-16": "utf-16",
    "utf-16be": "utf-16-be",
    "utf-16le": "utf-16-le",
    **{f"iso-8859-{part}": f"iso8859-{part}" for part in (*range(1, 12), 13, 14, 15, 16)},
    "latin1": "iso8859-1",
    **{f"windows-{page}": f"cp{page}" for page in range(1250, 1259)},
    **{f"cp{page}": f"cp{page}" for page in range(1250, 1259)},
    "windows-874": "cp874",
    "koi8-r": "koi8-r",
    "koi8-u": "koi8-u",
    "macintosh": "mac-roman",
    "tis-620": "tis-620",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb18030": "gb18030",
    "big5": "big5",
    "shift_jis": "cp932",
    "windows-31j": "cp932",
    "euc-jp": "euc-jp",
    "iso-2022-jp": "iso2022-jp",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
}

# What text from outside may be decoded with.
CODECS = frozenset(_CHARSETS.values())


def codec(charset: str) -> str | None:
    """Give the codec of a charset's name from the wire, in any case; None for one that is not on the list."""
    return _CHARSETS.get(charset.lower())


def decode(value: bytes) -> str:
    """
    Decode a field's value: UTF-8 (or, failing that, Latin-1) octets, then encoded words.

    Args:
        value: The unfolded value.

    Returns:
        The text. A word in an unknown charset or a broken encoding stays as it was written.
    """
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return _decode_words(text) if "=?" in text else text


def _decode_words(text: str) -> str:
    pieces: list[str] = []
    octets = b""  # of the run of adjacent words with the same charset
    charset = ""
    position = 0
    after_word = False
    for match in _WORD.finditer(text):
        codec = _CHARSETS.get(match[1].lower())
        decoded = _octets(match[2], match[3]) if codec else None
        if codec is None or decoded is None:
            continue
        between = text[position : match.start()]
        adjacent = after_word and not between.strip(" \t\r\n")
        if not (adjacent and codec == charset):
            pieces.append(_text(octets, charset))
            octets = b""
        if not adjacent:
            pieces.append(between)
        octets += decoded
        charset = codec
        position = match.end()
        after_word = True
    pieces.extend((_text(octets, charset), text[position:]))
    return "".join(pieces)


def _octets(encoding: str, encoded: str) -> bytes | None:
    try:
        data = encoded.encode("ascii")
    except UnicodeEncodeError:
        return None
    if encoding in "Qq":
        return _HEX.sub(lambda match: bytes.fromhex(match[1].decode()), data.replace(b"_", b" "))
    try:
        return binascii.a2b_base64(data + b"=" * (-len(data) % 4))
    except binascii.Error:
        return None


def _text(octets: bytes, charset: str) -> str:
    return octets.decode(charset, "replace") if octets else ""


def encode(text: str, first_line_used: int) -> bytes:
    """
    Write *text* as encoded words of at most 75 characters, folded with CRLF and a blank.

    Args:
        text: Any text without control characters.
        first_line_used: Octets that stand before it on its first line (``X-Name: ``).

    Returns:
        The words, without a final CRLF; only printable ASCII, CRLF and blanks.

    Source: RFC 2047, section 2 (75 characters a word, 76 a line) and 5 rule 3 (no character split between words).
    """
    words: list[bytes] = []
    budget = max(16, 75 - first_line_used - len("=?utf-8?b??=")) // 4 * 3
    pending = b""
    for character in text:
        octets = character.encode("utf-8", "replace")
        if pending and len(pending) + len(octets) > budget:
            words.append(b"=?utf-8?b?" + b64encode(pending) + b"?=")
            pending = b""
            budget = 45
        pending += octets
    words.append(b"=?utf-8?b?" + b64encode(pending) + b"?=")
    return b"\r\n ".join(words)
