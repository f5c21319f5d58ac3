"""
Counters, gauges and histograms that cost next to nothing to update, for a registry of prometheus_client.

The library's own are made for threads: each update takes a lock and checks its labels, which came to a fifteenth of
the CPU of a relayed message. Here one thread updates, and the library's families are made when somebody looks.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class Cell:
    """One series of a counter or gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add."""
        self.value += amount

    def dec(self) -> None:
        """Take one away."""
        self.value -= 1

    def set(self, value: float) -> None:
        """Put another value in its place."""
        self.value = float(value)


class Buckets:
    """One series of a histogram."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def state(self) -> tuple[list[tuple[str, float]], float]:
        """Give the cumulative count up to each bound, the last one without bound, and the sum of all values."""
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(names, accumulate(map(float, self._counts)), strict=True)), self._sum


_Series = TypeVar("_Series")


class _Family(Collector, Generic[_Series]):
    """The series of one name, by their label values."""

    def __init__(self, name: str, text: str, labels: Sequence[str], make: Callable[[], _Series]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._make = make
        self._series: dict[tuple[str, ...], _Series] = {}

    def labels(self, *values: str) -> _Series:
        """Give the series with these label values; made when it is first asked for."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has the labels ({', '.join(self._labels)}), and {len(values)} were given")
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._make()
        return series


class Counter(_Family[Cell]):
    """A family of counters; the name ends with ``_total``."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        super().__init__(name, text, labels, Cell)

    def collect(self) -> Iterator[Metric]:
        """Give the family as the library wants it."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, cell in self._series.items():
            family.add_metric(values, cell.value)
        yield family


class Gauge(_Family[Cell]):
    """A family of gauges."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        super().__init__(name, text, labels, Cell)

    def collect(self) -> Iterator[Metric]:
        """Give the family as the library wants it."""
        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for values, cell in self._series.items():
            family.add_metric(values, cell.value)
        yield family


class Histogram(_Family[Buckets]):
    """A family of histograms with common bounds."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        super().__init__(name, text, labels, lambda: Buckets(bounds))

    def collect(self) -> Iterator[Metric]:
        """Give the family as the library wants it."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, buckets in self._series.items():
            family.add_metric(values, *buckets.state())
        yield family
