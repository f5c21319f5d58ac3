"""
Route ``relay``: stream each message to a platform that speaks X-Cmail; its replies are ours.

Nothing is stored, so nothing is promised before the platform promised it. A reply of the platform keeps its class; what
fails on our side of it, its 421 included, reaches the app as 451: such a failure must not bounce the app's mail. A
pooled connection that turns out dead before the first reply of a transaction is replaced once; after a reply nothing is
ever sent again.

Source: RFC 5321, 3.3 and 4.5.3.2; RFC 2920, 3.1 (MAIL and RCPT in one write, DATA on its own).
"""

from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Literal

from proxy.mail.data_stage import END_OF_DATA
from proxy.mail.envelope import Envelope
from proxy.mail.reply import SERVICE_CLOSING, START_MAIL, Reply
from proxy.outbound.client import Connection, NextHop, UpstreamError
from proxy.outbound.pool import MISCONFIGURED, Pool
from proxy.route import About, Capabilities, Content, Sent

LOST = Reply(451, "4.4.2", "The connection to the next hop was lost, try again later")
_ABOUT_CREDENTIALS = frozenset({530, 534, 535, 538})  # RFC 4954, 6: ours, and none of the app's business
NONSENSE = Reply(451, "4.5.0", "The next hop gave an unexpected answer, try again later")
NO_EIGHT_BIT = Reply(554, "5.6.3", "The next hop does not take 8BITMIME")
NO_SMTPUTF8 = Reply(550, "5.6.7", "The next hop does not take SMTPUTF8")


Replied = Callable[[Literal["mail_rcpt", "data", "dot"], float], None]
"""Told for each reply of the platform: to which command, and after how many seconds."""


class RelayRoute:
    """The route; one for each process."""

    def __init__(self, hop: NextHop, pool: Pool, replied: Replied) -> None:
        self._hop = hop
        self._pool = pool
        self._replied = replied

    @property
    def capabilities(self) -> Capabilities:
        """What the platform said in its last EHLO; nothing before the first, for it would have to be kept."""
        extensions = self._pool.extensions
        if extensions is None:
            return Capabilities(eight_bit=False)
        size = extensions.get("SIZE", "")
        return Capabilities(
            size_octets=int(size) if size.isdecimal() and len(size) < 20 else 0,
            eight_bit="8BITMIME" in extensions,
            smtputf8="SMTPUTF8" in extensions,
        )

    async def begin(self, envelope: Envelope) -> "RelayTransaction | Reply":
        """Take a connection; MAIL itself goes out with the first RCPT."""
        taken = await self._pool.take()
        if isinstance(taken, Reply):
            return taken
        lacking = _lacking(envelope, taken)
        if lacking is not None:
            self._pool.give_back(taken)
            return lacking
        return RelayTransaction(self._pool, self._hop, self._replied, taken, envelope)


def _lacking(envelope: Envelope, connection: Connection) -> Reply | None:
    """Say what MAIL asked for and the connection cannot do."""
    if envelope.eight_bit and "8BITMIME" not in connection.extensions:
        return NO_EIGHT_BIT
    if envelope.smtputf8 and "SMTPUTF8" not in connection.extensions:
        return NO_SMTPUTF8
    return None


