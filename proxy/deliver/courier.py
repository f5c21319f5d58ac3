"""
Who brings mail to a destination: the mailbox folder, the smarthost, or the hosts of a domain (``deliver.via``).

The store names destinations with a word: a domain for ``via: mx``, else the one name below. What waits follows the
settings at the next start.
"""

import asyncio
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
_MAILBOX_AT_ONCE = 16  # contents in memory; more of them would not be written any faster

Load = Callable[[], Awaitable[Mail]]


class Courier(Protocol):
    """Brings mail to destinations."""

    def paused(self) -> Collection[str]:
        """Destinations to leave alone for now."""

    def is_paused(self, destination: str) -> bool:
        """Whether a destination is one of those."""

    def crowded(self) -> Collection[str]:
        """Destinations for which more had better come later, though they are not out of order."""

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

    async def drain(self) -> None:
        """Begin nothing new: who waits for a turn hears that there will be none."""

    async def close(self) -> None:
        """Let go of everything; nothing is under way any more."""


class MailboxCourier:
    """Writes into a Maildir folder."""

    def __init__(self, folder: Path, hostname: str) -> None:
        self._mailbox = Mailbox(folder, hostname)
        self._turns = asyncio.Semaphore(_MAILBOX_AT_ONCE)

    def paused(self) -> Collection[str]:
        return ()

    def is_paused(self, _destination: str) -> bool:
        return False

    def crowded(self) -> Collection[str]:
        return ()

    async def deliver(self, _destination: str, _recipients: Sequence[str], load: Load) -> dict[str, Result]:
        async with self._turns:
            return await self._mailbox.deliver(await load())

    def tidy(self) -> None:
        return

    async def drain(self) -> None:
        return

    async def close(self) -> None:
        await self._mailbox.close()


class HostCourier:
    """Speaks SMTP to hosts."""

    def __init__(self, destinations: Destinations) -> None:
        self._destinations = destinations

    def paused(self) -> Collection[str]:
        return [key or TO_SMARTHOST for key in self._destinations.held()]

    def is_paused(self, destination: str) -> bool:
        return self._destinations.is_held(_key_of(destination))

    def crowded(self) -> Collection[str]:
        return self._destinations.crowded()

    async def deliver(self, destination: str, recipients: Sequence[str], load: Load) -> dict[str, Result]:
        return await self._destinations.deliver(_key_of(destination), recipients, load)

    def tidy(self) -> None:
        self._destinations.tidy()

    async def drain(self) -> None:
        await self._destinations.close()

    async def close(self) -> None:
        await self._destinations.close()


def _key_of(destination: str) -> str:
    return SMARTHOST if destination == TO_SMARTHOST else destination


def mailbox_folder(settings: Settings) -> Path:
    """Where ``via: mailbox`` writes."""
    return settings.deliver.mailbox or settings.data_dir / "mailbox"


def courier_of(settings: Settings) -> Courier:
    """Make the courier that the settings ask for."""
    deliver = settings.deliver
    if deliver.via == "mailbox":
        return MailboxCourier(mailbox_folder(settings), settings.hostname)
    patience = Patience()
    is_smarthost = deliver.via == "smarthost"
    concurrency = deliver.connections if is_smarthost else deliver.per_destination
    limits = DestinationLimits(
        share=Share(share(concurrency, settings), deliver.rate_per_destination / settings.workers),
        attempts=share(deliver.connections, settings),
        per_host=0 if is_smarthost else share(deliver.per_host, settings),
        waiting=_MOST_WAITING,
    )
    if is_smarthost:
        smarthost = Smarthost(_hop(settings), patience)
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


_MOST_WAITING = 1000  # the queue takes no more than that for a destination, so nobody is turned away for this


def at_hand(settings: Settings) -> tuple[int, int]:
    """
    Say how many recipients the queue may have at hand: in all, and of each destination.

    Enough that no connection waits for the store, and of one of many destinations no more than that, since it may be
    one that makes everybody wait.
    """
    deliver = settings.deliver
    most = min(_TAKEN_FOR_A_CONNECTION * share(deliver.connections, settings), 10 * _MOST_WAITING)
    if deliver.via != "mx":
        return most, min(most, _MOST_WAITING)
    each = _TAKEN_FOR_A_CONNECTION // 2 * share(deliver.per_destination, settings)
    return most, min(max(each, _RECIPIENTS), most, _MOST_WAITING)


_TAKEN_FOR_A_CONNECTION = 20
_RECIPIENTS = 25  # of a message, by default: those of one domain go together


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


def fits(settings: Settings) -> Callable[[str], bool]:
    """Give the function that tells whether a destination is one by the settings: what was kept may be of others."""
    if settings.deliver.via == "mx":
        return lambda destination: not destination.startswith("(")  # no domain does
    own = TO_MAILBOX if settings.deliver.via == "mailbox" else TO_SMARTHOST
    return lambda destination: destination == own


def route_of(settings: Settings) -> Callable[[str], str | None]:
    """Give the function that names the destination of an address; None where the address leads nowhere."""
    if settings.deliver.via == "mailbox":
        return lambda _address: TO_MAILBOX
    if settings.deliver.via == "smarthost":
        return lambda address: TO_SMARTHOST if "@" in address else None
    return lambda address: destination_of(address) or None
