"""
Route ``deliver``, up to the 250: take the message whole, compose it, make it durable, and only then say so.

A large message waits in a temporary file until its turn to be composed, so what is in memory is bounded by the few that
are composed at a time. Source: RFC 5321, 4.2.5 and 6.1 (250 is a promise); RFC 6409 (what a submission server may add).
"""

import asyncio
import errno
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import IO, Protocol

from proxy.compose.fields import Prepared, prepare, without_dots
from proxy.compose.steps import Composed, Options
from proxy.mail.envelope import Envelope
from proxy.mail.fields import HeaderSection
from proxy.mail.reply import Reply
from proxy.route import About, Capabilities, Content, Sent
from proxy.spool.item import Item, Layout, Recipient, Slot
from proxy.spool.store import Store, StoreError, StoreFullError

IN_MEMORY_OCTETS = 262_144
_COMPOSED_AT_ONCE = 4
_LARGE_OCTETS = 1 << 20
_AT_HAND_OCTETS = 32_768  # larger ones do not wait for their attempt in memory

_CAPABILITIES = Capabilities(size_octets=0, eight_bit=True, smtputf8=True)

RCPT_OK = Reply(250, "2.1.5", "OK")
NO_DOMAIN = Reply(553, "5.1.3", "The address has no domain, so there is nowhere to send it")
FULL = Reply(452, "4.3.1", "No room to keep the message, try again later")
NOT_KEPT = Reply(451, "4.3.0", "The message could not be kept, try again later")


class Composer(Protocol):
    """Does the content steps; never fails."""

    async def compose(self, content: bytes, options: Options) -> Composed:
        """Compose a message; what cannot be done is left undone and told."""


class Watcher(Protocol):
    """What the route tells about itself: metrics and log."""

    def composed(self, seconds: float, composed: Composed) -> None:
        """A message was composed in this time."""

    def malformed(self, message_id: str, names: tuple[str, ...]) -> None:
        """X-Cmail fields whose values are no switch words; the defaults hold."""

    def kept(self, item: Item, suppressed: int) -> None:
        """A message is durable; some of its recipients are on the suppression list."""

    def not_kept(self, error: StoreError) -> None:
        """A message could not be made durable."""


class Attempts(Protocol):
    """Who attempts what is kept, see ``Queue``."""

    def added(self, recipients: Sequence[Recipient]) -> None:
        """Look for a message that was kept without a lease."""

    def reserve(self, recipients: Sequence[Recipient]) -> float:
        """Make room for a message; gives the end of the lease to keep it with, or 0 where there is no room."""

    def give_back(self, recipients: Sequence[Recipient]) -> None:
        """Free room that was reserved."""

    def begin(self, item: Item, recipients: Sequence[Recipient], content: bytes) -> None:
        """Attempt a message that is durable by now, and leased."""


class DeliverRoute:
    """
    The route; one for each process.

    Args:
        hostname: For Message-ID.
        folder: For temporary files, on the disk of the store.
        destination: Gives what is connected to for an address, or None where there is nowhere to send it.
        track_opens, track_clicks: Whether they are tracked where a message does not say no.

    Attributes:
        queue: Who attempts what is kept; set once it works.
    """

    def __init__(
        self,
        store: Store,
        composer: Composer,
        watcher: Watcher,
        *,
        hostname: str,
        folder: Path,
        destination: Callable[[str], str | None],
        track_opens: bool,
        track_clicks: bool,
        clock: Callable[[], float],
    ) -> None:
        self.store = store
        self.composer = composer
        self.watcher = watcher
        self.hostname = hostname
        self.folder = folder
        self.destination = destination
        self.track_opens = track_opens
        self.track_clicks = track_clicks
        self.clock = clock
        self.queue: Attempts | None = None
        self.turns = asyncio.Semaphore(_COMPOSED_AT_ONCE)

    @property
    def capabilities(self) -> Capabilities:
        """What is kept here has no limits of its own."""
        return _CAPABILITIES

    async def begin(self, envelope: Envelope) -> "DeliverTransaction":
        """Every envelope can be kept."""
        return DeliverTransaction(self, envelope)


