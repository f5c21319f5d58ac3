"""Hosts that serve many destinations: how many connections each has, and who has to wait for one."""

import asyncio
from typing import cast

import pytest

from proxy.outbound.destinations import DestinationLimits, Destinations
from proxy.outbound.mx import Host
from proxy.outbound.places import Places
from proxy.outbound.transaction import Copy, Mail
from proxy.policy.outcome import Outcome, Result, Stage
from tests.outbound.site import CHANCE, CONTENT, PATIENCE, SENDER, lab
from tests.outbound.world import DOWN, Line, World, settled, spin


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


def test_as_many_are_let_off_as_find_room() -> None:
    """One for each attempt that waits no more, the first refused first, however often anybody asks; at last all."""
    places: Places[str] = Places(1)
    here = ("mx.example", "192.0.2.1")
    for _ in range(5):
        assert not places.refuse(here, "nobody")
        places.enter(here)
    assert all(places.refuse(here, name) for name in ("a", "b", "c", "d"))
    assert not places.refuse(("other.example",), "e")
    for _ in range(3):
        assert places.refused() == ["a", "b", "c", "d"]
    places.leave(here)
    assert places.refused() == ["b", "c", "d"]
    assert not places.refuse(here, "a")
    for _ in range(4):
        places.leave(here)
    assert places.refused() == []


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


async def test_connection_at_rest_is_not_used_where_somebody_has_its_place() -> None:
    """Equal hosts come in any order, so one may be taken up while another message is about to connect there."""
    world = World()
    where = world.destinations(per_host=1)
    one, two = Host("mx1.example", ("192.0.2.1",)), Host("mx2.example", ("192.0.2.2",))
    world.hosts["a.example"] = world.hosts["b.example"] = (two,)
    await world.send(where, "a.example")
    world.hosts["a.example"] = (one, two)
    may_load = asyncio.Event()

    async def load() -> Mail:
        await may_load.wait()
        return await world.load("b.example")

    loading = asyncio.ensure_future(where.deliver("b.example", ["a@b.example"], load))
    await spin()
    world.gate.clear()
    tasks = world.start(where, "a.example")
    await spin()
    may_load.set()
    await spin()
    assert sorted(each.host for each in world.sessions if not each.connection.lost) == ["mx1.example", "mx2.example"]
    world.gate.set()
    assert await settled(tasks) == [Outcome.DELIVERED]
    assert (await loading)["a@b.example"].outcome is Outcome.DELIVERED


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
