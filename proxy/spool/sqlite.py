"""
The embedded store: SQLite in ``data_dir``, and a synced file for each large content.

Durable means WAL with ``synchronous=FULL``: SQLite syncs its log at each commit. The file of a large content is synced,
and its folder, before the commit that names it; a file that no row names is left over from a crash, and is removed at
the next start. Files are written and removed inside a transaction, so no other process is between a file and its row.

Who leases is known by a file in ``owners`` with a lock on it (``owner.py``).

Longer than other modules: all SQL stands here, so that a change of the schema is made, and another store is written, by
reading one file.

Source: SQLite, "Write-Ahead Logging" and "PRAGMA synchronous".
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import attrs
from attrs import frozen

from proxy.spool import schema
from proxy.spool.checkpoints import Checkpoints
from proxy.spool.item import (
    UNGROUPED,
    Change,
    Event,
    Figures,
    Item,
    Layout,
    Notice,
    Recipient,
    Removal,
    Slot,
    State,
    Suppression,
)
from proxy.spool.owner import Owners
from proxy.spool.store import DamagedError, Depth, History, Leased, StoreError
from proxy.spool.writer import Writer

SPOOL_FOLDER = "spool"
"""Where in ``data_dir`` the store is."""

DATABASE_FILE = "spool.db"
"""Where in its folder the store keeps all but large contents: it is there once the store was opened."""

INLINE_OCTETS = 262_144
_NEVER = 1e18
_DAY_SECONDS = 86_400
_HASHED_OCTETS = 2000
_MOST_VALUES = 500  # in one statement; some builds of SQLite know no more than 999
_BUSY_MILLISECONDS = 10_000
_ROWS = (32, 16, 8)  # in one statement, each with up to 17 values; and any smaller number
_LOG_PAGES = 4000  # 16 MB: pages that change with every commit go from the log into the file once for so many
_ITEM = "id, received_at, reverse_path, grp, login, provider, subject, size_octets, eight_bit, smtputf8, not_before, "
_ITEM += "notice, layout, failed_steps"
_READ = f"{_ITEM}, set_aside"
# By the age of messages, and not by destination: one that is out of order may have all the queue waiting for it. Of
# messages that are old enough there are few, since they are given up; those set aside are passed over.
_OVERDUE = (
    "SELECT r.message_id, r.number, r.address, r.destination, r.state, r.attempts, r.next_attempt_at, "
    "r.reply, r.remote_host FROM message m CROSS JOIN recipient r ON r.message_id = m.id "
    "WHERE m.final_at IS NULL AND m.set_aside IS NULL AND m.received_at <= ? AND m.not_before <= ? "
    "AND r.state = 'pending' AND (r.owner = '' OR r.next_attempt_at <= ?) "
    "AND r.destination IN (SELECT value FROM json_each(?)) ORDER BY m.received_at LIMIT ?"
)
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO})  # of a file: no later time will mend it
_COUNTED = {"delivered": "delivered", "deferred": "deferred", "bounced": "bounced", "suppressed": "suppressed"}
_FIGURES = tuple(field.name for field in attrs.fields(Figures) if field.name not in ("day", "group"))


class SqliteStore:
    """
    The store.

    Args:
        folder: Is made where it does not exist; nobody else may read it.
        meanwhile: Called in the event loop when, under load, the disk has to be waited for.

    Raises:
        StoreError: It cannot be opened, or is of a later version.
    """

    def __init__(self, folder: Path, meanwhile: Callable[[], None] | None = None) -> None:
        self._folder = folder
        self._contents = folder / "content"
        self._owners = Owners(folder / "owners")
        self._checkpoints = Checkpoints(self._open)
        self._writer = Writer(self._connect, self._checkpoints.committed, meanwhile)

    def _connect(self) -> sqlite3.Connection:
        if not self._contents.is_dir():
            self._contents.mkdir(mode=0o700, parents=True, exist_ok=True)
            for each in (self._folder, self._folder.parent, self._folder.parent.parent):
                with contextlib.suppress(PermissionError):  # one that is not ours was there before
                    _sync_folder(each)
        connection = self._open()
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
        _use_log(connection)
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        schema.prepare(connection)
        connection.execute("PRAGMA busy_timeout = 0")  # from here on the writer waits, at the beginning of transactions
        (self._folder / DATABASE_FILE).chmod(0o600)
        return connection

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._folder / DATABASE_FILE, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    async def add(self, item: Item, content: bytes, lease_until: float) -> frozenset[int]:
        kept = _Kept(item, content, lease_until)
        try:
            return await self._writer.do_together(self._add_all, kept)
        except StoreError:
            self._forget([kept])
            raise

    def _forget(self, kept: Iterable["_Kept"]) -> None:
        """Remove files of what was not kept: where there is no room, what nobody will ever read must not take any."""
        for each in kept:
            if each.written:
                self._path(each.item.id).unlink(missing_ok=True)

    def _add_all(self, connection: sqlite3.Connection, new: list["_Kept"]) -> list[frozenset[int]]:
        """In a transaction: insert messages; gives the numbers of the suppressed recipients of each."""
        # First the rows, which an id that exists refuses: its file must stay as it is.
        suppressed = _insert_all(connection, new, self._owners.own() if any(each.lease_until for each in new) else "")
        for kept in new:
            if kept.in_file:
                kept.written = True
                self._write_content(kept.item.id, kept.content)
        return suppressed

    async def lease(
        self, now: float, lease_until: float, limit: int, without: Collection[str] = (), limit_each: int | None = None
    ) -> list[Leased]:
        left_alone = frozenset(without)

        def work(connection: sqlite3.Connection) -> list[Leased]:
            due = _due_destinations(connection, now, limit, left_alone)
            if not due:
                return []
            return _lease(connection, now, lease_until, limit, due, limit_each or limit, self._owners.own())

        return await self._writer.do(work)

    async def overdue(
        self, now: float, lease_until: float, limit: int, destinations: Collection[str], before: float
    ) -> list[Leased]:
        names = json.dumps(list(destinations))

        def work(connection: sqlite3.Connection) -> list[Leased]:
            rows = connection.execute(_OVERDUE, (before, before, now, names, limit)).fetchall()
            if not rows:
                return []
            _mark(connection, rows, lease_until, self._owners.own())
            for name in {row[3] for row in rows}:
                _refresh(connection, name)
            return _leased(connection, rows, now)

        return await self._writer.do(work)

    async def content(self, message_id: str) -> bytes:
        def work(connection: sqlite3.Connection) -> tuple[bytes | None, bytes, bool] | None:
            found: tuple[bytes | None, bytes, bool] | None = connection.execute(
                "SELECT c.octets, m.digest, m.in_file FROM message m LEFT JOIN content c ON c.message_id = m.id "
                "WHERE m.id = ?",
                (message_id,),
            ).fetchone()
            return found

        row = await self._writer.do(work)
        if row is None:
            raise DamagedError("the message is not in the store")
        content, digest, in_file = row
        if in_file:
            return await asyncio.to_thread(_read_content, self._path(message_id), digest)
        if content is None:
            raise DamagedError("its content is gone")
        return _intact(content, digest)

    async def settle(
        self,
        changes: Sequence[Change],
        now: float,
        notices: Sequence[Notice] = (),
        suppressions: Sequence[Suppression] = (),
    ) -> list[Notice]:
        settled = _Settled(changes, now, notices, suppressions)
        try:
            return await self._writer.do_together(self._settle_all, settled)
        except StoreError:
            self._forget(settled.kept)
            raise

    def _settle_all(self, connection: sqlite3.Connection, settled: list["_Settled"]) -> list[list[Notice]]:
        """In a transaction: write what attempts brought; gives the notices of each that were kept."""
        told_of: list[list[Notice]] = []
        for each, changed in zip(settled, _change_all(connection, settled), strict=True):
            for entry in each.suppressions:
                _suppress(connection, entry)
            told = []
            for notice in each.notices:
                if notice.about in changed and not _told(connection, notice):
                    each.kept.append(_Kept(notice.item, notice.content))
                    self._add_all(connection, each.kept[-1:])
                    _write_event(connection, notice.about, notice.event)
                    told.append(notice)
            told_of.append(told)
        return told_of

    async def set_aside(self, message_id: str, reason: str, now: float, numbers: Collection[int]) -> None:
        await self._writer.do(lambda connection: _set_aside(connection, message_id, reason, now, numbers))

    async def remove(self, message_id: str, reason: str, now: float) -> Removal:
        return await self._writer.do(lambda connection: _remove(connection, message_id, reason, now))

    async def withdrawn(self) -> list[tuple[str, int]]:
        return await self._writer.do(
            lambda connection: connection.execute(
                "SELECT message_id, number FROM recipient WHERE owner = ? AND state = 'removed' AND owner <> ''",
                (self._owners.name,),
            ).fetchall()
        )

    async def let_go(self, removed: Sequence[tuple[str, int]]) -> None:
        await self._writer.do(lambda connection: _let_go(connection, removed))

    async def under_way(self, message_id: str) -> int:
        def work(connection: sqlite3.Connection) -> int:
            (count,) = connection.execute(
                "SELECT count(*) FROM recipient WHERE message_id = ? AND state = 'removed' AND owner <> ''",
                (message_id,),
            ).fetchone()
            return int(count)

        return await self._writer.do(work)

    async def hit(self, kind: str, message_id: str, recipient: int, target: str, at: float) -> bool:
        if kind not in ("opened", "clicked"):
            raise ValueError(kind)

        def work(connection: sqlite3.Connection) -> bool:
            row = connection.execute(
                f"SELECT r.{kind}, m.grp FROM recipient r JOIN message m ON m.id = r.message_id "  # noqa: S608
                "WHERE r.message_id = ? AND r.number = ?",
                (message_id, recipient),
            ).fetchone()
            if row is None:
                return False
            connection.execute(
                f"UPDATE recipient SET {kind} = {kind} + 1 WHERE message_id = ? AND number = ?",  # noqa: S608
                (message_id, recipient),
            )
            _write_event(connection, message_id, Event(at, kind, recipient, target))  # type: ignore[arg-type]
            counts = _Counts()
            counts.add(at, row[1], f"{kind}_total", 1)
            counts.add(at, row[1], kind, 0 if row[0] else 1)
            counts.write(connection)
            return True

        return await self._writer.do(work)

    async def note(self, message_id: str, event: Event) -> None:
        await self._writer.do(lambda connection: _write_event(connection, message_id, event))

    async def suppressed(self, addresses: Collection[str]) -> frozenset[str]:
        by_key = {address.lower(): address for address in addresses}
        marks = ",".join("?" * len(by_key))

        def work(connection: sqlite3.Connection) -> frozenset[str]:
            rows = connection.execute(
                f"SELECT address FROM suppression WHERE address IN ({marks})",  # noqa: S608
                tuple(by_key),
            )
            return frozenset(by_key[address] for (address,) in rows)

        return await self._writer.do(work)

    async def suppress(self, address: str, reason: str, now: float) -> None:
        await self._writer.do(lambda connection: _suppress(connection, Suppression(address, now, reason)))

    async def unsuppress(self, address: str) -> bool:
        return await self._writer.do(
            lambda connection: bool(
                connection.execute("DELETE FROM suppression WHERE address = ?", (address.lower(),)).rowcount
            )
        )

    async def suppressions(self) -> list[Suppression]:
        return await self._writer.do(
            lambda connection: [
                Suppression(*row)
                for row in connection.execute("SELECT address, since, reason FROM suppression ORDER BY since DESC")
            ]
        )

    async def depth(self) -> Depth:
        def work(connection: sqlite3.Connection) -> Depth:
            (pending,) = connection.execute(
                "SELECT count(*) FROM recipient WHERE state = 'pending' AND next_attempt_at < ?", (_NEVER,)
            ).fetchone()
            # Each reads one end of an index: the whole queue would take as long as it is.
            oldest = [
                at
                for kind, column in (("not_before = 0", "received_at"), ("not_before > 0", "not_before"))
                for (at,) in connection.execute(
                    f"SELECT {column} FROM message WHERE final_at IS NULL AND set_aside IS NULL "  # noqa: S608
                    f"AND {kind} ORDER BY {column} LIMIT 1"
                )
            ]
            (aside,) = connection.execute(
                "SELECT count(*) FROM message WHERE set_aside IS NOT NULL AND final_at IS NULL"
            ).fetchone()
            return Depth(pending, min(oldest, default=0.0), aside)

        return await self._writer.do(work)

    async def queue(self, limit: int) -> list[Item]:
        def work(connection: sqlite3.Connection) -> list[Item]:
            rows = connection.execute(
                f"SELECT {_READ} FROM message WHERE final_at IS NULL ORDER BY received_at LIMIT ?",  # noqa: S608
                (limit,),
            ).fetchall()
            return [_readable(row, _recipients(connection, row[0], pending=True)) for row in rows]

        return await self._writer.do(work)

    async def history(self, message_id: str) -> History | None:
        def work(connection: sqlite3.Connection) -> History | None:
            row = connection.execute(
                f"SELECT {_READ} FROM message WHERE id = ?",  # noqa: S608
                (message_id,),
            ).fetchone()
            if row is None:
                return None
            events = connection.execute(
                "SELECT at, kind, recipient, detail FROM event WHERE message_id = ? ORDER BY at, rowid", (message_id,)
            )
            item = _readable(row, _recipients(connection, message_id, pending=False))
            told = [Event(*event) for event in events if event[1] != "received"]  # as older programs wrote it
            return History(item, (Event(item.received_at, "received", None, f"{item.size_octets} octets"), *told))

        return await self._writer.do(work)

    async def retry(self, message_id: str | None, now: float) -> int:
        def work(connection: sqlite3.Connection) -> int:
            which, parameters = ("AND message_id = ?", (message_id,)) if message_id else ("", ())
            if message_id:
                connection.execute("UPDATE message SET set_aside = NULL WHERE id = ?", (message_id,))
            rows = connection.execute(
                "SELECT message_id, destination, count(*) FROM recipient r JOIN message m ON m.id = r.message_id "  # noqa: S608
                f"WHERE r.state = 'pending' AND m.set_aside IS NULL {which} GROUP BY message_id, destination",
                parameters,
            ).fetchall()
            changed: set[str] = set()
            for each, destination, _ in rows:
                updated = connection.execute(
                    "UPDATE recipient SET next_attempt_at = ? WHERE message_id = ? AND destination = ? "
                    "AND state = 'pending' AND owner = ''",  # what is leased is being attempted
                    (now, each, destination),
                )
                if updated.rowcount:
                    changed.add(each)
                    _due(connection, destination, now)
            for each in changed:
                _write_event(connection, each, Event(now, "retried"))
            return sum(row[2] for row in rows)

        return await self._writer.do(work)

    async def report(self, since_day: str = "", group: str | None = None) -> list[Figures]:
        def work(connection: sqlite3.Connection) -> list[Figures]:
            found: dict[tuple[str, str], dict[str, int]] = {}
            rows = connection.execute(
                "SELECT day, grp, kind, n FROM figures WHERE day >= ? AND (? IS NULL OR grp = ?) ORDER BY day, grp",
                (since_day, group, group),
            )
            for day, name, kind, number in rows:
                found.setdefault((day, name), {})[kind] = number
            return [
                Figures(day, name, **{kind: counts.get(kind, 0) for kind in _FIGURES})
                for (day, name), counts in found.items()
            ]

        return await self._writer.do(work)

    async def sweep(self, now: float, content_seconds: float) -> int:
        def work(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute(
                "SELECT id FROM message WHERE final_at < ? LIMIT 1000", (now - content_seconds,)
            ).fetchall()
            for (message_id,) in rows:
                for table in ("event", "recipient", "content"):
                    connection.execute(f"DELETE FROM {table} WHERE message_id = ?", (message_id,))  # noqa: S608
                connection.execute("DELETE FROM message WHERE id = ?", (message_id,))
            return [message_id for (message_id,) in rows]

        gone = await self._writer.do(work)
        for message_id in gone:  # only after the commit: a row that names a file that is gone would be damage
            self._path(message_id).unlink(missing_ok=True)
        return len(gone)

    async def recover(self) -> int:
        """Remove content files that no message names, left over from a crash; gives their number."""

        def work(connection: sqlite3.Connection) -> int:
            named = {message_id for (message_id,) in connection.execute("SELECT id FROM message WHERE in_file")}
            left_over = [path for path in self._contents.iterdir() if path.is_file() and path.name not in named]
            for path in left_over:
                path.unlink(missing_ok=True)
            return len(left_over)

        return await self._writer.do(work)

    async def release(self, now: float) -> int:
        def work(connection: sqlite3.Connection) -> int:
            known = {owner for (owner,) in connection.execute("SELECT DISTINCT owner FROM recipient WHERE owner <> ''")}
            changed = 0
            for owner in self._owners.gone(known):
                rows = connection.execute(
                    "SELECT DISTINCT destination FROM recipient WHERE owner = ? AND owner <> '' AND state = 'pending'",
                    (owner,),
                ).fetchall()
                changed += connection.execute(
                    "UPDATE recipient SET owner = '', next_attempt_at = CASE "
                    "WHEN (SELECT set_aside FROM message WHERE id = message_id) IS NULL THEN min(next_attempt_at, ?) "
                    "ELSE ? END WHERE owner = ? AND owner <> '' AND state = 'pending'",
                    (now, _NEVER, owner),
                ).rowcount
                connection.execute("UPDATE recipient SET owner = '' WHERE owner = ? AND owner <> ''", (owner,))
                for (destination,) in rows:
                    _refresh(connection, destination)
            return changed

        return await self._writer.do(work)

    async def redirect(self, fits: Callable[[str], bool], destination_of: Callable[[str], str]) -> int:
        def work(connection: sqlite3.Connection) -> int:
            known = [name for (name,) in connection.execute("SELECT name FROM destination")]
            unfit = [name for name in known if not fits(name)]
            changed: set[str] = set(unfit)
            count = 0
            for name in unfit:
                rows = connection.execute(
                    "SELECT message_id, number, address FROM recipient WHERE destination = ? AND state = 'pending'",
                    (name,),
                ).fetchall()
                updates = [(destination_of(address), message_id, number) for message_id, number, address in rows]
                connection.executemany(
                    "UPDATE recipient SET destination = ? WHERE message_id = ? AND number = ?", updates
                )
                changed.update(destination for destination, _, _ in updates)
                count += len(updates)
            for name in changed:
                _refresh(connection, name)
            return count

        return await self._writer.do(work)

    async def close(self) -> None:
        await self._writer.close()
        await self._checkpoints.close()
        self._owners.close()

    def _path(self, message_id: str) -> Path:
        return self._contents / message_id

    def _write_content(self, message_id: str, content: bytes) -> None:
        path = self._path(message_id)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        os.close(descriptor)
        _sync_folder(self._contents)


class _Kept:
    """What is to be inserted, see ``Store.add``; ``written`` once there may be a file of it."""

    def __init__(self, item: Item, content: bytes, lease_until: float = 0.0) -> None:
        self.item = item
        self.content = content
        self.lease_until = lease_until
        self.in_file = len(content) > INLINE_OCTETS
        self.written = False


@frozen
class _Settled:
    """What is to be settled, see ``Store.settle``; *kept* are the notices that were, or were to be."""

    changes: Sequence[Change]
    now: float
    notices: Sequence[Notice]
    suppressions: Sequence[Suppression]
    kept: list[_Kept] = attrs.field(factory=list)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_content(path: Path, digest: bytes) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        if error.errno not in _GONE:  # out of descriptors or memory, rights: the file may be as good as ever
            raise StoreError(f"the content of {path.name} cannot be read now: {error.strerror}") from error
        raise DamagedError(f"its content cannot be read: {error.strerror}") from error
    return _intact(content, digest)


def _intact(content: bytes, digest: bytes) -> bytes:
    if _digest(content) != digest:
        raise DamagedError("its content is not what was kept")
    return content


def _digest(content: bytes) -> bytes:
    """Give the SHA-256 of content; of a small one in pieces for which hashlib does not give up the interpreter."""
    if len(content) > INLINE_OCTETS // 8:
        return hashlib.sha256(content).digest()
    digest = hashlib.sha256()
    for start in range(0, len(content), _HASHED_OCTETS):
        digest.update(content[start : start + _HASHED_OCTETS])
    return digest.digest()


def _use_log(connection: sqlite3.Connection) -> None:
    """Switch to WAL, which SQLite does not wait for where another process does the same at this moment."""
    until = monotonic() + _BUSY_MILLISECONDS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > until:
                raise
            sleep(0.01)
        else:
            return


# Work on the database, each within a transaction of the writer


def _suppressed_of(connection: sqlite3.Connection, items: Iterable[Item]) -> dict[str, str]:
    """Give those recipients of messages that are on the suppression list, in lower case, with the reason."""
    addresses = tuple({each.address.lower() for item in items if not item.notice for each in item.recipients})
    reasons: dict[str, str] = {}
    for start in range(0, len(addresses), _MOST_VALUES):
        some = addresses[start : start + _MOST_VALUES]
        marks = ",".join("?" * len(some))
        reasons.update(
            connection.execute(
                f"SELECT address, reason FROM suppression WHERE address IN ({marks})",  # noqa: S608
                some,
            ).fetchall()
        )
    return reasons


def _checked(item: Item, reasons: dict[str, str]) -> Item:
    """Mark the recipients that are on the suppression list."""
    if item.notice or not reasons:
        return item
    recipients = [
        attrs.evolve(each, state=State.SUPPRESSED, reply=reasons[each.address.lower()])
        if each.address.lower() in reasons
        else each
        for each in item.recipients
    ]
    return attrs.evolve(item, recipients=tuple(recipients))


def _suppress(connection: sqlite3.Connection, entry: Suppression) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO suppression VALUES (?, ?, ?)", (entry.address.lower(), entry.since, entry.reason)
    )


def _set_aside(
    connection: sqlite3.Connection, message_id: str, reason: str, now: float, numbers: Collection[int]
) -> None:
    connection.execute("UPDATE message SET set_aside = ? WHERE id = ?", (reason, message_id))
    connection.execute(
        "UPDATE recipient SET next_attempt_at = ?, owner = '' WHERE message_id = ? AND state = 'pending' "
        "AND (owner = '' OR number IN (SELECT value FROM json_each(?)))",
        (_NEVER, message_id, json.dumps(list(numbers))),
    )
    _write_event(connection, message_id, Event(now, "set_aside", None, reason))


def _remove(connection: sqlite3.Connection, message_id: str, reason: str, now: float) -> Removal:
    rows = connection.execute(
        "SELECT number, destination, owner <> '' AND next_attempt_at > ? FROM recipient "
        "WHERE message_id = ? AND state = 'pending'",
        (now, message_id),
    ).fetchall()
    connection.executemany(
        "UPDATE recipient SET state = 'removed', reply = ?, owner = CASE WHEN ? THEN owner ELSE '' END "
        "WHERE message_id = ? AND number = ?",
        [(reason, leased, message_id, number) for number, _, leased in rows],
    )
    for number, _, _ in rows:
        _write_event(connection, message_id, Event(now, "removed", number, reason))
    for destination in {destination for _, destination, _ in rows}:
        _refresh(connection, destination)
    if rows:
        connection.execute("UPDATE message SET final_at = ? WHERE id = ?", (now, message_id))
    return Removal(len(rows), sum(leased for _, _, leased in rows))


def _let_go(connection: sqlite3.Connection, removed: Iterable[tuple[str, int]]) -> None:
    connection.executemany(
        "UPDATE recipient SET owner = '' WHERE message_id = ? AND number = ? AND state = 'removed'", removed
    )


def _told(connection: sqlite3.Connection, notice: Notice) -> bool:
    """Whether a notice that goes out only once has gone."""
    return (
        notice.event.kind == "delay_told"
        and connection.execute(
            "SELECT 1 FROM event WHERE message_id = ? AND kind = 'delay_told' LIMIT 1", (notice.about,)
        ).fetchone()
        is not None
    )


def _insert_all(connection: sqlite3.Connection, new: Sequence[_Kept], owner: str) -> list[frozenset[int]]:
    """Insert messages; gives the numbers of the suppressed recipients of each."""
    reasons = _suppressed_of(connection, [kept.item for kept in new])
    messages: list[tuple[Any, ...]] = []
    recipients: list[tuple[Any, ...]] = []
    events: list[tuple[Any, ...]] = []
    due: dict[str, float] = {}
    counts = _Counts()
    suppressed_of: list[frozenset[int]] = []
    for kept in new:
        item = _checked(kept.item, reasons)
        pending = [each for each in item.recipients if each.state is State.PENDING]
        messages.append(_message_row(item, kept, is_pending=bool(pending)))
        recipients += [_recipient_row(item, each, kept.lease_until, owner) for each in item.recipients]
        events += [_event_row(item.id, event) for event in _first_events(item)]
        for each in pending:
            at = max(each.next_attempt_at, kept.lease_until)
            due[each.destination] = min(due.get(each.destination, at), at)
        suppressed = frozenset([each.number for each in item.recipients if each.state is State.SUPPRESSED])
        if not item.notice:  # our own notices are nobody's campaign
            counts.add(item.received_at, item.group, "received", 1)
            counts.add(item.received_at, item.group, "sent", len(pending))
            counts.add(item.received_at, item.group, "suppressed", len(suppressed))
        suppressed_of.append(suppressed)
    _write_rows(connection, f"INSERT INTO message ({_ITEM}, in_file, digest, final_at)", messages)
    _write_rows(
        connection,
        "INSERT INTO content (message_id, octets)",
        [(kept.item.id, kept.content) for kept in new if not kept.in_file],
    )
    _write_rows(
        connection,
        "INSERT INTO recipient (message_id, number, address, destination, state, attempts, next_attempt_at, reply, "
        "remote_host, owner)",
        recipients,
    )
    _write_rows(connection, _INSERT_EVENT, events)
    _write_rows(connection, "INSERT INTO destination", list(due.items()), _IF_EARLIER)
    counts.write(connection)
    return suppressed_of


def _message_row(item: Item, kept: _Kept, *, is_pending: bool) -> tuple[Any, ...]:
    return (
        item.id,
        item.received_at,
        item.reverse_path,
        item.group,
        item.login,
        item.provider,
        item.subject,
        item.size_octets,
        item.eight_bit,
        item.smtputf8,
        item.not_before,
        item.notice,
        _layout(item.layout),
        json.dumps(item.failed_steps) if item.failed_steps else "[]",
        kept.in_file,
        _digest(kept.content),
        None if is_pending else item.received_at,
    )


def _layout(layout: Layout) -> str:
    if not layout.slots and not layout.html_octets and not layout.encoding:  # most of them: json takes its time
        return f'{{"head_octets":{layout.head_octets},"html_octets":0,"encoding":"","slots":[]}}'
    fields = {name: getattr(layout, name) for name in ("head_octets", "html_octets", "encoding")}
    slots = [{"position": each.position, "kind": each.kind, "target": each.target} for each in layout.slots]
    return json.dumps({**fields, "slots": slots}, separators=(",", ":"))


def _recipient_row(item: Item, recipient: Recipient, lease_until: float, owner: str) -> tuple[Any, ...]:
    leased = bool(lease_until) and recipient.state is State.PENDING
    return (
        item.id,
        recipient.number,
        recipient.address,
        recipient.destination,
        "pending" if recipient.state is State.PENDING else recipient.state.value,  # that is slow
        recipient.attempts + leased,
        max(recipient.next_attempt_at, lease_until),
        recipient.reply,
        recipient.remote_host,
        owner if leased else "",
    )


def _first_events(item: Item) -> Iterable[Event]:
    """Say how a message came to be kept, but that it was received, which its row tells."""
    for step, reason in item.failed_steps:
        yield Event(item.received_at, "step_failed", None, f"{step}: {reason}")
    if item.not_before > item.received_at:
        yield Event(item.received_at, "held", None, _moment(item.not_before))
    for each in item.recipients:
        if each.state is State.SUPPRESSED:
            yield Event(item.received_at, "suppressed", each.number, each.reply)


def _due_destinations(connection: sqlite3.Connection, now: float, limit: int, without: Collection[str]) -> list[str]:
    """Name destinations that have something due, those first that have had it for longest."""
    rows = connection.execute(
        "SELECT name FROM destination WHERE due_at <= ? ORDER BY due_at LIMIT ?", (now, limit + len(without))
    )
    return [name for (name,) in rows if name not in without]


def _lease(
    connection: sqlite3.Connection,
    now: float,
    lease_until: float,
    limit: int,
    due: list[str],
    limit_each: int,
    owner: str,
) -> list[Leased]:
    taken: list[tuple[Any, ...]] = []
    left = limit
    room = dict.fromkeys(due, limit_each)
    waiting = deque(due)
    while waiting and left > 0:
        share = max(1, left // len(waiting))  # each destination gets a part of what there is room for
        name = waiting.popleft()
        share = min(share, room[name])
        rows = connection.execute(
            "SELECT message_id, number, address, destination, state, attempts, next_attempt_at, reply, remote_host "
            "FROM recipient WHERE destination = ? AND state = 'pending' AND next_attempt_at <= ? "
            "ORDER BY next_attempt_at LIMIT ?",
            (name, now, share),
        ).fetchall()
        taken += rows
        _mark(connection, rows, lease_until, owner)
        left -= len(rows)
        room[name] -= len(rows)
        if len(rows) == share and room[name] > 0:
            waiting.append(name)  # it has more, perhaps, and may have what the others leave
    for name in due:
        _refresh(connection, name)
    return _leased(connection, taken, now)


def _mark(connection: sqlite3.Connection, rows: Iterable[tuple[Any, ...]], lease_until: float, owner: str) -> None:
    """Lease recipients; the attempt that begins counts."""
    connection.executemany(
        "UPDATE recipient SET next_attempt_at = ?, attempts = attempts + 1, owner = ? "
        "WHERE message_id = ? AND number = ?",
        [(lease_until, owner, row[0], row[1]) for row in rows],
    )


def _leased(connection: sqlite3.Connection, taken: Iterable[tuple[Any, ...]], now: float) -> list[Leased]:
    """Make messages of recipients that were leased; one that cannot be read is set aside."""
    by_message: dict[str, list[tuple[Any, ...]]] = {}
    for row in taken:
        by_message.setdefault(row[0], []).append(row)
    leased = []
    for message_id, rows in by_message.items():
        found = connection.execute(
            f"SELECT {_READ} FROM message WHERE id = ?",  # noqa: S608
            (message_id,),
        ).fetchone()
        recipients = [attrs.evolve(each, attempts=each.attempts + 1) for each in map(_recipient, rows)]
        try:
            leased.append(Leased(_item(found, recipients)))
        except DamagedError as error:
            _set_aside(connection, message_id, str(error), now, [each.number for each in recipients])
    return leased


def _change_all(connection: sqlite3.Connection, settled: Sequence[_Settled]) -> list[set[str]]:
    """Write changes of recipients; gives for each the messages that any of them took effect for."""
    known = _changeable(connection, [(one.message_id, one.number) for each in settled for one in each.changes])
    changed_of: list[set[str]] = []
    updates: list[tuple[Any, ...]] = []
    events: list[tuple[Any, ...]] = []
    counts = _Counts()
    destinations: set[str] = set()
    ended: set[str] = set()
    for each in settled:
        changed: set[str] = set()
        for change in each.changes:
            key = (change.message_id, change.number)
            if key not in known:
                continue
            address, destination, state, group, notice, aside = known[key]
            if state == State.REMOVED.value and change.state is not State.DELIVERED:
                _let_go(connection, [key])
                del known[key]
                continue
            stays_aside = aside is not None and change.state is State.PENDING
            updates.append(
                (
                    *(*key, address, destination, change.state.value),
                    *(int(not change.attempted), _NEVER if stays_aside else change.next_attempt_at),
                    *(change.reply, change.remote_host),
                )
            )
            if change.event is not None:
                events.append(_event_row(change.message_id, change.event))
                if not notice and change.event.kind in _COUNTED:
                    counts.add(each.now, group, _COUNTED[change.event.kind], 1)
            destinations.add(destination)
            changed.add(change.message_id)
            if change.state is not State.PENDING:
                del known[key]  # it is final: what comes behind comes too late
                ended.add(change.message_id)
        changed_of.append(changed)
    _write_rows(
        connection,
        "INSERT INTO recipient (message_id, number, address, destination, state, attempts, next_attempt_at, reply, "
        "remote_host)",
        updates,
        # All of them exist. Of the attempts those are given that do not count.
        "ON CONFLICT (message_id, number) DO UPDATE SET state = excluded.state, "
        "next_attempt_at = excluded.next_attempt_at, reply = excluded.reply, remote_host = excluded.remote_host, "
        "owner = '', attempts = max(attempts - excluded.attempts, 0)",
    )
    _write_rows(connection, _INSERT_EVENT, events)
    for destination in destinations:
        _refresh(connection, destination)
    for some in _by_size([(message_id,) for message_id in ended]):
        connection.execute(
            f"UPDATE message SET final_at = ? WHERE id IN ({','.join('?' * len(some))}) AND NOT EXISTS "  # noqa: S608
            "(SELECT 1 FROM recipient WHERE message_id = message.id AND state = 'pending')",
            [max(each.now for each in settled), *chain.from_iterable(some)],
        )
    counts.write(connection)
    return changed_of


def _changeable(
    connection: sqlite3.Connection, keys: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], tuple[Any, ...]]:
    """
    Find those of some recipients, each by message and number, that are pending, or were removed while they were leased.

    Returns:
        For each: address, destination, state; and of the message: group, whether it is a notice, and why it is set
        aside.
    """
    found: dict[tuple[str, int], tuple[Any, ...]] = {}
    for some in _by_size(list(dict.fromkeys(keys))):
        rows = connection.execute(
            f"WITH wanted (id, place) AS (VALUES {','.join(['(?,?)'] * len(some))}) "  # noqa: S608
            "SELECT r.message_id, r.number, r.address, r.destination, r.state, m.grp, m.notice, m.set_aside "
            "FROM wanted CROSS JOIN recipient r ON r.message_id = wanted.id AND r.number = wanted.place "
            "JOIN message m ON m.id = r.message_id "
            "WHERE r.state = 'pending' OR r.state = 'removed' AND r.owner <> ''",
            list(chain.from_iterable(some)),
        )
        found.update(((row[0], row[1]), row[2:]) for row in rows.fetchall())
    return found


_IF_EARLIER = "ON CONFLICT (name) DO UPDATE SET due_at = min(due_at, excluded.due_at)"


def _due(connection: sqlite3.Connection, destination: str, at: float) -> None:
    """Note that a destination has something due at that time, if not earlier."""
    _write_rows(connection, "INSERT INTO destination", [(destination, at)], _IF_EARLIER)


def _refresh(connection: sqlite3.Connection, destination: str) -> None:
    """Work out anew when a destination has something due."""
    (due_at,) = connection.execute(
        "SELECT min(next_attempt_at) FROM recipient WHERE destination = ? AND state = 'pending'", (destination,)
    ).fetchone()
    if due_at is None:
        connection.execute("DELETE FROM destination WHERE name = ?", (destination,))
    else:
        connection.execute(
            "INSERT INTO destination VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET due_at = excluded.due_at",
            (destination, due_at),
        )


_INSERT_EVENT = "INSERT INTO event"


def _write_rows(
    connection: sqlite3.Connection, into: str, rows: Sequence[tuple[Any, ...]], on_conflict: str = ""
) -> None:
    """
    Write rows, many with each statement: one for each row, as ``executemany`` makes it, has the thread give up the
    interpreter and wait for it as often.
    """
    for some in _by_size(rows):
        connection.execute(_many(into, len(some[0]), len(some), on_conflict), list(chain.from_iterable(some)))


def _by_size(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Cut rows into pieces of few sizes, so that there are few statements to remember."""
    position = 0
    while position < len(rows):
        left = len(rows) - position
        count = left if left < _ROWS[-1] else next(size for size in _ROWS if size <= left)
        yield rows[position : position + count]
        position += count


