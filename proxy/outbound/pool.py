"""
Warm connections to the next hop: greeted, TLS on, authenticated, so that a message costs three round trips.

Health is passive: a connection that was closed or spoken on while idle takes itself out. The number is bounded, and so
is the wait for one.
"""

import asyncio
from collections import deque
from time import monotonic
from typing import Protocol

from proxy.mail.reply import Reply
from proxy.outbound.client import Connection, NextHop, UpstreamError

NO_CONNECTION = Reply(451, "4.4.1", "The next hop cannot be reached at the moment, try again later")
MISCONFIGURED = Reply(451, "4.3.5", "The next hop does not take our credentials, try again later")
POOL_BUSY = Reply(451, "4.3.2", "All connections to the next hop are in use, try again later")


_RESET_SECONDS = 10.0


class PoolWatcher(Protocol):
    """What the pool tells about itself: metrics and log."""

    def connection_opened(self, seconds: float) -> None:
        """A connection got ready in this time."""

    def connection_failed(self, error: UpstreamError) -> None:
        """A connection could not be had."""

    def connection_lost(self, error: UpstreamError) -> None:
        """A connection was lost in a transaction."""

    def pool_changed(self, busy: int, idle: int) -> None:
        """The number of connections in use and at rest."""


class Pool:
    """
    A bounded set of connections.

    Args:
        limit: Connections at most, those being opened included.
        wait_seconds: Longest wait for one when all are in use.
        idle_seconds: A connection at rest for longer is closed by :meth:`tidy`.

    Attributes:
        extensions: What the next hop offered in the last EHLO; None before the first.
        last_error: Why the last attempt to connect failed; None when it did not.
    """

    def __init__(
        self,
        hop: NextHop,
        limit: int,
        wait_seconds: float,
        idle_seconds: float,
        watcher: PoolWatcher,
    ) -> None:
        self._hop = hop
        self._limit = limit
        self._wait_seconds = wait_seconds
        self._idle_seconds = idle_seconds
        self._watcher = watcher
        self._idle: list[Connection] = []  # the last one given back is the first one taken: the rest may age and go
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.extensions: dict[str, str] | None = None
        self.last_error: UpstreamError | None = None

    async def take(self) -> Connection | Reply:
        """Give a ready connection, or the reply that says why there is none; also opens one."""
        until = 0.0
        while True:
            connection = self._from_idle()
            if connection is not None:
                return connection
            if self._busy < self._limit:
                break
            until = until or monotonic() + self._wait_seconds
            if not await self._turn(until - monotonic()):
                return POOL_BUSY
        self._busy += 1
        try:
            return await self._open()
        except UpstreamError as error:
            self._freed()
            return MISCONFIGURED if error.stage == "auth" and error.refused else NO_CONNECTION
        except BaseException:
            self._freed()
            raise

    def give_back(self, connection: Connection) -> None:
        """Take back a connection that is between transactions, or of no more use."""
        self._busy -= 1
        if connection.lost or connection.answered or self._closed:
            connection.quit()
        else:
            connection.rest()
            self._idle.append(connection)
        self._tell()
        self._next_turn()

    def lost(self, error: UpstreamError) -> None:
        """Tell that a connection was lost in a transaction."""
        self._watcher.connection_lost(error)

    def reset(self, connection: Connection) -> None:
        """Take back a connection inside a transaction: RSET first, without keeping anybody waiting for it."""
        if connection.lost or self._closed:
            connection.close()
            self.give_back(connection)
            return
        task = asyncio.get_running_loop().create_task(self._reset(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def probe(self) -> UpstreamError | None:
        """Try to get a connection, and keep it: learns what the next hop offers, and warms the pool."""
        connection = self._from_idle()
        if connection is None:
            if self._busy >= self._limit:
                return self.last_error  # all are in use or being opened, so the last attempt tells as much as another
            self._busy += 1
            try:
                connection = await self._open()
            except UpstreamError as error:
                self._freed()
                return error
        self.give_back(connection)
        return None

    def tidy(self) -> None:
        """Close connections that were at rest for too long."""
        oldest = monotonic() - self._idle_seconds
        for connection in self._idle:
            if connection.lost or connection.idle_since < oldest:
                connection.quit()
        kept = [connection for connection in self._idle if not connection.lost]
        if len(kept) != len(self._idle):
            self._idle = kept
            self._tell()

    async def close(self) -> None:
        """Close what is idle; connections in use close when they are given back."""
        self._closed = True
        for connection in self._idle:
            connection.quit()
        self._idle.clear()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)

    def _from_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost:
                self._busy += 1
                self._tell()
                return connection
        return None

    async def _open(self) -> Connection:
        self._tell()
        started = monotonic()
        try:
            connection = await Connection.open(self._hop)
        except UpstreamError as error:
            self.last_error = error
            self._watcher.connection_failed(error)
            raise
        self.last_error = None
        self._watcher.connection_opened(monotonic() - started)
        self.extensions = connection.extensions
        return connection

    async def _reset(self, connection: Connection) -> None:
        try:
            connection.write(b"RSET\r\n")
            reply = await connection.reply(min(_RESET_SECONDS, self._hop.reply_seconds))
            if not reply.positive:
                connection.close()
        except UpstreamError:
            connection.close()
        finally:
            self.give_back(connection)

    async def _turn(self, seconds: float) -> bool:
        """Wait for a place to get free, in the order of arrival; False when that takes too long."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except BaseException as error:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            else:  # the place came at the very moment of giving up
                self._next_turn()
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def _next_turn(self) -> None:
        while self._waiting and self._busy < self._limit:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _freed(self) -> None:
        self._busy -= 1
        self._tell()
        self._next_turn()

    def _tell(self) -> None:
        self._watcher.pool_changed(self._busy, len(self._idle))
