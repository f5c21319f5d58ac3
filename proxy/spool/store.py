"""
The contract of a store.

What ``add`` and ``settle`` were told is on disk when they return: a crash at any moment after loses nothing of it. A
recipient is attempted only while it is leased, and the time of its next attempt is written before: a message is lost by
no order of events.

A lease belongs to the opened store that took it. It ends with its time, or with its owner: whoever looks (``release``)
makes due again what was leased by owners that are gone, however they ended. Only the store can say who is gone, since
only it knows where its owners run.

``tests/spool/contract.py`` holds the tests that every store must pass.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from attrs import frozen

from proxy.spool.item import Change, Event, Figures, Item, Notice, Removal, Suppression


class StoreError(Exception):
    """The store cannot do it now; nothing was changed. The text is for the log."""


class StoreFullError(StoreError):
    """There is no room for it."""


class DamagedError(StoreError):
    """What was kept of a message cannot be read, or is not what was kept; it is set aside, not dropped."""


@frozen
class Leased:
    """
    Recipients of one message that are to be attempted now, by who got this.

    Args:
        item: The message, with those recipients only; ``attempts`` counts the one that begins.
    """

    item: Item


@frozen
class Depth:
    """
    What waits.

    Args:
        pending: Recipients not final yet.
        oldest_at: When the oldest message among theirs was accepted, or was to be sent if that is later; 0 for none.
        set_aside: Messages that are damaged.
    """

    pending: int
    oldest_at: float
    set_aside: int


@frozen
class History:
    """A message with all its recipients and its timeline, oldest first."""

    item: Item
    events: tuple[Event, ...]


class Store(Protocol):
    """Keeps messages; every method may raise StoreError."""

    async def add(self, item: Item, content: bytes, lease_until: float) -> frozenset[int]:
        """
        Keep a message; durable on return.

        Recipients that are on the suppression list are kept as suppressed.

        Args:
            content: See ``Layout``.
            lease_until: Until then its pending recipients are the caller's to attempt; 0: they are due for anybody. A
                lease counts as the beginning of an attempt, with ``next_attempt_at`` the time of the one after it.

        Returns:
            The numbers of the suppressed recipients.

        Raises:
            StoreFullError: No room; nothing was kept.
        """

    async def lease(
        self, now: float, lease_until: float, limit: int, without: Collection[str] = (), limit_each: int | None = None
    ) -> list[Leased]:
        """
        Take what is due, in a fair order among destinations, and begin an attempt for it.

        Until *lease_until*, or until this store is gone, nobody else gets it; after that it is due again. A message
        that cannot be read is set aside, and costs no other.

        Args:
            limit: Recipients at most.
            without: Destinations to leave alone.
            limit_each: Recipients at most of each destination.
        """

    async def overdue(
        self, now: float, lease_until: float, limit: int, destinations: Collection[str], before: float
    ) -> list[Leased]:
        """
        Take what waits for some destinations and is too old, whether it is due or not; otherwise as ``lease``.

        Args:
            limit: Recipients at most; those of the oldest messages first.
            destinations: Only these.
            before: Messages accepted, and to be sent, at that time or earlier.
        """

    async def content(self, message_id: str) -> bytes:
        """
        Give the content of a message.

        Raises:
            DamagedError: It cannot be read, or is not what was kept.
        """

    async def settle(
        self,
        changes: Sequence[Change],
        now: float,
        notices: Sequence[Notice] = (),
        suppressions: Sequence[Suppression] = (),
    ) -> list[Notice]:
        """
        Write what attempts brought, and count it; durable on return, all of it or nothing.

        A recipient that is final stays as it is, and one of a message that was set aside is not due again. One that was
        removed while it was attempted stays removed, unless it was delivered: then that is what happened to it.

        Args:
            notices: Kept in the same step, since one that is kept later may never be: each unless none of the changes
                to the message it is about took effect, and a ``delay_told`` unless there was one before.
            suppressions: Put on the suppression list in the same step.

        Returns:
            The notices that were kept.
        """

    async def set_aside(self, message_id: str, reason: str, now: float, numbers: Collection[int]) -> None:
        """
        Take a damaged message out of the queue; it stays visible, and what is left of it stays where it is.

        Args:
            numbers: The recipients whose attempts found it out, and are over. Others that are leased may be on the
                wire: their leases go on, so that they are not attempted twice where the message is put back meanwhile.
        """

    async def remove(self, message_id: str, reason: str, now: float) -> Removal:
        """
        Give up the pending recipients of a message: no attempt begins for them any more.

        Those that are leased may be attempted at this moment. Their lease goes on until its owner has seen
        ``withdrawn`` and lets go, or settles them.
        """

    async def withdrawn(self) -> list[tuple[str, int]]:
        """Tell what was removed of that which this store has leased: message and number of each recipient."""

    async def let_go(self, removed: Sequence[tuple[str, int]]) -> None:
        """End leases of removed recipients that will not be attempted."""

    async def under_way(self, message_id: str) -> int:
        """Tell how many removed recipients of a message still are somebody's, and so may be getting it."""

    async def hit(self, kind: str, message_id: str, recipient: int, target: str, at: float) -> bool:
        """Note that a message was ``opened`` or ``clicked``; False where it is not known."""

    async def note(self, message_id: str, event: Event) -> None:
        """Write something into the timeline of a message."""

    async def suppressed(self, addresses: Collection[str]) -> frozenset[str]:
        """Give those of the addresses that are on the suppression list; compared without regard to case."""

    async def suppress(self, address: str, reason: str, now: float) -> None:
        """Put an address on the suppression list; one that is there stays as it is."""

    async def unsuppress(self, address: str) -> bool:
        """Take an address off the list; False where it was not on it."""

    async def suppressions(self) -> list[Suppression]:
        """List the suppressed addresses, latest first."""

    async def depth(self) -> Depth:
        """Tell what waits."""

    async def queue(self, limit: int) -> list[Item]:
        """List messages with pending recipients, oldest first, each with those recipients only."""

    async def history(self, message_id: str) -> History | None:
        """Give all that is known of a message; None for nothing."""

    async def retry(self, message_id: str | None, now: float) -> int:
        """
        Make pending recipients due at once, of one message or of all; gives their number. What is being attempted stays
        with who attempts it. One message that was set aside is put back; of all, those that are stay so.
        """

    async def report(self, since_day: str = "", group: str | None = None) -> list[Figures]:
        """Give the figures by day and group, oldest day first."""

    async def sweep(self, now: float, content_seconds: float) -> int:
        """Forget content and timeline of messages that are final for so long; figures stay. Gives their number."""

    async def release(self, now: float) -> int:
        """
        Make due again what is leased by owners that are gone: at the start, and now and then, since another process may
        have ended. Gives the number of recipients.
        """

    async def redirect(self, fits: Callable[[str], bool], destination_of: Callable[[str], str]) -> int:
        """
        Give pending recipients other destinations, because the settings changed since they came; gives their number.

        Args:
            fits: Whether a destination is one by the settings of now.
            destination_of: Gives that of an address.
        """

    async def close(self) -> None:
        """Finish what is under way, and close."""
