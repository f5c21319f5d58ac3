"""Route ``deliver`` put together: store, composer, queue, courier, and the pages that readers reach."""

import asyncio
import fcntl
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

from proxy.compose.pool import ComposePool
from proxy.compose.steps import Composed
from proxy.deliver.copies import Copies
from proxy.deliver.courier import at_hand, courier_of, fits, route_of
from proxy.deliver.keys import Keys
from proxy.deliver.notices import Notices
from proxy.deliver.queue import Queue
from proxy.deliver.route import DeliverRoute
from proxy.policy.outcome import Outcome, Result
from proxy.policy.retry import RetrySettings
from proxy.problems import ProblemsError
from proxy.record.delivery import DeliveryMetrics
from proxy.record.log import Log
from proxy.record.metrics import Metrics
from proxy.settings import Settings
from proxy.spool.item import Item, Recipient
from proxy.spool.sqlite import SPOOL_FOLDER, SqliteStore
from proxy.spool.store import StoreError
from proxy.web.public import PublicPages

_ALONE_SECONDS = 5.0
_DEPTH_SECONDS = 5.0
_SWEEP_SECONDS = 600.0


def open_store(settings: Settings, meanwhile: Callable[[], None] | None = None) -> SqliteStore:
    """
    Open the store.

    Args:
        meanwhile: See ``SqliteStore``.

    Raises:
        ProblemsError: It cannot be opened.
    """
    folder = settings.data_dir / SPOOL_FOLDER
    try:
        return SqliteStore(folder, meanwhile)
    except StoreError as error:
        problem = settings.source.problem(
            "data_dir", f"a store in '{folder}' that cannot be opened: {error}", "a folder of this program"
        )
        raise ProblemsError([problem]) from None


async def recover(settings: Settings, log: Log) -> IO[bytes]:
    """
    Bring the store of a program that ended, however it ended, into order: before anybody works on it.

    Returns:
        What keeps other programs from doing so; to be kept open to the end. To them, what this one is keeping and
        sending would look like left over from a crash.

    Raises:
        ProblemsError: The store cannot be opened, or another program works on it.
    """
    store = open_store(settings)
    try:
        hold = await _alone(settings)
    except ProblemsError:
        await store.close()
        raise
    try:
        released = await store.release(time.time())
        route = route_of(settings)
        # An address that leads nowhere by now fails with its own name.
        redirected = await store.redirect(fits(settings), lambda address: route(address) or address.lower())
        removed = await store.recover()
        depth = await store.depth()
        log.info(
            "queue_opened",
            pending=depth.pending,
            set_aside=depth.set_aside,
            released=released,
            removed=removed,
            redirected=redirected,
        )
    finally:
        await store.close()
    return hold


async def _alone(settings: Settings) -> IO[bytes]:
    """Wait until no other program works on the store; the workers of one that was killed may, for a moment."""
    folder = settings.data_dir / SPOOL_FOLDER
    until = time.monotonic() + _ALONE_SECONDS
    while True:
        hold = _lock(folder / "lock", fcntl.LOCK_EX)
        workers = _lock(folder / "lock.workers", fcntl.LOCK_EX) if hold else None
        if workers:
            workers.close()
        if hold and workers:
            return hold
        if hold:
            hold.close()
        if time.monotonic() >= until:
            found = f"a store in '{folder}' on which another program works"
            raise ProblemsError([settings.source.problem("data_dir", found, "a folder for this program alone")])
        await asyncio.sleep(0.05)


