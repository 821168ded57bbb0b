"""Reading a dataset file.

One drop is one chunk, so a shuffled batch is a handful of plain reads at known offsets: after opening, the
HDF5 library is not asked again, and a dataset may be pickled or forked freely.
"""

import math
import os
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from airlam.datasets.fields import USER_FIELDS, dataset_fields, reading_fields
from airlam.datasets.layout import (
    FORMAT,
    FORMAT_VERSION,
    SHARD_FIELDS,
    SPLITS,
    is_chunked,
    software_versions,
    write_dataset,
)
from airlam.errors import AirlamError, DataError, SpecError
from airlam.radio.channel import ChannelBatch
from airlam.specs import DatasetSpec, parse_spec

__all__ = ["ChannelDataset", "software_versions", "write_dataset"]

# what h5py raises, besides OSError, on a file whose inside is damaged
H5PY_ERRORS = (
    OSError,
    LookupError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)
READ_VECTORS = 512  # buffers in one vectored read; the kernel allows 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """What of a split is kept in memory: where each drop's large fields lie, and the small fields."""

    offsets: dict[str, NDArray[np.int64]]
    small: dict[str, torch.Tensor]
    shard_sha256: tuple[str, ...]
    shard_seed: tuple[int, ...]


class ChannelDataset:
    """A dataset file, read lazily; use ``ChannelDataset.open``."""

    def __init__(
        self, path: Path, spec: DatasetSpec, splits: dict[str, _Split], attributes: dict[str, str]
    ) -> None:
        self.path = path
        self.spec = spec
        self.attributes = attributes
        self._splits = splits
        self._handle: int | None = None

    @staticmethod
    def open(path: str | Path) -> "ChannelDataset":
        """Reads the head of a file; DataError, in one line, where it is not a whole dataset of ours."""
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path} is not there; make it with airlam generate")
        try:
            with h5py.File(path, "r") as file:
                spec = _read_spec(file, path)
                splits = {split: _read_split(file, spec, split, path) for split in SPLITS}
                attributes = {key: str(value) for key, value in file.attrs.items() if key != "spec"}
        except AirlamError:
            raise
        except H5PY_ERRORS as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{path} is no HDF5 file, or it is damaged or cut short ({reason}); generate it again"
            ) from None
        return ChannelDataset(path, spec, splits, attributes)

    def num_drops(self, split: str) -> int:
        """Drops in train, validation or test."""
        return len(self._split(split).offsets["h_freq"])

    def field(
        self, split: str, name: str, indices: NDArray[np.integer[Any]] | slice = slice(None)
    ) -> torch.Tensor:
        """A field other than h_freq of the drops at ``indices``: [num_drops, ...]; large ones are read anew.

        DataError for a field that the dataset does not have.
        """
        part = self._split(split)
        self._require_fields([name], [*USER_FIELDS, *reading_fields(self.spec)])
        return self._rows(part, name, np.arange(self.num_drops(split))[indices])

    def shard_checksums(self, split: str) -> tuple[str, ...]:
        """The recorded SHA-256 of each shard."""
        return self._split(split).shard_sha256

    def batch(
        self,
        split: str,
        indices: NDArray[np.integer[Any]] | slice,
        *,
        slots: slice = slice(None),
        subcarriers: slice = slice(None),
        readings: Collection[str] | None = (),
    ) -> ChannelBatch:
        """The drops at ``indices``, in that order, from any mixture of places.

        h_freq: complex64 [batch, num_rx, num_rx_ant, num_tx, num_tx_ant, num_slots, num_subcarriers], of
        which ``slots`` and ``subcarriers`` choose a part. readings: names of the motion and sensor fields
        to read beside it (``reading_fields``), None for all. IndexError beyond the split, DataError on a
        damaged file or a reading that it does not have.
        """
        part, there = self._split(split), reading_fields(self.spec)
        wanted = list(there) if readings is None else list(readings)
        self._require_fields(wanted, there)
        rows = np.arange(self.num_drops(split))[indices]
        h_freq = self._read(
            "h_freq", part.offsets["h_freq"][rows]
        )  # [batch, ..., num_slots, num_subcarriers]
        chosen = torch.from_numpy(h_freq)[..., slots, subcarriers].contiguous()
        return ChannelBatch(
            h_freq=chosen,
            direction=self.spec.channel.direction,
            readings={name: self._rows(part, name, rows) for name in wanted},
            **{name: self._rows(part, name, rows) for name in USER_FIELDS},
        )

    def _require_fields(self, names: Collection[str], there: Collection[str]) -> None:
        """DataError for a name that is not among those that are there."""
        for name in names:
            if name not in there:
                raise DataError(
                    f"{self.path} has no {name!r} to give; it has {', '.join(there) or 'none at all'}"
                )

    def _rows(self, part: _Split, name: str, rows: NDArray[np.integer[Any]]) -> torch.Tensor:
        """A field other than h_freq of the drops at ``rows``: [n, ...]."""
        if name in part.small:
            return part.small[name][torch.from_numpy(np.ascontiguousarray(rows))]
        return torch.from_numpy(self._read(name, part.offsets[name][rows]))

    def close(self) -> None:
        """Lets go of the file; the next read opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> "ChannelDataset":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}

    def _split(self, split: str) -> _Split:
        if split not in self._splits:
            raise DataError(f"split is {split!r}; expected one of {SPLITS}")
        return self._splits[split]

    def _read(self, name: str, offsets: NDArray[np.int64]) -> NDArray[Any]:
        """A field of the drops at the given places of the file; neighbours in the file share one read."""
        field = dataset_fields(self.spec)[name]
        num_bytes = field.num_bytes
        values = np.empty((len(offsets), *field.shape), field.dtype)
        rows = values.reshape(len(offsets), math.prod(field.shape)).view(np.uint8)  # [batch, bytes]
        order = np.argsort(offsets, kind="stable")
        breaks = np.flatnonzero(np.diff(offsets[order]) != num_bytes) + 1
        for run in np.split(order, breaks):
            for first in range(0, len(run), READ_VECTORS):
                self._read_run(rows, run[first : first + READ_VECTORS], offsets, num_bytes)
        return values

    def _read_run(
        self, rows: NDArray[np.uint8], run: NDArray[np.intp], offsets: NDArray[np.int64], num_bytes: int
    ) -> None:
        """Reads adjacent drops straight into their rows; a short read is finished row by row."""
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY)
        done = os.preadv(self._handle, [rows[i].data for i in run], int(offsets[run[0]]))
        for position in range(done // num_bytes, len(run)):  # the kernel stops at 2 GiB
            row = rows[run[position]]
            start = max(0, done - position * num_bytes)
            while start < num_bytes:
                count = os.preadv(self._handle, [row[start:].data], int(offsets[run[position]]) + start)
                if not count:
                    raise DataError(f"{self.path} ends within a drop; generate it again")
                start += count


def _read_spec(file: h5py.File, path: Path) -> DatasetSpec:
    """The spec in a file of ours; DataError for other files."""
    if file.attrs.get("format") != FORMAT:
        raise DataError(f"{path} is HDF5 but not a dataset of airlam; convert it with airlam dataset import")
    found = int(file.attrs.get("format_version", 0))
    if found != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {found}, this airlam reads {FORMAT_VERSION}; generate it again"
        )
    try:
        with warnings.catch_warnings():  # what the spec warns of was said when it was generated
            warnings.simplefilter("ignore")
            return parse_spec(DatasetSpec, str(file.attrs["spec"]), f"the spec in {path}")
    except (SpecError, KeyError) as error:
        raise DataError(f"{path} holds no readable spec: {error}") from None


def _read_split(file: h5py.File, spec: DatasetSpec, split: str, path: Path) -> _Split:
    """The places of a split's drops and its small fields, checked against the spec."""
    described = dataset_fields(spec)
    fields = _arrays(file, spec, split, path)
    chunked = [name for name, field in described.items() if is_chunked(name, field)]
    for name in chunked:
        _require_chunks(fields[name], path)
    _require_room(fields.values(), split, path)
    return _Split(
        offsets={name: _chunk_offsets(fields[name], path) for name in chunked},
        small={name: torch.from_numpy(fields[name][()]) for name in described if name not in chunked},
        shard_sha256=tuple(value.decode() for value in fields["shard_sha256"][()]),
        shard_seed=tuple(int(value) for value in fields["shard_seed"][()]),
    )


