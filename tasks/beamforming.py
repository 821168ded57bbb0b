"""Multi-user precoding: channels of many users and arrays, and how the graph precoder learns from them.

A sample is a few users of one antenna array at one subcarrier and slot, with gains and an SNR of its own. All
samples of a batch have the same number of users and antennas; both change from group to group. Training has
two parts: the first imitates the dual and stream powers that WMMSE ends with, the second raises the sum rate.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import nn

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.mixture import PLACEMENTS
from airlam.model.graph_precoder import GraphPrecoder, Shares, gram_of, sum_rates
from airlam.radio.beamforming import structure_parameters, wmmse
from airlam.specs import ArraySpec, ChannelModel, DatasetSpec, PlacementSpec, TrainingSpec
from airlam.tasks.channel_prediction import Progress, quiet
from airlam.tasks.runs import describe
from airlam.training.batches import GroupedSamples
from airlam.training.loop import fit
from airlam.training.metrics import Progress as TrainingProgress
from airlam.training.metrics import TrainingSummary

IMITATION_FOLDER = "imitation"  # of a run
LABEL_ITERATIONS = 50  # of WMMSE, whose powers the first part of training imitates
GAIN_SPREAD_DB = 6.0
_EARLIER_STAGES = 0.3  # weight of the answers before the last
LEAST_RATE = 0.5  # bit/s/Hz, so that samples without a usable channel do not rule
_DRAWN_AT_ONCE = 250
_FEWEST_ANTENNAS = 4
_CROWDED = 0.75  # of the users that a sample has, so many antennas at least


@dataclass(frozen=True, slots=True, kw_only=True)
class UserChannels:
    """Channels of users that one array serves together: complex64 [drops, users, columns, rows]."""

    h: torch.Tensor

    def sub_array(self, num_columns: int, num_rows: int) -> torch.Tensor:
        """Of a corner of the array: complex64 [drops, users, num_columns * num_rows]."""
        return self.h[:, :, :num_columns, :num_rows].flatten(2)


def downlink_spec(
    model: ChannelModel,
    num_users: int,
    array: tuple[int, int],
    *,
    los: Literal["mixed", "los", "nlos"] = "nlos",
    pattern: Literal["omni", "38.901"] = "omni",
    placement: PlacementSpec | None = None,
) -> DatasetSpec:
    """Users of one sector of a model of TR 38.901, at one subcarrier and slot; array: rows and columns."""
    base = packaged_spec("llm4cp_uma_omni")
    return dataclasses.replace(
        base,
        name=f"downlink_{model}",
        num_users=num_users,
        channel=dataclasses.replace(base.channel, model=model, los=los),
        base_station=ArraySpec(num_rows=array[0], num_cols=array[1], antenna_pattern=pattern),
        placement=placement or PLACEMENTS[model],
        grid=dataclasses.replace(base.grid, num_uplink_subcarriers=1, num_slots=1),
    )


def draw_users(spec: DatasetSpec, num_drops: int, seed: int) -> UserChannels:
    """Drops of a spec of single-polarised arrays; each part of ``_DRAWN_AT_ONCE`` drops has its own seed."""
    from airlam.datasets.stochastic.synthesis import draw_drops  # Sionna loads in seconds

    rows, columns = spec.base_station.num_rows, spec.base_station.num_cols
    parts = []
    for part, start in enumerate(range(0, num_drops, _DRAWN_AT_ONCE)):
        count = min(_DRAWN_AT_ONCE, num_drops - start)
        links = draw_drops(spec, _part_seed(seed, part), count).links()
        parts.append(links[:, :, 0, 0, :, 0])  # [drops, users, ports]
    h = torch.cat(parts)
    return UserChannels(h=rearrange(h, "d u (c r) -> d u c r", c=columns, r=rows))


def _part_seed(seed: int, part: int) -> int:
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class DownlinkBatch:
    """h: complex64 [batch, num_users, num_bs_ant], of unit mean power; noise_variance: float32 [batch]."""

    h: torch.Tensor
    noise_variance: torch.Tensor

    def to(self, device: torch.device) -> "DownlinkBatch":
        """The same on another device."""
        return DownlinkBatch(h=self.h.to(device), noise_variance=self.noise_variance.to(device))

    @property
    def gram(self) -> torch.Tensor:
        """complex64 [batch, num_users, num_users]."""
        return gram_of(self.h, self.noise_variance)


@dataclass(frozen=True, slots=True, kw_only=True)
class DownlinkSamples:
    """Samples in groups, each with its own number of users and antennas; implements ``GroupedSamples``.

    num_users: by group. min_snr_db to max_snr_db: P / s2 of a user of unit mean power, a uniform draw.
    """

    pool: Sequence[UserChannels]
    num_users: tuple[int, ...]
    group_size: int
    seed: int
    min_snr_db: float = -3.0
    max_snr_db: float = 22.0
    gain_spread_db: float = GAIN_SPREAD_DB  # of users in two samples of five; the others hear the array alike
    left_out: tuple[int, ...] = ()  # numbers of antennas that no sample has
    smaller_arrays: bool = True  # corners of the pool's array, too

    def __len__(self) -> int:
        return len(self.num_users) * self.group_size

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """All alike."""
        return (self.group_size,) * len(self.num_users)

    def batch(self, indices: torch.Tensor) -> DownlinkBatch:
        """The samples at ``indices`` (int64 [n]), all of one group."""
        group = int(indices[0]) // self.group_size
        num_users, (columns, rows) = self.num_users[group], self._array(group)
        drawn = [self._sample(int(index), num_users, columns, rows) for index in indices]
        return DownlinkBatch(
            h=torch.stack([h for h, _ in drawn]),
            noise_variance=torch.tensor([noise for _, noise in drawn], dtype=torch.float32),
        )

    def _array(self, group: int) -> tuple[int, int]:
        """Columns and rows of a group's array, enough for its users."""
        draw = np.random.default_rng([self.seed, group, 1])
        _, _, columns, rows = self.pool[0].h.shape
        if not self.smaller_arrays:
            return columns, rows
        least = max(_FEWEST_ANTENNAS, _CROWDED * self.num_users[group])
        fitting = [
            (c, r)
            for c in range(1, columns + 1)
            for r in range(1, rows + 1)
            if c * r >= least and c * r not in self.left_out
        ] or [(columns, rows)]
        return fitting[draw.integers(len(fitting))]

    def _sample(self, index: int, num_users: int, columns: int, rows: int) -> tuple[torch.Tensor, float]:
        draw = np.random.default_rng([self.seed, index, 0])
        h = self.pool[int(draw.integers(len(self.pool)))].h
        drops, users = chosen_users(h.shape[0], h.shape[1], num_users, draw)
        chosen = h[torch.from_numpy(np.broadcast_to(drops, users.shape).copy()), torch.from_numpy(users)]
        chosen = unit_power(chosen[:, :columns, :rows].flatten(1))  # [num_users, num_bs_ant]
        if draw.random() < 0.4:
            gains = 10 ** (draw.normal(size=(num_users, 1)) * self.gain_spread_db / 20)
            chosen = chosen * torch.from_numpy(gains.clip(0.2, 5.0)).float()
        return chosen, float(10 ** (-draw.uniform(self.min_snr_db, self.max_snr_db) / 10))


