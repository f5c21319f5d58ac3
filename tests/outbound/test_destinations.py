"""Destinations: who may send when, what is kept, and what a destination that is out of order costs."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from proxy.outbound.client import Connection
from proxy.outbound.destinations import DestinationLimits, Destinations, Share, destination_of
from proxy.outbound.mx import Host, Route
from proxy.outbound.transaction import Copy, Mail, Part, Session
from proxy.policy import outcome
from proxy.policy.outcome import Outcome, Result, Stage
from tests.outbound.site import CHANCE, CONTENT, PATIENCE, SENDER, lab

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


async def test_concurrency_of_a_destination_is_limited() -> None:
    """Five at a time by default, or what its own share says; all get through."""
    world = World()
    where = world.destinations(shares={"few.example": Share(concurrency=2)})
    tasks = world.start(where, "a.example", 50) + world.start(where, "few.example", 50)
    assert set(await settled(tasks)) == {Outcome.DELIVERED}
    assert world.most_for == {"a.example": 5, "few.example": 2}
    assert len(world.sessions) <= 7


async def test_all_destinations_together_are_limited() -> None:
    """However many there are."""
    world = World()
    where = world.destinations(attempts=7)
    tasks = [task for number in range(50) for task in world.start(where, f"d{number}.example", 3)]
    assert set(await settled(tasks)) == {Outcome.DELIVERED}
    assert world.most == 7
    assert where.counts[0] == 0


async def test_newsletter_to_one_domain_does_not_hold_up_others() -> None:
    """Places go round by destination: a single message is behind one of each other destination, not behind all."""
    world = World()
    world.gate.clear()
    where = world.destinations(attempts=4, share=Share(concurrency=4))
    many = world.start(where, "many.example", 90)
    await spin()
    few = [task for number in range(3) for task in world.start(where, f"few{number}.example")]
    await spin()
    world.gate.set()
    await settled(few)
    assert world.order.index("few2.example") <= 4 + 2 * 3
    assert set(await settled(many)) == {Outcome.DELIVERED}


async def test_messages_are_loaded_when_it_is_their_turn() -> None:
    """Those that wait take no memory."""
    world = World()
    world.gate.clear()
    where = world.destinations()
    tasks = world.start(where, "a.example", 60)
    await spin()
    assert world.loaded == 5
    world.gate.set()
    assert set(await settled(tasks)) == {Outcome.DELIVERED}
    assert world.loaded == 60


async def test_message_that_cannot_be_loaded_takes_no_place() -> None:
    """The error reaches who asked; the place goes on."""
    world = World()
    where = world.destinations(share=Share(concurrency=1))

    async def broken() -> Mail:
        raise LookupError("gone from the spool")

    for _ in range(3):
        with pytest.raises(LookupError, match="gone"):
            await where.deliver("a.example", ["a@a.example"], broken)
    assert (await world.send(where, "a.example")).outcome is Outcome.DELIVERED
    assert where.counts[0] == 0


async def test_too_many_that_wait_are_held() -> None:
    """With a result that says that nothing was tried; `room` tells before."""
    world = World()
    world.gate.clear()
    where = world.destinations(waiting=10)
    tasks = world.start(where, "a.example", 14)
    await spin()
    assert where.room("a.example") == 1
    tasks += world.start(where, "a.example", 3)
    await spin()
    assert where.room("a.example") == 0
    assert where.room("b.example") == 10
    held = [task.result() for task in tasks if task.done()]
    assert [each.stage for each in held] == [Stage.HELD] * 2
    assert not held[0].attempted
    world.gate.set()
    assert (await settled(tasks)).count(Outcome.DELIVERED) == 15


async def test_connections_are_reused_up_to_a_number_of_messages() -> None:
    """Then a new one is made."""
    world = World()
    where = world.destinations(messages=10)
    for _ in range(25):
        await world.send(where, "a.example")
    assert [each.messages for each in world.sessions] == [10, 10, 5]
    assert [bool(each.connection.lost) for each in world.sessions] == [True, True, False]


async def test_connection_at_rest_is_closed_after_a_while() -> None:
    """Not before, and a lost one at once."""
    world = World()
    where = world.destinations(idle_seconds=30)
    await world.send(where, "a.example")
    await world.send(where, "b.example")
    world.now = 20
    await world.send(where, "b.example")
    cast(Line, world.sessions[1].connection).lost = "closed by the next hop"
    world.now = 29
    where.tidy()
    assert where.counts[1] == 1
    world.now = 31
    where.tidy()
    assert where.counts[1] == 0
    assert all(each.connection.lost for each in world.sessions)


async def test_connections_at_rest_are_limited() -> None:
    """The others are closed at once."""
    world = World()
    where = world.destinations(idle=3)
    for number in range(10):
        await world.send(where, f"d{number}.example")
    assert where.counts[1] == 3
    assert sum(not each.connection.lost for each in world.sessions) == 3


async def test_number_of_destinations_that_are_remembered_is_limited() -> None:
    """The oldest that is not in use is forgotten, its connection closed."""
    world = World()
    where = world.destinations(kept=20, attempts=10)
    for number in range(200):
        await world.send(where, f"d{number}.example")
    assert where.counts[1:] == (20, 20)
    assert sum(not each.connection.lost for each in world.sessions) == 20


async def test_destination_in_use_is_not_forgotten() -> None:
    """If all are, a new one is held."""
    world = World()
    world.gate.clear()
    where = world.destinations(kept=5, attempts=5)
    tasks = [task for number in range(5) for task in world.start(where, f"d{number}.example")]
    await spin()
    assert (await world.send(where, "new.example")).stage is Stage.HELD
    world.gate.set()
    await settled(tasks)
    assert (await world.send(where, "new.example")).outcome is Outcome.DELIVERED


# A destination that is out of order


async def test_destination_that_is_looked_up_is_not_forgotten() -> None:
    """Else there would be two of it, each with its own limits."""
    world = World()
    world.found.clear()
    where = world.destinations(kept=1)
    (slow,) = world.start(where, "slow.example")
    await spin()
    assert (await world.send(where, "other.example")).stage is Stage.HELD
    world.found.set()
    assert (await slow).outcome is Outcome.DELIVERED
    assert (await world.send(where, "other.example")).outcome is Outcome.DELIVERED


async def test_dead_destination_costs_nothing_while_it_is_paused() -> None:
    """A hundred thousand messages for it make no connection and no task; others are not slowed down."""
    world = World()
    world.refusing["dead.example"] = DOWN
    where = world.destinations()
    assert (await world.send(where, "dead.example")).stage is Stage.CONNECT
    assert 15 <= where.held()["dead.example"] <= 15 * 1.25
    assert where.room("dead.example") == 0
    results: dict[str, Result] = {}
    for _ in range(100_000):
        results = await where.deliver("dead.example", ["a@dead.example"], lambda: world.load("dead.example"))
        assert results["a@dead.example"].stage is Stage.HELD
    assert "refused" in results["a@dead.example"].detail
    assert (len(world.opened), world.loaded) == (1, 1)
    assert (await world.send(where, "a.example")).outcome is Outcome.DELIVERED


async def test_pause_gets_longer_up_to_its_longest_and_ends_with_success() -> None:
    """15, 30, 60 … seconds, each with some chance on top; after a success it begins anew."""
    world = World()
    where = world.destinations()
    world.refusing["dead.example"] = DOWN
    for expected in (15, 30, 60, 120, 240, 480, 900, 900):
        await world.send(where, "dead.example")
        left = where.held()["dead.example"]
        assert expected <= left <= expected * 1.25
        world.now += left + 0.001
    assert not where.held()
    del world.refusing["dead.example"]
    assert (await world.send(where, "dead.example")).outcome is Outcome.DELIVERED
    world.refusing["dead.example"] = DOWN
    cast(Line, world.sessions[-1].connection).lost = "closed by the next hop"
    await world.send(where, "dead.example")
    assert where.held()["dead.example"] <= 15 * 1.25


async def test_those_that_fail_together_are_one_failure() -> None:
    """Five attempts at the same time make the pause no longer, and those that wait are answered without a try."""
    world = World()
    world.refusing["dead.example"] = DOWN
    where = world.destinations()
    results = await asyncio.gather(*world.start(where, "dead.example", 50))
    assert len(world.opened) == 5
    assert [each.stage for each in results].count(Stage.HELD) == 45
    assert where.held()["dead.example"] <= 15 * 1.25


async def test_one_goes_ahead_when_the_pause_is_over() -> None:
    """If it fails, too, nobody else has tried; if it gets through, the others follow."""
    world = World()
    world.refusing["dead.example"] = DOWN
    where = world.destinations()
    await world.send(where, "dead.example")
    world.now += 20
    await asyncio.gather(*world.start(where, "dead.example", 20))
    assert len(world.opened) == 2
    world.now += 60
    del world.refusing["dead.example"]
    assert set(await settled(world.start(where, "dead.example", 40))) == {Outcome.DELIVERED}
    assert 1 <= world.most_for["dead.example"] <= 5


async def test_host_that_has_too_many_connections_gets_fewer() -> None:
    """Where others get through at the same time, there is no pause: it is the number that it does not like."""
    world = World()
    where = world.destinations(share=Share(concurrency=5))
    busy = outcome.lost(Stage.MAIL, "a.example", "421 too many connections")
    world.verdict = lambda key: busy if world.now_sending[key] >= 2 else TAKEN
    for _ in range(20):
        world.now += 1
        await asyncio.gather(*world.start(where, "a.example", 5))
    assert not where.held() or where.held()["a.example"] < 15 * 1.25
    world.most_for.clear()
    world.now += 100
    await settled(world.start(where, "a.example", 5))
    assert world.most_for["a.example"] < 5


async def test_refusal_of_a_message_is_no_failure_of_the_destination() -> None:
    """Greylisting, unknown users and spam filters pause nothing."""
    world = World()
    where = world.destinations()
    for verdict in (outcome.no_smtputf8("h"), outcome.too_large("h", 2, 1), outcome.may_have_been_taken("h", "reset")):
        world.verdict = lambda _, verdict=verdict: verdict  # type: ignore[misc]
        assert (await world.send(where, "a.example")) == verdict
        assert not where.held()


async def test_rate_of_a_destination_is_limited() -> None:
    """Ten at fifty a second take no less than nine intervals, and none is forgotten."""
    world = World()
    began = asyncio.get_running_loop().time()
    where = Destinations(
        lambda key: FakeHosts(world, key), DestinationLimits(share=Share(5, rate=50)), PATIENCE, CHANCE
    )
    assert set(await settled(world.start(where, "a.example", 10))) == {Outcome.DELIVERED}
    assert asyncio.get_running_loop().time() - began >= 9 / 50 - 0.01


async def test_cancelled_attempts_give_their_places_back() -> None:
    """Whether they wait or are under way."""
    world = World()
    world.gate.clear()
    where = world.destinations(share=Share(concurrency=2), attempts=2)
    tasks = world.start(where, "a.example", 6)
    await spin()
    for task in tasks[:4]:
        task.cancel()
    world.gate.set()
    assert await settled(tasks[4:]) == [Outcome.DELIVERED] * 2
    assert where.counts[0] == 0
    assert (await world.send(where, "a.example")).outcome is Outcome.DELIVERED


async def test_place_that_comes_at_the_moment_of_giving_up_is_passed_on() -> None:
    """Cancelled in the same turn of the loop in which it was handed a place."""
    world = World()
    world.gate.clear()
    where = world.destinations(share=Share(concurrency=1), attempts=1)
    first, second, third = world.start(where, "a.example", 3)
    await spin()
    world.gate.set()
    await first
    second.cancel()
    assert (await asyncio.wait_for(third, 20)).outcome is Outcome.DELIVERED
    assert where.counts[0] == 0


async def test_stop_lets_nobody_wait_and_keeps_nothing() -> None:
    """Those under way end, those that wait are told, and connections at rest are closed."""
    world = World()
    where = world.destinations(share=Share(concurrency=1))
    await world.send(where, "b.example")
    world.gate.clear()
    tasks = world.start(where, "a.example", 3)
    await spin()
    await where.close()
    await spin()
    assert [task.done() for task in tasks] == [False, True, True]
    world.gate.set()
    assert (await tasks[0]).outcome is Outcome.DELIVERED
    assert (await world.send(where, "a.example")).stage is Stage.HELD
    assert where.counts[:2] == (0, 0)
    assert all(each.connection.lost for each in world.sessions)


@pytest.mark.parametrize(
    ("recipient", "key"),
    [
        ("a@Example.NET", "example.net"),
        ("a@bücher.example", "xn--bcher-kva.example"),
        ('"a@b"@example.net', "example.net"),
        ("a@[127.0.0.1]", "[127.0.0.1]"),
        ("a@not..a.domain", "not..a.domain"),
        ("postmaster", "postmaster"),
    ],
)
def test_recipients_of_one_domain_have_one_destination(recipient: str, key: str) -> None:
    """However it is written."""
    assert destination_of(recipient) == key


# Hosts that serve many destinations


def same_host(world: World, count: int, names: int = 1) -> list[str]:
    """Make destinations that all lead to one address, which has so many names."""
    keys = [f"d{number}.example" for number in range(count)]
    for number, key in enumerate(keys):
        world.hosts[key] = (Host(f"mx{number % names}.example", ("192.0.2.9", f"2001:db8::{number}")),)
    return keys


def connected(world: World) -> int:
    """How many connections are open."""
    return sum(not each.connection.lost for each in world.sessions)


@pytest.mark.parametrize("names", [1, 200])
async def test_host_of_many_destinations_has_a_limit_of_its_own(names: int) -> None:
    """By name or by address: never more connections than that, those at rest counted, and all get through."""
    world = World()
    world.gate.clear()
    where = world.destinations(per_host=7, attempts=100)
    tasks = [task for key in same_host(world, 33, names) for task in world.start(where, key)]
    await spin()
    assert sum(world.now_sending.values()) == 7
    other = world.start(where, "other.example")
    await spin()
    assert world.now_sending["other.example"] == 1
    world.gate.set()
    assert set(await settled(tasks + other)) == {Outcome.DELIVERED}
    assert world.most == 8
    assert connected(world) == 8
    assert where.counts[:2] == (0, 8)


async def test_connection_at_rest_makes_room_for_another_destination() -> None:
    """The oldest is closed; the destination that has one uses its own."""
    world = World()
    first, second, third = same_host(world, 3)
    where = world.destinations(per_host=2)
    for key in (first, second, first):
        await world.send(where, key)
        world.now += 1
    assert len(world.opened) == 2
    await world.send(where, third)
    assert [bool(each.connection.lost) for each in world.sessions] == [False, True, False]
    assert where.counts[1] == 2
    await world.send(where, first)
    assert world.opened == [first, second, third]


async def test_what_waits_for_a_host_takes_no_place_of_others() -> None:
    """Places in all are fewer than those who wait for the host; messages to others are not behind them."""
    world = World()
    world.gate.clear()
    where = world.destinations(per_host=2, attempts=3)
    tasks = [task for key in same_host(world, 10) for task in world.start(where, key)]
    await spin()
    assert where.counts[0] == 2
    world.start(where, "other.example")
    await spin()
    assert world.now_sending["other.example"] == 1
    world.gate.set()
    assert set(await settled(tasks)) == {Outcome.DELIVERED}


async def test_more_than_wait_for_a_host_are_held_and_let_off_as_others_end() -> None:
    """Five for each place wait; the queue is told to leave the destinations of the others alone, and then some less."""
    world = World()
    world.gate.clear()
    where = world.destinations(per_host=2)
    keys = same_host(world, 20)
    tasks = [task for key in keys for task in world.start(where, key)]
    await spin()
    held = [key for key, task in zip(keys, tasks, strict=True) if task.done()]
    assert held == keys[12:]
    assert {task.result().stage for task in tasks if task.done()} == {Stage.HELD}
    assert where.crowded() == held
    assert not where.held()
    world.gate.set()
    assert (await settled(tasks)).count(Outcome.DELIVERED) == 12
    assert where.crowded() == []


async def test_backup_host_that_is_full_defers_and_says_so() -> None:
    """Where the first host is down, all its domains go to the next one, which has a limit, too."""
    world = World()
    world.gate.clear()
    where = world.destinations(per_host=2)
    backup = Host("backup.example", ("192.0.2.2",), 20)
    for number in range(4):
        name = f"mx{number}.example"
        world.hosts[f"d{number}.example"] = (Host(name, (f"192.0.2.1{number}",), 10), backup)
        world.refusing[name] = DOWN
    tasks = [task for number in range(4) for task in world.start(where, f"d{number}.example")]
    await spin()
    failed = [task.result() for task in tasks if task.done()]
    assert [(each.outcome, each.enhanced, each.host) for each in failed] == [
        ("deferred", "4.4.5", "backup.example")
    ] * 2
    world.gate.set()
    assert (await settled(tasks)).count(Outcome.DELIVERED) == 2
    assert connected(world) == 2


async def test_place_at_a_host_goes_on_when_who_waits_gives_up() -> None:
    """Cancelled while it waits, when it was woken, or in the middle of it: the next one gets the place."""
    for victims in ([1], [1, 2], [0], [0, 1], [2, 3]):
        world = World()
        world.gate.clear()
        where = world.destinations(per_host=1, attempts=1)
        tasks = [task for key in same_host(world, 5) for task in world.start(where, key)]
        await spin()
        for victim in victims:
            tasks[victim].cancel()
        world.gate.set()
        left = [task for number, task in enumerate(tasks) if number not in victims]
        assert await settled(left) == [Outcome.DELIVERED] * len(left)
        assert where.counts[0] == 0
        assert (await world.send(where, "d9.example")).outcome is Outcome.DELIVERED


async def test_place_that_was_woken_for_nobody_is_somebody_elses() -> None:
    """One that was woken for a place at the host, and gives up before there is one in all, takes nothing with it."""
    world = World()
    world.gate.clear()
    where = world.destinations(per_host=1, attempts=2)
    first, second, third = same_host(world, 3, names=3)
    (ends,) = world.start(where, first)
    others = world.start(where, "one.example") + world.start(where, "two.example")
    await spin()
    waits, last = (*world.start(where, second), *world.start(where, third))
    await spin()
    ends.cancel()  # its place in all goes to the other destination, which was there before
    await spin()
    waits.cancel()
    world.gate.set()
    assert await settled([*others, last]) == [Outcome.DELIVERED] * 3


async def test_message_whose_host_has_a_place_is_not_held_up_by_one_that_gave_up() -> None:
    """Of two messages to one domain the first waits for a host, and is cancelled; the second goes to another host."""
    world = World()
    world.gate.clear()
    where = world.destinations(per_host=1)
    here, there = Host("mx1.example", ("192.0.2.1",)), Host("mx2.example", ("192.0.2.2",))
    world.hosts = {"busy.example": (here,), "a.example": (here, there)}
    busy = world.start(where, "busy.example")
    await spin()
    waits = world.start(where, "a.example")
    await spin()
    world.hosts["a.example"] = (there, here)
    goes = world.start(where, "a.example")
    await spin()
    assert "a.example" not in world.now_sending
    waits[0].cancel()
    await spin()
    assert world.now_sending["a.example"] == 1
    world.gate.set()
    assert await settled(busy + goes) == [Outcome.DELIVERED] * 2


async def test_connection_at_rest_counts_at_its_own_host() -> None:
    """The route may name another host first by the time that it is used again."""
    world = World()
    where = world.destinations(per_host=1)
    one, two = Host("mx1.example", ("192.0.2.1",)), Host("mx2.example", ("192.0.2.2",))
    for hosts in ((one, two), (two, one), (one, two)):
        world.hosts["a.example"] = hosts
        assert (await world.send(where, "a.example")).outcome is Outcome.DELIVERED
    assert len(world.opened) == 1
    assert where._places._busy == {}
    assert where._places._resting == {"mx1.example": 1, "192.0.2.1": 1}


async def test_connections_at_rest_are_forgotten_with_all_that_is_known_of_them() -> None:
    """However one ends, at rest or in use, nothing of it is counted at its host any more."""
    world = World()
    where = world.destinations(per_host=3, idle_seconds=30, idle=2, messages=2)
    keys = same_host(world, 6)
    for _ in range(3):
        for key in keys:
            await world.send(where, key)
    cast(Line, world.sessions[-1].connection).lost = "closed by the next hop"
    await world.send(where, keys[-1])
    world.refusing[keys[0]] = DOWN
    await world.send(where, keys[0])
    world.now += 40
    where.tidy()
    assert where.counts[:2] == (0, 0)
    places = where._places
    assert (places._busy, places._resting, places._attempts, places._waiting) == ({}, {}, {}, {})


# Real connections


async def test_provider_of_many_domains_has_few_connections() -> None:
    """Domains with one MX host, whose own names differ, send to it at the same time, over no more than allowed."""
    domains = [f"d{number}.example" for number in range(30)]
    zone = [f"{each} 300 MX 1 mx.{each}." for each in domains] + [f"mx.{each} 300 A 127.0.0.2" for each in domains]
    with lab(zone=tuple(zone)) as here:
        here.servers[0].pause = 0.02
        where = Destinations(here.mx_hosts().of, DestinationLimits(per_host=4), PATIENCE, CHANCE)

        async def send(domain: str) -> Result:
            async def load() -> Mail:
                return Mail(SENDER, (Copy((f"ann@{domain}",), CONTENT),))

            return (await where.deliver(domain, [f"ann@{domain}"], load))[f"ann@{domain}"]

        results = await asyncio.gather(*map(send, domains[:20]))
        assert {each.outcome for each in results} == {Outcome.DELIVERED}
        assert 2 <= here.servers[0].most_open <= 8  # one that was closed may be seen to be a moment later
        assert len(here.servers[0].taken) == 20
        await where.close()


async def test_connection_that_died_at_rest_costs_no_attempt() -> None:
    """Closed, reset or 421 while it rested: the message goes over a new one."""
    with lab() as here:
        mx = here.mx_hosts()
        where = Destinations(mx.of, DestinationLimits(), PATIENCE, CHANCE)

        async def send() -> Result:
            async def load() -> Mail:
                return Mail(SENDER, (Copy(("ann@example.net",), CONTENT),))

            return (await where.deliver("example.net", ["ann@example.net"], load))["ann@example.net"]

        assert (await send()).outcome is Outcome.DELIVERED
        assert (await send()).outcome is Outcome.DELIVERED
        assert here.connections() == [1]
        server = here.servers[0]
        replies = iter(["421 4.4.2 idle for too long", "250 fine"])
        server.replies["MAIL"] = lambda _: next(replies)
        assert (await send()).outcome is Outcome.DELIVERED
        assert here.connections() == [2]
        server.replies["MAIL"] = "250 fine"
        await asyncio.to_thread(server.hang_up)
        assert (await send()).outcome is Outcome.DELIVERED
        assert not where.held()
        await where.close()


async def test_message_that_a_reused_connection_may_have_taken_is_not_sent_again() -> None:
    """The final dot is the final dot."""
    with lab() as here:
        mx = here.mx_hosts()
        where = Destinations(mx.of, DestinationLimits(), PATIENCE, CHANCE)

        async def load() -> Mail:
            return Mail(SENDER, (Copy(("ann@example.net",), CONTENT),))

        await where.deliver("example.net", ["ann@example.net"], load)
        here.servers[0].replies["dot"] = "close"
        result = (await where.deliver("example.net", ["ann@example.net"], load))["ann@example.net"]
        assert result.detail.startswith("may have been taken")
        assert here.connections() == [1]
        assert len(here.servers[0].taken) == 2
        await where.close()