class DeliverTransaction:
    """One message on its way into the store."""

    def __init__(self, route: DeliverRoute, envelope: Envelope) -> None:
        self._route = route
        self._envelope = envelope
        self._recipients: dict[str, tuple[str, str]] = {}  # address and destination, by what makes addresses the same

    async def recipient(self, address: str) -> Reply:
        """Take every address that has a domain; what becomes of it shows later."""
        destination = self._route.destination(address)
        if destination is None:
            return NO_DOMAIN
        local, at, domain = address.rpartition("@")
        same = f"{local}{at}{domain.lower()}"  # RFC 5321, 2.4: case matters in the local part alone
        self._recipients.setdefault(same, (address, destination))  # once is enough
        return RCPT_OK

    async def send(self, head: bytes, content: Content, about: About) -> Sent:
        """Take the message, compose it, and keep it; the answer is ours."""
        route = self._route
        try:
            if content.complete:
                item = await self._keep(head, about)
            else:
                item = await self._keep_all(bytearray(head), content, about)
        except StoreError as error:
            route.watcher.not_kept(error)
            reply = FULL if isinstance(error, StoreFullError) else NOT_KEPT
            return Sent(reply, "failed", str(error))
        except OSError as error:  # of the temporary file; out of here it would pass for one of the client's connection
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = error.strerror or str(error)
            route.watcher.not_kept(StoreFullError(reason) if is_full else StoreError(reason))
            return Sent(FULL if is_full else NOT_KEPT, "failed", reason)
        return Sent(Reply(250, "2.0.0", f"Message queued as {item.id}"), "queued", f"{item.size_octets} octets kept")

    async def _keep_all(self, begun: bytearray, content: Content, about: About) -> Item:
        """Take the rest, into a file if there is much of it, and go on when it is this message's turn."""
        route = self._route
        while len(begun) <= IN_MEMORY_OCTETS:
            begun += await content.read()
            if content.complete:
                return await self._keep(bytes(begun), about)
        with tempfile.TemporaryFile(dir=route.folder) as taken:
            octets = taken.write(begun)
            begun.clear()
            while not content.complete:
                octets += taken.write(await content.read())
            if octets <= _LARGE_OCTETS:
                return await self._keep(_whole(taken), about)
            async with route.turns:
                return await self._keep(_whole(taken), about)

    async def _keep(self, content: bytes, about: About) -> Item:
        route = self._route
        now = route.clock()
        section_octets = about.section_octets
        # A line that a client sent with one dot for none may be another kind of line without it: a continuation, or
        # no field at all.
        dots_count = content.startswith(b".") or content.find(b"\r\n.", 0, section_octets + 1) >= 0
        content = without_dots(content)
        if dots_count:
            section_octets = HeaderSection.split(content).end
        prepared = prepare(content[:section_octets], f"{about.id}@{route.hostname}", datetime.fromtimestamp(now, UTC))
        if prepared.wishes.malformed:
            route.watcher.malformed(about.id, prepared.wishes.malformed)
        started = monotonic()
        content = prepared.head + content[section_octets:]
        composed = await route.composer.compose(content, self._options(prepared))
        route.watcher.composed(monotonic() - started, composed)
        kept, layout = kept_of(composed)
        item = self._item(about, prepared, layout, composed, len(kept), now)
        await self._add(item, kept)
        return item

    async def _add(self, item: Item, kept: bytes) -> None:
        """Make it durable, and have it attempted: at once where there is room, without reading it back."""
        route, queue = self._route, self._route.queue
        lease_until = queue.reserve(item.recipients) if queue is not None and not item.not_before else 0.0
        try:
            suppressed = await route.store.add(item, kept, lease_until)
        finally:
            if queue is not None and lease_until:
                queue.give_back(item.recipients)
        route.watcher.kept(item, len(suppressed))
        if queue is not None and lease_until:
            begun = [
                Recipient(each.number, each.address, each.destination, attempts=1)
                for each in item.recipients
                if each.number not in suppressed
            ]
            queue.begin(item, begun, kept if len(kept) <= _AT_HAND_OCTETS else b"")
        elif queue is not None and not item.not_before:
            queue.added(item.recipients)

    def _options(self, prepared: Prepared) -> Options:
        wishes = prepared.wishes
        return Options(
            inline_css=wishes.inline_css,
            track_opens=wishes.track_opens and self._route.track_opens,
            track_clicks=wishes.track_clicks and self._route.track_clicks,
        )

    def _item(
        self, about: About, prepared: Prepared, layout: Layout, composed: Composed, octets: int, now: float
    ) -> Item:
        not_before = datetime.fromisoformat(about.deliver_at).timestamp() if about.deliver_at else 0.0
        due_at = max(now, not_before)
        return Item(
            id=about.id,
            received_at=now,
            reverse_path=self._envelope.reverse_path,
            recipients=tuple(
                [
                    Recipient(number, address, destination, next_attempt_at=due_at)
                    for number, (address, destination) in enumerate(self._recipients.values())
                ]
            ),
            layout=layout,
            size_octets=octets,
            group=prepared.wishes.group,
            login=about.login,
            provider=about.provider,
            subject=prepared.subject,
            eight_bit=self._envelope.eight_bit,
            smtputf8=self._envelope.smtputf8,
            not_before=not_before if not_before > now else 0.0,
            failed_steps=composed.failed,
        )

    def abandon(self) -> None:
        """Nothing was kept, so there is nothing to give up."""


def kept_of(composed: Composed) -> tuple[bytes, Layout]:
    """Give the octets to keep of a composed message, and their layout: the whole message where all copies are equal."""
    if not composed.slots:
        whole = composed.copy(lambda _slot: "")
        return whole, Layout(len(whole))
    slots = tuple(Slot(slot.position, slot.kind, slot.target) for slot in composed.slots)
    layout = Layout(len(composed.head), len(composed.html), composed.encoding, slots)
    return composed.head + composed.html + composed.tail, layout


def _whole(taken: IO[bytes]) -> bytes:
    taken.seek(0)
    return taken.read()
