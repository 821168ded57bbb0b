"""The dataset file: read back exactly, in any order, from any process; anything else is one clear line."""

import dataclasses
import hashlib
import os
import pickle
import random
import resource
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from airlam.datasets.card import info, verify
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.fields import AXES, dataset_fields, drop_bytes, drop_shape, reading_fields
from airlam.datasets.generate import generate
from airlam.datasets.layout import (
    SHARD_FIELDS,
    SPLITS,
    ShardDigest,
    batch_arrays,
    file_bytes,
    write_dataset,
)
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.radio.channel import ChannelBatch
from airlam.specs import DatasetSpec, SplitSizes

SPEC = dataclasses.replace(
    packaged_spec("quickstart"), drops=SplitSizes(train=11, validation=0, test=3), shard_drops=4
)


def random_batch(spec: DatasetSpec, num_drops: int, seed: int = 1) -> ChannelBatch:
    """Drops with nothing in common with a channel but their shapes."""
    generator = torch.Generator().manual_seed(seed)
    users = (num_drops, spec.num_users)
    return ChannelBatch(
        h_freq=torch.randn((num_drops, *drop_shape(spec)), dtype=torch.complex64, generator=generator),
        direction=spec.channel.direction,
        speed_m_per_s=torch.rand(users, generator=generator),
        position_m=torch.rand(*users, 3, generator=generator),
        los=torch.rand(users, generator=generator) < 0.5,
        path_loss_db=torch.rand(users, generator=generator),
    )


@pytest.fixture
def train() -> ChannelBatch:
    return random_batch(SPEC, 11)


@pytest.fixture
def path(tmp_path: Path, train: ChannelBatch) -> Path:
    file = tmp_path / "set.h5"
    write_dataset(file, SPEC, {"train": train, "test": random_batch(SPEC, 3, seed=2)}, "a test")
    return file


def test_any_order_reads_what_was_written(path: Path, train: ChannelBatch) -> None:
    with ChannelDataset.open(path) as dataset:
        assert dataset.spec == SPEC
        assert [dataset.num_drops(split) for split in SPLITS] == [11, 0, 3]
        for indices in (
            np.array([7, 0, 10, 3, 3]),
            np.arange(11),
            np.array([5]),
            np.array([], np.int64),
            slice(2, 9, 3),
        ):
            batch = dataset.batch("train", indices)
            for name in dataset_fields(SPEC):
                assert torch.equal(getattr(batch, name), getattr(train, name)[torch.arange(11)[indices]]), (
                    name
                )
        assert batch.direction == "uplink"


def test_parts_of_slots_and_subcarriers(path: Path, train: ChannelBatch) -> None:
    with ChannelDataset.open(path) as dataset:
        batch = dataset.batch("train", np.array([4, 1]), slots=slice(3, 7), subcarriers=slice(0, 24, 5))
    assert torch.equal(batch.h_freq, train.h_freq[[4, 1]][..., 3:7, 0:24:5])


def test_small_fields_come_without_the_channels(path: Path, train: ChannelBatch) -> None:
    assert torch.equal(ChannelDataset.open(path).field("train", "speed_m_per_s"), train.speed_m_per_s)


def test_fields_of_chosen_drops(path: Path, train: ChannelBatch) -> None:
    with ChannelDataset.open(path) as dataset:
        for indices in (np.array([7, 0, 3, 3]), slice(2, 9, 3), slice(None, None, -1)):
            expected = train.position_m.numpy()[indices]
            np.testing.assert_array_equal(dataset.field("train", "position_m", indices), expected)


@pytest.mark.parametrize("name", ["speed", "h_freq", "time_s"])
def test_a_field_that_is_not_there_is_named(path: Path, name: str) -> None:
    with ChannelDataset.open(path) as dataset, pytest.raises(DataError, match=f"'{name}'.*it has speed_m_"):
        dataset.field("train", name)


