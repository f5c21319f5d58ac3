"""Hosts of destinations without a network: counted, as slow as a test wants, and out of order on demand."""

import asyncio
from collections.abc import Callable
from typing import cast

from proxy.outbound.client import Connection
from proxy.outbound.destinations import DestinationLimits, Destinations
from proxy.outbound.mx import Host, Route
from proxy.outbound.transaction import Copy, Mail, Part, Session
from proxy.policy import outcome
from proxy.policy.outcome import Outcome, Result
from tests.outbound.site import CHANCE, CONTENT, PATIENCE, SENDER

TAKEN = outcome.stored("taken")
DOWN = outcome.unreachable("mx.example", "refused")


class Line:
    """A connection without a network."""

    def __init__(self) -> None:
        self.lost = ""
        self.secured = False

    def quit(self) -> None:
        """Close."""
        self.lost = "closed here"

    close = quit


class FakeSession(Session):
    """A session that answers what its world says."""

    def __init__(self, world: "World", key: str, host: Host) -> None:
        super().__init__(cast(Connection, Line()), host.name, host.addresses[0], PATIENCE)
        self.world = world
        self.key = key

    async def send(self, mail: Mail, part: Part) -> dict[str, Result]:
        """Take a message, as slowly as the world wants it."""
        world = self.world
        self.messages += 1
        world.now_sending[self.key] = world.now_sending.get(self.key, 0) + 1
        world.most = max(world.most, sum(world.now_sending.values()))
        world.most_for[self.key] = max(world.most_for.get(self.key, 0), world.now_sending[self.key])
        world.order.append(self.key)
        try:
            await world.gate.wait()
            await asyncio.sleep(0)
        finally:
            world.now_sending[self.key] -= 1
        return dict.fromkeys(part.recipients, world.verdict(self.key))


class World:
    """Hosts of any number of destinations, counted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.opened: list[str] = []
        self.sessions: list[FakeSession] = []
        self.order: list[str] = []
        self.now_sending: dict[str, int] = {}
        self.most = 0
        self.most_for: dict[str, int] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusing: dict[str, Result] = {}
        self.verdict: Callable[[str], Result] = lambda _: TAKEN
        self.loaded = 0
        self.hosts: dict[str, tuple[Host, ...]] = {}
        self.found = asyncio.Event()
        self.found.set()

    def clock(self) -> float:
        """The time, which only tests let pass."""
        return self.now

    def destinations(self, **limits: object) -> Destinations:
        """Destinations in this world."""
        return Destinations(lambda key: FakeHosts(self, key), DestinationLimits(**limits), PATIENCE, CHANCE, self.clock)  # type: ignore[arg-type]

    async def send(self, where: Destinations, key: str) -> Result:
        """Send a message to one recipient."""
        return (await where.deliver(key, [f"a@{key}"], lambda: self.load(key)))[f"a@{key}"]

    async def load(self, key: str) -> Mail:
        """Give a message."""
        self.loaded += 1
        return Mail(SENDER, (Copy((f"a@{key}",), CONTENT),))

    def start(self, where: Destinations, key: str, count: int = 1) -> list[asyncio.Task[Result]]:
        """Begin to send."""
        return [asyncio.ensure_future(self.send(where, key)) for _ in range(count)]


class FakeHosts:
    """One host for each destination."""

    def __init__(self, world: World, key: str) -> None:
        self.world = world
        self.key = key

    async def route(self) -> Route | Result:
        """Give it, or those that the world has for it."""
        await self.world.found.wait()
        return Route(self.key, self.world.hosts.get(self.key) or (Host(self.key, (f"address of {self.key}",)),))

    async def open(self, host: Host, tried: set[str]) -> Session | Result:
        """Connect, unless this one is out of order."""
        tried.update(host.addresses)
        self.world.opened.append(self.key)
        await asyncio.sleep(0)
        for name in (self.key, host.name):
            if name in self.world.refusing:
                return self.world.refusing[name]
        session = FakeSession(self.world, self.key, host)
        self.world.sessions.append(session)
        return session


async def settled(tasks: list[asyncio.Task[Result]]) -> list[Outcome]:
    """Wait for all of them."""
    return [each.outcome for each in await asyncio.gather(*tasks)]


async def spin() -> None:
    """Let everything happen that can."""
    for _ in range(50):
        await asyncio.sleep(0)
