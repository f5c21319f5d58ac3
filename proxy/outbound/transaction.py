"""
Mail transactions over one ready connection: a result for each recipient, whatever the host does.

* MAIL, RCPT and DATA go in one write where PIPELINING is offered. If no recipient is left and the host asks for the
  message all the same, it gets an empty one (RFC 2920, 3.1).
* Once the final dot was sent and no reply came, the host may have taken the message, and the result says so.
* Whatever is about the host ends the session.

Trust: a host is chosen by whoever owns the recipient's domain. What it says is bounded and cleaned by the client; how
long it may take is bounded here.
Source: RFC 5321 (3.3, 4.1.1.4, 4.5.2, 4.5.3.2); RFC 1870 (SIZE); RFC 2920 (PIPELINING); RFC 6152 (8BITMIME); RFC 6531
(SMTPUTF8).
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence

from attrs import field, frozen

from proxy.mail.data_stage import END_OF_DATA, has_regular_line_ends, mend_line_ends
from proxy.mail.reply import SERVICE_CLOSING, START_MAIL, Reply, printable
from proxy.outbound.client import Connection, UpstreamError
from proxy.outbound.mx import normal_domain
from proxy.policy import outcome
from proxy.policy.outcome import Result, Scope, Stage

_CHUNK_OCTETS = 262_144
_STALE_SECONDS = 30.0
_END_OF_HEADER = b"\r\n\r\n"


SevenBit = Callable[[], bytes | None]


@frozen
class Copy:
    """
    What some recipients get.

    Args:
        recipients: Forward-paths, all of the attempt's destination.
        content: The whole message with CRLF line ends, without transparency dots.
        in_seven_bits: Gives it for a host without 8BITMIME, or None where it has no such form.
    """

    recipients: tuple[str, ...]
    content: bytes
    in_seven_bits: SevenBit | None = field(default=None, eq=False, repr=False)


@frozen
class Mail:
    """
    What one attempt is to deliver.

    Args:
        reverse_path: Empty for the null reverse-path.
        copies: No recipient is in two of them.
        smtputf8: The app asked for SMTPUTF8, so the header section may hold UTF-8.
    """

    reverse_path: str
    copies: tuple[Copy, ...]
    smtputf8: bool = False

    @property
    def recipients(self) -> list[str]:
        """All recipients, in order."""
        return [recipient for copy in self.copies for recipient in copy.recipients]


@frozen
class Patience:
    """
    How long a host is waited for, in seconds.

    Args:
        reply_seconds: For each reply to MAIL, RCPT and DATA, and for each piece of the message to be taken.
        final_reply_seconds: For the reply to the dot.
        transaction_seconds: For all of a transaction up to the dot: a host may not drip replies for hours.
        attempt_seconds: After so long no further connection is opened in an attempt: a domain of twenty hosts that
            answer slowly must not hold a place for hours.
        hosts: How many hosts may be talked to in an attempt.
    """

    reply_seconds: float = 300
    final_reply_seconds: float = 600
    transaction_seconds: float = 1800
    attempt_seconds: float = 900
    hosts: int = 2


@frozen
class Body:
    """A message, and what it needs of a host."""

    content: bytes
    eight_bit: bool
    utf8_header: bool
    in_seven_bits: SevenBit | None = field(default=None, eq=False, repr=False)


@frozen
class Part:
    recipients: tuple[str, ...]
    body: Body


def stuffed(content: bytes) -> bytes:
    """
    Add transparency dots (RFC 5321, 4.5.2) and the line end that the final dot needs.

    A bare CR or LF, which nothing here should hold, is mended first: some hosts take it for a line end, and what
    follows for commands.
    """
    if not has_regular_line_ends(content):
        content = mend_line_ends(content)
    if content.startswith(b"."):
        content = b"." + content
    content = content.replace(b"\r\n.", b"\r\n..")
    return content if not content or content.endswith(b"\r\n") else content + b"\r\n"


def body_of(content: bytes, in_seven_bits: SevenBit | None = None) -> Body:
    eight_bit = not content.isascii()
    utf8_header = eight_bit and not content[: content.find(_END_OF_HEADER) + 1 or None].isascii()
    return Body(content, eight_bit, utf8_header, in_seven_bits)


def pieces(content: bytes) -> Iterator[bytes]:
    """
    Give what goes over the wire for a message, but for the final dot, in pieces that end with a line.

    Each is stuffed when it is asked for: all of 25 MB at once would hold up everything else for 0.1 s.
    """
    start = 0
    while start < len(content):
        # A line is never cut, so that each piece can be stuffed for itself.
        end = content.find(b"\n", start + _CHUNK_OCTETS) + 1 or len(content)
        yield stuffed(content[start:end])
        start = end


class _EndedError(Exception):
    """The host ended the session, or is out of step."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.detail)
        self.result = result


