"""
Which links are tracked, and where the beacon goes.

A link is tracked when a click on it asks a web server for a page and nothing says that it must not be touched: other
schemes, anchors, addresses with template leftovers in them and links with a provider's opt-out stay as they are.

Source: providers.md (opt-outs: Mailgun ``disable-tracking``, Mandrill ``mc:disable-tracking``, Postmark
``data-pm-no-track``, SendGrid ``clicktracking``, Amazon SES ``ses:no-track``, SparkPost ``data-msys-clicktrack``).
"""

import re
from collections.abc import Iterator

from proxy.compose.edits import Edit
from proxy.compose.markup import Tag, attribute_text

_LINKS = frozenset([b"a", b"area"])
_VML = b"v:"
_MAX_URL_OCTETS = 8192
_URL = re.compile(r"https?://[^/?#\s]", re.IGNORECASE)
# {{name}}, {% tag %}, ${name}, %name%, *|NAME|*, [[name]], <%= name %>; also a blank, which no address has.
_LEFTOVER = re.compile(r"[{}<>\x00-\x20\x7f]|%(?![0-9A-Fa-f]{2})|\*\||\|\*|\[\[|\]\]")
_OFF = frozenset(["off", "false", "0", "no"])
_NOT_ON = frozenset(["", "true", "1", "yes", "on", "disable-tracking", "data-disable-tracking", "mc:disable-tracking"])
_BEACON = (
    b'<img src="',
    b'" alt="" width="1" height="1" border="0" style="display:block;width:1px;height:1px;border:0;margin:0;padding:0">',
)


def links(found: list[Tag], codec: str) -> Iterator[Edit]:
    """
    Choose the links to track.

    Args:
        found: The tags of the HTML, in order.
        codec: How the HTML is read.

    Returns:
        An edit for each, with a slot in place of the address.
    """
    for tag in found:
        if tag.closing or not (tag.name in _LINKS or tag.name.startswith(_VML)):
            continue
        edit = _link(tag, codec)
        if edit is not None:
            yield edit


def _link(tag: Tag, codec: str) -> Edit | None:
    href = None
    for attribute in tag.attributes():
        name = attribute.name
        if name == b"href":
            href = href or attribute
        elif _opts_out(name, attribute.raw):
            return None
    if href is None or not href.has_value or len(href.raw) > _MAX_URL_OCTETS:
        return None
    target = link_target(href.raw, codec)
    if target is None:
        return None
    inserted, slot_at = (b"", 0) if href.quote else (b'""', 1)
    return Edit(href.value_start, href.raw, inserted, "track_clicks", slot_at, "click", target)


def _opts_out(name: bytes, raw: bytes) -> bool:
    """Tell whether an attribute is one of the providers' ways to leave a link alone."""
    value = raw.strip().lower().decode("ascii", "replace")
    match name:
        case b"disable-tracking" | b"data-disable-tracking" | b"mc:disable-tracking" | b"data-mc-disable-tracking":
            return value in _NOT_ON
        case b"data-pm-no-track" | b"ses:no-track" | b"data-ses-no-track":
            return value not in _OFF
        case b"clicktracking" | b"data-clicktracking" | b"data-msys-clicktrack":
            return value in _OFF
    return False


def link_target(raw: bytes, codec: str) -> str | None:
    """
    Read an address.

    Args:
        raw: The value of ``href`` as it stands in the HTML.
        codec: That of the HTML. Browsers send what is not ASCII in one of two charsets by its place in the address,
            so in others than UTF-8 such an address is left alone.

    Returns:
        The URL with entities decoded; None if it is not one to track.
    """
    try:
        url = attribute_text(raw.decode("utf-8" if codec == "utf-8" else "ascii")).strip("\t\n\f\r ")
    except UnicodeDecodeError:
        return None
    # Browsers drop line ends inside an address (WHATWG URL, 4.4).
    url = url.replace("\n", "").replace("\r", "").replace("\t", "")
    if _URL.match(url) is None or _LEFTOVER.search(url) is not None:
        return None
    return url


def beacon(html: bytes, found: list[Tag]) -> Edit:
    """
    Place the beacon: before the last end of the body, or at the end of the text, before blanks and line ends.

    Args:
        html: The HTML.
        found: Its tags, in order.
    """
    for tag in reversed(found):
        if tag.name == b"body" and tag.closing and not tag.conditional:
            position = tag.start
            break
    else:
        position = len(html.rstrip())
    return Edit(position, b"", _BEACON[0] + _BEACON[1], "track_opens", len(_BEACON[0]), "open")