@pytest.mark.parametrize("num_users", [86, 257])
def test_any_number_of_users_reads_back(tmp_path: Path, num_users: int) -> None:
    """Only channels are chunked: what is known of many users is as plain as of one."""
    spec = dataclasses.replace(
        packaged_spec("tdl_a"), drops=SplitSizes(train=5, validation=0, test=0), num_users=num_users
    )
    batch, path = random_batch(spec, 5), tmp_path / "many.h5"
    write_dataset(path, spec, {"train": batch}, "a test")
    with h5py.File(path) as file:
        assert [name for name in dataset_fields(spec) if file[f"train/{name}"].chunks] == ["h_freq"]
    with ChannelDataset.open(path) as dataset:
        read = dataset.batch("train", np.array([4, 0, 2]))
        for name in dataset_fields(spec):
            assert torch.equal(getattr(read, name), getattr(batch, name)[[4, 0, 2]]), name
            if name != "h_freq":
                assert torch.equal(dataset.field("train", name), getattr(batch, name)), name


def test_many_users_are_generated_and_verified(tmp_path: Path) -> None:
    spec = dataclasses.replace(
        packaged_spec("tdl_a"), drops=SplitSizes(train=3, validation=0, test=0), num_users=100
    )
    generate(spec, tmp_path / "many.h5")
    assert verify(tmp_path / "many.h5").num_drops["train"] == 3


def test_beyond_the_split_is_an_index_error(path: Path) -> None:
    with ChannelDataset.open(path) as dataset, pytest.raises(IndexError):
        dataset.batch("train", np.array([11]))


def test_an_unknown_split_is_named(path: Path) -> None:
    with ChannelDataset.open(path) as dataset, pytest.raises(DataError, match="'training'; expected one of"):
        dataset.batch("training", np.array([0]))


def test_a_dataset_travels_by_pickle_and_reopens(path: Path, train: ChannelBatch) -> None:
    dataset = ChannelDataset.open(path)
    dataset.batch("train", np.array([0]))
    copy = pickle.loads(pickle.dumps(dataset))
    dataset.close()
    assert torch.equal(copy.batch("train", np.array([6])).h_freq, train.h_freq[[6]])
    assert torch.equal(dataset.batch("train", np.array([6])).h_freq, train.h_freq[[6]])
    copy.close()
    dataset.close()


def test_other_processes_read_the_same(path: Path, train: ChannelBatch, tmp_path: Path) -> None:
    with ChannelDataset.open(path) as dataset:
        dataset.batch("train", np.array([0]))  # the file is open when the process forks
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, dataset.batch("train", np.array([9, 2])).h_freq.numpy().tobytes()[:1000])
            os._exit(0)
        os.waitpid(child, 0)
        ours = dataset.batch("train", np.array([9, 2])).h_freq
    assert os.read(reader, 1000) == ours.numpy().tobytes()[:1000]
    os.close(reader)
    os.close(writer)
    assert torch.equal(ours, train.h_freq[[9, 2]])


def test_the_file_explains_itself(path: Path) -> None:
    with h5py.File(path) as file:
        h_freq = file["train/h_freq"]
        assert [axis.label for axis in h_freq.dims] == list(AXES)
        assert h_freq.chunks == (1, *drop_shape(SPEC)) and h_freq.dtype == np.complex64
        assert all("unit" in file[f"train/{name}"].attrs for name in dataset_fields(SPEC))
        assert 'name = "quickstart"' in file.attrs["spec"]
        assert {"version_airlam", "version_torch", "version_numpy"} <= set(file.attrs)
        assert len(file["train/shard_sha256"]) == 3 and len(file["train/shard_seed"]) == 3


def test_a_file_holds_little_but_its_drops(path: Path) -> None:
    assert path.stat().st_size < 14 * drop_bytes(SPEC) + 40_000


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        ChannelDataset.open(tmp_path / "none.h5")


def test_a_truncated_file(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="cut short") as raised:
        ChannelDataset.open(path)
    assert "\n" not in str(raised.value)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("speed, time\n1, 2\n")
    with pytest.raises(DataError, match="no HDF5 file"):
        ChannelDataset.open(text)


