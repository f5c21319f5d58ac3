"""
Octets of a body part on the wire and in the clear: transfer encodings and charsets.

Source: RFC 2045, 6 (transfer encodings); RFC 2046, 4.1.2 (charset).
"""

import binascii
import re

from proxy.mail import encoded_words

IDENTITY = frozenset(["7bit", "8bit", "binary"])
ENCODINGS = IDENTITY | {"quoted-printable", "base64"}
MAX_LINE = 998

_LINE_OCTETS = 57  # of base64: 76 characters
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
# ISO-2022-JP writes two ASCII octets for one character between these escape sequences.
_ESCAPED = re.compile(rb"\x1b\$[@B][^\x1b]*+(?:\x1b\([BJ]|\x1b\Z|\Z)?")
_NOT_ASCII_BASED = frozenset(["utf-16", "utf-16-be", "utf-16-le"])
_UTF16_MARKS = (b"\xfe\xff", b"\xff\xfe")
_META = re.compile(
    rb"<meta[\t\n\f\r /][^>]{0,200}?charset[\t\n\f\r ]*+=[\t\n\f\r ]*+[\"']?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE
)
_META_OCTETS = 1024


def decode(encoded: bytes, encoding: str) -> bytes:
    """
    Undo a transfer encoding.

    Args:
        encoded: The body as it stands in the message.
        encoding: One of :data:`ENCODINGS`.

    Returns:
        The octets it stands for.

    Raises:
        ValueError: Base64 that is not, or more of it behind its padding: the codec stops there, as some readers do, so
            the rest would be lost in what is encoded anew.
    """
    if encoding == "base64":
        padding = encoded.find(b"=")
        if padding >= 0 and encoded[padding:].strip(b"= \t\r\n"):
            raise ValueError("base64 goes on behind its padding")
        return binascii.a2b_base64(encoded)
    if encoding == "quoted-printable":
        return binascii.a2b_qp(encoded)
    return encoded


def encode(octets: bytes, encoding: str) -> bytes:
    """
    Apply a transfer encoding; :func:`decode` gives exactly *octets* again.

    Args:
        octets: Anything. CRLF is a line end; in quoted-printable a bare CR or LF is written as an octet.
        encoding: One of :data:`ENCODINGS`.
    """
    if encoding == "base64":
        flat = binascii.b2a_base64(octets, newline=False)
        step = _LINE_OCTETS // 3 * 4
        return b"".join([flat[at : at + step] + b"\r\n" for at in range(0, len(flat), step)])
    if encoding == "quoted-printable":
        if _BARE.search(octets) is None:
            # The codec takes its line ends from the first one it meets; LF for all is what it does best.
            return binascii.b2a_qp(octets.replace(b"\r\n", b"\n"), istext=True).replace(b"\n", b"\r\n")
        lines = octets.split(b"\r\n")
        return b"\r\n".join([binascii.b2a_qp(line, istext=False).replace(b"\n", b"\r\n") for line in lines])
    return octets


def codec(charset: str | None, octets: bytes) -> str | None:
    """
    Choose how to read text.

    Args:
        charset: From the Content-Type field; None where it names none. Then HTML may name one itself (WHATWG HTML,
            13.2.3.2), and readers go by that.
        octets: The text.

    Returns:
        A codec on the list of those that may be used; None for a charset that is unknown, or in which the octets of
        ``<`` may be anything (UTF-16, also where only a byte order mark says so).
    """
    if octets.startswith(_UTF16_MARKS):
        return None
    if charset is None and (meta := _META.search(octets, 0, _META_OCTETS)) is not None:
        named = meta[1].decode("ascii")
        # Browsers pass over names they do not know, and over UTF-16: it was read as ASCII just now.
        charset = named if encoded_words.codec(named) not in {None, *_NOT_ASCII_BASED} else None
    if charset is None or charset.lower() in ("us-ascii", "ascii", "utf-8", "utf8"):
        # Octets that should not be there: what is no UTF-8 is read as browsers read it.
        try:
            octets.decode("utf-8")
        except UnicodeDecodeError:
            if charset is None or "ascii" in charset.lower():
                return "cp1252"
        return "utf-8"
    name = encoded_words.codec(charset)
    return None if name in _NOT_ASCII_BASED else name


def ascii_view(octets: bytes, codec_name: str) -> bytes:
    """
    Give text of the same length in which every ASCII octet is a character of its own, so that markup can be looked for.

    Args:
        octets: Text.
        codec_name: From :func:`codec`.
    """
    if codec_name != "iso2022-jp":
        return octets  # second octets of the others are never markup: all of it lies below 0x40, digits aside
    return _ESCAPED.sub(lambda match: b"\x80" * len(match[0]), octets)


def longest_line(octets: bytes) -> int:
    """Give the length of the longest line, without its line end, in octets."""
    return max(map(len, octets.split(b"\r\n")))
