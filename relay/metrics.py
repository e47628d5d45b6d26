"""Metrics: plain numbers on the hot path, read by a collector when a scraper asks.

Declared where they are counted, each once, with its help. Every name is documented in docs/metrics.md; a test holds it.
No label takes a value that a stranger can choose.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

_ALL: dict[str, Counter | Gauge | Histogram] = {}


class Counter:
    """Only grows. Labels are given by position."""

    def __init__(self, name: str, help_: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help_, tuple(labels)
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        _ALL[name] = self

    def inc(self, amount: float = 1.0, *labels: str) -> None:
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def family(self) -> Metric:
        family = CounterMetricFamily(self.name.removesuffix("_total"), self.help, labels=self.labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family


class Gauge:
    """Read when asked: `source` returns pairs of labels and value. It may be set after start, by who knows."""

    def __init__(self, name: str, help_: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help_, tuple(labels)
        self.source: Callable[[], Iterable[tuple[tuple[str, ...], float]]] = list
        _ALL[name] = self

    def family(self) -> Metric:
        family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in self.source():
            family.add_metric(labels, value)
        return family


class Histogram:
    """Seconds by bucket."""

    BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 3600.0, 86400.0)

    def __init__(self, name: str, help_: str, buckets: Sequence[float] = BUCKETS) -> None:
        """`buckets`: their upper bounds in seconds, growing."""
        self.name, self.help, self.buckets = name, help_, tuple(buckets)
        self.counts, self.sum = [0] * (len(self.buckets) + 1), 0.0
        _ALL[name] = self

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum += value

    def family(self) -> Metric:
        total, buckets = 0, []
        for bound, count in zip((*map(str, self.buckets), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(self.name, self.help)
        family.add_metric([], buckets, self.sum)
        return family


class _All(Collector):
    def collect(self) -> Iterator[Metric]:
        for metric in list(_ALL.values()):
            yield metric.family()


_REGISTRY = CollectorRegistry(auto_describe=False)
_REGISTRY.register(_All())


def exposition() -> bytes:
    """The text format of Prometheus, of everything that was declared."""
    return generate_latest(_REGISTRY)


def declared() -> dict[str, Counter | Gauge | Histogram]:
    return dict(_ALL)
