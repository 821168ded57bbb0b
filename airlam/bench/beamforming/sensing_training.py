"""The precoder that illuminates targets, as the benchmark measures it: trained once and kept.

One set of weights for all numbers of users, antennas and targets and for all shares of illumination, none
included. It learns through the rate alone; constraints are met by construction.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from airlam.bench.beamforming.settings import TRAINED_USERS
from airlam.bench.beamforming.training import drawn_pools
from airlam.bench.kept import digest, kept_weights
from airlam.bench.trained import cache_folder
from airlam.model.sensing_precoder import SensingPrecoder, build_sensing_precoder
from airlam.radio.isac.beam import full_power_beam, largest_illumination
from airlam.radio.isac.downlinks import SensingDownlinks, normalised
from airlam.radio.isac.illumination import array_response
from airlam.specs import ArraySpec, PrecoderSpec, TrainingSpec, spec_to_dict
from airlam.tasks.beamforming import DownlinkSamples, UserChannels
from airlam.tasks.channel_prediction import Progress
from airlam.tasks.runs import describe
from airlam.training.loop import fit

AZIMUTHS_DEG, ZENITHS_DEG = (-60.0, 60.0), (85.0, 110.0)  # of targets, about the array's boresight
LEFT_OUT = (12, 24, 40)  # numbers of antennas that no training sample has
MOST_SHARE = 0.65  # of the illumination that is possible, in training
_NAME = "sensing"
_EARLIER_STAGES = 0.3  # weight of the answers before the last
_LEAST_RATE = 0.5  # bit/s/Hz, so that samples without a usable channel do not rule
_NONE_SHARE, _UNEQUAL_SHARE = 0.15, 0.5  # of samples where no target asks for anything, or each for its own


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SensingScale:
    """Sizes of a run. num_groups: of samples with the same numbers of users, antennas and targets."""

    name: str
    pool_drops: int
    num_groups: int
    group_size: int
    most_targets: int
    test_drops: int
    repeats: int
    spec: PrecoderSpec
    training: TrainingSpec


def draw_targets(array: ArraySpec, num_drops: int, num_targets: int, seed: int) -> torch.Tensor:
    """Responses towards targets in front of the array: complex64 [num_drops, num_targets, num_bs_ant]."""
    draw = np.random.default_rng(seed)
    azimuth, zenith = (
        torch.from_numpy(draw.uniform(*limits, (num_drops, num_targets))) * (math.pi / 180)
        for limits in (AZIMUTHS_DEG, ZENITHS_DEG)
    )
    return array_response(array, azimuth, zenith)


class SensingSamples:
    """Samples drawn once, a group at a time, and kept as the network reads them; a ``GroupedSamples``."""

    def __init__(
        self, pool: list[UserChannels], scale: SensingScale, num_groups: int, size: int, seed: int
    ) -> None:
        self.group_sizes = (size,) * num_groups
        self._pool, self._scale, self._size, self._seed = pool, scale, size, seed
        self._groups: dict[int, SensingDownlinks] = {}

    def __len__(self) -> int:
        return sum(self.group_sizes)

    def batch(self, indices: torch.Tensor) -> SensingDownlinks:
        """The samples at ``indices`` (int64 [n]), all of one group."""
        group = int(indices[0]) // self._size
        if group not in self._groups:
            self._groups[group] = self._drawn(group)
        return self._groups[group][indices - group * self._size]

    def _drawn(self, group: int) -> SensingDownlinks:
        draw = np.random.default_rng([self._seed, group])
        num_users = TRAINED_USERS[group % len(TRAINED_USERS)]
        columns, rows = _array(num_users, draw)
        part = [UserChannels(h=kind.h[:, :, :columns, :rows]) for kind in self._pool]
        seed = int(draw.integers(2**31))
        samples = DownlinkSamples(
            pool=part, num_users=(num_users,), group_size=self._size, seed=seed, smaller_arrays=False
        ).batch(torch.arange(self._size))
        # one stream is sure to be enough for two targets
        num_targets = 1 + int(draw.integers(min(self._scale.most_targets, 1 + num_users)))
        array = ArraySpec(num_rows=rows, num_cols=columns)
        targets = draw_targets(array, self._size, num_targets, seed)
        illumination = largest_illumination(targets)[:, None] * torch.from_numpy(
            _shares(self._size, num_targets, draw)
        )
        white, towards, share = normalised(samples.h, targets, illumination.float(), samples.noise_variance)
        beam = full_power_beam(towards, share, 1.0, num_users)
        return SensingDownlinks.of(white, towards, share, beam)


def _array(num_users: int, draw: np.random.Generator) -> tuple[int, int]:
    """Columns and rows of up to 8 x 8 elements, enough for the users; none of a test's size but 16."""
    fitting = [
        (columns, rows)
        for columns in range(2, 9)
        for rows in range(1, 9)
        if columns * rows >= max(4, 0.75 * num_users) and columns * rows not in LEFT_OUT
    ]
    return fitting[draw.integers(len(fitting))]


