"""Provisional: the values of the content steps."""

from collections.abc import Callable
from typing import Literal

from attrs import frozen


@frozen
class Options:
    """What to do."""

    inline_css: bool
    track_opens: bool
    track_clicks: bool
    text_part: bool = True


@frozen
class Slot:
    """A place for a URL."""

    position: int
    kind: Literal["open", "click"]
    target: str


@frozen
class Composed:
    """A composed message."""

    head: bytes
    html: bytes = b""
    encoding: str = ""
    tail: bytes = b""
    slots: tuple[Slot, ...] = ()
    done: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()

    def copy(self, url: Callable[[Slot], str]) -> bytes:
        """The whole message."""
        return self.head
