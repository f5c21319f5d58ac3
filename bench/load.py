"""
The load generator: SMTP clients that send one precomputed message over and over, and time it.

Nothing is pipelined, as most apps do not: MAIL, RCPT, DATA and the content each wait for their reply. A reply that is
not the expected one ends the run with an error, so no row of a table stands on failed messages.
"""

import asyncio
import resource
from collections.abc import Callable, Coroutine
from ssl import SSLContext
from time import perf_counter, process_time
from typing import Any, cast

from attrs import frozen

from bench import loop
from bench.message import RECIPIENT, SENDER

_SLICE_OCTETS = 262_144


class LoadError(Exception):
    """A client was not answered as it should be."""


@frozen
class Load:
    """
    What to send, and how.

    Args:
        sessions: Connections at a time.
        messages: In total.
        kept: Whether connections are kept; otherwise each serves one message.
        content: As on the wire, with the final dot.
        taken: What the reply to a message begins with.
        context: For STARTTLS; None for none.
        seconds: Longest time that it may take.
    """

    port: int
    sessions: int
    messages: int
    kept: bool
    content: bytes
    taken: bytes
    context: SSLContext | None = None
    recipient: str = RECIPIENT
    seconds: float = 60.0


@frozen
class Sent:
    """
    What was measured.

    Args:
        seconds: From the first connection to the last reply.
        latencies: For each message in seconds: from MAIL on kept connections, otherwise from connecting.
        generator_seconds: CPU time of the generator.
        at_once: The most messages that were between 354 and the final reply.
    """

    seconds: float
    latencies: list[float]
    generator_seconds: float
    at_once: int


def send(load: Load) -> Sent:
    """
    Send all messages.

    Raises:
        LoadError: Some message was not taken, or it took too long.
    """
    return loop.run(_Run(load).run())


def reserve_descriptors() -> None:
    """Make room for the connections of a run (the soft limit is often 1,024)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Run:
    """One run of all clients."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.mail = f"MAIL FROM:<{SENDER}>\r\n".encode("ascii")
        self.rcpt = f"RCPT TO:<{load.recipient}>\r\n".encode("ascii")
        self.content = memoryview(load.content)
        self.unsent = load.messages
        self.latencies: list[float] = []
        self.in_content = self.at_once = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._alive = 0
        self._done: asyncio.Future[None] | None = None

    async def run(self) -> Sent:
        self._done = asyncio.get_running_loop().create_future()
        cpu, started = process_time(), perf_counter()
        for _ in range(min(self.load.sessions, self.load.messages)):
            self._alive += 1
            self.connect()
        try:
            async with asyncio.timeout(self.load.seconds):
                await self._done
        except TimeoutError:
            sent = len(self.latencies)
            raise LoadError(f"{sent} of {self.load.messages} messages in {self.load.seconds:g} s") from None
        return Sent(perf_counter() - started, self.latencies, process_time() - cpu, self.at_once)

    def connect(self) -> None:
        """Open a connection for a message that is counted as sent already, unless connections are kept."""
        if not self.load.kept:
            self.unsent -= 1
        self.spawn(self._connect())

    def next(self) -> bool:
        """Say whether a kept connection has another message to send."""
        if self.unsent <= 0:
            return False
        self.unsent -= 1
        return True

    def over(self) -> None:
        """Note that a client is done with its connection."""
        if not self.load.kept and self.unsent > 0:
            self.connect()
            return
        self._alive -= 1
        if not self._alive and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def failed(self, reason: str) -> None:
        """End the run."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(LoadError(reason))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the protocol's callbacks."""
        task = asyncio.get_running_loop().create_task(self._guard(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except OSError as error:
            self.failed(f"port {self.load.port}: {error}")

    async def _connect(self) -> None:
        client = _Client(self, perf_counter())
        await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", self.load.port)


class _Client(asyncio.Protocol):
    """One connection: waits for a reply, and has a method for what comes next."""

    def __init__(self, run: _Run, began: float) -> None:
        self._run = run
        self._began = began
        self._transport: asyncio.Transport | None = None
        self._partial = b""
        self._expected = b"220"
        self._then: Callable[[], None] = self._hello
        self._rest: memoryview | None = None
        self._paused = False
        self._secured = False
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
        last = data.rfind(b"\n", 0, -1) + 1
        if data[-1:] != b"\n" or data[last + 3 : last + 4] == b"-":
            self._partial = data
            return
        self._partial = b""
        if not data.startswith(self._expected, last):
            self._run.failed(
                f"expected {self._expected.decode()}, got {data[last:].decode('utf-8', 'replace').strip()}"
            )
            return
        self._then()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended:
            self._run.failed(f"connection lost while waiting for {self._expected.decode()}: {error or 'closed'}")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._write_content()

    def _say(self, command: bytes, expected: bytes, then: Callable[[], None]) -> None:
        self._expected, self._then = expected, then
        if self._transport is not None:
            self._transport.write(command)

    def _hello(self) -> None:
        secure = self._run.load.context is not None and not self._secured
        self._say(b"EHLO app.example.com\r\n", b"250", self._ask_tls if secure else self._mail)

    def _ask_tls(self) -> None:
        self._say(b"STARTTLS\r\n", b"220", lambda: self._run.spawn(self._start_tls()))

    async def _start_tls(self) -> None:
        if self._transport is not None and self._run.load.context is not None:
            self._transport = await asyncio.get_running_loop().start_tls(
                self._transport, self, self._run.load.context, server_hostname="127.0.0.1"
            )
            self._secured = True
            self._hello()

    def _mail(self) -> None:
        if self._run.load.kept:
            if not self._run.next():
                self._quit()
                return
            self._began = perf_counter()
        self._say(self._run.mail, b"250", self._rcpt)

    def _rcpt(self) -> None:
        self._say(self._run.rcpt, b"250", self._data)

    def _data(self) -> None:
        self._say(b"DATA\r\n", b"354", self._content)

    def _content(self) -> None:
        run = self._run
        run.in_content += 1
        run.at_once = max(run.at_once, run.in_content)
        self._expected, self._then = run.load.taken, self._taken
        self._rest = run.content
        self._write_content()

    def _write_content(self) -> None:
        """Write as much as the other side takes: a large message is not copied into buffers as a whole."""
        while self._rest and not self._paused and self._transport is not None:
            part, self._rest = self._rest[:_SLICE_OCTETS], self._rest[_SLICE_OCTETS:]
            self._transport.write(part)

    def _taken(self) -> None:
        run = self._run
        run.in_content -= 1
        run.latencies.append(perf_counter() - self._began)
        if run.load.kept:
            self._mail()
        else:
            self._quit()

    def _quit(self) -> None:
        self._say(b"QUIT\r\n", b"221", self._end)

    def _end(self) -> None:
        self._ended = True
        if self._transport is not None:
            self._transport.close()
        self._run.over()
