"""The embedded store: the contract, and what only it can get wrong."""

import asyncio
import errno
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from proxy.spool import schema
from proxy.spool.sqlite import _OVERDUE, INLINE_OCTETS, SqliteStore
from proxy.spool.store import DamagedError, Store, StoreError, StoreFullError
from tests.spool.contract import *  # noqa: F403 - its tests are this store's
from tests.spool.contract import T0, Beside, Reopen, delivered, item, notice

ROOT = Path(__file__).parents[2]
LARGE = b"z" * (INLINE_OCTETS + 1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """An empty store."""
    opened = SqliteStore(tmp_path / "spool")
    yield opened
    await opened.close()


@pytest.fixture
async def reopen(tmp_path: Path) -> AsyncIterator[Reopen]:
    """What a crash leaves: the files as they are at that moment, opened by another process, so to say."""
    opened: list[SqliteStore] = []

    async def again() -> Store:
        shutil.copytree(tmp_path / "spool", tmp_path / "after")
        opened.append(SqliteStore(tmp_path / "after"))
        return opened[-1]

    yield again
    for each in opened:
        await each.close()


@pytest.fixture
async def beside(tmp_path: Path) -> AsyncIterator[Beside]:
    """The same folder, opened once more."""
    opened: list[SqliteStore] = []

    async def again() -> Store:
        opened.append(SqliteStore(tmp_path / "spool"))
        return opened[-1]

    yield again
    for each in opened:
        await each.close()


async def test_content_that_changed_on_disk_is_damage(store: SqliteStore, tmp_path: Path) -> None:
    """A file that is gone, short or other than it was is never sent."""
    for name in ("gone", "short", "other"):
        await store.add(item(name), LARGE, 0)
    folder = tmp_path / "spool" / "content"
    (folder / "gone").unlink()
    (folder / "short").write_bytes(LARGE[:100])
    (folder / "other").write_bytes(LARGE[:-1] + b"y")
    with pytest.raises(DamagedError, match="cannot be read: No such file"):
        await store.content("gone")
    for name in ("short", "other"):
        with pytest.raises(DamagedError, match="not what was kept"):
            await store.content(name)


async def test_files_left_over_from_a_crash_are_removed(store: SqliteStore, tmp_path: Path) -> None:
    """A content file without a row was never answered 250."""
    await store.add(item("kept"), LARGE, 0)
    (tmp_path / "spool" / "content" / "orphan").write_bytes(b"half")
    assert await store.recover() == 1
    assert [path.name for path in (tmp_path / "spool" / "content").iterdir()] == ["kept"]


async def test_row_that_cannot_be_read_is_set_aside_and_costs_no_other(store: SqliteStore, tmp_path: Path) -> None:
    """One bad row must not stand in the way of the whole queue; it is seen in the list and in its history."""
    for name in ("bad", "good"):
        await store.add(item(name), b"content", 0)
    with sqlite3.connect(tmp_path / "spool" / "spool.db") as connection:
        connection.execute("UPDATE message SET layout = '{' WHERE id = 'bad'")
    connection.close()
    assert [each.item.id for each in await store.lease(T0, T0 + 60, 10)] == ["good"]
    assert (await store.depth()).set_aside == 1
    assert {each.id for each in await store.queue(10)} == {"bad", "good"}
    history = await store.history("bad")
    assert history is not None
    assert history.events[-1].kind == "set_aside"


async def test_content_that_cannot_be_read_now_is_no_damage(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, say, are over some time; what was set aside would stay so."""
    await store.add(item("m1"), LARGE, 0)

    def read_bytes(_path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(StoreError, match="cannot be read now: Too many open files") as caught:
            await store.content("m1")
    assert not isinstance(caught.value, DamagedError)
    assert await store.content("m1") == LARGE


async def test_id_that_exists_leaves_the_file_of_its_message_alone(store: SqliteStore) -> None:
    """Whatever came of it, the first one got 250."""
    await store.add(item("m1"), LARGE, 0)
    with pytest.raises(StoreError):
        await store.add(item("m1"), b"y" * len(LARGE), 0)
    assert await store.content("m1") == LARGE


async def test_change_that_fails_leaves_no_file_of_its_notices(store: SqliteStore, tmp_path: Path) -> None:
    """Nobody would ever read it, and where there is no room it would take some."""
    await store.add(item("m1"), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    told = [notice("n1", "m1"), notice("m1", "m1")]  # an id that exists
    told[0] = attrs.evolve(told[0], content=LARGE)
    with pytest.raises(StoreError):
        await store.settle([delivered("m1")], T0, told)
    assert list((tmp_path / "spool" / "content").iterdir()) == []
    await store.settle([delivered("m1")], T0, told[:1])
    assert await store.content("n1") == LARGE


async def test_owners_leave_nothing_behind(store: SqliteStore, beside: Beside, tmp_path: Path) -> None:
    """The files of those that are gone go, too, also of those that held nothing."""
    folder = tmp_path / "spool" / "owners"
    await store.add(item("m1"), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    (folder / "4711-crashed").write_text("")
    other = await beside()
    assert await other.release(T0) == 0
    assert len(list(folder.iterdir())) == 1
    await store.close()
    assert list(folder.iterdir()) == []


async def test_sweep_removes_the_file_of_a_large_content(store: SqliteStore, tmp_path: Path) -> None:
    """What is forgotten takes no room."""
    await store.add(item("m1"), LARGE, 0)
    await store.settle([delivered("m1")], T0)
    await store.sweep(T0 + 10, 5)
    assert list((tmp_path / "spool" / "content").iterdir()) == []


async def test_only_the_owner_may_read(store: SqliteStore, tmp_path: Path) -> None:
    """Mail is private."""
    await store.add(item("m1"), LARGE, 0)
    folder = tmp_path / "spool"
    for path in (folder / "spool.db", folder / "content", folder / "content" / "m1"):
        assert path.stat().st_mode & 0o077 == 0


async def test_store_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """An older program must not write into what it does not understand."""
    await SqliteStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "spool.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="format 99, and this program knows formats up to 2: update it"):
        SqliteStore(tmp_path)


async def test_store_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    """What it has is kept, and all that came later works on it."""
    folder = tmp_path / "spool"
    folder.mkdir()
    connection = sqlite3.connect(folder / "spool.db")
    connection.executescript(f"{schema._STEPS[0]} PRAGMA user_version = 1;")
    connection.execute(
        "INSERT INTO message (id, received_at, reverse_path, login, provider, subject, size_octets, eight_bit, "
        "smtputf8, not_before, notice, layout, failed_steps, in_file, digest) VALUES "
        "('m1', ?, '', '', '', '', 5, 0, 0, 0, 0, '{\"head_octets\": 5, \"slots\": []}', '[]', 0, ?)",
        (T0, hashlib.sha256(b"hello").digest()),
    )
    connection.execute("INSERT INTO content VALUES ('m1', CAST('hello' AS BLOB))")
    connection.execute(
        "INSERT INTO recipient (message_id, number, address, destination, state, attempts, next_attempt_at, reply, "
        "remote_host) VALUES ('m1', 0, 'x@a.example', 'a.example', 'pending', 3, ?, '', '')",
        (T0,),
    )
    connection.execute("INSERT INTO destination VALUES ('a.example', ?)", (T0,))
    connection.commit()
    connection.close()
    for _ in range(2):
        store = SqliteStore(folder)
        assert await store.content("m1") == b"hello"
        await store.close()
    store = SqliteStore(folder)
    (leased,) = await store.lease(T0, T0 + 60, 10)
    assert leased.item.recipients[0].attempts == 4
    assert (await store.remove("m1", "by hand", T0)).under_way == 1
    assert await store.withdrawn() == [("m1", 0)]
    await store.close()
    connection = sqlite3.connect(folder / "spool.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    connection.close()


@pytest.mark.parametrize("version", range(schema.VERSION))
def test_two_that_bring_a_store_up_to_date_at_once_both_can_use_it(tmp_path: Path, version: int) -> None:
    """A command beside the first start behind an update, or the very first: whoever comes second finds it done."""
    first, second = [sqlite3.connect(tmp_path / "spool.db", isolation_level=None) for _ in range(2)]
    first.executescript(f"{''.join(schema._STEPS[:version])} PRAGMA user_version = {version};")
    begun: list[str] = []

    def overtake(statement: str) -> None:
        if statement.startswith("BEGIN") and not begun:
            begun.append(statement)
            schema.prepare(second)

    first.set_trace_callback(overtake)
    schema.prepare(first)
    assert begun
    for connection in (first, second):
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        connection.execute("SELECT count(*) FROM message")
        connection.close()


def test_store_that_another_process_switches_to_its_log_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite gives up at once there, whatever it was told about waiting."""
    other = sqlite3.connect(tmp_path / "spool.db", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE other (x)")
    other.execute("BEGIN IMMEDIATE")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        other.execute("COMMIT")

    monkeypatch.setattr("proxy.spool.sqlite.sleep", sleep)
    store = SqliteStore(tmp_path)
    other.close()
    assert waited
    asyncio.run(store.close())


async def test_adds_that_come_together_are_synced_together(store: SqliteStore) -> None:
    """A commit costs a sync whatever is in it, so what came during the last one shares the next."""
    commits: list[int] = []
    await store._writer.do(
        lambda connection: connection.set_trace_callback(lambda sql: commits.append(sql == "COMMIT"))
    )
    await asyncio.gather(*(store.add(item(f"m{number}"), b"content", 0) for number in range(200)))
    assert sum(commits) < 20
    assert (await store.depth()).pending == 200


async def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """The reason is the system's."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        SqliteStore(tmp_path / "file" / "spool")


async def test_other_process_may_look_while_this_one_writes(store: SqliteStore, tmp_path: Path) -> None:
    """The command line reads and changes the queue of a running proxy."""
    other = SqliteStore(tmp_path / "spool")
    await asyncio.gather(*(store.add(item(f"m{number}"), b"content", 0) for number in range(50)))
    assert (await other.depth()).pending == 50
    assert await other.retry(None, T0) == 50
    assert len(await store.lease(T0, T0 + 60, 100)) == 50
    await other.close()


async def test_looking_for_what_is_overdue_does_not_read_the_whole_queue(store: SqliteStore, tmp_path: Path) -> None:
    """It is done every few seconds, above all when a destination is out of order and everything waits for it."""
    await store.add(item("m1"), b"content", 0)
    with sqlite3.connect(tmp_path / "spool" / "spool.db") as connection:
        plan = [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {_OVERDUE}", (0, 0, 0, "[]", 1))]
    connection.close()
    assert plan[0] == "SEARCH m USING INDEX message_open (received_at<?)"
    assert plan[1].startswith("SEARCH r USING PRIMARY KEY (message_id=?")
    assert not [line for line in plan if "recipient_due" in line or "ORDER BY" in line]


async def test_full_disk_refuses_and_goes_on_when_there_is_room(store: SqliteStore) -> None:
    """No room is told as such, keeps nothing, and is over as soon as it is over."""

    async def limit(pages: int) -> None:
        await store._writer.do(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())

    await limit(80)
    with pytest.raises(StoreFullError):
        for number in range(100):
            await store.add(item(f"m{number}"), b"x" * 10_000, 0)
    kept = (await store.depth()).pending
    await limit(1_000_000)
    await store.add(item("after"), b"x" * 10_000, 0)
    assert (await store.depth()).pending == kept + 1


ADD_FIVE = """
import asyncio, os, sys
from pathlib import Path
from proxy.spool.sqlite import SqliteStore
from tests.spool.contract import item
async def main():
    store = SqliteStore(Path(sys.argv[1]))
    for number in range(5):
        await store.add(item(f'm{number}'), b'x' * (10 if number % 2 else 300_000), 0)
        os.write(1, f'told {number}\\n'.encode())
    await store.close()
asyncio.run(main())
"""


def test_every_message_is_synced_before_it_is_told(tmp_path: Path) -> None:
    """Seen from outside: between two answers of the store there is a sync of its files."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=fsync,fdatasync,write", sys.executable, "-c", ADD_FIVE]
    run = subprocess.run(
        [*command, str(tmp_path / "spool")], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.stdout.splitlines() == [f"told {number}" for number in range(5)], run.stderr
    syncs = told = 0
    for line in trace.read_text().splitlines():
        if "sync(" in line:
            syncs += 1
        elif 'write(1, "told ' in line:
            assert syncs >= (3 if told % 2 == 0 else 1)  # the file and its folder, too, where there is one
            syncs = 0
            told += 1
    assert told == 5


ADD_FOR_EVER = """
import asyncio, os, sys
from pathlib import Path
from proxy.spool.sqlite import SqliteStore
from tests.spool.contract import item
async def main():
    store = SqliteStore(Path(sys.argv[1]))
    async def add(n):
        for k in range(10_000):
            name = f'{sys.argv[2]}-{n}-{k}'
            await store.add(item(name), name.encode() * (30_000 if k % 7 == 0 else 1), 0)
            os.write(1, f'{name}\\n'.encode())
    await asyncio.gather(*(add(n) for n in range(20)))
asyncio.run(main())
"""


def test_process_killed_at_any_moment_loses_nothing_it_told(tmp_path: Path) -> None:
    """kill -9 while twenty writers add: each id that was told is there, with its content whole."""
    told: list[str] = []
    for run in range(3):
        command = [sys.executable, "-c", ADD_FOR_EVER, str(tmp_path / "spool"), f"run{run}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            if process.stdout is None:
                raise AssertionError(command)
            for _ in range(50 + 97 * run):
                told.append(process.stdout.readline().strip())
            process.kill()
            told += process.stdout.read().split("\n")[:-1]
    assert len(told) > 400

    async def check() -> None:
        store = SqliteStore(tmp_path / "spool")
        await store.recover()
        for name in told:
            content = await store.content(name)
            assert content == name.encode() * (len(content) // len(name))
        assert (await store.depth()).pending >= len(told)
        await store.close()

    asyncio.run(check())
