"""
One thread that has the database, and commits the work of many callers at a time.

A commit costs a sync of the disk whatever is in it, so all work that came during the last one goes into the next. The
thread is there because sqlite3 waits for the disk, and the event loop must not.

Under load a commit begins when the event loop is at rest, or when it was put off for long enough, or when there is
enough for one. So thread and loop take turns, where otherwise they would take the interpreter from each other at every
statement, which costs both of them as much again.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any, Generic, TypeVar

from proxy.spool.store import StoreError, StoreFullError

T = TypeVar("T")
A = TypeVar("A")
Work = Callable[[sqlite3.Connection], T]
Batch = Callable[[sqlite3.Connection, list[A]], list[T]]
"""Work for many callers at a time; gives a value for each, in their order."""

_MOST_AT_ONCE = 500
_FEW = 3  # so much work in a commit is no load, and what comes behind it does not wait
_REST_SECONDS = 0.00004
_LONGEST_SECONDS = 0.008
_BUSY_SECONDS = 10.0  # for other processes
_LOOK_SECONDS = 0.0002
_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


class _Job(Generic[A, T]):
    __slots__ = ("argument", "future", "work")

    def __init__(self, work: Batch[A, T], argument: A, loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.argument = argument
        self.future: asyncio.Future[T] = loop.create_future()


def _run_each(connection: sqlite3.Connection, works: list[Work[T]]) -> list[T]:
    return [work(connection) for work in works]


class Writer:
    """
    The thread; for the one event loop that it is used in.

    Args:
        connect: Opens the database, in the thread; sqlite3 wants to be used where it was opened.
        committed: Is told, in the thread, how much work each commit had, once its callers have been.
        meanwhile: Called in the event loop, under load, when the thread begins to wait for the disk. The loop has
            little else to do then, since most who would give it work wait for the same commit.

    Raises:
        StoreError: It cannot be opened.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        committed: Callable[[int], None] = lambda _work: None,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self._waiting: list[_Job[Any, Any]] = []
        self._batches: SimpleQueue[list[_Job[Any, Any]] | None] = SimpleQueue()
        self._busy = False  # whether the thread has a batch; it alone says that it has none any more
        self._looking = False  # for a moment of rest
        self._last = 0  # how much was in the last batch
        self._connect = connect
        self._committed = committed
        self._meanwhile = meanwhile
        self._failure: BaseException | None = None
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()
        self._opened.wait()
        if self._failure is not None:
            raise store_error(self._failure) from self._failure

    async def do(self, work: Work[T]) -> T:
        """
        Run work in a transaction; what it did is on disk on return.

        It may be run twice, where other work in the same commit failed, so it must do nothing outside the database that
        cannot be done again.

        Raises:
            StoreError: It failed, and nothing of it is left.
        """
        return await self.do_together(_run_each, work)

    async def do_together(self, work: Batch[A, T], argument: A) -> T:
        """
        Do work as :meth:`do` does, at one go with what others asked of the same *work* for the same commit.

        A statement costs the thread more than what it does: it lets go of the interpreter, and waits to get it back.
        """
        loop = asyncio.get_running_loop()
        job = _Job(work, argument, loop)
        self._waiting.append(job)
        self._go_on(loop)
        # A caller that is cancelled leaves no half-known state: the work is done all the same.
        return await job.future

    async def close(self) -> None:
        """Finish what was asked for, and end the thread."""
        while (self._waiting or self._busy) and self._thread.is_alive():
            self._hand_over()
            await asyncio.sleep(0.005)
        self._batches.put(None)
        while self._thread.is_alive():  # noqa: ASYNC110 - a thread has no future to wait for
            await asyncio.sleep(0.005)

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that what waits is begun, if the thread has nothing to do."""
        if self._busy or self._looking or not self._waiting:
            return
        if self._last <= _FEW:
            self._hand_over()
        else:
            self._looking = True
            now = monotonic()
            loop.call_soon(self._look, loop, now + _LONGEST_SECONDS, now, now)

    def _look(self, loop: asyncio.AbstractEventLoop, until: float, before: float, at_rest: float) -> None:
        """
        Hand over at a moment of rest: when the loop comes round to us, and again, with nothing to do in between.

        Args:
            before: When we were here last.
            at_rest: Since when there was nothing else to do.
        """
        now = monotonic()
        if now - before > _REST_SECONDS:
            at_rest = now
        if now < min(until, at_rest + _REST_SECONDS) and len(self._waiting) < _MOST_AT_ONCE:
            loop.call_soon(self._look, loop, until, monotonic(), at_rest)
        else:
            self._looking = False
            self._hand_over()

    def _hand_over(self) -> None:
        if self._waiting and not self._busy:
            batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
            self._busy, self._last = True, len(batch)
            self._batches.put(batch)

    def _settle(self, outcomes: list[_Outcome], loop: asyncio.AbstractEventLoop) -> None:
        for future, value, error in outcomes:
            if future.done():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        self._go_on(loop)

    # In the thread

    def _run(self) -> None:
        try:
            connection = self._connect()
        except (sqlite3.Error, OSError, StoreError) as error:
            self._failure = error
            self._opened.set()
            return
        self._opened.set()
        while (batch := self._batches.get()) is not None:
            outcomes = self._together(connection, batch) or self._each(connection, batch)
            loop = batch[0].future.get_loop()
            self._busy = False
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._settle, outcomes, loop)
            self._committed(len(batch))
        connection.close()

    def _together(self, connection: sqlite3.Connection, jobs: list[_Job[Any, Any]]) -> list[_Outcome] | None:
        """All in one commit; None where any of it failed, with nothing done."""
        try:
            _begin(connection)
        except Exception as error:  # another process has it for too long, say: it will not be better for each alone
            return [(job.future, None, store_error(error)) for job in jobs]
        try:
            together: dict[Batch[Any, Any], list[_Job[Any, Any]]] = {}
            for job in jobs:
                together.setdefault(job.work, []).append(job)
            values: dict[_Job[Any, Any], Any] = {}
            for work, each in together.items():
                values.update(zip(each, work(connection, [job.argument for job in each]), strict=True))
            if len(jobs) > _FEW and self._meanwhile is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    jobs[0].future.get_loop().call_soon_threadsafe(self._meanwhile)
            connection.execute("COMMIT")
        except BaseException:  # whatever it is, each one is told its own below
            _roll_back(connection)
            return None
        return [(job.future, values[job], None) for job in jobs]

    def _each(self, connection: sqlite3.Connection, jobs: list[_Job[Any, Any]]) -> list[_Outcome]:
        """Each in a commit of its own, so that one that fails costs no other."""
        outcomes: list[_Outcome] = []
        for job in jobs:
            try:
                _begin(connection)
                (value,) = job.work(connection, [job.argument])
                connection.execute("COMMIT")
                outcomes.append((job.future, value, None))
            except BaseException as error:  # told to who asked for it
                _roll_back(connection)
                outcomes.append((job.future, None, store_error(error)))
        return outcomes


def _begin(connection: sqlite3.Connection) -> None:
    """
    Begin a transaction; other processes that have one are waited for.

    SQLite would look again after a millisecond, then after two, five and so on, and a commit takes a millisecond.
    """
    until = 0.0
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            until = until or monotonic() + _BUSY_SECONDS
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > until:
                raise
            sleep(_LOOK_SECONDS)
        else:
            return


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error:  # the one that brought us here says more
        return


def store_error(error: BaseException) -> BaseException:
    """Name what went wrong in the store's own terms."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return StoreFullError(str(error))
    if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
        return StoreFullError(error.strerror or "no space left")
    if isinstance(error, sqlite3.Error | OSError):
        return StoreError(str(error))
    return error
