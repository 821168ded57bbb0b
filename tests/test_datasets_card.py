"""The card: measured physics against closed forms, and damage found and named."""

import dataclasses
import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from airlam.datasets.card import delay_spread_s, info, verify
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.fields import drop_shape
from airlam.datasets.layout import write_dataset
from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.errors import DataError
from airlam.radio.channel import ChannelBatch
from airlam.specs import DatasetSpec, SplitSizes


def sized(name: str, train: int) -> DatasetSpec:
    """A packaged spec with so many training drops."""
    spec = packaged_spec(name)
    return dataclasses.replace(spec, drops=SplitSizes(train=train, validation=0, test=0), shard_drops=50)


def stored(tmp_path: Path, spec: DatasetSpec) -> tuple[Path, ChannelBatch]:
    batch = draw_drops(spec, 1, spec.drops.train)
    write_dataset(tmp_path / "set.h5", spec, {"train": batch}, "a test")
    return tmp_path / "set.h5", batch


def test_omnidirectional_users_meet_clarke(tmp_path: Path) -> None:
    path, batch = stored(tmp_path, sized("quickstart", 300))
    card = verify(path)
    assert card.hold_nmse[:4] == pytest.approx(card.clarke_nmse[:4], rel=0.12)
    assert card.rms_doppler_hz == pytest.approx(card.clarke_rms_doppler_hz, rel=0.06)
    assert card.los_share == 0.0 and card.mean_path_loss_db == 0.0
    assert card.mean_power == pytest.approx(float(batch.h_freq.abs().square().mean()), rel=1e-5)
    assert card.mean_speed_m_per_s == pytest.approx(float(batch.speed_m_per_s.mean()), rel=1e-5)


def test_tdl_has_clarkes_doppler_and_its_delay_spread(tmp_path: Path) -> None:
    spec = sized("tdl_a", 600)
    grid = dataclasses.replace(spec.grid, subcarrier_spacing_hz=30e3)
    card = verify(stored(tmp_path, dataclasses.replace(spec, grid=grid))[0])
    assert card.hold_nmse[:5] == pytest.approx(card.clarke_nmse[:5], rel=0.1)
    assert card.mean_power == pytest.approx(1.0, rel=0.1)


def test_delay_spread_of_two_taps_is_half_their_distance() -> None:
    frequencies_hz = torch.arange(40, dtype=torch.float64) * 10e3
    taps = torch.exp(-2j * math.pi * frequencies_hz * 3e-6) + torch.exp(
        -2j * math.pi * frequencies_hz * 3.4e-6
    )
    phases = torch.exp(
        2j * math.pi * torch.rand(1, 1, 2000, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    )
    second = torch.exp(-2j * math.pi * frequencies_hz * 3.4e-6) * (phases - 1)
    links = (taps + second).to(torch.complex64)  # the second tap's phase is random, so the taps do not beat
    assert float(delay_spread_s(links, 10e3)) == pytest.approx(0.2e-6, rel=0.05)


def test_links_without_power_have_no_delay_spread(tmp_path: Path) -> None:
    spec = dataclasses.replace(sized("quickstart", 20), num_users=2)
    batch = draw_drops(spec, 1, 20)
    batch.h_freq[:, :, :, 1] = 0  # the second user's
    batch.h_freq[7] = 0
    write_dataset(tmp_path / "set.h5", spec, {"train": batch}, "a test")
    spread_s = delay_spread_s(batch.links()[..., :48], spec.grid.subcarrier_spacing_hz)
    known = spread_s[torch.arange(20) != 7, 0]
    assert spread_s.isnan().sum() == 21 and not known.isnan().any()
    assert verify(tmp_path / "set.h5").rms_delay_spread_s == pytest.approx(float(known.mean()))


def test_the_card_is_json_and_text(tmp_path: Path) -> None:
    path, _ = stored(tmp_path, sized("quickstart", 20))
    seen = []
    card = verify(path, on_progress=lambda *step: seen.append(step))
    assert json.loads(json.dumps(card.to_dict()))["name"] == "quickstart"
    assert "RMS Doppler" in card.text() and seen[-1] == ("drops", 20, 20, "")
    assert "16 base station, 1 user" in info(path) and "20 train" in info(path)


def test_the_first_damaged_shard_is_named(tmp_path: Path) -> None:
    spec = dataclasses.replace(sized("quickstart", 20), shard_drops=8)
    path, _ = stored(tmp_path, spec)
    with h5py.File(path, "r+") as file:
        values = file["train/h_freq"][9]
        values.flat[5] += np.complex64(1e-3)
        file["train/h_freq"][9] = values
    with pytest.raises(DataError, match="train shard 1 fails its checksum"):
        verify(path)


def test_nan_is_named(tmp_path: Path) -> None:
    spec = dataclasses.replace(sized("quickstart", 20), shard_drops=8)
    path, _ = stored(tmp_path, spec)
    with h5py.File(path, "r+") as file:
        file["train/h_freq"][17, 0, 0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="train shard 2 holds NaN"):
        verify(path)


def test_channels_that_are_all_zero_are_reported(tmp_path: Path) -> None:
    spec = sized("quickstart", 4)
    batch = draw_drops(spec, 1, 4)
    batch.h_freq.zero_()
    write_dataset(tmp_path / "set.h5", spec, {"train": batch}, "a test")
    with pytest.raises(DataError, match="every channel is zero"):
        verify(tmp_path / "set.h5")


def test_a_file_that_does_not_say_its_source_is_described(tmp_path: Path) -> None:
    path, _ = stored(tmp_path, sized("quickstart", 4))
    with h5py.File(path, "r+") as file:
        del file.attrs["source"]
    assert "made by      unknown" in info(path)


def test_channels_that_stand_still_are_reported(tmp_path: Path) -> None:
    spec = sized("quickstart", 4)
    still = torch.randn((4, *drop_shape(spec)), dtype=torch.complex64)
    still[...] = still[..., :1, :]
    batch = dataclasses.replace(draw_drops(spec, 1, 4), h_freq=still)
    write_dataset(tmp_path / "set.h5", spec, {"train": batch}, "a test")
    with pytest.raises(DataError, match="no channel changes with time"):
        verify(tmp_path / "set.h5")
