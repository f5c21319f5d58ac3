"""
Next hops that read more loosely than RFC 5321 allows: the kind that smuggling aims at.

Each takes what it thinks is a line end or an end of data, so what it counts as messages is what an attacker would get.
"""

import contextlib
import re
import socket
import threading
from types import TracebackType

READINGS: dict[str, tuple[re.Pattern[bytes], bytes]] = {
    "strict": (re.compile(rb"\r\n"), b""),
    "bare-lf": (re.compile(rb"\r?\n"), b""),
    "bare-cr": (re.compile(rb"\r\n|\r(?=[^\n])"), b""),
    "any": (re.compile(rb"\r\n|\n|\r(?=[^\n])"), b""),
    "cr-runs": (re.compile(rb"\r*\n"), b""),
    "no-nul": (re.compile(rb"\r\n"), b"\0"),
    "no-nul-any": (re.compile(rb"\r\n|\n|\r(?=[^\n])"), b"\0"),
}
"""By name: what ends a line, and octets that are dropped before anybody looks."""


class LenientHop:
    """
    A server that reads as :attr:`reading` says; use it as a context manager.

    Attributes:
        reading: A name from ``READINGS``; may be changed between messages.
        messages: The content of each message it believes to have got.
        commands: Every command it believes to have got.
    """

    def __init__(self) -> None:
        self.reading = "strict"
        self.messages: list[list[bytes]] = []
        self.commands: list[bytes] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "LenientHop":
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._accepting.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            _Reader(self, sock).run()


class _Reader:
    def __init__(self, hop: LenientHop, sock: socket.socket) -> None:
        self.hop = hop
        self.sock = sock
        self.buffer = b""

    def run(self) -> None:
        self.say("220 lenient.example ESMTP")
        while True:
            line = self.line()
            self.hop.commands.append(line)
            verb = line[:4].upper()
            if verb == b"EHLO":
                self.say("250-lenient.example\r\n250-8BITMIME\r\n250 PIPELINING")
            elif verb == b"DATA":
                self.say("354 go ahead")
                content = []
                while (line := self.line()) != b".":
                    content.append(line.removeprefix(b"."))
                self.hop.messages.append(content)
                self.say("250 2.0.0 queued as PLATFORM1")
            elif verb == b"QUIT":
                self.say("221 2.0.0 bye")
                return
            else:
                self.say("250 2.0.0 fine")

    def line(self) -> bytes:
        while True:
            end, dropped = READINGS[self.hop.reading]
            found = end.search(self.buffer)
            if found:
                line, self.buffer = self.buffer[: found.start()], self.buffer[found.end() :]
                return line
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data.replace(dropped, b"") if dropped else data

    def say(self, reply: str) -> None:
        self.sock.sendall(f"{reply}\r\n".encode())
