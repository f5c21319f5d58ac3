"""
One SMTP connection to the next hop: greeting, EHLO, STARTTLS, AUTH, and then whatever the caller writes.

Pipelined commands are answered in order, one reply for each. Every wait is bounded.

Trust: the next hop is configured by the operator, yet a reply may hold anything; ``ReplyParser`` bounds and cleans it.
Source: RFC 5321 (4.5.3.2 for the time limits), RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 2920 (PIPELINING).
"""

import asyncio
import errno
import os
import re
import socket
import ssl
from base64 import b64encode
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import cast

from aiohappyeyeballs import AddrInfoType, start_connection
from attrs import frozen

from proxy.mail.reply import Reply, ReplyError, ReplyParser
from proxy.turns import turns_of

_PUNCTUATION = re.compile(r"[^A-Za-z0-9+]")
_GRAM = 6  # characters in a row that make a secret known
_REPLY_CODE = re.compile(r"the next hop said [2-5][0-9]{2}")
# Finds a connection that died at rest without a word (a rebooted peer, a forgotten NAT entry) within a minute.
_KEEPALIVE = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_MAX_ADDRESSES = 10
_REFUSALS = 400  # and above


class UpstreamError(Exception):
    """
    The connection cannot be had or cannot be used any more.

    Args:
        stage: Where it failed, from a closed list (label of a metric): ``connect``, ``banner``, ``ehlo``,
            ``starttls``, ``auth``, ``transaction``.
        reason: For the log.
        refused: Whether the next hop said no for good, or lacks what the settings ask for: trying again is no use.
        reply: What the next hop said, if it is that which ended it.
    """

    def __init__(self, stage: str, reason: str, *, refused: bool = False, reply: Reply | None = None) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason
        self.refused = refused
        self.reply = reply


STAGES = ("connect", "banner", "ehlo", "starttls", "auth", "transaction")


@frozen
class NextHop:
    """
    Where and how to connect.

    Args:
        tls: ``required``, ``opportunistic`` (STARTTLS if offered, certificate not checked), ``implicit`` or ``none``.
        context: Checks the certificate; for ``opportunistic`` one that does not.
        helo_name: What EHLO says.
        username, password: Empty for no AUTH.
        greeting_seconds: Limit for each reply before the first transaction; None for the shorter of connecting and
            replies, because an app waits for all of that inside one MAIL.
        helo: Whether HELO is tried after a refused EHLO (RFC 5321, 3.2).
    """

    host: str
    port: int
    tls: str
    context: ssl.SSLContext | None
    helo_name: str
    username: str = ""
    password: str = ""
    connect_seconds: float = 30
    reply_seconds: float = 300
    final_reply_seconds: float = 600
    greeting_seconds: float | None = None
    helo: bool = False


