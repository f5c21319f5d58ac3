"""
Edits: what a step changes in the octets of an HTML part, and nothing else.

An HTML part is never written anew from a tree; each step names the places it changes. So what is not named keeps its
bytes, several steps can work on one source text, and a test can undo what was done.
"""

from collections.abc import Iterable
from typing import Literal

from attrs import frozen

SlotKind = Literal["open", "click"]


@frozen
class Slot:
    """
    Where a recipient's own URL goes.

    Args:
        position: Offset in the finished HTML, in octets.
        kind: ``open`` for the beacon, ``click`` for a link.
        target: The URL that a click leads to, entities decoded; empty for ``open``.
    """

    position: int
    kind: SlotKind
    target: str


@frozen
class Edit:
    """
    One change.

    Args:
        position: Offset in the source HTML, in octets.
        removed: The octets that go.
        inserted: The octets that come; ASCII.
        step: Which step wants it.
        slot_at: Offset in *inserted* at which a recipient's URL goes; -1 for none.
        kind: What URL that is; of meaning only with *slot_at*.
        target: As in :class:`Slot`.
    """

    position: int
    removed: bytes
    inserted: bytes
    step: str
    slot_at: int = -1
    kind: SlotKind = "click"
    target: str = ""


def apply(source: bytes, edits: Iterable[Edit]) -> tuple[bytes, tuple[Slot, ...]]:
    """
    Carry out edits.

    Args:
        source: The HTML as it came.
        edits: In the order of their positions, without overlap.

    Returns:
        The new HTML and its slots.

    Raises:
        ValueError: The edits do not fit the source.
    """
    pieces: list[bytes] = []
    slots: list[Slot] = []
    done = size = 0
    for edit in edits:
        end = edit.position + len(edit.removed)
        if edit.position < done or source[edit.position : end] != edit.removed:
            raise ValueError(f"an edit at {edit.position} does not fit")
        kept = source[done : edit.position]
        size += len(kept)
        if edit.slot_at >= 0:
            slots.append(Slot(size + edit.slot_at, edit.kind, edit.target))
        pieces += (kept, edit.inserted)
        size += len(edit.inserted)
        done = end
    pieces.append(source[done:])
    return b"".join(pieces), tuple(slots)


def undo(edited: bytes, edits: Iterable[Edit]) -> bytes:
    """
    Take edits back.

    Args:
        edited: What :func:`apply` made; nothing put into its slots.
        edits: The same edits.

    Returns:
        The source.

    Raises:
        ValueError: The edits were not carried out on this text.
    """
    pieces: list[bytes] = []
    done = shift = 0
    for edit in edits:
        start = edit.position + shift
        end = start + len(edit.inserted)
        if start < done or edited[start:end] != edit.inserted:
            raise ValueError(f"no edit at {start}")
        pieces += (edited[done:start], edit.removed)
        shift += len(edit.inserted) - len(edit.removed)
        done = end
    pieces.append(edited[done:])
    return b"".join(pieces)
