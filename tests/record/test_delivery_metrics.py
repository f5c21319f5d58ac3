"""The metrics of the sending core, each counted by what it is called for."""

from prometheus_client import CollectorRegistry, generate_latest

from proxy.compose.work import REASONS, STEPS
from proxy.record import delivery as module
from proxy.record.delivery import DeliveryMetrics
from tests.record.test_metrics import Samples, parse, value


def made() -> tuple[DeliveryMetrics, CollectorRegistry]:
    """Metrics in a registry of their own."""
    registry = CollectorRegistry()
    return DeliveryMetrics(registry), registry


def read(registry: CollectorRegistry) -> Samples:
    """What Prometheus reads of them."""
    return parse(generate_latest(registry))


def test_all_that_is_known_beforehand_is_there_at_zero() -> None:
    """An alert on a step that never failed so far has something to look at."""
    _, registry = made()
    samples = read(registry)
    for step in STEPS:
        for reason in REASONS:
            assert value(samples, "compose_failures_total", step=step, reason=reason) == 0
    for name in ("queued_total", "not_queued_total", "suppressed_total", "set_aside_total", "queue_recipients"):
        assert value(samples, name) == 0
    assert value(samples, "notices_total", kind="delayed") == value(samples, "tracking_hits_total", kind="opened") == 0


def test_each_event_is_counted_where_it_belongs() -> None:
    """Composing by time and failed step, attempts by outcome, delivery by its age, and what waits."""
    metrics, registry = made()
    metrics.composed(0.003, [("inline_css", "time"), ("track_opens", "time")])
    metrics.composed(4, [])
    metrics.attempted("deferred", "a.example", 7)
    metrics.attempted("delivered", "a.example", 70)
    metrics.attempted("failed", "b.example", 8)
    metrics.kept(2)
    metrics.notice(delayed=True)
    metrics.notice(delayed=False)
    metrics.hit("clicked")
    metrics.hit("unknown")
    metrics.suppression()
    metrics.depth(9, 12.5, 3)
    samples = read(registry)
    assert value(samples, "compose_seconds_count") == 2
    assert value(samples, "compose_seconds_bucket", le="0.005") == 1
    assert value(samples, "compose_failures_total", step="inline_css", reason="time") == 1
    assert value(samples, "compose_failures_total", step="text_part", reason="time") == 0
    assert value(samples, "attempts_total", outcome="deferred", destination="a.example") == 1
    assert value(samples, "attempts_total", outcome="failed", destination="b.example") == 1
    assert value(samples, "delivery_seconds_count") == 1  # of what was delivered alone
    assert value(samples, "delivery_seconds_bucket", le="60.0") == 0
    assert value(samples, "delivery_seconds_bucket", le="300.0") == 1
    assert (value(samples, "queued_total"), value(samples, "suppressed_total")) == (1, 2)
    assert (value(samples, "notices_total", kind="delayed"), value(samples, "notices_total", kind="failed")) == (1, 1)
    assert (value(samples, "tracking_hits_total", kind="clicked")) == 1
    assert (value(samples, "tracking_hits_total", kind="unknown")) == 1
    assert value(samples, "suppressions_total") == 1
    assert value(samples, "queue_recipients") == 9
    assert (value(samples, "queue_oldest_seconds"), value(samples, "queue_set_aside")) == (12.5, 3)


def test_destinations_beyond_the_limit_are_one() -> None:
    """A million domains are no million series; those that were there first keep their own."""
    metrics, registry = made()
    for number in range(module.DESTINATION_LABEL_LIMIT + 20):
        metrics.attempted("delivered", f"d{number}.example", 1)
    metrics.attempted("delivered", "d0.example", 1)
    samples = read(registry)
    destinations = {
        dict(labels)["destination"]: count
        for (name, labels), count in samples.items()
        if name == "cmail_proxy_attempts_total"
    }
    assert len(destinations) == module.DESTINATION_LABEL_LIMIT + 1
    assert destinations["other"] == 20
    assert destinations["d0.example"] == 2