class Connection(asyncio.Protocol):
    """
    A connection that was greeted, secured and authenticated; made by :meth:`open`.

    Attributes:
        extensions: EHLO keywords (upper case) with their parameters.
        name: What the next hop calls itself in its reply to EHLO.
        secured: Whether TLS is on.
        lost: Why the connection is of no more use; empty while it is.
        idle_since: When it was last given back (monotonic seconds); 0 before the first time.
    """

    def __init__(self) -> None:
        self.extensions: dict[str, str] = {}
        self.name = ""
        self.secured = False
        self.lost = ""
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser = ReplyParser()
        self._replies: deque[Reply] = deque()
        self._expected = 0
        self._unsent: list[bytes] = []
        self._unsent_replies = 0
        self._loop = asyncio.get_running_loop()
        self._turns = turns_of(self._loop)
        self._reply_waiter: asyncio.Future[None] | None = None
        self._reply_due = 0.0  # when the reply that is waited for must be there, and within what time it was to come
        self._reply_limit = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._write_waiter: asyncio.Future[None] | None = None
        self._paused = False

    @classmethod
    async def open(cls, hop: NextHop, sock: socket.socket | None = None) -> "Connection":
        """
        Connect and get ready to send.

        Args:
            sock: Already connected; otherwise *hop*'s host is looked up and connected to. It is closed on failure.

        Raises:
            UpstreamError: It did not work out, whatever the reason.
        """
        connection = cls()
        try:
            await connection._connect(hop, sock)
            await connection._get_ready(hop)
        except BaseException:
            connection.close()
            if sock is not None and connection._transport is None:
                sock.close()
            raise
        return connection

    async def _connect(self, hop: NextHop, sock: socket.socket | None) -> None:
        context = hop.context if hop.tls == "implicit" else None
        self._expected = 1  # the greeting
        try:
            async with asyncio.timeout(hop.connect_seconds):
                sock = sock or await connected(hop.host, hop.port)
                await self._loop.create_connection(
                    lambda: self, sock=sock, ssl=context, server_hostname=hop.host if context else None
                )
        except TimeoutError:
            raise UpstreamError("connect", f"no connection within {hop.connect_seconds:g} s") from None
        except (OSError, ssl.SSLError, UnicodeError) as error:
            reason = _reason(error)
            if "WRONG_VERSION_NUMBER" in reason:
                reason += " (no TLS from the first octet on; with relay.tls: required it is asked for by STARTTLS)"
            raise UpstreamError("connect", reason) from None
        self.secured = context is not None

    async def _get_ready(self, hop: NextHop) -> None:
        # The greeting may take its time (RFC 5321, 4.5.3.2.1), but an app may wait for all of this inside one MAIL.
        limit = min(hop.connect_seconds, hop.reply_seconds) if hop.greeting_seconds is None else hop.greeting_seconds
        _require(await self._stage("banner", limit), 220, "banner")
        await self._hello(hop, limit)
        if hop.tls in ("required", "opportunistic"):
            if "STARTTLS" in self.extensions:
                await self._start_tls(hop, limit)
                await self._hello(hop, limit)
            elif hop.tls == "required":
                raise UpstreamError("starttls", "STARTTLS is not offered, and relay.tls is required", refused=True)
        if hop.username:
            await self._authenticate(hop, limit)

    async def _hello(self, hop: NextHop, limit: float) -> None:
        self.write(f"EHLO {hop.helo_name}\r\n".encode("ascii"))
        reply = await self._stage("ehlo", limit)
        if hop.helo and reply.permanent and not self.lost:
            self.write(f"HELO {hop.helo_name}\r\n".encode("ascii"))
            reply = await self._stage("ehlo", limit)
        _require(reply, 250, "ehlo")
        self.name = reply.text.partition("\n")[0].partition(" ")[0].lower()
        lines = (line.partition(" ") for line in reply.text.split("\n")[1:])
        self.extensions = {keyword.upper(): parameters for keyword, _, parameters in lines}

    async def _start_tls(self, hop: NextHop, limit: float) -> None:
        self.write(b"STARTTLS\r\n")
        _require(await self._stage("starttls", limit), 220, "starttls")
        if self._replies or self.lost or self._parser.pending:
            # Said before TLS, so it could be anybody's word (RFC 3207, 4.2).
            raise UpstreamError("starttls", self.lost or "octets behind the reply to STARTTLS")
        if self._transport is None or hop.context is None:
            raise UpstreamError("starttls", "no TLS context")
        try:
            async with asyncio.timeout(limit):
                transport = await self._loop.start_tls(self._transport, self, hop.context, server_hostname=hop.host)
        except TimeoutError:
            raise UpstreamError("starttls", f"no TLS within {limit:g} s") from None
        except (OSError, ssl.SSLError, ValueError) as error:  # ValueError: the name of an MX host that is no host name
            raise UpstreamError("starttls", _reason(error)) from None
        if transport is None:  # asyncio's way to say that the connection went away meanwhile
            raise UpstreamError("starttls", "connection closed")
        self._transport = transport
        self.secured = True

    async def _authenticate(self, hop: NextHop, limit: float) -> None:
        try:
            await self._log_in(hop, limit)
        except UpstreamError as error:
            reason = without_secrets(error.reason, (hop.username, hop.password))
            reply = error.reply
            if reply is not None and reason != error.reason:
                reply = Reply(reply.code, reply.enhanced, "(its text repeats the credentials)")
            raise UpstreamError("auth", reason, refused=error.refused, reply=reply) from None

    async def _log_in(self, hop: NextHop, limit: float) -> None:
        offered = self.extensions.get("AUTH", "").upper().split()
        user, password = hop.username.encode("utf-8"), hop.password.encode("utf-8")
        if "PLAIN" in offered:
            self.write(b"AUTH PLAIN " + b64encode(b"\0" + user + b"\0" + password) + b"\r\n")
            _require(await self._stage("auth", limit), 235, "auth")
        elif "LOGIN" in offered:
            self.write(b"AUTH LOGIN\r\n")
            _require(await self._stage("auth", limit), 334, "auth")
            self.write(b64encode(user) + b"\r\n")
            _require(await self._stage("auth", limit), 334, "auth")
            self.write(b64encode(password) + b"\r\n")
            _require(await self._stage("auth", limit), 235, "auth")
        else:
            reason = f"AUTH offers {' '.join(offered) or 'nothing'}; needed is PLAIN or LOGIN"
            raise UpstreamError("auth", reason, refused=True)

    async def _stage(self, stage: str, limit: float) -> Reply:
        try:
            return await self.reply(limit)
        except UpstreamError as error:
            raise UpstreamError(stage, error.reason) from None

    # For a transaction

    @property
    def pipelining(self) -> bool:
        """Whether commands may be sent before the last one is answered."""
        return "PIPELINING" in self.extensions

    @property
    def answered(self) -> bool:
        """Whether a reply is waiting, or none will ever come."""
        return bool(self._replies or self.lost)

    def write(self, data: bytes, replies: int = 1) -> None:
        """
        Send octets; nothing happens on a lost connection (the wait for the reply tells).

        What brings replies leaves in a row with what goes out on other connections, so perhaps not at once.

        Args:
            replies: How many replies this will bring; 0 for a part of something.
        """
        self._unsent.append(data)
        self._unsent_replies += replies
        if not replies:
            self._send()
        elif len(self._unsent) == 1:
            self._turns.send(self._send)

    def _send(self) -> None:
        """Send what was written. No reply that was there before is one to it."""
        data = self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent)
        self._unsent.clear()
        self._expected += self._unsent_replies
        self._unsent_replies = 0
        if data and self._transport is not None and not self.lost:
            self._transport.write(data)

    async def writable(self, limit: float) -> None:
        """Wait until the next hop takes more; also ends when a reply comes early or the connection is lost."""
        if not self._paused or self.answered:
            return
        self._write_waiter = self._loop.create_future()
        try:
            async with asyncio.timeout(limit):
                await self._write_waiter
        except TimeoutError:
            self._lose(f"took nothing for {limit:g} s")
        finally:
            self._write_waiter = None

    async def reply(self, limit: float) -> Reply:
        """
        Wait for the next reply.

        Raises:
            UpstreamError: None came within *limit* seconds, or the connection was lost.
        """
        if not self._replies and not self.lost:
            self._reply_waiter = self._loop.create_future()
            self._watch(limit)
            try:
                await self._reply_waiter
            finally:
                self._reply_waiter = None
        if not self._replies:
            raise UpstreamError("transaction", self.lost)
        self._expected -= 1
        return self._replies.popleft()

    def _watch(self, limit: float) -> None:
        """Limit the wait for a reply; the timer of an earlier wait is left to run, and looks again when it is due."""
        self._reply_limit = limit
        self._reply_due = due = self._loop.time() + limit
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._reply_waiter is None or self.lost:
            return
        if self._loop.time() < self._reply_due:
            self._timer = self._loop.call_at(self._reply_due, self._look)
        else:
            self._lose(f"no reply within {self._reply_limit:g} s")

    def close(self) -> None:
        """Close at once; a message under way is not completed."""
        self._lose("closed here")

    def quit(self) -> None:
        """Say goodbye politely, without waiting for the answer."""
        self.write(b"QUIT\r\n")
        self._send()
        self.lost = self.lost or "closed here"
        self._forget_timer()
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._replies.extend(self._parser.feed(data))
        except ReplyError as error:
            self._replies.extend(error.replies)  # said before the nonsense, so it counts
            self._lose(str(error))
        if len(self._replies) > self._expected:
            # Nobody asked: mostly 421 before the next hop hangs up. The connection has no future.
            self._lose(f"unasked reply {self._replies[-1]}")
            if self._unsent:
                self._keep_refusal()
        self._wake()

    def _keep_refusal(self) -> None:
        """Sort what came before its command has left: it may be a refusal, but never a success."""
        early = [self._replies.pop() for _ in range(len(self._replies) - self._expected)]
        if early[-1].code >= _REFUSALS:
            self._replies.append(early[-1])

    def eof_received(self) -> None:
        self._lose("closed by the next hop")

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(_reason(error) if error else "closed by the next hop")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    def _lose(self, reason: str) -> None:
        if not self.lost:
            self.lost = reason
            if self._transport is not None:
                self._transport.abort()
            self._forget_timer()
        self._wake()

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        reply, write = self._reply_waiter, self._write_waiter
        if reply is not None and not reply.done() and self.answered:
            reply.set_result(None)
        if write is not None and not write.done() and (self.answered or not self._paused):
            write.set_result(None)

    def rest(self) -> None:
        """Note that nobody uses the connection from now on."""
        self.idle_since = monotonic()


