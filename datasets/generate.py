"""Writes a dataset shard by shard, within a memory budget, so that a killed run goes on where it stopped.

Each shard is drawn from a seed of its own, which follows from the spec's seed, the split and the shard's
index, so no split shares a drop with another and no shard depends on the others. Finished shards wait in
``.NAME.parts`` beside the target until all are there; the target then appears whole. The bytes depend on
the spec and the versions of the software only, neither on interruptions nor on the budget.
"""

import errno
import fcntl
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from airlam.datasets.fields import dataset_fields, drop_bytes, drop_shape
from airlam.datasets.layout import (
    LIBVER,
    SPLITS,
    batch_arrays,
    create_field,
    file_bytes,
    new_dataset,
    new_hdf5,
    refuse_existing,
    refuse_folder,
    software_versions,
    total_drops,
    write_shard,
)
from airlam.datasets.store import ChannelDataset
from airlam.datasets.synthesis import draw_drops
from airlam.errors import DataError, SpecError
from airlam.files import recover, whole_file
from airlam.specs import DatasetSpec, spec_to_toml

MAX_CLUSTERS = 25  # of CDL-B to E and of UMi, UMa and RMa with their sub-clusters
RAYS_PER_CLUSTER = 20
BLOCK_BYTES = 64 * 2**20  # intermediates of the drops that are drawn at once; larger is not faster
PROCESS_BYTES = 600 * 2**20  # interpreter, torch and Sionna, before the first drop
DISK_SLACK = 1.02
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[str, int, int, str], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard of a split: its drops, and the seed of each block of drops that are drawn together."""

    split: str
    index: int
    num_drops: int
    seed: int

    @property
    def file_name(self) -> str:
        """Name of its file among the parts."""
        return f"{self.split}-{self.index:06d}.h5"


def working_bytes_per_drop(spec: DatasetSpec) -> int:
    """Memory that drawing one drop takes, from above.

    Rays by antennas, paths by antennas by slots, and the channel, in complex64 values with the copies that
    the matrix products need.
    """
    *ends, num_slots, num_subcarriers = drop_shape(spec)
    antennas = math.prod(ends)  # every user's pairs of ports
    rays = MAX_CLUSTERS * RAYS_PER_CLUSTER * (4 * antennas + spec.num_users * (3 * num_slots + 30))
    paths = 3 * MAX_CLUSTERS * antennas * num_slots + 3 * MAX_CLUSTERS * spec.num_users * num_subcarriers
    channel = 3 * antennas * num_slots * num_subcarriers
    return 8 * (rays + paths + channel)


def drops_per_block(spec: DatasetSpec) -> int:
    """Drops drawn at once. It decides which random numbers a drop gets, so it follows from the spec alone."""
    return max(1, min(spec.shard_drops, BLOCK_BYTES // working_bytes_per_drop(spec)))


def plan_shards(spec: DatasetSpec) -> list[Shard]:
    """Every shard with its seed, in the order of writing."""
    shards = []
    for number, split in enumerate(SPLITS):
        total = getattr(spec.drops, split)
        for index, start in enumerate(range(0, total, spec.shard_drops)):
            seed = np.random.SeedSequence([spec.seed, number, index]).generate_state(1, np.uint64)[0]
            size = min(spec.shard_drops, total - start)
            shards.append(Shard(split=split, index=index, num_drops=size, seed=int(seed)))
    return shards


def generate(
    spec: DatasetSpec,
    path: Path,
    *,
    memory_budget_bytes: int = 2 * 2**30,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> None:
    """Draws the spec's drops with Sionna into an HDF5 file; a second call after an interruption goes on.

    memory_budget_bytes bounds the whole process, ``PROCESS_BYTES`` for the libraries included.
    on_progress(what, done, total, detail) is called at the start and after each block of drops.
    SpecError where one block does not fit the budget or the model cannot do what the spec asks; DataError
    where the target exists, another process is writing it, or the disk is too small.
    """
    refuse_folder(path)
    _require_memory(spec, memory_budget_bytes)
    with _parts_folder(path) as parts:
        if not overwrite and _only_parts_remain(spec, path, parts):
            return
        refuse_existing(path, overwrite)
        _keep_own_parts(spec, parts)
        recover(path)
        _require_disk(spec, path, parts)
        shards = plan_shards(spec)
        try:
            _draw_missing(spec, parts, shards, on_progress)
            _assemble(spec, path, parts, shards)
        except KeyboardInterrupt:
            done = sum((parts / shard.file_name).exists() for shard in shards)
            logger.warning("stopped with %d of %d shards done; run it again to go on", done, len(shards))
            raise
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise DataError(
                f"the disk of {path} is full; free some space and run it again to go on"
            ) from None


def _require_memory(spec: DatasetSpec, budget: int) -> None:
    """SpecError with the numbers where a block of drops does not fit the budget."""
    block = drops_per_block(spec)
    needed = PROCESS_BYTES + block * (working_bytes_per_drop(spec) + drop_bytes(spec))
    if needed > budget:
        raise SpecError(
            f"{spec.name} draws {block} drops at once and needs {needed / 2**20:.0f} MiB, beyond the budget "
            f"of {budget / 2**20:.0f} MiB; allow more, or take fewer subcarriers, slots, antennas or users"
        )


def _require_disk(spec: DatasetSpec, path: Path, parts: Path) -> None:
    """DataError where the parts still to come and the file itself do not fit the disk."""
    total = drop_bytes(spec) * total_drops(spec)
    there = sum(file.stat().st_size for file in parts.iterdir())
    needed = int(DISK_SLACK * (2 * total - min(there, total)))
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DataError(
            f"{path} needs {needed} bytes of disk while it is written and {total} afterwards, but {free} are "
            "free; free some space or take fewer drops"
        )


@contextmanager
def _parts_folder(path: Path) -> Iterator[Path]:
    """The folder of finished shards, for this process alone; it stays only where shards wait in it."""
    parts = path.with_name(f".{path.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is writing {path}; wait for it or stop it") from None
        done = False
        try:
            yield parts
            done = True
        finally:
            if done or not any(parts.glob("*.h5")):
                shutil.rmtree(parts)


def _keep_own_parts(spec: DatasetSpec, parts: Path) -> None:
    """Shards of another spec or software go, and what a kill cut off."""
    mark = _mark(spec, parts)
    if not mark.exists():
        for file in parts.iterdir():
            if file.name != "lock":
                file.unlink()
        mark.touch()
    for file in parts.glob(".*.part"):
        file.unlink()


def _only_parts_remain(spec: DatasetSpec, path: Path, parts: Path) -> bool:
    """Whether a run of this spec was killed after its file was whole and before its parts were gone."""
    if not (_mark(spec, parts).exists() and path.is_file()):
        return False
    try:
        dataset = ChannelDataset.open(path)
    except DataError:  # some other file
        return False
    made_by = {name: dataset.attributes.get(f"version_{name}") for name in software_versions()}
    return dataset.spec == spec and made_by == software_versions()


def _mark(spec: DatasetSpec, parts: Path) -> Path:
    """The file that says whose parts these are."""
    return parts / f"made-by-{_fingerprint(spec)}"


def _fingerprint(spec: DatasetSpec) -> str:
    """Names what decides a shard's bytes: the spec and the software."""
    text = spec_to_toml(spec) + json.dumps(software_versions(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _draw_missing(spec: DatasetSpec, parts: Path, shards: list[Shard], on_progress: Progress | None) -> None:
    """Draws each shard that has no file yet."""
    missing = [shard for shard in shards if not (parts / shard.file_name).exists()]
    total = total_drops(spec)
    done = total - sum(shard.num_drops for shard in missing)
    report = on_progress or (lambda *_: None)
    report("drops", done, total, "")
    for shard in missing:
        size = file_bytes(spec, shard.num_drops)
        with (
            whole_file(parts / shard.file_name) as temporary,
            new_hdf5(temporary, size, libver=LIBVER) as file,
        ):
            for name, field in dataset_fields(spec).items():
                create_field(file, name, field, shard.num_drops)
            row = 0
            for arrays in _draw_blocks(spec, shard):
                stop = row + len(arrays["h_freq"])
                for name, values in arrays.items():
                    file[name][row:stop] = values
                row = stop
                report("drops", done + row, total, "")
        done += shard.num_drops


def plan_blocks(spec: DatasetSpec, shard: Shard) -> list[tuple[int, int]]:
    """Seed and number of drops of each block of a shard; ``draw_drops`` of them gives the stored drops."""
    block = drops_per_block(spec)
    num_blocks = math.ceil(shard.num_drops / block)
    seeds = np.random.SeedSequence(shard.seed).generate_state(num_blocks, np.uint64).tolist()
    return [(seed, min(block, shard.num_drops - index * block)) for index, seed in enumerate(seeds)]


def _draw_blocks(spec: DatasetSpec, shard: Shard) -> Iterator[dict[str, NDArray[Any]]]:
    for seed, num_drops in plan_blocks(spec, shard):
        yield batch_arrays(draw_drops(spec, seed, num_drops), spec)


def _assemble(spec: DatasetSpec, path: Path, parts: Path, shards: list[Shard]) -> None:
    """All shards into the target, which appears whole."""
    with whole_file(path) as temporary, new_dataset(temporary, spec, "generated") as file:
        for shard in shards:
            with h5py.File(parts / shard.file_name, "r") as part:
                blocks = _stored_blocks(part, spec)
                write_shard(file[shard.split], spec, shard.index, blocks, shard.seed)


def _stored_blocks(part: h5py.File, spec: DatasetSpec) -> Iterator[dict[str, NDArray[Any]]]:
    block = drops_per_block(spec)
    for row in range(0, part["h_freq"].shape[0], block):
        yield {name: part[name][row : row + block] for name in dataset_fields(spec)}
