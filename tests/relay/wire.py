"""A wire between the proxy and the platform that writes down what passes, and who waited for whom."""

import contextlib
import socket
import threading
from collections.abc import Callable
from itertools import groupby
from types import TracebackType

OURS, THEIRS = "proxy", "platform"
APPLICATION_DATA = 23
"""Content type of a TLS record (RFC 8446, 5.1)."""


class Wire:
    """
    Forwards connections to a port of this machine; use it as a context manager.

    Attributes:
        port: Where to connect instead.
        passed: Who sent, and what, in order; written down before it is passed on, so nothing stands behind its answer.
    """

    def __init__(self, target: int) -> None:
        self.passed: list[tuple[str, bytes]] = []
        self._target = target
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "Wire":
        self._run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)

    def round_trips(self, since: int = 0) -> list[bytes]:
        """For each time that the proxy waited for the platform: all it had said since the time before."""
        turns = [(who, b"".join(octets for _, octets in said)) for who, said in groupby(self.passed[since:], _who)]
        return [said for who, said in turns if who == OURS]

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [near, far]
            self._run(self._pass_on, OURS, near, far)
            self._run(self._pass_on, THEIRS, far, near)

    def _pass_on(self, who: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.passed.append((who, data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def _who(said: tuple[str, bytes]) -> str:
    return said[0]


def records(octets: bytes) -> list[int]:
    """The content types of the TLS records in a part of a stream: each write gives one of its own, up to 16 KB."""
    found = []
    while octets:
        found.append(octets[0])
        octets = octets[5 + int.from_bytes(octets[3:5], "big") :]
    return found
