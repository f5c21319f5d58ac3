"""The queue by itself, with a courier on script: trouble in the middle, and one destination among many."""

import asyncio
import itertools
import sqlite3
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from proxy.compose.dkim import Signer
from proxy.deliver import queue as module
from proxy.deliver.copies import Copies
from proxy.deliver.courier import Load
from proxy.deliver.notices import Notices
from proxy.deliver.queue import Queue
from proxy.policy import outcome
from proxy.policy.outcome import Result
from proxy.policy.retry import RetrySettings
from proxy.spool.item import Change, Item, Layout, Notice, Recipient, State, Suppression
from proxy.spool.sqlite import SqliteStore
from proxy.spool.store import History, Leased, StoreError

CONTENT = b"Subject: test\r\n\r\nHello\r\n"
DELIVERED = outcome.stored("written")
FAILED = attrs.evolve(outcome.no_such_domain("example.net"), detail="no such domain")


class Watcher:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.troubles: list[Exception] = []
        self.aside: list[str] = []

    def attempted(self, _item: Item, _recipient: Recipient, result: Result, _seconds: float) -> None:
        self.outcomes[result.outcome.value] += 1

    def set_aside(self, item: Item, _reason: str) -> None:
        self.aside.append(item.id)

    def suppressed(self, _item: Item, _recipient: Recipient, _reason: str) -> None:
        return

    def noticed(self, _item: Item, _notice: Item, _kind: str) -> None:
        return

    def trouble(self, error: Exception) -> None:
        self.troubles.append(error)


class Courier:
    """Answers with what the test's function gives for a destination."""

    def __init__(self, answer: Callable[[str], Result | None]) -> None:
        self.answer = answer
        self.tried: Counter[str] = Counter()
        self.out: set[str] = set()
        self.full: set[str] = set()
        self.over = asyncio.Event()
        self.turn = asyncio.Event()
        self.turn.set()
        self.sent: list[list[str]] = []
        self.on_the_wire = asyncio.Event()
        self.on_the_wire.set()

    def paused(self) -> Collection[str]:
        return self.out

    def is_paused(self, destination: str) -> bool:
        return destination in self.paused()

    def crowded(self) -> Collection[str]:
        return self.full

    async def deliver(self, destination: str, recipients: Sequence[str], load: Load) -> dict[str, Result]:
        self.tried[destination] += 1
        result = self.answer(destination)
        await self.turn.wait()
        if result is None or result.outcome is not outcome.Outcome.DEFERRED:
            self.sent.append((await load()).recipients)
        await self.on_the_wire.wait()
        if result is None:  # it hangs, until the end
            await self.over.wait()
            result = outcome.held(None, "the program stops")
        return dict.fromkeys(recipients, result)

    def tidy(self) -> None:
        return

    async def drain(self) -> None:
        self.over.set()

    async def close(self) -> None:
        return


