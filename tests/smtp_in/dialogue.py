"""A client that says exactly what a test tells it to, octet by octet, and reads the replies one by one."""

import base64
import re
import socket
import ssl
import struct
from types import TracebackType

from tests.support.proxy_process import WAIT_SECONDS

GREETING = "220 proxy.example.com ESMTP cmail-proxy"
START_MAIL = "354 End data with <CR><LF>.<CR><LF>"
TOO_MANY_ERRORS = "421 4.7.0 Too many errors, closing"
QUEUED = "250 2.0.0 queued as PLATFORM1"

ENHANCED = re.compile(r"([245])[0-9]{2}[ -]\1\.[0-9]{1,3}\.[0-9]{1,3} ")
"""How every line of a 2yz, 4yz or 5yz reply begins, but for greeting and HELO/EHLO (RFC 2034, 4)."""


class Client:
    """
    A connection; use it as a context manager.

    Args:
        greeted: Read the greeting, and require it to be ours.
        extended: Then say EHLO.
        source: Address to connect from.
        context: TLS from the first octet.
        server_hostname: Host name of SNI, for *context*.
    """

    def __init__(
        self,
        port: int,
        *,
        greeted: bool = True,
        extended: bool = True,
        source: str = "127.0.0.1",
        context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS, source_address=(source, 0))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock: socket.socket = plain
        self._buffer = b""
        if context is not None:
            self.sock = context.wrap_socket(plain, server_hostname=server_hostname)
        if greeted:
            greeting = self.reply()
            if greeting != GREETING:
                raise AssertionError(greeting)
            if extended:
                self.ehlo()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send octets as they are."""
        self.sock.sendall(data)

    def reply(self) -> str:
        """Read one reply; several lines are parted by LF. Empty when the proxy closed the connection instead."""
        lines: list[str] = []
        while True:
            while b"\r\n" not in self._buffer:
                try:
                    data = self.sock.recv(65536)
                except ConnectionResetError:  # closed while octets of ours were still on their way
                    data = b""
                if not data:
                    if self._buffer or lines:
                        raise AssertionError(f"half a reply: {lines} {self._buffer!r}")
                    return ""
                self._buffer += data
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            lines.append(line.decode("ascii"))
            if line[3:4] != b"-":
                return "\n".join(lines)

    def replies(self, count: int) -> list[str]:
        """Read as many replies."""
        return [self.reply() for _ in range(count)]

    def say(self, line: str) -> str:
        """Send a command line, and read its reply."""
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def ehlo(self) -> list[str]:
        """Say EHLO, and give what is offered."""
        hello, *offers = self.say("EHLO app.example.com").split("\n")
        if hello not in ("250-proxy.example.com", "250 proxy.example.com"):
            raise AssertionError(hello)
        return [offer[4:] for offer in offers]

    def closed(self) -> bool:
        """Whether nothing more comes but the end of the connection."""
        return self.reply() == ""

    def start_tls(self, context: ssl.SSLContext, server_hostname: str | None = None) -> ssl.SSLSocket:
        """Negotiate TLS, after STARTTLS was answered."""
        secured = context.wrap_socket(self.sock, server_hostname=server_hostname)
        self.sock = secured
        return secured

    def data(self, content: bytes) -> str:
        """Open a transaction for one recipient, send the content with its end as given, and read the last reply."""
        self.envelope()
        self.send(content)
        return self.reply()

    def envelope(self, *recipients: str) -> None:
        """Say MAIL, RCPT and DATA, and require all of them to be taken."""
        replies = [self.say("MAIL FROM:<app@example.com>")]
        replies += [self.say(f"RCPT TO:<{each}>") for each in recipients or ("ann@example.net",)]
        replies.append(self.say("DATA"))
        if not all(each.startswith("250 ") for each in replies[:-1]) or replies[-1] != START_MAIL:
            raise AssertionError(replies)

    def reset(self) -> None:
        """Break the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def plain(username: str, password: str) -> str:
    """The initial response of AUTH PLAIN (RFC 4616)."""
    return base64_of(f"\0{username}\0{password}")


def base64_of(text: str) -> str:
    """Text as AUTH carries it."""
    return base64.b64encode(text.encode()).decode("ascii")


def trusting(ca_file: str | None = None) -> ssl.SSLContext:
    """A client's TLS: checks certificates against *ca_file*, or takes any where none is given."""
    context = ssl.create_default_context(cafile=ca_file)
    if ca_file is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