def chosen_users(
    num_drops: int, users_per_drop: int, num_users: int, draw: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Drops (one of all, or one of each) and users of a sample, no user twice: int64."""
    if users_per_drop < num_users:
        drops = draw.choice(num_drops, num_users, replace=False)
        return drops, draw.integers(users_per_drop, size=num_users)
    users = draw.permutation(users_per_drop)[:num_users]
    # users of one drop share their surroundings, users of several do not
    return draw.integers(num_drops, size=1 if draw.random() < 0.5 else num_users), users


def _tell(on_progress: Progress, what: str, step: TrainingProgress) -> None:
    on_progress(what, step.step, step.num_steps, describe(step))


def unit_power(h: torch.Tensor) -> torch.Tensor:
    """Each user's channel at unit mean power an antenna: complex [..., num_bs_ant]; one of zeros stays so."""
    power = h.abs().square().mean(dim=-1, keepdim=True)
    return h / torch.where(power > 0, power, 1.0).sqrt()


def rate_loss(model: nn.Module, batch: DownlinkBatch) -> torch.Tensor:
    """``shortfall`` of a precoder: float32 [n]."""
    gram = batch.gram
    return shortfall(gram, model(gram))


def shortfall(gram: torch.Tensor, answers: Sequence[Shares]) -> torch.Tensor:
    """Minus the sum rate over regularised zero forcing's, earlier answers counting less: float32 [n]."""
    reference = sum_rates(gram, Shares.even(gram)).clamp_min(LEAST_RATE)  # [n]
    *earlier, last = (sum_rates(gram, answer) / reference for answer in answers)
    return -last - _EARLIER_STAGES * sum(earlier, torch.zeros_like(last))


def imitation_loss(model: nn.Module, batch: DownlinkBatch) -> torch.Tensor:
    """Kullback and Leibler's divergence of the last answer from WMMSE's powers: float32 [n]."""
    with torch.no_grad():
        w = wmmse(batch.h, batch.noise_variance, num_iterations=LABEL_ITERATIONS)
        wanted = structure_parameters(batch.h, w, batch.noise_variance)
    answer: Shares = model(batch.gram)[-1]
    found = answer.log_dual, answer.log_stream
    return torch.stack(
        [
            nn.functional.kl_div(log, want, reduction="none").sum(-1)
            for log, want in zip(found, wanted, strict=True)
        ]
    ).sum(0)


def tune_precoder(
    precoder: GraphPrecoder,
    samples: GroupedSamples[DownlinkBatch],
    validation: GroupedSamples[DownlinkBatch],
    spec: TrainingSpec,
    folder: Path,
    *,
    imitation_steps: int,
    on_progress: Progress = quiet,
    identity: str = "",
) -> TrainingSummary:
    """Trains in place: ``imitation_steps`` of WMMSE, then ``spec.num_steps`` of the rate itself.

    ``folder`` keeps metrics and checkpoints of the second part, its folder ``imitation`` those of the first;
    from both a killed training of the same ``identity`` goes on. The summary is the second part's.
    KeyboardInterrupt where the user interrupts.
    """
    parts = [("raising the rate", rate_loss, spec, folder)]
    if imitation_steps:
        every = max(1, imitation_steps // 4)
        first = dataclasses.replace(
            spec, num_steps=imitation_steps, validation_every_steps=every, checkpoint_every_steps=every
        )
        parts.insert(0, ("imitating WMMSE", imitation_loss, first, folder / IMITATION_FOLDER))
    for what, loss, own, place in parts:
        summary = fit(
            precoder,
            loss,
            samples,
            validation,
            own,
            place,
            partial(_tell, on_progress, what),
            identity=identity,
        )
        if summary.stop_reason == "interrupted":
            raise KeyboardInterrupt
    return summary
