"""Metrics: every series under its name, read back by Prometheus' own parser."""

import json
import ssl
from time import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.outbound.client import STAGES, UpstreamError
from proxy.outbound.pool import PoolWatcher
from proxy.record import metrics as module
from proxy.record.exposition import Totals
from proxy.record.metrics import Metrics, SupervisorMetrics
from proxy.route import OUTCOMES
from proxy.translate.model import Action
from proxy.translate.outcome import Loss, Remark, Setting, Translation

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
Watched = PoolWatcher


def parse(text: bytes) -> Samples:
    """Read an exposition, and check what the format asks for."""
    families = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in families}) == len(families)
    samples: Samples = {}
    for family in families:
        assert family.documentation
        for each in family.samples:
            key = (each.name, frozenset(each.labels.items()))
            assert key not in samples
            samples[key] = each.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    """Find one of our samples."""
    return samples[f"cmail_proxy_{name}", frozenset(labels.items())]


def make() -> Metrics:
    """Make metrics as a small installation has them."""
    return Metrics("1.2.3", ["127.0.0.1:2525", "0.0.0.0:587"], ["mailgun", "postmark"])


def worker(number: int) -> Metrics:
    """Make the metrics of a worker that counted something."""
    metrics = make()
    for _ in range(number):
        metrics.session_opened("127.0.0.1:2525")
        metrics.relayed("accepted", 0.02)
    metrics.translation(Translation(group=f"only {number}"))
    metrics.rules_reload(number == 1, 7)
    return metrics


def test_series_with_known_labels_exist_from_the_start() -> None:
    """Alerts and rates work before the first event, because everything that is known is there at 0."""
    samples = parse(make().render())
    for name, labels in [
        ("sessions_open", {"listener": "0.0.0.0:587"}),
        ("sessions_total", {"listener": "127.0.0.1:2525"}),
        ("sessions_refused_total", {"reason": "too_many_connections"}),
        ("sessions_dropped_total", {"reason": "overlong_line"}),
        ("tls_handshakes_total", {"version": "TLSv1.3"}),
        ("tls_handshake_failures_total", {}),
        ("auth_attempts_total", {"result": "cleartext_refused"}),
        ("messages_received_total", {"listener": "0.0.0.0:587"}),
        ("messages_refused_total", {"reason": "header_section"}),
        ("messages_discarded_total", {"reason": "test_mode"}),
        ("message_bytes_total", {}),
        ("translated_total", {"provider": "postmark", "target": "X-Cmail-GroupName"}),
        ("remarks_total", {"kind": "signature_broken", "provider": "none"}),
        ("messages_by_group_total", {"group": "ungrouped"}),
        ("relayed_total", {"outcome": "failed"}),
        ("relay_seconds_count", {}),
        ("upstream_reply_seconds_count", {"command": "mail_rcpt"}),
        ("upstream_connect_seconds_count", {}),
        ("upstream_connect_failures_total", {"stage": "auth"}),
        ("upstream_connections", {"state": "idle"}),
        ("upstream_reachable", {}),
        ("rules", {}),
        ("rules_last_reload_success", {}),
        ("rules_last_reload_timestamp_seconds", {}),
        ("certificate_not_after_timestamp_seconds", {}),
        ("internal_errors_total", {"where": "session"}),
    ]:
        assert value(samples, name, **labels) == 0, name
    # Nothing has failed where no certificate is asked for.
    assert value(samples, "certificate_last_reload_success") == 1


def test_label_values_are_those_of_the_code_that_counts() -> None:
    """Lists that repeat what other modules say are the same as there."""
    assert module.CONNECT_STAGES == STAGES
    samples = parse(make().render())
    outcomes = {dict(labels)["outcome"] for name, labels in samples if name == "cmail_proxy_relayed_total"}
    assert outcomes == set(OUTCOMES)


def test_names_follow_the_rules_of_prometheus() -> None:
    """Our series have the prefix, counters end in _total, and nothing tells when a series was created."""
    metrics = make()
    for family in metrics.registry.collect():
        if family.name.startswith(("python_", "process_")):
            continue
        assert family.name.startswith("cmail_proxy_")
        assert family.type in ("counter", "gauge", "histogram")
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert b"_created" not in metrics.render()


