"""Log lines: one event each, whatever the values hold and whatever the stream does."""

import asyncio
import contextlib
import datetime
import io
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from proxy.mail.reply import Reply
from proxy.record.log import PIPE_OCTETS, Log, Output
from proxy.settings.values import Secret
from tests.support.picky_stream import PickyStream

ROOT = Path(__file__).parents[2]
NASTY = "a\nb\rc\x00d\x7fe\x85f\u2028g\u2029h\x1b[31mi\ud800j\u202ek"


class Color(Enum):
    """Any enumeration."""

    RED = "red"


@frozen
class Holder:
    """A value without a text of its own."""

    password: str


def logged(format: str = "json", **fields: object) -> str:
    """Write one line, and give it without its end."""
    stream = io.BytesIO()
    Log("info", format, stream).info("tested", **fields)
    line = stream.getvalue().decode()
    assert line.endswith("\n")
    assert line.count("\n") == 1
    return line[:-1]


def read(**fields: object) -> dict[str, Any]:
    """Write one JSON line, and read it."""
    found: dict[str, Any] = json.loads(logged("json", **fields))
    return found


def test_json_line_has_time_level_event_and_fields_in_order() -> None:
    """A line is one JSON object: time in UTC with milliseconds, level, event, then the fields as given."""
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(milliseconds=1)
    line = logged(zebra=1, apple=["x", None], deep={"seconds": 0.5})
    found = json.loads(line)
    assert list(found) == ["ts", "level", "event", "zebra", "apple", "deep"]
    assert found["zebra"] == 1
    assert found["apple"] == ["x", None]
    assert found["deep"] == {"seconds": 0.5}
    assert (found["level"], found["event"]) == ("info", "tested")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["ts"])
    written = datetime.datetime.fromisoformat(found["ts"])
    assert before <= written <= datetime.datetime.now(datetime.UTC)