class Stumbling(SqliteStore):
    """A store of which some methods fail so many times, and which counts the searches for what is due."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fail: Counter[str] = Counter()
        self.leases = 0

    def _stumble(self, name: str) -> None:
        if self.fail[name]:
            self.fail[name] -= 1
            raise StoreError(f"no {name} today")

    async def lease(
        self, now: float, lease_until: float, limit: int, without: Collection[str] = (), limit_each: int | None = None
    ) -> list[Leased]:
        self.leases += 1
        return await super().lease(now, lease_until, limit, without, limit_each)

    async def content(self, message_id: str) -> bytes:
        self._stumble("content")
        return await super().content(message_id)

    async def settle(
        self,
        changes: Sequence[Change],
        now: float,
        notices: Sequence[Notice] = (),
        suppressions: Sequence[Suppression] = (),
    ) -> list[Notice]:
        self._stumble("settle")
        return await super().settle(changes, now, notices, suppressions)


class Rig:
    """A queue with all around it."""

    def __init__(self, store: Stumbling, answer: Callable[[str], Result | None], *, first_seconds: float) -> None:
        self.store = store
        self.folder = store._folder
        self.watcher = Watcher()
        self.courier = Courier(answer)
        names = itertools.count(1)
        self.queue = Queue(
            store,
            self.courier,
            Copies("http://127.0.0.1", None, Signer([]), time.time),
            Notices("proxy.example.com", lambda: f"n{next(names)}", lambda address: address.rpartition("@")[2], 1000),
            self.watcher,
            RetrySettings(first_seconds=first_seconds, expire_seconds=1000),
            time.time,
            most=100,
            most_each=10,
        )

    async def add(self, name: str, *destinations: str, reverse_path: str = "app@example.com", age: float = 0) -> None:
        """Keep a message, due at once, that was accepted so many seconds ago."""
        recipients = tuple(Recipient(number, f"r{number}@{each}", each) for number, each in enumerate(destinations))
        await self.store.add(
            Item(name, time.time() - age, reverse_path, recipients, Layout(len(CONTENT)), len(CONTENT)), CONTENT, 0
        )
        self.queue.wake()

    async def history(self, name: str) -> History:
        """What is known of a message."""
        found = await self.store.history(name)
        if found is None:
            raise AssertionError(name)
        return found


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TROUBLE_SECONDS", 0.05)
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(module, "_EXPIRY_SECONDS", 0.05)
    monkeypatch.setattr(module, "_WITHDRAW_SECONDS", 0.01)


@asynccontextmanager
async def rig(
    folder: Path, answer: Callable[[str], Result | None], *, first_seconds: float = 1000
) -> AsyncIterator[Rig]:
    """Start a queue, and stop it at the end."""
    made = Rig(Stumbling(folder), answer, first_seconds=first_seconds)
    made.queue.start()
    try:
        yield made
    finally:
        await made.queue.stop(5)
        await made.store.close()


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_outcome_that_cannot_be_written_is_written_later_and_nothing_is_tried_twice(tmp_path: Path) -> None:
    """The disk is full for a while: what was delivered stays delivered, and the notice comes all the same."""
    async with rig(tmp_path, lambda name: FAILED if name == "bad.example" else DELIVERED) as here:
        here.store.fail["settle"] = 5
        await here.add("m1", "good.example")
        await here.add("m2", "bad.example")
        await until(lambda: here.watcher.outcomes["delivered"] == 2)  # and that is m1, and the notice about m2
        assert here.courier.tried == {"good.example": 1, "bad.example": 1, "example.com": 1}
        assert [event.kind for event in (await here.history("m2")).events] == ["received", "bounced", "bounce_told"]
        assert len(here.watcher.troubles) == 5


async def test_content_that_cannot_be_read_now_defers(tmp_path: Path) -> None:
    """The store's trouble is no damage, and no message waits for the end of a lease because of it."""
    async with rig(tmp_path, lambda _name: DELIVERED, first_seconds=0.05) as here:
        here.store.fail["content"] = 2
        await here.add("m1", "a.example")
        await until(lambda: here.watcher.outcomes["delivered"] == 1)
        assert not here.watcher.aside
        assert [event.kind for event in (await here.history("m1")).events] == [
            "received",
            *["deferred"] * 2,
            "delivered",
        ]


async def let_go(store: SqliteStore, name: str) -> None:
    """Wait until nobody has any of a removed message any more."""
    async with asyncio.timeout(20):
        while await store.under_way(name):  # noqa: ASYNC110 - as the command does
            await asyncio.sleep(0.01)


async def removed(here: Rig, name: str) -> None:
    """Remove a message as a command does, beside the queue, and wait until the queue lets go."""
    beside = SqliteStore(here.folder)
    await beside.remove(name, "by hand", time.time())
    await let_go(beside, name)
    await beside.close()


async def test_what_is_removed_while_it_waits_for_its_turn_is_not_sent(tmp_path: Path) -> None:
    """Taken, and in line for a connection: it is let go at once, and nobody gets it when its turn comes."""
    async with rig(tmp_path, lambda _name: DELIVERED) as here:
        here.courier.turn.clear()
        await here.add("gone", "a.example", "a.example")
        await here.add("stays", "a.example")
        await until(lambda: here.courier.tried["a.example"] == 2)
        await removed(here, "gone")
        here.courier.turn.set()
        await until(lambda: here.watcher.outcomes["delivered"] == 1)
        assert here.courier.sent == [["r0@a.example"]]
        assert [each.state for each in (await here.history("gone")).item.recipients] == [State.REMOVED] * 2
        assert [event.kind for event in (await here.history("gone")).events] == ["received", "removed", "removed"]
        await until(lambda: not here.queue._under_way)
        assert not here.queue._withdrawn
        assert not here.watcher.troubles