def _arrays(file: h5py.File, spec: DatasetSpec, split: str, path: Path) -> dict[str, h5py.Dataset]:
    """A split's arrays by name, nothing read of them; DataError where one is not as the spec says."""
    num_drops = getattr(spec.drops, split)
    num_shards = math.ceil(num_drops / spec.shard_drops)
    expected = {name: ((num_drops, *f.shape), np.dtype(f.dtype)) for name, f in dataset_fields(spec).items()}
    expected |= {name: ((num_shards,), np.dtype(kind)) for name, kind in SHARD_FIELDS.items()}
    arrays = {name: file.get(f"{split}/{name}") for name in expected}
    for name, array in arrays.items():
        if not isinstance(array, h5py.Dataset):
            raise DataError(f"{path} lacks {split}/{name}; generate it again")
        shape, dtype = expected[name]
        if (array.shape, array.dtype) != (shape, dtype):
            raise DataError(
                f"{path}: {split}/{name} is {array.dtype} {array.shape}, the spec says {dtype} {shape}; "
                "generate it again"
            )
    return arrays


def _require_chunks(array: h5py.Dataset, path: Path) -> None:
    """DataError unless each drop is a chunk of its own, stored as it is."""
    if array.id.get_create_plist().get_nfilters():
        raise DataError(f"{path} is compressed; unpack it with h5repack -f NONE")
    if array.shape[0] and array.chunks != (1, *array.shape[1:]):
        raise DataError(f"{path} has chunks {array.chunks}, expected one a drop; generate it again")


def _require_room(arrays: Iterable[h5py.Dataset], split: str, path: Path) -> None:
    """DataError where a split's arrays are larger than the file, before memory is taken for them."""
    promised, found = sum(map(_num_bytes, arrays)), path.stat().st_size
    if promised > found:
        raise DataError(
            f"{path} has {found} bytes, its {split} alone would have {promised}; generate it again"
        )


def _num_bytes(array: h5py.Dataset) -> int:
    shape: tuple[int, ...] = array.shape
    return math.prod(shape) * int(array.dtype.itemsize)


def _chunk_offsets(array: h5py.Dataset, path: Path) -> NDArray[np.int64]:
    """Where each drop lies in the file, int64 [num_drops]; DataError where any is missing."""
    offsets = np.full(array.shape[0], -1, np.int64)
    if not len(offsets):
        return offsets

    def note(chunk: Any) -> None:
        offsets[chunk.chunk_offset[0]] = chunk.byte_offset

    array.id.chunk_iter(note)
    last_start = path.stat().st_size - _num_bytes(array) // len(offsets)
    absent = (offsets < 0) | (offsets > last_start)
    if absent.any():
        raise DataError(f"{path} lacks {int(absent.sum())} drops of {array.name}; generate it again")
    return offsets
