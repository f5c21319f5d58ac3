"""
Where the parts of a message stand, found in one pass.

Offsets only: nothing is decoded and nothing written anew. Boundary lines are looked for by their two dashes, and an
open boundary is found by name, so the work does not grow with the depth.

Source: RFC 2045, 5 (Content-Type); RFC 2046, 5.1 (multipart); RFC 2183 (Content-Disposition).
"""

import re

from attrs import define, field

from proxy.mail.fields import HeaderSection

MAX_DEPTH = 100
MAX_PARTS = 1000
_MAX_HEADER_OCTETS = 65536
_MAX_ALL_HEADER_OCTETS = 1024 * 1024
# Lines that begin with two dashes, boundaries or not. Real messages have a few per part and signature.
_MAX_DASHED_LINES = 20_000

_TYPE = re.compile(r"[ \t]*+([!#$%&'*+\-.^`{|}~\w]++)/([!#$%&'*+\-.^`{|}~\w]++)", re.ASCII)
# Not from within a run of blanks and semicolons: the search would read the run anew from each octet of it.
_PARAMETER = re.compile(
    r"(?<![ \t;])[ \t]*+;[ \t;]*+([!#$%&'*+\-.^`{|}~\w]++)[ \t]*+=[ \t]*+(?:\"((?:[^\"\\]|\\.)*+)\"|([^ \t;\"]++))",
    re.ASCII,
)
_ESCAPE = re.compile(r"\\(.)")
_CLOSED_TYPES = frozenset(["multipart/signed", "multipart/encrypted"])
_CLOSED_SUBTYPES = frozenset(["pkcs7-mime", "x-pkcs7-mime", "pgp-encrypted"])
_CLOSED_TEXTS = (b"-----BEGIN PGP MESSAGE-----", b"-----BEGIN PGP SIGNED MESSAGE-----")


class Unfit(Exception):
    """The message is left alone. The text is one of the reasons in ``steps.REASONS``."""


@define
class Part:
    """
    The message itself or a part of it.

    Attributes:
        start: Where its header section begins.
        body: Where its body begins, behind the blank line.
        end: Where its body ends; the line end before a boundary line belongs to that line.
        section: Its header fields.
        kind: Media type and subtype in lower case. Where none is given, ``text/plain``; in a digest ``message/rfc822``
            (RFC 2046, 5.1.5).
        parameters: Of its Content-Type, names in lower case.
        delimiter: Where the boundary line before it begins, line end not included; -1 for the message.
    """

    start: int
    body: int
    section: HeaderSection
    kind: str
    parameters: dict[str, str]
    parent: "Part | None" = None
    delimiter: int = -1
    end: int = -1
    children: "list[Part]" = field(factory=list)

    def field(self, name: bytes) -> str:
        """The value of the first field of a name (in lower case), or nothing."""
        try:
            return self.section.value(self.section.keys.index(name)).decode("ascii", "replace")
        except ValueError:
            return ""

    @property
    def encoding(self) -> str:
        """The transfer encoding in lower case."""
        return self.field(b"content-transfer-encoding").strip().lower() or "7bit"

    @property
    def root(self) -> "Part":
        """Of a multipart/related, the part that the others belong to (RFC 2387, 3.2). It has parts."""
        start = self.parameters.get("start", "").strip()
        named = [child for child in self.children if start and child.field(b"content-id") == start]
        return named[0] if named else self.children[0]

    @property
    def is_attachment(self) -> bool:
        """Whether readers show it as a file, and not as the text of the message."""
        disposition = self.field(b"content-disposition").lower()
        return (
            disposition.startswith("attachment")
            or "filename" in disposition
            or bool({"name", "name*", "name*0", "name*0*"}.intersection(self.parameters))
        )


def parts(content: bytes) -> list[Part]:
    """
    Find all parts.

    Args:
        content: The message, line ends CRLF.

    Returns:
        The message and its parts in order. Messages inside the message are not looked into.

    Raises:
        Unfit: ``too_deep``, ``too_large``, or ``malformed`` (a boundary that is open already).
    """
    walk = _Walk(content)
    position = max(walk.found[0].body - 2, 0)
    lines = 0
    while walk.stack and (position := content.find(b"\r\n--", position)) >= 0:
        lines += 1
        if lines > _MAX_DASHED_LINES:
            raise Unfit("too_large")
        position = walk.dashed_line(position)
    walk.close(0, len(content))
    return walk.found


