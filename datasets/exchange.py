"""Other people's formats: channels from QuaDRiGa in LLM4CP's setting, from LLM4CP's own files and WiFo's, and
(in ``export``) ours to NPZ, MATLAB and TFRecord.

LLM4CP's files hold history and future of separate bands, so no full grid exists for FDD: ``ForeignLinks``
keeps what is there, and its TDD part converts to a dataset of ours. Amplitudes are kept as stored.

QuaDRiGa orders ports (column, row, polarisation) with rows from the bottom, ours are (polarisation, column,
row) from the top. The data confirm the first: that order makes the angular spectrum sparsest. The second
follows from users standing below the array. Which end the columns start from cannot be told from the data.
Its frequency axis has Sionna's sign: delays come out positive under exp(-j 2 pi f tau).
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from airlam.datasets.export import export
from airlam.datasets.fields import drop_shape
from airlam.datasets.foreign_files import Header, read_matlab, read_npz, require_finite
from airlam.datasets.layout import write_dataset
from airlam.errors import DataError, SpecError
from airlam.radio.channel import ChannelBatch, PredictionSetting
from airlam.specs import (
    ArraySpec,
    ChannelSpec,
    DatasetSpec,
    GridSpec,
    MobilitySpec,
    PlacementSpec,
    SplitSizes,
    read_spec,
)
from airlam.units import KMH_PER_M_PER_S

__all__ = [
    "ForeignLinks",
    "export",
    "import_foreign",
    "import_links",
    "import_wifo",
    "load_llm4cp",
    "load_quadriga",
]

NUM_HISTORY, NUM_HORIZON, NUM_BLOCKS, NUM_PORTS = 16, 4, 48, 32
MAX_SPEED_KMH = 100.0
QUADRIGA_ARRAYS = {"H_his": NUM_HISTORY, "H_pre": NUM_HORIZON, "H_D": NUM_HORIZON}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignLinks:
    """Links of a foreign set, every one a user of its own.

    history: complex64 [num_links, 16, 1, 32, 48], uplink.
    future_tdd: complex64 [num_links, 4, 1, 32, 48], uplink.
    future_fdd: the same on the downlink band, None where the set has none.
    speed_m_per_s: float32 [num_links].
    amplitude_scale: what to multiply by for physical amplitudes.
    """

    spec: DatasetSpec  # of the full FDD grid
    history: torch.Tensor
    future_tdd: torch.Tensor
    future_fdd: torch.Tensor | None
    speed_m_per_s: torch.Tensor
    amplitude_scale: float = 1.0

    def setting(self, duplex: str) -> PredictionSetting:
        """What a predictor may know of these links, for tdd or fdd."""
        return PredictionSetting.from_dataset(
            self.spec, self.history.shape[1], self.future_tdd.shape[1], duplex
        )

    def future(self, duplex: str) -> torch.Tensor:
        """The prediction target, complex64 [num_links, 4, 1, 32, 48]; DataError where fdd has none."""
        if duplex == "tdd":
            return self.future_tdd
        if self.future_fdd is None:
            raise DataError(f"{self.spec.name} has no downlink future, which fdd needs; use tdd")
        return self.future_fdd


def llm4cp_spec(
    name: str, description: str, num_links: int, speeds_kmh: tuple[float, float], split: str = "test"
) -> DatasetSpec:
    """LLM4CP's setting as QuaDRiGa makes it: its base station has V and H ports and tilts electrically.

    speeds_kmh: the lowest and the highest that the links have.
    """
    sizes = dict.fromkeys(("train", "validation", "test"), 0) | {split: num_links}
    low, high = speeds_kmh
    return DatasetSpec(
        name=name,
        description=description,
        channel=ChannelSpec(model="uma", carrier_frequency_hz=2.4e9, direction="uplink", los="nlos"),
        base_station=ArraySpec(
            num_rows=4, num_cols=4, polarization="dual", polarization_type="VH", antenna_pattern="38.901"
        ),
        user=ArraySpec(antenna_pattern="38.901"),
        placement=PlacementSpec(
            base_station_height_m=30.0, arc_deg=(120.0, 240.0), user_orientation="heading"
        ),
        mobility=MobilitySpec(
            min_speed_m_per_s=low / KMH_PER_M_PER_S, max_speed_m_per_s=high / KMH_PER_M_PER_S
        ),
        grid=GridSpec(
            subcarrier_spacing_hz=180e3,
            num_uplink_subcarriers=NUM_BLOCKS,
            num_downlink_subcarriers=NUM_BLOCKS,
        ),
        drops=SplitSizes(**sizes),
    )


def load_quadriga(path: str | Path) -> ForeignLinks:
    """The links of a ``quadriga_llm4cp_*.npz``, speed by speed; stored at unit mean power.

    DataError where the file is not such a set; its headers are checked before memory is taken.
    """
    path = Path(path)
    arrays = read_npz(path, {*QUADRIGA_ARRAYS, "speeds_kmh", "scale"}, _check_quadriga)
    _check_quadriga_values(path, arrays)
    channels = {name: _quadriga_links(arrays[name]) for name in QUADRIGA_ARRAYS}
    users = arrays["H_his"].shape[1]
    speeds_kmh = arrays["speeds_kmh"]
    speed = np.repeat(speeds_kmh.astype(np.float32) / KMH_PER_M_PER_S, users)
    extremes = float(speeds_kmh.min()), float(speeds_kmh.max())
    return ForeignLinks(
        spec=llm4cp_spec(path.stem, "QuaDRiGa channels in LLM4CP's setting", len(speed), extremes),
        history=channels["H_his"],
        future_tdd=channels["H_pre"],
        future_fdd=channels["H_D"],
        speed_m_per_s=torch.from_numpy(speed.astype(np.float32)),
        amplitude_scale=float(arrays["scale"]),
    )


def load_llm4cp(folder: str | Path, split: str) -> ForeignLinks:
    """The links of LLM4CP's own MATLAB files.

    They are ``H_U_his_<split>.mat``, ``H_U_pre_<split>.mat`` and, if there, ``H_D_pre_<split>.mat``; each
    holds [speeds, users, slots, 48, column, row, polarisation]; split is train or test.
    """
    folder = Path(folder)
    names = {"history": f"H_U_his_{split}", "tdd": f"H_U_pre_{split}", "fdd": f"H_D_pre_{split}"}
    slots = {"history": NUM_HISTORY, "tdd": NUM_HORIZON, "fdd": NUM_HORIZON}
    channels = {
        key: _llm4cp_links(folder / f"{name}.mat", name, slots[key])
        for key, name in names.items()
        if key != "fdd" or (folder / f"{name}.mat").exists()
    }
    (history, num_speeds), (future, _) = channels["history"], channels["tdd"]
    if len(future) != len(history):
        raise DataError(
            f"{folder}: {len(history)} histories but {len(future)} futures; take files of one run"
        )
    if num_speeds == 10:  # the test set: 10, 20, ... 100 km/h
        speed_kmh = torch.linspace(10.0, MAX_SPEED_KMH, 10)
    else:  # the training set: 900 speeds from 10.1 km/h
        speed_kmh = 10 + 90 * torch.arange(1, num_speeds + 1) / num_speeds
    extremes = float(speed_kmh[0]), float(speed_kmh[-1])
    return ForeignLinks(
        spec=llm4cp_spec(f"llm4cp_{split}", "LLM4CP's own files", len(history), extremes),
        history=history,
        future_tdd=future,
        future_fdd=channels["fdd"][0] if "fdd" in channels else None,
        speed_m_per_s=(speed_kmh / KMH_PER_M_PER_S).repeat_interleave(len(history) // num_speeds),
    )


def import_foreign(
    path: Path, target: Path, *, spec: DatasetSpec | None = None, overwrite: bool = False
) -> None:
    """Turns a foreign file into a dataset, by what it is.

    A QuaDRiGa ``.npz``; one of LLM4CP's ``H_U_*_<split>.mat``, whose companions lie beside it; or WiFo's
    ``.mat``, which says nothing of its grid: ``spec`` does, or a TOML file of the same name beside it.
    DataError for other files, SpecError for a ``spec`` where the layout states its own.
    """
    states_grid = path.suffix == ".npz" or path.name.startswith("H_")
    if states_grid and spec is not None:
        raise SpecError(f"the layout of {path.name} states its own grid and array; leave the spec out")
    if path.suffix == ".npz":
        import_links(load_quadriga(path), target, overwrite=overwrite)
    elif path.name.startswith("H_"):
        split = path.stem.rsplit("_", 1)[-1]
        kept = "train" if split == "train" else "test"
        import_links(load_llm4cp(path.parent, split), target, split=kept, overwrite=overwrite)
    elif path.suffix == ".mat":
        import_wifo(path, spec or _spec_beside(path), target, overwrite=overwrite)
    else:
        raise DataError(
            f"{path} ends in {path.suffix!r}; QuaDRiGa's .npz, LLM4CP's or WiFo's .mat can be imported"
        )


def _spec_beside(path: Path) -> DatasetSpec:
    """The spec in the TOML file of the same name; DataError where there is none."""
    beside = path.with_suffix(".toml")
    if not beside.exists():
        raise DataError(
            f"{path} does not say its grid and array; give a dataset spec, or describe them in {beside}"
        )
    return read_spec(DatasetSpec, beside)


def import_links(links: ForeignLinks, target: Path, *, split: str = "test", overwrite: bool = False) -> None:
    """Writes the TDD part of foreign links, history and future in one, as a dataset of ours."""
    wide = links.spec
    sizes = dict.fromkeys(("train", "validation", "test"), 0) | {split: len(links.history)}
    grid = dataclasses.replace(wide.grid, num_downlink_subcarriers=0)
    tdd = dataclasses.replace(wide, grid=grid, drops=SplitSizes(**sizes))
    h_freq = torch.cat([links.history, links.future_tdd], dim=1)  # [links, slots, user_ant, bs_ant, f]
    h_freq = rearrange(h_freq, "b t user bs f -> b 1 bs 1 user t f").contiguous()
    batch = _batch(h_freq, tdd, links.speed_m_per_s[:, None])
    write_dataset(target, tdd, {split: batch}, f"imported: {wide.description}", overwrite)


def import_wifo(path: Path, spec: DatasetSpec, target: Path, *, overwrite: bool = False) -> None:
    """Writes WiFo's ``X_val`` [samples, slots, antennas, subcarriers] as the test split of a dataset.

    The file states neither grid nor array nor speeds: ``spec`` does (uplink, one user antenna, ``drops`` is
    replaced), its ports taken in the file's order and its users at the middle of the speed range. DataError
    where the shapes disagree.
    """
    values = read_matlab(path, "X_val")
    expected = (spec.grid.num_slots, spec.base_station.num_ports, spec.grid.num_subcarriers)
    if values.ndim != 4 or values.shape[1:] != expected or drop_shape(spec)[2:4] != (1, 1) or not values.size:
        raise DataError(
            f"{path}: X_val is {values.shape}; the spec asks for samples x {expected}, "
            "uplink from one user antenna"
        )
    sized = dataclasses.replace(spec, drops=SplitSizes(train=0, validation=0, test=len(values)))
    h_freq = rearrange(torch.from_numpy(values), "b t bs f -> b 1 bs 1 1 t f").contiguous()
    middle = (spec.mobility.min_speed_m_per_s + spec.mobility.max_speed_m_per_s) / 2
    batch = _batch(h_freq, sized, torch.full((len(values), 1), middle))
    write_dataset(target, sized, {"test": batch}, "imported: WiFo X_val", overwrite)


def _batch(h_freq: torch.Tensor, spec: DatasetSpec, speed_m_per_s: torch.Tensor) -> ChannelBatch:
    """A batch of single users of whom only the speed is known."""
    return ChannelBatch(
        h_freq=h_freq,
        direction=spec.channel.direction,
        speed_m_per_s=speed_m_per_s,
        position_m=torch.zeros(len(h_freq), 1, 3),
        los=torch.full((len(h_freq), 1), spec.channel.los == "los"),
        path_loss_db=torch.zeros(len(h_freq), 1),
    )


def _to_our_ports(channels: torch.Tensor) -> torch.Tensor:
    """[links, slots, f, column, row, pol], rows from the bottom, to [links, slots, 1, ports, f]."""
    return rearrange(channels.flip(-2), "b t f column row pol -> b t 1 (pol column row) f").contiguous()


def _quadriga_links(values: NDArray[Any]) -> torch.Tensor:
    """Real and imaginary float16 [speeds, users, slots, f, ports, 2] to complex64 links in our port order."""
    pairs = torch.from_numpy(values.astype(np.float32))
    channels = torch.view_as_complex(pairs)  # [speeds, users, slots, f, ports]
    pattern = "v n t f (column row pol) -> (v n) t f column row pol"
    return _to_our_ports(rearrange(channels, pattern, column=4, row=4))


def _llm4cp_links(path: Path, name: str, num_slots: int) -> tuple[torch.Tensor, int]:
    """Links of one LLM4CP file, and how many speeds it has."""
    values = read_matlab(path, name)
    if values.ndim != 7 or values.shape[2:] != (num_slots, NUM_BLOCKS, 4, 4, 2) or not values.size:
        raise DataError(
            f"{path}: {name} is {values.shape}; expected speeds x users x {num_slots} x 48 x 4 x 4 x 2"
        )
    pattern = "v n t f column row pol -> (v n) t f column row pol"
    return _to_our_ports(rearrange(torch.from_numpy(values), pattern)), values.shape[0]


def _check_quadriga(path: Path, found: dict[str, Header]) -> None:
    """DataError where the arrays of a set have other shapes or kinds than LLM4CP's setting."""
    for name, num_axes in (("speeds_kmh", 1), ("scale", 0)):
        shape, dtype = found[name]
        if len(shape) != num_axes or dtype.kind not in "fiu":
            raise DataError(f"{path}: {name} is {dtype} {shape}; expected real numbers with {num_axes} axes")
    num_speeds = found["speeds_kmh"][0][0]
    users = found["H_his"][0][1] if len(found["H_his"][0]) > 1 else 0
    if not (users and num_speeds):
        raise DataError(f"{path} holds {num_speeds} speeds of {users} users; expected at least one of each")
    for name, slots in QUADRIGA_ARRAYS.items():
        shape, dtype = found[name]
        expected = (num_speeds, users, slots, NUM_BLOCKS, NUM_PORTS, 2)
        if shape != expected or dtype.kind != "f":
            raise DataError(f"{path}: {name} is {dtype} {shape}; expected real {expected}")


def _check_quadriga_values(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """DataError where speeds, scale or channels are what no channel has."""
    speeds, scale = arrays["speeds_kmh"], float(arrays["scale"])
    if not (np.isfinite(speeds).all() and (speeds >= 0).all()):
        raise DataError(f"{path}: speeds_kmh are {speeds.tolist()}; expected finite ones from 0 up")
    if not (math.isfinite(scale) and scale > 0):
        raise DataError(f"{path}: scale is {scale}; expected a positive one")
    for name in QUADRIGA_ARRAYS:
        require_finite(arrays[name], path, name)