def test_foreign_hdf5(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["H"] = np.zeros(3)
    with pytest.raises(DataError, match="not a dataset of airlam"):
        ChannelDataset.open(foreign)


def test_a_missing_field(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["test/los"]
    with pytest.raises(DataError, match="lacks test/los"):
        ChannelDataset.open(path)


def test_a_wrong_shape(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["train/h_freq"]
        file["train/h_freq"] = np.zeros((11, 1, 16), np.complex64)
    with pytest.raises(DataError, match="the spec says"):
        ChannelDataset.open(path)


@pytest.mark.parametrize("name", ["shard_sha256", "shard_seed"])
def test_shards_without_a_checksum_or_seed(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        values = file[f"train/{name}"][:2]
        del file[f"train/{name}"]
        file[f"train/{name}"] = values
    with pytest.raises(DataError, match=f"train/{name} is .*the spec says"):
        ChannelDataset.open(path)


def test_damage_anywhere_is_found_and_is_one_line(path: Path, tmp_path: Path) -> None:
    """Random bytes within the head, where HDF5's own structures lie, and files cut anywhere."""
    whole, generator, refused = path.read_bytes(), random.Random(1), 0
    damaged = tmp_path / "damaged.h5"
    for trial in range(150):
        content = bytearray(whole)
        for _ in range(generator.choice([1, 4, 30])):
            content[generator.randrange(20_000)] = generator.randrange(256)
        damaged.write_bytes(content if trial % 5 else whole[: generator.randrange(len(whole))])
        try:
            info(damaged)
            verify(damaged)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def test_sizes_that_the_file_cannot_hold_take_no_memory(path: Path) -> None:
    """A few bytes of a file may promise any number of drops."""
    many = 10**12
    with h5py.File(path, "r+") as file:
        file.attrs["spec"] = file.attrs["spec"].replace("train = 11", f"train = {many}")
        for name, field in dataset_fields(SPEC).items():
            del file[f"train/{name}"]
            chunks = (1, *field.shape) if name == "h_freq" else None
            file["train"].create_dataset(name, (many, *field.shape), field.dtype, chunks=chunks)
        for name, kind in SHARD_FIELDS.items():
            del file[f"train/{name}"]
            file["train"].create_dataset(name, (many // 4,), kind)
    tracemalloc.start()
    with pytest.raises(DataError, match="bytes, its train alone would have"):
        ChannelDataset.open(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "value"), [("format_version", "one"), ("format", np.zeros(3)), ("format_version", np.zeros(2))]
)
def test_marks_of_another_kind(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(DataError):
        ChannelDataset.open(path)


def test_a_compressed_field(path: Path, train: ChannelBatch) -> None:
    with h5py.File(path, "r+") as file:
        del file["train/h_freq"]
        file.create_dataset(
            "train/h_freq", data=train.h_freq.numpy(), chunks=(1, *drop_shape(SPEC)), compression="gzip"
        )
    with pytest.raises(DataError, match="h5repack"):
        ChannelDataset.open(path)


def test_another_format_version(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(DataError, match="format version 99"):
        ChannelDataset.open(path)


def test_a_damaged_spec(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["spec"] = "nam = 3"
    with pytest.raises(DataError, match="no readable spec"):
        ChannelDataset.open(path)


def test_a_file_cut_while_it_is_open(path: Path) -> None:
    with ChannelDataset.open(path) as dataset:
        os.truncate(path, 10_000)
        with pytest.raises(DataError, match="ends within a drop"):
            dataset.batch("train", np.arange(11))


def test_sizes_must_be_the_specs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train has 2 drops where the spec says 11"):
        write_dataset(tmp_path / "x.h5", SPEC, {"train": random_batch(SPEC, 2)}, "a test")
    assert list(tmp_path.iterdir()) == []


def test_readings_that_a_batch_lacks_are_named(tmp_path: Path) -> None:
    spec = dataclasses.replace(
        packaged_spec("street_canyon"), drops=SplitSizes(train=2, validation=0, test=0)
    )
    with pytest.raises(DataError, match=r"lacks the readings trajectory, time_s, .*csi_age_s"):
        write_dataset(tmp_path / "x.h5", spec, {"train": random_batch(spec, 2)}, "a test")
    assert list(tmp_path.iterdir()) == []


def random_readings(spec: DatasetSpec, num_drops: int) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(3)
    return {
        name: torch.from_numpy((50 * random.random((num_drops, *field.shape))).astype(field.dtype))
        for name, field in reading_fields(spec).items()
    }


@pytest.mark.parametrize("num_users", [2, 100])
def test_readings_of_any_size_read_back(tmp_path: Path, num_users: int) -> None:
    spec = dataclasses.replace(
        packaged_spec("street_canyon"),
        drops=SplitSizes(train=3, validation=0, test=0),
        num_users=num_users,
        shard_drops=2,
    )
    batch = dataclasses.replace(random_batch(spec, 3), readings=random_readings(spec, 3))
    write_dataset(tmp_path / "x.h5", spec, {"train": batch}, "a test")
    with ChannelDataset.open(tmp_path / "x.h5") as dataset:
        read = dataset.batch("train", np.array([2, 0]), readings=None)
        assert list(read.readings) == list(reading_fields(spec))
        for name, values in batch.readings.items():
            assert torch.equal(read.readings[name], values[[2, 0]]), name
            assert torch.equal(dataset.field("train", name, slice(1, 3)), values[1:]), name
        with pytest.raises(DataError, match="no 'camera' to give; it has trajectory"):
            dataset.batch("train", np.array([0]), readings=("camera",))


def test_the_checksum_is_the_bytes_of_one_field_after_another() -> None:
    batch = random_batch(SPEC, 4)
    arrays = batch_arrays(batch, SPEC)
    digest = ShardDigest(SPEC)
    for rows in (slice(0, 3), slice(3, 4)):
        digest.update({name: values[rows] for name, values in arrays.items()})
    whole = b"".join(arrays[name].tobytes() for name in dataset_fields(SPEC))
    assert digest.hexdigest() == hashlib.sha256(whole).hexdigest()


def test_nan_is_not_written(tmp_path: Path, train: ChannelBatch) -> None:
    train.h_freq[9, 0, 3, 0, 0, 1, 2] = complex(0, float("inf"))
    batches = {"train": train, "test": random_batch(SPEC, 3)}
    with pytest.raises(DataError, match="train drop 9 has NaN or infinity in h_freq"):
        write_dataset(tmp_path / "x.h5", SPEC, batches, "a test")
    still = dataclasses.replace(random_batch(SPEC, 11), speed_m_per_s=torch.full((11, 1), float("nan")))
    with pytest.raises(DataError, match="train drop 0 has NaN or infinity in speed_m_per_s"):
        write_dataset(tmp_path / "x.h5", SPEC, {**batches, "train": still}, "a test")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file(tmp_path: Path, train: ChannelBatch) -> None:
    batches = {"train": train, "test": random_batch(SPEC, 3)}
    with pytest.raises(DataError, match="is a folder; name a file"):
        write_dataset(tmp_path, SPEC, batches, "a test", overwrite=True)


def test_no_room_leaves_no_file(tmp_path: Path, train: ChannelBatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_dataset(tmp_path / "x.h5", SPEC, {"train": train, "test": random_batch(SPEC, 3)}, "a test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_drops", [1, 500])
def test_the_room_that_is_taken_is_enough_and_given_back(tmp_path: Path, num_drops: int) -> None:
    sizes = SplitSizes(train=num_drops, validation=0, test=0)
    spec = dataclasses.replace(packaged_spec("tdl_a"), drops=sizes, shard_drops=1)
    path = tmp_path / "x.h5"
    write_dataset(path, spec, {"train": random_batch(spec, num_drops)}, "a test")
    content = num_drops * drop_bytes(spec)
    assert content < path.stat().st_size < file_bytes(spec, num_drops)
    assert path.stat().st_blocks * 512 < path.stat().st_size + 10_000


def test_an_existing_file_is_kept(path: Path, train: ChannelBatch) -> None:
    with pytest.raises(DataError, match="exists"):
        write_dataset(path, SPEC, {"train": train, "test": random_batch(SPEC, 3)}, "a test")