class _Walk:
    """The parts found so far, and the multiparts that are open, outermost first."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.found: list[Part] = []
        self.stack: list[tuple[bytes, Part]] = []
        self.levels: dict[bytes, int] = {}
        self.header_octets = 0
        self.begin(_part(content, 0, None, -1))
        self.found[0].end = len(content)

    def begin(self, part: Part) -> None:
        """Take in a part; if it has parts of its own, look for them from now on."""
        self.found.append(part)
        boundary = part.parameters.get("boundary", "").rstrip(" ").encode("ascii", "replace")
        if not part.kind.startswith("multipart/") or not boundary:
            return
        if len(self.stack) >= MAX_DEPTH:
            raise Unfit("too_deep")
        if boundary in self.levels:
            raise Unfit("malformed")
        self.levels[boundary] = len(self.stack)
        self.stack.append((boundary, part))

    def dashed_line(self, position: int) -> int:
        """Look at a line that begins with two dashes, at its line end before; give where to look next."""
        content = self.content
        start = position + 2
        end = content.find(b"\r\n", start)
        end = len(content) if end < 0 else end
        name = content[start + 2 : min(end, start + 200)].rstrip(b" \t")
        level = self.levels.get(name)
        if level is None:
            level = self.levels.get(name[:-2]) if name.endswith(b"--") else None
            if level is not None:
                self.close(level + 1, position)
                self.end_last(self.stack[level][1], position)
                self.close(level, end)
            return end
        self.close(level + 1, position)
        multipart = self.stack[level][1]
        self.end_last(multipart, position)
        part = _part(content, min(end + 2, len(content)), multipart, start)
        self.header_octets += part.body - part.start
        if len(self.found) > MAX_PARTS or self.header_octets > _MAX_ALL_HEADER_OCTETS:
            raise Unfit("too_large")
        multipart.children.append(part)
        self.begin(part)
        return max(part.body - 2, end)

    def end_last(self, multipart: Part, position: int) -> None:
        """End the last part of a multipart, if nothing did."""
        if multipart.children and multipart.children[-1].end < 0:
            last = multipart.children[-1]
            last.end = max(position, last.body)

    def close(self, level: int, end: int) -> None:
        """Take the multiparts from *level* on as ended: what nothing else ended ends there."""
        while len(self.stack) > level:
            boundary, part = self.stack.pop()
            del self.levels[boundary]
            self.end_last(part, end)
            part.end = max(end, part.body)


def _part(content: bytes, start: int, parent: Part | None, delimiter: int) -> Part:
    """Read the header section at *start*. A damaged one makes a part of no kind, which nothing touches."""
    if content.startswith(b"\r\n", start):
        head = b"\r\n"
    else:
        blank_line = content.find(b"\r\n\r\n", start)
        head = content[start : len(content) if blank_line < 0 else blank_line + 4]
    is_too_long = parent is not None and len(head) > _MAX_HEADER_OCTETS
    section = HeaderSection.split(b"" if is_too_long else head)
    default = "message/rfc822" if parent is not None and parent.kind == "multipart/digest" else "text/plain"
    part = Part(start, start + len(head), section, default, {}, parent, delimiter)
    if is_too_long or len(head) - section.end > 2:
        part.kind = ""
        return part
    value = part.field(b"content-type")
    if value:
        kind = _TYPE.match(value)
        part.kind = f"{kind[1]}/{kind[2]}".lower() if kind is not None else ""
        for name, quoted, plain in _PARAMETER.findall(value, kind.end()) if kind is not None else ():
            part.parameters.setdefault(name.lower(), plain or _ESCAPE.sub(r"\1", quoted))
    return part


def is_closed(content: bytes, found: list[Part]) -> bool:
    """Tell whether anything in the message is signed or encrypted, so that a change would break or betray it."""
    for part in found:
        if part.kind in _CLOSED_TYPES or part.kind.partition("/")[2] in _CLOSED_SUBTYPES:
            return True
    return any(b"\n" + text in content for text in _CLOSED_TEXTS)


def is_closed_html(html: bytes) -> bool:
    """Tell the same of HTML, its transfer encoding undone; there the lines of PGP may stand behind a tag."""
    return any(text in html for text in _CLOSED_TEXTS)


def html_part(found: list[Part]) -> Part | None:
    """
    Give the part that is the message's HTML: the first that readers do not show as a file.

    Of alternatives the last counts, as for readers (RFC 2046, 5.1.4).
    """
    return _html_in(found[0])


def _html_in(part: Part) -> Part | None:
    if part.kind == "text/html" and not part.is_attachment:
        return part
    children = reversed(part.children) if part.kind == "multipart/alternative" else part.children
    return next((html for html in map(_html_in, children) if html is not None), None)


def has_plain_text(found: list[Part]) -> bool:
    """Tell whether the message has a text of its own beside the HTML."""
    return any(part.kind == "text/plain" and not part.children and not part.is_attachment for part in found)
