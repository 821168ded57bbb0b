"""The embedded runtime simulated: its latency under load from what its batches take.

``calibrate`` says how far this is from what was measured under the same arrivals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airlam.specs import require

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeTimes:
    """What was measured of a ``Batcher`` apart from the arrivals that are replayed.

    batch_s: mean seconds of a batch by its links; between sizes they are taken to lie on a line. hand_over_s:
    of each batch to the worker and back, in which no other runs. pause_share: see ``Batcher``. timer_s: by
    which the event loop's timers, and so this pause, are late.
    """

    batch_s: Mapping[int, float]
    max_batch_links: int
    hand_over_s: float = 0.0
    pause_share: float = 0.03
    timer_s: float = 0.0

    def __post_init__(self) -> None:
        require(len(self.batch_s) > 0, "no batch was measured; measure one of a single link at least")

    def seconds(self, num_links: int) -> float:
        """Of a batch of so many links."""
        sizes = sorted(self.batch_s)
        return float(np.interp(num_links, sizes, [self.batch_s[size] for size in sizes]))


def replayed_s(arrival_s: Sequence[float], times: RuntimeTimes) -> Floats:
    """Latency of requests of one link that come at these times, in order: [num_requests].

    One batch runs at a time; what waits when its answers are out is the next, up to the largest; after a
    batch of several there is a short pause unless the next is full.
    """
    latency_s, arrivals = np.zeros(len(arrival_s)), np.asarray(arrival_s)
    first, free_s = 0, 0.0
    while first < len(arrival_s):
        start_s = max(free_s, arrival_s[first])
        last = first
        while last < len(arrival_s) and arrival_s[last] <= start_s and last - first < times.max_batch_links:
            last += 1
        duration_s = times.seconds(last - first)
        free_s = start_s + duration_s + times.hand_over_s
        latency_s[first:last] = free_s - arrivals[first:last]
        waiting = int(np.searchsorted(arrivals, free_s, side="right")) - last
        if last - first > 1 and waiting < times.max_batch_links:
            free_s += times.pause_share * duration_s + times.timer_s
        first = last
    return latency_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Latencies under load, simulated and measured, in seconds: mean, median and 95th percentile."""

    simulated_s: tuple[float, float, float]
    measured_s: tuple[float, float, float]

    @property
    def errors(self) -> tuple[float, float, float]:
        """Simulated over measured, less 1: of mean, median and 95th percentile."""
        mean, median, high = (
            simulated / measured - 1
            for simulated, measured in zip(self.simulated_s, self.measured_s, strict=True)
        )
        return mean, median, high


def calibrate(simulated_s: Floats, measured_s: Floats) -> Calibration:
    """Sets latencies of the simulated runtime against those measured under the same arrivals."""
    require(len(simulated_s) == len(measured_s) > 0, "calibration needs a latency for each arrival")
    return Calibration(simulated_s=_summary(simulated_s), measured_s=_summary(measured_s))


def _summary(latency_s: Floats) -> tuple[float, float, float]:
    median, high = np.quantile(latency_s, (0.5, 0.95))
    return float(latency_s.mean()), float(median), float(high)
