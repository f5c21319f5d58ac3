"""
Destinations: how many connections each may have, how fast, and whose turn it is.

A destination is a domain (``via: mx``) or the smarthost. What bounds it:

* *Concurrency and rate* for each, and a limit for all together. Who waits for the latter takes turns by destination,
  so a newsletter to one domain does not hold up a password reset to another.
* *Connections to one host*, whatever domains they are for. The first host of the route is known before it is a
  message's turn, so who waits for a place there takes none from others; see ``places.py``.
* *A pause* when an attempt ended with no more to say than that the destination is out of order. While it lasts, nothing
  is tried and nothing is waited for: ``held`` lets the queue leave such messages where they are, so any number of them
  costs nothing. When it is over, one attempt goes first; only if the destination answers do the others follow, and with
  each ten of them one more at a time. Where others got through meanwhile, the host rather has too many connections:
  fewer are made from then on, and there is no pause.
* *Connections at rest* are kept for a moment, within a limit; so is what is known of destinations.

No lock is needed: all of it runs on one event loop, and between two awaits nothing else does.

Longer than other modules: who may start next is one question, whatever it is that keeps somebody back.
"""

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import monotonic

from attrs import define, frozen

from proxy.outbound.delivery import Hosts, attempt
from proxy.outbound.mx import Host, Route, normal_domain
from proxy.outbound.places import Keys, Places, keys_of
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
        per_host: Connections to one host, for whatever destinations; 0 for any number.
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
    per_host: int = 0
    waiting: int = 100
    idle: int = 100
    idle_seconds: float = 30
    messages: int = 100
    kept: int = 10_000
    pause_seconds: float = 15
    max_pause_seconds: float = 900


@define(eq=False)
class _Place:
    """Leave to make an attempt; *keys* are those of the host at which it has a place at the moment."""

    keys: Keys


@define(eq=False)
class _Waiter:
    """Who waits for a place at a host; *future* gives it, or a result for what nobody is to try."""

    keys: Keys
    future: asyncio.Future[_Place | Result]


