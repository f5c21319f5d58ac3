"""
A thread that moves what was committed from SQLite's log into the database file, beside the writer.

SQLite does that at the end of a commit, once the log is long enough (``wal_autocheckpoint``), and all who wait for that
commit wait for it, too: tens of milliseconds for 16 MB. Here a connection of its own does it after each few commits,
while others go on; a log that was moved to its end begins anew. What it does not get done, since more comes meanwhile,
or since another process is at it, the writer does as ever, and finds little left to do.

Several processes that never stop writing never let anybody come to the end of the log, which grows as long as they do;
it did so before there was this thread, too.

Source: SQLite, "Write-Ahead Logging", 2.1 (Checkpointing) and 3.3; "PRAGMA wal_checkpoint".
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable

_JOBS = 500  # seldom enough for the pages that each commit changes anew, and for little traffic


class Checkpoints:
    """
    The thread; it begins when there is something to do for the first time.

    Args:
        connect: Opens the database, in the thread.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._jobs = 0
        self._wanted = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def committed(self, jobs: int) -> None:
        """Note a commit for so many callers; called by one thread, the writer's. Never fails."""
        self._jobs += jobs
        if self._jobs < _JOBS:
            return
        self._jobs = 0
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads for this user or container: perhaps next time
                return
            self._thread = thread
        self._wanted.set()

    async def close(self) -> None:
        """End the thread; only when there are no more commits."""
        self._closing = True
        self._wanted.set()
        while self._thread is not None and self._thread.is_alive():  # noqa: ASYNC110 - a thread has no future
            await asyncio.sleep(0.005)

    def _run(self) -> None:
        # A disk that is full or broken is for the writer to tell of: it sees to the log where nobody else does.
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._connect()) as connection:
            while True:
                self._wanted.wait()
                self._wanted.clear()
                if self._closing:
                    return
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