@lru_cache(maxsize=256)
def _many(into: str, columns: int, rows: int, on_conflict: str) -> str:
    row = f"({','.join('?' * columns)})"
    return f"{into} VALUES {','.join([row] * rows)} {on_conflict}"


def _event_row(message_id: str, event: Event) -> tuple[Any, ...]:
    return (message_id, event.at, event.kind, event.recipient, event.detail)


def _write_event(connection: sqlite3.Connection, message_id: str, event: Event) -> None:
    _write_rows(connection, _INSERT_EVENT, [_event_row(message_id, event)])


class _Counts:
    """Figures to be written together: many of a commit are of the same day and group."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, str], int] = {}

    def add(self, at: float, group: str | None, kind: str, number: int) -> None:
        if number:
            key = (_day(int(at // _DAY_SECONDS)), group or UNGROUPED, kind)
            self._numbers[key] = self._numbers.get(key, 0) + number

    def write(self, connection: sqlite3.Connection) -> None:
        _write_rows(
            connection,
            "INSERT INTO figures",
            [(*key, number) for key, number in self._numbers.items()],
            "ON CONFLICT (day, grp, kind) DO UPDATE SET n = n + excluded.n",
        )


@lru_cache(maxsize=16)
def _day(number: int) -> str:
    """Name a day, counted since the epoch."""
    return _moment(number * _DAY_SECONDS)[:10]


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _recipients(connection: sqlite3.Connection, message_id: str, *, pending: bool) -> list[Recipient]:
    rows = connection.execute(
        "SELECT message_id, number, address, destination, state, attempts, next_attempt_at, reply, remote_host, "  # noqa: S608
        f"owner <> '' FROM recipient WHERE message_id = ? {'AND state = ?' if pending else ''} ORDER BY number",
        (message_id, "pending") if pending else (message_id,),
    )
    return [_recipient(row) for row in rows]


def _recipient(row: tuple[Any, ...]) -> Recipient:
    _, number, address, destination, state, *rest = row
    attempts, next_attempt_at, reply, remote_host, *leased = rest
    return Recipient(
        number, address, destination, State(state), attempts, next_attempt_at, reply, remote_host, any(leased)
    )


def _item(row: tuple[Any, ...] | None, recipients: Iterable[Recipient]) -> Item:
    """
    Make an item of a row.

    Raises:
        DamagedError: It cannot be read.
    """
    if row is None:
        raise DamagedError("the message is not in the store")
    (
        message_id,
        received_at,
        reverse_path,
        group,
        login,
        provider,
        subject,
        *numbers,
        layout,
        failed_steps,
        set_aside,
    ) = row
    size_octets, eight_bit, smtputf8, not_before, notice = numbers
    try:
        fields = json.loads(layout)
        slots = tuple(Slot(**slot) for slot in fields.pop("slots"))
        return Item(
            id=message_id,
            received_at=received_at,
            reverse_path=reverse_path,
            recipients=tuple(recipients),
            layout=Layout(**fields, slots=slots),
            size_octets=size_octets,
            group=group,
            login=login,
            provider=provider,
            subject=subject,
            eight_bit=bool(eight_bit),
            smtputf8=bool(smtputf8),
            not_before=not_before,
            failed_steps=tuple((step, reason) for step, reason in json.loads(failed_steps)),
            notice=bool(notice),
            set_aside=set_aside or "",
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"its row cannot be read: {error}") from error


def _readable(row: tuple[Any, ...], recipients: Iterable[Recipient]) -> Item:
    """Make an item of a row for people to look at: what is damaged of it is left out."""
    known = tuple(recipients)
    try:
        return _item(row, known)
    except DamagedError:
        *rest, _layout, _failed_steps, set_aside = row
        return _item((*rest, '{"head_octets": 0, "slots": []}', "[]", set_aside), known)