class _Destination:
    """What is known of one destination."""

    def __init__(self, key: str, hosts: Hosts, share: Share) -> None:
        self.key = key
        self.hosts = hosts
        self.share = share
        self.busy = 0
        self.looking = 0  # attempts that wait for the route
        self.waiting: deque[_Waiter] = deque()
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
        return not self.busy and not self.waiting and not self.looking


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
        self._places: Places[_Destination] = Places(limits.per_host)
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
        refused = self._refusal(destination)
        if refused is not None:
            return dict.fromkeys(recipients, refused)
        destination.looking += 1
        try:
            route = await destination.hosts.route()
        finally:
            destination.looking -= 1
        place = self._refusal(destination) or await self._turn(destination, route)
        if isinstance(place, Result):
            return dict.fromkeys(recipients, place)
        began = self._ended
        try:
            mail = await load()
            session = self._rested(destination, place)
            done = await attempt(mail, _AtHosts(self, destination, place, route), session, self._patience)
        except BaseException:
            self._release(destination, place)
            raise
        if done.session is not None:
            self._rest(destination, done.session)
        self._note(destination, done.host_failed, began)
        self._release(destination, place)
        return done.results

    def move(self, destination: "_Destination", place: _Place, host: Host) -> bool:
        """Have the place of an attempt at the host that is next, and room to connect; False where there is none."""
        keys = keys_of(host)
        if not keys <= place.keys:
            left, place.keys = place.keys, frozenset()
            self._free(left)
            found = not self._places.full(keys)
            if found:
                self._places.take(keys)
                place.keys = keys
            self._go_on(destination)
            if not found:
                return False
        self._make_room(keys)
        return True

    def held(self) -> dict[str, float]:
        """
        Tell which destinations are paused, and for how many seconds more.

        For the queue: whatever is for these need not be looked at before.
        """
        now = self._clock()
        for key in [key for key, each in self._paused.items() if each.paused_until <= now]:
            del self._paused[key]
        return {key: each.paused_until - now for key, each in self._paused.items()}

    def is_held(self, key: str) -> bool:
        """Tell whether a destination is paused, without looking at all others."""
        destination = self._paused.get(key)
        return destination is not None and destination.paused_until > self._clock()

    def crowded(self) -> list[str]:
        """Tell for which destinations so much waits at their host that more had better come later."""
        return [each.key for each in self._places.refused()]

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
                    self._wake(session)
                    session.connection.quit()
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

    async def _turn(self, destination: _Destination, route: Route | Result) -> Result | _Place:
        """Wait for a place, which is then counted as taken; or for the reason why there will be none."""
        keys = keys_of(route.hosts[0]) if isinstance(route, Route) else frozenset()
        if not destination.waiting and not self._turns and self._may_start(destination, keys) and self._has_place:
            return self._take(destination, keys)
        if self._places.refuse(keys, destination):
            return outcome.held(None, "too many messages wait for its host")
        waiter = _Waiter(keys, asyncio.get_running_loop().create_future())
        destination.waiting.append(waiter)
        self._places.enter(keys)
        self._go_on(destination)
        future = waiter.future
        try:
            return await future
        except BaseException:
            if waiter in destination.waiting:
                destination.waiting.remove(waiter)
            if future.done() and not future.cancelled() and isinstance(place := future.result(), _Place):
                self._release(destination, place)  # a place that came at the very moment of giving up
            self._go_on(destination)
            raise
        finally:
            self._places.leave(keys)

    @property
    def _has_place(self) -> bool:
        return self._busy < self._limits.attempts

    def _may_start(self, destination: _Destination, keys: Keys) -> bool:
        """Whether the limits of the destination, and those of its host, let another attempt begin."""
        if destination.busy >= int(destination.allowed) or self._due(destination) > 0:
            return False
        return not self._places.full(keys)

    def _due(self, destination: _Destination) -> float:
        """In how many seconds its rate, or the end of a pause, lets another attempt begin."""
        return max(destination.next_start, destination.paused_until) - self._clock()

    def _take(self, destination: _Destination, keys: Keys) -> _Place:
        self._places.take(keys)
        destination.busy += 1
        self._busy += 1
        if destination.share.rate:
            destination.next_start = max(self._clock(), destination.next_start) + 1 / destination.share.rate
        return _Place(keys)

    def _release(self, destination: _Destination, place: _Place) -> None:
        destination.busy -= 1
        self._busy -= 1
        self._free(place.keys)
        self._go_on(destination)

    def _free(self, keys: Keys) -> None:
        self._places.free(keys)
        self._line_up_at(keys)

    def _line_up_at(self, keys: Iterable[str]) -> None:
        """Line up one for each host that has a place."""
        for key in keys:
            while (waiting := self._places.next(key)) is not None:
                self._line_up(waiting)
                if waiting.in_turn:
                    break

    def _go_on(self, destination: _Destination) -> None:
        """Line the destination up if it can use a place, and give out the places there are, in turn."""
        self._line_up(destination)
        while self._turns and self._has_place:
            first = self._turns.popleft()
            first.in_turn = False
            waiter = _first(first.waiting)
            starts = waiter is not None and self._may_start(first, waiter.keys)
            if waiter is not None and starts:
                first.waiting.popleft()
                waiter.future.set_result(self._take(first, waiter.keys))
            self._line_up(first)
            if not starts and not first.in_turn:
                self._line_up_at(self._places.wanted)  # the place that it was woken for is for somebody else

    def _line_up(self, destination: _Destination) -> None:
        waiter = None if destination.in_turn else _first(destination.waiting)
        if waiter is None or destination.busy >= int(destination.allowed):
            return  # the end of an attempt wakes it
        if self._due(destination) > 0:
            if destination.timer is None:
                self._wake_later(destination)
        elif key := self._places.full(waiter.keys):
            self._places.wait(key, destination)  # so does the end of one at the host
        else:
            destination.in_turn = True
            self._turns.append(destination)

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
        while (waiter := _first(destination.waiting)) is not None:
            destination.waiting.popleft()
            waiter.future.set_result(result)
        if destination.timer is not None:
            destination.timer.cancel()
            destination.timer = None

    # Connections at rest

    def _rested(self, destination: _Destination, place: _Place) -> Session | None:
        while destination.idle:
            session, _ = destination.idle.pop()
            self._wake(session)
            if not destination.idle:
                self._resting.pop(destination.key, None)
            if not session.usable:
                session.connection.close()
                continue
            more = _keys_of(session) - place.keys  # it may be with another host than the first of the route
            if self._places.full(more):  # somebody has its place, and has not come to close it yet
                session.connection.quit()
                continue
            self._places.take(more)
            place.keys |= more
            return session
        return None

    def _wake(self, session: Session) -> None:
        self._idle -= 1
        self._places.wake(_keys_of(session))

    def _make_room(self, keys: Keys) -> None:
        """Close what rests at a host, where there would be more connections to it than there may be."""
        while key := self._places.over(keys):
            at_rest = ((each, at) for each in self._resting.values() for at in each.idle if key in _keys_of(at[0]))
            destination, oldest = min(at_rest, key=lambda each: each[1][1], default=(None, None))
            if destination is None or oldest is None:
                return
            destination.idle.remove(oldest)
            if not destination.idle:
                del self._resting[destination.key]
            self._wake(oldest[0])
            oldest[0].connection.quit()

    def _rest(self, destination: _Destination, session: Session) -> None:
        full = self._idle >= self._limits.idle or session.messages >= self._limits.messages
        if self._closed or full or not session.usable:
            session.connection.quit()
            return
        destination.idle.append((session, self._clock()))
        self._idle += 1
        self._places.rest(_keys_of(session))
        self._resting[destination.key] = destination

    def _drop_idle(self, destination: _Destination) -> None:
        for session, _ in destination.idle:
            self._wake(session)
            session.connection.quit()
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


class _AtHosts:
    """The hosts of an attempt: the route it has a place for, and a place at each next host before that is spoken to."""

    def __init__(
        self, destinations: Destinations, destination: _Destination, place: _Place, route: Route | Result
    ) -> None:
        self._destinations = destinations
        self._destination = destination
        self._place = place
        self._route = route

    async def route(self) -> Route | Result:
        return self._route

    async def open(self, host: Host, tried: set[str]) -> Session | Result:
        if not self._destinations.move(self._destination, self._place, host):
            tried.update(host.addresses)
            return outcome.crowded(host.name)
        return await self._destination.hosts.open(host, tried)


def _keys_of(session: Session) -> Keys:
    return frozenset((session.host, session.address))


def _first(waiting: deque[_Waiter]) -> _Waiter | None:
    """Give the first that still waits, and drop those before it."""
    while waiting and waiting[0].future.done():
        waiting.popleft()
    return waiting[0] if waiting else None


def destination_of(recipient: str) -> str:
    """Give the key of the destination for a recipient where mail goes to MX hosts: its domain, in normal form."""
    domain = recipient.rpartition("@")[2]
    return normal_domain(domain) or domain.lower()