def _lock(path: Path, how: int) -> IO[bytes] | None:
    """Open and lock a file; None where somebody else has it locked. It stays so until it is closed."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


class DeliverParts:
    """
    All that route ``deliver`` needs in a process.

    Args:
        listener: The socket of the public pages where a parent bound it; None to bind it here.
    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        metrics: Metrics,
        new_id: Callable[[], str],
        listener: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._watcher = _Watcher(log, metrics.delivery)
        self._metrics = metrics.delivery
        self._store = open_store(settings, log.catch_up)
        self._hold = _lock(settings.data_dir / SPOOL_FOLDER / "lock.workers", fcntl.LOCK_SH)
        deliver, tracking = settings.deliver, settings.tracking
        self._composer = ComposePool(budget_seconds=deliver.compose.budget_seconds, processes=deliver.compose.processes)
        public = settings.http.public
        self._keys = Keys(settings)
        pages = PublicPages(public.address, public.port, self._keys.tokens, _Hits(self), lambda: datetime.now(UTC))
        self.public = pages
        destination = route_of(settings)
        self.route = DeliverRoute(
            self._store,
            self._composer,
            self._watcher,
            hostname=settings.hostname,
            folder=settings.data_dir / SPOOL_FOLDER,
            destination=destination,
            track_opens=tracking.opens,
            track_clicks=tracking.clicks,
            clock=time.time,
        )
        self._retry = RetrySettings(
            first_seconds=deliver.retry.first_seconds,
            factor=deliver.retry.factor,
            max_seconds=deliver.retry.max_seconds,
            expire_seconds=deliver.retry.expire_seconds,
            warn_seconds=deliver.retry.warn_seconds,
        )
        self._courier = courier_of(settings)
        self._notices = Notices(settings.hostname, lambda: f"{new_id()}.n", destination, deliver.retry.expire_seconds)
        self._copies: Copies | None = None
        self._queue: Queue | None = None
        self._due = {"depth": 0.0, "sweep": 0.0}

    @property
    def public_port(self) -> int:
        return self.public.port

    def _wake(self) -> None:
        if self._queue is not None:
            self._queue.wake()

    async def start(self) -> None:
        """Open the public pages, then work on what waits."""
        await self.public.start(self._listener)
        base = (self._settings.tracking.base_url or f"http://127.0.0.1:{self.public.port}").rstrip("/")
        copies = self._copies = Copies(base, self._keys.tokens, self._keys.signer, time.time)
        most, most_each = at_hand(self._settings)
        self._queue = Queue(
            self._store,
            self._courier,
            copies,
            self._notices,
            self._watcher,
            self._retry,
            time.time,
            most=most,
            most_each=most_each,
        )
        self._queue.start()
        self.route.queue = self._queue

    async def tick(self) -> None:
        """Measure the queue, forget what is old, and take changed keys into force."""
        self._courier.tidy()
        self._look_at_keys()
        try:
            await self._look(time.time())
        except StoreError as error:
            self._watcher.trouble(error)

    def _look_at_keys(self) -> None:
        try:
            if not self._keys.reload() or self._copies is None:
                return
        except ProblemsError as error:
            self._watcher.keys_not_reloaded(error)
            return
        self._copies.use(self._keys.tokens, self._keys.signer)
        self.public.keys = self._keys.tokens
        self._watcher.keys_reloaded()

    async def _look(self, now: float) -> None:
        """Measure the store, take care of what other processes left behind, and forget what is old."""
        if now >= self._due["depth"]:
            self._due["depth"] = now + _DEPTH_SECONDS
            depth = await self._store.depth()
            self._metrics.depth(
                depth.pending, max(now - depth.oldest_at, 0.0) if depth.oldest_at else 0.0, depth.set_aside
            )
            if released := await self._store.release(now):
                self._watcher.released(released)
                self._wake()
        if now >= self._due["sweep"]:
            self._due["sweep"] = now + _SWEEP_SECONDS
            await self._store.sweep(now, self._settings.deliver.keep_seconds)

    async def stop(self, seconds: float) -> None:
        """Let attempts finish that are under way, and close."""
        if self._queue is not None:
            await self._queue.stop(seconds)
        await self.public.stop()
        await self._composer.close()
        await self._store.close()
        if self._hold:
            self._hold.close()

    async def hit(self, kind: str, message_id: str, recipient: int, target: str, at: float) -> None:
        """Write what a reader did."""
        try:
            known = await self._store.hit(kind, message_id, recipient, target, at)
        except StoreError as error:
            self._watcher.trouble(error)
            return
        self._metrics.hit(kind if known else "unknown")


