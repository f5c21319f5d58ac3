"""
The content steps, in order.

1. ``text_part``: HTML without a plain text gets one, made from the HTML as it came.
2. ``inline_css``: style sheets are copied into style attributes.
3. ``track_clicks``: links become slots for a recipient's own URLs.
4. ``track_opens``: so does a beacon.

:func:`plan` finds the parts of the message, :func:`html_work` does what is linear only in theory (in a process that may
be killed, see ``pool.py``), :func:`finish` puts the message together again. What is not named in an edit keeps its
bytes; a message that gives nothing to do, or that is signed or encrypted, leaves exactly as it came.

Source: RFC 2046, 5.1.4 (multipart/alternative); RFC 2387 (multipart/related); RFC 2045, 6.4 (what a composite may be).
"""

import hashlib
from collections.abc import Callable
from html import escape

from attrs import frozen

from proxy.compose import edits as editing
from proxy.compose import mime, transfer
from proxy.compose.edits import Edit, Slot
from proxy.compose.mime import Part, Unfit
from proxy.compose.work import MAX_HTML_OCTETS, STEPS, HtmlResult, HtmlWork
from proxy.mail.fields import HeaderSection

__all__ = ["Composed", "HtmlResult", "HtmlWork", "Job", "Options", "Slot", "finish", "html_work", "plan", "unchanged"]

# What a recipient's URL adds to a line: its token repeats the target, in letters that take more room.
_URL_OCTETS = 400
_DESCRIBING = b"content-"
_LOOKED_AT_OCTETS = 65_536  # at a time: the whole of a large message need not be there twice


@frozen
class Options:
    """
    Which steps are wanted.

    Args:
        inline_css: From ``X-Cmail-InlineCSS``.
        track_opens: From ``X-Cmail-TrackOpens``.
        track_clicks: From ``X-Cmail-TrackClicks``.
        text_part: A setting; no field of the platform switches it off.
    """

    inline_css: bool
    track_opens: bool
    track_clicks: bool
    text_part: bool = True

    @property
    def steps(self) -> frozenset[str]:
        """Their names."""
        return frozenset([step for step in STEPS if getattr(self, step)])


@frozen
class Composed:
    """
    A message after the content steps, with gaps for each recipient's own URLs.

    Args:
        head: Octets before the HTML, as they stand in the message.
        html: The changed HTML, transfer encoding undone; empty where the HTML is as it came (it is in *head* then).
        encoding: The transfer encoding of the HTML.
        tail: Octets behind the HTML.
        slots: Where URLs go, in order.
        done: Steps that changed something.
        failed: Steps that could not be done, each with a reason from ``work.REASONS``.
        edits: What was changed in the HTML, for tests and reports.
    """

    head: bytes
    html: bytes
    encoding: str
    tail: bytes
    slots: tuple[Slot, ...]
    done: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    edits: tuple[Edit, ...] = ()

    def copy(self, url: Callable[[Slot], str]) -> bytes:
        """
        Write a recipient's message.

        Args:
            url: Gives the URL for a slot. It is written as the value of an attribute, entities and all.

        Returns:
            The whole message.
        """
        if not self.html:
            return self.head + self.tail
        pieces = [self.head]
        html = self.html
        if self.slots:
            filled: list[bytes] = []
            done = 0
            for slot in self.slots:
                filled += (html[done : slot.position], escape(url(slot)).encode("ascii", "xmlcharrefreplace"))
                done = slot.position
            filled.append(html[done:])
            html = b"".join(filled)
        encoded = transfer.encode(html, self.encoding)
        if not self.tail and self.encoding == "quoted-printable" and not encoded.endswith(b"\r\n"):
            encoded += b"=\r\n"  # the message ends with a line end, its text does not
        pieces += (encoded, self.tail)
        return b"".join(pieces)


@frozen
class Job:
    """
    A message with HTML work to do.

    Args:
        content: The message.
        work: For :func:`html_work`.
        part: The HTML part.
        around: The part that gets the text as an alternative; None where none is wanted.
    """

    content: bytes
    work: HtmlWork
    part: Part
    around: Part | None


