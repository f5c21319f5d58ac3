"""The writer thread alone: what goes into one commit, and what does not wait for one."""

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from proxy.spool import writer as module
from proxy.spool.writer import Writer

LOAD = module._FEW + 1


class Rig:
    """
    A writer whose waits for more are ours to fill.

    Attributes:
        commits: How many pieces of work each commit had.
        arriving: For each wait, how many pieces of work come during it; then none.
        waits: How many there were.
    """

    def __init__(self, folder: Path) -> None:
        self.commits: list[int] = []
        self.arriving: list[int] = []
        self.waits = 0
        self.sent: list[Future[None]] = []
        self._loop = asyncio.get_running_loop()
        self._work = 0
        self.writer = Writer(lambda: self._connect(folder / "some.db"))

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("CREATE TABLE t (n INTEGER)")
        connection.set_trace_callback(self._statement)
        return connection

    def _statement(self, text: str) -> None:
        if text.startswith("INSERT"):
            self._work += 1
        elif text == "COMMIT":
            self.commits.append(self._work)
            self._work = 0

    def wait(self, _seconds: float) -> None:
        """Stand in for the thread's sleep: have work arrive, and be in its queue."""
        self.waits += 1
        number = self.arriving.pop(0) if self.arriving else 0
        before = self.writer._jobs.qsize()
        self.sent += [asyncio.run_coroutine_threadsafe(self.write(), self._loop) for _ in range(number)]
        while self.writer._jobs.qsize() < before + number:
            pass

    async def write(self) -> None:
        """Give the thread a piece of work, and wait for its commit."""
        await self.writer.do(lambda connection: connection.execute("INSERT INTO t VALUES (1)").rowcount)

    async def write_at_once(self, number: int) -> None:
        """Give it so many, all of which are in its queue before it looks."""
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

    async def until_all_is_written(self) -> None:
        """Wait for what arrived in waits, too."""
        await asyncio.gather(*map(asyncio.wrap_future, self.sent))


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """A writer that runs, and had one large commit already."""
    rig = Rig(tmp_path)
    monkeypatch.setattr(module, "sleep", rig.wait)
    monkeypatch.setattr(module, "monotonic", lambda: 0.0)
    await rig.write_at_once(LOAD)
    assert (rig.commits, rig.waits) == ([0, LOAD], 0)
    rig.commits.clear()
    yield rig
    await rig.writer.close()


async def test_under_load_a_commit_waits_as_long_as_more_comes(rig: Rig) -> None:
    """All of it is in one commit, and the first moment without more ends the wait."""
    rig.arriving = [2, 1, 0, 5]
    await rig.write()
    await rig.until_all_is_written()
    assert (rig.commits, rig.waits) == ([4], 3)


async def test_wait_ends_when_there_is_enough(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much comes, there is a largest commit."""
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 10)
    rig.arriving = [1] * 10
    await rig.write()
    await rig.until_all_is_written()
    assert rig.commits == [10, 1]


async def test_wait_ends_when_time_is_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes slowly and without end is not waited for."""
    clock = itertools.chain([0.0, 0.0, 0.0], itertools.repeat(module._LONGEST_SECONDS))
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    rig.arriving = [1] * 10
    await rig.write()
    await rig.until_all_is_written()
    assert (rig.commits, rig.waits) == ([3], 2)


async def test_without_load_nothing_waits(rig: Rig) -> None:
    """One message at a time is committed at once; only the first still hears of the load before it."""
    for _ in range(5):
        await rig.write()
    assert (rig.commits, rig.waits) == ([1] * 5, 1)
