"""Histograms that cost what is counted a microsecond, where prometheus_client's cost twenty with their locks.

A LAM's pass is told of a dozen times in each request. Each label is counted by one thread; a scrape beside it
may miss the count under way.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


@dataclass(slots=True)
class _Counts:
    """By bucket, the last one for what is above all bounds; and the sum of all values."""

    by_bucket: list[int]
    total: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)  # known by identity, as a registry wants it
class Histogram(Collector):
    """Counts of values by upper bound, for each value of a label; label None: one histogram without any."""

    name: str
    about: str
    bounds: Sequence[float]
    label: str | None = None
    _counts: dict[str, _Counts] = field(default_factory=dict, repr=False)

    def registered(self, registry: CollectorRegistry) -> "Histogram":
        """Itself, told by the registry from now on."""
        if self.label is None:
            self._counts[""] = self._none()
        registry.register(self)
        return self

    def observe(self, value: float, of: str = "") -> None:
        """Counts a value; of: the label's."""
        counts = self._counts.get(of)
        if counts is None:
            counts = self._counts[of] = self._none()
        counts.by_bucket[bisect_left(self.bounds, value)] += 1
        counts.total += value

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Of prometheus_client."""
        family = HistogramMetricFamily(self.name, self.about, labels=[self.label] if self.label else [])
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        for of, counts in list(self._counts.items()):
            cumulative = [float(count) for count in accumulate(counts.by_bucket)]
            labels = [of] if self.label else []
            family.add_metric(labels, list(zip(names, cumulative, strict=True)), counts.total)
        return [family]

    def _none(self) -> _Counts:
        return _Counts([0] * (len(self.bounds) + 1))