@pytest.mark.parametrize("brings", [DELIVERED, FAILED, None])
async def test_what_is_removed_while_it_is_sent_ends_with_that(tmp_path: Path, brings: Result | None) -> None:
    """It may arrive, and is told so then; it is not tried again, and its sender hears nothing."""
    async with rig(tmp_path, lambda _name: brings, first_seconds=0.01) as here:
        here.courier.on_the_wire.clear()
        await here.add("m1", "a.example")
        await until(lambda: here.courier.sent)
        beside = SqliteStore(tmp_path)
        assert (await beside.remove("m1", "by hand", time.time())).under_way == 1
        await asyncio.sleep(0.1)  # the queue has looked; however often it does, this is not let go
        assert await beside.under_way("m1") == 1
        here.courier.on_the_wire.set()
        here.courier.over.set()
        await let_go(beside, "m1")
        await beside.close()
        kinds = [event.kind for event in (await here.history("m1")).events]
        assert kinds == ["received", "removed", *(["delivered"] if brings is DELIVERED else [])]
        assert here.courier.tried == {"a.example": 1}


async def test_slip_of_ours_costs_an_attempt_of_one_message(tmp_path: Path) -> None:
    """What fails in a way that nobody foresaw is tried again by the usual rules, and others do not notice."""

    def answer(name: str) -> Result:
        if name == "poison.example":
            raise ZeroDivisionError("a slip")
        return DELIVERED

    async with rig(tmp_path, answer) as here:
        await here.add("m1", "poison.example")
        await here.add("m2", "a.example")
        await until(lambda: sum(here.watcher.outcomes.values()) == 2)
        (recipient,) = (await here.history("m1")).item.recipients
        assert (recipient.state, recipient.attempts) == (State.PENDING, 1)
        assert recipient.next_attempt_at > time.time() + 500
        assert recipient.reply == "internal error (ZeroDivisionError)"


async def test_what_was_not_tried_keeps_its_attempts_and_its_place(tmp_path: Path) -> None:
    """Held back ten times, it is tried for the first time afterwards, and its timeline is short."""
    answers = iter([outcome.held(None, "busy")] * 10 + [DELIVERED])
    async with rig(tmp_path, lambda _name: next(answers)) as here:
        await here.add("m1", "a.example")
        await until(lambda: here.watcher.outcomes["delivered"] == 1)
        history = await here.history("m1")
        assert history.item.recipients[0].attempts == 1
        assert [event.kind for event in history.events] == ["received", "delivered"]


