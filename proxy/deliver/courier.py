"""
Who brings mail to a destination: the mailbox folder, the smarthost, or the hosts of a domain (``deliver.via``).

The store names destinations with a word: a domain for ``via: mx``, else the one name below. What waits follows the
settings at the next start.
"""

import random
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

from proxy.outbound.client import NextHop
from proxy.outbound.destinations import SMARTHOST, DestinationLimits, Destinations, Share, destination_of
from proxy.outbound.hosts import MxHosts, MxSettings, Smarthost, unverified_context
from proxy.outbound.mailbox import Mailbox
from proxy.outbound.mx import Resolver, ResolverSettings
from proxy.outbound.networks import Networks
from proxy.outbound.transaction import Mail, Patience
from proxy.parts import share
from proxy.policy.outcome import Result
from proxy.settings import Settings

TO_MAILBOX = "(mailbox)"
TO_SMARTHOST = "(smarthost)"

Load = Callable[[], Awaitable[Mail]]


class Courier(Protocol):
    """Brings mail to destinations."""

    def paused(self) -> Collection[str]:
        """Destinations to leave alone for now."""

    async def deliver(self, destination: str, recipients: Sequence[str], load: Load) -> dict[str, Result]:
        """
        Attempt it.

        Args:
            load: Gives the message when it is its turn; what it raises is raised here.

        Returns:
            A result for each recipient.
        """

    def tidy(self) -> None:
        """Let go of what was at rest for too long."""

    async def close(self) -> None:
        """Let nobody wait any more."""


class MailboxCourier:
    """Writes into a Maildir folder."""

    def __init__(self, folder: Path, hostname: str) -> None:
        self._mailbox = Mailbox(folder, hostname)

    def paused(self) -> Collection[str]:
        return ()

    async def deliver(self, _destination: str, _recipients: Sequence[str], load: Load) -> dict[str, Result]:
        return await self._mailbox.deliver(await load())

    def tidy(self) -> None:
        return

    async def close(self) -> None:
        await self._mailbox.close()


class HostCourier:
    """Speaks SMTP to hosts."""

    def __init__(self, destinations: Destinations) -> None:
        self._destinations = destinations

    def paused(self) -> Collection[str]:
        return [key or TO_SMARTHOST for key in self._destinations.held()]

    async def deliver(self, destination: str, recipients: Sequence[str], load: Load) -> dict[str, Result]:
        key = SMARTHOST if destination == TO_SMARTHOST else destination
        return await self._destinations.deliver(key, recipients, load)

    def tidy(self) -> None:
        self._destinations.tidy()

    async def close(self) -> None:
        await self._destinations.close()


def mailbox_folder(settings: Settings) -> Path:
    """Where ``via: mailbox`` writes."""
    return settings.deliver.mailbox or settings.data_dir / "mailbox"


def courier_of(settings: Settings) -> Courier:
    """Make the courier that the settings ask for."""
    deliver = settings.deliver
    if deliver.via == "mailbox":
        return MailboxCourier(mailbox_folder(settings), settings.hostname)
    patience = Patience()
    limits = DestinationLimits(
        share=Share(share(deliver.per_destination, settings)),
        attempts=share(deliver.connections, settings),
        waiting=_MOST_WAITING,
    )
    if deliver.via == "smarthost":
        smarthost = Smarthost(_hop(settings), patience)
        limits = DestinationLimits(
            share=Share(share(deliver.connections, settings)),
            attempts=share(deliver.connections, settings),
            waiting=_MOST_WAITING,
        )
        return HostCourier(Destinations(lambda _key: smarthost, limits, patience, random.Random()))  # noqa: S311 - jitter
    networks = Networks(deliver.allow_networks)
    chance = random.Random()  # noqa: S311 - the order of equal hosts
    asked = ResolverSettings(nameservers=deliver.nameservers, own_names=frozenset({settings.hostname}))
    resolver = Resolver(asked, networks, chance)
    mx = MxHosts(
        MxSettings(helo_name=settings.hostname, tls_required=frozenset(deliver.require_tls)),
        resolver,
        networks,
        patience,
    )
    return HostCourier(Destinations(mx.of, limits, patience, chance))


_MOST_WAITING = 1000  # the queue hands out no more than it has room for, so nobody is turned away for this


def _hop(settings: Settings) -> NextHop:
    smarthost = settings.deliver.smarthost
    context: ssl.SSLContext | None = None
    if smarthost.tls in ("required", "implicit"):
        context = ssl.create_default_context(cafile=str(smarthost.ca_file) if smarthost.ca_file else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    elif smarthost.tls == "opportunistic":
        context = unverified_context()
    return NextHop(
        host=smarthost.host or "",
        port=smarthost.port,
        tls=smarthost.tls,
        context=context,
        helo_name=settings.hostname,
        username=smarthost.username or "",
        password=smarthost.password.reveal() if smarthost.password else "",
    )


def route_of(settings: Settings) -> Callable[[str], str | None]:
    """Give the function that names the destination of an address; None where the address leads nowhere."""
    if settings.deliver.via == "mailbox":
        return lambda _address: TO_MAILBOX
    if settings.deliver.via == "smarthost":
        return lambda address: TO_SMARTHOST if "@" in address else None
    return lambda address: destination_of(address) or None
