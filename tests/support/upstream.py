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
"""Instead of a reply, or as its last line: close the connection, reset it, or say nothing until the script changes."""
NOTHING = "nothing"
"""Instead of a reply: go on without one."""

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
    """
    One connection as the server saw it.

    Attributes:
        ahead: For each command what had arrived behind it when its reply was written: a pipelining client's next
            commands.
        octets: Size so far of the message that is being received; its transparency dots counted.
        ended_cleanly: The client said QUIT.
    """

    commands: list[str] = field(default_factory=list)
    ahead: list[bytes] = field(default_factory=list)
    octets: int = 0
    tls: bool = False
    closed: bool = False
    ended_cleanly: bool = False

    def count(self, verb: str) -> int:
        """How many commands with this verb came."""
        return sum(command.upper().startswith(verb) for command in self.commands)


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


Words = str | bytes
Reply = Words | Callable[[str], Words]


class Upstream:
    """
    A scripted server; use it as a context manager.

    Args:
        replies: By stage (``banner``, ``EHLO``, ``STARTTLS``, ``TLS``, ``AUTH``, ``MAIL``, ``RCPT``, ``DATA``, ``dot``,
            ``RSET``): a reply (several lines parted by LF), octets to send as they are, one of the words above, or a
            function of the command that gives one. ``username`` and ``password`` stand in place of what AUTH LOGIN asks
            for. ``TLS`` answers ClientHello in place of the handshake. ``after:N``
            acts when N octets of the message have arrived: its reply is sent early.
        extensions: What EHLO offers.
        context: TLS context; STARTTLS is offered with it.
        slow: Read message data only this fast, in octets a second; 0 for as fast as it comes.
        receive_buffer: Size of the kernel's buffer for what comes, in octets; 0 for what it likes.
        port: Where to listen; 0 for any free port.
        address: Where to listen, of 127.0.0.0/8 or ::1: several servers with one port stand for the hosts of a domain.

    Attributes:
        taken: Messages that were accepted or refused at the dot.
        dialogues: One for each connection, in order.
        pause: Seconds to wait before each reply to MAIL, RCPT and DATA, so that a client which does not wait shows.
        most_open: Connections that were open at a time, at most.
    """

    def __init__(
        self,
        replies: Mapping[str, Reply] | None = None,
        extensions: tuple[str, ...] = EXTENSIONS,
        context: ssl.SSLContext | None = None,
        *,
        implicit_tls: bool = False,
        slow: int = 0,
        receive_buffer: int = 0,
        port: int = 0,
        address: str = "127.0.0.1",
    ) -> None:
        self.replies: dict[str, Reply] = {**_DEFAULTS, **(replies or {})}
        self.extensions = extensions
        self.context = context
        self.implicit_tls = implicit_tls
        self.slow = slow
        self.pause = 0.0
        self.taken: list[Taken] = []
        self.dialogues: list[Dialogue] = []
        self.most_open = 0
        self._stopped = threading.Event()
        self._script_over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._conversations: list[_Conversation] = []
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, port), family=family, backlog=256)
        if receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "Upstream":
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def open(self) -> list[Dialogue]:
        """The dialogues whose connections are open."""
        return [dialogue for dialogue in self.dialogues if not dialogue.closed]

    def script(self, replies: Mapping[str, Reply] | None = None, extensions: tuple[str, ...] = EXTENSIONS) -> None:
        """Go on with another script, without one as a server should; who stalls by the old one closes."""
        self.replies = {**_DEFAULTS, **(replies or {})}
        self.extensions = extensions
        self.pause = 0.0
        self.slow = 0
        over, self._script_over = self._script_over, threading.Event()
        over.set()

    def hang_up(self) -> None:
        """Close all connections, and wait until the other side has noticed."""
        self._script_over.set()
        self._script_over = threading.Event()
        for conversation in tuple(self._conversations):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(conversation.sock, socket.SHUT_WR)  # without the goodbye of TLS
        self.wait_for(lambda: not self.open)

    def announce(self, reply: bytes) -> None:
        """Send octets on all open connections, though nobody asked."""
        for conversation in tuple(self._conversations):
            conversation.sock.sendall(reply)

    def stop(self) -> None:
        """Close everything."""
        self._stopped.set()
        self._script_over.set()
        for sock in (self._listener, *(conversation.sock for conversation in tuple(self._conversations))):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._accepting, *self._threads):
            thread.join(5)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until something is true of this server."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise AssertionError(f"not within {seconds} s: {self.dialogues[-5:]} {str(self.taken)[:1000]}")
            time.sleep(0.005)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            dialogue = Dialogue()
            self.dialogues.append(dialogue)
            self.most_open = max(self.most_open, len(self.open))
            thread = threading.Thread(target=self._serve, args=(_Conversation(self, sock, dialogue),), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, conversation: "_Conversation") -> None:
        self._conversations.append(conversation)
        try:
            conversation.run()
        except (OSError, EOFError):
            pass
        finally:
            self._conversations.remove(conversation)
            conversation.sock.close()
            conversation.dialogue.closed = True


