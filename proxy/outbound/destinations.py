"""
Destinations: how many connections each may have, how fast, and whose turn it is.

A destination is a domain (``via: mx``) or the smarthost. What bounds it:

* *Concurrency and rate* for each, and a limit for all together. Who waits for the latter takes turns by destination,
  so a newsletter to one domain does not hold up a password reset to another.
* *A pause* when an attempt ended with no more to say than that the destination is out of order. While it lasts, nothing
  is tried and nothing is waited for: ``held`` lets the queue leave such messages where they are, so any number of them
  costs nothing. When it is over, one attempt goes first; only if the destination answers do the others follow, and with
  each ten of them one more at a time. Where others got through meanwhile, the host rather has too many connections:
  fewer are made from then on, and there is no pause.
* *Connections at rest* are kept for a moment, within a limit; so is what is known of destinations.

No lock is needed: all of it runs on one event loop, and between two awaits nothing else does.
"""

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic

from attrs import frozen

from proxy.outbound.delivery import Hosts, attempt
from proxy.outbound.mx import normal_domain
from proxy.outbound.transaction import Mail, Patience, Session
from proxy.policy import outcome
from proxy.policy.outcome import Result

SMARTHOST = ""
"""The one destination where all mail goes to a smarthost."""

Load = Callable[[], Awaitable[Mail]]
"""Gives the message when it is its turn: those that wait need no memory, and what is signed is signed late."""

_RECOVERY = 0.1
_LOOKS = 50  # destinations looked at to find one that can be forgotten


@frozen
class Share:
    """
    What one destination may have.

    Args:
        concurrency: Attempts at a time, each over a connection of its own.
        rate: Attempts begun in a second; 0 for as many as can be.
    """

    concurrency: int = 5
    rate: float = 0


@frozen
class DestinationLimits:
    """
    What all destinations may have together.

    Args:
        share: Of each destination, unless *shares* has one for its key.
        attempts: At a time, in all.
        waiting: Attempts that may wait for a place, for each destination; more are held.
        idle: Connections at rest, in all.
        idle_seconds: How long one may rest.
        messages: Transactions over one connection; hosts frown upon endless ones.
        kept: Destinations that are remembered; at least twice *attempts*.
        pause_seconds: The first pause of a destination that is out of order; each next one is twice as long.
        max_pause_seconds: The longest.
    """

    share: Share = Share()
    shares: Mapping[str, Share] = {}
    attempts: int = 100
    waiting: int = 100
    idle: int = 100
    idle_seconds: float = 30
    messages: int = 100
    kept: int = 10_000
    pause_seconds: float = 15
    max_pause_seconds: float = 900


class _Destination:
    """What is known of one destination."""

    def __init__(self, key: str, hosts: Hosts, share: Share) -> None:
        self.key = key
        self.hosts = hosts
        self.share = share
        self.busy = 0
        self.waiting: deque[asyncio.Future[Result | None]] = deque()  # None is a place; a result is for nobody to try
        self.idle: deque[tuple[Session, float]] = deque()  # the last one given back is the first one taken
        self.in_turn = False
        self.next_start = float("-inf")
        self.timer: asyncio.TimerHandle | None = None
        self.allowed = float(share.concurrency)  # at a time, at present
        self.failures = 0
        self.paused_until = float("-inf")
        self.paused_at = 0  # the number of the attempt whose end began the last pause
        self.good_at = 0  # the number of the last attempt that heard of more than the host
        self.failure: Result | None = None

    @property
    def idle_now(self) -> bool:
        """Whether nothing is under way, so that it can be forgotten."""
        return not self.busy and not self.waiting


