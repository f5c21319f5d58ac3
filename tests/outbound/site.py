"""Domains of a small Internet on loopback: name server and MX hosts on script, and what tests ask of deliveries."""

import ipaddress
import random
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import cast

import trustme

from proxy.outbound.delivery import Hosts, attempt
from proxy.outbound.hosts import MxHosts, MxSettings
from proxy.outbound.mx import Resolver, ResolverSettings
from proxy.outbound.networks import Networks
from proxy.outbound.transaction import Copy, Mail, Patience, Session
from proxy.policy.outcome import Result
from tests.support.nameserver import NameServer
from tests.support.upstream import EXTENSIONS, Reply, Upstream

CHANCE = random.Random(1)  # noqa: S311
DOMAIN = "example.net"
ANN, BOB, CAT = "ann@example.net", "bob@example.net", "cat@example.net"
SENDER = "app@example.com"
CONTENT = b"From: app@example.com\r\nTo: ann@example.net\r\nSubject: hi\r\n\r\nbody\r\n.\r\n..dots\r\n"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
WAIT_SECONDS = 20.0
PATIENCE = Patience(reply_seconds=WAIT_SECONDS, final_reply_seconds=WAIT_SECONDS)
AT_THE_DOT = Patience(reply_seconds=WAIT_SECONDS, final_reply_seconds=0.3)
_HASTE_SECONDS = 0.3


class Hasty:
    """Patience, or settings, that give the first host little time for a reply, and all the time to the next ones."""

    def __init__(self, base: Patience | MxSettings, here: "Lab") -> None:
        self._base = base
        self._here = here

    def __getattr__(self, name: str) -> object:
        value: object = getattr(self._base, name)
        first = not any(server.dialogues for server in self._here.servers[1:])
        return _HASTE_SECONDS if name in ("reply_seconds", "greeting_seconds") and first else value


class Lab:
    """
    The domain example.net and its hosts.

    Attributes:
        servers: ``mx1.example.net`` on 127.0.0.2 with the best preference, ``mx2.example.net`` on 127.0.0.3, and so on.
        names: The name server.
        ca: Issued the hosts' certificates.
        now: The time, which only tests let pass.
    """

    def __init__(self, servers: list[Upstream], names: NameServer, ca: trustme.CA) -> None:
        self.servers = servers
        self.names = names
        self.ca = ca
        self.now = 0.0

    def mx_hosts(
        self,
        patience: Patience = PATIENCE,
        tls_required: frozenset[str] = frozenset(),
        helo_name: str = "out.example.com",
        networks: Networks | None = None,
        hasty: bool = False,
    ) -> MxHosts:
        """Routes and connections as in production, but for ports and name servers."""
        allowed = Networks(LOOPBACK)
        resolver = Resolver(ResolverSettings(("127.0.0.1",), self.names.port), allowed, CHANCE)
        verified = ssl.create_default_context()
        self.ca.configure_trust(verified)
        settings = MxSettings(
            helo_name=helo_name,
            port=self.servers[0].port,
            connect_seconds=WAIT_SECONDS,
            greeting_seconds=patience.reply_seconds,
            tls_required=tls_required,
            verified=verified,
        )
        if hasty:
            settings, patience = cast(MxSettings, Hasty(settings, self)), cast(Patience, Hasty(patience, self))
        return MxHosts(settings, resolver, networks or allowed, patience, lambda: self.now)

    async def send(
        self,
        *copies: Copy,
        patience: Patience = PATIENCE,
        hosts: Hosts | None = None,
        session: Session | None = None,
        reverse_path: str = SENDER,
        smtputf8: bool = False,
        tls_required: frozenset[str] = frozenset(),
    ) -> dict[str, Result]:
        """Attempt once, and close the connection that is left."""
        mail = Mail(reverse_path, copies or (Copy((ANN,), CONTENT),), smtputf8)
        hosts = hosts or self.mx_hosts(patience, tls_required).of(DOMAIN)
        done = await attempt(mail, hosts, session, patience)
        if done.session is not None:
            assert done.session.usable
            done.session.connection.quit()
        assert list(done.results) or not mail.recipients
        assert set(done.results) == set(mail.recipients)
        return done.results

    def taken(self) -> list[list[str]]:
        """For each host, the recipients of the messages it accepted."""
        return [
            [recipient.partition("<")[2].partition(">")[0] for taken in server.taken for recipient in taken.recipients]
            for server in self.servers
        ]

    def connections(self) -> list[int]:
        """How many connections each host had."""
        return [len(server.dialogues) for server in self.servers]


@contextmanager
def lab(
    *scripts: Mapping[str, Reply],
    extensions: tuple[str, ...] = EXTENSIONS,
    tls: bool = False,
    zone: tuple[str, ...] = (),
) -> Iterator[Lab]:
    """
    Build the domain.

    Args:
        scripts: One for each host.
        tls: Whether the hosts offer STARTTLS.
        zone: More records.
    """
    ca = trustme.CA()
    with ExitStack() as stack:
        servers: list[Upstream] = []
        records = list(zone)
        for number, script in enumerate(scripts or [{}], 1):
            context = None
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                ca.issue_cert(f"mx{number}.example.net").configure_cert(context)
            address = f"127.0.0.{number + 1}"
            port = servers[0].port if servers else 0
            servers.append(stack.enter_context(Upstream(script, extensions, context, address=address, port=port)))
            records.append(f"example.net 300 MX {number} mx{number}.example.net.")
            records.append(f"mx{number}.example.net 300 A {address}")
        names = stack.enter_context(NameServer(records))
        yield Lab(servers, names, ca)
