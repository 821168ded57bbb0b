"""Shards: the drops that are drawn from one seed, the unit of resuming and of sharing out work.

A shard's seed follows from the spec's seed, the split and the shard's index, so no split shares a drop with
another and no shard depends on the others: any process may draw it, in any order. Drawing always runs on one
thread of torch, because the blocking of a matrix product, and so its rounding, may follow the number of
threads; processes are what runs in parallel.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airlam.datasets.fields import BATCH_BYTES, drop_bytes
from airlam.datasets.layout import SPLITS, ShardDigest, batch_arrays, require_finite
from airlam.datasets.unfinished import UnfinishedFile
from airlam.specs import DatasetSpec

MAX_PATHS = 30  # of CDL-B to E, and of UMi, UMa and RMa with their sub-clusters and line of sight
RAYS_PER_PATH = 20
RAY_BYTES = 300  # of angles, phases and what Sionna shuffles them with, while they are drawn
TRACED_PATHS = 100  # of one user in a city with reflections of order three, from above
BLOCK_BYTES = 64 * 2**20  # of the rays that are drawn at once; larger is not faster
CANDIDATES_AT_ONCE = 8_000_000  # rays by interactions by points that are traced together, if not one point's
CANDIDATE_BYTES = 40
PIXEL_BYTES = 200  # of an image while it is rendered
CHANNEL_COPIES = 4  # of the channels under way: as summed, in their axes, as stored, and one to spare
RESPONSE_BYTES = 32 * 2**20  # of the terms of rays that are turned into channels together
PROCESS_BYTES = 600 * 2**20  # interpreter, torch and Sionna, before the first drop
CALLER_BYTES = 300 * 2**20  # the same without Sionna
RAY_TRACING_BYTES = 1216 * 2**20  # with a scene and Dr.Jit's compiled kernels, before the first ray

Arrays = dict[str, NDArray[Any]]
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard of a split: its drops, and the seed from which each block of them gets its own."""

    split: str
    index: int
    first_drop: int  # of the split
    num_drops: int
    seed: int

    def __str__(self) -> str:
        return f"{self.split} shard {self.index}"


def plan_shards(spec: DatasetSpec) -> list[Shard]:
    """Every shard with its seed, in the order of the file."""
    shards = []
    for number, split in enumerate(SPLITS):
        total = getattr(spec.drops, split)
        for index, start in enumerate(range(0, total, spec.shard_drops)):
            seed = np.random.SeedSequence([spec.seed, number, index]).generate_state(1, np.uint64)[0]
            size = min(spec.shard_drops, total - start)
            shards.append(Shard(split=split, index=index, first_drop=start, num_drops=size, seed=int(seed)))
    return shards


def plan_blocks(spec: DatasetSpec, shard: Shard) -> list[tuple[int, int]]:
    """Seed and number of drops of each block of a shard; ``draw_drops`` of them gives the stored drops."""
    block = drops_per_block(spec)
    num_blocks = math.ceil(shard.num_drops / block)
    seeds = np.random.SeedSequence(shard.seed).generate_state(num_blocks, np.uint64).tolist()
    return [(seed, min(block, shard.num_drops - index * block)) for index, seed in enumerate(seeds)]