async def connected(host: str, port: int) -> socket.socket:
    """
    Connect by TCP to one of the addresses of a host.

    They are tried a quarter of a second apart, families in turn, and the first that answers is taken: an address that
    is out of order must not hold up the mail (RFC 8305).

    Raises:
        OSError: None can be reached.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await _reached(found[:_MAX_ADDRESSES])


async def connected_to(addresses: Sequence[str], port: int) -> socket.socket:
    """
    Connect by TCP to one of some IP addresses, in the way of :func:`connected`; nothing is looked up.

    Raises:
        OSError: None can be reached.
    """
    infos: list[AddrInfoType] = []
    for address in addresses[:_MAX_ADDRESSES]:
        if ":" in address:
            infos.append((socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, 0)))
        else:
            infos.append((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)))
    return await _reached(infos)


async def _reached(infos: Sequence[AddrInfoType]) -> socket.socket:
    loop = asyncio.get_running_loop()
    sock = await start_connection(infos, happy_eyeballs_delay=0.25, interleave=1, loop=loop)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):  # all of Linux; other systems have some of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


def _require(reply: Reply, code: int, stage: str) -> Reply:
    if reply.code != code:
        raise UpstreamError(stage, f"the next hop said {reply}", refused=reply.permanent, reply=reply)
    return reply


def without_secrets(text: str, secrets: Sequence[str]) -> str:
    """
    Make what a peer said in AUTH fit for the log.

    It may repeat what it was sent: as it was or in base64, in part, over several lines, or as no reply at all. So a few
    characters of a secret in a row are enough to leave the text out; the reply code stays.
    """
    octets = [secret.encode("utf-8") for secret in secrets]
    forms = [*octets, *map(b64encode, octets), b64encode(b"\0" + b"\0".join(octets))]
    said, words = _PUNCTUATION.sub("", text), _PUNCTUATION.split(text)
    for form in forms:
        bare = _PUNCTUATION.sub("", form.decode("latin-1"))
        pieces = {bare[start : start + _GRAM] for start in range(len(bare) - _GRAM + 1)}
        if any(piece in said for piece in pieces) or (bare and bare in words):
            code = _REPLY_CODE.search(text)
            return f"{code[0] if code else 'the next hop said something'} (its text repeats the credentials)"
    return text


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and (error.errno or 0) in errno.errorcode:
        return os.strerror(error.errno or 0)  # asyncio has texts of its own
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__
