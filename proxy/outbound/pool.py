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
        pause_seconds: After a failed attempt to connect, no other is made for so long: a next hop may lock an account
            that tries a wrong password for each message.

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
        pause_seconds: float,
        watcher: PoolWatcher,
    ) -> None:
        self._hop = hop
        self._limit = limit
        self._wait_seconds = wait_seconds
        self._idle_seconds = idle_seconds
        self._pause_seconds = pause_seconds
        self._watcher = watcher
        self._idle: list[Connection] = []  # the last one given back is the first one taken: the rest may age and go
        self._busy = 0
        self._waiting: deque[asyncio.Future[Connection | bool]] = deque()
        self._refusal: Reply | None = None  # what the last failure to connect was answered, for a moment
        self._refused_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.extensions: dict[str, str] | None = None
        self.last_error: UpstreamError | None = None

    async def take(self) -> Connection | Reply:
        """Give a ready connection, or the reply that says why there is none; also opens one."""
        if not self._waiting:  # whoever came first goes first
            connection = self._from_idle()
            if connection is not None:
                return connection
        if self._busy < self._limit and not self._waiting:
            self._busy += 1
        else:
            handed = await self._turn(self._wait_seconds)
            if isinstance(handed, Connection) and not handed.lost:
                return handed
            if not handed:
                return POOL_BUSY
        if self._refusal is not None and monotonic() < self._refused_until:
            self._freed()
            return self._refusal
        try:
            return await self._open()
        except UpstreamError as error:
            self._freed()
            misconfigured = error.stage == "auth" and error.refused
            self._refusal = MISCONFIGURED if misconfigured else NO_CONNECTION
            self._refused_until = monotonic() + self._pause_seconds
            return self._refusal
        except BaseException:
            self._freed()
            raise

    def give_back(self, connection: Connection) -> None:
        """Take back a connection that is between transactions, or of no more use."""
        if connection.lost or connection.answered or self._closed:
            connection.quit()
            self._freed()
            return
        connection.rest()
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(connection)
            return
        self._busy -= 1
        self._idle.append(connection)
        self._tell()

    def distrust(self) -> None:
        """Close what is at rest: one connection died there unnoticed, so the others may have, too."""
        for connection in self._idle:
            connection.quit()
        self._idle.clear()
        self._tell()

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
        """Find out whether the next hop can be had; learns what it offers, and warms the pool."""
        connection = self._from_idle()
        if connection is not None:
            rested_since = connection.idle_since
            try:
                connection.write(b"NOOP\r\n")
                await connection.reply(min(_RESET_SECONDS, self._hop.reply_seconds))
            except UpstreamError:
                self.give_back(connection)
                self.distrust()
            else:
                self.give_back(connection)
                connection.idle_since = rested_since  # a probe is no use: what nobody needs may age and go
                return None
        if self._busy >= self._limit:
            return self.last_error  # all are in use or being opened, so the last attempt tells as much as another
        self._busy += 1
        try:
            connection = await self._open()
        except UpstreamError as error:
            self._freed()
            return error
        except BaseException:
            self._freed()
            raise
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
        self.last_error = self._refusal = None
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

    async def _turn(self, seconds: float) -> Connection | bool:
        """
        Wait for a connection or a place to get free, in the order of arrival.

        Returns:
            A connection; True for a place in which to open one; False when that took too long. Both of the former are
            counted as busy already.
        """
        waiter: asyncio.Future[Connection | bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                return await waiter
        except TimeoutError:
            self._decline(waiter)
            return False
        except BaseException:
            self._decline(waiter)
            raise

    def _decline(self, waiter: "asyncio.Future[Connection | bool]") -> None:
        """Leave the queue; what came at the very moment of giving up goes to the next in it."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        if waiter.done() and not waiter.cancelled():
            handed = waiter.result()
            if isinstance(handed, Connection):
                self.give_back(handed)
            else:
                self._freed()

    def _next_waiter(self) -> "asyncio.Future[Connection | bool] | None":
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _freed(self) -> None:
        """A place got free: it goes to who waits longest."""
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(True)
            return
        self._busy -= 1
        self._tell()

    def _tell(self) -> None:
        self._watcher.pool_changed(self._busy, len(self._idle))