def test_build_info_names_version_and_python() -> None:
    """A dashboard can show what runs."""
    (labels,) = [dict(labels) for name, labels in parse(make().render()) if name == "cmail_proxy_build_info"]
    assert labels["version"] == "1.2.3"
    assert labels["python"].startswith("3.")


def test_process_has_its_own_series() -> None:
    """Memory, CPU and garbage collection of the process come along."""
    names = {name for name, _ in parse(make().render())}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "python_info"} <= names
    assert "python_gc_collections_total" in names


def test_sessions_are_counted_by_listener() -> None:
    """What is open goes up and down, what was begun only up."""
    metrics = make()
    metrics.session_opened("0.0.0.0:587")
    metrics.session_opened("0.0.0.0:587")
    metrics.session_closed("0.0.0.0:587")
    metrics.session_refused("shutting_down")
    metrics.session_dropped("idle")
    samples = parse(metrics.render())
    assert value(samples, "sessions_open", listener="0.0.0.0:587") == 1
    assert value(samples, "sessions_total", listener="0.0.0.0:587") == 2
    assert value(samples, "sessions_refused_total", reason="shutting_down") == 1
    assert value(samples, "sessions_dropped_total", reason="idle") == 1


def test_tls_and_auth_are_counted() -> None:
    """Handshakes by version, an unknown one as other; AUTH by result."""
    metrics = make()
    for version in ("TLSv1.3", "TLSv1.3", ssl.TLSVersion.TLSv1.name, None):
        metrics.tls_started(version)
    metrics.tls_failed()
    metrics.auth("refused")
    samples = parse(metrics.render())
    assert value(samples, "tls_handshakes_total", version="TLSv1.3") == 2
    assert value(samples, "tls_handshakes_total", version="other") == 2
    assert value(samples, "tls_handshake_failures_total") == 1
    assert value(samples, "auth_attempts_total", result="refused") == 1


def test_messages_are_counted() -> None:
    """Received, refused and discarded messages and their octets have series of their own."""
    metrics = make()
    metrics.message_received("0.0.0.0:587")
    metrics.message_refused("hops")
    metrics.message_discarded("login")
    metrics.message_bytes(5000)
    metrics.message_bytes(0)
    samples = parse(metrics.render())
    assert value(samples, "messages_received_total", listener="0.0.0.0:587") == 1
    assert value(samples, "messages_refused_total", reason="hops") == 1
    assert value(samples, "messages_discarded_total", reason="login") == 1
    assert value(samples, "message_bytes_total") == 5000


def test_translation_is_counted_by_provider_target_field_and_kind() -> None:
    """What was written, what was lost and what was odd are told apart; the group is counted once for each message."""
    metrics = make()
    metrics.translation(
        Translation(
            group="Invoices",
            settings=(
                Setting("X-Cmail-GroupName", "Invoices", "mailgun", "X-Mailgun-Tag", "mailgun.yaml:9"),
                Setting("X-Cmail-TrackOpens", "true", "mailgun", "", "mailgun.yaml"),
            ),
            losses=(Loss("mailgun", "X-Mailgun-Variables", "metadata", Action.IGNORE, "data", "mailgun.yaml:30"),),
            remarks=(
                Remark("invalid_value", "mailgun", "X-Mailgun-Track", "neither yes nor no"),
                Remark("signature_broken", "", "DKIM-Signature", "it covers a field that was removed"),
            ),
        )
    )
    metrics.translation(Translation())
    samples = parse(metrics.render())
    assert value(samples, "translated_total", provider="mailgun", target="X-Cmail-GroupName") == 1
    assert value(samples, "translated_total", provider="mailgun", target="X-Cmail-TrackOpens") == 1
    lost = {"provider": "mailgun", "field": "X-Mailgun-Variables", "class": "metadata", "action": "ignore"}
    assert value(samples, "untranslatable_total", **lost) == 1
    assert value(samples, "remarks_total", kind="invalid_value", provider="mailgun") == 1
    assert value(samples, "remarks_total", kind="signature_broken", provider="none") == 1
    assert value(samples, "messages_by_group_total", group="Invoices") == 1
    assert value(samples, "messages_by_group_total", group="ungrouped") == 1


