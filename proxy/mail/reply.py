"""
SMTP replies: reply code, enhanced status code and text travel together, and their classes agree.

Source: RFC 5321, 4.2 (replies) and 4.5.3.1.5 (512 octets a line); RFC 3463 and RFC 2034 (enhanced status codes).
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from attrs import field, frozen

SERVICE_CLOSING = 421
"""The reply code with which a server takes its leave, whatever it was asked (RFC 5321, 3.8)."""

START_MAIL = 354
"""The only reply code to DATA that asks for the message (RFC 5321, 4.1.1.4)."""

MAX_LINE_OCTETS = 4096  # lenient: the RFC says 512, and longer lines are cut before they are passed on
MAX_LINES = 100
_TEXT_OCTETS = 480

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])([^\n]*?))?\r*\n")
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:[ ]+|$)")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


def _same_class(reply: "Reply", _attribute: object, enhanced: str) -> None:
    if enhanced and enhanced[0] != str(reply.code)[0]:
        raise ValueError(f"enhanced status code {enhanced} does not fit reply code {reply.code}")


@frozen
class Reply:
    """
    One SMTP reply.

    Args:
        code: Reply code, 200 to 599.
        enhanced: Enhanced status code such as ``5.1.1``; empty for 3yz, greeting and HELO/EHLO replies.
        text: Printable ASCII; lines parted by LF.
    """

    code: int
    enhanced: str = field(validator=_same_class)
    text: str

    @property
    def positive(self) -> bool:
        """Whether the command was done (2yz)."""
        return 200 <= self.code < 300

    @property
    def intermediate(self) -> bool:
        """Whether the server waits for more (3yz)."""
        return 300 <= self.code < 400

    @property
    def permanent(self) -> bool:
        """Whether trying again is no use (5yz)."""
        return self.code >= 500

    def __str__(self) -> str:
        codes = f"{self.code} {self.enhanced}" if self.enhanced else str(self.code)
        return f"{codes} {text}" if (text := self.text.replace("\n", " / ")) else codes

    def to_bytes(self) -> bytes:
        """Write the reply for the wire, the enhanced status code on each line (RFC 2034, section 4)."""
        return _written(self.code, self.enhanced, self.text)

    def for_client(self) -> "Reply":
        """Give a reply of another server its enhanced status code, if it came without one."""
        if self.enhanced or self.intermediate:
            return self
        return Reply(self.code, f"{self.code // 100}.0.0", self.text)


@lru_cache(512)  # the same few replies all day
def _written(code: int, enhanced: str, text: str) -> bytes:
    prefix = f"{enhanced} " if enhanced else ""
    if "\n" not in text:
        return f"{code} {prefix}{text}\r\n".encode("ascii", "replace")
    *first, last = (f"{prefix}{line}" for line in text.split("\n"))
    written = "".join(f"{code}-{line}\r\n" for line in first)
    return f"{written}{code} {last}\r\n".encode("ascii", "replace")


class ReplyError(Exception):
    """
    The peer sent something that is no SMTP reply; the text says what, for the log only.

    Args:
        replies: Those that were complete before it.
    """

    def __init__(self, text: str, replies: Sequence["Reply"] = ()) -> None:
        super().__init__(text)
        self.replies = replies


class ReplyParser:
    """
    Read replies from a stream, in whatever pieces it comes.

    Bounded: a line over ``MAX_LINE_OCTETS`` or a reply over ``MAX_LINES`` lines is an error.
    """

    __slots__ = ("_buffer", "_code", "_lines")

    def __init__(self) -> None:
        self._buffer = b""
        self._code = b""
        self._lines: list[bytes] = []

    @property
    def pending(self) -> bool:
        """Whether a reply has begun and is not complete."""
        return bool(self._buffer or self._lines)

    def feed(self, data: bytes) -> list[Reply]:
        """
        Take the next piece of the stream.

        Returns:
            The replies that are complete by now, in order.

        Raises:
            ReplyError: The stream holds something that is no reply; the connection is of no more use.
        """
        data = self._buffer + data if self._buffer else data
        replies: list[Reply] = []
        position = 0
        while (end := data.find(b"\n", position) + 1) > 0:
            if end - position > MAX_LINE_OCTETS:
                raise ReplyError(f"a reply line of more than {MAX_LINE_OCTETS} octets", replies)
            if not self._code and (reply := _whole(data[position:end])) is not None:
                replies.append(reply)
                position = end
                continue
            match = _LINE.fullmatch(data, position, end)
            if match is None or (self._code and match[1] != self._code):
                raise ReplyError(f"no SMTP reply: {data[position : min(end, position + 80)]!r}", replies)
            self._lines.append(match[3] or b"")
            if len(self._lines) > MAX_LINES:
                raise ReplyError(f"a reply of more than {MAX_LINES} lines", replies)
            if match[2] == b"-":
                self._code = match[1]
            else:
                replies.append(_reply(int(match[1]), self._lines))
                self._code, self._lines = b"", []
            position = end
        self._buffer = data[position:]
        if len(self._buffer) > MAX_LINE_OCTETS:
            raise ReplyError(f"a reply line of more than {MAX_LINE_OCTETS} octets", replies)
        return replies


@lru_cache(512)
def _whole(line: bytes) -> Reply | None:
    """The reply that is this one line, if it is one."""
    match = _LINE.fullmatch(line)
    return _reply(int(match[1]), [match[3] or b""]) if match is not None and match[2] != b"-" else None


def printable(text: str) -> str:
    """Reduce the text of a peer to printable ASCII."""
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub("?", text)


def _reply(code: int, lines: list[bytes]) -> Reply:
    enhanced = ""
    texts = []
    for line in lines:
        text = printable(line.decode("latin-1"))
        match = _ENHANCED.match(text)
        if match:
            text = text[match.end() :]
            if match[1][0] == str(code)[0]:  # a server whose two codes disagree: the reply code counts
                enhanced = enhanced or match[1]
        texts.append(text[:_TEXT_OCTETS])
    return Reply(code, enhanced, "\n".join(texts))
