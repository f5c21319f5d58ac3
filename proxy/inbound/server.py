"""
One SMTP session. The only module that knows aiosmtpd.

From aiosmtpd come the protocol class, its constructor's checks (run once for each listener, on a prototype), the table of
``smtp_*`` verbs and their syntax texts for HELP. Replaced are the parts that were measured to be slow or loose: the
reading of commands and data by line, time limits that are reset at every command, STARTTLS by a second protocol
object, replies without enhanced status codes, and verbs that take an address apart and put it together again.

Trust: anybody who can connect. Nothing said before STARTTLS counts after it; every wait on the client is bounded by
``deadline``, which ``listeners`` watches; every count of errors has an end.
Source: RFC 5321, RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 2920 (PIPELINING).
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from time import monotonic
from typing import Any, ClassVar, cast

from aiosmtpd.smtp import SMTP, syntax

from proxy.inbound import auth, commands, trace
from proxy.inbound.auth import Login
from proxy.inbound.content import StreamedContent
from proxy.inbound.discard import DiscardTransaction
from proxy.inbound.message import GIVEN_UP, Submission, receive
from proxy.inbound.reader import ByteReader, ClientSilentError
from proxy.inbound.service import ListenerPolicy, Service
from proxy.mail.envelope import Envelope
from proxy.mail.reply import SERVICE_CLOSING, Reply
from proxy.route import ClientGoneError, Transaction

MAX_ERRORS = 10
MAX_IDLE_COMMANDS = 100  # that lead to no message: NOOP, RSET, VRFY …
MAX_AUTH_FAILURES = 5
MAX_EXCESS_RECIPIENTS = 100
_AUTH_FAILURE_DELAY = 1.0
_BLOCK_SECONDS = 180.0
_NEVER = float("inf")

_Verb = Callable[["Session", str], Awaitable[None]]


class _HangUp(Exception):
    """Close the connection, after what was written has gone out."""


class Session(SMTP):
    """A client's connection, from greeting to goodbye."""

    _verbs: ClassVar[dict[bytes, _Verb]] = {}  # filled below the class

    def __init__(
        self, service: Service, policy: ListenerPolicy, prototype: dict[str, Any], *, implicit_tls: bool
    ) -> None:
        # Not aiosmtpd's own constructor: it finds its methods by reflection, a sixth of the cost of a short session.
        self.__dict__.update(prototype)
        self._drain_waiters: deque[asyncio.Future[None]] = deque()
        self._service = service
        self._policy = policy
        self._implicit_tls = implicit_tls
        self.deadline = _NEVER
        self.idle_since = _NEVER
        self._in = ByteReader()
        self._out: list[bytes] = []
        self._helo = ""
        self._extended = False
        self._tls = False
        self._login: Login | None = None
        self._open: Transaction | None = None
        self._envelope: Envelope | None = None
        self._recipients: list[str] = []
        self._began = 0.0
        self._errors = 0
        self._idle_commands = 0
        self._auth_failures = 0
        self._messages = 0
        self._draining = False
        self._reading = False
        self._address = ""
        self._id = service.new_id()

    # Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the session, or turn the client away when there are too many."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if isinstance(peer, tuple) else "unix"
        self._in.attach(transport)
        service = self._service
        if service.stopping or len(service.sessions) >= service.connections:
            self._turn_away()
            return
        if self._implicit_tls:
            cast(asyncio.ReadTransport, transport).pause_reading()  # the first octets are for the TLS layer
        service.sessions.add(self)
        service.metrics.session_opened(self._policy.name)
        self._handler_coroutine = self.loop.create_task(self._handle_client())

    def _turn_away(self) -> None:
        service = self._service
        service.metrics.session_refused("shutting_down" if service.stopping else "too_many_connections")
        if not self._implicit_tls:
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
        self.deadline = monotonic() + 10  # for the client to take the goodbye
        if self._reading:
            self._in.expire()
        else:
            self.abort()

    def drain(self) -> None:
        """End the session as soon as no message is in flight."""
        self._draining = True
        if self._reading and self._envelope is None:
            self._in.expire()

    def abort(self) -> None:
        """End the session now."""
        if self.transport is not None:
            cast(asyncio.WriteTransport, self.transport).abort()

    async def _handle_client(self) -> None:
        """Serve the client until it leaves."""
        try:
            if self._implicit_tls:
                await self._start_tls()
            self._reply_raw(f"220 {self._service.hostname} ESMTP cmail-proxy\r\n".encode("ascii"))
            while True:
                await self._command()
        except _HangUp:
            pass
        except ClientGoneError:
            pass
        except ClientSilentError:
            if not self._draining:
                self._service.metrics.session_dropped("idle")
            self._reply(commands.SHUTTING_DOWN if self._draining else commands.TIMEOUT)
        except (OSError, ssl.SSLError) as error:
            self._service.log.debug("connection_lost", session=self._id, reason=str(error))
        except Exception as error:  # noqa: BLE001 - a bug must cost this session only, and be told
            self._service.metrics.internal_error("session")
            self._service.log.error("internal_error", session=self._id, error=repr(error), exc=error)
            self._reply(commands.INTERNAL_ERROR)
        finally:
            self._forget_transaction()
            self._write(b"".join(self._out))
            self._close()
            self._service.sessions.discard(self)
            self._service.metrics.session_closed(self._policy.name)

    def _close(self) -> None:
        self.deadline = monotonic() + 10
        if self.transport is not None:
            self.transport.close()
            self._service.closing.add(self)

    # Reading and writing

    async def _command(self) -> None:
        line = self._in.line()
        while line is None:
            if len(self._in.buffer) > max(commands.MAX_LINE_OCTETS.values()):
                self._service.metrics.session_dropped("overlong_line")
                self._reply(commands.LINE_TOO_LONG)
                raise _HangUp
            if self._draining and self._envelope is None:
                self._reply(commands.SHUTTING_DOWN)
                raise _HangUp
            await self._more(self._service.limits.idle_seconds)
            line = self._in.line()
        verb, _, rest = line.partition(b" ")
        verb = verb.strip(b"\r\n").upper()
        if len(line) > commands.MAX_LINE_OCTETS.get(verb, commands.DEFAULT_LINE_OCTETS):
            self._error(commands.LINE_TOO_LONG)
            return
        try:
            argument = rest.removesuffix(b"\r\n").decode("utf-8")
        except UnicodeDecodeError:
            self._error(commands.BAD_LINE)
            return
        if not line.endswith(b"\r\n") or not argument.isprintable():
            self._error(commands.BAD_LINE)
            return
        method = self._verbs.get(verb)
        if method is None:
            self._error(commands.UNKNOWN)
            return
        await method(self, argument)

    async def _more(self, seconds: float) -> None:
        """Send what was written, and wait for the client."""
        await self._flush()
        now = monotonic()
        self.deadline = now + seconds
        self.idle_since = now if self._envelope is None else _NEVER
        self._reading = True
        try:
            if not await self._in.more():
                raise ClientGoneError
        finally:
            self._reading = False
            self.deadline = self.idle_since = _NEVER

    async def _more_content(self) -> None:
        await self._more(_BLOCK_SECONDS)

    async def _flush(self) -> None:
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._write(data)
            if self._paused:  # the client does not read its replies; it has as long as for a command
                self.deadline = monotonic() + self._service.limits.idle_seconds
                await self._drain_helper()
                self.deadline = _NEVER

    def _write(self, data: bytes) -> None:
        if self.transport is not None and data:
            cast(asyncio.WriteTransport, self.transport).write(data)

    def _reply(self, reply: Reply) -> None:
        """Queue a reply; it goes out with those of a pipeline before the next wait for the client."""
        self._out.append(reply.to_bytes())

    def _reply_raw(self, reply: bytes) -> None:
        self._out.append(reply)

    def _error(self, reply: Reply) -> None:
        """Answer a mistake, and count it: ten in a session are no mistake."""
        self._errors += 1
        if self._errors >= MAX_ERRORS:
            self._service.metrics.session_dropped("too_many_errors")
            self._reply(commands.TOO_MANY_ERRORS)
            raise _HangUp
        self._reply(reply)

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
            raise _HangUp

    # Verbs

    @syntax("HELO hostname")
    async def smtp_HELO(self, hostname: str) -> None:
        """Greet without extensions."""
        await self._hello(hostname, extended=False)

    @syntax("EHLO hostname")
    async def smtp_EHLO(self, hostname: str) -> None:
        """Greet and say what is offered."""
        await self._hello(hostname, extended=True)

    async def _hello(self, hostname: str, *, extended: bool) -> None:
        name = commands.client_name(hostname)
        if name is None:
            self._error(commands.HELO_SYNTAX)
            return
        self._count_idle()
        self._forget_transaction()
        self._helo = name
        self._extended = extended
        if not extended:
            self._reply_raw(f"250 {self._service.hostname}\r\n".encode("ascii"))
            return
        limit = self._service.limits.message_octets
        offers = commands.offers(
            self._service.route.capabilities, limit, tls=self._offers_tls(), auth=self._may_authenticate()
        )
        self._reply_raw(commands.ehlo(self._service.hostname, offers))

    def _offers_tls(self) -> bool:
        return not self._tls and self._policy.tls != "none" and self._service.certificates.context is not None

    def _may_authenticate(self) -> bool:
        if self._policy.auth == "none":
            return False
        where = self._policy.auth_without_tls
        return self._tls or where == "always" or (where == "loopback" and self._loopback())

    def _loopback(self) -> bool:
        try:
            return ip_address(self._address.partition("%")[0]).is_loopback
        except ValueError:
            return self._address == "unix"

    @syntax("STARTTLS")
    async def smtp_STARTTLS(self, arg: str) -> None:
        """Turn TLS on; all that was said before is forgotten (RFC 3207, 4.2)."""
        if arg:
            self._error(commands.NO_ARGUMENT)
        elif self._tls:
            self._error(commands.TLS_ACTIVE)
        elif not self._offers_tls():
            self._error(commands.NO_TLS)
        else:
            self._reply(commands.START_TLS)
            self._in.take()  # a command behind STARTTLS was said in the clear, by whomever
            await self._flush()
            self._forget_transaction()
            self._helo = ""
            self._login = None
            await self._start_tls()

    async def _start_tls(self) -> None:
        context = self._service.certificates.context
        transport = self.transport
        if context is None or transport is None:
            raise ClientGoneError
        self.deadline = monotonic() + 60
        try:
            secured = await self.loop.start_tls(
                cast(asyncio.WriteTransport, transport), self, context, server_side=True
            )
        except (OSError, ssl.SSLError) as error:
            self._service.metrics.tls_failed()
            self._service.log.info("tls_failed", session=self._id, client=self._address, reason=str(error))
            raise _HangUp from None
        finally:
            self.deadline = _NEVER
        if secured is None:
            raise ClientGoneError
        self.transport = secured
        self._in.attach(secured)
        self._tls = True
        tls = secured.get_extra_info("ssl_object")
        self._service.metrics.tls_started(tls.version() if tls is not None else "unknown")

    @syntax("AUTH mechanism [initial-response]")
    async def smtp_AUTH(self, arg: str) -> None:
        """Check credentials: tokens, and the logins an app already has."""
        mechanism, _, initial = arg.strip().partition(" ")
        if not self._helo or not self._extended:
            self._error(commands.SEND_HELO_FIRST)
        elif self._policy.auth == "none":
            self._error(commands.NO_AUTH)
        elif self._login is not None:
            self._error(commands.AUTH_AGAIN)
        elif self._envelope is not None:
            self._error(commands.NESTED_MAIL)
        elif not self._may_authenticate():
            self._service.metrics.auth("cleartext_refused")
            self._error(commands.AUTH_NEEDS_TLS)
        elif mechanism.upper() not in ("PLAIN", "LOGIN"):
            self._error(commands.AUTH_MECHANISM)
        else:
            credentials = await self._credentials(mechanism.upper(), initial.strip())
            if isinstance(credentials, Reply):
                self._service.metrics.auth("malformed")
                self._error(credentials)
            else:
                await self._authenticate(*credentials)

    async def _credentials(self, mechanism: str, initial: str) -> tuple[bytes, bytes] | Reply:
        """Get user name and password in the mechanism's way (RFC 4616 for PLAIN; LOGIN is folklore)."""
        if mechanism == "PLAIN":
            blob = await self._response("", initial)
            return blob if isinstance(blob, Reply) else auth.decode_plain(blob) or commands.AUTH_SYNTAX
        username = await self._response("VXNlcm5hbWU6", initial)
        if isinstance(username, Reply):
            return username
        password = await self._response("UGFzc3dvcmQ6", "")
        return password if isinstance(password, Reply) else (username, password)

    async def _response(self, challenge: str, initial: str) -> bytes | Reply:
        if initial:
            text = b"" if initial == "=" else initial.encode("utf-8")
        else:
            self._reply_raw(f"334 {challenge}\r\n".encode("ascii"))
            line = self._in.line()
            while line is None:
                if len(self._in.buffer) > commands.MAX_LINE_OCTETS[b"AUTH"]:
                    self._reply(commands.LINE_TOO_LONG)
                    raise _HangUp
                await self._more(self._service.limits.idle_seconds)
                line = self._in.line()
            text = line.rstrip(b"\r\n")
        if text == b"*":
            return commands.AUTH_CANCELLED
        decoded = auth.decode_base64(text)
        return commands.AUTH_SYNTAX if decoded is None else decoded

    async def _authenticate(self, username: bytes, password: bytes) -> None:
        login = self._service.credentials.check(username, password)
        self._service.metrics.auth("refused" if login is None else "accepted")
        if login is not None:
            self._login = login
            self._reply(commands.AUTHENTICATED)
            return
        self._auth_failures += 1
        self._service.log.warning(
            "auth_refused", session=self._id, client=self._address, listener=self._policy.name
        )
        await asyncio.sleep(_AUTH_FAILURE_DELAY)
        if self._auth_failures >= MAX_AUTH_FAILURES:
            self._service.metrics.session_dropped("auth_failures")
            self._reply(commands.TOO_MANY_ERRORS)
            raise _HangUp
        self._reply(commands.AUTH_FAILED)

    def _refusal(self) -> Reply | None:
        """Why this client may not send, if it may not."""
        policy = self._policy
        if not self._helo:
            return commands.SEND_HELO_FIRST
        if policy.tls == "required" and not self._tls:
            return commands.TLS_REQUIRED
        if self._login is not None:
            return None
        if policy.auth == "required":
            return commands.AUTH_REQUIRED
        if policy.allow_networks:
            try:
                address = ip_address(self._address.partition("%")[0])
            except ValueError:
                return commands.NOT_ALLOWED_FROM
            if not any(address in network for network in policy.allow_networks):
                return commands.AUTH_REQUIRED if policy.auth == "optional" else commands.NOT_ALLOWED_FROM
        return None

    @syntax("MAIL FROM: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_MAIL(self, arg: str) -> None:
        """Begin a transaction."""
        refusal = self._refusal()
        if refusal is not None:
            self._error(refusal)
            return
        if self._envelope is not None:
            self._error(commands.NESTED_MAIL)
            return
        service = self._service
        envelope = commands.mail(
            arg, service.limits.message_octets, smtputf8=service.route.capabilities.smtputf8
        )
        if isinstance(envelope, Reply):
            self._error(envelope)
            return
        self._began = monotonic()
        if self._login is not None and self._login.discard:
            self._open = DiscardTransaction(self._login.name)
        else:
            opened = await service.route.begin(envelope)
            if isinstance(opened, Reply):
                service.log.warning("no_connection", session=self._id, reply=str(opened))
                self._reply(opened)
                return
            self._open = opened
        self._envelope = envelope
        self._recipients = []
        self._reply(commands.MAIL_OK)

    @syntax("RCPT TO: <address>", extended=" [SP <rcpt-parameters>]")
    async def smtp_RCPT(self, arg: str) -> None:
        """Ask the next hop about a recipient."""
        if self._envelope is None or self._open is None:
            self._error(commands.NEED_MAIL)
            return
        address = commands.recipient(arg, self._envelope)
        if isinstance(address, Reply):
            self._error(address)
            return
        limits = self._service.limits
        if len(self._recipients) >= limits.recipients:
            # Refused later as a whole, so no next hop needs to hear of it: half a send is worse than none.
            most = max(MAX_EXCESS_RECIPIENTS, limits.recipients) if limits.refuse_excess else limits.recipients
            if len(self._recipients) >= most:
                self._reply(commands.TOO_MANY_RECIPIENTS)
                return
            self._recipients.append(address)
            self._reply(Reply(250, "2.1.5", "OK"))
            return
        reply = await self._open.recipient(address)
        if reply.positive:
            self._recipients.append(address)
        self._reply(reply)

    @syntax("DATA")
    async def smtp_DATA(self, arg: str) -> None:
        """Take the message."""
        if arg:
            self._error(commands.NO_ARGUMENT)
            return
        if self._envelope is None or self._open is None:
            self._error(commands.NEED_MAIL)
            return
        service, limits, count = self._service, self._service.limits, len(self._recipients)
        if not count:
            self._error(commands.NO_RECIPIENTS)
            return
        if count > limits.recipients:
            service.metrics.message_refused("recipients")
            self._forget_transaction()
            text = f"{count} recipients; at most {limits.recipients} are possible, so nothing was sent"
            service.log.warning("too_many_recipients", session=self._id, recipients=count, limit=limits.recipients)
            self._reply(Reply(550, "5.5.3", text))
            return
        self._messages += 1
        self._idle_commands = 0
        self._reply(commands.START_MAIL)
        transaction, submission = self._open, self._submission(self._envelope)
        service.metrics.message_received(self._policy.name)
        content = StreamedContent(
            self._in, self._more_content, limits.message_octets, refuse_bare_newline=limits.refuse_bare_newline
        )
        reply = await receive(service, submission, transaction, content)
        self._forget_transaction()
        self._reply(reply)
        if reply is GIVEN_UP or reply.code == SERVICE_CLOSING:
            raise _HangUp

    def _submission(self, envelope: Envelope) -> Submission:
        login = self._login
        return Submission(
            id=f"{self._id}.{self._messages}",
            session_id=self._id,
            address=self._address,
            client=self._helo,
            listener=self._policy.name,
            protocol=trace.protocol(
                extended=self._extended,
                tls=self._tls,
                authenticated=login is not None,
                smtputf8=envelope.smtputf8,
            ),
            login=login,
            provider=(login.provider if login is not None else None) or self._policy.provider,
            envelope=Envelope(
                envelope.reverse_path,
                tuple(self._recipients),
                envelope.eight_bit,
                envelope.smtputf8,
                envelope.size_octets,
            ),
            began=self._began,
        )

    def _forget_transaction(self) -> None:
        transaction, self._open = self._open, None
        self._envelope = None
        self._recipients = []
        if transaction is not None:
            transaction.abandon()

    @syntax("RSET")
    async def smtp_RSET(self, arg: str) -> None:
        """Give the transaction up."""
        if arg:
            self._error(commands.NO_ARGUMENT)
            return
        self._forget_transaction()
        self._idle(commands.OK)

    @syntax("NOOP [ignored]")
    async def smtp_NOOP(self, _arg: str) -> None:
        """Do nothing."""
        self._idle(commands.OK)

    @syntax("VRFY <address>")
    async def smtp_VRFY(self, _arg: str) -> None:
        """Decline politely (RFC 5321, 7.3)."""
        self._idle(commands.CANNOT_VERIFY)

    @syntax("HELP [command]")
    async def smtp_HELP(self, arg: str) -> None:
        """List the commands, or the syntax of one."""
        method = self._verbs.get(arg.strip().upper().encode("utf-8"))
        if method is not None:
            self._idle(Reply(214, "2.0.0", f"Syntax: {method.__smtp_syntax__}"))  # type: ignore[attr-defined]
            return
        names = " ".join(sorted(verb.decode() for verb in self._verbs))
        self._idle(Reply(214, "2.0.0", f"Commands: {names}"))

    @syntax("QUIT")
    async def smtp_QUIT(self, arg: str) -> None:
        """Say goodbye."""
        if arg:
            self._error(commands.NO_ARGUMENT)
            return
        self._reply(commands.BYE)
        raise _HangUp


Session._verbs.update(
    {
        name.removeprefix("smtp_").encode(): method
        for name, method in vars(Session).items()
        if name.startswith("smtp_")
    }
)


def session_factory(service: Service, policy: ListenerPolicy) -> Callable[[bool], Session]:
    """
    Prepare sessions for one listener.

    Returns:
        A function that makes a session; its argument: whether the client begins with TLS.
    """
    # aiosmtpd's constructor runs here, once, and its result is what every session starts from.
    prototype = dict(vars(SMTP(object(), hostname=service.hostname, loop=asyncio.get_running_loop())))
    return lambda implicit_tls: Session(service, policy, prototype, implicit_tls=implicit_tls)