def _shares(
    num_samples: int, num_targets: int, draw: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of the illumination that all targets can have at once: float64 [num_samples, num_targets]."""
    common = draw.uniform(0, MOST_SHARE, (num_samples, 1)) * (draw.random((num_samples, 1)) > _NONE_SHARE)
    unequal = draw.random((num_samples, 1)) < _UNEQUAL_SHARE
    return common * np.where(unequal, draw.uniform(0, 1, (num_samples, num_targets)), 1.0)


def rate_loss(model: nn.Module, links: SensingDownlinks) -> torch.Tensor:
    """Minus the logarithm of the sum rate, earlier answers counting less: float32 [n].

    So that a percent counts alike, whether illumination leaves much of the rate or little.
    """
    rates: list[torch.Tensor] = [(found.rate + _LEAST_RATE).log() for found in model(links)]
    _, *earlier, last = rates
    return -last - _EARLIER_STAGES * sum(earlier, torch.zeros_like(last))


def trained_sensing_precoder(scale: SensingScale, on_progress: Progress) -> SensingPrecoder:
    """From the cache, where everything that decides it is the same; else trained into it."""
    precoder = build_sensing_precoder(scale.spec, seed=scale.training.seed)
    folder = cache_folder() / "beamforming" / scale.name
    key = digest(spec_to_dict(scale.spec), spec_to_dict(scale.training), _data_key(scale))

    def train() -> None:
        samples, validation = samples_of(scale)
        summary = fit(
            precoder,
            rate_loss,
            samples,
            validation,
            scale.training,
            folder / "work" / f"{_NAME}-{key}",
            lambda step: on_progress("training with targets", step.step, step.num_steps, describe(step)),
            identity=key,
        )
        if summary.stop_reason == "interrupted":
            raise KeyboardInterrupt

    kept_weights(precoder, folder, _NAME, key, train)
    return precoder.eval()


def _data_key(scale: SensingScale) -> list[Any]:
    return [
        *(scale.pool_drops, scale.num_groups, scale.group_size, scale.most_targets),
        *(TRAINED_USERS, LEFT_OUT, AZIMUTHS_DEG, ZENITHS_DEG, MOST_SHARE, _NONE_SHARE, _UNEQUAL_SHARE),
    ]


def samples_of(scale: SensingScale) -> tuple[SensingSamples, SensingSamples]:
    """Training and validation, of drops of their own."""
    found = []
    for seed, drops in ((3, scale.pool_drops), (4, max(2, scale.pool_drops // 10))):
        pool = drawn_pools(drops, seed)
        size = scale.group_size if seed == 3 else max(4, scale.group_size // 16)
        num_groups = scale.num_groups if seed == 3 else min(3 * len(TRAINED_USERS), scale.num_groups)
        found.append(SensingSamples(pool, scale, num_groups, size, seed))
    return found[0], found[1]