def test_text_line_has_time_level_event_and_fields_in_order() -> None:
    """A line for people: words as they are, quoted only where a reader could not tell where they end."""
    line = logged(
        "text", plain="word", blank="two words", empty="", equals="a=b", quote='say "hi"', number=1.5, no=None
    )
    now, _, rest = line.partition(" ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now)
    assert rest == (
        r'INFO tested plain=word blank="two words" empty="" equals="a=b" quote="say \"hi\"" number=1.5 no=null'
    )


def test_text_line_keeps_letters_of_all_scripts() -> None:
    """Text for people is not full of escapes: printable characters stay."""
    assert logged("text", group="Grüße-日本").endswith("group=Grüße-日本")


@pytest.mark.parametrize("format", ["json", "text"])
def test_controls_never_start_a_new_line(format: str) -> None:
    """Controls, line separators, surrogates and direction marks are escaped, at any depth and in keys."""
    line = logged(format, value=NASTY, deep=[{NASTY: [NASTY]}])
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    assert "\\n" in line
    assert "\\u2028" in line


@pytest.mark.parametrize(
    "character", [chr(code) for code in (*range(0x20), *range(0x7F, 0xA1), 0x2028, 0x2029, 0xD800)]
)
def test_each_control_is_escaped_alone(character: str) -> None:
    """No other character of the line is what has it escaped."""
    line = logged("json", value=f"a{character}b")
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["value"] == f"a{character}b"


def test_json_values_come_back_as_they_were() -> None:
    """What is escaped can be read again."""
    assert read(value=NASTY)["value"] == NASTY


@given(st.dictionaries(st.text(), st.text() | st.binary() | st.floats() | st.integers() | st.lists(st.text())))
def test_any_values_make_one_line(fields: dict[str, object]) -> None:
    """Whatever the values are, there is one line, printable and, as JSON, lawful."""
    json.loads(logged(deep=fields), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert logged("text", deep=fields).isprintable()
    for value in fields.values():
        assert logged("text", value=value).isprintable()


@pytest.mark.parametrize("format", ["json", "text"])
def test_secrets_and_octets_never_appear(format: str) -> None:
    """Secrets, octets and values that may hold some are only named, at any depth, keys included."""
    line = logged(
        format,
        secret=Secret("hunter2"),
        octets=b"hunter2",
        deep=[{"more": (Secret("hunter2"), bytearray(b"hunter2"), memoryview(b"hunter2"))}],
        keys={b"hunter2": 1},
        holder=Holder("hunter2"),
    )
    assert "hunter2" not in line
    assert "(Secret)" in line
    assert "(7 octets)" in line
    assert "(Holder)" in line


def test_values_that_read_as_text_are_written_as_that() -> None:
    """Replies, paths, enumerations, times and sets need no conversion by the caller."""
    found = read(
        reply=Reply(250, "2.0.0", "OK"),
        path=Path("/srv/x"),
        color=Color.RED,
        day=datetime.date(2026, 1, 2),
        names={"a"},
    )
    values = [found[name] for name in ("reply", "path", "color", "day", "names")]
    assert values == ["250 2.0.0 OK", "/srv/x", "red", "2026-01-02", ["a"]]
    assert logged("text", color=Color.RED, path=Path("/srv/x")).endswith(" color=red path=/srv/x")


def test_exceptions_are_written_with_their_traceback() -> None:
    """An exception as a value shows where it came from, and the end of a long one is kept."""
    try:
        raise ValueError("x" * 3000 + "the end")
    except ValueError as error:
        text = read(exc=error)["exc"]
    assert text.endswith("the end\n")
    assert len(text) == 2000
    try:
        raise ValueError("short")
    except ValueError as error:
        text = read(exc=error)["exc"]
    assert "test_exceptions_are_written_with_their_traceback" in text


@pytest.mark.parametrize("format", ["json", "text"])
def test_long_values_are_cut(format: str) -> None:
    """Texts end after 2,000 characters, lists after 100 items, and nesting after a few levels."""
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    line = logged(format, text="x" * 5000, items=list(range(1000)), deep=deep, huge=10**5000)
    assert "x" * 1999 in line
    assert "x" * 2000 not in line
    assert "99" in line
    assert "900 more" in line
    assert "(16610 bits)" in line
    assert "b" * 2000 in logged(format, exact="b" * 2000)


@pytest.mark.parametrize("format", ["json", "text"])
def test_every_line_is_short_enough_for_a_pipe_to_take_it_whole(format: str) -> None:
    """Long recipients in great number are cut further, and never is a line longer than a pipe's atomic write."""
    recipients = [f"{'r' * 200}{number}@example.net" for number in range(100)]
    line = logged(format, recipients=recipients, note="ü\n" * 3000, **{f"key{i}": "v" * 300 for i in range(20)})
    assert len(line.encode()) < PIPE_OCTETS
    assert line.count("rrrr") >= 3
    assert " more" in line
    assert len(logged(format, **{f"key{i}": "v" * 300 for i in range(500)}).encode()) < PIPE_OCTETS


def test_cut_text_has_2000_characters_and_says_so() -> None:
    """A cut text ends with an ellipsis, which counts; where escapes make the line too long, it is cut further."""
    assert read(text="a" * 2001)["text"] == "a" * 1999 + "…"
    assert read(text="ä" * 2001)["text"] == "ä" * 499 + "…"
    assert read(items=list(range(900)))["items"] == [*range(100), "… 800 more"]
    assert read(names={str(i): i for i in range(900)})["names"]["…"] == "800 more"


def test_numbers_that_json_does_not_know_become_null_or_text() -> None:
    """A line is JSON by the standard, for every reader; where something else in it is cut or escaped, they are text."""
    assert [read(a=float("nan"), b=float("inf"))[name] for name in "ab"] == [None, None]
    assert [read(a=float("nan"), b=float("inf"), c="\u2028")[name] for name in "ab"] == ["nan", "inf"]


def test_value_that_holds_itself_is_cut() -> None:
    """A loop among values ends at the depth limit."""
    loop: list[object] = []
    loop.append(loop)
    assert read(loop=loop)["loop"] == [[[["…"]]]]


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_lines_below_the_level_are_not_written(level: str, written: list[str]) -> None:
    """The level is the least important one that is written."""
    stream = io.BytesIO()
    log = Log(level, "json", stream)
    for tell in (log.debug, log.info, log.warning, log.error):
        tell("tested")
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == written


@pytest.mark.parametrize(
    "refusal",
    [
        None,
        BlockingIOError(11, "busy", 0),
        BlockingIOError(),
        BrokenPipeError(),
        OSError(28, "full"),
        ValueError("closed"),
    ],
)
def test_stream_that_refuses_costs_lines_and_says_how_many(refusal: Exception | None) -> None:
    """Lines that nobody takes are dropped, and the first line that is taken is preceded by their number."""
    stream = PickyStream(refusal, refusal)
    log = Log("info", "json", stream)
    for number in range(4):
        log.info("tested", number=number)
    events = stream.events()
    assert [event["event"] for event in events] == ["log_lines_dropped", "tested", "tested"]
    assert (events[0]["level"], events[0]["lines"]) == ("warning", 2)
    assert [event["number"] for event in events[1:]] == [2, 3]


def test_line_taken_in_parts_stays_whole() -> None:
    """What a stream took half of is completed before anything else is written."""
    stream = PickyStream(10, None, 5, None)
    log = Log("info", "json", stream)
    log.info("tested", number=0)
    log.info("tested", number=1)
    log.info("tested", number=2)
    assert [(event["event"], event.get("number", event.get("lines"))) for event in stream.events()] == [
        ("tested", 0),
        ("log_lines_dropped", 1),
        ("tested", 2),
    ]


def test_full_pipe_does_not_stop_the_process() -> None:
    """A reader that stalls costs lines, never a wait, and every line it gets later is whole."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(writing, "wb", buffering=0) as stream, os.fdopen(reading, "rb") as reader:
        log = Log("info", "json", stream)
        for number in range(2000):
            log.info("tested", number=number, text="x" * 200)
        os.set_blocking(reading, False)
        got = reader.read() or b""
        log.info("tested", number=2000)
        got += reader.read() or b""
    events = [json.loads(line) for line in got.splitlines()]
    written = [event for event in events if event["event"] == "tested"]
    dropped = [event["lines"] for event in events if event["event"] == "log_lines_dropped"]
    assert len(written) < 2000
    assert dropped == [2001 - len(written)]
    assert written[-1]["number"] == 2000


def test_closed_reader_does_not_stop_the_process() -> None:
    """Lines for a reader that is gone are dropped."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as stream:
        log = Log("info", "json", stream)
        log.info("tested")
        log.flush()


async def test_lines_of_one_turn_of_the_loop_are_one_write() -> None:
    """In an event loop lines wait for the end of its turn, and go out together and in order."""
    stream = PickyStream()
    log = Log("info", "json", stream)
    log.info("tested", number=0)
    log.info("tested", number=1)
    assert stream.writes == []
    await asyncio.sleep(0)
    assert len(stream.writes) == 1
    assert [event["number"] for event in stream.events()] == [0, 1]


async def test_flush_writes_what_is_waiting() -> None:
    """Nothing waits after a flush."""
    stream = PickyStream()
    log = Log("info", "json", stream)
    log.info("tested")
    log.flush()
    assert len(stream.writes) == 1
    await asyncio.sleep(0)
    assert len(stream.writes) == 1


def test_line_outside_of_a_loop_is_written_at_once_with_those_a_loop_left() -> None:
    """A loop that ended before its turn came costs no line."""
    stream = PickyStream()
    log = Log("info", "json", stream)
    loop = asyncio.new_event_loop()

    async def stop_at_once() -> None:
        loop.stop()
        log.info("tested", number=0)

    loop.create_task(stop_at_once())  # noqa: RUF006 - it ends before anything could collect it
    loop.run_forever()
    loop.close()
    log.info("tested", number=1)
    assert [event["number"] for event in stream.events()] == [0, 1]


async def test_many_lines_are_written_in_pieces_that_a_pipe_takes_whole() -> None:
    """No write is longer than what a pipe takes as a whole, and each ends with a line."""
    stream = PickyStream()
    log = Log("info", "json", stream)
    for number in range(100):
        log.info("tested", number=number, text="x" * 300)
    log.info("tested", number=100, items=["y" * 1500] * 5)
    await asyncio.sleep(0)
    assert [event["number"] for event in stream.events()] == list(range(101))
    assert 5 < len(stream.writes) < 20
    assert all(write.endswith(b"\n") for write in stream.writes)
    assert all(len(write) <= PIPE_OCTETS for write in stream.writes)


async def test_reader_that_stalls_for_a_while_misses_nothing() -> None:
    """On a pipe that blocks, as a parent's mostly does: the loop goes on, and all lines arrive once it is read."""
    reading, writing = os.pipe()
    log = Log("info", "json", Output(writing))
    for number in range(1000):
        log.info("tested", number=number, text="x" * 200)
    await asyncio.sleep(0.01)  # the pipe holds a fourth of it; nothing here waits for the rest
    os.set_blocking(reading, False)
    got = b""
    for _ in range(1000):
        with contextlib.suppress(BlockingIOError):
            got += os.read(reading, 1 << 20)
        if got.count(b"\n") == 1000:
            break
        await asyncio.sleep(0.01)
    os.close(reading)
    os.close(writing)
    assert [json.loads(line)["number"] for line in got.splitlines()] == list(range(1000))


async def test_reader_that_stalls_for_good_costs_lines_and_nothing_else() -> None:
    """What waits for it is bounded; once it reads again, it is told how many lines it missed."""
    reading, writing = os.pipe()
    log = Log("info", "json", Output(writing))
    sent = 0
    for _ in range(80):
        for _ in range(100):
            log.info("tested", number=sent, text="x" * 1500)
            sent += 1
        await asyncio.sleep(0)
    os.set_blocking(reading, False)
    got = b""
    for _ in range(2000):
        with contextlib.suppress(BlockingIOError):
            got += os.read(reading, 1 << 20)
        if b"log_lines_dropped" in got:
            break
        log.info("tested", number=-1)
        await asyncio.sleep(0.01)
    os.close(reading)
    os.close(writing)
    events = [json.loads(line) for line in got.splitlines() if line.endswith(b"}")]
    kept = [event["number"] for event in events if event["event"] == "tested" and event["number"] >= 0]
    (dropped,) = [event["lines"] for event in events if event["event"] == "log_lines_dropped"]
    assert kept == list(range(len(kept)))
    assert 1000 < len(kept) < sent
    assert dropped >= sent - len(kept)


def test_end_of_the_program_writes_what_still_waits() -> None:
    """finish() gives a reader that is slow its last lines, and one that is gone a second at most."""
    reading, writing = os.pipe()
    log = Log("info", "json", Output(writing))

    async def tell() -> None:
        for number in range(1000):
            log.info("tested", number=number, text="x" * 200)
        await asyncio.sleep(0.01)

    asyncio.run(tell())
    got = b""
    with ThreadPoolExecutor(1) as pool, os.fdopen(reading, "rb") as stream:
        read = pool.submit(stream.read)
        log.finish()
        os.close(writing)
        got = read.result(30)
    assert len(got.splitlines()) == 1000


def test_file_takes_every_line(tmp_path: Path) -> None:
    """Standard output may be a file."""
    with (tmp_path / "log").open("wb") as file:
        log = Log("info", "json", Output(file.fileno()))
        for number in range(100):
            log.info("tested", number=number)
    assert len((tmp_path / "log").read_bytes().splitlines()) == 100


async def test_lines_of_other_threads_are_all_written() -> None:
    """Threads may log while the loop does, and no line is lost."""
    stream = PickyStream()
    log = Log("info", "json", stream)

    def tell() -> None:
        for number in range(500):
            log.info("tested", number=number)

    threads = [threading.Thread(target=tell) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(500):
        log.info("tested", number=number)
        await asyncio.sleep(0)
    for thread in threads:
        await asyncio.to_thread(thread.join, 30)
    log.flush()
    assert sorted(event["number"] for event in stream.events()) == sorted(list(range(500)) * 4)


LIBRARY = """
import logging, sys, warnings
from proxy.record.log import Log
log = Log("info", "json", open(1, "wb", buffering=0, closefd=False))
log.install()
log.install()
library = logging.getLogger("some.library")
library.info("not this")
library.warning("from %s\\nto %d", "a", 1)
library.error("bad arguments %d", "x")
try:
    1 / 0
except ZeroDivisionError:
    library.exception("failed")
warnings.warn("old", UserWarning)
"""


def test_installed_log_takes_what_libraries_say() -> None:
    """Warnings and errors of libraries become lines, once each, with traceback; nothing else reaches the terminal."""
    run = subprocess.run(
        [sys.executable, "-c", LIBRARY], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert run.stderr == ""
    first, second, third, fourth = [json.loads(line) for line in run.stdout.splitlines()]
    del first["ts"]
    assert first == {"level": "warning", "event": "library", "logger": "some.library", "message": "from a\nto 1"}
    assert (second["level"], second["message"]) == ("error", "bad arguments %d")
    assert (third["level"], third["message"]) == ("error", "failed")
    assert third["exc"].endswith("ZeroDivisionError: division by zero\n")
    assert (fourth["logger"], fourth["level"]) == ("py.warnings", "warning")
    assert "UserWarning: old" in fourth["message"]
