"""
How many connections each host has, however many destinations it serves: a thousand domains may have one provider.

A host is known by its name and by each of its addresses, for providers give every domain a name of its own, or one name
addresses that change; a connection counts for all of them, and the fullest one decides. Connections at rest count, too.

Values only: who waits for what, and what is closed to make room, is for :mod:`proxy.outbound.destinations` to say.
"""

from collections import Counter
from collections.abc import Collection
from typing import Generic, TypeVar

from proxy.outbound.mx import Host

Keys = frozenset[str]
_WAITING = 5  # attempts that may wait for a host, for each of its places
T = TypeVar("T")


def keys_of(host: Host) -> Keys:
    """Name a host in every way it is known by."""
    return frozenset((host.name, *host.addresses))


class Places(Generic[T]):
    """
    The places at all hosts.

    Args:
        limit: Connections to one host; 0 for any number.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: Counter[str] = Counter()
        self._resting: Counter[str] = Counter()
        self._waiting: dict[str, dict[T, None]] = {}
        self._attempts: Counter[str] = Counter()
        self._refused: dict[str, dict[T, None]] = {}

    def full(self, keys: Collection[str]) -> str:
        """Give one of the keys that has no place left; empty where all have one. What rests can be closed."""
        if not self._limit:
            return ""
        return next((key for key in keys if self._busy[key] >= self._limit), "")

    def over(self, keys: Collection[str]) -> str:
        """Give one of the keys with more connections than places, those at rest counted; empty for none."""
        if not self._limit:
            return ""
        return next((key for key in keys if self._busy[key] + self._resting[key] > self._limit), "")

    def take(self, keys: Collection[str]) -> None:
        """Count a connection that is in use, or will be."""
        self._add(self._busy, keys, 1)

    def free(self, keys: Collection[str]) -> None:
        """Count one less."""
        self._add(self._busy, keys, -1)

    def rest(self, keys: Collection[str]) -> None:
        """Count a connection at rest."""
        self._add(self._resting, keys, 1)

    def wake(self, keys: Collection[str]) -> None:
        """Count one less at rest."""
        self._add(self._resting, keys, -1)

    def wait(self, key: str, who: T) -> None:
        """Note who waits for a place."""
        self._waiting.setdefault(key, {})[who] = None

    def next(self, key: str) -> T | None:
        """Give who has waited for longest, and note it no more; None where there is no place, or nobody waits."""
        waiting = self._waiting.get(key)
        if not waiting or self.full((key,)):
            return None
        who = next(iter(waiting))
        del waiting[who]
        if not waiting:
            del self._waiting[key]
        return who

    # Who has to come again: what waits for one host must not take the room of what goes to others.

    def enter(self, keys: Collection[str]) -> None:
        """Count an attempt that waits for a place."""
        self._add(self._attempts, keys, 1)

    def leave(self, keys: Collection[str]) -> None:
        """Count one less, and let one off who had to come again: it finds room now."""
        self._add(self._attempts, keys, -1)
        for key in keys:
            noted = self._refused.get(key)
            if noted:
                del noted[next(iter(noted))]

    def refuse(self, keys: Collection[str], who: T) -> bool:
        """Tell whether so many wait for one of these hosts that one more is to come again, and note who."""
        most = _WAITING * self._limit
        key = next((key for key in keys if self._limit and self._attempts[key] >= most), "")
        if key:
            self._refused.setdefault(key, {})[who] = None
        return bool(key)

    def refused(self) -> list[T]:
        """Name those who had to come again and still had better not; all are let off where nobody waits any more."""
        for key in [key for key, noted in self._refused.items() if not noted or not self._attempts[key]]:
            del self._refused[key]
        return [who for noted in self._refused.values() for who in noted]

    @property
    def wanted(self) -> list[str]:
        """The keys that somebody waits for."""
        return list(self._waiting)

    def _add(self, counts: Counter[str], keys: Collection[str], number: int) -> None:
        if not self._limit:
            return
        for key in keys:
            counts[key] += number
            if not counts[key]:
                del counts[key]
