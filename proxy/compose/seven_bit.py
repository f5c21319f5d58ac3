"""
A message for a host that takes no octets above 127 (no 8BITMIME): its bodies in another transfer encoding.

Text becomes quoted-printable, anything else base64. Multiparts are walked, and so are messages inside the message,
since neither may be encoded as a whole (RFC 2045, 6.4); those that said ``8bit`` say ``7bit`` then. Whatever is ASCII
keeps its bytes, and nothing that is signed or encrypted is touched: a change would break it. Header fields cannot be
converted, here or in a part, because what they hold is in no known charset (RFC 6532 wants SMTPUTF8 for them).

A signature that covers the body ends with this, so our own is made behind it.

Source: RFC 6152, 3 (conversion is the client's to do, or the message fails); RFC 2045, 6; RFC 6532, 3.7.
"""

from proxy.compose import mime, transfer
from proxy.compose.mime import Part, Unfit
from proxy.mail.fields import HeaderSection

_MAX_NESTED = 20
_CLOSED = frozenset(["multipart/signed", "multipart/encrypted"])
_CLOSED_SUBTYPES = frozenset(["pkcs7-mime", "x-pkcs7-mime"])
_EIGHT_BIT = frozenset(["8bit", "binary"])


def converted(content: bytes) -> bytes | None:
    """
    Give a message in seven-bit form.

    Args:
        content: The message, line ends CRLF, not signed by us.

    Returns:
        A message of which each part says the same, ASCII throughout; None where there is no such form.
    """
    try:
        written = _message(content, 0)
    except Unfit:
        return None
    return written if written.isascii() else None  # a header field, or the text around the parts of a multipart


def _message(content: bytes, nested: int) -> bytes:
    if content.isascii():
        return content
    if nested > _MAX_NESTED:
        raise Unfit("too_deep")
    found = mime.parts(content)
    pieces: list[bytes] = []
    done = 0
    for part in found:
        if _is_closed(part) or content[part.start : part.end].isascii():
            continue
        if part.kind.startswith("multipart/") and part.children:
            fields, body = _fields(part, "7bit") if part.encoding in _EIGHT_BIT else None, None
        else:
            fields, body = _leaf(content, part, nested)
        if fields is not None:
            pieces += (content[done : part.start], fields)
            done = part.start + part.section.end
        if body is not None:
            pieces += (content[done : part.body], body)
            done = part.end
    pieces.append(content[done:])
    return b"".join(pieces)


def _is_closed(part: Part) -> bool:
    """Tell whether a part, or anything around it, is signed or encrypted."""
    level: Part | None = part
    while level is not None:
        if level.kind in _CLOSED or level.kind.partition("/")[2] in _CLOSED_SUBTYPES:
            return True
        level = level.parent
    return False


def _leaf(content: bytes, part: Part, nested: int) -> tuple[bytes | None, bytes]:
    """Give the new header section of a part, if it needs one, and its new body."""
    if not part.kind or part.kind.startswith("multipart/") or part.encoding not in transfer.ENCODINGS:
        raise Unfit("malformed")
    body = content[part.body : part.end]
    if part.kind == "message/rfc822":
        if part.encoding not in transfer.IDENTITY:
            raise Unfit("malformed")
        return _fields(part, "7bit") if part.encoding in _EIGHT_BIT else None, _message(body, nested + 1)
    if part.kind.startswith("message/") and part.kind != "message/global":
        raise Unfit("malformed")
    encoding = "quoted-printable" if part.kind.startswith("text/") else "base64"
    try:
        octets = transfer.decode(body, part.encoding)
    except ValueError:
        raise Unfit("malformed") from None
    encoded = transfer.encode(octets, encoding)
    if part.parent is not None:
        encoded = encoded.removesuffix(b"\r\n") if encoding == "base64" else encoded
    return _fields(part, encoding), encoded


def _fields(part: Part, encoding: str) -> bytes:
    """Write the header section of a part with another transfer encoding."""
    section: HeaderSection = part.section
    places = [index for index, key in enumerate(section.keys) if key == b"content-transfer-encoding"]
    added = f"Content-Transfer-Encoding: {encoding}\r\n".encode()
    if part.parent is None and b"mime-version" not in section.keys:
        added = b"MIME-Version: 1.0\r\n" + added  # without it the encoding means nothing (RFC 2045, 4)
    return section.edited(places, added, places[0] if places else None)
