"""The layout of a dataset file and how it is written: named axes, units, spec, seeds, versions, checksums.

The root has ``format``, ``spec`` (TOML) and versions as attributes; train, validation and test hold
``dataset_fields`` by drop, and ``shard_sha256`` and ``shard_seed`` by shard of ``spec.shard_drops`` drops.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from airlam.datasets.fields import USER_FIELDS, Field, dataset_fields, drop_bytes, reading_fields
from airlam.errors import DataError
from airlam.files import reserve, whole_file
from airlam.radio.channel import ChannelBatch
from airlam.specs import DatasetSpec, spec_to_toml

FORMAT = "airlam-channels"
FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
VERSIONED = ("airlam", "sionna", "sionna-rt", "mitsuba", "drjit", "torch", "numpy", "scipy", "h5py")
LIBVER = ("v110", "v110")  # of HDF5: its index of chunks is small and read at once
HEAD_BYTES, INDEX_BYTES_PER_DROP = 2**18, 64  # above what a file holds besides its drops, a chunked field
SMALL_BYTES = 2**10  # a drop; readings of more are read when they are asked for

SHARD_FIELDS = {"shard_sha256": "S64", "shard_seed": "uint64"}


def software_versions() -> dict[str, str]:
    """Versions of what makes the numbers."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@contextmanager
def new_hdf5(path: Path, num_bytes: int, **options: Any) -> Iterator[h5py.File]:
    """A new HDF5 file, open for writing, whose room on disk is taken first; OSError where there is none.

    HDF5 does not survive a full disk: what it could not write it tries again when the process ends, and
    crashes. num_bytes: at least what will be written; the file ends up no longer than it must be.
    """
    with path.open("wb") as probe:  # HDF5 writes as soon as it opens
        reserve(probe.fileno(), num_bytes)
    with h5py.File(path, "w", **options) as file:
        reserve(file.id.get_vfd_handle(), num_bytes)  # opening it has let go of the room
        yield file
        file.flush()
        used = file.id.get_filesize()
    os.truncate(path, used)


def file_bytes(spec: DatasetSpec, num_drops: int) -> int:
    """Bytes of a file with so many drops, from above."""
    index = INDEX_BYTES_PER_DROP * sum(is_chunked(*item) for item in dataset_fields(spec).items())
    return HEAD_BYTES + num_drops * (drop_bytes(spec) + index)


def total_drops(spec: DatasetSpec) -> int:
    """Drops of all splits."""
    return sum(getattr(spec.drops, split) for split in SPLITS)


