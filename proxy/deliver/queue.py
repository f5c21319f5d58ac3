"""
The queue at work: take what is due, attempt it, write what came of it.

The time of the next attempt is written before an attempt begins (the lease), and its outcome behind it, in one step
with the notice and the suppression that follow from it; so a crash at any moment sends a message twice at worst, and
that only where SMTP itself cannot tell.

What was not attempted (its destination is paused, or there was no turn for it) keeps its attempts and its place, and is
looked at again soon. No destination may fill the places of all others: each has a limit for what is taken from the
store for it.

Source: RFC 5321, 4.5.4.1 (retries), 6.1 (the null reverse-path gets no bounce).
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from attrs import frozen

from proxy.deliver.copies import Copies
from proxy.deliver.courier import Courier
from proxy.deliver.notices import Notices
from proxy.mail.reply import printable
from proxy.outbound.transaction import Mail
from proxy.policy import outcome
from proxy.policy.outcome import Outcome, Result, Scope, Stage, expired, is_hard_bounce
from proxy.policy.retry import RetrySettings, delay_warning_due, next_attempt
from proxy.spool.item import Change, Event, EventKind, Item, Notice, Recipient, State, Suppression
from proxy.spool.store import DamagedError, Store, StoreError

LEASE_SECONDS = 7200.0
"""Longer than any attempt: who crashes loses its leases at once (``Store.release``), and who lives needs them."""

_WAIT_SECONDS = 1800.0  # an attempt that had no turn for so long is given back, so that its lease outlasts it
_AGAIN_SECONDS = 5.0
_LARGE_OCTETS = 262_144
_LARGE_TOGETHER_OCTETS = 100 << 20
_IDLE_SECONDS = 1.0
_WITHDRAW_SECONDS = 0.5
_EXPIRY_SECONDS = 5.0
_EXPIRED_AT_ONCE = 500
_TROUBLE_SECONDS = 5.0


_T = TypeVar("_T")


class Watcher(Protocol):
    """What the queue tells about itself: metrics and log."""

    def attempted(self, item: Item, recipient: Recipient, result: Result, seconds: float) -> None:
        """An attempt ended; *seconds* since the message was accepted, or was first to be sent."""

    def set_aside(self, item: Item, reason: str) -> None:
        """A message is damaged."""

    def suppressed(self, item: Item, recipient: Recipient, reason: str) -> None:
        """An address went onto the suppression list."""

    def noticed(self, item: Item, notice: Item, kind: str) -> None:
        """The sender of a message is told that it is late, or that it failed."""

    def trouble(self, error: Exception) -> None:
        """The store, or the queue itself, failed; it goes on."""


class Queue:
    """
    The worker loop of one process.

    Args:
        clock: Seconds since the epoch.
        most: Recipients at a time that are attempted or wait for their turn.
        most_each: The same, of each destination.
        chance: Gives numbers from 0 to 1, for jitter.
    """

    def __init__(
        self,
        store: Store,
        courier: Courier,
        copies: Copies,
        notices: Notices,
        watcher: Watcher,
        retry: RetrySettings,
        clock: Callable[[], float],
        most: int,
        most_each: int,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._courier = courier
        self._copies = copies
        self._notices = notices
        self._watcher = watcher
        self._retry = retry
        self._clock = clock
        self._chance = chance
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._stopping = False
        self._most = most
        self._most_each = most_each
        self._memory = _Memory()
        self._counts: Counter[str] = Counter()  # recipients of each destination that are attempted, or wait for it
        self._under_way: set[tuple[str, int]] = set()  # the same, each by message and number
        self._reserved = 0  # recipients of messages that are just being kept; in _counts, too
        self._on_the_wire: set[tuple[str, int]] = set()  # of those under way, what a courier has got
        self._withdrawn: set[tuple[str, int]] = set()  # of the others, what was removed meanwhile
        self._withdrawn_at = 0.0  # when to ask what was
        self._expiry_at = 0.0  # when to look for what is over and waits behind a pause
        self._more = True  # whether something may be due that there was no room for

    def start(self) -> None:
        """Begin to work."""
        self._loop = asyncio.get_running_loop().create_task(self._run())

    def wake(self) -> None:
        """Look for what is due at once."""
        self._woken.set()

    def added(self, recipients: Sequence[Recipient]) -> None:
        """Look for a message that was kept without a lease of ours, unless it is for paused destinations alone."""
        if not all(self._courier.is_paused(each.destination) for each in recipients):
            self._woken.set()

    def reserve(self, recipients: Sequence[Recipient]) -> float:
        """
        Make room for a message that will be kept with a lease of ours; :meth:`begin` or :meth:`give_back` is next.

        Returns:
            The end of the lease; 0 where it is to wait in the store. Half of the room is left for what waits there.
        """
        if self._stopping or 2 * (len(self._under_way) + self._reserved + len(recipients)) > self._most:
            return 0.0
        destinations: dict[str, int] = {}
        for each in recipients:
            destinations[each.destination] = destinations.get(each.destination, 0) + 1
        for name, number in destinations.items():
            if 2 * (self._counts[name] + number) > self._most_each or self._courier.is_paused(name):
                return 0.0
        if not destinations.keys().isdisjoint(self._courier.crowded()):
            return 0.0
        for name, number in destinations.items():
            self._counts[name] += number
        self._reserved += len(recipients)
        return self._clock() + LEASE_SECONDS

    def give_back(self, recipients: Sequence[Recipient]) -> None:
        """Free the room that was reserved."""
        self._reserved -= len(recipients)
        for each in recipients:
            self._free(each.destination, 1)

    def begin(self, item: Item, recipients: Sequence[Recipient], content: bytes) -> None:
        """
        Attempt a message that was kept with a lease of ours, in the room that was given back just now.

        Args:
            recipients: Those of the message that are to get it, each with the attempt that begins.
            content: What was kept; empty where it is to be read.
        """
        for destination, some in self._by_destination(item.id, recipients).items():
            self._begin(item, destination, some, content)

    async def stop(self, seconds: float) -> None:
        """
        Begin nothing new, and let what is under way finish.

        What has no turn yet is given back, and due again at once. What does not finish stays leased until this process
        is gone.
        """
        self._stopping = True
        self._woken.set()
        await self._courier.drain()
        if self._loop is not None:
            await self._loop
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._courier.close()

    async def _run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                await self._withdraw()
                busy = await self._take()
                busy |= await self._expire()
            except Exception as error:  # the disk, mostly; whatever it is, the queue goes on
                self._watcher.trouble(error)
                await self._pause(_TROUBLE_SECONDS)
                continue
            if not busy:
                await self._wait(_IDLE_SECONDS)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _pause(self, seconds: float) -> None:
        """Wait for so long, whoever wakes us, but for the end."""
        until = asyncio.get_running_loop().time() + seconds
        while not self._stopping and (left := until - asyncio.get_running_loop().time()) > 0:
            self._woken.clear()
            await self._wait(left)

    async def _take(self) -> bool:
        """Begin attempts for what is due and has room; False when there is nothing to do for now."""
        room = self._most - len(self._under_way) - self._reserved
        self._more = True
        if room <= 0:
            return False  # an attempt that ends wakes us
        now = self._clock()
        crowded = [name for name, number in self._counts.items() if number >= self._most_each]
        crowded += self._courier.crowded()
        leased = await self._store.lease(
            now, now + LEASE_SECONDS, room, {*self._courier.paused(), *crowded}, self._most_each
        )
        for each in leased:
            for destination, recipients in self._by_destination(each.item.id, each.item.recipients).items():
                self._begin(each.item, destination, recipients)
        self._more = bool(leased or crowded)
        return bool(leased)

    async def _withdraw(self) -> None:
        """Let go of what was removed and has no turn yet; what is on the wire goes on to its end."""
        clock = asyncio.get_running_loop().time
        if clock() < self._withdrawn_at:
            return
        removed = await self._store.withdrawn()
        idle = [each for each in removed if each not in self._on_the_wire]
        self._withdrawn.update(self._under_way.intersection(idle))
        if idle:
            await self._store.let_go(idle)
        self._withdrawn_at = clock() + _WITHDRAW_SECONDS

    async def _expire(self) -> bool:
        """
        Begin attempts, which will not be made, for what is over and waits behind a pause: it ends now, and not with the
        pause. False when there is no more of it for now.
        """
        clock = asyncio.get_running_loop().time
        paused = self._courier.paused()
        room = min(self._most - len(self._under_way) - self._reserved, _EXPIRED_AT_ONCE)
        if not paused or room <= 0 or clock() < self._expiry_at:
            return False
        now = self._clock()
        leased = await self._store.overdue(now, now + LEASE_SECONDS, room, paused, now - self._retry.expire_seconds)
        for each in leased:
            for destination, recipients in self._by_destination(each.item.id, each.item.recipients).items():
                self._begin(each.item, destination, recipients)
        if sum(len(each.item.recipients) for each in leased) == room:
            self._more = True
            return True
        self._expiry_at = clock() + _EXPIRY_SECONDS
        return False

    def _by_destination(self, message_id: str, recipients: Iterable[Recipient]) -> dict[str, list[Recipient]]:
        found: dict[str, list[Recipient]] = {}
        for recipient in recipients:
            if (message_id, recipient.number) not in self._under_way:  # else the clock was set: it is under way
                found.setdefault(recipient.destination, []).append(recipient)
        return found

    def _begin(self, item: Item, destination: str, recipients: Sequence[Recipient], content: bytes = b"") -> None:
        keys = {(item.id, each.number) for each in recipients}
        self._under_way |= keys
        self._counts[destination] += len(keys)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            for each in (self._under_way, self._on_the_wire, self._withdrawn):
                each.difference_update(keys)
            self._free(destination, len(keys))
            if not task.cancelled() and (error := task.exception()) is not None:
                self._watcher.trouble(error if isinstance(error, Exception) else RuntimeError(repr(error)))

        task = asyncio.get_running_loop().create_task(self._attempt(item, destination, recipients, content))
        self._tasks.add(task)
        task.add_done_callback(done)

    def _free(self, destination: str, number: int) -> None:
        self._counts[destination] -= number
        if self._more and 4 * self._counts[destination] <= 3 * self._most_each:  # some at a time, not each that ends
            self._woken.set()
        if self._counts[destination] <= 0:
            del self._counts[destination]

    async def _attempt(self, item: Item, destination: str, recipients: Sequence[Recipient], content: bytes) -> None:
        """Attempt a message for its recipients at one destination, and write what came of it."""

        taken = 0  # of what large contents may take in memory

        async def load() -> Mail:
            nonlocal content, taken
            taken = await self._memory.take(item.size_octets)
            waiting.reschedule(None)
            content = content or await self._store.content(item.id)
            left = self._left(item, recipients)
            if not left:
                raise _WithdrawnError
            self._on_the_wire.update((item.id, each.number) for each in left)
            return Mail(item.reverse_path, tuple(self._copies.of(item, content, left)), smtputf8=item.smtputf8)

        results: dict[str, Result] = {}
        otherwise = _NO_TURN
        # It leaves the line by itself: a turn that came too late would be lost to those behind, who came as late then.
        waiting = asyncio.timeout(_WAIT_SECONDS)
        try:
            async with waiting:
                results = await self._courier.deliver(destination, [each.address for each in recipients], load)
        except DamagedError as error:
            await self._set_aside(item, recipients, str(error))
            return
        except _WithdrawnError:
            pass
        except Exception as error:  # the store, or a slip of ours: an attempt that failed, so that it ends some day
            if not waiting.expired():
                self._watcher.trouble(error)
                otherwise = _own_trouble(error)
        finally:
            self._memory.give_back(taken)
        left = self._left(item, recipients)
        if left:
            await self._write(item, content, [(each, results.get(each.address, otherwise)) for each in left])

    def _left(self, item: Item, recipients: Sequence[Recipient]) -> list[Recipient]:
        """Leave out who was removed before it was their turn."""
        return [each for each in recipients if (item.id, each.number) not in self._withdrawn]

    async def _write(self, item: Item, content: bytes, results: Sequence[tuple[Recipient, Result]]) -> None:
        """Write what came of an attempt, with all that follows from it."""
        now = self._clock()
        paused = self._courier.paused()
        ended = [_Ended(each, *self._change(item, each, result, now, paused)) for each, result in results]
        hard = [each for each in ended if not item.notice and is_hard_bounce(each.result)]
        suppressions = [Suppression(each.recipient.address, now, each.result.detail) for each in hard]
        notices = await self._notices_for(item, content, ended, now)
        told = await self._insist(
            lambda: self._store.settle([each.change for each in ended], now, notices, suppressions)
        )
        for each in ended:
            if each.change.attempted:
                seconds = max(0.0, now - max(item.received_at, item.not_before))  # below 0 if sent early by hand
                self._watcher.attempted(item, each.recipient, each.result, seconds)
        for each in hard:
            self._watcher.suppressed(item, each.recipient, each.result.detail)
        for notice in told:
            self._watcher.noticed(item, notice.item, notice.event.kind)

    async def _set_aside(self, item: Item, recipients: Sequence[Recipient], reason: str) -> None:
        numbers = [each.number for each in recipients]
        await self._insist(lambda: self._store.set_aside(item.id, reason, self._clock(), numbers))
        self._watcher.set_aside(item, reason)

    async def _insist(self, write: Callable[[], Awaitable[_T]]) -> _T:
        """Write it, again and again: what was delivered and is not written would be delivered once more."""
        for attempt in itertools.count():
            try:
                return await write()
            except StoreError as error:
                self._watcher.trouble(error)
                if self._stopping and attempt > 1:
                    raise
                await asyncio.sleep(_TROUBLE_SECONDS)
        raise AssertionError("unreachable")

    def _change(
        self, item: Item, recipient: Recipient, result: Result, now: float, paused: Collection[str]
    ) -> tuple[Change, Result]:
        """Decide what an attempt means for a recipient, and what the result is then."""

        def change(state: State, kind: EventKind, result: Result, next_at: float = 0.0) -> tuple[Change, Result]:
            event = Event(now, kind, recipient.number, result.detail)
            return Change(item.id, recipient.number, state, event, next_at, result.detail, result.host), result

        if result.outcome is Outcome.DELIVERED:
            return change(State.DELIVERED, "delivered", result)
        if result.outcome is Outcome.FAILED:
            return change(State.BOUNCED, "bounced", result)
        # That a destination is paused says as much about its messages as an attempt would.
        is_paused = recipient.destination in paused
        tried = recipient.attempts if result.attempted else int(is_paused)
        following = next_attempt(
            tried, _moment(max(item.received_at, item.not_before)), _moment(now), self._chance(), self._retry
        )
        if following is None:
            return change(State.BOUNCED, "bounced", expired(result))
        if result.attempted:
            return change(State.PENDING, "deferred", result, following.timestamp())
        # Where it was: paused destinations are not asked for, and whatever else kept it back is over in a moment.
        again = now if self._stopping else now + _AGAIN_SECONDS * self._chance()
        said = (result.detail, result.host) if is_paused else (recipient.reply, recipient.remote_host)
        return Change(item.id, recipient.number, State.PENDING, None, again, *said, attempted=False), result

    async def _notices_for(self, item: Item, content: bytes, ended: Sequence["_Ended"], now: float) -> list[Notice]:
        """Compose what the sender is told: what failed for good, and once that something is late."""
        if not item.reverse_path or item.notice:
            return []  # a notice about a notice would go round for ever
        failed = [(each.recipient, each.result) for each in ended if each.change.state is State.BOUNCED]
        late = [(each.recipient, each.result) for each in ended if each.change.state is State.PENDING]
        if late and not await self._is_late(item, now):
            late = []
        told: list[tuple[EventKind, list[tuple[Recipient, Result]]]] = [("bounce_told", failed), ("delay_told", late)]
        told = [(kind, about) for kind, about in told if about]
        notices = []
        try:
            if told and not content:
                content = await self._returned(item)
            for kind, about in told:
                notice, octets = self._notices.compose(item, content, about, now, delayed=kind == "delay_told")
                notices.append(Notice(notice, octets, item.id, Event(now, kind, None, notice.id)))
        except Exception as error:  # a slip of ours; what came of the attempt is written all the same
            self._watcher.trouble(error)
        return notices

    async def _is_late(self, item: Item, now: float) -> bool:
        """Whether the sender is to be told now; the store sees to it that it is told once."""
        spooled_at = _moment(max(item.received_at, item.not_before))
        if not delay_warning_due(spooled_at, _moment(now), warned=False, settings=self._retry):
            return False
        try:
            history = await self._store.history(item.id)
        except StoreError as error:
            self._watcher.trouble(error)
            return False  # at the next attempt then
        return history is not None and all(event.kind != "delay_told" for event in history.events)

    async def _returned(self, item: Item) -> bytes:
        """Give what goes back with a notice where nothing was tried; without it the notice is still worth sending."""
        try:
            taken = await self._memory.take(item.size_octets)  # what ends behind a pause may be hundreds at a time
            try:
                return await self._store.content(item.id)
            finally:
                self._memory.give_back(taken)
        except StoreError:
            return b""


@frozen
class _Ended:
    """What came of an attempt for a recipient."""

    recipient: Recipient
    change: Change
    result: Result


def _own_trouble(error: Exception) -> Result:
    """A failure here, not at the destination. RFC 3463, X.3.0."""
    reason = str(error) if isinstance(error, StoreError) else f"internal error ({type(error).__name__})"
    return Result(Outcome.DEFERRED, Scope.MESSAGE, Stage.STORE, None, "4.3.0", printable(reason))


_NO_TURN = outcome.held(None, "there was no turn for it")


class _WithdrawnError(Exception):
    """All its recipients were removed."""


class _Memory:
    """What large contents may take together; small ones wait for nobody, and of any size there can be one."""

    def __init__(self) -> None:
        self._taken = 0
        self._freed = asyncio.Event()

    async def take(self, octets: int) -> int:
        """Wait until there is room for a content, and have it; gives what is to be given back."""
        if octets <= _LARGE_OCTETS:
            return 0
        while self._taken and self._taken + octets > _LARGE_TOGETHER_OCTETS:
            self._freed.clear()
            await self._freed.wait()
        self._taken += octets
        return octets

    def give_back(self, octets: int) -> None:
        """Free what was taken."""
        self._taken -= octets
        if octets:
            self._freed.set()


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
