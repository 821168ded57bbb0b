"""When sensors measure, which samples are lost, and which samples each drop carries."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airlam.specs.sensors import SamplingSpec

_ROUNDING = 1e-9  # of a period: a sample at the very time of a drop counts as before it


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """The samples of one sensor that a trajectory's drops carry.

    A source is who measures: each user on its own, or the base station alone. A drop carries the source's
    latest sample at or before it that was not lost, and with a ``window`` > 1 the places before that one
    too: a place whose sample was lost holds the one before it that was not.

    time_s: float64 [samples], when any source's sample is needed, increasing.
    place: int64 [drops, sources, window], which sample a drop carries, the oldest first; -1 where missing.
    present: bool [drops, sources], false where the latest sample is older than ``max_age_s`` or a place has
    none to hold.
    age_s: float32 [drops, sources], of the latest sample; ``max_age_s`` where the reading is missing.
    """

    time_s: NDArray[np.float64]
    place: NDArray[np.int64]
    present: NDArray[np.bool_]
    age_s: NDArray[np.float32]

    def pick(self, samples: NDArray[Any]) -> NDArray[Any]:
        """What the drops carry, zero where there is nothing.

        samples: [samples, sources, ...] of any dtype. Returns [drops, sources, window, ...].
        """
        sources = np.arange(samples.shape[1])[:, None]  # [sources, 1]
        blank = np.zeros((1, *samples.shape[1:]), samples.dtype)
        padded = np.concatenate([samples, blank])  # [samples + 1, sources, ...]; -1 is the blank
        return padded[self.place, sources]


def plan_samples(
    sensor: SamplingSpec,
    times_s: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    phase: float,
    num_sources: int,
) -> SamplingPlan:
    """Draws which samples are lost and says which ones the drops carry.

    Ticks are at (k - K + phase) / rate_hz, k = 0, 1, ..., K the sensor's ``num_early_ticks``, so that
    sensors of one rate and phase tick together; each source loses each sample independently. times_s:
    float64 [drops], not before 0. phase: from 0 to 1.
    """
    num_early = sensor.num_early_ticks
    latest = np.floor(times_s * sensor.rate_hz - phase + _ROUNDING).astype(np.int64) + num_early  # [drops]
    kept = rng.random((int(latest.max()) + 1, num_sources)) >= sensor.missing_probability
    survivor = _latest_survivor(kept)  # [ticks + 1, sources]
    newest = _look_up(survivor, np.broadcast_to(latest[:, None], (len(times_s), num_sources)))
    age_s = times_s[:, None] - (newest - num_early + phase) / sensor.rate_hz  # [drops, sources]
    ticks = newest[..., None] - np.arange(sensor.window)[::-1]  # [drops, sources, window]
    ticks = _look_up(survivor, ticks)
    present = (ticks[..., 0] >= 0) & (age_s <= sensor.max_age_s)  # the oldest place is the first to lack
    needed, place = np.unique(np.where(present[..., None], ticks, -1), return_inverse=True)
    num_blank = int(np.count_nonzero(needed < 0))  # 0 or 1
    return SamplingPlan(
        time_s=(needed[num_blank:] - num_early + phase) / sensor.rate_hz,
        place=place.reshape(ticks.shape) - num_blank,
        present=present,
        age_s=np.where(present, np.maximum(age_s, 0.0), sensor.max_age_s).astype(np.float32),
    )


def _latest_survivor(kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The last tick up to each one that was kept, -1 before any: [ticks + 1, sources], -1 in the last row."""
    tick = np.arange(len(kept), dtype=np.int64)[:, None]
    survivor = np.maximum.accumulate(np.where(kept, tick, -1), axis=0)
    return np.concatenate([survivor, np.full((1, kept.shape[1]), -1, np.int64)])


def _look_up(survivor: NDArray[np.int64], ticks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The survivor at each tick of [drops, sources, ...]; ticks before the first have none (-1)."""
    sources = np.arange(survivor.shape[1]).reshape(-1, *[1] * (ticks.ndim - 2))
    return survivor[np.maximum(ticks, -1), sources]
