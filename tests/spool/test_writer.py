"""The writer alone: what goes into one commit, and what does not wait for one."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.spool import writer as module
from proxy.spool.store import StoreError
from proxy.spool.writer import Writer

LOAD = module._FEW + 1
TICK = module._REST_SECONDS / 20  # what passes with each look at the clock


class Rig:
    """
    A writer whose clock is ours.

    Attributes:
        commits: How many pieces of work each commit had.
        now: The time; it goes on a little whenever it is asked for.
        asked: How often that was.
    """

    def __init__(self, folder: Path) -> None:
        self.commits: list[int] = []
        self.now = 0.0
        self.asked = 0
        self._work = 0
        self._path = folder / "some.db"
        self.told: list[int] = []  # how many commits had ended whenever the loop was told that the disk is at work
        self.told_in_time = threading.Event()
        self.writer = Writer(self._connect, meanwhile=self._meanwhile)

    def _meanwhile(self) -> None:
        self.told.append(len(self.commits))
        self.told_in_time.set()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0)
        connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER)")
        connection.set_trace_callback(self._statement)
        return connection

    def _statement(self, text: str) -> None:
        if text.startswith("INSERT"):
            self._work += 1
        elif text == "COMMIT":
            if self._work >= LOAD:
                self.told_in_time.wait(5)
            self.commits.append(self._work)
            self._work = 0

    def clock(self) -> float:
        """Tell the time."""
        self.asked += 1
        self.now += TICK
        return self.now

    async def write(self) -> None:
        """Have a piece of work done, and wait for its commit."""
        await self.writer.do(lambda connection: connection.execute("INSERT INTO t VALUES (1)").rowcount)

    def rows(self) -> int:
        """Count what is on disk."""
        with sqlite3.connect(self._path) as connection:
            return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])

    async def write_during_a_commit(self, number: int) -> None:
        """Have so much done, all of which comes while the thread is busy."""
        begun, go_on = threading.Event(), threading.Event()

        def hold(_connection: sqlite3.Connection) -> None:
            begun.set()
            go_on.wait()

        held = asyncio.create_task(self.writer.do(hold))
        await asyncio.to_thread(begun.wait)
        written = [asyncio.create_task(self.write()) for _ in range(number)]
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(held, *written)

    async def write_one_by_one(self, number: int, seconds: float) -> None:
        """Have so much done that comes with as many turns of the loop, each of which is busy for so long."""
        written = []
        for _ in range(number):
            written.append(asyncio.create_task(self.write()))
            await asyncio.sleep(0)
            self.now += seconds
        await asyncio.gather(*written)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """A writer at work, under load: its last commit was a large one."""
    rig = Rig(tmp_path)
    monkeypatch.setattr(module, "monotonic", rig.clock)
    await rig.write_during_a_commit(LOAD)
    assert (rig.commits, rig.asked) == ([0, LOAD], 0)
    rig.commits.clear()
    yield rig
    await rig.writer.close()


async def test_under_load_a_commit_waits_until_the_loop_is_at_rest(rig: Rig) -> None:
    """What the loop takes in meanwhile goes into the same commit."""
    await rig.write_one_by_one(4, 2 * module._REST_SECONDS)
    assert rig.commits == [4]


async def test_a_moment_without_work_is_a_rest(rig: Rig) -> None:
    """A loop that comes round at once, again and again, has nothing to do: a commit begins, and need not be put off."""
    await rig.write()
    assert rig.commits == [1]
    assert rig.now < module._LONGEST_SECONDS / 10


async def test_a_commit_is_not_put_off_for_longer_than_it_may_be(rig: Rig) -> None:
    """A loop that never rests has its work committed all the same."""
    turns = 10
    await rig.write_one_by_one(3 * turns, module._LONGEST_SECONDS / turns)
    assert sum(rig.commits) == 3 * turns
    assert turns - 2 <= rig.commits[0] <= turns + 2


async def test_a_commit_is_not_put_off_when_there_is_enough(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much comes, there is a largest commit."""
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 10)
    await rig.write_one_by_one(11, 2 * module._REST_SECONDS)
    assert rig.commits == [10, 1]


