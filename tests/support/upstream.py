"""
An SMTP server on script: the platform as it should be, or with any fault at any point.

Thread per connection, blocking sockets: what it does, and when, is exactly what the script says.
"""

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

CLOSE = "close"
RESET = "reset"
STALL = "stall"
"""Instead of a reply: close the connection, reset it, or say nothing until the server is stopped."""

EXTENSIONS = ("SIZE 52428800", "8BITMIME", "PIPELINING", "ENHANCEDSTATUSCODES")

_DEFAULTS = {
    "banner": "220 platform.example ESMTP",
    "HELO": "250 platform.example",
    "STARTTLS": "220 2.0.0 go ahead",
    "AUTH": "235 2.7.0 accepted",
    "MAIL": "250 2.1.0 sender fine",
    "RCPT": "250 2.1.5 recipient fine",
    "DATA": "354 go ahead",
    "dot": "250 2.0.0 queued as PLATFORM1",
    "RSET": "250 2.0.0 reset",
    "NOOP": "250 2.0.0 fine",
    "QUIT": "221 2.0.0 bye",
}


@dataclass
class Dialogue:
    """One connection as the server saw it."""

    commands: list[str] = field(default_factory=list)
    tls: bool = False
    closed: bool = False
    ended_cleanly: bool = False
    """The client said QUIT."""


@dataclass
class Taken:
    """A message whose final dot arrived: the envelope, and the octets between 354 and the dot, dots still doubled."""

    mail: str
    recipients: list[str]
    octets: bytes

    @property
    def content(self) -> bytes:
        """The message without transparency dots."""
        return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in self.octets.split(b"\r\n"))


Reply = str | Callable[[str], str]


