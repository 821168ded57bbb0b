"""Downlinks of a dataset: what a base station serves, what it knows of it, and what precoders learn from.

A drop is seen at a few pairs of a slot and a subcarrier, the same for all, spread over time and band. Each
user is scaled to unit mean power (power control); its first antenna receives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.radio.beamforming import sure_channels
from airlam.radio.pilots import LmmseEstimator, observe_contaminated, reused_pilots
from airlam.specs import BeamformingSpec, TrainingSpec, require
from airlam.split.streams import stream_seed
from airlam.tasks.beamforming import (
    GAIN_SPREAD_DB,
    DownlinkBatch,
    DownlinkSamples,
    UserChannels,
    unit_power,
)
from airlam.tasks.channel_prediction import Progress
from airlam.training.batches import GroupedSamples
from airlam.units import db_to_linear

NUM_VIEWS = 4  # pairs of slot and subcarrier
VALIDATION_SAMPLES = 256
GROUP_SAMPLES = 512  # at most; each group has its own numbers of users and antennas
_READ_DROPS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Users' channels at ``NUM_VIEWS`` slots and subcarriers: complex64 [drops, users, views, num_bs_ant].

    drops: which drops of a split these are, int64 [drops].
    """

    h: torch.Tensor
    drops: NDArray[np.int64]

    def select(self, index: NDArray[np.int64]) -> "Views":
        """Of some of these drops."""
        return Views(h=self.h[torch.from_numpy(index)], drops=self.drops[index])


def read_views(dataset: ChannelDataset, split: str, drops: NDArray[np.int64], on_progress: Progress) -> Views:
    """Views of some drops of a split.

    Drops with a user whom nothing reaches are left out. DataError where none is left, and for channels that
    are not finite.
    """
    grid = dataset.spec.grid
    slots, subcarriers = view_places(grid.num_slots, grid.num_uplink_subcarriers)
    parts = []
    for start in range(0, len(drops), _READ_DROPS):
        links = dataset.batch(split, drops[start : start + _READ_DROPS]).links()
        seen = links[:, :, slots, 0, :, subcarriers]  # [views, drops, users, num_bs_ant]
        parts.append(rearrange(seen, "v d u m -> d u v m"))
        on_progress(f"reading {split}", min(start + _READ_DROPS, len(drops)), len(drops), "")
    views = checked(torch.cat(parts), dataset, split)
    served = (views.abs().amax(dim=-1) > 0).all(dim=(1, 2))  # [drops]
    if not served.any():
        raise DataError(f"{dataset.spec.name}: in every {split} drop there is a user whom nothing reaches")
    return Views(h=views[served], drops=drops[served.numpy()])


def checked(h: torch.Tensor, dataset: ChannelDataset, split: str) -> torch.Tensor:
    """DataError where channels are not finite."""
    if not torch.isfinite(torch.view_as_real(h)).all():
        raise DataError(
            f"{dataset.spec.name}: NaN or infinite channels in split {split}; airlam dataset verify names "
            "the shard, airlam generate draws it anew"
        )
    return h