@contextmanager
def new_dataset(path: Path, spec: DatasetSpec, source: str, extra_bytes: int = 0) -> Iterator[h5py.File]:
    """A new file with every dataset laid out and nothing in it; same spec and versions, same bytes.

    extra_bytes: of what the caller will add.
    """
    num_bytes = file_bytes(spec, total_drops(spec)) + extra_bytes
    with new_hdf5(path, num_bytes, libver=LIBVER, track_order=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["source"] = source
        file.attrs["spec"] = spec_to_toml(spec)
        for name, found in software_versions().items():
            file.attrs[f"version_{name}"] = found
        for split in SPLITS:
            _create_split(file, spec, split)
        yield file


def _create_split(file: h5py.File, spec: DatasetSpec, split: str) -> None:
    group = file.create_group(split)
    num_drops = getattr(spec.drops, split)
    for name, field in dataset_fields(spec).items():
        create_field(group, name, field, num_drops)
    shape = (math.ceil(num_drops / spec.shard_drops),)
    for name, kind in SHARD_FIELDS.items():
        _create_array(group, name, shape, kind)


def is_chunked(name: str, field: Field) -> bool:
    """Whether each drop is a chunk of its own, read when it is asked for; the rest is read at once.

    What is known of each user goes with every batch: it is read at once however many users there are.
    """
    return name == "h_freq" or (name not in USER_FIELDS and field.num_bytes > SMALL_BYTES)


def create_field(group: h5py.Group, name: str, field: Field, num_drops: int) -> None:
    """One dataset with its axes and unit."""
    shape = (num_drops, *field.shape)
    chunks = (1, *shape[1:]) if is_chunked(name, field) and num_drops else None
    dataset = _create_array(group, name, shape, field.dtype, chunks)
    dataset.attrs["unit"] = field.unit
    dataset.attrs["axes"] = ",".join(field.axes)
    for axis, label in enumerate(field.axes):
        dataset.dims[axis].label = label


def _create_array(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str, chunks: tuple[int, ...] | None = None
) -> h5py.Dataset:
    """An array whose place in the file is fixed at once, rows in their order, and left unfilled."""
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    return group.create_dataset(
        name, shape, dtype, chunks=chunks, track_times=False, fill_time="never", dcpl=options
    )


def batch_arrays(batch: ChannelBatch, spec: DatasetSpec) -> dict[str, NDArray[Any]]:
    """The fields of a batch of the spec as arrays, in the order of ``dataset_fields``.

    DataError names a reading that the spec has and the batch has not.
    """
    absent = [name for name in reading_fields(spec) if name not in batch.readings]
    if absent:
        raise DataError(
            f"the batch lacks the readings {', '.join(absent)} that {spec.name} has; put them into "
            "ChannelBatch.readings"
        )
    return {
        name: (batch.readings[name] if name in batch.readings else getattr(batch, name))
        .numpy()
        .astype(field.dtype, copy=False)
        for name, field in dataset_fields(spec).items()
    }


def write_dataset(
    path: Path, spec: DatasetSpec, splits: Mapping[str, ChannelBatch], source: str, overwrite: bool = False
) -> None:
    """Writes channels that are in memory; ``source`` says where they come from.

    The sizes in ``spec.drops`` must be those of the batches, and every value finite (DataError).
    """
    refuse_existing(path, overwrite)
    with whole_file(path) as temporary, new_dataset(temporary, spec, source) as file:
        for split in SPLITS:
            expected = getattr(spec.drops, split)
            given = splits[split].h_freq.shape[0] if split in splits else 0
            if given != expected:
                raise DataError(f"{split} has {given} drops where the spec says {expected}")
            for start in range(0, expected, spec.shard_drops):
                rows = slice(start, start + spec.shard_drops)
                arrays = {k: v[rows] for k, v in batch_arrays(splits[split], spec).items()}
                _write_shard(file[split], spec, start // spec.shard_drops, arrays)


def _write_shard(group: h5py.Group, spec: DatasetSpec, shard: int, arrays: dict[str, NDArray[Any]]) -> None:
    """Writes one shard with its checksum; no seed made it. DataError names a drop with NaN."""
    row = shard * spec.shard_drops
    require_finite(arrays, group.name.strip("/"), row)
    for name, values in arrays.items():
        group[name][row : row + len(values)] = values
    digest = ShardDigest(spec)
    digest.update(arrays)
    group["shard_sha256"][shard] = digest.hexdigest().encode()
    group["shard_seed"][shard] = 0


def require_finite(arrays: Mapping[str, NDArray[Any]], split: str, first: int) -> None:
    """DataError names the first drop with NaN or infinity; ``first`` is the number of the first one."""
    for name, values in arrays.items():
        sound = np.isfinite(values).reshape(len(values), -1).all(axis=1)  # [block]
        if not sound.all():
            drop = first + int(np.argmin(sound))
            raise DataError(f"{split} drop {drop} has NaN or infinity in {name}; mend or leave out that drop")


class ShardDigest:
    """SHA-256 over a shard: the bytes of h_freq drop by drop, then the other fields' in their order.

    As field follows upon field, a copy of all but h_freq, images included, stays in memory until the shard
    is whole.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        self._channels = hashlib.sha256()
        self._others: dict[str, list[bytes]] = {name: [] for name in dataset_fields(spec) if name != "h_freq"}

    def update(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes in the next drops of the shard."""
        self._channels.update(np.ascontiguousarray(arrays["h_freq"]).view(np.uint8).data)
        for name, parts in self._others.items():
            parts.append(arrays[name].tobytes())

    def hexdigest(self) -> str:
        """The checksum of all that was taken in."""
        whole = self._channels.copy()
        for parts in self._others.values():
            for part in parts:
                whole.update(part)
        return whole.hexdigest()


def refuse_folder(path: Path) -> None:
    """DataError where the target is a folder."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file, as in {path / 'NAME'}")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """DataError where the target is a folder, or is there already and may not be replaced."""
    refuse_folder(path)
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists; choose another name or allow overwriting it")
