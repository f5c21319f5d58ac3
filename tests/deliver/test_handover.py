"""From the route to the queue without a detour: a new message is attempted at once where there is room for it."""

import time
from pathlib import Path

import attrs
import pytest

from proxy.deliver import queue as module
from proxy.spool.item import Item, Layout, Recipient, State
from tests.deliver.test_queue import CONTENT, DELIVERED, Rig, rig, until


def message(name: str, *destinations: str) -> Item:
    """A message to a recipient at each destination."""
    recipients = tuple(Recipient(number, f"r{number}@{each}", each) for number, each in enumerate(destinations))
    return Item(name, time.time(), "app@example.com", recipients, Layout(len(CONTENT)), len(CONTENT))


async def hand_over(here: Rig, item: Item, lease_until: float) -> None:
    """Keep a message, and have it attempted."""
    await here.store.add(item, CONTENT, lease_until)
    here.queue.give_back(item.recipients)
    here.queue.begin(item, [attrs.evolve(each, attempts=1) for each in item.recipients], CONTENT)


async def test_new_message_is_delivered_without_reading_it_back(tmp_path: Path) -> None:
    """It was made durable a moment ago, so what is at hand is what was kept."""
    async with rig(tmp_path, lambda _: DELIVERED) as here:
        here.store.fail["content"] = 1000
        item = message("m1", "a.example", "b.example")
        await hand_over(here, item, here.queue.reserve(item.recipients))
        await until(lambda: here.watcher.outcomes["delivered"] == 2)
        assert here.watcher.troubles == []
        recipients = (await here.history("m1")).item.recipients
        assert [(each.state, each.attempts) for each in recipients] == [(State.DELIVERED, 1)] * 2


async def test_half_of_the_room_stays_for_what_waits_in_the_store(tmp_path: Path) -> None:
    """New mail must not keep back what waits for its next attempt, neither in all nor for one destination."""
    async with rig(tmp_path, lambda _: None) as here:
        one = [message(f"m{number}", "one.example") for number in range(6)]
        taken = [here.queue.reserve(item.recipients) for item in one]
        assert [bool(each) for each in taken] == [True] * 5 + [False]
        others = [message(f"o{number}", f"{number}.example") for number in range(46)]
        assert [bool(here.queue.reserve(item.recipients)) for item in others] == [True] * 45 + [False]
        here.queue.give_back(others[0].recipients)
        assert here.queue.reserve(others[45].recipients)


async def test_message_for_a_paused_destination_waits_in_the_store(tmp_path: Path) -> None:
    """Nothing is begun that would only be turned away."""
    async with rig(tmp_path, lambda _: DELIVERED) as here:
        here.courier.out = {"b.example"}
        assert not here.queue.reserve(message("m1", "a.example", "b.example").recipients)
        assert here.queue.reserve(message("m2", "a.example").recipients)


async def test_what_waits_in_the_store_is_taken_when_those_at_hand_are_done(tmp_path: Path) -> None:
    """More than there is room for at a time is delivered all the same, and soon."""
    async with rig(tmp_path, lambda _: DELIVERED) as here:
        for number in range(40):
            await here.add(f"m{number}", "one.example")
        await until(lambda: here.watcher.outcomes["delivered"] == 40)


async def test_queue_is_not_searched_for_a_new_message_that_must_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one dead destination, each message for it would cost a search; one for others is found at once."""
    monkeypatch.setattr(module, "_IDLE_SECONDS", 1000)
    async with rig(tmp_path, lambda _: DELIVERED) as here:
        here.courier.out = {"b.example"}
        await until(lambda: here.store.leases == 1)
        for number in range(20):
            here.queue.added(message(f"m{number}", "b.example").recipients)
            await here.store.depth()  # the queue had its turn, and so had what it may have asked of the store
        assert here.store.leases == 1
        here.queue.added(message("both", "b.example", "a.example").recipients)
        await until(lambda: here.store.leases == 2)