class RelayTransaction:
    """One mail transaction on a pooled connection."""

    def __init__(self, pool: Pool, hop: NextHop, replied: Replied, connection: Connection, envelope: Envelope) -> None:
        self._pool = pool
        self._hop = hop
        self._replied = replied
        self._connection: Connection | None = connection
        self._fresh = not connection.idle_since  # opened for this transaction, so it cannot have died at rest
        self._envelope = envelope
        self._mail_sent = False
        self._mail_refused: Reply | None = None

    async def recipient(self, address: str) -> Reply:
        """Pass RCPT on, the first one together with MAIL; the reply is the platform's."""
        if self._mail_refused is not None:
            return self._mail_refused
        if self._connection is None:
            return LOST
        try:
            return await self._recipient(self._connection, address)
        except UpstreamError as error:
            self._drop()
            self._pool.lost(error)
            self._mail_refused = LOST
            return LOST
        except BaseException:  # the app is gone: a connection that still owes a reply is of no use to others
            self._drop()
            raise

    async def _recipient(self, connection: Connection, address: str) -> Reply:
        limit = self._hop.reply_seconds
        started = monotonic()
        command = f"RCPT TO:<{address}>\r\n".encode()
        if self._mail_sent:
            connection.write(command)
            reply = await connection.reply(limit)
            self._replied("mail_rcpt", monotonic() - started)
            return self._passed_on(reply)
        self._mail_sent = True
        mail = self._mail(connection)
        if connection.pipelining:
            connection.write(mail + command, replies=2)
        else:
            connection.write(mail)
        # One that dies without a word does so in its first reply; the app must not wait minutes to hear of it.
        first = limit if self._fresh else min(limit, self._hop.connect_seconds)
        try:
            reply = await connection.reply(first)
        except UpstreamError:
            if self._fresh or not await self._replace():
                raise
            return await self.recipient(address)  # which answers, too, if the replacement lacks something
        refused = None if reply.positive else self._passed_on(reply)
        if refused is not None:
            self._mail_refused = refused
            if connection.pipelining and not connection.lost:
                with suppress(UpstreamError):  # of RCPT, mostly 503: the reply to MAIL says more
                    await connection.reply(limit)
            return refused
        if not connection.pipelining:
            connection.write(command)
        reply = await connection.reply(limit)
        self._replied("mail_rcpt", monotonic() - started)
        return self._passed_on(reply)

    def _mail(self, connection: Connection) -> bytes:
        envelope = self._envelope
        parameters = ""
        if envelope.size_octets and "SIZE" in connection.extensions:
            parameters += f" SIZE={envelope.size_octets}"
        if envelope.eight_bit:
            parameters += " BODY=8BITMIME"
        if envelope.smtputf8:
            parameters += " SMTPUTF8"
        return f"MAIL FROM:<{envelope.reverse_path}>{parameters}\r\n".encode()

    async def _replace(self) -> bool:
        """Swap a connection that died at rest for another; nothing was answered on it in this transaction."""
        self._drop()
        self._pool.distrust()
        taken = await self._pool.take()
        if isinstance(taken, Reply):
            return False
        self._mail_refused = _lacking(self._envelope, taken)
        self._connection = taken
        self._fresh = True  # whatever it is, there is no third one
        self._mail_sent = False
        return True

    async def send(self, head: bytes, content: Content, about: About) -> Sent:
        """Send DATA, the head and the content; the answer is the platform's."""
        connection = self._connection
        if connection is None:
            return Sent(LOST, "failed", "connection lost before DATA")
        try:
            return await self._send(connection, head, content)
        except UpstreamError as error:
            self._pool.lost(error)
            return Sent(LOST, "failed", error.reason)
        except BaseException:
            self._drop()  # closed without the dot: the platform must not take half a message for a whole one
            raise
        finally:
            self._finish()

    async def _send(self, connection: Connection, head: bytes, content: Content) -> Sent:
        limit = self._hop.reply_seconds
        started = monotonic()
        connection.write(b"DATA\r\n")
        reply = await connection.reply(limit)
        self._replied("data", monotonic() - started)
        if reply.code != START_MAIL:
            sent = self._sent(reply, final=False)
            self.abandon()
            return sent
        chunk = head
        while not content.complete:
            connection.write(chunk, replies=0)
            await connection.writable(limit)
            if connection.answered:
                return await self._refused_early(connection)
            chunk = await content.read()
        if connection.answered:  # a reply to a message that it has not got yet: whatever it says, it is no success
            return await self._refused_early(connection)
        started = monotonic()
        connection.write(chunk + END_OF_DATA)
        reply = await connection.reply(self._hop.final_reply_seconds)
        self._replied("dot", monotonic() - started)
        return self._sent(reply, final=True)

    async def _refused_early(self, connection: Connection) -> Sent:
        reply = await connection.reply(0)
        connection.close()
        return self._sent(reply, final=False)

    def _sent(self, reply: Reply, *, final: bool) -> Sent:
        """Judge the reply to DATA or the dot: only 2yz to the dot is success, whatever else a server may say."""
        if reply.positive and final:
            return Sent(reply.for_client(), "accepted", str(reply))
        passed_on = self._passed_on(reply)
        if passed_on.positive or reply.intermediate:
            self._drop()
            return Sent(NONSENSE, "failed", f"unexpected reply {reply}")
        if reply.code == SERVICE_CLOSING:
            return Sent(passed_on, "failed", str(reply))
        return Sent(passed_on, "permanent" if reply.permanent else "transient", str(reply))

    def _passed_on(self, reply: Reply) -> Reply:
        """Make the platform's reply ours: enhanced status code always, 421 as 451 since it is not the app's session."""
        if reply.code == SERVICE_CLOSING:
            self._drop()
            return Reply(451, reply.enhanced or "4.4.2", reply.text)
        if reply.intermediate:
            self._drop()
            return NONSENSE
        if reply.code in _ABOUT_CREDENTIALS:
            return MISCONFIGURED
        return reply.for_client()

    def abandon(self) -> None:
        """Give the connection back, after RSET where the platform knows of the transaction."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._mail_sent:
            self._pool.reset(connection)
        else:
            self._pool.give_back(connection)

    def _finish(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            self._pool.give_back(connection)
