"""Other formats: what goes out comes back equal, and foreign files are understood or refused in one line."""

import dataclasses
import pickle
import random
import resource
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.exchange import export, import_foreign, import_wifo, load_llm4cp, load_quadriga
from airlam.datasets.fields import AXES, dataset_fields
from airlam.datasets.layout import batch_arrays, write_dataset
from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.datasets.store import ChannelDataset
from airlam.errors import AirlamError, DataError, SpecError
from airlam.radio.channel import ChannelBatch
from airlam.specs import ArraySpec, SplitSizes, spec_to_toml

SPEC = dataclasses.replace(packaged_spec("quickstart"), drops=SplitSizes(train=5, validation=0, test=2))
FOREIGN = Path(__file__).parents[2] / "shared" / "data" / "quadriga_llm4cp_dev.npz"


@pytest.fixture(scope="module")
def batches() -> dict[str, ChannelBatch]:
    return {"train": draw_drops(SPEC, 1, 5), "test": draw_drops(SPEC, 2, 2)}


@pytest.fixture
def path(tmp_path: Path, batches: dict[str, ChannelBatch]) -> Path:
    write_dataset(tmp_path / "set.h5", SPEC, batches, "a test")
    return tmp_path / "set.h5"


def test_npz_holds_everything(path: Path, batches: dict[str, ChannelBatch]) -> None:
    export(path, path.with_suffix(".npz"))
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert str(arrays["spec"]) == spec_to_toml(SPEC)
        for split, batch in batches.items():
            for name, values in batch_arrays(batch, SPEC).items():
                assert arrays[f"{split}_{name}"].dtype == values.dtype
                assert (arrays[f"{split}_{name}"] == values).all()
                assert tuple(arrays[f"{split}_{name}_axes"]) == dataset_fields(SPEC)[name].axes


def test_matlab_sees_the_axes_from_the_other_end(path: Path, batches: dict[str, ChannelBatch]) -> None:
    target = path.with_suffix(".mat")
    export(path, target)
    head = target.read_bytes()[:128]
    assert head.startswith(b"MATLAB 7.3 MAT-file") and head[124:] == b"\x00\x02IM"
    assert scipy.io.matlab.matfile_version(str(target)) == (2, 0)
    with h5py.File(target) as file:
        for split, batch in batches.items():
            for name, values in batch_arrays(batch, SPEC).items():
                variable = file[f"{split}_{name}"]
                found = variable[()].view(values.dtype)
                assert (found == values).all()
                kind = {"bool": b"logical"}.get(values.dtype.name, b"single")
                assert variable.attrs["MATLAB_class"] == kind
        axes = file["train_h_freq_axes"][()].astype(np.uint16).tobytes().decode("utf-16-le")
        assert axes.split(",") == list(reversed(AXES))


def test_matlab_files_open_in_old_hdf5(path: Path) -> None:
    """HDF5 1.8, which MATLAB long came with, knows superblocks up to version 2."""
    export(path, path.with_suffix(".mat"))
    with path.with_suffix(".mat").open("rb") as file:
        file.seek(512)
        head = file.read(9)
    assert head[:8] == b"\x89HDF\r\n\x1a\n" and head[8] <= 2


@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_no_room_leaves_no_export(path: Path, suffix: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            export(path, path.with_suffix(suffix))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in path.parent.iterdir()] == ["set.h5"]


def test_tfrecords_that_cannot_be_written_are_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tf = pytest.importorskip("tensorflow")

    def full(self: Any, record: bytes) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.io.TFRecordWriter, "write", full)
    with pytest.raises(DataError, match="No space left"):
        export(path, path.with_suffix(".tfrecord"))
    assert [file.name for file in path.parent.iterdir()] == ["set.h5"]


def test_tfrecord_holds_everything(path: Path, batches: dict[str, ChannelBatch]) -> None:
    tf = pytest.importorskip("tensorflow")
    export(path, path.with_suffix(".tfrecord"))
    records = list(tf.data.TFRecordDataset(str(path.with_suffix(".tfrecord"))))
    assert len(records) == 7
    features = tf.train.Example.FromString(records[6].numpy()).features.feature
    assert features["split"].bytes_list.value[0] == b"test"
    for name, values in batch_arrays(batches["test"], SPEC).items():
        shape = tuple(features[f"{name}_shape"].int64_list.value)
        found = np.frombuffer(features[name].bytes_list.value[0], values.dtype).reshape(shape)
        assert (found == values[1]).all()


def test_tfrecord_without_tensorflow_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    with pytest.raises(DataError, match=r"pip install 'airlam\[litert\]'"):
        export(path, path.with_suffix(".tfrecord"))
    assert [file.name for file in path.parent.iterdir()] == ["set.h5"]


