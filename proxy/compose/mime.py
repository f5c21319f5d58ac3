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
# Lines that begin with two dashes, boundaries or not. Real messages have a few per part and signature.
_MAX_DASHED_LINES = 20_000

_TYPE = re.compile(r"[ \t]*+([!#$%&'*+\-.^`{|}~\w]++)/([!#$%&'*+\-.^`{|}~\w]++)", re.ASCII)
_PARAMETER = re.compile(
    r"[ \t]*+;[ \t;]*+([!#$%&'*+\-.^`{|}~\w]++)[ \t]*+=[ \t]*+(?:\"((?:[^\"\\]|\\.)*+)\"|([^ \t;\"]++))", re.ASCII
)
_ESCAPE = re.compile(r"\\(.)")
_CLOSED_TYPES = frozenset(["multipart/signed", "multipart/encrypted"])
_CLOSED_SUBTYPES = frozenset(["pkcs7-mime", "x-pkcs7-mime", "pgp-encrypted"])
_CLOSED_TEXT = re.compile(rb"^-----BEGIN PGP (?:SIGNED )?MESSAGE-----", re.MULTILINE)
_CLOSED_HTML = re.compile(rb"-----BEGIN PGP (?:SIGNED )?MESSAGE-----")


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
        kind: Media type and subtype in lower case, ``text/plain`` where none is given.
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
    root = _part(content, 0, len(content), None, -1)
    found = [root]
    stack: list[tuple[bytes, Part]] = []
    open_at: dict[bytes, int] = {}
    _open(root, stack, open_at)
    position = max(root.body - 2, 0)
    for _ in range(_MAX_DASHED_LINES if stack else 0):
        position = content.find(b"\r\n--", position)
        if position < 0:
            break
        line_start = position + 2
        line_end = content.find(b"\r\n", line_start)
        line_end = len(content) if line_end < 0 else line_end
        name = content[line_start + 2 : min(line_end, line_start + 200)].rstrip(b" \t")
        level = open_at.get(name)
        closes = level is None and name.endswith(b"--")
        if closes:
            level = open_at.get(name[:-2])
        if level is None:
            position = line_end
            continue
        _close(stack, open_at, level + 1, position)
        multipart = stack[level][1]
        if multipart.children and multipart.children[-1].end < 0:
            multipart.children[-1].end = max(position, multipart.children[-1].body)
        if closes:
            _close(stack, open_at, level, line_end)
            if not stack:
                break
            position = line_end
            continue
        if len(found) > MAX_PARTS:
            raise Unfit("too_large")
        part = _part(content, min(line_end + 2, len(content)), len(content), multipart, line_start)
        multipart.children.append(part)
        found.append(part)
        _open(part, stack, open_at)
        position = max(part.body - 2, line_end)
    else:
        if stack:
            raise Unfit("too_large")
    _close(stack, open_at, 0, len(content))
    for part in found:
        if part.end < 0:
            part.end = len(content)
    return found


def _close(stack: list[tuple[bytes, Part]], open_at: dict[bytes, int], level: int, end: int) -> None:
    """Take multiparts at *level* and above from the stack; they and their last parts end where nothing else said."""
    while len(stack) > level:
        boundary, part = stack.pop()
        del open_at[boundary]
        if part.children and part.children[-1].end < 0:
            part.children[-1].end = max(end, part.children[-1].body)
        part.end = max(end, part.body)


def _open(part: Part, stack: list[tuple[bytes, Part]], open_at: dict[bytes, int]) -> None:
    boundary = part.parameters.get("boundary", "").rstrip(" ").encode("ascii", "replace")
    if not part.kind.startswith("multipart/") or not boundary:
        return
    if len(stack) >= MAX_DEPTH:
        raise Unfit("too_deep")
    if boundary in open_at:
        raise Unfit("malformed")
    open_at[boundary] = len(stack)
    stack.append((boundary, part))


def _part(content: bytes, start: int, end: int, parent: Part | None, delimiter: int) -> Part:
    """Read the header section at *start*. A damaged one makes a part of no kind, which nothing touches."""
    if content.startswith(b"\r\n", start):
        head = b"\r\n"
    else:
        blank_line = content.find(b"\r\n\r\n", start, end)
        head = content[start : end if blank_line < 0 else blank_line + 4]
    section = HeaderSection.split(head)
    part = Part(start, start + len(head), section, "text/plain", {}, parent, delimiter)
    if len(head) - section.end > 2 or (parent is not None and len(head) > _MAX_HEADER_OCTETS):
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
    return b"-----BEGIN PGP " in content and _CLOSED_TEXT.search(content) is not None


def is_closed_html(html: bytes) -> bool:
    """Tell the same of HTML, its transfer encoding undone; there the lines of PGP may stand behind a tag."""
    return _CLOSED_HTML.search(html) is not None


def html_part(found: list[Part]) -> Part | None:
    """Give the part that is the message's HTML: the first that readers do not show as a file."""
    return next((part for part in found if part.kind == "text/html" and not part.is_attachment), None)


def has_plain_text(found: list[Part]) -> bool:
    """Tell whether the message has a text of its own beside the HTML."""
    return any(part.kind == "text/plain" and not part.children and not part.is_attachment for part in found)
