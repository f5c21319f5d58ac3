"""
The contract between receiving a message and sending it on: it mirrors the SMTP mail transaction.

The inbound edge speaks to it, a route implements it (``outbound.relay`` streams to a platform). Every answer is a
:class:`Reply`, ready for the client; what went wrong inside goes to the log, not into the reply.

Source: RFC 5321, 3.3 (MAIL, RCPT, DATA).
"""

from typing import Protocol

from attrs import frozen

from proxy.mail.envelope import Envelope
from proxy.mail.reply import Reply


class ClientGoneError(Exception):
    """The client went away, or was dropped, before its message was complete."""


class ContentRefusedError(Exception):
    """The content broke a limit on its way; the transaction must not be completed."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class Content(Protocol):
    """
    The content of a message, behind what was read of it already.

    Attributes:
        complete: All of it has been read.
    """

    complete: bool

    async def read(self) -> bytes:
        """
        Give the next octets: normalised, transparency dots kept; empty only when complete.

        Raises:
            ClientGoneError: The end will never come.
            ContentRefusedError: A limit was broken.
        """


@frozen
class Capabilities:
    """
    What EHLO may offer on behalf of the route.

    Args:
        size_octets: Largest message; 0 for no limit of the route's own.
    """

    size_octets: int = 0
    eight_bit: bool = True
    smtputf8: bool = False


@frozen
class About:
    """
    What is known of a message besides its octets, for a route that keeps it.

    Args:
        id: The queue id; also in its Received field.
        section_octets: Length of its header section as it is sent on, transparency dots and all, without the separating
            blank line.
        login: Whose login it came by; empty for none.
        provider: The first whose fields it has; empty for none.
        deliver_at: ISO time before which it is not to be sent; empty for at once.
    """

    id: str
    section_octets: int
    login: str = ""
    provider: str = ""
    deliver_at: str = ""


@frozen
class Sent:
    """
    How a transaction ended.

    Args:
        reply: The answer to the final dot.
        outcome: One of ``OUTCOMES``.
        detail: For the log: the next hop's own reply, or what failed.
    """

    reply: Reply
    outcome: str
    detail: str = ""


OUTCOMES = ("accepted", "transient", "permanent", "failed", "queued")
"""Accepted by the next hop; refused by it with 4yz or 5yz; failed on our side of it; or kept here, to be sent on."""


class Transaction(Protocol):
    """One mail transaction on its way out."""

    async def recipient(self, address: str) -> Reply:
        """Answer RCPT."""

    async def send(self, head: bytes, content: Content, about: About) -> Sent:
        """
        Send the message to the recipients that were accepted.

        Args:
            head: The header section to send and what was read behind it; transparency dots kept.
            content: The rest.

        Raises:
            ClientGoneError, ContentRefusedError: From *content*; the message has not been sent.
        """

    def abandon(self) -> None:
        """Give the transaction up before :meth:`send`; harmless afterwards and when repeated."""


class Route(Protocol):
    """Where messages go."""

    @property
    def capabilities(self) -> Capabilities:
        """What the route can carry, as last known."""

    async def begin(self, envelope: Envelope) -> Transaction | Reply:
        """
        Answer MAIL: open a transaction, or say why not.

        Args:
            envelope: Without recipients as yet.
        """