def plan(content: bytes, options: Options) -> Job | Composed:
    """
    Find out what there is to do.

    Args:
        content: The whole message, line ends CRLF, without X-Cmail fields.
        options: Which steps are wanted.

    Returns:
        A job, or, where there is no HTML work, the message as it came.
    """
    if not _may_have_html(content) or not (steps := options.steps):
        return _as_it_came(content)
    try:
        found = mime.parts(content)
        part = mime.html_part(found)
        if part is None or mime.is_closed(content, found):
            return _as_it_came(content)
        if mime.has_plain_text(found):
            steps -= {"text_part"}
        if not steps:
            return _as_it_came(content)
        work = _work(content, part, steps)
        if mime.is_closed_html(work.html):
            return _as_it_came(content)
        return Job(content, work, part, _around(part) if "text_part" in steps else None)
    except Unfit as unfit:
        return unchanged(content, steps, str(unfit))


def _may_have_html(content: bytes) -> bool:
    """Tell whether a part may be HTML, which is so by its own word only: most mail of machines is plain text."""
    head = content[: content.find(b"\r\n\r\n") + 1 or None].lower()
    if b"text/html" in head or b"multipart/" not in head:
        return b"text/html" in head
    pieces = (content[start : start + _LOOKED_AT_OCTETS + 8] for start in range(0, len(content), _LOOKED_AT_OCTETS))
    return any(b"text/html" in piece.lower() for piece in pieces)


def html_work(work: HtmlWork) -> HtmlResult:
    """
    Take the steps that read HTML.

    Args:
        work: HTML of any kind.

    Returns:
        The text and the edits. Nothing that the HTML says makes it fail; what native code does to the process, and how
        long it takes, is not known.
    """
    from proxy.compose import html_steps

    return html_steps.html_work(work)


def finish(job: Job, result: HtmlResult) -> Composed:
    """
    Put the message together.

    Args:
        job: From :func:`plan`.
        result: From :func:`html_work`, or read from a process that is not trusted.

    Returns:
        The message; as it came where the edits do not fit.
    """
    part, content = job.part, job.content
    try:
        html, slots = editing.apply(job.work.html, result.edits)
    except ValueError:
        return unchanged(content, job.work.steps, "crash")
    done = {edit.step for edit in result.edits}
    encoding = part.encoding
    head, tail = content[: part.body], content[part.end :]
    if result.edits and encoding in transfer.IDENTITY and _is_long(html, slots):
        # No line may have more than 998 octets, and none of ours shall be the one that does.
        encoding = "quoted-printable"
        head = content[: part.start] + _with_encoding(part, encoding) + b"\r\n"
    if not result.edits:
        head = content[: part.end]  # the HTML keeps the transfer encoding it came with
    if result.text and job.around is not None:
        done.add("text_part")
        head, tail = _with_text(job, job.around, result.text, head, tail)
    return Composed(
        head,
        html if result.edits else b"",
        encoding,
        tail,
        slots,
        tuple([step for step in STEPS if step in done]),
        result.failed,
        result.edits,
    )


def unchanged(content: bytes, steps: frozenset[str], reason: str) -> Composed:
    """Give the message as it came; *steps* could not be done for the *reason*."""
    return Composed(content, b"", "", b"", (), (), tuple([(step, reason) for step in STEPS if step in steps]))


def _as_it_came(content: bytes) -> Composed:
    return Composed(content, b"", "", b"", (), (), ())


def _work(content: bytes, part: Part, steps: frozenset[str]) -> HtmlWork:
    if part.encoding not in transfer.ENCODINGS:
        raise Unfit("malformed")
    if part.end - part.body > 4 * MAX_HTML_OCTETS:
        raise Unfit("too_large")
    try:
        html = transfer.decode(content[part.body : part.end], part.encoding)
    except ValueError:
        raise Unfit("malformed") from None
    if len(html) > MAX_HTML_OCTETS:
        raise Unfit("too_large")
    codec = transfer.codec(part.parameters.get("charset") or None, html)
    if codec is None:
        raise Unfit("charset")
    return HtmlWork(html, codec, steps)


