"""
Log lines: one for each event, as JSON or for people.

No value can start a new line, show a secret or fill a disk: controls are escaped, long values cut, and octets and
objects that do not say how they read as text are only named. Lines are collected and written once per turn of the event
loop, in writes that a pipe takes whole, so that the lines of several workers never mix in the pipe they share.
"""

import asyncio
import enum
import json
import logging
import math
import re
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from time import gmtime, strftime, time
from typing import Any, Protocol

LEVELS = ("debug", "info", "warning", "error")
MAX_CHARACTERS = 2000
MAX_ITEMS = 100
MAX_DEPTH = 5
PIPE_OCTETS = 4096
"""What Linux writes to a pipe as a whole or not at all (``PIPE_BUF``); POSIX asks for less."""

_DEBUG, _INFO, _WARNING, _ERROR = range(4)


class Stream(Protocol):
    """Where lines go: an unbuffered binary stream, such as ``open(2, "wb", buffering=0, closefd=False)``."""

    def write(self, data: bytes, /) -> int | None:
        """Take some or all of it, and say how much; None when it would have to wait."""


class Log:
    """
    A log.

    Args:
        level: The least important lines that are written; one of ``LEVELS``.
        format: ``json`` or ``text``.
    """

    def __init__(self, level: str, format: str, stream: Stream) -> None:
        self._threshold = LEVELS.index(level)
        self._line = _json_line if format == "json" else _text_line
        self._stream = stream
        self._lines: deque[bytes] = deque()  # appended to and popped from without a lock, by any thread
        self._flushing_loop: asyncio.AbstractEventLoop | None = None
        self._unfinished = b""
        self._dropped = 0
        self._second = (0, "")

    def debug(self, event: str, /, **fields: object) -> None:
        """Tell what only helps to find a fault."""
        if self._threshold <= _DEBUG:
            self._add("debug", event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Tell what happened as it should."""
        if self._threshold <= _INFO:
            self._add("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Tell what somebody should look at some day."""
        if self._threshold <= _WARNING:
            self._add("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Tell what needs mending."""
        if self._threshold <= _ERROR:
            self._add("error", event, fields)

    def flush(self) -> None:
        """Write what is waiting; what the stream does not take is dropped and counted, never waited for."""
        self._flushing_loop = None
        batch: list[bytes] = []
        octets = 0
        while self._lines:
            line = self._lines.popleft()
            if batch and octets + len(line) > PIPE_OCTETS:
                self._write(batch)
                batch, octets = [], 0
            batch.append(line)
            octets += len(line)
        if batch:
            self._write(batch)

    def install(self) -> None:
        """Take in what libraries say by ``logging`` and ``warnings``, from level warning on."""
        root = logging.getLogger()
        for handler in [handler for handler in root.handlers if isinstance(handler, _FromLogging)]:
            root.removeHandler(handler)
        root.addHandler(_FromLogging(self))
        logging.captureWarnings(True)
        # What Python can only print, such as an error in a TLS callback: a client must not write to our output.
        sys.unraisablehook = lambda unraisable: self.warning("unraisable", error=repr(unraisable.exc_value))

    def _add(self, level: str, event: str, fields: dict[str, object]) -> None:
        self._lines.append(self._line(self._now(), level, event, fields))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._flushing_loop is not loop:  # another one may have ended before its turn came
            self._flushing_loop = loop
            loop.call_soon(self.flush)

    def _now(self) -> str:
        now = time()
        second, text = self._second
        if second != int(now):
            second = int(now)
            text = strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
            self._second = (second, text)
        return f"{text}.{int((now - second) * 1000):03d}Z"

    def _write(self, batch: list[bytes]) -> None:
        if self._dropped:
            note = self._line(self._now(), "warning", "log_lines_dropped", {"lines": self._dropped})
            if not self._put(note):
                self._dropped += len(batch)
                return
            self._dropped = 0
        if not self._put(b"".join(batch)):
            self._dropped += len(batch)

    def _put(self, data: bytes) -> bool:
        """Write, after what a line begun earlier still lacks; False when none of *data* went out."""
        owed = len(self._unfinished)
        rest = memoryview(self._unfinished + data)
        written = 0
        while rest:
            try:
                count = self._stream.write(bytes(rest))
            except BlockingIOError as error:
                count = getattr(error, "characters_written", 0)
            except (OSError, ValueError):  # the reader is gone, the disk is full, or the stream is closed
                count = 0
            if not count:
                break
            written += count
            rest = rest[count:]
        begun = written > owed
        self._unfinished = bytes(rest) if begun else self._unfinished[written:]
        return begun


class _FromLogging(logging.Handler):
    """Hands the records of the standard library's ``logging`` on to a log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):  # arguments that do not fit their format
            message = str(record.msg)
        fields: dict[str, object] = {"logger": record.name, "message": message}
        if record.exc_info and record.exc_info[1] is not None:
            fields["exc"] = record.exc_info[1]
        tell = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        tell("library", **fields)


# How values look


def _json_line(now: str, level: str, event: str, fields: dict[str, object]) -> bytes:
    record: dict[str, object] = {"ts": now, "level": level, "event": event, **fields}
    try:
        line = _encode(record)
    except (TypeError, ValueError, RecursionError):
        line = _encode(_plain(record))
    if len(line) > MAX_CHARACTERS:  # only then can a value be too long
        line = _encode(_plain(record))
    return line.encode("ascii") + b"\n"


def _text_line(now: str, level: str, event: str, fields: dict[str, object]) -> bytes:
    words = [f"{key}={_word(value)}" for key, value in fields.items()]
    return (" ".join([now, level.upper(), _word(event), *words]) + "\n").encode()


def _word(value: object) -> str:
    value = _plain(value)
    text = value if isinstance(value, str) else _encode_text(value)
    if isinstance(value, str) and (not text or _UNCLEAR.search(text) or not text.isprintable()):
        text = _encode_text(text)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else _encode(letter)[1:-1] for letter in text)
    return text


def _shown(value: object) -> object:
    """Choose what to write for an object: nothing that was not meant as text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({memoryview(value).nbytes} octets)"
    if isinstance(value, BaseException):
        return "".join(traceback.format_exception(value))[-MAX_CHARACTERS:]  # the end says most
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return list(value)
    # Secrets, and values that hold octets or secrets, have a __repr__ for debugging but no __str__.
    return f"({type(value).__name__})" if type(value).__str__ is object.__str__ else str(value)


def _plain(value: object, depth: int = 0) -> Any:
    """Reduce a value to what JSON knows, within the limits of a line."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth)
    if isinstance(value, int):
        return value if value.bit_length() < 64 else f"({value.bit_length()} bits)"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value if len(value) <= MAX_CHARACTERS else f"{value[: MAX_CHARACTERS - 1]}…"
    if depth == MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        names = [str(_plain(_shown(key) if isinstance(key, bytes) else key)) for key in islice(value, MAX_ITEMS)]
        pairs = dict(zip(names, _items(value.values(), depth), strict=False))
        return pairs if len(value) <= MAX_ITEMS else {**pairs, "…": f"{len(value) - MAX_ITEMS} more"}
    if isinstance(value, list | tuple):
        items = _items(value, depth)
        return items if len(value) <= MAX_ITEMS else [*items, f"… {len(value) - MAX_ITEMS} more"]
    return _plain(_shown(value), depth + 1)


def _items(values: Iterable[object], depth: int) -> list[object]:
    return [_plain(value, depth + 1) for value in islice(values, MAX_ITEMS)]


_UNCLEAR = re.compile(r'[\s"=\\]')
# ASCII only: whatever a reader takes for a line end or a control, surrogates included, is escaped.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_shown).encode
_encode_text = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
