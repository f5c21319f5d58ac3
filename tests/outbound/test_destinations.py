"""Destinations: who may send when, what is kept, and what a destination that is out of order costs."""

import asyncio
from typing import cast

import pytest

from proxy.outbound.destinations import DestinationLimits, Destinations, Share, destination_of
from proxy.outbound.transaction import Copy, Mail
from proxy.policy import outcome
from proxy.policy.outcome import Outcome, Result, Stage
from tests.outbound.site import CHANCE, CONTENT, PATIENCE, SENDER, lab
from tests.outbound.world import DOWN, TAKEN, FakeHosts, Line, World, settled, spin


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


# Real connections


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