def test_unknown_and_existing_targets(path: Path) -> None:
    with pytest.raises(DataError, match=r"'.csv'; choose one of .npz"):
        export(path, path.with_suffix(".csv"))
    path.with_suffix(".npz").write_text("mine")
    with pytest.raises(DataError, match="exists"):
        export(path, path.with_suffix(".npz"))


def quadriga_arrays(users: int = 2, speeds: int = 10) -> dict[str, Any]:
    """A set in the layout of ours in shape, each value telling its port."""
    port = np.arange(32, dtype=np.float16)
    arrays: dict[str, Any] = {}
    for name, slots in (("H_his", 16), ("H_pre", 4), ("H_D", 4)):
        values = np.zeros((speeds, users, slots, 48, 32, 2), np.float16)
        values[..., 0] = port
        values[..., 1] = np.arange(slots)[:, None, None]
        arrays[name] = values
    return arrays | {"speeds_kmh": np.arange(10, 110, 10)[:speeds], "scale": np.float64(1e-6)}


def test_quadriga_ports_become_ours(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **quadriga_arrays())
    links = load_quadriga(path)
    assert links.history.shape == (20, 16, 1, 32, 48) and links.history.dtype == torch.complex64
    ours = links.history[0, 3, 0, :, 0].real.reshape(2, 4, 4)  # polarisation, column, row from the top
    for pol, column, row in ((0, 0, 0), (1, 2, 3), (0, 3, 1)):
        assert ours[pol, column, row] == column * 8 + (3 - row) * 2 + pol
    assert (links.history[0, 3].imag == 3).all() and links.amplitude_scale == 1e-6
    assert links.speed_m_per_s[[0, 1, 2, 19]].tolist() == pytest.approx([v / 3.6 for v in (10, 10, 20, 100)])
    tdd, fdd = links.setting("tdd"), links.setting("fdd")
    assert not tdd.is_fdd and fdd.is_fdd and tdd.base_station.num_ports == 32
    assert fdd.target_frequencies_hz[0] - fdd.history_frequencies_hz[-1] == pytest.approx(180e3)
    assert links.future("fdd").shape == (20, 4, 1, 32, 48)


def test_quadriga_becomes_a_dataset(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **quadriga_arrays())
    import_foreign(tmp_path / "set.npz", tmp_path / "set.h5")
    links = load_quadriga(tmp_path / "set.npz")
    with ChannelDataset.open(tmp_path / "set.h5") as dataset:
        batch = dataset.batch("test", np.arange(20))
    assert torch.equal(batch.links()[:, 0, :16], links.history)
    assert torch.equal(batch.links()[:, 0, 16:], links.future_tdd)
    assert torch.equal(batch.speed_m_per_s[:, 0], links.speed_m_per_s)


def test_bad_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    arrays = quadriga_arrays(users=1)
    np.savez(path, **arrays | {"H_pre": arrays["H_pre"][:, :, :3]})
    with pytest.raises(DataError, match="H_pre is float16"):
        load_quadriga(path)
    np.savez(path, H_his=arrays["H_his"])
    with pytest.raises(DataError, match="holds no H_D"):
        load_quadriga(path)
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match="no whole NPZ"):
        load_quadriga(path)
    with pytest.raises(DataError, match="no whole NPZ"):
        load_quadriga(tmp_path / "absent.npz")


def test_pickles_in_npz_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(
        path,
        **quadriga_arrays(users=1) | {"scale": np.array(pickle, dtype=object).astype(str).astype(object)},
    )
    with pytest.raises(DataError, match="scale is object"):
        load_quadriga(path)


def test_speeds_that_are_read_are_the_specs(tmp_path: Path) -> None:
    """A set faster than LLM4CP's says so, and with it the Doppler that predictors may assume."""
    path = tmp_path / "set.npz"
    np.savez(path, **quadriga_arrays(users=1, speeds=3) | {"speeds_kmh": np.array([250.0, 60.0, 0.0])})
    links = load_quadriga(path)
    assert links.spec.mobility.min_speed_m_per_s == 0.0
    assert links.spec.mobility.max_speed_m_per_s == pytest.approx(250 / 3.6)
    import_foreign(path, tmp_path / "set.h5")
    with ChannelDataset.open(tmp_path / "set.h5") as dataset:
        assert dataset.spec.mobility == links.spec.mobility


