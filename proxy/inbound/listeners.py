"""
Listening sockets, the watch over time limits, and an orderly stop.

A listener with ``tls: auto`` looks at a client's first octet before anything is said: a TLS handshake record begins
with 0x16 (RFC 8446, 5.1), and no SMTP client speaks before the greeting. The octet is only peeked at, so the TLS layer
still finds it.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from time import monotonic

from proxy.inbound.server import tls_failure
from proxy.inbound.service import ListenerPolicy, Service
from proxy.inbound.session import Session, session_factory
from proxy.listening import BACKLOG

_CLIENT_HELLO = b"\x16"
_HELLO_SECONDS = 0.5
_HANDSHAKE_SECONDS = 60.0
_SWEEP_SECONDS = 1.0
_ACCEPT_PAUSE_SECONDS = 0.5
_GOODBYE_SECONDS = 0.1
_CROWDED_IDLE_SECONDS = 10.0


class Listeners:
    """All listeners of a process, from start to stop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._beginning: set[asyncio.Task[None]] = set()

    async def start(self, sockets: list[tuple[ListenerPolicy, socket.socket]]) -> None:
        """Accept clients from now on."""
        loop = asyncio.get_running_loop()
        for policy, sock in sockets:
            make = session_factory(self._service, policy)
            if policy.tls in ("implicit", "auto"):
                sock.listen(BACKLOG)
                self._tasks.append(loop.create_task(self._accept(sock, policy, make)))
            else:
                factory = _factory(make, secured=False)
                self._servers.append(await loop.create_server(factory, sock=sock, backlog=BACKLOG))
        self._tasks.append(loop.create_task(self._watch()))

    async def stop(self, delay_seconds: float, drain_seconds: float) -> None:
        """
        Stop: first only say so (``delay_seconds``, for load balancers to notice), then accept nobody, let what is in
        flight finish, and cut off what has not finished in ``drain_seconds``.
        """
        if delay_seconds:
            await asyncio.sleep(delay_seconds)
        self._service.stopping = True
        for server in self._servers:
            server.close()
        *accepting, watching = self._tasks
        for task in (*accepting, *self._beginning):
            task.cancel()
        for session in tuple(self._service.sessions):
            session.drain()
        until = monotonic() + drain_seconds
        # Polled, because a session has many ends, and one that forgot to tell would hold up the stop.
        while (self._service.sessions or self._service.closing) and monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        watching.cancel()
        left = (*self._service.sessions, *self._service.closing)
        if left:
            self._service.log.warning("drain_cut_off", sessions=len(left), drain_seconds=drain_seconds)
        if [session for session in left if session.cut_off()]:
            await asyncio.sleep(_GOODBYE_SECONDS)  # for the last words to be written
        for session in left:
            session.abort()
        await asyncio.gather(*self._tasks, *self._beginning, return_exceptions=True)

    async def _accept(self, sock: socket.socket, policy: ListenerPolicy, make: Callable[[bool], Session]) -> None:
        """Accept for a listener whose clients begin with TLS, or may do so."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    client, _ = await loop.sock_accept(sock)
                except OSError as error:  # out of file descriptors, or a client that was gone at once
                    self._service.log.warning("accept_failed", reason=str(error.strerror or error))
                    await asyncio.sleep(_ACCEPT_PAUSE_SECONDS)
                    continue
                if self._service.crowded:
                    client.close()
                    self._service.metrics.session_refused("too_many_connections")
                    continue
                task = loop.create_task(self._begin(client, policy, make))
                self._beginning.add(task)
                self._service.beginning = len(self._beginning)
                task.add_done_callback(self._begun)
        finally:
            sock.close()

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._beginning.discard(task)
        self._service.beginning = len(self._beginning)

    async def _begin(self, client: socket.socket, policy: ListenerPolicy, make: Callable[[bool], Session]) -> None:
        """Start a session, after the TLS handshake where the client begins with one."""
        secured = policy.tls == "implicit"
        address = ""
        try:
            client.setblocking(False)
            address = client.getpeername()[0]
            secured = secured or await _begins_with_tls(client)
            await asyncio.get_running_loop().connect_accepted_socket(
                _factory(make, secured=secured),
                client,
                ssl=self._service.certificates.context if secured else None,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS if secured else None,
            )
        except (OSError, ssl.SSLError) as error:  # OSError covers time-outs, too
            client.close()
            if secured:
                self._service.metrics.tls_failed()
                self._service.log.info("tls_failed", client=address, listener=policy.name, **tls_failure(error))
        except asyncio.CancelledError:
            client.close()
            raise

    async def _watch(self) -> None:
        """Hold clients to their time limits; when there is no room left, those who only sit there go first."""
        service = self._service
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = monotonic()
            crowded = service.crowded
            for session in tuple(service.sessions):
                if session.deadline < now or (crowded and session.idle_since < now - _CROWDED_IDLE_SECONDS):
                    session.expire()
            for session in tuple(service.closing):
                if session.deadline < now:
                    session.abort()


async def _begins_with_tls(client: socket.socket) -> bool:
    """Wait a little for the client's first octet, and look at it without taking it."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(client, _settle, readable)
    try:
        async with asyncio.timeout(_HELLO_SECONDS):
            await readable
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(client)
    return client.recv(1, socket.MSG_PEEK) == _CLIENT_HELLO


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _factory(make: Callable[[bool], Session], *, secured: bool) -> Callable[[], Session]:
    return lambda: make(secured)
