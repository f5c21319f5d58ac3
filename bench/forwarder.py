"""A TCP forwarder that makes loopback as slow as a long line, in a thread of its own."""

import asyncio
import threading
from types import TracebackType
from typing import cast


class Forwarder:
    """
    Forwards connections and delays all octets; use it as a context manager.

    The handshake of TCP is answered at once by this machine, so its round trip, and the way of the last ACK, are made
    up for before the connection goes on: the greeting arrives after two round trips, as it would from afar. There is no
    limit on bandwidth and no slow start.

    Args:
        target_port: Where to, on loopback.
        delay_seconds: Each way.
    """

    def __init__(self, target_port: int, delay_seconds: float) -> None:
        self.port = 0
        self._target_port = target_port
        self._delay_seconds = delay_seconds
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> "Forwarder":
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        server = await self._loop.create_server(
            lambda: _Near(self._loop, self._target_port, self._delay_seconds), "127.0.0.1", 0
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {cast("asyncio.Task[None]", asyncio.current_task())}:
            task.cancel()


class _End(asyncio.Protocol):
    """One end of a forwarded connection: what comes in leaves at the other end, later."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_seconds: float) -> None:
        self.loop = loop
        self.delay_seconds = delay_seconds
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.loop.call_later(self.delay_seconds, self.pass_on, data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.loop.call_later(self.delay_seconds, self.hang_up)

    def pass_on(self, data: bytes) -> None:
        """Write to the other end, as soon as there is one."""
        if self.other is None or self.other.transport is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def hang_up(self) -> None:
        """Close the other end."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _Near(_End):
    """The end of the side that connected."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target_port: int, delay_seconds: float) -> None:
        super().__init__(loop, delay_seconds)
        self._target_port = target_port
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._task = self.loop.create_task(self._connect())

    async def _connect(self) -> None:
        await asyncio.sleep(3 * self.delay_seconds)
        far = _End(self.loop, self.delay_seconds)
        far.other = self
        try:
            await self.loop.create_connection(lambda: far, "127.0.0.1", self._target_port)
        except OSError:
            if self.transport is not None:
                self.transport.abort()
            return
        self.other = far
        early, self.early = self.early, []
        for data in early:
            self.pass_on(data)
