"""
A client's connection: transport, TLS, time limits, lines in and replies out. The only module that knows aiosmtpd.

From aiosmtpd come the protocol class, its constructor's checks (run once for each listener, on a prototype), the
convention of ``smtp_*`` verbs and their syntax texts for HELP. Replaced are the parts that were measured to be slow or
loose: the reading of commands and data by line, time limits that are reset at every command, STARTTLS by a second
protocol object, replies without enhanced status codes, and verbs that take an address apart and put it together again.

Trust: anybody who can connect. Nothing said before STARTTLS counts after it; every wait on the client is bounded by
``deadline``, which ``listeners`` watches; every count of errors has an end.
Source: RFC 5321, 4.5.3; RFC 3207 (STARTTLS); RFC 2920 (PIPELINING: replies leave together).
"""

import asyncio
import ssl
from collections import deque
from time import monotonic
from typing import Any, cast

from aiosmtpd.smtp import SMTP, syntax

from proxy.inbound import commands
from proxy.inbound.reader import ByteReader, ClientSilentError
from proxy.inbound.service import ListenerPolicy, Service
from proxy.mail.reply import Reply
from proxy.route import ClientGoneError
from proxy.turns import turns_of

__all__ = ["Connection", "HangUp", "Prototype", "prototype", "syntax"]

MAX_ERRORS = 10
MAX_IDLE_COMMANDS = 100  # that lead to no message: NOOP, RSET, VRFY …
_CLOSE_SECONDS = 10.0
_TLS_SECONDS = 60.0
_DRAIN_SECONDS = 2.0  # for an app between two commands of a transaction; it has as much as sent its message
_NEVER = float("inf")

Prototype = dict[str, Any]
"""What every connection of a listener starts from."""


class HangUp(Exception):
    """Close the connection, after what was written has gone out."""


def tls_failure(error: BaseException) -> dict[str, str]:
    """Say in a log line why a handshake failed, and what to do where that is known."""
    reason = str(error)
    if any(alert in reason for alert in ("UNKNOWN_CA", "CERTIFICATE_UNKNOWN", "BAD_CERTIFICATE")):
        hint = "the client does not trust our certificate; with tls.self_signed, give it tls/ca.pem of data_dir"
        return {"reason": reason, "hint": hint}
    return {"reason": reason}


def prototype(service: Service) -> Prototype:
    """Run aiosmtpd's constructor once: it finds its methods by reflection, a sixth of the cost of a short session."""
    return dict(vars(SMTP(object(), hostname=service.hostname, loop=asyncio.get_running_loop())))


