"""
The tests that every store must pass; a store's own test module imports them and gives the fixtures ``store``,
``reopen`` (what a crash leaves) and ``beside`` (another process that works on the same store).

Destinations are words, times are numbers given: nothing here waits.

Longer than other modules: whoever writes a store reads what is asked of it in one place.
"""

import asyncio
from typing import Protocol

import attrs
import pytest

from proxy.spool.item import (
    UNGROUPED,
    Change,
    Event,
    Item,
    Layout,
    Notice,
    Recipient,
    Removal,
    Slot,
    State,
    Suppression,
)
from proxy.spool.store import DamagedError, Store, StoreError

T0 = 1_790_000_000.0  # 2026-09-21
DAY = "2026-09-21"


class Reopen(Protocol):
    """Closes a store as a crash would, and opens it again."""

    async def __call__(self) -> Store: ...


class Beside(Protocol):
    """Opens the store once more, as another process would."""

    async def __call__(self) -> Store: ...


def item(name: str = "m1", *recipients: Recipient, **fields: object) -> Item:
    """A message, by default for one recipient."""
    known = recipients or (Recipient(0, "ann@example.net", "example.net"),)
    base = Item(name, T0, "app@example.com", known, Layout(7), 7)
    return attrs.evolve(base, **fields)  # type: ignore[arg-type]


def recipients(*destinations: str) -> tuple[Recipient, ...]:
    """A recipient for each destination."""
    return tuple(Recipient(number, f"r{number}@{each}", each) for number, each in enumerate(destinations))


def delivered(message_id: str, number: int = 0, at: float = T0) -> Change:
    """A change to delivered."""
    return Change(message_id, number, State.DELIVERED, Event(at, "delivered", number, "250 ok"), reply="250 ok")


def deferred(message_id: str, next_at: float, number: int = 0) -> Change:
    """A change to a later attempt."""
    event = Event(T0, "deferred", number, "451 later")
    return Change(message_id, number, State.PENDING, event, next_attempt_at=next_at, reply="451 later")


async def test_message_comes_back_as_it_was_given(store: Store) -> None:
    """Every field, the layout with its slots, and each octet of the content."""
    layout = Layout(3, 4, "quoted-printable", (Slot(1, "open"), Slot(2, "click", "https://example.com/?a=ü")))
    given = item(
        "m1",
        Recipient(0, "ann@example.net", "example.net"),
        Recipient(1, "bob@example.org", "example.org", State.SUPPRESSED, reply="on the list"),
        layout=layout,
        group="Grüße",
        login="shop",
        provider="mailgun",
        subject="Hello",
        eight_bit=True,
        smtputf8=True,
        failed_steps=(("inline_css", "time"),),
    )
    await store.add(given, b"\x00\r\n\xe4\xff", 0)
    (leased,) = await store.lease(T0, T0 + 60, 10)
    first = attrs.evolve(given.recipients[0], attempts=1, next_attempt_at=leased.item.recipients[0].next_attempt_at)
    assert leased.item == attrs.evolve(given, recipients=(first,))
    assert await store.content("m1") == b"\x00\r\n\xe4\xff"


async def test_leased_recipient_is_nobody_elses_until_the_lease_ends(store: Store) -> None:
    """Two workers never attempt the same recipient; one that vanished loses it after a while."""
    await store.add(item(), b"content", 0)
    assert len(await store.lease(T0, T0 + 60, 10)) == 1
    assert await store.lease(T0 + 59, T0 + 120, 10) == []
    (again,) = await store.lease(T0 + 60, T0 + 120, 10)
    assert again.item.recipients[0].attempts == 2


async def test_message_added_with_a_lease_is_the_callers(store: Store) -> None:
    """Who accepts a message may attempt it at once, and the queue takes over only when that comes to nothing."""
    await store.add(item(), b"content", T0 + 60)
    assert await store.lease(T0 + 59, T0 + 120, 10) == []
    (again,) = await store.lease(T0 + 60, T0 + 120, 10)
    assert again.item.recipients[0].attempts == 2  # the caller's was the first