def test_groups_beyond_the_limit_are_counted_as_other() -> None:
    """Apps cannot make more series than the limit; the names that came first keep theirs."""
    metrics = Metrics("1.2.3", group_label_limit=3)
    for name in ("a", "b", "c", "d", "e", "a"):
        metrics.translation(Translation(group=name))
    samples = parse(metrics.render())
    counts = {
        dict(labels)["group"]: count
        for (name, labels), count in samples.items()
        if name == "cmail_proxy_messages_by_group_total"
    }
    assert counts == {"a": 2, "b": 1, "c": 1, "other": 2, "ungrouped": 0}


@pytest.mark.parametrize(
    ("group", "label"),
    [("\ud800x", "?x"), ('a"b\\c\nd', 'a"b\\c\nd'), ("é" * 500, "é" * 100), ("", "")],
)
def test_group_of_any_text_makes_a_readable_label(group: str, label: str) -> None:
    """A group name that an app makes up cannot break the exposition, and is cut to a bounded length."""
    metrics = make()
    metrics.translation(Translation(group=group))
    assert value(parse(metrics.render()), "messages_by_group_total", group=label) == 1


def test_relay_is_measured() -> None:
    """Outcomes are counted, and the time a message and each reply took falls into buckets."""
    metrics = make()
    metrics.relayed("accepted", 0.02)
    metrics.relayed("transient", 400)
    metrics.upstream_reply("dot", 0.3)
    samples = parse(metrics.render())
    assert value(samples, "relayed_total", outcome="accepted") == 1
    assert value(samples, "relayed_total", outcome="transient") == 1
    assert value(samples, "relay_seconds_count") == 2
    assert value(samples, "relay_seconds_sum") == 400.02
    assert value(samples, "relay_seconds_bucket", le="0.01") == 0
    assert value(samples, "relay_seconds_bucket", le="0.025") == 1
    assert value(samples, "relay_seconds_bucket", le="+Inf") == 2
    assert value(samples, "upstream_reply_seconds_bucket", command="dot", le="0.5") == 1


def test_pool_is_watched() -> None:
    """The pool's reports become series, and whether the platform can be reached follows its last attempt."""
    metrics = make()
    watcher: PoolWatcher = metrics
    watcher.connection_opened(0.1)
    watcher.pool_changed(3, 4)
    samples = parse(metrics.render())
    assert value(samples, "upstream_reachable") == 1
    assert value(samples, "upstream_connect_seconds_count") == 1
    assert value(samples, "upstream_connections", state="busy") == 3
    assert value(samples, "upstream_connections", state="idle") == 4
    watcher.connection_failed(UpstreamError("starttls", "not offered"))
    samples = parse(metrics.render())
    assert value(samples, "upstream_reachable") == 0
    assert value(samples, "upstream_connect_failures_total", stage="starttls") == 1


def test_reload_that_fails_shows_and_keeps_what_is_in_force() -> None:
    """After a failed reload the success is 0, while number and time are still those of the rules in force."""
    metrics = make()
    began = time()
    metrics.rules_reload(True, 42)
    metrics.certificate_reload(True, 2_000_000_000)
    good = parse(metrics.render())
    metrics.rules_reload(False)
    metrics.certificate_reload(False, 2_000_000_000)
    bad = parse(metrics.render())
    assert value(good, "rules_last_reload_success") == value(good, "certificate_last_reload_success") == 1
    assert value(bad, "rules_last_reload_success") == value(bad, "certificate_last_reload_success") == 0
    for name in ("rules", "rules_last_reload_timestamp_seconds", "certificate_last_reload_timestamp_seconds"):
        assert value(good, name) == value(bad, name)
    assert value(bad, "rules") == 42
    assert began <= value(bad, "rules_last_reload_timestamp_seconds") <= time()
    assert value(bad, "certificate_not_after_timestamp_seconds") == 2_000_000_000


