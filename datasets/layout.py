"""The layout of a dataset file and how it is written: named axes, units, spec, seeds, versions, checksums.

The root's attributes hold ``format``, ``spec`` (TOML) and versions; the groups train, validation and test
hold ``FIELDS`` by drop, and ``shard_sha256`` and ``shard_seed`` by shard of ``spec.shard_drops`` drops.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from airlam.errors import DataError
from airlam.files import whole_file
from airlam.radio.channel import ChannelBatch
from airlam.specs import DatasetSpec, spec_to_toml

FORMAT = "airlam-channels"
FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
AXES = ("drop", "num_rx", "num_rx_ant", "num_tx", "num_tx_ant", "num_ofdm_symbols", "num_subcarriers")
VERSIONED = ("airlam", "sionna", "torch", "numpy", "h5py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One array of a split."""

    dtype: str
    unit: str
    axes: tuple[str, ...]


FIELDS = {
    "h_freq": Field(dtype="complex64", unit="1 (amplitude gain, transmitter to receiver)", axes=AXES),
    "speed_m_per_s": Field(dtype="float32", unit="m/s", axes=("drop", "user")),
    "position_m": Field(
        dtype="float32", unit="m, base station mast at the origin", axes=("drop", "user", "xyz")
    ),
    "los": Field(dtype="bool", unit="1 (line of sight)", axes=("drop", "user")),
    "path_loss_db": Field(dtype="float32", unit="dB, 0 where the model has none", axes=("drop", "user")),
}


def drop_shape(spec: DatasetSpec) -> tuple[int, ...]:
    """Shape of one drop's h_freq: (num_rx, num_rx_ant, num_tx, num_tx_ant, num_slots, num_subcarriers)."""
    users, base_station = (spec.num_users, spec.user.num_ports), (1, spec.base_station.num_ports)
    ends = (*base_station, *users) if spec.channel.direction == "uplink" else (*users, *base_station)
    return (*ends, spec.grid.num_slots, spec.grid.num_subcarriers)


def field_shape(spec: DatasetSpec, name: str, num_drops: int) -> tuple[int, ...]:
    """Shape of a field of ``FIELDS`` for so many drops."""
    if name == "h_freq":
        return (num_drops, *drop_shape(spec))
    return (num_drops, spec.num_users, 3) if name == "position_m" else (num_drops, spec.num_users)


def drop_bytes(spec: DatasetSpec) -> int:
    """Bytes that one drop takes in the file."""
    sizes = (math.prod(field_shape(spec, name, 1)) * np.dtype(f.dtype).itemsize for name, f in FIELDS.items())
    return sum(sizes)


def software_versions() -> dict[str, str]:
    """Versions of what makes the numbers."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def create_file(path: Path, spec: DatasetSpec, source: str) -> h5py.File:
    """A new file with every dataset laid out and nothing in it; same spec and versions, same bytes."""
    file = h5py.File(path, "w", libver=("v110", "v110"), track_order=False)
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["source"] = source
    file.attrs["spec"] = spec_to_toml(spec)
    for name, found in software_versions().items():
        file.attrs[f"version_{name}"] = found
    for split in SPLITS:
        group = file.create_group(split)
        num_drops = getattr(spec.drops, split)
        for name, field in FIELDS.items():
            create_field(group, spec, name, field, num_drops)
        num_shards = math.ceil(num_drops / spec.shard_drops)
        group.create_dataset("shard_sha256", (num_shards,), "S64", track_times=False)
        group.create_dataset("shard_seed", (num_shards,), "uint64", track_times=False)
    return file


def create_field(group: h5py.Group, spec: DatasetSpec, name: str, field: Field, num_drops: int) -> None:
    """One dataset with its axes and unit; a drop of h_freq is a chunk of its own."""
    shape = field_shape(spec, name, num_drops)
    chunks = (1, *shape[1:]) if name == "h_freq" and num_drops else None
    dataset = group.create_dataset(name, shape, field.dtype, chunks=chunks, track_times=False)
    dataset.attrs["unit"] = field.unit
    dataset.attrs["axes"] = ",".join(field.axes)
    for axis, label in enumerate(field.axes):
        dataset.dims[axis].label = label


def batch_arrays(batch: ChannelBatch) -> dict[str, NDArray[Any]]:
    """The fields of a batch as arrays, in the order of ``FIELDS``."""
    return {
        name: getattr(batch, name).numpy().astype(field.dtype, copy=False) for name, field in FIELDS.items()
    }


def write_dataset(
    path: Path, spec: DatasetSpec, splits: Mapping[str, ChannelBatch], source: str, overwrite: bool = False
) -> None:
    """Writes channels that are in memory; ``source`` says where they come from.

    The sizes in ``spec.drops`` must be those of the batches (DataError).
    """
    refuse_existing(path, overwrite)
    with whole_file(path) as temporary, create_file(temporary, spec, source) as file:
        for split in SPLITS:
            expected = getattr(spec.drops, split)
            given = splits[split].h_freq.shape[0] if split in splits else 0
            if given != expected:
                raise DataError(f"{split} has {given} drops where the spec says {expected}")
            for start in range(0, expected, spec.shard_drops):
                rows = slice(start, start + spec.shard_drops)
                arrays = {k: v[rows] for k, v in batch_arrays(splits[split]).items()}
                write_shard(file[split], spec, start // spec.shard_drops, iter([arrays]), seed=0)


def write_shard(
    group: h5py.Group, spec: DatasetSpec, shard: int, blocks: Iterator[dict[str, NDArray[Any]]], seed: int
) -> None:
    """Writes one shard block by block, with its seed and checksum."""
    digest = ShardDigest()
    row = shard * spec.shard_drops
    for arrays in blocks:
        stop = row + len(arrays["h_freq"])
        for name, values in arrays.items():
            group[name][row:stop] = values
        digest.update(arrays)
        row = stop
    group["shard_sha256"][shard] = digest.hexdigest().encode()
    group["shard_seed"][shard] = seed


class ShardDigest:
    """SHA-256 over a shard: the bytes of h_freq drop by drop, then the other fields' in their order."""

    def __init__(self) -> None:
        self._channels = hashlib.sha256()
        self._others: dict[str, list[bytes]] = {name: [] for name in FIELDS if name != "h_freq"}

    def update(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes in the next drops of the shard."""
        self._channels.update(np.ascontiguousarray(arrays["h_freq"]).view(np.uint8).data)
        for name, parts in self._others.items():
            parts.append(arrays[name].tobytes())

    def hexdigest(self) -> str:
        """The checksum of all that was taken in."""
        whole = self._channels.copy()
        for parts in self._others.values():
            whole.update(b"".join(parts))
        return whole.hexdigest()


def refuse_existing(path: Path, overwrite: bool) -> None:
    """DataError where the target is there already and may not be replaced."""
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists; choose another name or allow overwriting it")
