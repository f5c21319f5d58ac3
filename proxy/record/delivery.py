"""
The metrics of the sending core: composing, keeping, attempting, and what readers did.

Names of destinations are labels up to a limit, as group names are: the first ones, and ``other`` for all others.
"""

from collections.abc import Sequence
from itertools import product

from prometheus_client import CollectorRegistry

from proxy.compose.work import REASONS, STEPS
from proxy.record.exposition import PREFIX, GroupLabels
from proxy.record.series import Counter, Gauge, Histogram
from proxy.translate.model import SWITCHES

DESTINATION_LABEL_LIMIT = 50
_COMPOSE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_DELIVERY_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400, 432_000)
_KEEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class DeliveryMetrics:
    """Families for a registry; each method counts one thing that happened."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._destinations = GroupLabels(DESTINATION_LABEL_LIMIT)
        self._kept = self._counter("queued_total", "Messages made durable, and answered with 250.").labels()
        self._not_kept = self._counter("not_queued_total", "Messages that could not be made durable: answered 4yz.")
        self._compose_seconds = self._histogram("compose_seconds", "To compose a message.", _COMPOSE_SECONDS).labels()
        self._compose_failures = self._counter(
            "compose_failures_total", "Content steps left undone; the message went on unchanged.", "step", "reason"
        )
        self._attempts = self._counter(
            "attempts_total", "Attempts by what came of them, one for each recipient.", "outcome", "destination"
        )
        self._delivery_seconds = self._histogram(
            "delivery_seconds", "From acceptance, or the time asked for, to delivery.", _DELIVERY_SECONDS
        ).labels()
        self._suppressed = self._counter(
            "suppressed_total", "Recipients not attempted: on the suppression list."
        ).labels()
        self._suppressions = self._counter("suppressions_total", "Addresses put on the suppression list by a bounce.")
        self._notices = self._counter("notices_total", "Notices to senders.", "kind")
        self._set_aside = self._counter("set_aside_total", "Messages found damaged, and set aside.")
        self._hits = self._counter("tracking_hits_total", "What readers did.", "kind")
        self._malformed = self._counter(
            "malformed_fields_total", "X-Cmail switches with a value that is none; the default held.", "field"
        )
        self._trouble = self._counter("queue_trouble_total", "Failures of the store or the queue; it goes on.")
        self._pending = self._gauge("queue_recipients", "Recipients that are not final.")
        self._oldest = self._gauge(
            "queue_oldest_seconds", "Age of the oldest message that is not final, from the time asked for; 0 for none."
        )
        self._aside = self._gauge("queue_set_aside", "Damaged messages set aside.")
        for step, reason in product(STEPS, REASONS):
            self._compose_failures.labels(step, reason)
        for field in SWITCHES:
            self._malformed.labels(field)
        for kind in ("failed", "delayed"):
            self._notices.labels(kind)
        for kind in ("opened", "clicked", "unknown"):
            self._hits.labels(kind)

    def composed(self, seconds: float, failed: Sequence[tuple[str, str]]) -> None:
        """Count a composed message, and the steps that were not done."""
        self._compose_seconds.observe(seconds)
        for step, reason in failed:
            self._compose_failures.labels(step, reason).inc()

    def kept(self, suppressed: int) -> None:
        """Count a message that is durable."""
        self._kept.inc()
        self._suppressed.inc(suppressed)

    def not_kept(self) -> None:
        """Count a message that could not be made durable."""
        self._not_kept.labels().inc()

    def malformed(self, field: str) -> None:
        """Count a switch that is none."""
        self._malformed.labels(field).inc()

    def attempted(self, outcome: str, destination: str, seconds: float) -> None:
        """Count what came of an attempt for one recipient."""
        self._attempts.labels(outcome, self._destinations.label(destination)).inc()
        if outcome == "delivered":
            self._delivery_seconds.observe(seconds)

    def suppression(self) -> None:
        """Count an address that went onto the list."""
        self._suppressions.labels().inc()

    def notice(self, *, delayed: bool) -> None:
        """Count a notice to a sender."""
        self._notices.labels("delayed" if delayed else "failed").inc()

    def damaged(self) -> None:
        """Count a message that was set aside."""
        self._set_aside.labels().inc()

    def hit(self, kind: str) -> None:
        """Count an open or a click; ``unknown``: of a message that is not in the store any more."""
        self._hits.labels(kind).inc()

    def trouble(self) -> None:
        """Count a failure that the queue outlived."""
        self._trouble.labels().inc()

    def depth(self, pending: int, oldest_seconds: float, set_aside: int) -> None:
        """Tell what waits."""
        self._pending.labels().set(pending)
        self._oldest.labels().set(oldest_seconds)
        self._aside.labels().set(set_aside)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        family = Counter(PREFIX + name, text, labels)
        if not labels:
            family.labels()
        self._registry.register(family)
        return family

    def _gauge(self, name: str, text: str) -> Gauge:
        family = Gauge(PREFIX + name, text, ())
        family.labels()
        self._registry.register(family)
        return family

    def _histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        family = Histogram(PREFIX + name, text, (), bounds)
        family.labels()
        self._registry.register(family)
        return family