async def test_what_has_no_turn_for_long_is_given_back_before_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the turn would be lost; where they come slowly, all behind it would have waited for too long as well."""
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.05)
    async with rig(tmp_path, lambda _name: DELIVERED) as here:
        here.courier.turn.clear()
        await here.add("m1", "a.example")
        await until(lambda: here.courier.tried["a.example"] == 3)
        here.courier.on_the_wire.clear()
        here.courier.turn.set()
        await until(lambda: here.courier.sent)
        await asyncio.sleep(0.1)  # an attempt that has begun may take longer than that
        here.courier.on_the_wire.set()
        await until(lambda: here.watcher.outcomes["delivered"] == 1)
        history = await here.history("m1")
        assert history.item.recipients[0].attempts == 1
        assert [event.kind for event in history.events] == ["received", "delivered"]
        assert here.courier.sent == [["r0@a.example"]]
        assert not here.watcher.troubles


async def test_destination_that_hangs_leaves_places_to_the_others(tmp_path: Path) -> None:
    """However much there is for it, and however long it takes: it has its share of places, and no more."""
    async with rig(tmp_path, lambda name: None if name == "slow.example" else DELIVERED) as here:
        for number in range(150):
            await here.add(f"slow{number}", "slow.example")
        await until(lambda: here.courier.tried["slow.example"] >= 10)
        for number in range(50):
            await here.add(f"m{number}", "a.example")
        await until(lambda: here.watcher.outcomes["delivered"] == 50)
        assert here.courier.tried["slow.example"] < 20  # its share, on top of what was at hand below it
    store = SqliteStore(tmp_path)  # what hung was given back at the end
    assert len(await store.lease(time.time(), time.time() + 60, 1000)) == 150
    await store.close()


async def test_what_is_over_behind_a_pause_ends_before_the_pause_does(tmp_path: Path) -> None:
    """In bulk, told to the senders, without an attempt; what still has time waits as before."""
    held = outcome.held(outcome.unreachable("dead.example", "refused"), "not tried for 900 s more")
    async with rig(tmp_path, lambda name: held if name == "dead.example" else DELIVERED) as here:
        here.courier.out.add("dead.example")
        await here.add("young", "dead.example", age=900)
        for number in range(250):  # more than there is room for at a time
            await here.add(f"old{number}", "dead.example", age=2000)
        await until(lambda: here.watcher.outcomes["delivered"] == 250)  # the notices
        assert here.courier.tried["dead.example"] == 250
        assert [event.kind for event in (await here.history("old7")).events] == ["received", "bounced", "bounce_told"]
        (recipient,) = (await here.history("old7")).item.recipients
        assert "not delivered in time" in recipient.reply
        assert "refused" in recipient.reply
        (recipient,) = (await here.history("young")).item.recipients
        assert (recipient.state, recipient.attempts) == (State.PENDING, 0)


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_dead_destination_with_a_hundred_thousand_messages_costs_the_others_nothing(tmp_path: Path) -> None:
    """Others are delivered as if they were not there, and memory does not know how many there are."""
    count = 100_000
    await SqliteStore(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "spool.db")
    connection.executemany(
        "INSERT INTO message (id, received_at, reverse_path, login, provider, subject, size_octets, eight_bit, "
        "smtputf8, not_before, notice, layout, failed_steps, in_file, digest) VALUES "
        "(?, ?, '', '', '', '', 5, 0, 0, 0, 0, '{\"head_octets\": 5, \"slots\": []}', '[]', 0, x'00')",
        ((f"dead{number}", time.time()) for number in range(count)),
    )
    connection.executemany(
        "INSERT INTO recipient (message_id, number, address, destination, state, attempts, next_attempt_at, reply, "
        "remote_host) VALUES (?, 0, 'x@dead.example', 'dead.example', 'pending', 0, 0, '', '')",
        ((f"dead{number}",) for number in range(count)),
    )
    connection.execute("INSERT INTO destination VALUES ('dead.example', 0)")
    connection.commit()
    connection.close()
    unreachable = outcome.unreachable("dead.example", "refused")
    async with rig(tmp_path, lambda name: unreachable if name == "dead.example" else DELIVERED) as here:
        here.courier.out.add("dead.example")
        tracemalloc.start()
        for turn in range(20):
            for number in range(20):
                await here.add(f"m{turn}-{number}", f"d{number}.example")
            await until(lambda turn=turn: here.watcher.outcomes["delivered"] == 20 * (turn + 1))  # type: ignore[misc]
            assert (await here.store.depth()).pending == count
            if turn == 10:
                here.courier.out.clear()  # its pause is over: some are tried, while others come
        await until(lambda: here.courier.tried["dead.example"] > 100)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20_000_000
        assert len(here.queue._tasks) <= 10


async def test_large_contents_are_in_memory_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for one to leave; small ones wait for none of them, and one larger than all room goes alone."""
    monkeypatch.setattr(module, "_LARGE_OCTETS", len(CONTENT))
    monkeypatch.setattr(module, "_LARGE_TOGETHER_OCTETS", 2000)
    sizes = {"a": 900, "b": 900, "c": 900, "huge": 5000, "small": len(CONTENT)}
    async with rig(tmp_path, lambda _: DELIVERED) as here:
        here.courier.on_the_wire.clear()
        for name, size in sizes.items():
            recipient = Recipient(0, f"r@{name}.example", f"{name}.example")
            content = CONTENT + b"x" * (size - len(CONTENT))
            layout = Layout(len(content))
            await here.store.add(
                Item(name, time.time(), "app@example.com", (recipient,), layout, len(content)), content, 0
            )
        here.queue.wake()
        await until(lambda: here.courier.tried.total() == len(sizes))
        await until(lambda: len(here.courier.sent) == 3)
        assert ["r@small.example"] in here.courier.sent
        here.courier.on_the_wire.set()
        await until(lambda: here.watcher.outcomes["delivered"] == len(sizes))
        assert here.watcher.troubles == []
