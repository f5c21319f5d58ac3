"""
Samples as text for Prometheus: of one process, or of several summed up.

Workers hand their samples to the parent as a snapshot, which JSON can carry. What counts up is summed, and stays when
its worker dies; what is a state of the whole program is the worst of all workers' states; what describes a process gets
the label ``worker``.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from attrs import frozen
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "cmail_proxy_"
GROUP_LABEL_LIMIT = 200
OTHER_GROUP = "other"

Snapshot = list[Any]
"""For each family name, help, type and samples; for each sample name, labels and value."""

_GROUPS = f"{PREFIX}messages_by_group"
_CUMULATIVE = frozenset({"counter", "histogram"})
_SAME_EVERYWHERE = frozenset({"python_info"})
_LEAST = ("_success", "_timestamp_seconds", "_reachable")
_GREATEST = ("_info", "_rules", "queue_recipients", "queue_oldest_seconds", "queue_set_aside")  # one queue for all

_Labels = tuple[tuple[str, str], ...]


@frozen(eq=False)
class _Family(Collector):
    """A family of samples, and how those of several processes become one."""

    name: str
    help: str
    type: str
    join: Callable[[float, float], float]
    samples: dict[tuple[str, _Labels], float]

    def collect(self) -> Iterable[Metric]:
        metric = Metric(self.name, self.help, self.type)
        for (name, labels), value in self.samples.items():
            metric.add_sample(name, dict(labels), value)
        return [metric]


class GroupLabels:
    """
    The group names that are labels: the first so many; the others are counted together.

    Args:
        limit: Names at most.
    """

    def __init__(self, limit: int = GROUP_LABEL_LIMIT) -> None:
        self._limit = limit
        self._names: set[str] = set()

    def label(self, name: str) -> str:
        """Choose the label for a group."""
        if name not in self._names:
            if len(self._names) >= self._limit:
                return OTHER_GROUP
            self._names.add(name)
        return name


class Totals:
    """What several processes counted, those that have ended included."""

    def __init__(self, group_label_limit: int = GROUP_LABEL_LIMIT) -> None:
        self._groups = GroupLabels(group_label_limit)
        self._kept: dict[str, _Family] = {}
        self._last: dict[str, Snapshot] = {}

    def update(self, worker: str, snapshot: Snapshot) -> None:
        """Take in what a process counted since its start."""
        self._last[worker] = snapshot

    def ended(self, worker: str) -> None:
        """Keep what a process counted, and forget its states; the next one under its name starts from 0."""
        snapshot = [
            family for family in self._last.pop(worker, []) if family[0].startswith(PREFIX) and family[2] in _CUMULATIVE
        ]
        self._add(self._kept, worker, snapshot)

    def render(self) -> bytes:
        """Write all of it as text."""
        families: dict[str, _Family] = {}
        for name, kept in self._kept.items():
            families[name] = _Family(name, kept.help, kept.type, kept.join, dict(kept.samples))
        for worker, snapshot in self._last.items():
            self._add(families, worker, snapshot)
        return b"".join(generate_latest(family) for family in families.values())

    def _add(self, families: dict[str, _Family], worker: str, snapshot: Snapshot) -> None:
        for name, text, kind, samples in snapshot:
            family = families.get(name)
            if family is None:
                family = families[name] = _Family(name, text, kind, _join(name, kind), {})
            for sample, labels, value in samples:
                key = (sample, self._labels(name, worker, labels))
                family.samples[key] = family.join(family.samples[key], value) if key in family.samples else value

    def _labels(self, family: str, worker: str, labels: dict[str, str]) -> _Labels:
        if family == _GROUPS:
            labels = {name: self._groups.label(value) for name, value in labels.items()}
        elif not family.startswith(PREFIX) and family not in _SAME_EVERYWHERE:
            labels = {**labels, "worker": worker}
        return tuple(labels.items())


def snapshot(registry: CollectorRegistry) -> Snapshot:
    """Take down all samples of a process."""
    return [
        [
            metric.name,
            metric.documentation,
            metric.type,
            [[each.name, each.labels, each.value] for each in metric.samples],
        ]
        for metric in _collect(registry)
    ]


def render(registry: CollectorRegistry) -> bytes:
    """Write all samples of a process as text."""
    return generate_latest(_Collected(list(_collect(registry))))


@frozen(eq=False)
class _Collected(Collector):
    metrics: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.metrics


def _collect(registry: CollectorRegistry) -> Iterator[Metric]:
    """Leave out when each series was created: the text format has no place for it but series of their own."""
    for metric in registry.collect():
        metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
        yield metric


def _join(name: str, kind: str) -> Callable[[float, float], float]:
    if kind not in _CUMULATIVE:
        if name.endswith(_LEAST):
            return min
        if name.endswith(_GREATEST) or name in _SAME_EVERYWHERE:
            return max
    return operator.add
