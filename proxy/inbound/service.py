"""What all sessions of one process share: the parts, the limits, and the list of who is connected."""

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from attrs import define, field, frozen

from proxy.inbound.auth import Credentials
from proxy.inbound.tls import Certificates
from proxy.record.log import Log
from proxy.record.metrics import Metrics
from proxy.route import Route
from proxy.translate.engine import Engine


@frozen
class ListenerPolicy:
    """
    How one listener treats its clients.

    Args:
        name: ``address:port`` as configured; label of metrics.
        tls: ``starttls``, ``required``, ``none``, ``implicit`` or ``auto``.
        auth: ``required``, ``optional`` or ``none``.
        auth_without_tls: ``loopback``, ``never`` or ``always``.
        allow_networks: From where mail is taken without AUTH; empty on a loopback listener: from everywhere it hears.
        provider: The provider whose fields count first; empty for none.
    """

    name: str
    tls: str
    auth: str
    auth_without_tls: str
    allow_networks: tuple[IPv4Network | IPv6Network, ...]
    provider: str


@frozen
class MessageLimits:
    """The settings under ``limits:`` and ``smtp:`` that concern one message or session."""

    recipients: int
    refuse_excess: bool
    hops: int
    message_octets: int
    header_octets: int
    header_fields: int
    idle_seconds: float
    refuse_bare_newline: bool


class Live(Protocol):
    """
    A session, as the service sees it.

    Attributes:
        deadline: When its client will have taken too long (monotonic seconds); infinite while the client is not
            being waited for.
        idle_since: Since when it waits for a command outside a transaction; infinite otherwise.
    """

    deadline: float
    idle_since: float

    def expire(self) -> None:
        """End the session: its client took too long."""

    def drain(self) -> None:
        """End the session as soon as no message is in flight."""

    def cut_off(self) -> bool:
        """End the session now, whatever it is doing; True where it will first say so, to the client and in the log."""

    def abort(self) -> None:
        """End the session now, and say nothing."""


@define(eq=False)
class Service:
    """
    The parts a session works with; :attr:`engine` is replaced as a whole when rule files change.

    Args:
        hostname: Our name in greeting, EHLO and Received.
        connections: Most sessions at a time, those in a TLS handshake before their greeting included.
        new_id: Gives session ids.
        new_message_id: Gives queue ids.

    Attributes:
        sessions: Those that are served.
        beginning: How many clients there are that may become sessions, once they have begun with TLS.
        closing: Those whose last octets are on their way to the client.
    """

    hostname: str
    engine: Engine
    route: Route
    credentials: Credentials
    certificates: Certificates
    limits: MessageLimits
    connections: int
    log: Log
    metrics: Metrics
    new_id: Callable[[], str]
    new_message_id: Callable[[], str]
    sessions: set[Live] = field(factory=set)
    closing: set[Live] = field(factory=set)
    beginning: int = 0
    stopping: bool = False

    @property
    def crowded(self) -> bool:
        """Whether there is no room for another client."""
        return len(self.sessions) + self.beginning >= self.connections
