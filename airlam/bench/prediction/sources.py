"""Links that a setting is measured on: drawn in memory, or somebody else's."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from airlam.datasets.exchange import ForeignLinks, load_quadriga
from airlam.datasets.shards import one_thread, plan_blocks, plan_shards
from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.errors import DataError
from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.base import TrainingLinks
from airlam.specs import DatasetSpec, PredictionSpec
from airlam.tasks.channel_prediction import LinkSource, split_links
from airlam.tasks.comparison import BATCH_LINKS


@dataclass(slots=True, kw_only=True)  # LinkSource asks for attributes that can be set
class HeldLinks:
    """Links in memory; a ``LinkSource``.

    links: complex64 [num_links, num_slots, num_user_ant, num_bs_ant, num_subcarriers]; speed_m_per_s: float32
    [num_links]; every link is a drop of its own.
    """

    setting: PredictionSetting
    links: torch.Tensor
    speed_m_per_s: torch.Tensor
    links_per_drop: int = 1

    def __len__(self) -> int:
        return len(self.links)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """The links at ``indices``."""
        return self.links[torch.from_numpy(indices)]

    def speeds_m_per_s(self, indices: np.ndarray) -> torch.Tensor:
        """Speeds of the users at ``indices``."""
        return self.speed_m_per_s[torch.from_numpy(indices)]

    def training(self) -> TrainingLinks:
        """All of them, clean, for what is fitted."""
        history, future = split_links(self.links, self.setting)
        return TrainingLinks(history=history, future=future)


def drawn_setting(
    spec: DatasetSpec, prediction: PredictionSpec, max_doppler_hz: float | None = None
) -> PredictionSetting:
    """Of the spec's links; ``max_doppler_hz`` is what predictors are to expect, where it is not that of the
    spec's fastest user.
    """
    setting = PredictionSetting.from_dataset(
        spec, prediction.num_history, prediction.num_horizon, prediction.duplex
    )
    return setting if max_doppler_hz is None else replace(setting, max_doppler_hz=max_doppler_hz)


def drawn_links(
    spec: DatasetSpec, split: str, prediction: PredictionSpec, max_doppler_hz: float | None = None
) -> HeldLinks:
    """The drops of a split, one user each, as ``generate`` would store them; see ``drawn_setting``."""
    setting = drawn_setting(spec, prediction, max_doppler_hz)
    with one_thread():  # as generation draws
        batches = [
            draw_drops(spec, seed, size)
            for shard in plan_shards(spec)
            if shard.split == split
            for seed, size in plan_blocks(spec, shard)
        ]
    return HeldLinks(
        setting=setting,
        links=torch.cat([batch.links()[:, 0] for batch in batches]),
        speed_m_per_s=torch.cat([batch.speed_m_per_s[:, 0] for batch in batches]),
    )


def foreign_links(links: ForeignLinks, duplex: str) -> HeldLinks:
    """A QuaDRiGa set as a source: uplink, for fdd with the downlink's future beside it.

    The downlink's history, which no file has and nobody reads, is zero.
    """
    uplink = torch.cat([links.history, links.future_tdd], dim=1)  # [num_links, slots, 1, ports, f]
    speed = links.speed_m_per_s
    if duplex == "tdd":
        return HeldLinks(setting=links.setting("tdd"), links=uplink, speed_m_per_s=speed)
    future = links.future("fdd")  # [num_links, horizon, 1, ports, f]
    downlink = torch.cat([torch.zeros_like(links.history), future], dim=1)  # [num_links, slots, 1, ports, f]
    both = torch.cat([uplink, downlink], dim=-1)  # [num_links, slots, 1, ports, 2 f]
    return HeldLinks(setting=links.setting("fdd"), links=both, speed_m_per_s=speed)


def load_foreign(path: Path, duplex: str) -> tuple[HeldLinks, HeldLinks]:
    """A QuaDRiGa set to measure on, and the set beside it that predictors are fitted on.

    DataError where the second, ``*_train.npz`` beside ``*_dev.npz`` or ``*_test.npz``, is not there.
    """
    test = load_quadriga(path)
    beside = path.with_name(path.name.replace("_dev", "_train").replace("_test", "_train"))
    if beside == path or not beside.exists():
        raise DataError(
            f"{beside} is not there; classical predictors are fitted on it: give a *_dev.npz or *_test.npz "
            "with its *_train.npz beside it"
        )
    return foreign_links(test, duplex), foreign_links(load_quadriga(beside), duplex)


def link_power(source: LinkSource) -> torch.Tensor:
    """Mean power of each link's history, float32 [num_links]."""
    starts = range(0, len(source), BATCH_LINKS)
    parts = [source.read(np.arange(start, min(start + BATCH_LINKS, len(source)))) for start in starts]
    histories = (split_links(part, source.setting)[0] for part in parts)
    return torch.cat([history.abs().square().mean(dim=(1, 2, 3, 4)) for history in histories])
