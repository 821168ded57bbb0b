"""The graph precoders that the benchmark measures, with a backbone and without: trained once and kept."""

from typing import Any

import torch

from airlam.bench.beamforming.settings import GRAPH, PRECODERS, TRAINED_USERS, UNSEEN, Scale
from airlam.bench.kept import digest, kept_weights
from airlam.bench.trained import cache_folder
from airlam.model.graph_precoder import GraphPrecoder, build_precoder
from airlam.specs import spec_to_dict
from airlam.tasks.beamforming import (
    DownlinkBatch,
    DownlinkSamples,
    UserChannels,
    downlink_spec,
    draw_users,
    tune_precoder,
)
from airlam.tasks.channel_prediction import Progress

_TEST_SIZES = tuple(rows * columns for _, _, (rows, columns) in UNSEEN.values())


def trained_precoder(name: str, scale: Scale, on_progress: Progress) -> GraphPrecoder:
    """From the cache, where everything that decides it is the same; else trained into it.

    One with a backbone goes on from the graph precoder alone, which is trained first.
    """
    spec = PRECODERS[name]
    precoder = build_precoder(spec, seed=scale.training.seed)
    training, imitation_steps = scale.training, scale.imitation_steps
    if spec.backbone is not None:
        alone = trained_precoder(GRAPH, scale, on_progress)
        precoder.load_state_dict(alone.state_dict(), strict=False)
        training, imitation_steps = scale.backbone_training, 0
    folder = cache_folder() / "beamforming" / scale.name
    key = _key(name, scale)

    def train() -> None:
        samples, validation = _samples(scale)
        work = folder / "work" / f"{name}-{key}"
        tune_precoder(
            precoder,
            samples,
            validation,
            training,
            work,
            imitation_steps=imitation_steps,
            on_progress=on_progress,
        )

    kept_weights(precoder, folder, name, key, train)
    return precoder.eval()


def _key(name: str, scale: Scale) -> str:
    """Of everything that decides what a training ends in."""
    spec, data = spec_to_dict(PRECODERS[name]), _data_key(scale)
    if PRECODERS[name].backbone is None:
        return digest(spec, spec_to_dict(scale.training), data)
    return digest(spec, spec_to_dict(scale.backbone_training), data, _key(GRAPH, scale))


def _data_key(scale: Scale) -> list[Any]:
    return [scale.pool_drops, scale.num_groups, scale.group_size, scale.imitation_steps, TRAINED_USERS]


def _samples(scale: Scale) -> tuple["HeldSamples", "HeldSamples"]:
    """Training and validation, of drops of their own; arrays of up to 8 x 8, none of a test's size."""
    found = []
    for seed, drops in ((1, scale.pool_drops), (2, max(2, scale.pool_drops // 10))):
        pool = drawn_pools(drops, seed)
        num_groups = scale.num_groups if seed == 1 else min(len(TRAINED_USERS), scale.num_groups)
        users = tuple(TRAINED_USERS[group % len(TRAINED_USERS)] for group in range(num_groups))
        size = scale.group_size if seed == 1 else max(4, scale.group_size // 16)
        drawn = DownlinkSamples(pool=pool, num_users=users, group_size=size, seed=seed, left_out=_TEST_SIZES)
        found.append(HeldSamples(drawn))
    return found[0], found[1]


def drawn_pools(drops: int, seed: int) -> list[UserChannels]:
    """Users that training schedules from, of three kinds of cell, before an array of 8 x 8."""
    kinds = (
        downlink_spec("uma", 16, (8, 8)),
        downlink_spec("uma", 16, (8, 8), los="mixed", pattern="38.901"),
        downlink_spec("umi", 16, (8, 8)),
    )
    return [draw_users(spec, drops, 10 * seed + kind) for kind, spec in enumerate(kinds)]


class HeldSamples:
    """Samples that are drawn once, a group at a time, and kept in memory; implements ``GroupedSamples``."""

    def __init__(self, source: DownlinkSamples) -> None:
        self.group_sizes = source.group_sizes
        self._source = source
        self._groups: dict[int, DownlinkBatch] = {}

    def __len__(self) -> int:
        return len(self._source)

    def batch(self, indices: torch.Tensor) -> DownlinkBatch:
        """The samples at ``indices`` (int64 [n]), all of one group."""
        size = self._source.group_size
        group = int(indices[0]) // size
        if group not in self._groups:
            self._groups[group] = self._source.batch(torch.arange(size) + group * size)
        held, rows = self._groups[group], indices - group * size
        return DownlinkBatch(h=held.h[rows], noise_variance=held.noise_variance[rows])