def test_value_that_no_list_has_still_counts() -> None:
    """A metric never costs a message: what is not on its list gets a series of its own."""
    metrics = make()
    metrics.relayed("unheard_of", 1)
    metrics.internal_error("session")
    samples = parse(metrics.render())
    assert value(samples, "relayed_total", outcome="unheard_of") == 1
    assert value(samples, "internal_errors_total", where="session") == 1


def test_totals_sum_what_counts_up_and_keep_what_the_dead_counted() -> None:
    """Counters and histograms of all workers are one series each, which never goes back when a worker ends."""
    totals = Totals()
    totals.update("1", json.loads(json.dumps(worker(1).snapshot())))
    totals.update("2", json.loads(json.dumps(worker(2).snapshot())))
    listener = {"listener": "127.0.0.1:2525"}

    def check(open_sessions: int, relayed: int) -> None:
        samples = parse(totals.render())
        assert value(samples, "sessions_open", **listener) == open_sessions
        assert value(samples, "sessions_total", **listener) == relayed
        assert value(samples, "relayed_total", outcome="accepted") == relayed
        assert value(samples, "relay_seconds_count") == relayed
        assert value(samples, "relay_seconds_bucket", le="0.025") == relayed
        assert value(samples, "relay_seconds_sum") == pytest.approx(0.02 * relayed)

    check(3, 3)
    check(3, 3)  # to be asked changes nothing
    totals.ended("2")
    check(1, 3)
    totals.update("2", worker(1).snapshot())
    check(2, 4)
    totals.update("2", worker(2).snapshot())
    check(3, 5)
    totals.ended("1")
    totals.ended("2")
    totals.ended("2")
    assert value(parse(totals.render()), "relayed_total", outcome="accepted") == 5


def test_totals_show_the_worst_state_of_all_workers() -> None:
    """A reload that failed in one worker shows; what is the same everywhere is not added up."""
    totals = Totals()
    good, bad = worker(1), worker(2)
    good.connection_opened(0.1)
    good.certificate_reload(True, 2000)
    bad.certificate_reload(True, 1000)
    totals.update("1", good.snapshot())
    totals.update("2", bad.snapshot())
    samples = parse(totals.render())
    assert value(samples, "rules_last_reload_success") == 0
    assert value(samples, "rules") == 7
    assert value(samples, "rules_last_reload_timestamp_seconds") == 0
    assert value(samples, "certificate_not_after_timestamp_seconds") == 1000
    assert value(samples, "upstream_reachable") == 0
    assert [count for (name, _), count in samples.items() if name == "cmail_proxy_build_info"] == [1]
    assert len([name for name, _ in samples if name == "python_info"]) == 1


def test_totals_show_each_process_by_itself() -> None:
    """Memory and the like are shown for each worker and for the parent, as long as it lives."""
    totals = Totals()
    totals.update("1", worker(1).snapshot())
    parent = SupervisorMetrics()
    parent.worker_started()
    parent.worker_started()
    parent.worker_ended(asked=False)
    totals.update("parent", parent.snapshot())

    def workers() -> set[str]:
        samples = parse(totals.render())
        return {dict(labels)["worker"] for name, labels in samples if name == "process_resident_memory_bytes"}

    assert workers() == {"1", "parent"}
    totals.ended("1")
    assert workers() == {"parent"}
    samples = parse(totals.render())
    assert value(samples, "workers_running") == 1
    assert value(samples, "worker_deaths_total") == 1


def test_totals_hold_the_limit_of_groups_for_all_workers_together() -> None:
    """Names of different workers share one limit, and a name that has a series keeps it."""
    totals = Totals(group_label_limit=3)
    first, second = worker(1), worker(2)
    totals.update("1", first.snapshot())

    def groups() -> dict[str, float]:
        return {
            dict(labels)["group"]: count
            for (name, labels), count in parse(totals.render()).items()
            if name == "cmail_proxy_messages_by_group_total"
        }

    assert groups() == {"ungrouped": 0, "other": 0, "only 1": 1}
    totals.update("2", second.snapshot())
    for name in ("a", "b", "only 1"):
        second.translation(Translation(group=name))
    totals.update("2", second.snapshot())
    found = groups()
    assert found["only 1"] == 2
    assert sum(found.values()) == 5
    assert set(found) == {"ungrouped", "other", "only 1"}
