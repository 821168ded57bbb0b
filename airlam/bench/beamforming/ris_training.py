"""The surface precoder that the benchmark measures: trained on the rate itself, once, and kept."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn

from airlam.bench.beamforming.ris_channels import BLOCKED_DB, TX_POWER_DBM, Shape, draw_links
from airlam.bench.kept import digest, kept_weights
from airlam.bench.trained import cache_folder
from airlam.model.graph_precoder import GraphPrecoder, gram_of, sum_rates
from airlam.model.ris_precoder import SurfacePrecoder, SurfacePrecoderSpec, build_surface_precoder
from airlam.model.storage import fingerprint
from airlam.radio.ris import SurfaceLinks, weighted_rate
from airlam.specs import TrainingSpec, spec_to_dict
from airlam.tasks.beamforming import LEAST_RATE
from airlam.tasks.channel_prediction import Progress
from airlam.tasks.runs import describe
from airlam.training.loop import fit
from airlam.training.metrics import Progress as TrainingProgress

POOL_USERS, POOL_ARRAY, POOL_SURFACE = 8, (4, 4), (10, 10)
TRAINED_USERS = (1, 2, 3, 4, 6, 8)
LEFT_OUT_ELEMENTS = (81,)  # a test's, within the sizes of training
_ARRAYS: tuple[Shape, ...] = ((2, 2), (2, 3), (2, 4), (3, 3), (4, 4))
_FEWEST_ELEMENTS = 9
_GAIN_DB = 10.0  # up or down, of the direct link and of the surface's, each by itself
_EARLIER_STAGES = 0.1  # weight of the rates before the last
_NAME = "surface"


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceTraining:
    """Sizes of a training. num_groups: triples of users, array and surface."""

    spec: SurfacePrecoderSpec
    pool_drops: int
    num_groups: int
    group_size: int
    training: TrainingSpec


class SurfaceSamples:
    """Samples in groups, each with numbers of users, antennas, elements; implements ``GroupedSamples``.

    A sample takes its three links from three drops of the pool, users of one drop, with gains of their own.
    """

    def __init__(self, pool: SurfaceLinks, num_groups: int, group_size: int, seed: int) -> None:
        self.group_sizes = (group_size,) * num_groups
        self._pool, self._size = pool, group_size
        draw = np.random.default_rng(seed)
        self._shapes = [
            _shapes(TRAINED_USERS[group % len(TRAINED_USERS)], draw) for group in range(num_groups)
        ]
        shape = (num_groups * group_size, 2)
        self._drops = torch.from_numpy(draw.integers(len(pool.direct), size=(*shape[:1], 3)))
        orders = draw.permuted(np.broadcast_to(np.arange(POOL_USERS), (*shape, POOL_USERS)), axis=-1)
        self._users = torch.from_numpy(orders)  # [samples, 2, POOL_USERS]
        gains = 10 ** (draw.uniform(-_GAIN_DB, _GAIN_DB, size=shape) / 20)
        self._gains = torch.from_numpy(gains).float()[..., None, None]  # [samples, 2, 1, 1]

    def __len__(self) -> int:
        return sum(self.group_sizes)

    def batch(self, indices: torch.Tensor) -> SurfaceLinks:
        """The samples at ``indices`` (int64 [n]), all of one group."""
        num_users, array, surface = self._shapes[int(indices[0]) // self._size]
        drops, gains = self._drops[indices], self._gains[indices]
        direct_users, surface_users = self._users[indices, :, :num_users].unbind(1)
        direct = self._pool.direct[drops[:, :1], direct_users]  # [n, users, antennas]
        reflected = self._pool.surface_users[drops[:, 1:2], surface_users]  # [n, users, elements]
        incident = self._pool.base_surface[drops[:, 2]]  # [n, elements, antennas]
        incident = _corner(_corner(incident, POOL_ARRAY, array).mT, POOL_SURFACE, surface).mT
        return SurfaceLinks(
            direct=gains[:, 0] * _corner(direct, POOL_ARRAY, array),
            surface_users=gains[:, 1] * _corner(reflected, POOL_SURFACE, surface),
            base_surface=incident,
        )


def _shapes(num_users: int, draw: np.random.Generator) -> tuple[int, Shape, Shape]:
    """Users, and a corner each of array and surface."""
    arrays = [shape for shape in _ARRAYS if shape[0] * shape[1] >= 0.75 * num_users]
    rows, columns = POOL_SURFACE
    surfaces = [
        (r, c)
        for r in range(2, rows + 1)
        for c in range(2, columns + 1)
        if r * c >= _FEWEST_ELEMENTS and r * c not in LEFT_OUT_ELEMENTS
    ]
    return num_users, arrays[draw.integers(len(arrays))], surfaces[draw.integers(len(surfaces))]


def _corner(links: torch.Tensor, panel: Shape, corner: Shape) -> torch.Tensor:
    """Of a panel of rows and columns, whose columns stand one after another: complex [..., elements]."""
    grid = rearrange(links, "... (c r) -> ... c r", r=panel[0])
    return grid[..., : corner[1], : corner[0]].flatten(-2)


def rate_loss(model: nn.Module, links: SurfaceLinks) -> torch.Tensor:
    """Minus the logarithm of the sum rate, earlier stages counting less: float32 [n]."""
    course, answers = model(links)
    last = sum_rates(gram_of(course.h, 1.0), answers[-1])
    earlier = [weighted_rate(received) for received in course.received[1:]]
    logs = [rate.clamp_min(LEAST_RATE).log() for rate in (last, *earlier)]
    return -logs[0] - _EARLIER_STAGES * sum(logs[1:], torch.zeros_like(last))


def trained_surface_precoder(
    name: str, scale: SurfaceTraining, precoder: GraphPrecoder, on_progress: Progress
) -> SurfacePrecoder:
    """From the cache's folder ``name``, where everything that decides it is the same; else trained into it.

    precoder: a trained one of ``scale.spec.precoder``, which is tuned on with the phases.
    """
    model = build_surface_precoder(scale.spec, seed=scale.training.seed)
    start = {key: value.clone() for key, value in precoder.state_dict().items()}
    model.precoder.load_state_dict(start)
    folder = cache_folder() / "beamforming" / name
    key = _key(scale, start)

    def train() -> None:
        samples, validation = _samples(scale)
        work = folder / "work" / f"{_NAME}-{key}"
        tell = partial(_tell, on_progress)
        summary = fit(model, rate_loss, samples, validation, scale.training, work, tell, identity=key)
        if summary.stop_reason == "interrupted":
            raise KeyboardInterrupt

    kept_weights(model, folder, _NAME, key, train)
    return model.eval()


def _samples(scale: SurfaceTraining) -> tuple[SurfaceSamples, SurfaceSamples]:
    """Training and validation, of drops of their own."""
    groups = min(2 * len(TRAINED_USERS), scale.num_groups)
    return (
        _drawn(scale.pool_drops, scale.num_groups, scale.group_size, seed=9001),
        _drawn(max(2, scale.pool_drops // 8), groups, max(4, scale.group_size // 32), seed=9002),
    )


def _drawn(pool_drops: int, num_groups: int, group_size: int, seed: int) -> SurfaceSamples:
    pool = draw_links(POOL_USERS, POOL_ARRAY, POOL_SURFACE, pool_drops, seed)
    return SurfaceSamples(pool, num_groups, group_size, seed)


def _key(scale: SurfaceTraining, start: dict[str, torch.Tensor]) -> str:
    """Of everything that decides what a training ends in."""
    sizes: list[Any] = [
        scale.pool_drops,
        scale.num_groups,
        scale.group_size,
        TRAINED_USERS,
        LEFT_OUT_ELEMENTS,
    ]
    channels: list[Any] = [POOL_USERS, POOL_ARRAY, POOL_SURFACE, _ARRAYS, BLOCKED_DB, TX_POWER_DBM]
    channels += [_FEWEST_ELEMENTS, _GAIN_DB, _EARLIER_STAGES]
    spec = dataclasses.asdict(scale.spec)
    return digest(spec, spec_to_dict(scale.training), sizes, channels, fingerprint(start))


def _tell(on_progress: Progress, step: TrainingProgress) -> None:
    on_progress("training the surface's phases", step.step, step.num_steps, describe(step))
