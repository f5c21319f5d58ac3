"""
Log lines: one for each event, as JSON or for people.

No value can start a new line, show a secret or fill a disk: controls are escaped, long values cut, and octets and
objects that do not say how they read as text are only named. Lines are collected and written once per turn of the event
loop; under load, those of which there are many wait a moment longer (``Log.later``). A line, and a write, is no longer
than what a pipe takes whole, so that the lines of several workers never mix in the pipe they share. A reader that
stalls holds up nothing: lines wait for it up to ``MAX_WAITING_OCTETS``, then they are dropped and counted.
"""

import asyncio
import enum
import errno
import json
import logging
import math
import os
import re
import select
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from time import gmtime, monotonic, sleep, strftime, time
from typing import Any, Protocol

import orjson

LEVELS = ("debug", "info", "warning", "error")
MAX_CHARACTERS = 2000
MAX_ITEMS = 100
MAX_DEPTH = 5
PIPE_OCTETS = 4096
"""What Linux writes to a pipe as a whole or not at all (``PIPE_BUF``); POSIX asks for less."""

MAX_WAITING_OCTETS = 4 << 20
_RETRY_SECONDS = 0.05
_FEW_LINES = 3  # so many in one write that nobody waits for are no load
_BUSY_SECONDS = 0.1  # behind the last write with more, until the load is taken to be over
_LATER_SECONDS = 0.01
_MOST_PUT_OFF = 100  # they are told without a pause
_RWF_NOWAIT = 8  # of pwritev2(2); os has no name for it
# How far values are cut, step by step, until a line fits: characters of a text, items of a list.
_CUTS = ((MAX_CHARACTERS, MAX_ITEMS), (500, 30), (120, 30), (60, 10), (20, 3))

_DEBUG, _INFO, _WARNING, _ERROR = range(4)


class Stream(Protocol):
    """Where lines go: an unbuffered binary stream, such as ``open(2, "wb", buffering=0, closefd=False)``."""

    def write(self, data: bytes, /) -> int | None:
        """Take some or all of it, and say how much; None when it would have to wait."""


