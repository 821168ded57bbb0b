"""A dataset file while it is being drawn: each drop has its place from the start, so any process may fill it.

The file is laid out at once, every array whole and its rows in their order; processes then write rows at
known offsets, without HDF5. A shard's checksum goes into the file after its drops have reached the disk: the
shards that have one are finished, whatever became of their writers.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from airlam.datasets.fields import dataset_fields
from airlam.datasets.layout import SHARD_FIELDS, SPLITS, new_dataset
from airlam.files import whole_file
from airlam.specs import DatasetSpec

NO_CHECKSUM = bytes(64)
CACHED_BYTES = 2**30  # a larger file leaves the kernel's memory as it goes to disk: writing is faster for it


class UnfinishedFile:
    """A laid-out file, open to fill in; use ``UnfinishedFile.open``, and close it.

    Any number of processes may have it open, as long as no two write the same rows with different values.
    """

    def __init__(self, path: Path, offsets: Mapping[str, int]) -> None:
        self.path = path
        self._offsets = offsets  # of the first row of each array, by split/name
        self._handle = os.open(path, os.O_RDWR)
        self._is_large = os.fstat(self._handle).st_size > CACHED_BYTES

    @staticmethod
    def create(path: Path, spec: DatasetSpec) -> None:
        """Lays a file out, with room on disk for every drop; OSError where there is none."""
        site_map = _site_map(spec) if spec.channel.is_ray_traced else None
        room = site_map[0].nbytes if site_map else 0
        with whole_file(path) as temporary, new_dataset(temporary, spec, "generated", room) as file:
            if site_map:
                _store_site_map(file, *site_map)

    @staticmethod
    def open(path: Path, spec: DatasetSpec) -> "UnfinishedFile":
        """Finds the place of every array."""
        names = [*dataset_fields(spec), *SHARD_FIELDS]
        with h5py.File(path, "r") as file:
            arrays = [file[f"{split}/{name}"] for split in SPLITS for name in names]
            return UnfinishedFile(path, {array.name.lstrip("/"): _offset(array) for array in arrays})

    def write(self, split: str, name: str, row: int, values: NDArray[Any]) -> None:
        """Puts values [num_rows, ...] at a row of an array; OSError where the disk is full."""
        rest = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data  # [bytes]
        offset = self._offsets[f"{split}/{name}"] + row * values[:1].nbytes
        while rest:  # the kernel stops at 2 GiB, and where the disk ends
            written = os.pwrite(self._handle, rest, offset)
            rest, offset = rest[written:], offset + written

    def is_finished(self, split: str, shard: int) -> bool:
        """Whether the shard is on disk."""
        place = self._offsets[f"{split}/shard_sha256"] + shard * len(NO_CHECKSUM)
        return b"\0" not in os.pread(self._handle, len(NO_CHECKSUM), place)

    def finish(self, split: str, shard: int, seed: int, sha256: str) -> None:
        """Notes that all drops of a shard were written, once they are on disk."""
        self.write(split, "shard_seed", shard, np.array([seed], SHARD_FIELDS["shard_seed"]))
        self.sync()
        self.write(split, "shard_sha256", shard, np.array([sha256.encode()], SHARD_FIELDS["shard_sha256"]))

    def sync(self) -> None:
        """Returns when what was written, by whichever process, is on disk."""
        os.fsync(self._handle)
        if self._is_large and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._handle)

    def __enter__(self) -> "UnfinishedFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _offset(array: h5py.Dataset) -> int:
    """The byte of the file where an array's first row lies; the others follow without gaps."""
    if not array.size:
        return 0
    if array.chunks is None:
        return int(array.id.get_offset())
    return int(array.id.get_chunk_info(0).byte_offset)


def _site_map(spec: DatasetSpec) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """Heights above z = 0 of the scene in m, [rows, columns], and x and y from, x and y to, from the mast."""
    from airlam.datasets.sites import height_map  # the ray tracer, which other channels do without

    assert spec.site is not None
    heights_m, (x_from, y_from, x_to, y_to) = height_map(spec)
    x, y, _ = spec.site.origin_m
    return heights_m, (x_from - x, y_from - y, x_to - x, y_to - y)


def _store_site_map(file: h5py.File, heights_m: NDArray[np.float32], extent_m: tuple[float, ...]) -> None:
    array = file.create_dataset("site_height_m", data=heights_m, dtype="float32", track_times=False)
    array.attrs["unit"] = "m above z = 0 of the scene"
    array.attrs["axes"] = "y,x"
    array.attrs["extent_m"] = np.array(extent_m)  # x and y from, x and y to; base station mast at the origin
