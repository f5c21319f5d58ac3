"""
The queue at work: take what is due, attempt it, write what came of it.

The time of the next attempt is written before an attempt begins (the lease), and its outcome behind it; so a crash at
any moment sends a message twice at worst, and that only where SMTP itself cannot tell.

Source: RFC 5321, 4.5.4.1 (retries), 6.1 (the null reverse-path gets no bounce).
"""

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from proxy.deliver.copies import Copies
from proxy.deliver.courier import Courier
from proxy.deliver.notices import Notices
from proxy.outbound.transaction import Copy, Mail
from proxy.policy.outcome import Outcome, Result, expired, is_hard_bounce
from proxy.policy.retry import RetrySettings, delay_warning_due, next_attempt
from proxy.spool.item import Change, Event, Item, Recipient, State
from proxy.spool.store import DamagedError, Store, StoreError

LEASE_SECONDS = 1800.0
_IDLE_SECONDS = 1.0
_TROUBLE_SECONDS = 5.0


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
        self._recipients = 0  # that are being attempted, or wait for their turn

    def start(self) -> None:
        """Begin to work."""
        self._loop = asyncio.get_running_loop().create_task(self._run())

    def wake(self) -> None:
        """Look for what is due at once."""
        self._woken.set()

    async def stop(self, seconds: float) -> None:
        """Begin nothing new, and let what is under way finish; what does not stays leased, and is due again later."""
        self._stopping = True
        self._woken.set()
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
                busy = await self._take()
            except Exception as error:  # the disk, mostly; whatever it is, the queue goes on
                self._watcher.trouble(error)
                await self._wait(_TROUBLE_SECONDS)
                continue
            if not busy:
                await self._wait(_IDLE_SECONDS)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _take(self) -> bool:
        """Begin attempts for what is due and has room; False when there is nothing to do for now."""
        room = self._most - self._recipients
        if room <= 0:
            return False  # an attempt that ends wakes us
        now = self._clock()
        leased = await self._store.lease(now, now + LEASE_SECONDS, room, self._courier.paused())
        for each in leased:
            by_destination: dict[str, list[Recipient]] = {}
            for recipient in each.item.recipients:
                by_destination.setdefault(recipient.destination, []).append(recipient)
            for destination, recipients in by_destination.items():
                self._recipients += len(recipients)
                task = asyncio.get_running_loop().create_task(self._attempt(each.item, destination, recipients))
                self._tasks.add(task)
                task.add_done_callback(self._done)
        return bool(leased)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._woken.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._watcher.trouble(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    async def _attempt(self, item: Item, destination: str, recipients: Sequence[Recipient]) -> None:
        """Attempt a message for its recipients at one destination, and write what came of it."""
        content = b""

        async def load() -> Mail:
            nonlocal content
            content = await self._store.content(item.id)
            copies = self._copies.of(item, content, recipients)
            return Mail(
                item.reverse_path,
                tuple(Copy(tuple(each.address for each in group), octets) for group, octets in copies),
                smtputf8=item.smtputf8,
            )

        try:
            results = await self._courier.deliver(destination, [each.address for each in recipients], load)
        except DamagedError as error:
            await self._store.set_aside(item.id, str(error), self._clock())
            self._watcher.set_aside(item, str(error))
            return
        finally:
            self._recipients -= len(recipients)
        now = self._clock()
        ended = [
            (each, self._change(item, each, results[each.address], now), results[each.address]) for each in recipients
        ]
        await self._settle([change for _, change, _ in ended], now)
        waited = max(0.0, now - max(item.received_at, item.not_before))  # less than 0 where it was sent early by hand
        for recipient, _, result in ended:
            self._watcher.attempted(item, recipient, result, waited)
        await self._suppress(item, ended, now)
        await self._tell(item, content, ended, now)

    async def _settle(self, changes: list[Change], now: float) -> None:
        """Write it, again and again: what was delivered and is not written would be delivered once more."""
        for attempt in itertools.count():
            try:
                await self._store.settle(changes, now)
            except StoreError as error:
                self._watcher.trouble(error)
                if self._stopping and attempt > 1:
                    raise
                await asyncio.sleep(_TROUBLE_SECONDS)
            else:
                return

    def _change(self, item: Item, recipient: Recipient, result: Result, now: float) -> Change:
        """Decide what an attempt means for a recipient."""
        text = result.detail

        def change(state: State, kind: str, next_at: float = 0.0) -> Change:
            event = Event(now, kind, recipient.number, text)  # type: ignore[arg-type]
            return Change(item.id, recipient.number, state, event, next_at, text, result.host)

        if result.outcome is Outcome.DELIVERED:
            return change(State.DELIVERED, "delivered")
        if result.outcome is Outcome.FAILED:
            return change(State.BOUNCED, "bounced")
        following = next_attempt(
            recipient.attempts,
            _moment(max(item.received_at, item.not_before)),
            _moment(now),
            self._chance(),
            self._retry,
        )
        if following is None:
            text = expired(result).detail
            return change(State.BOUNCED, "bounced")
        return change(State.PENDING, "deferred", following.timestamp())

    async def _suppress(self, item: Item, ended: Sequence[tuple[Recipient, Change, Result]], now: float) -> None:
        for recipient, _, result in ended:
            if not item.notice and is_hard_bounce(result):
                await self._store.suppress(recipient.address, result.detail, now)
                self._watcher.suppressed(item, recipient, result.detail)

    async def _tell(
        self, item: Item, content: bytes, ended: Sequence[tuple[Recipient, Change, Result]], now: float
    ) -> None:
        """Tell the sender what failed for good, and once that something is late."""
        if not item.reverse_path or item.notice:
            return  # a notice about a notice would go round for ever
        failed = [(each, result) for each, change, result in ended if change.state is State.BOUNCED]
        if failed:
            await self._notice(item, content, failed, now, "bounce_told")
        late = [(each, result) for each, change, result in ended if change.state is State.PENDING]
        spooled_at = _moment(max(item.received_at, item.not_before))
        if late and delay_warning_due(spooled_at, _moment(now), warned=False, settings=self._retry):
            history = await self._store.history(item.id)
            if history is not None and all(event.kind != "delay_told" for event in history.events):
                await self._notice(item, content, late, now, "delay_told")

    async def _notice(
        self, item: Item, content: bytes, about: Sequence[tuple[Recipient, Result]], now: float, kind: str
    ) -> None:
        notice, octets = self._notices.compose(item, content, about, now, delayed=kind == "delay_told")
        await self._store.add(notice, octets, 0)
        await self._store.note(item.id, Event(now, kind, None, notice.id))  # type: ignore[arg-type]
        self._watcher.noticed(item, notice, kind)
        self.wake()


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