class Destinations:
    """
    Delivers to any number of destinations, within limits; one for each process.

    Args:
        hosts_of: Gives the hosts of a destination by its key.
        chance: For the length of pauses, so that destinations that failed together do not come back together.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        hosts_of: Callable[[str], Hosts],
        limits: DestinationLimits,
        patience: Patience,
        chance: random.Random,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._hosts_of = hosts_of
        self._limits = limits
        self._patience = patience
        self._chance = chance
        self._clock = clock
        self._known: OrderedDict[str, _Destination] = OrderedDict()
        self._paused: dict[str, _Destination] = {}
        self._resting: dict[str, _Destination] = {}
        self._turns: deque[_Destination] = deque()  # who has somebody waiting that only the limit for all keeps back
        self._busy = 0
        self._idle = 0
        self._ended = 0  # attempts so far; tells what began before something else ended
        self._closed = False

    # For the queue

    async def deliver(self, key: str, recipients: Sequence[str], load: Load) -> dict[str, Result]:
        """
        Attempt to deliver, as soon as it is this message's turn.

        Args:
            key: What :func:`destination_of` says of all its recipients, or :data:`SMARTHOST`.
            load: Called when it is the message's turn; what it raises is raised here.

        Returns:
            A result for each recipient. Where nothing was tried, their stage is ``held``.
        """
        destination = self._get(key)
        if destination is None:
            return dict.fromkeys(recipients, outcome.held(None, "too many destinations are in use"))
        refused = self._refusal(destination) or await self._turn(destination)
        if refused is not None:
            return dict.fromkeys(recipients, refused)
        began = self._ended
        try:
            mail = await load()
            done = await attempt(mail, destination.hosts, self._rested(destination), self._patience)
        except BaseException:
            self._release(destination)
            raise
        if done.session is not None:
            self._rest(destination, done.session)
        self._note(destination, done.host_failed, began)
        self._release(destination)
        return done.results

    def held(self) -> dict[str, float]:
        """
        Tell which destinations are paused, and for how many seconds more.

        For the queue: whatever is for these need not be looked at before.
        """
        now = self._clock()
        for key in [key for key, each in self._paused.items() if each.paused_until <= now]:
            del self._paused[key]
        return {key: each.paused_until - now for key, each in self._paused.items()}

    def room(self, key: str) -> int:
        """Tell how many more messages for a destination would be attempted or may wait; 0 while it is paused."""
        destination = self._known.get(key)
        if destination is None:
            return self._limits.waiting
        if self._refusal(destination) is not None:
            return 0
        return self._limits.waiting - len(destination.waiting)

    def tidy(self) -> None:
        """Close connections that were at rest for too long; to be called every few seconds."""
        oldest = self._clock() - self._limits.idle_seconds
        for destination in list(self._resting.values()):
            kept = [(session, since) for session, since in destination.idle if session.usable and since > oldest]
            for session, since in destination.idle:
                if not session.usable or since <= oldest:
                    session.connection.quit()
            self._idle -= len(destination.idle) - len(kept)
            destination.idle = deque(kept)
            if not kept:
                del self._resting[destination.key]

    async def close(self) -> None:
        """Close what rests and let nobody wait; attempts under way go on, and close their connections at the end."""
        self._closed = True
        for destination in list(self._known.values()):
            self._answer_all(destination, outcome.held(None, "the program stops"))
            self._drop_idle(destination)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many attempts are under way, connections at rest, and destinations known."""
        return self._busy, self._idle, len(self._known)

    # Places

    def _refusal(self, destination: _Destination) -> Result | None:
        if self._closed:
            return outcome.held(None, "the program stops")
        left = destination.paused_until - self._clock()
        if left > 0:
            return outcome.held(destination.failure, f"not tried for {left:.0f} s more")
        if len(destination.waiting) >= self._limits.waiting:
            return outcome.held(None, "too many messages wait for this destination")
        return None

    async def _turn(self, destination: _Destination) -> Result | None:
        """Wait for a place, which is then counted as taken; or for the reason why there will be none."""
        if not destination.waiting and not self._turns and self._may_start(destination) and self._has_place:
            self._take(destination)
            return None
        waiter: asyncio.Future[Result | None] = asyncio.get_running_loop().create_future()
        destination.waiting.append(waiter)
        self._go_on(destination)
        try:
            return await waiter
        except BaseException:
            if waiter in destination.waiting:
                destination.waiting.remove(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.result() is None:
                self._release(destination)  # a place that came at the very moment of giving up
            raise

    @property
    def _has_place(self) -> bool:
        return self._busy < self._limits.attempts

    def _may_start(self, destination: _Destination) -> bool:
        """Whether the destination's own limits let another attempt begin."""
        return destination.busy < int(destination.allowed) and self._due(destination) <= 0

    def _due(self, destination: _Destination) -> float:
        """In how many seconds its rate, or the end of a pause, lets another attempt begin."""
        return max(destination.next_start, destination.paused_until) - self._clock()

    def _take(self, destination: _Destination) -> None:
        destination.busy += 1
        self._busy += 1
        if destination.share.rate:
            destination.next_start = max(self._clock(), destination.next_start) + 1 / destination.share.rate

    def _release(self, destination: _Destination) -> None:
        destination.busy -= 1
        self._busy -= 1
        self._go_on(destination)

    def _go_on(self, destination: _Destination) -> None:
        """Line the destination up if it can use a place, and give out the places there are, in turn."""
        self._line_up(destination)
        while self._turns and self._has_place:
            first = self._turns.popleft()
            first.in_turn = False
            if not self._may_start(first):
                self._line_up(first)
                continue
            waiter = _next(first.waiting)
            if waiter is not None:
                self._take(first)
                waiter.set_result(None)
                self._line_up(first)

    def _line_up(self, destination: _Destination) -> None:
        if not destination.waiting or destination.in_turn:
            return
        if self._may_start(destination):
            destination.in_turn = True
            self._turns.append(destination)
        elif destination.timer is None and destination.busy < int(destination.allowed):
            self._wake_later(destination)  # otherwise the end of an attempt wakes it

    def _wake_later(self, destination: _Destination) -> None:
        def wake() -> None:
            destination.timer = None
            self._go_on(destination)

        due = max(self._due(destination), 0.001)
        destination.timer = asyncio.get_running_loop().call_later(due, wake)

    # What came of an attempt

    def _note(self, destination: _Destination, failure: Result | None, began: int) -> None:
        self._ended += 1
        if failure is None:
            destination.failures = 0
            destination.failure = None
            destination.good_at = self._ended
            destination.allowed = min(destination.allowed + _RECOVERY, destination.share.concurrency)
            return
        if destination.paused_at > began:
            return  # those that began together fail together: that is one failure
        if destination.good_at > began:
            destination.allowed = max(1.0, destination.busy - 1.0)
            return
        limits = self._limits
        destination.allowed = 1.0
        pause = min(limits.pause_seconds * 2 ** min(destination.failures, 30), limits.max_pause_seconds)
        destination.failures += 1
        destination.paused_at = self._ended
        destination.paused_until = self._clock() + pause * (1 + self._chance.random() / 4)
        destination.failure = failure
        self._paused[destination.key] = destination
        self._drop_idle(destination)
        self._answer_all(destination, outcome.held(failure, "not tried"))

    def _answer_all(self, destination: _Destination, result: Result) -> None:
        while (waiter := _next(destination.waiting)) is not None:
            waiter.set_result(result)
        if destination.timer is not None:
            destination.timer.cancel()
            destination.timer = None

    # Connections at rest

    def _rested(self, destination: _Destination) -> Session | None:
        while destination.idle:
            session, _ = destination.idle.pop()
            self._idle -= 1
            if not destination.idle:
                self._resting.pop(destination.key, None)
            if session.usable:
                return session
            session.connection.close()
        return None

    def _rest(self, destination: _Destination, session: Session) -> None:
        full = self._idle >= self._limits.idle or session.messages >= self._limits.messages
        if self._closed or full or not session.usable:
            session.connection.quit()
            return
        destination.idle.append((session, self._clock()))
        self._idle += 1
        self._resting[destination.key] = destination

    def _drop_idle(self, destination: _Destination) -> None:
        for session, _ in destination.idle:
            session.connection.quit()
        self._idle -= len(destination.idle)
        destination.idle.clear()
        self._resting.pop(destination.key, None)

    # What is known

    def _get(self, key: str) -> _Destination | None:
        destination = self._known.get(key)
        if destination is not None:
            self._known.move_to_end(key)
            return destination
        if len(self._known) >= self._limits.kept and not self._forget():
            return None
        share = self._limits.shares.get(key, self._limits.share)
        destination = self._known[key] = _Destination(key, self._hosts_of(key), share)
        return destination

    def _forget(self) -> bool:
        """Forget one that is not in use, if there is; first one that is nothing but a name, then a paused one."""
        oldest = [each for each, _ in zip(self._known.values(), range(_LOOKS), strict=False)]
        unused = [each for each in oldest if each.idle_now]
        if not unused:
            for each in oldest:  # all in use: they are the youngest then
                self._known.move_to_end(each.key)
            return False
        now = self._clock()
        gone = next((each for each in unused if each.paused_until <= now), unused[0])
        self._drop_idle(gone)
        self._paused.pop(gone.key, None)
        del self._known[gone.key]
        return True


def _next(waiting: "deque[asyncio.Future[Result | None]]") -> "asyncio.Future[Result | None] | None":
    while waiting:
        waiter = waiting.popleft()
        if not waiter.done():
            return waiter
    return None


def destination_of(recipient: str) -> str:
    """Give the key of the destination for a recipient where mail goes to MX hosts: its domain, in normal form."""
    domain = recipient.rpartition("@")[2]
    return normal_domain(domain) or domain.lower()
