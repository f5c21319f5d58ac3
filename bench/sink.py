"""
The platform's stand-in: takes messages, keeps none, and says in its reply whether one was translated.

Run as ``python -m bench.sink ADDRESS PORT [CERTIFICATE KEY]``, it prints its port. With a certificate it offers
STARTTLS, and AUTH once TLS is on. It is made to cost little: content is only searched for its end, and its head for the
group's field. NOOP tells how many messages it has taken.
"""

import asyncio
import signal
import sys
from pathlib import Path
from ssl import SSLContext
from typing import cast

TAKEN = b"250 2.0.0 taken"
TRANSLATED = TAKEN + b", translated"
_GROUP = b"\r\nX-Cmail-GroupName: "
_END = b"\r\n.\r\n"
_HEAD_OCTETS = 4096
_TAIL_OCTETS = 32
_STALL_SECONDS = 3.0


class Session(asyncio.Protocol):
    """
    A client's session.

    The end of content is looked for in the last octets received: the proxy and the load generator send nothing behind
    it before they have the reply, and Postfix no more than one command.
    """

    taken = 0  # in all sessions

    def __init__(self, context: SSLContext | None) -> None:
        self._context = context
        self._tls = False
        self._transport: asyncio.Transport | None = None
        self._line = b""
        self._in_content = False
        self._head = b""
        self._tail = b""
        self._stalls = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast(asyncio.Transport, transport)
        self._write(b"220 sink.example.com ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        """Take content, or commands, which may be pipelined."""
        if self._in_content:
            self._content(data)
            return
        *lines, self._line = (self._line + data).split(b"\r\n")
        self._write(b"".join(map(self._answer, lines)))

    def _content(self, data: bytes) -> None:
        if len(self._head) < _HEAD_OCTETS:
            self._head += data[:_HEAD_OCTETS]
        self._tail = (self._tail + data[-_TAIL_OCTETS:])[-_TAIL_OCTETS:]
        end = self._tail.rfind(_END)
        if end >= 0:
            self._write((TRANSLATED if _GROUP in self._head else TAKEN) + b"\r\n")
            self._in_content = False
            Session.taken += 1
            if behind := self._tail[end + len(_END) :]:
                self.data_received(behind)
        elif self._stalls and self._transport is not None:
            self._stalls = False
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(_STALL_SECONDS, self._transport.resume_reading)

    def _answer(self, line: bytes) -> bytes:
        match line[:4].upper():
            case b"MAIL":
                self._stalls = False
                return b"250 2.1.0 OK\r\n"
            case b"RCPT":
                self._stalls = self._stalls or b"<stalled@" in line
                return b"250 2.1.5 OK\r\n"
            case b"DATA":
                self._in_content, self._head, self._tail = True, b"", b""
                return b"354 go on\r\n"
            case b"EHLO":
                return self._extensions()
            case b"AUTH":
                return b"235 2.7.0 OK\r\n"
            case b"STAR" if self._context is not None and not self._tls:
                self._write(b"220 2.0.0 ready\r\n")
                self._task = asyncio.get_running_loop().create_task(self._start_tls(self._context))
                return b""
            case b"QUIT":
                self._write(b"221 2.0.0 bye\r\n")
                if self._transport is not None:
                    self._transport.close()
                return b""
            case b"NOOP":
                return b"250 2.0.0 %d taken\r\n" % Session.taken
            case b"RSET" | b"HELO":
                return b"250 2.0.0 OK\r\n"
        return b"500 5.5.1 unknown\r\n"

    def _extensions(self) -> bytes:
        offers = [b"sink.example.com", b"PIPELINING", b"8BITMIME", b"SIZE 100000000", b"ENHANCEDSTATUSCODES"]
        if self._tls:
            offers.append(b"AUTH PLAIN")
        elif self._context is not None:
            offers.append(b"STARTTLS")
        return b"".join(b"250-" + offer + b"\r\n" for offer in offers) + b"250 SMTPUTF8\r\n"

    async def _start_tls(self, context: SSLContext) -> None:
        transport = self._transport
        if transport is None:
            return
        self._tls = True
        try:
            secured = await asyncio.get_running_loop().start_tls(transport, self, context, server_side=True)
        except OSError as error:
            print(f"no TLS: {error}", file=sys.stderr, flush=True)
            transport.abort()
            return
        self._transport = secured

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)


async def _serve(address: str, port: int, context: SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(lambda: Session(context), address, port, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    from bench.certificate import server_context
    from bench.loop import run

    files = [Path(name) for name in sys.argv[3:5]]
    run(_serve(sys.argv[1], int(sys.argv[2]), server_context(*files) if files else None))
