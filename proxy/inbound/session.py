"""
One SMTP session: what each verb is answered, and the transaction it builds up.

Trust: anybody who can connect, until AUTH.
Source: RFC 5321, 4.1 and 4.3; RFC 3207 (STARTTLS), RFC 4954 (AUTH).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from ipaddress import ip_address
from time import monotonic
from typing import Any, ClassVar, TypeVar

from proxy.inbound import auth, commands, trace
from proxy.inbound.auth import Login
from proxy.inbound.content import StreamedContent
from proxy.inbound.discard import DiscardTransaction
from proxy.inbound.message import GIVEN_UP, Submission, receive
from proxy.inbound.server import Connection, HangUp, Prototype, prototype, syntax
from proxy.inbound.service import ListenerPolicy, Service
from proxy.mail.envelope import Envelope
from proxy.mail.reply import SERVICE_CLOSING, Reply
from proxy.record.metrics import RecipientRefusal
from proxy.route import Capabilities, ClientGoneError, Transaction

MAX_AUTH_FAILURES = 5
MAX_EXCESS_RECIPIENTS = 100
MAX_REFUSED_RECIPIENTS = 100
_AUTH_FAILURE_SECONDS = 1.0
_BLOCK_SECONDS = 180.0
_TELLING = frozenset({"AUTH", "MAIL", "RCPT", "DATA", "STARTTLS"})  # without which an app cannot send
_LONGEST_LINE = max(commands.MAX_LINE_OCTETS.values())

_T = TypeVar("_T")
_Verb = Callable[["Session", str], Awaitable[None]]


class Session(Connection):
    """A client's session, from EHLO to QUIT."""

    _verbs: ClassVar[dict[str, _Verb]] = {}  # filled below the class

    def __init__(self, service: Service, policy: ListenerPolicy, start: Prototype, *, secured: bool) -> None:
        super().__init__(service, policy, start, secured=secured)
        self._helo = ""
        self._extended = False
        self._login: Login | None = None
        self._open: Transaction | None = None
        self._envelope: Envelope | None = None
        self._put_off: Reply | None = None  # what MAIL was answered for want of a connection that can carry it
        self._recipients: list[str] = []
        self._began = 0.0
        self._auth_failures = 0
        self._verb = ""
        self._refused_recipients = 0
        self._refused_for_now = False
        self._asking = False
        self._receiving = False

    async def _converse(self) -> None:
        next_line = self._in.line
        while True:
            began = monotonic()
            while (line := next_line()) is None:  # as _line() does, without a coroutine for each command
                await self._more(self._patience(_LONGEST_LINE), began)
            if (done := self._command(line)) is not None:
                await done

    def _in_transaction(self) -> bool:
        return self._envelope is not None

    def _in_message(self) -> bool:
        return self._receiving

    def _command(self, line: bytes) -> Awaitable[None] | None:
        """Give what is to be done for a command; None where it was answered already, being none."""
        try:
            text = line.removesuffix(b"\r\n").decode("utf-8")
        except UnicodeDecodeError:
            text = "\n"
        verb, _, argument = text.partition(" ")
        self._verb = verb = verb.upper()
        if len(line) > commands.MAX_LINE_OCTETS.get(verb, commands.DEFAULT_LINE_OCTETS):
            self._error(commands.LINE_TOO_LONG)
        elif not text.isprintable():  # as it is with a bare LF for a line end
            self._error(commands.BAD_LINE)
        elif (method := self._verbs.get(verb)) is None:
            self._error(commands.UNKNOWN)
        else:
            return method(self, argument)
        return None

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
        capabilities = self._service.route.capabilities
        offers = commands.offers(
            capabilities, self._largest(capabilities), tls=self._offers_tls(), auth=self._may_authenticate()
        )
        self._reply_raw(commands.ehlo(self._service.hostname, offers))

    def _largest(self, capabilities: Capabilities) -> int:
        """The largest message that both we and the route take."""
        ours = self._service.limits.message_octets
        return min(ours, capabilities.size_octets or ours)

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
            await self._flush()
            self._in.take()  # a command behind STARTTLS was said in the clear, by whomever
            self._forget_transaction()
            self._helo = ""
            self._login = None
            await self._start_tls()

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
            self._service.metrics.auth("unsupported")
            self._error(commands.AUTH_MECHANISM)
        else:
            credentials = await self._credentials(mechanism.upper(), initial.strip())
            if isinstance(credentials, Reply):
                self._service.metrics.auth("malformed")
                self._error(credentials)
            else:
                await self._log_in(*credentials)

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
            line = await self._line(commands.MAX_LINE_OCTETS["AUTH"])
            if len(line) > commands.MAX_LINE_OCTETS["AUTH"]:
                return commands.LINE_TOO_LONG
            if not line.endswith(b"\r\n"):
                return commands.BAD_LINE
            text = line[:-2]
        if text == b"*":
            return commands.AUTH_CANCELLED
        decoded = auth.decode_base64(text)
        return commands.AUTH_SYNTAX if decoded is None else decoded

    async def _log_in(self, username: bytes, password: bytes) -> None:
        login = self._service.credentials.check(username, password)
        self._service.metrics.auth("refused" if login is None else "accepted")
        if login is not None:
            self._login = login
            self._reply(commands.AUTHENTICATED)
            return
        self._auth_failures += 1
        self._service.log.warning(
            "auth_refused", **self._who(), username_of=list(self._service.credentials.names_of(username))
        )
        await asyncio.sleep(_AUTH_FAILURE_SECONDS)
        if self._auth_failures >= MAX_AUTH_FAILURES:
            self._service.metrics.session_dropped("auth_failures")
            self._reply(commands.TOO_MANY_ERRORS)
            raise HangUp
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
        self._put_off = None
        service = self._service
        capabilities = service.route.capabilities
        envelope = commands.mail(arg, self._largest(capabilities), smtputf8=capabilities.smtputf8)
        if isinstance(envelope, Reply):
            self._error(envelope)
            return
        self._began = monotonic()
        if self._login is not None and self._login.discard:
            self._open = DiscardTransaction(self._login.name)
        else:
            opened = await self._ask(service.route.begin(envelope))
            if isinstance(opened, Reply):
                service.metrics.mail_refused(opened)
                service.log.warning(
                    "no_connection", **self._who(), reverse_path=envelope.reverse_path, reply=str(opened)
                )
                self._put_off = opened
                self._reply(opened)
                return
            self._open = opened
        self._envelope = envelope
        self._recipients = []
        self._refused_for_now = False
        self._reply(commands.MAIL_OK)

    @syntax("RCPT TO: <address>", extended=" [SP <rcpt-parameters>]")
    async def smtp_RCPT(self, arg: str) -> None:
        """Ask the next hop about a recipient."""
        if self._envelope is None or self._open is None:
            self._need_mail()
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
                self._refuse_recipient("limit", commands.TOO_MANY_RECIPIENTS)
                return
            self._recipients.append(address)
            self._reply(Reply(250, "2.1.5", "OK"))
            return
        reply = await self._ask(self._open.recipient(address))
        if reply.positive:
            self._recipients.append(address)
            self._reply(reply)
        else:
            self._service.log.info(
                "recipient_refused",
                **self._who(),
                reverse_path=self._envelope.reverse_path,
                recipient=address,
                reply=str(reply),
            )
            self._refuse_recipient("next_hop", reply)

    def _need_mail(self) -> None:
        """Answer what has no transaction: behind a MAIL that we could not serve it is no mistake, and never 503."""
        if self._put_off is None:
            self._error(commands.NEED_MAIL)
        else:
            self._idle(self._put_off)

    def _refuse_recipient(self, reason: RecipientRefusal, reply: Reply) -> None:
        """Answer RCPT with a refusal, and end a session that only tries addresses."""
        self._service.metrics.recipient_refused(reason)
        self._refused_for_now = self._refused_for_now or not reply.permanent
        self._refused_recipients += reply.permanent
        if self._refused_recipients > MAX_REFUSED_RECIPIENTS:
            self._service.metrics.session_dropped("too_many_errors")
            self._reply(commands.TOO_MANY_ERRORS)
            raise HangUp
        self._reply(reply)

    async def _ask(self, route: Coroutine[Any, Any, _T]) -> _T:
        """Wait for the route's answer to a command, but no longer than for the client that wants it."""
        if self.transport is None and not self._in.buffer:
            route.close()
            raise ClientGoneError
        self._asking = True
        try:
            return await route
        finally:
            self._asking = False

    def connection_lost(self, error: Exception | None) -> None:
        """Let go of the next hop where nobody waits for its answer any more."""
        super().connection_lost(error)
        # What was sent behind it may be a whole message, from a client that does not wait for replies.
        if self._asking and not self._in.buffer:
            self.leave()

    @syntax("DATA")
    async def smtp_DATA(self, arg: str) -> None:
        """Take the message."""
        if arg:
            self._error(commands.NO_ARGUMENT)
            return
        if self._envelope is None or self._open is None:
            self._need_mail()
            return
        service, limits, count = self._service, self._service.limits, len(self._recipients)
        if not count:
            # No mistake: the next hop refused them, and DATA was in the pipeline.
            self._idle(commands.NO_RECIPIENTS_NOW if self._refused_for_now else commands.NO_RECIPIENTS)
            return
        if count > limits.recipients:
            service.metrics.message_refused("recipients")
            service.log.warning(
                "too_many_recipients",
                **self._who(),
                reverse_path=self._envelope.reverse_path,
                recipients=count,
                limit=limits.recipients,
            )
            self._forget_transaction()
            text = f"{count} recipients; at most {limits.recipients} are possible, so nothing was sent"
            self._reply(Reply(550, "5.5.3", text))
            return
        self._idle_commands = 0
        self._reply(commands.START_MAIL)
        transaction, submission = self._open, self._submission(self._envelope)
        service.metrics.message_received(self._policy.name)
        more = partial(self._more, _BLOCK_SECONDS)
        largest, refuse_bare_newline = limits.message_octets, limits.refuse_bare_newline
        content = StreamedContent(self._in, more, largest, refuse_bare_newline=refuse_bare_newline)
        self._receiving = True
        try:
            reply = await receive(service, submission, transaction, content)
        finally:
            self._receiving = False
        self._forget_transaction()
        self._refused_recipients = 0 if reply.positive else self._refused_recipients
        self._reply(reply)
        if reply is GIVEN_UP or reply.code == SERVICE_CLOSING:
            raise HangUp
        self._send()  # not held back for the next command in the pipeline, which may have to wait

    def _submission(self, envelope: Envelope) -> Submission:
        login = self._login
        return Submission(
            id=self._service.new_message_id(),
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

    def _who(self) -> dict[str, object]:
        return {**super()._who(), "login": self._login.name if self._login is not None else None}

    def _told(self, reply: Reply) -> None:
        """Log a command that was answered as a mistake: on the day of a switch, this says what the app got wrong."""
        verb = self._verb if self._verb in self._verbs else "other"
        self._service.metrics.command_refused(verb)
        tell = self._service.log.info if verb in _TELLING else self._service.log.debug
        tell("command_refused", **self._who(), command=verb, reply=str(reply))

    def _forget_transaction(self) -> None:
        transaction, self._open = self._open, None
        self._envelope = self._put_off = None
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
        method = self._verbs.get(arg.strip().upper())
        if method is not None:
            self._idle(Reply(214, "2.0.0", f"Syntax: {method.__smtp_syntax__}"))  # type: ignore[attr-defined]
            return
        names = " ".join(sorted(self._verbs))
        self._idle(Reply(214, "2.0.0", f"Commands: {names}"))

    @syntax("QUIT")
    async def smtp_QUIT(self, arg: str) -> None:
        """Say goodbye."""
        if arg:
            self._error(commands.NO_ARGUMENT)
            return
        self._reply(commands.BYE)
        raise HangUp


Session._verbs.update(
    {name.removeprefix("smtp_"): method for name, method in vars(Session).items() if name.startswith("smtp_")}
)


def session_factory(service: Service, policy: ListenerPolicy) -> Callable[[bool], Session]:
    """
    Prepare sessions for one listener.

    Returns:
        A function that makes a session; its argument: whether TLS is on before the greeting.
    """
    start = prototype(service)
    return lambda secured: Session(service, policy, start, secured=secured)