async def test_more_than_fits_into_a_commit_goes_into_the_next(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left over is begun without anybody asking again."""
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 10)
    await rig.write_during_a_commit(25)
    assert rig.commits == [0, 10, 10, 5]


async def test_under_load_the_loop_hears_when_the_disk_is_at_work(rig: Rig) -> None:
    """It is told before the commit, not behind it, once for all whose work is in it; a few have nothing to wait for."""
    rig.told.clear()
    rig.told_in_time.clear()
    await rig.write_during_a_commit(LOAD)
    assert rig.told == [1]
    await rig.write_during_a_commit(LOAD - 1)
    assert (rig.commits, rig.told) == ([0, LOAD, 0, LOAD - 1], [1])


async def test_without_load_nothing_waits(rig: Rig) -> None:
    """One at a time is committed at once; only the first still hears of the load before it."""
    await rig.write()
    asked = rig.asked
    for _ in range(5):
        await rig.write()
    assert (rig.commits, rig.asked) == ([1] * 6, asked)


async def test_closing_finishes_what_waits(rig: Rig) -> None:
    """What was put off is committed before the thread ends."""
    written = [asyncio.create_task(rig.write()) for _ in range(3)]
    await asyncio.sleep(0)
    await rig.writer.close()
    await asyncio.gather(*written)
    assert (rig.commits, rig.rows()) == ([3], LOAD + 3)


def other(rig: Rig) -> sqlite3.Connection:
    """Take the database as another process does that writes to it."""
    connection = sqlite3.connect(rig._path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    return connection


async def test_who_writes_in_another_process_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often that takes a look: nothing fails, and nothing is lost."""
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 5:
            beside.execute("COMMIT")

    monkeypatch.setattr(module, "sleep", look)
    beside = other(rig)
    await rig.write()
    assert (rig.commits, len(looks)) == ([1], 5)
    beside.close()


async def test_who_writes_for_ever_costs_the_work_and_not_the_writer(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten seconds the caller is told; when the other one is gone, all is well again."""
    monkeypatch.setattr(module, "_BUSY_SECONDS", 50 * TICK)
    monkeypatch.setattr(module, "sleep", lambda _seconds: None)
    beside = other(rig)
    with pytest.raises(StoreError, match=r"^database is locked$"):
        await rig.write()
    assert rig.commits == []
    beside.execute("ROLLBACK")
    await rig.write()
    assert rig.commits == [1]
    beside.close()


async def test_no_transaction_costs_the_work_and_not_the_writer(tmp_path: Path) -> None:
    """Whatever kept it from beginning, memory for one, is told to who asked."""

    class Short(sqlite3.Connection):
        short = True

        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            if Short.short:
                raise MemoryError("none left")
            return super().execute(*arguments)

    writer = Writer(lambda: sqlite3.connect(tmp_path / "some.db", factory=Short, isolation_level=None))
    with pytest.raises(MemoryError, match=r"^none left$"):
        await writer.do(lambda _connection: None)
    Short.short = False
    assert await writer.do(lambda connection: connection.execute("SELECT 7").fetchone()) == (7,)
    await writer.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_closing_does_not_wait_for_a_thread_that_is_gone(tmp_path: Path) -> None:
    """Whatever ended it: the program must be able to end as well."""

    class Broken(sqlite3.Connection):
        def execute(self, *_arguments: object) -> sqlite3.Cursor:
            raise SystemExit  # which ends a thread, and says nothing

    writer = Writer(lambda: sqlite3.connect(tmp_path / "some.db", factory=Broken))
    never = asyncio.create_task(writer.do(lambda _connection: None))
    await asyncio.sleep(0)
    await writer.close()
    assert not never.done()
    never.cancel()