class Session:
    """
    A ready connection to a host, and the transactions on it.

    Attributes:
        reused: It has rested between two attempts.
        messages: Transactions that were begun on it.
        ended: Why it is over, as a result about the host; None while it is not.
        heard: Whether the current transaction had any reply.
    """

    def __init__(self, connection: Connection, host: str, address: str, patience: Patience) -> None:
        self.connection = connection
        self.host = host
        self.address = address
        self.reused = False
        self.messages = 0
        self.ended: Result | None = None
        self.heard = False
        self._patience = patience
        self._stage = Stage.MAIL
        self._dot_sent = False
        self._last_words = ""
        self._dirty = False  # the host is inside a transaction: RSET goes before the next one
        self._deadline = 0.0
        self._now = asyncio.get_running_loop().time

    async def send(self, mail: Mail, part: Part) -> dict[str, Result]:
        """Make one transaction; never raises but for cancellation, which closes the connection without the dot."""
        part = self._fitted(part)
        unfit = self._unfit(mail, part)
        if unfit is not None:
            return dict.fromkeys(part.recipients, unfit)
        results: dict[str, Result] = {}
        self.messages += 1
        self.heard = self._dot_sent = False
        self._stage = Stage.MAIL
        self._deadline = self._now() + self._patience.transaction_seconds
        try:
            await self._transaction(mail, part, results)
        except _EndedError as error:
            self._last_words = error.result.detail
            self._end(part.recipients, results, error.result)
            self.connection.quit()
        except UpstreamError as error:
            reason, tls = printable(error.reason), self.connection.secured
            lost = outcome.lost(self._stage, self.host, reason, tls=tls)
            if self._dot_sent:
                self._end(part.recipients, results, outcome.may_have_been_taken(self.host, reason, tls=tls))
            self._end(part.recipients, results, lost)
        except BaseException:
            self.connection.close()
            raise
        return results

    def _end(self, recipients: Sequence[str], results: dict[str, Result], result: Result) -> None:
        self.ended = result if result.scope is Scope.HOST else None
        for recipient in recipients:
            results.setdefault(recipient, result)

    def _fitted(self, part: Part) -> Part:
        """Give the message in seven-bit form where the host wants that (RFC 6152, 3), and where it has one."""
        body = part.body
        if not body.eight_bit or "8BITMIME" in self.connection.extensions or body.in_seven_bits is None:
            return part
        content = body.in_seven_bits()
        return part if content is None else Part(part.recipients, body_of(content))

    def _unfit(self, mail: Mail, part: Part) -> Result | None:
        """Say what the transaction needs and the host does not offer."""
        extensions, tls = self.connection.extensions, self.connection.secured
        size = extensions.get("SIZE", "")
        limit = int(size) if size.isdecimal() and len(size) < 20 else 0
        if limit and len(part.body.content) > limit:
            return outcome.too_large(self.host, len(part.body.content), limit, tls=tls)
        if "SMTPUTF8" not in extensions and _needs_smtputf8(mail, part):
            return outcome.no_smtputf8(self.host, tls=tls)
        if "8BITMIME" not in extensions and part.body.eight_bit:
            return outcome.no_eight_bit(self.host, tls=tls)
        return None

    async def _transaction(self, mail: Mail, part: Part, results: dict[str, Result]) -> None:
        mail_command = self._mail(mail, part)
        commands = [f"RCPT TO:<{_path(each)}>\r\n".encode() for each in part.recipients]
        reset, self._dirty = self._dirty, True
        pipelined = self.connection.pipelining
        if pipelined:
            group = [mail_command, *commands, b"DATA\r\n"]
            if reset:
                group.insert(0, b"RSET\r\n")
            self.connection.write(b"".join(group), replies=len(group))
        if reset:
            reply = await self._reply(None if pipelined else b"RSET\r\n")
            if not reply.positive:
                raise UpstreamError("transaction", f"said {reply} to RSET")
        reply = await self._reply(None if pipelined else mail_command)
        if not reply.positive:
            results.update(dict.fromkeys(part.recipients, self._checked(reply)))
            if pipelined:
                for _ in commands:
                    await self._reply(None)
                await self._no_message(await self._reply(None))
            return
        accepted = await self._recipients(part, None if pipelined else commands, results)
        if accepted or pipelined:
            await self._data(part, accepted, None if pipelined else b"DATA\r\n", results)

    async def _recipients(self, part: Part, commands: list[bytes] | None, results: dict[str, Result]) -> list[str]:
        """Have the recipients accepted or refused; *commands* where they were not sent before."""
        self._stage = Stage.RCPT
        accepted = []
        for index, recipient in enumerate(part.recipients):
            reply = await self._reply(commands[index] if commands is not None else None)
            if reply.positive:
                accepted.append(recipient)
            else:
                results[recipient] = self._checked(reply)
        return accepted

    async def _data(self, part: Part, accepted: list[str], command: bytes | None, results: dict[str, Result]) -> None:
        self._stage = Stage.DATA
        reply = await self._reply(command)
        if not accepted:
            await self._no_message(reply)
            return
        if reply.code == START_MAIL:
            self._stage = Stage.DOT
            reply = await self._message(part.body)
            self._dirty = False
        results.update(dict.fromkeys(accepted, self._checked(reply, len(accepted))))

    def _mail(self, mail: Mail, part: Part) -> bytes:
        extensions = self.connection.extensions
        parameters = f" SIZE={len(part.body.content)}" if "SIZE" in extensions else ""
        if part.body.eight_bit:
            parameters += " BODY=8BITMIME"
        if _needs_smtputf8(mail, part):
            parameters += " SMTPUTF8"
        return f"MAIL FROM:<{_path(mail.reverse_path)}>{parameters}\r\n".encode()

    async def _reply(self, command: bytes | None) -> Reply:
        """Send a command, if it was not sent before, and wait for its reply."""
        if command is not None:
            self.connection.write(command)
        limit = max(0.0, min(self._patience.reply_seconds, self._deadline - self._now()))
        if self.reused and not self.heard:
            limit = min(limit, _STALE_SECONDS)  # one that died at rest without a word is not waited for as a slow one
        reply = await self.connection.reply(limit)
        self.heard = True
        return reply

    async def _no_message(self, reply: Reply) -> None:
        """Go on behind a pipelined DATA that no recipient is left for."""
        if reply.code == START_MAIL:
            self.connection.write(END_OF_DATA)
            await self._reply(None)
            self._dirty = False

    async def _message(self, body: Body) -> Reply:
        connection, last = self.connection, b""
        if len(body.content) <= _CHUNK_OCTETS:
            last = stuffed(body.content)
        else:
            for piece in pieces(body.content):
                connection.write(piece, replies=0)
                await connection.writable(max(0.0, min(self._patience.reply_seconds, self._deadline - self._now())))
                # What the kernel takes at once never makes us wait; two turns of the loop let a loss be noticed.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if connection.answered:
                    break
        if connection.answered:
            await self._early()
        self._dot_sent = True
        connection.write(last + END_OF_DATA)
        return await connection.reply(self._patience.final_reply_seconds)

    async def _early(self) -> None:
        """Take a reply to a message that is not complete: a refusal may be one, anything else is none."""
        reply = await self.connection.reply(0)
        self.connection.close()
        if reply.positive or reply.intermediate:
            raise UpstreamError("transaction", f"said {reply} inside the message")
        raise _EndedError(self._sorted(reply))

    def _sorted(self, reply: Reply, recipients: int = 2) -> Result:
        return outcome.of_reply(self._stage, reply, self.host, tls=self.connection.secured, recipients=recipients)

    def _checked(self, reply: Reply, recipients: int = 2) -> Result:
        """Sort a reply; one that is about the host ends the session, and so does one that is out of step."""
        result = self._sorted(reply, recipients)
        if result.scope is Scope.HOST or reply.code == SERVICE_CLOSING or reply.intermediate:
            raise _EndedError(result)
        return result

    @property
    def usable(self) -> bool:
        """Whether another transaction can be made on it."""
        return self.ended is None and not self.connection.lost

    def over(self) -> Result:
        """Give the result for what was not sent any more because the session is over."""
        reason = self._last_words or printable(self.connection.lost)
        return self.ended or outcome.lost(Stage.MAIL, self.host, reason, tls=self.connection.secured)


def _needs_smtputf8(mail: Mail, part: Part) -> bool:
    if mail.smtputf8 and part.body.utf8_header:
        return True
    return not all(_path(address).isascii() for address in (mail.reverse_path, *part.recipients))


def _path(address: str) -> str:
    """Write the domain of an address with A-labels, where the local part needs no SMTPUTF8 either (RFC 6531, 3.2)."""
    if address.isascii():
        return address
    local, at, domain = address.rpartition("@")
    name = normal_domain(domain) if local.isascii() and at else None
    return f"{local}@{name}" if name else address