def drops_per_block(spec: DatasetSpec) -> int:
    """Drops drawn at once. It decides which random numbers a drop gets, so it follows from the spec alone."""
    if spec.channel.is_ray_traced:  # a shard is one trajectory
        return spec.shard_drops
    rays_bytes = spec.num_users * MAX_PATHS * RAYS_PER_PATH * RAY_BYTES
    return max(1, min(spec.shard_drops, BLOCK_BYTES // rays_bytes))


def working_bytes(spec: DatasetSpec) -> int:
    """Memory that drawing a block takes, from above: its rays, and the channels that are under way."""
    pairs, num_slots, num_subcarriers = (
        spec.user.num_ports * spec.base_station.num_ports,
        spec.grid.num_slots,
        spec.grid.num_subcarriers,
    )
    if spec.channel.is_ray_traced:  # a trajectory at once, with its sensors' readings
        paths = spec.num_users * TRACED_PATHS * (pairs * num_slots + num_subcarriers)
        camera = spec.sensors.camera
        image = 0 if camera is None else PIXEL_BYTES * camera.width_px * camera.height_px
        of_a_point = 0 if spec.site is None else spec.site.num_rays * spec.site.max_depth
        rays = CANDIDATE_BYTES * max(CANDIDATES_AT_ONCE, of_a_point)
        return spec.shard_drops * (8 * 3 * paths + CHANNEL_COPIES * drop_bytes(spec)) + image + rays
    rays = spec.num_users * MAX_PATHS * RAYS_PER_PATH
    link = 8 * (MAX_PATHS * num_slots * pairs + MAX_PATHS * RAYS_PER_PATH * (2 * pairs + 3 * num_slots))
    channels = CHANNEL_COPIES * max(BATCH_BYTES, drop_bytes(spec))
    return drops_per_block(spec) * rays * RAY_BYTES + channels + RESPONSE_BYTES + 3 * link


def drawing_bytes(spec: DatasetSpec) -> int:
    """Memory that a process takes which draws shards of the spec, libraries included, from above."""
    return (RAY_TRACING_BYTES if spec.channel.is_ray_traced else PROCESS_BYTES) + working_bytes(spec)


def caller_bytes(spec: DatasetSpec) -> int:
    """Memory of a process that hands shards out to others; of a site, it computes the map."""
    return RAY_TRACING_BYTES if spec.channel.is_ray_traced else CALLER_BYTES


def draw_blocks(spec: DatasetSpec, shard: Shard) -> Iterator[Arrays]:
    """A shard's fields, some drops at a time: each array is [drops, *field.shape] in its dtype."""
    if spec.channel.is_ray_traced:
        with one_thread():
            arrays = _draw_trajectory(spec, shard)
        yield arrays
        return
    from airlam.datasets.stochastic.synthesis import draw_batches  # Sionna, which not all need

    for seed, num_drops in plan_blocks(spec, shard):
        batches = draw_batches(spec, seed, num_drops)
        while True:
            with one_thread():
                batch = next(batches, None)
            if batch is None:
                break
            yield batch_arrays(batch, spec)


def _draw_trajectory(spec: DatasetSpec, shard: Shard) -> Arrays:
    """A ray-traced shard, which is one trajectory."""
    from airlam.datasets.sites import draw_trajectory

    batch = draw_trajectory(spec, shard.split, shard.index, shard.seed, shard.num_drops)
    return batch_arrays(batch, spec)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as every drop is drawn; afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_shard(
    spec: DatasetSpec,
    shard: Shard,
    blocks: Iterable[Arrays],
    file: UnfinishedFile,
    on_block: Callable[[int], None] = lambda num_drops: None,
) -> str:
    """Writes a shard's blocks to their places and returns its SHA-256, as ``ShardDigest`` defines it.

    on_block(num_drops) is called after each block. DataError names a drop with NaN; OSError where the disk
    is full.
    """
    digest = ShardDigest(spec)
    row = shard.first_drop
    for arrays in blocks:
        require_finite(arrays, shard.split, row)
        for name, values in arrays.items():
            file.write(shard.split, name, row, values)
        digest.update(arrays)
        size = len(arrays["h_freq"])
        row += size
        on_block(size)
    return digest.hexdigest()


class Tally:
    """What is drawn of a file: notes finished shards in it, and tells whoever watches."""

    def __init__(self, file: UnfinishedFile, shards: Iterable[Shard], on_progress: Progress) -> None:
        self.file = file
        self._drawn = {shard: 0 for shard in shards}
        self._on_progress = on_progress
        for shard in self._drawn:
            if file.is_finished(shard.split, shard.index):
                self._drawn[shard] = shard.num_drops
        self._tell()

    @property
    def missing(self) -> list[Shard]:
        """The shards that are not in the file, in its order."""
        return [shard for shard in self._drawn if not self.file.is_finished(shard.split, shard.index)]

    def add(self, shard: Shard, num_drops: int) -> None:
        """So many more drops of a shard were drawn."""
        self._drawn[shard] += num_drops
        self._tell()

    def restart(self, shard: Shard) -> None:
        """A shard must be drawn again."""
        self._drawn[shard] = 0
        self._tell()

    def finish(self, shard: Shard, sha256: str) -> None:
        """All of a shard was written: it goes to disk, and counts as finished."""
        self.file.finish(shard.split, shard.index, shard.seed, sha256)

    def _tell(self) -> None:
        total = sum(shard.num_drops for shard in self._drawn)
        self._on_progress("drops", sum(self._drawn.values()), total, "")
