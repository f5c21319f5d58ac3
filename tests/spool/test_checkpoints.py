"""The thread that moves what was committed: when it does, and that nothing depends on it."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.spool import checkpoints as module
from proxy.spool.checkpoints import Checkpoints
from proxy.spool.sqlite import DATABASE_FILE, SqliteStore
from tests.spool.contract import item

SECONDS = 30.0
CONTENT = b"x" * 5000


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - other threads and SQLite tell nobody
            await asyncio.sleep(0.01)


async def test_what_was_committed_is_moved_long_before_the_writer_would_have_to(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "spool")
    database = tmp_path / "spool" / DATABASE_FILE
    await store.add(item("first"), CONTENT, 0)
    await asyncio.gather(*[store.add(item(f"m{number}"), CONTENT, 0) for number in range(module._JOBS)])
    await _until(lambda: database.stat().st_size > module._JOBS * len(CONTENT))
    assert await store.content("first") == CONTENT
    await store.close()


async def test_little_traffic_is_left_to_the_writer() -> None:
    asked: list[str] = []

    def connect() -> sqlite3.Connection:
        asked.append("a connection")
        return sqlite3.connect(":memory:")

    checkpoints = Checkpoints(connect)
    for _ in range(module._JOBS - 1):
        checkpoints.committed(1)
    await checkpoints.close()
    assert asked == []


async def test_it_begins_anew_for_each_few_commits_whatever_came_of_the_last_time(tmp_path: Path) -> None:
    done: list[str] = []

    class Failing(sqlite3.Connection):
        """Has no room at first."""

        def execute(self, statement: str, /, *_parameters: object) -> sqlite3.Cursor:
            done.append(statement)
            if len(done) == 1:
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement)

    checkpoints = Checkpoints(lambda: sqlite3.connect(tmp_path / "some.db", factory=Failing))
    for number in range(1, 4):
        checkpoints.committed(module._JOBS)
        await _until(lambda number=number: len(done) == number)  # type: ignore[misc]
    await checkpoints.close()
    assert done == ["PRAGMA wal_checkpoint(PASSIVE)"] * 3


async def test_a_thread_that_cannot_be_started_costs_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a limit of threads, the writer goes on alone."""
    store = SqliteStore(tmp_path / "spool")
    database = tmp_path / "spool" / DATABASE_FILE
    tried: list[str] = []

    def start(thread: threading.Thread) -> None:
        tried.append(thread.name)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        await asyncio.gather(*[store.add(item(f"a{number}"), CONTENT, 0) for number in range(module._JOBS)])
        await store.add(item("after"), CONTENT, 0)
    assert tried == ["checkpoints"]
    await asyncio.gather(*[store.add(item(f"b{number}"), CONTENT, 0) for number in range(module._JOBS)])
    await _until(lambda: database.stat().st_size > module._JOBS * len(CONTENT))
    await store.close()


async def test_a_database_that_cannot_be_opened_again_is_left_to_the_writer() -> None:
    asked: list[str] = []

    def connect() -> sqlite3.Connection:
        asked.append("a connection")
        raise sqlite3.OperationalError("unable to open database file")

    checkpoints = Checkpoints(connect)
    checkpoints.committed(module._JOBS)
    await _until(lambda: bool(asked))
    checkpoints.committed(module._JOBS)
    await checkpoints.close()
    assert asked == ["a connection"]
