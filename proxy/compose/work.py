"""
What a process that does HTML work is given, and what it gives back, as octets on a pipe.

A small JSON header and raw octets; no pickle, because a process that runs native parsers on outside data is not
trusted: whatever it writes must be harmless to read.
"""

import json
import struct
from collections.abc import Mapping

from attrs import frozen

from proxy.compose.edits import Edit, SlotKind

STEPS = ("text_part", "inline_css", "track_clicks", "track_opens")
REASONS = ("too_large", "too_deep", "time", "memory", "crash", "malformed", "charset")

MAX_HTML_OCTETS = 2 * 1024 * 1024
MAX_DEPTH = 256
# What comes back is read where all connections are served.
MAX_EDITS = 10_000

FRAME = struct.Struct(">II")  # octets of the JSON header, octets of the raw part
_MAX_HEADER_OCTETS = 64 * 1024 * 1024
_MAX_RAW_OCTETS = 16 * 1024 * 1024


@frozen
class HtmlWork:
    """
    HTML and what to do with it.

    Args:
        html: The part's octets, transfer encoding undone.
        codec: How to read them, one of the list in ``encoded_words``.
        steps: Which of :data:`STEPS` to take.
    """

    html: bytes
    codec: str
    steps: frozenset[str]

    def to_wire(self) -> bytes:
        """Write it for the pipe."""
        return frame({"codec": self.codec, "steps": sorted(self.steps)}, self.html)


@frozen
class HtmlResult:
    """
    What became of it.

    Args:
        text: The text part, lines ending in LF; None where none was asked for or could be made.
        edits: Changes to the HTML, in order of their positions.
        failed: Steps that could not be done, each with one of :data:`REASONS`.
    """

    text: str | None = None
    edits: tuple[Edit, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()

    def to_wire(self) -> bytes:
        """Write it for the pipe."""
        edits = [
            [it.position, len(it.removed), it.slot_at, it.inserted.decode("ascii"), it.step, it.kind, it.target]
            for it in self.edits
        ]
        header = {"edits": edits, "failed": self.failed, "text": self.text is not None}
        return frame(header, (self.text or "").encode("utf-8", "replace"))


def frame(header: Mapping[str, object], raw: bytes) -> bytes:
    """Put a header and octets into one frame."""
    head = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((FRAME.pack(len(head), len(raw)), head, raw))


def frame_sizes(head: bytes) -> tuple[int, int]:
    """
    Read the eight octets before a frame.

    Returns:
        Octets of the header and of the raw part.

    Raises:
        ValueError: More than any frame has.
    """
    header, raw = FRAME.unpack(head)
    if header > _MAX_HEADER_OCTETS or raw > _MAX_RAW_OCTETS:
        raise ValueError("a frame larger than any")
    return header, raw


def read_work(header: bytes, raw: bytes) -> HtmlWork:
    """Read what :meth:`HtmlWork.to_wire` wrote; it comes from the process that started this one."""
    fields = json.loads(header)
    return HtmlWork(raw, fields["codec"], frozenset(fields["steps"]))


def read_result(header: bytes, raw: bytes, work: HtmlWork) -> HtmlResult:
    """
    Read what :meth:`HtmlResult.to_wire` wrote, trusting nothing.

    Args:
        header: The JSON header.
        raw: The text part.
        work: What the result is for; the removed octets are taken from it.

    Raises:
        ValueError: It is no result for this work.
    """
    try:
        fields = json.loads(header)
        edits = [_edit(work, tuple(map(_number, row[:3])), *map(_text, row[3:])) for row in fields["edits"]]
        if len(edits) > MAX_EDITS:
            raise ValueError("more edits than asked for")
        failed = [(_one_of(STEPS, step), _one_of(REASONS, reason)) for step, reason in fields["failed"]]
        text = raw.decode("utf-8") if fields["text"] is True else None
    except (TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise ValueError("no result") from problem
    return HtmlResult(text, tuple(edits), tuple(failed))


def _edit(work: HtmlWork, numbers: tuple[int, ...], inserted: str, step: str, kind: str, target: str) -> Edit:
    position, removed, slot_at = numbers
    if not (0 <= position <= position + removed <= len(work.html) and -1 <= slot_at <= len(inserted)):
        raise ValueError("an edit outside the text")
    slot: SlotKind = "open" if kind == "open" else "click"
    octets = work.html[position : position + removed]
    return Edit(position, octets, inserted.encode("ascii"), _one_of(STEPS, step), slot_at, slot, target)


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _one_of(words: tuple[str, ...], word: object) -> str:
    if word not in words:
        raise ValueError("a word that is on no list")
    return str(word)