class _Conversation:
    def __init__(self, server: Upstream, sock: socket.socket, dialogue: Dialogue) -> None:
        self.server = server
        self.sock = sock
        self.dialogue = dialogue
        self.buffer = b""
        self.mail = ""
        self.recipients: list[str] = []
        self.last = ""
        self.script_over = server._script_over

    def run(self) -> None:
        if self.server.implicit_tls and not self.secure():
            return
        if not self.say("banner", ""):
            return
        while True:
            line = self.line()
            self.script_over = self.server._script_over
            self.dialogue.commands.append(line)
            self.dialogue.ahead.append(b"")
            if not self.answer(line.split(" ")[0].upper(), line):
                return

    def answer(self, verb: str, line: str) -> bool:
        if verb in ("MAIL", "RCPT", "DATA"):
            self.look_ahead()
        if verb == "EHLO":
            return self.hello(line)
        if verb == "MAIL":
            self.mail, self.recipients = line, []
            return self.say("MAIL", line)
        if verb == "RCPT":
            return self.recipient(line)
        if verb == "DATA":
            return self.data(line)
        if verb == "STARTTLS":
            return self.say("STARTTLS", line) and (not self.last.startswith("220") or self.secure())
        if verb == "AUTH":
            return self.auth(line)
        if verb == "QUIT":
            self.dialogue.ended_cleanly = True
            return self.say("QUIT", line) and False
        return self.say(verb if verb in self.server.replies else "RSET", line)

    def recipient(self, line: str) -> bool:
        goes_on = self.say("RCPT", line)
        if self.last.startswith("2"):
            self.recipients.append(line)
        return goes_on

    def secure(self) -> bool:
        if "TLS" in self.server.replies:
            self.receive()
            return self.say("TLS", "") and self.wait_for_end()
        assert self.server.context is not None
        sock = self.server.context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        self.sock = sock
        sock.do_handshake()
        self.dialogue.tls = True
        self.buffer = b""
        return True

    def wait_for_end(self) -> bool:
        while self.sock.recv(65536):
            pass
        return False

    def look_ahead(self) -> None:
        """Note what the client sent without waiting for the reply to its last command."""
        if self.server.pause:
            time.sleep(self.server.pause)
            self.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                self.buffer += self.sock.recv(65536)
            self.sock.setblocking(True)
        self.dialogue.ahead[-1] = self.buffer

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
            for stage, challenge in (("username", "VXNlcm5hbWU6"), ("password", "UGFzc3dvcmQ6")):
                if stage in self.server.replies:
                    return self.say(stage, line)
                self.send(f"334 {challenge}")
                self.dialogue.commands.append(self.line())
                self.dialogue.ahead.append(b"")
        return self.say("AUTH", line)

    def data(self, line: str) -> bool:
        if not self.say("DATA", line):
            return False
        if not self.last.startswith("354"):
            return True
        octets = bytearray(b"\r\n")  # the line end of DATA may be the first half of the terminator
        early = sorted((int(key[6:]), key) for key in self.server.replies if key.startswith("after:"))
        searched = 0
        while True:
            octets += self.buffer
            self.buffer = b""
            self.dialogue.octets = len(octets) - 2
            while early and len(octets) - 2 >= early[0][0]:
                if not self.say(early.pop(0)[1], line):
                    return False
            end = octets.find(b"\r\n.\r\n", searched)
            if end >= 0:
                self.buffer = bytes(octets[end + 5 :])
                break
            searched = max(0, len(octets) - 4)
            self.receive()
        self.server.taken.append(Taken(self.mail, self.recipients, bytes(octets[2 : end + 2])))
        return self.say("dot", line)

    def say(self, stage: str, line: str) -> bool:
        reply = self.server.replies[stage]
        words = reply(line) if callable(reply) else reply
        if isinstance(words, bytes):
            self.last = words.decode("latin-1")
            self.sock.sendall(words)
            return True
        self.last = words
        if words == NOTHING:
            return True
        text, _, act = words.rpartition("\n")
        if act not in (CLOSE, RESET, STALL):
            text, act = words, ""
        if text:
            self.send(text)
        if act == RESET:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif act == STALL:
            self.script_over.wait(60)
        return not act and not text.startswith("421")

    def send(self, reply: str) -> None:
        self.sock.sendall("".join(f"{line}\r\n" for line in reply.split("\n")).encode("utf-8", "surrogateescape"))

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