def view_places(num_slots: int, num_subcarriers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots and subcarriers of the views: int64 [NUM_VIEWS] each, both evenly spread, paired as they come."""
    slots = torch.linspace(0, num_slots - 1, NUM_VIEWS).round().long()
    # subcarriers in another order than slots, so that the pairs do not lie on one line
    subcarriers = torch.linspace(0, num_subcarriers - 1, NUM_VIEWS).round().long()
    return slots, subcarriers[torch.tensor([2, 0, 3, 1])]


def all_drops(dataset: ChannelDataset, split: str) -> NDArray[np.int64]:
    """DataError where a split has none."""
    count = dataset.num_drops(split)
    if not count:
        raise DataError(f"{dataset.spec.name} has no {split} drops; generate it with drops.{split} > 0")
    return np.arange(count, dtype=np.int64)


def user_pool(views: torch.Tensor, dataset: ChannelDataset) -> list[UserChannels]:
    """One pool a view; both polarisations stand beside each other as columns of one array.

    views: complex64 [drops, users, views, num_bs_ant].
    """
    rows = dataset.spec.base_station.num_rows
    whole = rearrange(views, "d u v (c r) -> v d u c r", r=rows)
    return [UserChannels(h=h) for h in whole]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a base station knows of some downlinks.

    h: complex64 [batch, num_users, num_bs_ant]; error_covariance: of its error, complex64 [batch, num_users,
    num_bs_ant, num_bs_ant], or None where h is the truth.
    """

    h: torch.Tensor
    error_covariance: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilots:
    """received: after correlation, complex64 [batch, num_users, num_bs_ant].

    reused: which of the pilots a stranger sends, too, bool [batch, num_users].
    """

    received: torch.Tensor
    reused: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotCsi:
    """Channels from uplink pilots, by linear estimation with the covariance of training drops.

    strangers: who sends the same pilots elsewhere, complex64 [num_strangers, num_bs_ant] of unit mean power.
    """

    spec: BeamformingSpec
    estimator: LmmseEstimator
    strangers: torch.Tensor

    @staticmethod
    def fit(spec: BeamformingSpec, views: torch.Tensor) -> "PilotCsi":
        """Of training drops, complex64 [drops, users, views, num_bs_ant]; users of a cell are like those of
        the next, which share their pilots.
        """
        rows = unit_power(views.flatten(end_dim=-2))  # [num_rows, num_bs_ant]
        rows = rows[rows.abs().square().sum(-1) > 0]
        amplitude = math.sqrt(db_to_linear(spec.interferer_db))
        return PilotCsi(spec=spec, estimator=LmmseEstimator.fit(rows, amplitude * rows), strangers=rows)

    def know(self, h: torch.Tensor, seeds: Sequence[int]) -> Known:
        """What pilots tell of each downlink; what is random follows from its seed.

        h: complex64 [batch, num_users, num_bs_ant], of unit mean power.
        """
        return self.estimate(self.observe(h, seeds))

    def observe(self, h: torch.Tensor, seeds: Sequence[int]) -> "Pilots":
        """What is received of each downlink's pilots."""
        seen = [self._observe(one, seed) for one, seed in zip(h, seeds, strict=True)]
        received, reused = zip(*seen, strict=True)
        return Pilots(received=torch.stack(received), reused=torch.stack(reused))

    def estimate(self, pilots: "Pilots") -> Known:
        """The channels, and how far they may be wrong."""
        found = self.estimator.estimate(pilots.received, pilots.reused, self.noise_variance)
        return Known(h=found[0], error_covariance=found[1])

    @property
    def noise_variance(self) -> float:
        """Of an observed channel coefficient."""
        return db_to_linear(-self.spec.pilot_snr_db)

    def _observe(self, h: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One downlink's pilots, received: complex64 [num_users, num_bs_ant], and whose are reused."""
        draw = torch.Generator().manual_seed(seed)
        num_users = len(h)
        reused = reused_pilots((num_users,), self.spec.reused_share, draw)
        chosen = torch.randint(len(self.strangers), (num_users,), generator=draw)
        others = math.sqrt(db_to_linear(self.spec.interferer_db)) * self.strangers[chosen]
        return observe_contaminated(h, others, reused, self.noise_variance * num_users, draw), reused


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedSamples:
    """Samples of which a precoder sees estimates: channels that stand for estimate and error together, of
    noise and power 1 (``sure_channels``). Implements ``GroupedSamples``.
    """

    clean: DownlinkSamples
    pilots: PilotCsi

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """As those of the clean ones."""
        return self.clean.group_sizes

    def batch(self, indices: torch.Tensor) -> DownlinkBatch:
        """The samples at ``indices`` (int64 [n]), all of one group."""
        true = self.clean.batch(indices)
        seeds = [stream_seed(self.clean.seed, int(index), "pilots") for index in indices]
        known = self.pilots.know(true.h, seeds)
        assert known.error_covariance is not None
        sure = sure_channels(known.h, known.error_covariance, true.noise_variance)
        return DownlinkBatch(h=sure.h, noise_variance=torch.ones_like(true.noise_variance))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Training drops of one owner, all of a dataset's or one device's; or drops to validate on."""

    dataset: ChannelDataset
    views: Views
    spec: BeamformingSpec
    pilots: PilotCsi | None

    @staticmethod
    def of(
        dataset: ChannelDataset, views: Views, spec: BeamformingSpec, pilots: PilotCsi | None = None
    ) -> "Source":
        """pilots: as fitted to training drops, where these are not; None: fitted to these.

        SpecError where there are too few drops for as many users as are scheduled together.
        """
        drops, users = views.h.shape[:2]
        require(
            users >= spec.max_users or drops >= spec.max_users,
            f"max_users is {spec.max_users}, but there are {drops} drops of {users} users; lower it or "
            "generate more drops",
        )
        if pilots is None and spec.csi == "pilots":
            pilots = PilotCsi.fit(spec, views.h)
        return Source(dataset=dataset, views=views, spec=spec, pilots=pilots)

    def training(self, training: TrainingSpec, seed: int) -> GroupedSamples[DownlinkBatch]:
        """``num_samples`` in groups, numbers of users taking turns; give or take what makes groups alike."""
        users = tuple(range(self.spec.min_users, self.spec.max_users + 1))
        turns = math.ceil(training.num_samples / (GROUP_SAMPLES * len(users)))
        groups = users * turns
        size = math.ceil(training.num_samples / len(groups))
        return self._samples(groups, size, seed, smaller_arrays=self.spec.smaller_arrays)

    def validation(self, seed: int) -> GroupedSamples[DownlinkBatch]:
        """Of the whole array, all numbers of users alike."""
        users = tuple(range(self.spec.min_users, self.spec.max_users + 1))
        return self._samples(users, math.ceil(VALIDATION_SAMPLES / len(users)), seed, smaller_arrays=False)

    def of_users(self, num_users: int, num_samples: int, seed: int) -> GroupedSamples[DownlinkBatch]:
        """One group, of the whole array."""
        return self._samples((num_users,), num_samples, seed, smaller_arrays=False)

    def _samples(
        self, groups: tuple[int, ...], size: int, seed: int, *, smaller_arrays: bool
    ) -> GroupedSamples[DownlinkBatch]:
        spec = self.spec
        clean = DownlinkSamples(
            pool=user_pool(self.views.h, self.dataset),
            num_users=groups,
            group_size=size,
            seed=seed,
            min_snr_db=spec.min_snr_db,
            max_snr_db=spec.max_snr_db,
            smaller_arrays=smaller_arrays and self.pilots is None,
            # the estimator's covariances are those of users at unit mean power
            gain_spread_db=GAIN_SPREAD_DB if self.pilots is None else 0.0,
        )
        return clean if self.pilots is None else EstimatedSamples(clean=clean, pilots=self.pilots)