class Connection(SMTP):
    """A client's connection, from greeting to goodbye."""

    def __init__(self, service: Service, policy: ListenerPolicy, start: Prototype, *, secured: bool) -> None:
        self.__dict__.update(start)  # in place of aiosmtpd's constructor, see prototype()
        self._drain_waiters: deque[asyncio.Future[None]] = deque()
        self._service = service
        self._policy = policy
        self.deadline = _NEVER
        self.idle_since = _NEVER
        self._in = ByteReader()
        self._out: list[bytes] = []
        self._sending = False
        self._turns = turns_of(self.loop)
        self._tls = secured
        self._errors = 0
        self._idle_commands = 0
        self._draining = False
        self._cut_off = False
        self._reading = False
        self._handshaking = False
        self._address = ""
        self._id = service.new_id()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the session, or turn the client away when there are too many."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if isinstance(peer, tuple) else "unix"
        self._in.attach(transport)
        service = self._service
        if service.stopping or service.crowded:
            self._turn_away()
            return
        if self._tls:
            self._note_tls(transport)
        service.sessions.add(self)
        service.metrics.session_opened(self._policy.name)
        self._handler_coroutine = self.loop.create_task(self._handle_client())

    def _turn_away(self) -> None:
        service = self._service
        service.metrics.session_refused("shutting_down" if service.stopping else "too_many_connections")
        reply = commands.SHUTTING_DOWN if service.stopping else commands.TOO_MANY_CONNECTIONS
        self._write(reply.to_bytes())
        self._close()

    def data_received(self, data: bytes) -> None:
        """Buffer what comes."""
        self._in.feed(data)

    def eof_received(self) -> bool:
        """Keep a half-closed connection open: a client that sent its dot and QUIT still wants to read the answers."""
        self._in.feed_eof()
        return not self._tls  # TLS has no half-closed state

    def connection_lost(self, error: Exception | None) -> None:
        """Let the session notice by itself: what the next hop is about to answer is still worth knowing."""
        asyncio.streams.FlowControlMixin.connection_lost(self, error)
        self._in.feed_eof()
        self.transport = None
        self._service.closing.discard(self)

    def expire(self) -> None:
        """End the session: its client took too long."""
        self.deadline = monotonic() + _CLOSE_SECONDS  # for the client to take the goodbye
        if self._reading:
            self._in.expire()
        else:
            self.abort()

    def drain(self) -> None:
        """End the session as soon as no message is in flight."""
        self._draining = True
        if self._handshaking:
            self.abort()
        if self._reading and not self._in_transaction():
            self._in.expire()
        elif self._reading and not self._in_message():
            self.deadline = min(self.deadline, monotonic() + _DRAIN_SECONDS)

    def leave(self) -> None:
        """End the session because its client left."""
        if self._handler_coroutine is not None:
            self._cut_off = True
            self._handler_coroutine.cancel()

    def cut_off(self) -> bool:
        """End the session now, whatever it is doing; True where it will first say so, to the client and in the log."""
        if self._handler_coroutine is None or self._handshaking or self.transport is None:
            self.abort()
            return False
        self._cut_off = True
        self._handler_coroutine.cancel()
        return True

    def abort(self) -> None:
        """End the session now, and say nothing."""
        if self._handshaking and self._handler_coroutine is not None:
            self._handler_coroutine.cancel()  # the event loop does not tell it that its transport went away
        if self.transport is not None:
            cast(asyncio.WriteTransport, self.transport).abort()

    async def _converse(self) -> None:
        """Take commands until the client leaves; for the subclass that knows them."""
        raise HangUp

    def _in_transaction(self) -> bool:
        """Whether a mail transaction is open."""
        return False

    def _in_message(self) -> bool:
        """Whether a message is being taken."""
        return False

    def _forget_transaction(self) -> None:
        """End the transaction that is open, if any."""

    async def _handle_client(self) -> None:
        """Serve the client until it leaves."""
        try:
            self._reply_raw(f"220 {self._service.hostname} ESMTP cmail-proxy\r\n".encode("ascii"))
            await self._converse()
        except HangUp:
            pass
        except ClientSilentError as error:
            if not self._draining:
                self._service.metrics.session_dropped(error.reason)
            self._reply(commands.SHUTTING_DOWN if self._draining else commands.TIMEOUT)
        except ClientGoneError:
            pass
        except asyncio.CancelledError:
            if not self._cut_off:
                raise
            self._reply(commands.SHUTTING_DOWN)
        except (OSError, ssl.SSLError) as error:
            self._service.log.debug("connection_lost", session=self._id, reason=str(error))
        except Exception as error:  # the last resort: a bug costs this session and is told, and the process goes on
            self._service.metrics.internal_error("session")
            self._service.log.error("internal_error", session=self._id, exc=error)
            self._reply(commands.INTERNAL_ERROR)
        finally:
            self._forget_transaction()
            self._send_now()
            self._close()
            self._service.sessions.discard(self)
            self._service.metrics.session_closed(self._policy.name)

    def _close(self) -> None:
        self.deadline = monotonic() + _CLOSE_SECONDS
        if self.transport is not None:
            self.transport.close()
            self._service.closing.add(self)

    # Reading and writing

    async def _line(self, longest: int) -> bytes:
        """
        Give the next line.

        A client that sends no line end is cut off, whatever it is about to say; and its time begins with the first
        octet that is missing, so that an octet now and then buys it none.
        """
        began = monotonic()
        while (line := self._in.line()) is None:
            await self._more(self._patience(longest), began)
        return line

    def _patience(self, longest: int) -> float:
        """Say for how many seconds to wait for the rest of a line; HangUp where there is nothing to wait for."""
        if len(self._in.buffer) > longest:
            self._service.metrics.session_dropped("overlong_line")
            self._reply(commands.LINE_TOO_LONG)
            raise HangUp
        if not self._draining:
            return self._service.limits.idle_seconds
        if not self._in_transaction():
            self._reply(commands.SHUTTING_DOWN)
            raise HangUp
        return _DRAIN_SECONDS

    async def _more(self, seconds: float, began: float) -> None:
        """Have sent what was written, and wait for the client, for so many seconds since *began*."""
        if self._out:
            self._send()
        if self._paused:  # type: ignore[attr-defined]
            await self._sent()
        reader = self._in
        if reader.eof:
            raise ClientGoneError
        self.deadline = began + seconds
        self.idle_since = _NEVER if self._in_transaction() else began
        self._reading = True
        try:
            await reader.wait()
        finally:
            self._reading = False
            self.deadline = self.idle_since = _NEVER
        if not reader.waited():
            raise ClientGoneError

    async def _flush(self) -> None:
        """Send what was written, and wait for the client where it does not take it."""
        self._send_now()
        if self._paused:  # type: ignore[attr-defined]
            await self._sent()

    def _send(self) -> None:
        """Have what was written sent, in a row with what other clients are told."""
        if not self._sending:
            self._sending = True
            self._turns.send(self._send_now)

    def _send_now(self) -> None:
        self._sending = False
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._write(data)

    async def _sent(self) -> None:
        """Wait by asyncio's flow control: the client does not read its replies; it has as long as for a command."""
        self.deadline = monotonic() + self._service.limits.idle_seconds
        try:
            await self._drain_helper()  # type: ignore[attr-defined]
        except ConnectionResetError:
            raise ClientGoneError from None
        finally:
            self.deadline = _NEVER

    def _write(self, data: bytes) -> None:
        if self.transport is not None and data:
            self.transport.write(data)  # type: ignore[attr-defined]

    def _reply(self, reply: Reply) -> None:
        """Queue a reply; it goes out with those of a pipeline before the next wait for the client."""
        self._out.append(reply.to_bytes())

    def _reply_raw(self, reply: bytes) -> None:
        self._out.append(reply)

    def _error(self, reply: Reply) -> None:
        """Answer a mistake, and count it: ten in a session are no mistake."""
        self._told(reply)
        self._errors += 1
        if self._errors >= MAX_ERRORS:
            self._service.metrics.session_dropped("too_many_errors")
            self._reply(commands.TOO_MANY_ERRORS)
            raise HangUp
        self._reply(reply)

    def _told(self, reply: Reply) -> None:
        """Tell the operator of a mistake; for the subclass that knows the command."""

    def _who(self) -> dict[str, object]:
        """Say in a log line whose session this is."""
        return {"session": self._id, "client": self._address, "listener": self._policy.name}

    def _idle(self, reply: Reply) -> None:
        """Answer a command that leads nowhere."""
        self._count_idle()
        self._reply(reply)

    def _count_idle(self) -> None:
        """Commands that lead nowhere have an end, too."""
        self._idle_commands += 1
        if self._idle_commands > MAX_IDLE_COMMANDS:
            self._service.metrics.session_dropped("too_many_errors")
            self._reply(commands.TOO_MANY_ERRORS)
            raise HangUp

    async def _start_tls(self) -> None:
        context = self._service.certificates.context
        transport = self.transport
        if context is None or transport is None:
            raise ClientGoneError
        self.deadline = monotonic() + _TLS_SECONDS
        self._handshaking = True
        self.transport = None  # the TLS layer has it now, and may not tell of its end
        try:
            secured = await self.loop.start_tls(
                cast(asyncio.WriteTransport, transport), self, context, server_side=True
            )
        except (OSError, ssl.SSLError) as error:
            self._service.metrics.tls_failed()
            self._service.log.info("tls_failed", **self._who(), **tls_failure(error))
            cast(asyncio.WriteTransport, transport).abort()
            raise HangUp from None
        except asyncio.CancelledError:
            cast(asyncio.WriteTransport, transport).abort()
            raise
        finally:
            self._handshaking = False
            self.deadline = _NEVER
        if secured is None:
            raise ClientGoneError
        self.transport = secured
        self._in.attach(secured)
        self._tls = True
        self._note_tls(secured)

    def _note_tls(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        self._service.metrics.tls_started(tls.version() if tls is not None else None)