class _Hits:
    """Takes what the public pages saw; writing it is nothing a reader waits for."""

    def __init__(self, parts: DeliverParts) -> None:
        self._parts = parts
        self._tasks: set[asyncio.Task[None]] = set()

    def opened(self, message_id: str, recipient: int, at: datetime) -> None:
        self._write("opened", message_id, recipient, "", at.timestamp())

    def clicked(self, message_id: str, recipient: int, target: str, at: datetime) -> None:
        self._write("clicked", message_id, recipient, target, at.timestamp())

    def _write(self, kind: str, message_id: str, recipient: int, target: str, at: float) -> None:
        if len(self._tasks) >= 1000:  # a flood of hits is not worth more memory than that
            return
        task = asyncio.get_running_loop().create_task(self._parts.hit(kind, message_id, recipient, target, at))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Watcher:
    """Brings what route and queue tell into metrics and log."""

    def __init__(self, log: Log, metrics: DeliveryMetrics) -> None:
        self._log = log
        self._metrics = metrics

    def composed(self, seconds: float, composed: Composed) -> None:
        self._metrics.composed(seconds, composed.failed)

    def malformed(self, message_id: str, names: tuple[str, ...]) -> None:
        for name in names:
            self._metrics.malformed(name)
        self._log.warning("malformed_field", id=message_id, fields=list(names))

    def kept(self, item: Item, suppressed: int) -> None:
        self._metrics.kept(suppressed)
        if not (suppressed or item.failed_steps or item.not_before):
            return  # the line about the message says all
        self._log.info(
            "queued",
            id=item.id,
            group=item.group,
            octets=item.size_octets,
            recipients=len(item.recipients),
            suppressed=suppressed,
            steps_failed=[f"{step}: {reason}" for step, reason in item.failed_steps],
            not_before=item.not_before or None,
        )

    def not_kept(self, error: StoreError) -> None:
        self._metrics.not_kept()
        self._log.error("not_queued", reason=str(error))

    def attempted(self, item: Item, recipient: Recipient, result: Result, seconds: float) -> None:
        self._metrics.attempted(result.outcome.value, recipient.destination, seconds)
        self._log.later(partial(self._tell_attempt, item, recipient, result, seconds))

    def _tell_attempt(self, item: Item, recipient: Recipient, result: Result, seconds: float) -> None:
        tell = self._log.info if result.outcome is Outcome.DELIVERED else self._log.warning
        tell(
            "attempt",
            id=item.id,
            recipient=recipient.address,
            group=item.group,
            outcome=result.outcome.value,
            attempt=recipient.attempts,
            host=result.host or None,
            tls=result.tls,
            detail=result.detail,
            seconds=round(seconds, 3),
        )

    def set_aside(self, item: Item, reason: str) -> None:
        self._metrics.damaged()
        self._log.error("set_aside", id=item.id, reason=reason)

    def suppressed(self, item: Item, recipient: Recipient, reason: str) -> None:
        self._metrics.suppression()
        self._log.warning("suppressed", id=item.id, recipient=recipient.address, reason=reason)

    def noticed(self, item: Item, notice: Item, kind: str) -> None:
        self._metrics.notice(delayed=kind == "delay_told")
        self._log.info("notice", id=notice.id, about=item.id, to=item.reverse_path, kind=kind)

    def keys_reloaded(self) -> None:
        self._log.info("keys_reloaded")

    def keys_not_reloaded(self, error: ProblemsError) -> None:
        for problem in error.problems:
            self._log.error("keys_reload_failed", problem=str(problem))

    def released(self, recipients: int) -> None:
        self._log.warning("leases_released", recipients=recipients)

    def trouble(self, error: Exception) -> None:
        self._metrics.trouble()
        self._log.error("queue_trouble", reason=str(error))