class Output:
    """A file descriptor as a stream for a log: what it does not take at once, it does not take."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._nowait = True
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, data: bytes, /) -> int | None:
        """Write without waiting, though the descriptor may be one that waits: it is shared with who started us."""
        if self._nowait:  # the one way that is free of races with other writers to the same pipe (Linux 5.1)
            try:
                return os.pwritev(self._descriptor, [data], -1, _RWF_NOWAIT)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ESPIPE):
                    raise
                self._nowait = False
        # A file never waits. Of a pipe, this tells that it has room for PIPE_OCTETS.
        return os.write(self._descriptor, data) if self._poll.poll(0) else None


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
        self._waiting = 0  # octets in _lines
        self._flushing_loop: asyncio.AbstractEventLoop | None = None
        self._unfinished = b""
        self._dropped = 0
        self._stalled = False  # whether the last write failed only because it would have had to wait
        self._second = (0, "")
        self._unhurried = 0  # how many lines of the next write nobody waits for
        self._busy_until = 0.0  # until when many of them are to be expected (monotonic seconds)
        self._ended = False
        self._put_off: list[Callable[[], None]] = []
        self._catching_up: asyncio.TimerHandle | None = None

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

    def later(self, tell: Callable[[], None]) -> None:
        """
        Have something told that nobody waits for; in the event loop.

        At once, as a rule. Under load when the loop has nothing better to do (:meth:`catch_up`), or the next time it
        comes to it after 10 ms, and in a row with more of its kind, which costs less for each. In order with all other
        lines of the loop.

        Args:
            tell: Tells it, by :meth:`info` and the like. Where that fails, that is told instead.
        """
        if self._ended or monotonic() >= self._busy_until:
            self._tell([tell])
            return
        if self._catching_up is None:
            self._catching_up = asyncio.get_running_loop().call_later(_LATER_SECONDS, self.catch_up)
        self._put_off.append(tell)
        if len(self._put_off) >= _MOST_PUT_OFF:
            self.catch_up()

    def catch_up(self) -> None:
        """Tell what was put off; in the event loop."""
        if self._catching_up is not None:
            self._catching_up.cancel()
            self._catching_up = None
        put_off, self._put_off = self._put_off, []
        self._tell(put_off)

    def _tell(self, unhurried: list[Callable[[], None]]) -> None:
        lines = len(self._lines)
        for tell in unhurried:
            try:
                tell()
            except Exception as error:  # one that fails costs no other, and nobody a message
                self.error("internal_error", task="log", exc=error)
        self._unhurried += max(0, len(self._lines) - lines)

    def finish(self) -> None:
        """Write what is waiting, at the end of the program; a reader that stalls gets a second."""
        self._ended = True
        self.catch_up()
        until = monotonic() + 1
        self._flush(retry=True)
        while self._lines and monotonic() < until:
            sleep(_RETRY_SECONDS)
            self._flush(retry=True)
        self.flush()

    def flush(self) -> None:
        """Write what is waiting; what the stream does not take is dropped and counted, never waited for."""
        self.catch_up()
        self._flush(retry=False)

    def _flush_in_loop(self) -> None:
        if self._unhurried > _FEW_LINES:
            self._busy_until = monotonic() + _BUSY_SECONDS
        self._unhurried = 0
        self._flush(retry=True)
        loop = self._flushing_loop
        if self._lines and loop is not None:
            loop.call_later(_RETRY_SECONDS, self._flush_in_loop)
        else:
            self._flushing_loop = None

    def _flush(self, *, retry: bool) -> None:
        batch: list[bytes] = []
        octets = 0
        while self._lines:
            line = self._lines.popleft()
            if batch and octets + len(line) > PIPE_OCTETS:
                self._lines.appendleft(line)
                if not self._write(batch, retry=retry):
                    return
                batch, octets = [], 0
                continue
            batch.append(line)
            octets += len(line)
        if batch:
            self._write(batch, retry=retry)

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
        if self._waiting > MAX_WAITING_OCTETS:
            self._dropped += 1
            return
        loop = _running_loop()
        if self._put_off and loop is not None:  # what a thread has to tell does not wait for it
            self.catch_up()
        line = self._line(self._now(), level, event, fields)
        self._lines.append(line)
        self._waiting += len(line)
        if loop is None:
            self._flush(retry=False)
        elif self._flushing_loop is not loop:  # another one may have ended before its turn came
            self._flushing_loop = loop
            loop.call_soon(self._flush_in_loop)

    def _now(self) -> str:
        now = time()
        second, text = self._second
        if second != int(now):
            second = int(now)
            text = strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
            self._second = (second, text)
        return f"{text}.{int((now - second) * 1000):03d}Z"

    def _write(self, batch: list[bytes], *, retry: bool) -> bool:
        """Write some lines; with *retry*, those that would have to wait are kept, in front of all others (False)."""
        put = True
        if self._dropped and not self._lines:  # where they are missing: behind those that waited
            put = self._put(self._line(self._now(), "warning", "log_lines_dropped", {"lines": self._dropped}))
            self._dropped = 0 if put else self._dropped
        put = put and self._put(b"".join(batch))
        if not put and self._stalled and retry:
            self._lines.extendleft(reversed(batch))
            return False
        self._dropped += 0 if put else len(batch)
        self._waiting = self._waiting - sum(map(len, batch)) if self._lines else 0
        return True

    def _put(self, data: bytes) -> bool:
        """Write, after what a line begun earlier still lacks; False when none of *data* went out."""
        self._stalled = False
        owed = len(self._unfinished)
        rest = memoryview(self._unfinished + data)
        written = 0
        while rest:
            try:
                count = self._stream.write(bytes(rest))
                self._stalled = not count
            except BlockingIOError as error:
                count = getattr(error, "characters_written", 0)
                self._stalled = not count
            except (OSError, ValueError):  # the reader is gone, the disk is full, or the stream is closed
                count = 0
            if not count:
                break
            written += count
            rest = rest[count:]
        begun = written > owed
        self._unfinished = bytes(rest) if begun else self._unfinished[written:]
        return begun


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


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
        quick = orjson.dumps(record, option=_AS_JSON)
    except TypeError:  # what is no JSON, such as octets and lone surrogates
        quick = b""
    if quick and quick.isascii() and b"\x7f" not in quick and len(quick) <= MAX_CHARACTERS:
        return quick + b"\n"
    try:
        line = _encode(record)
    except (TypeError, ValueError, RecursionError):
        line = _encode(_plain(record))
    if len(line) > MAX_CHARACTERS:  # only then can a value be too long
        line = _fitting(lambda cut: _encode(_plain(record, cut)))
    return line.encode("ascii") + b"\n"


def _fitting(write: Callable[[tuple[int, int]], str]) -> str:
    """Write a line with its values cut as far as it takes for a pipe to take it whole."""
    line = ""
    for cut in _CUTS:
        line = write(cut)
        if len(line.encode()) < PIPE_OCTETS:
            return line
    return line.encode()[: PIPE_OCTETS - 2].decode("utf-8", "ignore")  # hundreds of fields: no event has so many


def _text_line(now: str, level: str, event: str, fields: dict[str, object]) -> bytes:
    def write(cut: tuple[int, int]) -> str:
        words = [f"{key}={_word(value, cut)}" for key, value in fields.items()]
        return " ".join([now, level.upper(), _word(event, cut), *words])

    return (_fitting(write) + "\n").encode()


def _word(value: object, cut: tuple[int, int]) -> str:
    value = _plain(value, cut)
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


def _plain(value: object, cut: tuple[int, int] = _CUTS[0], depth: int = 0) -> Any:
    """Reduce a value to what JSON knows, within the limits of a line."""
    characters, items = cut
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value, cut, depth)
    if isinstance(value, int):
        return value if value.bit_length() < 64 else f"({value.bit_length()} bits)"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value if len(value) <= characters else f"{value[: characters - 1]}…"
    if depth == MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        shown = MAX_ITEMS if depth == 0 else items  # the fields of an event are all shown
        names = [str(_plain(_shown(key) if isinstance(key, bytes) else key, cut)) for key in islice(value, shown)]
        pairs = dict(zip(names, _items(value.values(), cut, shown, depth), strict=False))
        return pairs if len(value) <= shown else {**pairs, "…": f"{len(value) - shown} more"}
    if isinstance(value, list | tuple):
        found = _items(value, cut, items, depth)
        return found if len(value) <= items else [*found, f"… {len(value) - items} more"]
    return _plain(_shown(value), cut, depth + 1)


def _items(values: Iterable[object], cut: tuple[int, int], most: int, depth: int) -> list[object]:
    return [_plain(value, cut, depth + 1) for value in islice(values, most)]


_UNCLEAR = re.compile(r'[\s"=\\]')
# Nothing is taken apart that was not meant to be told.
_AS_JSON = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
# ASCII only: whatever a reader takes for a line end or a control, surrogates included, is escaped.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_shown).encode
_encode_text = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
