"""
The content of one message on its way in: read in chunks, mended, and held to its limits while it streams.

Source: RFC 5321, 4.5.3.1.7 (size), 4.5.3.2.5 (three minutes for a block) and 4.5.2 (transparency).
"""

from collections.abc import Awaitable, Callable
from time import monotonic

from proxy.inbound.reader import ByteReader, ClientSilentError
from proxy.mail.data_stage import DataStage
from proxy.mail.reply import Reply
from proxy.route import ContentRefusedError

BARE_NEWLINE = Reply(554, "5.6.0", "The message has a bare CR or LF; lines must end with CRLF")
_SLOW_AFTER_SECONDS = 60.0
_MIN_OCTETS_PER_SECOND = 500
_DISCARDED_OCTETS = 64 << 20


def too_large(limit: int) -> Reply:
    """The answer to a message over the limit."""
    return Reply(552, "5.3.4", f"The message is larger than {limit} octets")


class StreamedContent:
    """
    Content as ``proxy.route.Content`` wants it, over a :class:`ByteReader`.

    Args:
        more: Waits until the reader holds something, for its time since a moment (monotonic seconds); raises
            ClientGoneError when that will not be.
        limit: Largest message in octets, as received.
        refuse_bare_newline: Refuse what would otherwise be mended.

    Attributes:
        complete: The end was seen, and all content was given out.
    """

    def __init__(
        self, reader: ByteReader, more: Callable[[float], Awaitable[None]], limit: int, *, refuse_bare_newline: bool
    ) -> None:
        self.complete = False
        self._reader = reader
        self._more = more
        self._limit = limit
        self._refuse_bare_newline = refuse_bare_newline
        self._stage = DataStage()
        self._waited = 0.0  # for the client, in the present stretch of time
        self._octets_before = 0  # that came before it

    @property
    def octets(self) -> int:
        """Size so far, as received."""
        return self._stage.octets

    @property
    def irregular(self) -> bool:
        """Whether line ends had to be mended."""
        return self._stage.irregular

    async def read(self) -> bytes:
        """Give the next octets; empty only when complete. Raises as ``proxy.route.Content.read`` says."""
        while not self.complete:
            content = await self._feed()
            if self._stage.octets > self._limit:
                raise ContentRefusedError(too_large(self._limit))
            if self._refuse_bare_newline and self._stage.irregular:
                raise ContentRefusedError(BARE_NEWLINE)
            if content or self.complete:
                return content
        return b""

    async def discard(self) -> bool:
        """
        Read up to the end and keep nothing, so that client and server stay in step.

        Returns:
            False when the client sends more than anybody should have to read: hang up on it.

        Raises:
            ClientGoneError: As in :meth:`read`.
        """
        most = self._stage.octets + self._limit + _DISCARDED_OCTETS
        while not self.complete:
            await self._feed()
            if self._stage.octets > most:
                return False
        return True

    async def _feed(self) -> bytes:
        reader = self._reader
        if not reader.buffer:
            started = monotonic()
            await self._more(started)
            self._waited += monotonic() - started
            # The end of the time limit is the server's business; a client that sends an octet now and then is ours.
            # Looked at minute by minute: what came fast earlier is no credit for a trickle.
            if self._waited > _SLOW_AFTER_SECONDS:
                came = self._stage.octets + len(reader.buffer) - self._octets_before
                if came < self._waited * _MIN_OCTETS_PER_SECOND:
                    raise ClientSilentError("too_slow")
                self._waited = 0.0
                self._octets_before += came
        content = self._stage.feed(reader.take())
        if self._stage.complete:
            self.complete = True
            reader.unread(self._stage.rest)
        return content