async def test_message_is_not_due_before_its_time(store: Store) -> None:
    """Scheduled mail waits; the time of each recipient's next attempt counts."""
    waiting = Recipient(0, "ann@example.net", "example.net", next_attempt_at=T0 + 3600)
    await store.add(item("m1", waiting, not_before=T0 + 3600), b"content", 0)
    assert await store.lease(T0 + 3599, T0 + 4000, 10) == []
    assert len(await store.lease(T0 + 3600, T0 + 4000, 10)) == 1


async def test_settled_recipients_are_done(store: Store) -> None:
    """A final recipient never comes again, whatever is said of it later."""
    await store.add(item("m1", *recipients("a.example", "b.example")), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    await store.settle([delivered("m1", 0), deferred("m1", T0 + 100, 1)], T0)
    await store.settle([deferred("m1", T0, 0)], T0)
    (left,) = await store.lease(T0 + 100, T0 + 200, 10)
    assert [each.number for each in left.item.recipients] == [1]
    assert left.item.recipients[0].reply == "451 later"
    history = await store.history("m1")
    assert history is not None
    assert [each.state for each in history.item.recipients] == [State.DELIVERED, State.PENDING]
    assert [event.kind for event in history.events] == ["received", "delivered", "deferred"]


async def test_destination_with_much_does_not_hold_up_the_others(store: Store) -> None:
    """What is taken is spread over the destinations that have something due."""
    for number in range(30):
        await store.add(item(f"big{number}", *recipients("big.example")), b"content", 0)
    await store.add(item("small", *recipients("small.example"), received_at=T0 + 1), b"content", 0)
    taken = [each.item.id for each in await store.lease(T0 + 2, T0 + 60, 10)]
    assert "small" in taken
    assert len(taken) == 10


async def test_destinations_can_be_left_alone(store: Store) -> None:
    """One that just failed is not asked for, however much there is for it."""
    for number in range(20):
        await store.add(item(f"dead{number}", *recipients("dead.example")), b"content", 0)
    await store.add(item("alive", *recipients("alive.example")), b"content", 0)
    taken = await store.lease(T0, T0 + 60, 10, {"dead.example"})
    assert [each.item.id for each in taken] == ["alive"]


async def test_what_is_too_old_is_taken_before_it_is_due(store: Store) -> None:
    """Of the destinations named, the oldest first, whatever the time of its next attempt; nobody else's lease."""
    old = {"received_at": T0 - 1000}
    await store.add(item("old", *recipients("dead.example", "other.example"), **old), b"content", 0)
    await store.add(item("older", *recipients("dead.example"), received_at=T0 - 2000), b"content", 0)
    await store.add(item("new", *recipients("dead.example"), received_at=T0 - 999), b"content", 0)
    await store.add(item("later", *recipients("dead.example"), **old, not_before=T0 - 999), b"content", 0)
    await store.add(item("leased", *recipients("dead.example"), **old), b"content", T0 + 60)
    await store.add(item("aside", *recipients("dead.example"), **old), b"content", 0)
    await store.set_aside("aside", "damaged", T0, [0])
    await store.lease(T0, T0 + 60, 3, {"other.example"})
    await store.settle([deferred(name, T0 + 500) for name in ("old", "older", "new", "later")], T0)
    taken = [await store.overdue(T0 + 1, T0 + 60, 1, ["dead.example", "no.example"], T0 - 1000) for _ in range(3)]
    assert [[each.item.id for each in some] for some in taken] == [["older"], ["old"], []]
    assert [each.number for each in taken[1][0].item.recipients] == [0]
    again = await store.overdue(T0 + 61, T0 + 90, 9, ["dead.example"], T0 - 1000)
    assert sorted(each.item.id for each in again) == ["leased", "old", "older"]


async def test_destinations_follow_the_settings(store: Store) -> None:
    """What waits goes where the settings of now send it, by its address; what is final or fits stays as it was."""
    await store.add(item("m1", *recipients("a.example", "b.example", "c.example")), b"content", 0)
    await store.add(item("m2", *recipients("b.example")), b"content", 0)
    await store.settle([delivered("m1", 0), deferred("m2", T0 + 50)], T0)
    assert await store.redirect(lambda name: name == "c.example", lambda address: f"for {address}") == 2
    history = await store.history("m1")
    assert history is not None
    assert [each.destination for each in history.item.recipients] == ["a.example", "for r1@b.example", "c.example"]
    taken = {each.item.id for each in await store.lease(T0, T0 + 60, 10)}
    assert taken == {"m1"}
    (later,) = await store.lease(T0 + 50, T0 + 60, 10, ["c.example"])
    assert [each.destination for each in later.item.recipients] == ["for r0@b.example"]
    assert await store.redirect(lambda name: True, lambda address: "never") == 0


async def test_limit_counts_recipients(store: Store) -> None:
    """No more is taken than there is room for."""
    await store.add(item("m1", *recipients(*["a.example"] * 8)), b"content", 0)
    (first,) = await store.lease(T0, T0 + 60, 5)
    (rest,) = await store.lease(T0, T0 + 60, 5)
    assert (len(first.item.recipients), len(rest.item.recipients)) == (5, 3)


async def test_large_content_comes_back(store: Store) -> None:
    """A message of some megabytes is kept like a small one."""
    content = bytes(range(256)) * 20_000
    await store.add(item(size_octets=len(content)), content, 0)
    assert await store.content("m1") == content


async def test_content_of_an_unknown_message_is_damage(store: Store) -> None:
    """There is nothing to send, and that is told."""
    with pytest.raises(DamagedError, match="not in the store"):
        await store.content("nobody")


async def test_damaged_message_is_set_aside_and_seen(store: Store) -> None:
    """It is attempted no more, and not forgotten: it stands in the queue's depth and in its own history."""
    await store.add(item(), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    await store.set_aside("m1", "its content is not what was kept", T0, [0])
    assert await store.release(T0) == 0
    assert await store.lease(T0 + 1e6, T0 + 2e6, 10) == []
    depth = await store.depth()
    assert (depth.pending, depth.set_aside) == (0, 1)
    history = await store.history("m1")
    assert history is not None
    assert history.events[-1] == Event(T0, "set_aside", None, "its content is not what was kept")


async def test_message_that_was_set_aside_is_listed_and_put_back(store: Store) -> None:
    """By its name alone; the reason is seen as long as it holds, and nothing of it was lost."""
    await store.add(item("m1", *recipients("a.example", "b.example")), b"content", 0)
    await store.settle([delivered("m1", 0)], T0)
    await store.set_aside("m1", "its content is gone", T0, [1])
    assert [(each.id, each.set_aside) for each in await store.queue(10)] == [("m1", "its content is gone")]
    assert await store.retry(None, T0 + 1) == 0
    assert await store.lease(T0 + 1, T0 + 60, 10) == []
    assert await store.retry("m1", T0 + 2) == 1
    (leased,) = await store.lease(T0 + 2, T0 + 60, 10)
    assert (leased.item.set_aside, [each.number for each in leased.item.recipients]) == ("", [1])
    assert (await store.depth()).set_aside == 0
    history = await store.history("m1")
    assert history is not None
    assert [event.kind for event in history.events] == ["received", "delivered", "set_aside", "retried"]


async def test_message_that_was_set_aside_and_removed_is_over(store: Store) -> None:
    """It waits no more, and is counted no more."""
    await store.add(item("m1"), b"content", 0)
    await store.set_aside("m1", "its content is gone", T0, [0])
    assert await store.remove("m1", "by hand", T0) == Removal(1, 0)
    assert (await store.depth()).set_aside == 0
    assert await store.queue(10) == []
    assert await store.retry("m1", T0) == 0


async def test_removed_recipients_get_no_attempt(store: Store) -> None:
    """Those that are final stay what they are; there is nothing to remove twice."""
    await store.add(item("m1", *recipients("a.example", "b.example", "c.example"), group="g"), b"content", 0)
    await store.settle([delivered("m1", 0), deferred("m1", T0 + 60, 1)], T0)
    assert await store.remove("m1", "by hand", T0 + 1) == Removal(2, 0)
    assert await store.remove("m1", "by hand", T0 + 1) == Removal(0, 0)
    assert await store.remove("nobody", "by hand", T0 + 1) == Removal(0, 0)
    assert await store.lease(T0 + 1e6, T0 + 2e6, 10) == []
    history = await store.history("m1")
    assert history is not None
    assert [each.state for each in history.item.recipients] == [State.DELIVERED, State.REMOVED, State.REMOVED]
    assert history.events[-1] == Event(T0 + 1, "removed", 2, "by hand")
    assert (await store.depth()).pending == 0
    assert await store.sweep(T0 + 200, 100) == 1


async def test_removal_of_what_is_under_way_is_its_owners_to_see(store: Store, beside: Beside) -> None:
    """Who leased hears of it, and lets go of what it has not begun; until then it may be getting it."""
    await store.add(item("m1", *recipients("a.example", "a.example", "b.example")), b"content", 0)
    await store.lease(T0, T0 + 60, 10, ["b.example"])
    other = await beside()
    assert await other.remove("m1", "by hand", T0 + 1) == Removal(3, 2)
    assert await other.withdrawn() == []
    assert sorted(await store.withdrawn()) == [("m1", 0), ("m1", 1)]
    assert await other.under_way("m1") == 2
    await store.let_go([("m1", 0)])
    assert await store.withdrawn() == [("m1", 1)]
    assert await other.under_way("m1") == 1
    assert await other.lease(T0 + 1e6, T0 + 2e6, 10) == []
    await store.close()
    await other.release(T0 + 2)
    assert await other.under_way("m1") == 0


async def test_attempt_that_was_under_way_when_its_message_was_removed(store: Store) -> None:
    """Delivered is what happened to it; anything else changes nothing, is tried no more, and is told to nobody."""
    await store.add(item("m1", *recipients("a.example", "a.example", "a.example"), group="g"), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    assert await store.remove("m1", "by hand", T0) == Removal(3, 3)
    bounced = Change("m1", 2, State.BOUNCED, Event(T0, "bounced", 2, "550 unknown"))
    assert await store.settle([delivered("m1", 0), deferred("m1", T0, 1)], T0) == []
    assert await store.settle([bounced], T0, [notice("n1", "m1")]) == []
    assert await store.settle([delivered("m1", 1)], T0) == []  # it was let go, so nobody can have delivered it
    assert await store.under_way("m1") == 0
    await store.add(item("m2", group="g"), b"content", T0 + 60)
    assert await store.remove("m2", "by hand", T0) == Removal(1, 1)
    assert await store.settle([deferred("m2", T0), delivered("m2")], T0) == []  # nor where both are told at once
    history = await store.history("m2")
    assert history is not None
    assert [each.state for each in history.item.recipients] == [State.REMOVED]
    history = await store.history("m1")
    assert history is not None
    assert [each.state for each in history.item.recipients] == [State.DELIVERED, State.REMOVED, State.REMOVED]
    assert [event.kind for event in history.events] == ["received", *["removed"] * 3, "delivered"]
    (figures,) = await store.report()
    assert (figures.delivered, figures.deferred, figures.bounced) == (1, 0, 0)


async def test_figures_count_each_group_by_day(store: Store) -> None:
    """Messages, recipients and attempts, by the group of the message and the day of the event."""
    await store.add(item("m1", *recipients("a.example", "b.example"), group="orders"), b"content", 0)
    suppressed = Recipient(0, "x@a.example", "a.example", State.SUPPRESSED)
    await store.add(item("m2", suppressed), b"content", 0)
    await store.settle([delivered("m1", 0), deferred("m1", T0 + 1, 1)], T0)
    bounced = Change("m1", 1, State.BOUNCED, Event(T0, "bounced", 1, "550 unknown"))
    await store.settle([bounced], T0 + 86_400)
    figures = {(each.day, each.group): each for each in await store.report()}
    first = figures[DAY, "orders"]
    assert (first.received, first.sent, first.delivered, first.deferred, first.bounced) == (1, 2, 1, 1, 0)
    assert figures["2026-09-22", "orders"].bounced == 1
    assert (figures[DAY, UNGROUPED].received, figures[DAY, UNGROUPED].suppressed) == (1, 1)
    assert [each.group for each in await store.report(group="orders")] == ["orders", "orders"]
    assert [each.day for each in await store.report(since_day="2026-09-22")] == ["2026-09-22"]


async def test_notices_of_ours_are_in_no_figures(store: Store) -> None:
    """A bounce is nobody's campaign."""
    await store.add(item("n1", notice=True), b"content", 0)
    await store.settle([delivered("n1")], T0)
    assert await store.report() == []


async def test_opens_and_clicks_are_counted_once_for_each_recipient_and_each_time(store: Store) -> None:
    """Unique and total, with the target in the timeline; what is not known counts for nothing."""
    await store.add(item("m1", *recipients("a.example", "a.example"), group="orders"), b"content", 0)
    for number in (0, 0, 1):
        assert await store.hit("opened", "m1", number, "", T0)
    assert await store.hit("clicked", "m1", 1, "https://example.com/", T0)
    assert not await store.hit("opened", "m1", 2, "", T0)
    assert not await store.hit("clicked", "gone", 0, "https://example.com/", T0)
    (figures,) = await store.report()
    assert (figures.opened, figures.opened_total, figures.clicked, figures.clicked_total) == (2, 3, 1, 1)
    history = await store.history("m1")
    assert history is not None
    assert Event(T0, "clicked", 1, "https://example.com/") in history.events


async def test_suppression_list_knows_addresses_in_any_case(store: Store) -> None:
    """Put on once, with the first reason; asked for by what the envelope says; taken off by hand."""
    await store.suppress("Ann@Example.net", "550 5.1.1 unknown", T0)
    await store.suppress("ann@example.net", "later", T0 + 1)
    assert await store.suppressed(["ANN@example.net", "bob@example.net"]) == {"ANN@example.net"}
    assert await store.suppressed([]) == frozenset()
    (kept,) = await store.suppressions()
    assert (kept.address, kept.since, kept.reason) == ("ann@example.net", T0, "550 5.1.1 unknown")
    assert await store.unsuppress("ANN@example.NET")
    assert not await store.unsuppress("ann@example.net")
    assert await store.suppressions() == []


async def test_suppressed_recipients_are_kept_as_such(store: Store) -> None:
    """The list is looked at in the moment in which the message is kept; our own notices go out all the same."""
    await store.suppress("R1@b.example", "550 5.1.1 unknown", T0)
    assert await store.add(item("m1", *recipients("a.example", "b.example")), b"content", 0) == {1}
    assert await store.add(item("m2", *recipients("b.example", "b.example"), notice=True), b"content", 0) == frozenset()
    history = await store.history("m1")
    assert history is not None
    assert [each.state for each in history.item.recipients] == [State.PENDING, State.SUPPRESSED]
    assert Event(T0, "suppressed", 1, "550 5.1.1 unknown") in history.events
    (figures,) = await store.report()
    assert (figures.sent, figures.suppressed) == (1, 1)


async def test_leases_of_a_program_that_crashed_are_released(store: Store, reopen: Reopen) -> None:
    """What was under way is due at once, with no wait for the lease; what was deferred keeps its time."""
    await store.add(item("leased", *recipients("a.example")), b"content", 0)
    await store.add(item("later", *recipients("b.example")), b"content", 0)
    assert len(await store.lease(T0, T0 + 900, 10)) == 2
    await store.settle([deferred("later", T0 + 500)], T0)
    again = await reopen()
    assert await again.release(T0 + 1) == 1
    (leased,) = await again.lease(T0 + 1, T0 + 900, 10)
    assert (leased.item.id, leased.item.recipients[0].attempts) == ("leased", 2)


async def test_leases_of_who_is_alive_are_kept(store: Store, beside: Beside) -> None:
    """Another process that starts, or looks after one that ended, takes nothing from one that works."""
    await store.add(item("m1"), b"content", 0)
    await store.lease(T0, T0 + 900, 10)
    other = await beside()
    assert await other.release(T0 + 1) == 0
    assert await store.release(T0 + 1) == 0
    assert await other.lease(T0 + 1, T0 + 900, 10) == []
    await store.close()
    assert await other.release(T0 + 2) == 1
    assert len(await other.lease(T0 + 2, T0 + 900, 10)) == 1


async def test_attempt_that_was_not_made_does_not_count(store: Store) -> None:
    """A lease begins an attempt, and who made none gives it back; no event and no figure tells of it."""
    await store.add(item("m1"), b"content", 0)
    for _ in range(3):
        await store.lease(T0, T0 + 60, 10)
        held = Change("m1", 0, State.PENDING, None, next_attempt_at=T0, reply="not tried", attempted=False)
        await store.settle([held], T0)
    (leased,) = await store.lease(T0, T0 + 60, 10)
    assert (leased.item.recipients[0].attempts, leased.item.recipients[0].reply) == (1, "not tried")
    history = await store.history("m1")
    assert history is not None
    assert [event.kind for event in history.events] == ["received"]
    assert (await store.report())[0].deferred == 0


async def test_no_destination_gets_more_than_its_limit(store: Store) -> None:
    """However much room there is in all, so that there is some left for what comes next."""
    for number in range(20):
        await store.add(item(f"big{number}", *recipients("big.example")), b"content", 0)
    await store.add(item("small", *recipients("small.example")), b"content", 0)
    taken = [each.item.id for each in await store.lease(T0, T0 + 60, 100, limit_each=5)]
    assert len(taken) == 6
    assert "small" in taken


def notice(name: str, about: str, kind: str = "bounce_told") -> Notice:
    """A notice to the sender of a message."""
    event = Event(T0, kind, None, name)  # type: ignore[arg-type]
    return Notice(item(name, reverse_path="", notice=True), b"report", about, event)


async def test_notice_is_kept_in_the_same_step_as_what_it_tells(store: Store, reopen: Reopen) -> None:
    """A crash leaves both or none of them: the notice, and the address on the suppression list, too."""
    await store.add(item("m1"), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    bounced = Change("m1", 0, State.BOUNCED, Event(T0, "bounced", 0, "550 unknown"))
    told = notice("n1", "m1")
    assert await store.settle([bounced], T0, [told], [Suppression("Ann@example.net", T0, "550 unknown")]) == [told]
    again = await reopen()
    (leased,) = await again.lease(T0, T0 + 60, 10)
    assert leased.item.id == "n1"
    assert leased.item.notice
    assert await again.content("n1") == b"report"
    assert [each.address for each in await again.suppressions()] == ["ann@example.net"]
    history = await again.history("m1")
    assert history is not None
    assert history.events[-1] == Event(T0, "bounce_told", None, "n1")


async def test_step_that_fails_leaves_nothing_of_it(store: Store) -> None:
    """Neither the changes, nor a notice, nor a suppression."""
    await store.add(item("m1"), b"content", 0)
    bounced = Change("m1", 0, State.BOUNCED, Event(T0, "bounced", 0, "550 unknown"))
    with pytest.raises(StoreError):
        await store.settle([bounced], T0, [notice("m1", "m1")], [Suppression("ann@example.net", T0, "550 unknown")])
    assert (await store.depth()).pending == 1
    assert await store.suppressions() == []


async def test_notice_about_what_changed_nothing_is_not_kept(store: Store) -> None:
    """What an operator removed meanwhile did not bounce."""
    await store.add(item("m1"), b"content", 0)
    await store.settle([Change("m1", 0, State.REMOVED, Event(T0, "removed", 0))], T0)
    bounced = Change("m1", 0, State.BOUNCED, Event(T0, "bounced", 0, "550 unknown"))
    assert await store.settle([bounced], T0, [notice("n1", "m1")]) == []
    assert await store.history("n1") is None


async def test_delay_is_told_once(store: Store) -> None:
    """Whoever comes first, of several workers and destinations."""
    await store.add(item("m1", *recipients("a.example", "b.example")), b"content", 0)
    first, second = notice("n1", "m1", "delay_told"), notice("n2", "m1", "delay_told")
    assert await store.settle([deferred("m1", T0 + 60, 0)], T0, [first]) == [first]
    assert await store.settle([deferred("m1", T0 + 60, 1)], T0, [second]) == []
    assert await store.history("n2") is None


async def test_what_was_on_the_wire_when_a_message_was_set_aside_is_not_sent_twice(
    store: Store, beside: Beside
) -> None:
    """Put back meanwhile, it is due again but for who may be getting it at this moment."""
    await store.add(item("m1", *recipients("a.example", "b.example")), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    await store.set_aside("m1", "its content is gone", T0, [1])
    await store.retry("m1", T0 + 1)
    other = await beside()
    (leased,) = await other.lease(T0 + 1, T0 + 60, 10)
    assert [each.number for each in leased.item.recipients] == [1]
    await store.settle([deferred("m1", T0 + 5, 0)], T0 + 2)
    (leased,) = await other.lease(T0 + 5, T0 + 60, 10)
    assert [each.number for each in leased.item.recipients] == [0]


async def test_what_was_on_the_wire_when_a_message_was_set_aside_stays_so_after_a_crash(
    store: Store, reopen: Reopen
) -> None:
    """Nobody has it any more, and it is as damaged as the rest."""
    await store.add(item("m1", *recipients("a.example", "b.example")), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    await store.set_aside("m1", "its content is gone", T0, [1])
    after = await reopen()
    await after.release(T0 + 1)
    assert await after.lease(T0 + 1e6, T0 + 2e6, 10) == []
    assert await after.retry("m1", T0 + 2) == 2
    (leased,) = await after.lease(T0 + 2, T0 + 60, 10)
    assert [each.number for each in leased.item.recipients] == [0, 1]


async def test_message_that_was_set_aside_is_not_due_again(store: Store) -> None:
    """Whatever an attempt for another of its recipients brings, which was under way."""
    await store.add(item("m1", *recipients("a.example", "b.example")), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    await store.set_aside("m1", "its content is not what was kept", T0, [0])
    await store.settle([deferred("m1", T0 + 5, 1)], T0)
    assert await store.lease(T0 + 1e6, T0 + 2e6, 10) == []
    assert (await store.depth()).pending == 0


async def test_depth_tells_what_waits(store: Store) -> None:
    """Recipients that are not final, and the age of the oldest message among them."""
    assert (await store.depth()).pending == 0
    await store.add(item("m1", *recipients("a.example", "b.example")), b"content", 0)
    await store.add(item("m2", received_at=T0 + 5), b"content", 0)
    depth = await store.depth()
    assert (depth.pending, depth.oldest_at) == (3, T0)
    await store.settle([delivered("m1", 0), delivered("m1", 1)], T0)
    depth = await store.depth()
    assert (depth.pending, depth.oldest_at) == (1, T0 + 5)


async def test_depth_counts_the_age_from_the_time_asked_for(store: Store) -> None:
    """Mail for later is not late: it has waited since it was to be sent, and before that not at all."""
    await store.add(item("later", not_before=T0 + 9000), b"content", 0)
    assert (await store.depth()).oldest_at == T0 + 9000
    await store.add(item("now", received_at=T0 + 5), b"content", 0)
    assert (await store.depth()).oldest_at == T0 + 5


async def test_queue_lists_what_is_pending_oldest_first(store: Store) -> None:
    """With the recipients that still wait, and with as many messages as asked for."""
    await store.add(item("new", received_at=T0 + 5), b"content", 0)
    await store.add(item("old", *recipients("a.example", "b.example")), b"content", 0)
    await store.settle([delivered("old", 0)], T0)
    listed = await store.queue(10)
    assert [each.id for each in listed] == ["old", "new"]
    assert [each.number for each in listed[0].recipients] == [1]
    assert [each.id for each in await store.queue(1)] == ["old"]


async def test_retry_makes_due_at_once(store: Store) -> None:
    """One message, or all of them; what is final stays as it is."""
    for name in ("m1", "m2"):
        await store.add(item(name), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    await store.settle([deferred("m1", T0 + 9000), deferred("m2", T0 + 9000)], T0)
    assert await store.retry("m1", T0 + 1) == 1
    assert [each.item.id for each in await store.lease(T0 + 1, T0 + 60, 10)] == ["m1"]
    assert await store.retry(None, T0 + 2) == 2
    assert await store.retry("nobody", T0 + 2) == 0


async def test_retry_leaves_what_is_being_attempted(store: Store) -> None:
    """A message that is under way is not begun a second time beside it; once its lease has run out, it is."""
    await store.add(item("m1"), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    assert await store.retry("m1", T0 + 1) == 1
    assert await store.lease(T0 + 1, T0 + 60, 10) == []
    await store.settle([deferred("m1", T0 + 9000)], T0 + 2)
    history = await store.history("m1")
    assert history is not None
    assert [each.kind for each in history.events] == ["received", "deferred"]
    assert await store.retry("m1", T0 + 3) == 1
    assert len(await store.lease(T0 + 3, T0 + 60, 10)) == 1
    assert await store.retry("m1", T0 + 61) == 1
    assert len(await store.lease(T0 + 61, T0 + 120, 10)) == 1


async def test_sweep_forgets_old_final_messages_and_keeps_figures(store: Store) -> None:
    """Content and timeline go after their time, pending messages never do."""
    content = b"x" * 400_000
    await store.add(item("done"), content, 0)
    await store.add(item("waits"), b"content", 0)
    await store.settle([delivered("done")], T0)
    assert await store.sweep(T0 + 99, 100) == 0
    assert await store.sweep(T0 + 101, 100) == 1
    assert await store.history("done") is None
    assert await store.history("waits") is not None
    assert sum(each.delivered for each in await store.report()) == 1


async def test_notes_stand_in_the_timeline(store: Store) -> None:
    """What the core tells of a message besides attempts."""
    await store.add(item(), b"content", 0)
    await store.note("m1", Event(T0 + 1, "bounce_told", None, "n1"))
    history = await store.history("m1")
    assert history is not None
    assert history.events[-1].kind == "bounce_told"


async def test_crash_after_add_loses_nothing(store: Store, reopen: Reopen) -> None:
    """What add was told is there after the process went away without a word."""
    large = b"y" * 500_000
    await store.add(item("small"), b"content", 0)
    await store.add(item("large"), large, 0)
    await store.suppress("gone@example.net", "550", T0)
    again = await reopen()
    assert {each.item.id for each in await again.lease(T0, T0 + 60, 10)} == {"small", "large"}
    assert await again.content("large") == large
    assert await again.content("small") == b"content"
    assert len(await again.suppressions()) == 1


async def test_crash_in_an_attempt_makes_it_due_again_when_the_lease_ends(store: Store, reopen: Reopen) -> None:
    """The next attempt's time was written before the attempt began."""
    await store.add(item(), b"content", 0)
    await store.lease(T0, T0 + 60, 10)
    again = await reopen()
    assert await again.lease(T0 + 59, T0 + 120, 10) == []
    assert len(await again.lease(T0 + 60, T0 + 120, 10)) == 1


async def test_many_at_once_are_all_kept(store: Store) -> None:
    """Of work that is committed together each fails or succeeds by itself: an id that exists is refused."""
    await store.add(item("taken"), b"content", 0)
    names = [*(f"m{number}" for number in range(200)), "taken"]
    outcomes = await asyncio.gather(*(store.add(item(name), b"content", 0) for name in names), return_exceptions=True)
    assert [isinstance(outcome, BaseException) for outcome in outcomes] == [False] * 200 + [True]
    assert (await store.depth()).pending == 201
