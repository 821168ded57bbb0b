"""A file that is filled in without HDF5 reads back with it, and knows which of its shards are whole."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from airlam.datasets import unfinished
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.fields import dataset_fields
from airlam.datasets.unfinished import UnfinishedFile
from airlam.specs import DatasetSpec, SplitSizes

SPEC = dataclasses.replace(
    packaged_spec("quickstart"), drops=SplitSizes(train=7, validation=0, test=2), shard_drops=3
)


def rows(name: str, count: int, seed: int) -> np.ndarray:
    """Values of a field that no other seed gives."""
    field = dataset_fields(SPEC)[name]
    random = np.random.default_rng(seed)
    return (100 * random.standard_normal((count, *field.shape))).astype(field.dtype)


def fill(path: Path, spec: DatasetSpec) -> None:
    UnfinishedFile.create(path, spec)
    with UnfinishedFile.open(path, spec) as file:
        for name in dataset_fields(spec):
            for first, count in ((3, 3), (6, 1), (0, 3)):  # in any order
                file.write("train", name, first, rows(name, count, first))
            file.write("test", name, 0, rows(name, 2, 9))
        file.finish("train", 1, 2**64 - 1, "a" * 64)


def test_every_row_is_where_hdf5_looks_for_it(tmp_path: Path) -> None:
    fill(path := tmp_path / "set.h5", SPEC)
    with h5py.File(path) as file:
        for name in dataset_fields(SPEC):
            expected = np.concatenate([rows(name, 3, 0), rows(name, 3, 3), rows(name, 1, 6)])
            assert (file["train"][name][()] == expected).all(), name
            assert (file["test"][name][()] == rows(name, 2, 9)).all(), name
        assert file["train/shard_sha256"][()].tolist() == [b"", b"a" * 64, b""]
        assert file["train/shard_seed"][()].tolist() == [0, 2**64 - 1, 0]
        assert file["validation/h_freq"].shape[0] == 0


def test_a_shard_is_finished_when_it_was_said_to_be(tmp_path: Path) -> None:
    fill(path := tmp_path / "set.h5", SPEC)
    with UnfinishedFile.open(path, SPEC) as file:
        assert [file.is_finished("train", shard) for shard in range(3)] == [False, True, False]
        assert not file.is_finished("test", 0)
        file.write("train", "shard_sha256", 2, np.array([b"b" * 40], "S64"))  # torn by a power failure
        assert not file.is_finished("train", 2)


def test_a_file_that_leaves_memory_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "small.h5", SPEC)
    monkeypatch.setattr(unfinished, "CACHED_BYTES", 0)
    fill(tmp_path / "large.h5", SPEC)
    assert (tmp_path / "small.h5").read_bytes() == (tmp_path / "large.h5").read_bytes()


def test_the_file_is_as_long_as_its_arrays(tmp_path: Path) -> None:
    """Its room is taken at once, and it does not grow."""
    UnfinishedFile.create(tmp_path / "empty.h5", SPEC)
    size = (tmp_path / "empty.h5").stat()
    fill(tmp_path / "full.h5", SPEC)
    assert size.st_size == (tmp_path / "full.h5").stat().st_size
    assert size.st_blocks * 512 >= 9 * sum(field.num_bytes for field in dataset_fields(SPEC).values())