NO_USERS = {
    name: np.zeros((10, 0, slots, 48, 32, 2), np.float16)
    for name, slots in (("H_his", 16), ("H_pre", 4), ("H_D", 4))
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"H_pre": np.full((10, 1, 4, 48, 32, 2), np.nan, np.float16)}, "H_pre holds NaN"),
        ({"speeds_kmh": np.array(["fast"] * 10)}, "speeds_kmh is"),
        ({"speeds_kmh": np.ones((2, 5))}, "speeds_kmh is"),
        ({"speeds_kmh": np.arange(-1.0, 9.0)}, "expected finite ones from 0 up"),
        ({"speeds_kmh": np.full(10, np.nan)}, "expected finite ones from 0 up"),
        ({"speeds_kmh": np.arange(10) * 1e9}, "beyond light"),
        ({"scale": np.ones(3)}, "scale is"),
        ({"scale": np.complex64(1)}, "scale is"),
        ({"scale": 0.0}, "expected a positive one"),
        ({"scale": np.inf}, "expected a positive one"),
        (NO_USERS, "10 speeds of 0 users"),
    ],
)
def test_values_that_no_channel_has_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "set.npz", **quadriga_arrays(users=1) | change)
    with pytest.raises(AirlamError, match=words) as caught:
        import_foreign(tmp_path / "set.npz", tmp_path / "set.h5")
    assert "\n" not in str(caught.value) and not (tmp_path / "set.h5").exists()


@pytest.mark.filterwarnings("ignore")  # of scipy, about what it cannot read
@pytest.mark.parametrize("suffix", ["npz", "mat"])
def test_damage_in_foreign_files_is_one_line(tmp_path: Path, suffix: str) -> None:
    """Compressed files: their checksums find what was changed."""
    path = tmp_path / f"set.{suffix}"
    if suffix == "npz":
        np.savez_compressed(path, **quadriga_arrays(users=1, speeds=2) | {"speeds_kmh": np.array([10, 20])})
    else:
        scipy.io.savemat(path, {"X_val": np.ones((2, 12, 16, 24), complex)}, do_compression=True)
    whole, generator, refused = path.read_bytes(), random.Random(1), 0
    for trial in range(60):
        content = bytearray(whole)
        for _ in range(generator.choice([1, 5])):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content if trial % 5 else whole[: generator.randrange(len(whole))])
        try:
            import_foreign(path, tmp_path / "set.h5", spec=None if suffix == "npz" else SPEC, overwrite=True)
        except AirlamError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 30


@pytest.mark.parametrize(
    "value",
    [
        np.array([[1, "a"]], dtype=object),
        {"field": 1.0},
        scipy.sparse.csc_matrix(np.eye(3)),
        "text",
        np.full((2, 12, 16, 24), np.nan + 0j),
        np.full((2, 12, 16, 24), 1e300 + 0j),
        np.zeros((0, 12, 16, 24), complex),
    ],
    ids=["cell", "struct", "sparse", "char", "nan", "huge", "empty"],
)
def test_matlab_variables_of_other_kinds_are_refused(tmp_path: Path, value: Any) -> None:
    scipy.io.savemat(tmp_path / "set.mat", {"X_val": value})
    with pytest.raises(DataError, match="X_val") as caught:
        import_foreign(tmp_path / "set.mat", tmp_path / "set.h5", spec=SPEC)
    assert "\n" not in str(caught.value) and not (tmp_path / "set.h5").exists()


def test_references_in_matlab_files_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "set.mat", "w") as file:
        file.create_dataset("X_val", (2,), h5py.ref_dtype)
    with pytest.raises(DataError, match="no array of numbers"):
        import_foreign(tmp_path / "set.mat", tmp_path / "set.h5", spec=SPEC)


def test_a_spec_for_a_layout_that_states_its_own_is_refused(tmp_path: Path) -> None:
    for name in ("set.npz", "H_U_his_test.mat"):
        with pytest.raises(SpecError, match="leave the spec out"):
            import_foreign(tmp_path / name, tmp_path / "set.h5", spec=SPEC)


def llm4cp_values(slots: int) -> np.ndarray:
    """[speeds, users, slots, 48, column, row, polarisation] complex128."""
    generator = np.random.default_rng(slots)
    parts = generator.standard_normal((2, 10, 2, slots, 48, 4, 4, 2))
    values: np.ndarray = parts[0] + 1j * parts[1]
    return values


def save_matlab73(path: Path, name: str, values: np.ndarray) -> None:
    """As MATLAB saves it: axes reversed, complex values as pairs."""
    pair = np.dtype([("real", "<f8"), ("imag", "<f8")])
    with h5py.File(path, "w", userblock_size=512) as file:
        file[name] = np.ascontiguousarray(values.T).view(pair)