class Upstream:
    """
    A scripted server; use it as a context manager.

    Args:
        replies: By stage (``banner``, ``EHLO``, ``STARTTLS``, ``AUTH``, ``MAIL``, ``RCPT``, ``DATA``, ``dot``, ``RSET``):
            a reply (several lines parted by LF), one of the words above, or a function of the command that gives one.
            ``after:N`` acts when N octets of the message have arrived: its reply is sent early.
        extensions: What EHLO offers.
        context: TLS context; STARTTLS is offered with it.
        slow: Read message data only this fast, in octets a second; 0 for as fast as it comes.

    Attributes:
        taken: Messages that were accepted or refused at the dot.
        dialogues: One for each connection, in order.
    """

    def __init__(
        self,
        replies: Mapping[str, Reply] | None = None,
        extensions: tuple[str, ...] = EXTENSIONS,
        context: ssl.SSLContext | None = None,
        *,
        implicit_tls: bool = False,
        slow: int = 0,
    ) -> None:
        self.replies: dict[str, Reply] = {**_DEFAULTS, **(replies or {})}
        self.extensions = extensions
        self.context = context
        self.implicit_tls = implicit_tls
        self.slow = slow
        self.taken: list[Taken] = []
        self.dialogues: list[Dialogue] = []
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "Upstream":
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close everything."""
        self._stopped.set()
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in (self._accepting, *self._threads):
            thread.join(5)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until something is true of this server."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise AssertionError(f"not within {seconds} s: {self.dialogues} {self.taken}")
            time.sleep(0.01)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(sock)
            dialogue = Dialogue()
            self.dialogues.append(dialogue)
            thread = threading.Thread(target=self._serve, args=(sock, dialogue), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, dialogue: Dialogue) -> None:
        try:
            _Conversation(self, sock, dialogue).run()
        except (OSError, EOFError):
            pass
        finally:
            dialogue.closed = True
            sock.close()


class _Conversation:
    def __init__(self, server: Upstream, sock: socket.socket, dialogue: Dialogue) -> None:
        self.server = server
        self.sock = sock
        self.dialogue = dialogue
        self.buffer = b""
        self.mail = ""
        self.recipients: list[str] = []

    def run(self) -> None:
        if self.server.implicit_tls:
            self.secure()
        if not self.say("banner", ""):
            return
        while True:
            line = self.line()
            self.dialogue.commands.append(line)
            verb = line.split(" ")[0].upper()
            if verb == "EHLO":
                goes_on = self.hello(line)
            elif verb == "MAIL":
                self.mail, self.recipients = line, []
                goes_on = self.say("MAIL", line)
            elif verb == "RCPT":
                goes_on = self.say("RCPT", line, lambda: self.recipients.append(line))
            elif verb == "DATA":
                goes_on = self.data(line)
            elif verb == "STARTTLS":
                goes_on = self.say("STARTTLS", line)
                if goes_on and self.last.startswith("220"):
                    self.secure()
            elif verb == "AUTH":
                goes_on = self.auth(line)
            elif verb == "QUIT":
                self.dialogue.ended_cleanly = True
                self.say("QUIT", line)
                return
            else:
                goes_on = self.say(verb if verb in self.server.replies else "RSET", line)
            if not goes_on:
                return

    def secure(self) -> None:
        assert self.server.context is not None
        self.sock = self.server.context.wrap_socket(self.sock, server_side=True)
        self.server._sockets.append(self.sock)
        self.dialogue.tls = True
        self.buffer = b""

    def hello(self, line: str) -> bool:
        if "EHLO" in self.server.replies:
            return self.say("EHLO", line)
        offers = list(self.server.extensions)
        if self.server.context is not None and not self.dialogue.tls:
            offers.append("STARTTLS")
        lines = ["platform.example", *offers]
        self.send("\n".join(f"250{'-' if index < len(lines) - 1 else ' '}{each}" for index, each in enumerate(lines)))
        return True

    def auth(self, line: str) -> bool:
        if line.upper() == "AUTH LOGIN":
            for challenge in ("VXNlcm5hbWU6", "UGFzc3dvcmQ6"):
                self.send(f"334 {challenge}")
                self.dialogue.commands.append(self.line())
        return self.say("AUTH", line)

    def data(self, line: str) -> bool:
        if not self.say("DATA", line) or not self.last.startswith("354"):
            return self.last not in (CLOSE, RESET, STALL)
        octets = b""
        early = sorted((int(key[6:]), key) for key in self.server.replies if key.startswith("after:"))
        while True:
            while early and len(octets) + len(self.buffer) >= early[0][0]:
                if not self.say(early.pop(0)[1], line):
                    return False
            whole = b"\r\n" + octets + self.buffer
            end = whole.find(b"\r\n.\r\n")
            if end >= 0:
                octets, self.buffer = whole[2 : end + 2], whole[end + 5 :]
                break
            octets, self.buffer = octets + self.buffer[:-5], self.buffer[-5:]
            self.receive()
        self.server.taken.append(Taken(self.mail, self.recipients, octets))
        return self.say("dot", line)

    def say(self, stage: str, line: str, on_success: Callable[[], None] | None = None) -> bool:
        reply = self.server.replies[stage]
        self.last = reply if isinstance(reply, str) else reply(line)
        if self.last == CLOSE:
            return False
        if self.last == RESET:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if self.last == STALL:
            self.server._stopped.wait(60)
            return False
        if self.last.startswith("2") and on_success is not None:
            on_success()
        self.send(self.last)
        return not self.last.startswith("421")

    def send(self, reply: str) -> None:
        self.sock.sendall("".join(f"{line}\r\n" for line in reply.split("\n")).encode())

    def line(self) -> str:
        while b"\r\n" not in self.buffer:
            self.receive()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line.decode("utf-8", "surrogateescape")

    def receive(self) -> None:
        if self.server.slow:
            time.sleep(4096 / self.server.slow)
        data = self.sock.recv(4096 if self.server.slow else 65536)
        if not data:
            raise EOFError
        self.buffer += data
