"""
Ready sessions with the hosts of a destination: the MX hosts of a domain, or the smarthost.

Every failure on the way to a session becomes a result here, so that an attempt deals with results only.

Trust: see the modules for the connection and for MX. Addresses are held against what is allowed once more when they are
connected to: a route may come from a cache that is older than the settings.
Source: RFC 5321, 5.1; RFC 3207; RFC 7435 (opportunistic security: TLS that fails is no worse than none).
"""

import asyncio
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable, Collection
from time import monotonic
from typing import cast

from attrs import evolve, field, frozen

from proxy.mail.reply import printable
from proxy.outbound.client import Connection, NextHop, UpstreamError, connected_to
from proxy.outbound.mx import Host, Resolver, Route, literal_address, normal_domain
from proxy.outbound.networks import Networks
from proxy.outbound.transaction import Patience, Session
from proxy.policy import outcome
from proxy.policy.outcome import Result, Stage

_CLEAR_SECONDS = 3600.0
_MAX_CLEAR = 10_000


def unverified_context() -> ssl.SSLContext:
    """
    TLS for hosts that need not prove who they are.

    An expired certificate, or one for another name, is still better than no TLS, which is what such a host would get
    otherwise (RFC 7435, 3). Versions and ciphers stay those of the library's defaults.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@frozen
class MxSettings:
    """
    How MX hosts are spoken to.

    Args:
        helo_name: What EHLO says; a host that calls itself the same is this one.
        port: Other than 25 only in tests.
        tls_required: Domains that get mail only over TLS with a certificate that is good for the name of the MX host.
        verified, unverified: TLS contexts, for those domains and for all others.
    """

    helo_name: str
    port: int = 25
    connect_seconds: float = 30
    greeting_seconds: float = 300
    tls_required: frozenset[str] = frozenset()
    verified: ssl.SSLContext = field(factory=ssl.create_default_context, eq=False, repr=False)
    unverified: ssl.SSLContext = field(factory=unverified_context, eq=False, repr=False)


class MxHosts:
    """
    Sessions with MX hosts; one for each process, which gives :class:`DomainHosts` for each domain.

    Args:
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        settings: MxSettings,
        resolver: Resolver,
        networks: Networks,
        patience: Patience,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._settings = settings
        self._resolver = resolver
        self._networks = networks
        self._patience = patience
        self._clock = clock
        self._tls_required = frozenset(normal_domain(each) or each for each in settings.tls_required)
        self._clear: OrderedDict[str, float] = OrderedDict()  # addresses where STARTTLS fails, and until when to mind

    def of(self, domain: str) -> "DomainHosts":
        """Give the hosts of a domain."""
        return DomainHosts(self, domain, required=(normal_domain(domain) or domain) in self._tls_required)

    async def route(self, domain: str) -> Route | Result:
        """Look the domain up."""
        return await self._resolver.route(domain)

    async def open(self, domain: str, host: Host, tried: set[str], *, required: bool) -> Session | Result:
        """Connect to one of the addresses of a host, and get ready; in clear if TLS fails and may."""
        addresses = [each for each in host.addresses if each not in tried and self._networks.permit(each)]
        if not addresses:
            tried.update(host.addresses)
            return outcome.prohibited(domain, next(iter(host.addresses), host.name))
        tls = "required" if required else "opportunistic"
        while True:
            try:
                sock, address = await self._connected(addresses)
            except (OSError, TimeoutError) as error:
                tried.update(addresses)
                return outcome.unreachable(host.name, printable(_why(error, self._settings.connect_seconds)))
            tried.add(address)
            hop = self._hop(host, "none" if tls == "opportunistic" and self._is_clear(address) else tls)
            try:
                return self._looped(domain, host, address, await Connection.open(hop, sock))
            except UpstreamError as error:
                if hop.tls != "opportunistic" or error.stage != Stage.STARTTLS:
                    return failed(error, host.name, hop.tls)
                # RFC 3207, 4.1 leaves it to the client; whoever could break TLS could take STARTTLS out of the reply.
                self._mind(address)
                addresses, tls = [address], "none"

    def _looped(self, domain: str, host: Host, address: str, connection: Connection) -> Session | Result:
        """Refuse a host that calls itself as we do: an address before a NAT shows nothing of it."""
        own = self._settings.helo_name.lower()
        if connection.name == own and "." in own:
            connection.quit()
            return evolve(outcome.loop(domain, f"{host.name} [{address}]"), host=host.name)
        return Session(connection, host.name, address, self._patience)

    async def _connected(self, addresses: Collection[str]) -> tuple[socket.socket, str]:
        async with asyncio.timeout(self._settings.connect_seconds):
            sock = await connected_to(tuple(addresses), self._settings.port)
        address = cast(str, sock.getpeername()[0])
        if not self._networks.permit(address):  # never so far, and the last place to find out
            sock.close()
            raise OSError(f"{address} is not allowed as a destination")
        return sock, address

    def _hop(self, host: Host, tls: str) -> NextHop:
        settings = self._settings
        return NextHop(
            host=literal_address(host.name) or host.name,
            port=settings.port,
            tls=tls,
            context=settings.verified if tls == "required" else settings.unverified,
            helo_name=settings.helo_name,
            connect_seconds=settings.connect_seconds,
            greeting_seconds=settings.greeting_seconds,
            helo=True,
        )

    def _is_clear(self, address: str) -> bool:
        until = self._clear.get(address)
        if until is not None and until <= self._clock():
            del self._clear[address]
            until = None
        return until is not None

    def _mind(self, address: str) -> None:
        self._clear[address] = self._clock() + _CLEAR_SECONDS
        while len(self._clear) > _MAX_CLEAR:
            self._clear.popitem(last=False)