def _around(part: Part) -> Part:
    """Find what the text is the alternative to: the HTML with all that belongs to it."""
    around = part
    while (parent := around.parent) is not None and parent.kind == "multipart/related" and parent.root is around:
        around = parent
    return around


def _is_long(html: bytes, slots: tuple[Slot, ...]) -> bool:
    start = 0
    room = [(slot.position, _URL_OCTETS + 2 * len(slot.target)) for slot in slots]
    next_slot = 0
    for line in html.split(b"\r\n"):
        end = start + len(line)
        size = len(line)
        while next_slot < len(room) and room[next_slot][0] <= end:
            size += room[next_slot][1]
            next_slot += 1
        if size > transfer.MAX_LINE:
            return True
        start = end + 2
    return False


def _with_encoding(part: Part, encoding: str) -> bytes:
    """Write a part's header section with another transfer encoding."""
    section = part.section
    field = f"Content-Transfer-Encoding: {encoding}\r\n".encode()
    places = [index for index, key in enumerate(section.keys) if key == b"content-transfer-encoding"]
    return section.edited(places, field, places[0] if places else None)


def _with_text(job: Job, around: Part, text: str, head: bytes, tail: bytes) -> tuple[bytes, bytes]:
    """Put the text before the HTML, in an alternative that is there, or in one around it."""
    content = job.content
    head_from = content[: around.start]
    parent = around.parent
    text_part = _text_part(text)
    if parent is not None and parent.kind == "multipart/alternative":
        first = parent.children[0]
        line = content[first.delimiter : first.start]
        shift = first.start
        return head[:shift] + text_part + b"\r\n" + line + head[shift:], tail
    boundary = _boundary(job).encode()
    opening = b"--" + boundary + b"\r\n" + text_part + b"\r\n--" + boundary + b"\r\n"
    closing = b"\r\n--" + boundary + b"--"
    kind = b'Content-Type: multipart/alternative;\r\n boundary="' + boundary + b'"\r\n'
    behind = around.end - job.part.end
    tail = tail[:behind] + closing + (tail[behind:] or b"\r\n")
    if parent is not None:
        return head_from + kind + b"\r\n" + opening + head[around.start :], tail
    return _outer_head(head, kind, opening), tail


def _outer_head(head: bytes, kind: bytes, opening: bytes) -> bytes:
    """Split the message's fields: what describes the content goes to the part, byte for byte; the rest stays."""
    own_head = HeaderSection.split(head)
    describing = [index for index, key in enumerate(own_head.keys) if key.startswith(_DESCRIBING)]
    moved = b"".join([own_head[index].raw for index in describing])
    added = kind
    for index in describing:
        # A composite may claim no less than its parts need, so it is 8bit if the message was.
        is_encoding = own_head.keys[index] == b"content-transfer-encoding"
        if is_encoding and own_head.value(index).lower() in (b"8bit", b"binary"):
            added += own_head[index].raw
    if b"mime-version" not in own_head.keys:
        added = b"MIME-Version: 1.0\r\n" + added
    outer = own_head.edited(describing, added, describing[0] if describing else None)
    return outer + b"\r\n" + opening + moved + head[own_head.end :]


def _text_part(text: str) -> bytes:
    lines = text.replace("\n", "\r\n").encode("utf-8", "replace")
    is_plain = lines.isascii() and b"\0" not in lines and transfer.longest_line(lines) <= 78
    encoding = "7bit" if is_plain else "quoted-printable"
    fields = f"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    return fields.encode() + transfer.encode(lines, encoding)


def _boundary(job: Job) -> str:
    """Make a boundary that is nowhere in the message. Its first two characters never come up in quoted-printable."""
    number = 0
    while True:
        digest = hashlib.sha256(job.work.html + str(number).encode()).hexdigest()[:32]
        if digest.encode() not in job.content:
            return f"=_{digest}"
        number += 1