@pytest.mark.parametrize("kind", ["v7.3", "v5"])
def test_llm4cp_files(tmp_path: Path, kind: str) -> None:
    values = {f"H_U_{part}_test": llm4cp_values(slots) for part, slots in (("his", 16), ("pre", 4))}
    for name, each in values.items():
        if kind == "v7.3":
            save_matlab73(tmp_path / f"{name}.mat", name, each)
        else:
            scipy.io.savemat(tmp_path / f"{name}.mat", {name: each})
    links = load_llm4cp(tmp_path, "test")
    expected = values["H_U_his_test"].astype(np.complex64)[6, 1, 5, 11, 2, 3, 1]  # row 3 from the bottom is 0
    assert links.history[13, 5, 0, 16 + 2 * 4 + 0, 11] == torch.tensor(expected)
    assert links.speed_m_per_s[13] == pytest.approx(70 / 3.6)
    with pytest.raises(DataError, match="no downlink future"):
        links.future("fdd")
    import_foreign(tmp_path / "H_U_his_test.mat", tmp_path / "set.h5")
    with ChannelDataset.open(tmp_path / "set.h5") as dataset:
        assert torch.equal(dataset.batch("test", np.array([13])).links()[0, 0, :16], links.history[13])


def test_a_wrong_llm4cp_file(tmp_path: Path) -> None:
    save_matlab73(tmp_path / "H_U_his_test.mat", "H_U_his_test", np.zeros((10, 2, 16, 12), complex))
    with pytest.raises(DataError, match="expected speeds x users"):
        load_llm4cp(tmp_path, "test")
    save_matlab73(tmp_path / "H_U_his_test.mat", "X", np.zeros(3, complex))
    with pytest.raises(DataError, match="holds no H_U_his_test; it has X"):
        load_llm4cp(tmp_path, "test")
    (tmp_path / "H_U_his_test.mat").write_text("nothing")
    with pytest.raises(DataError, match="as MATLAB"):
        load_llm4cp(tmp_path, "test")


def test_wifo_layout(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, base_station=ArraySpec(num_cols=4))
    shape = (3, spec.grid.num_slots, 4, spec.grid.num_subcarriers)
    values = np.random.default_rng(1).standard_normal((*shape, 2)) @ np.array([1, 1j])
    path = tmp_path / "D17.mat"
    save_matlab73(path, "X_val", values)
    with pytest.raises(DataError, match=r"give a dataset spec, or describe them in .*D17.toml"):
        import_foreign(path, tmp_path / "set.h5")
    (tmp_path / "D17.toml").write_text(spec_to_toml(spec))
    import_foreign(path, tmp_path / "set.h5")
    with ChannelDataset.open(tmp_path / "set.h5") as dataset:
        links = dataset.batch("test", np.arange(3)).links()
    assert torch.equal(links[:, 0, :, 0], torch.from_numpy(values.astype(np.complex64)))
    with pytest.raises(DataError, match="X_val is"):
        import_wifo(path, SPEC, tmp_path / "other.h5")


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'.csv'; QuaDRiGa's"):
        import_foreign(tmp_path / "a.csv", tmp_path / "set.h5")


@pytest.mark.skipif(not FOREIGN.exists(), reason=f"{FOREIGN.name} is not here: bring your own copy")
def test_quadriga_data_lies_as_we_say() -> None:
    """Delays are positive, our port order is the sparsest, and users stand below the array's normal."""
    links = load_quadriga(FOREIGN)
    snapshot = links.history[:, 0, 0]  # [links, ports, f]
    profile = torch.fft.ifft(snapshot, dim=-1).abs().square().mean(dim=(0, 1))
    assert profile[:12].sum() > 0.85 * profile.sum()
    taps = torch.fft.ifft(snapshot, dim=-1)[..., :12]

    def concentration(pattern: tuple[int, ...], axes: tuple[int, int]) -> float:
        spectrum = torch.fft.fft2(taps.reshape(len(taps), *pattern, 12), dim=axes).abs().square()
        return float(spectrum.square().sum() / spectrum.sum().square())

    ours = concentration((2, 4, 4), (2, 3))
    assert ours > 1.3 * concentration((4, 2, 4), (1, 3)) and ours > 1.3 * concentration((4, 4, 2), (1, 2))
    rows = snapshot.reshape(-1, 2, 4, 4, 48)
    step = (rows[..., 1:, :] * rows[..., :-1, :].conj()).sum().angle()  # from a row to the one below it
    assert step > 0  # waves come from below, so lower rows are ahead in phase
    assert float(snapshot.abs().square().mean()) == pytest.approx(1.0, rel=0.3)
    hold = links.future_tdd - links.history[:, -1:]
    per_speed = hold.abs().square().reshape(10, -1).sum(1) / links.future_tdd.abs().square().reshape(
        10, -1
    ).sum(1)
    assert (per_speed[1:] > per_speed[:-1]).all() and 1.4 < per_speed[-1] < 2.0
