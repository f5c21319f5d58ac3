"""
Octets from a client, as they come: for commands by line, for a message in whatever pieces arrive.

Bounded: above ``HIGH_WATER`` the transport stops reading, so TCP slows the client down.
"""

import asyncio
from typing import Literal, cast

from proxy.route import ClientGoneError

HIGH_WATER = 65_536


class ClientSilentError(ClientGoneError):
    """
    The client kept silent, or trickled, for longer than it may.

    Args:
        reason: Which of the two.
    """

    def __init__(self, reason: Literal["idle", "too_slow"]) -> None:
        super().__init__(reason)
        self.reason = reason


class ByteReader:
    """
    A buffer between the transport and one reading task.

    Attributes:
        buffer: Octets not yet taken.
        eof: The client has sent its last octet.
    """

    __slots__ = ("_expired", "_loop", "_paused", "_transport", "_waiter", "buffer", "eof")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.eof = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.ReadTransport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False
        self._expired = False

    def attach(self, transport: asyncio.BaseTransport) -> None:
        """Use this transport from now on."""
        self._transport = cast(asyncio.ReadTransport, transport)
        self._paused = False

    def feed(self, data: bytes) -> None:
        """Take octets from the transport."""
        self.buffer += data
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if len(self.buffer) > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def feed_eof(self) -> None:
        """Note that nothing more will come."""
        self.eof = True
        self._wake()

    def expire(self) -> None:
        """Make the wait that is going on end with :class:`ClientSilentError`."""
        self._expired = True
        self._wake()

    def wait(self) -> "asyncio.Future[None]":
        """
        Give what is done when there are more octets than now, or :attr:`eof` comes, or the time is up. Then call
        :meth:`waited`.

        Two plain methods, because a session calls them for each command: a coroutine costs more than both.
        """
        if self._paused and len(self.buffer) <= HIGH_WATER and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        waiter = self._waiter = self._loop.create_future()
        return waiter

    def waited(self) -> bool:
        """
        Look how a wait ended: whether there is anything left, or more to come.

        Raises:
            ClientSilentError: Time was up.
        """
        self._waiter = None
        if self._expired:
            self._expired = False
            raise ClientSilentError("idle")
        return bool(self.buffer) or not self.eof

    def take(self) -> bytes:
        """Give all octets there are."""
        data = bytes(self.buffer)
        self.buffer.clear()
        return data

    def unread(self, data: bytes) -> None:
        """Put octets back in front."""
        self.buffer[:0] = data

    def line(self) -> bytes | None:
        """Give the next line with its LF, or None while there is no whole one."""
        end = self.buffer.find(b"\n") + 1
        if not end:
            return None
        line = bytes(self.buffer[:end])
        del self.buffer[:end]
        return line

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