class DomainHosts:
    """The hosts of one domain."""

    def __init__(self, mx: MxHosts, domain: str, *, required: bool) -> None:
        self._mx = mx
        self._domain = domain
        self._required = required

    async def route(self) -> Route | Result:
        """Look the domain up."""
        return await self._mx.route(self._domain)

    async def open(self, host: Host, tried: set[str]) -> Session | Result:
        """Get ready to send to one host."""
        return await self._mx.open(self._domain, host, tried, required=self._required)


class Smarthost:
    """
    The one host that takes everything. Its name is looked up by the system, and it may be anywhere: it was configured.

    Args:
        hop: ``tls: required`` and ``implicit`` never fall back; ``opportunistic`` does.
    """

    def __init__(self, hop: NextHop, patience: Patience) -> None:
        self._hop = hop
        self._patience = patience

    async def route(self) -> Route | Result:
        """Give the host itself."""
        return Route(self._hop.host, (Host(self._hop.host, (self._hop.host,)),))

    async def open(self, host: Host, tried: set[str]) -> Session | Result:
        """Get ready to send."""
        tried.add(host.name)
        hop = self._hop
        while True:
            try:
                return Session(await Connection.open(hop), host.name, host.name, self._patience)
            except UpstreamError as error:
                # Credentials never go over a connection that was to have TLS and has not.
                if hop.tls != "opportunistic" or error.stage != Stage.STARTTLS or hop.username:
                    return failed(error, host.name, hop.tls)
                hop = evolve(hop, tls="none")


def failed(error: UpstreamError, host: str, tls: str) -> Result:
    """Sort what kept a connection from getting ready."""
    stage = Stage(error.stage) if error.stage != "transaction" else Stage.EHLO
    if error.reply is not None:
        return outcome.of_reply(stage, error.reply, host)
    reason = printable(error.reason)
    if stage is Stage.CONNECT:
        if tls == "implicit" and ("certificate" in reason or "SSL" in reason):
            return outcome.tls_failed(host, reason)
        return outcome.unreachable(host, reason)
    if stage is Stage.STARTTLS:
        return outcome.tls_not_offered(host) if error.refused else outcome.tls_failed(host, reason)
    if stage is Stage.AUTH and error.refused:
        return outcome.no_auth(host, reason)
    return outcome.lost(stage, host, reason)


def _why(error: BaseException, seconds: float) -> str:
    if isinstance(error, TimeoutError) and not error.args:
        return f"no connection within {seconds:g} s"
    return str(error) or type(error).__name__
