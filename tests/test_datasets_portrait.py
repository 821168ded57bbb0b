"""The look into a dataset: panels for every kind of set and what they show, damage that is named."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from airlam import cli
from airlam.datasets.card import info, verify
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.fields import drop_shape, reading_fields
from airlam.datasets.layout import write_dataset
from airlam.datasets.portrait import portrait
from airlam.datasets.portrait.relief import WIDEST_BUILDING_M, above_ground_m
from airlam.datasets.portrait.sensors import seen_of
from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.panels import CurvePanel, HeatPanel, ImagePanel, MapPanel, PolarPanel, Portrait
from airlam.portrait_picture import write_picture
from airlam.radio.channel import ChannelBatch
from airlam.specs import (
    ArraySpec,
    BeamSensorSpec,
    CameraSpec,
    ChannelSpec,
    DatasetSpec,
    GridSpec,
    InertialSensorSpec,
    MobilitySpec,
    PlacementSpec,
    PositionSensorSpec,
    RangeSensorSpec,
    SensorsSpec,
    SiteSpec,
    SplitSizes,
)


def titles(found: Portrait) -> set[str]:
    return {panel.title for panel in found.panels}


def stored(path: Path, spec: DatasetSpec, **changes: Any) -> Path:
    """A few drops of a spec."""
    spec = dataclasses.replace(spec, drops=SplitSizes(train=0, validation=6, test=2), **changes)
    splits = {"validation": draw_drops(spec, 1, 6), "test": draw_drops(spec, 2, 2)}
    write_dataset(path, spec, splits, "a test")
    return path


ALWAYS = {"Power delay profile", "Doppler spectrum", "Error of holding the channel", "Speed of the users"}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("cdl_c_mimo", {"Azimuth at the base station"}),
        ("tdl_a", set()),
        ("uma_multiuser", {"Users from above", "Azimuth at the base station"}),
        ("umi_street", {"Users from above", "Azimuth at the base station", "Path loss"}),
        ("rma_highway", {"Users from above", "Azimuth at the base station"}),
        ("llm4cp_uma_omni", {"Users from above", "Azimuth at the base station"}),
    ],
)
def test_every_kind_of_set_has_its_panels(tmp_path: Path, name: str, more: set[str]) -> None:
    found = portrait(stored(tmp_path / "set.h5", packaged_spec(name)))
    assert titles(found) == ALWAYS | more
    assert bool(found.absent) == name.startswith(("cdl", "tdl"))
    assert "6 of 6 validation drops" in found.subtitle and name in found.facts


def test_one_slot_one_subcarrier_one_antenna_still_make_a_picture(tmp_path: Path) -> None:
    spec = packaged_spec("tdl_a")
    grid = dataclasses.replace(spec.grid, num_uplink_subcarriers=1, num_slots=1)
    still = MobilitySpec(min_speed_m_per_s=3, max_speed_m_per_s=3)
    found = portrait(stored(tmp_path / "set.h5", spec, grid=grid, mobility=still))
    assert titles(found) == {"Speed of the users"} and len(found.absent) == 3
    write_picture(found, tmp_path / "set.png")
    assert (tmp_path / "set.png").read_bytes().startswith(b"\x89PNG")


def test_users_who_stand_still_make_a_picture(tmp_path: Path) -> None:
    still = MobilitySpec(min_speed_m_per_s=0, max_speed_m_per_s=0)
    found = portrait(stored(tmp_path / "set.h5", packaged_spec("quickstart"), mobility=still))
    write_picture(found, tmp_path / "set.svg")
    (hold,) = [panel for panel in found.panels if panel.title == "Error of holding the channel"]
    assert isinstance(hold, CurvePanel) and not hold.log and hold.curves[0].y.max() == 0


def test_of_two_bands_the_uplink_is_shown(tmp_path: Path) -> None:
    spec = packaged_spec("llm4cp_uma_omni")
    one_band = dataclasses.replace(spec.grid, num_downlink_subcarriers=0)
    batch = draw_drops(dataclasses.replace(spec, num_users=1), 1, 4)
    sizes = SplitSizes(train=4, validation=0, test=0)
    both, uplink = (
        dataclasses.replace(spec, drops=sizes),
        dataclasses.replace(spec, drops=sizes, grid=one_band),
    )
    write_dataset(tmp_path / "both.h5", both, {"train": batch}, "a test")
    alone = dataclasses.replace(batch, h_freq=batch.h_freq[..., :48])
    write_dataset(tmp_path / "uplink.h5", uplink, {"train": alone}, "a test")
    first, second = (portrait(tmp_path / name).panels[1] for name in ("both.h5", "uplink.h5"))
    assert isinstance(first, CurvePanel) and isinstance(second, CurvePanel)
    assert np.array_equal(first.curves[0].y, second.curves[0].y)


def of_paths(
    path: Path, delays_s: list[float], doppler_hz: list[float], amplitudes: list[float], speed_m_per_s: float
) -> Path:
    """A file of one validation drop a path, each a single wave."""
    spec = dataclasses.replace(
        packaged_spec("tdl_a"),
        base_station=ArraySpec(),
        grid=GridSpec(subcarrier_spacing_hz=100e3, num_uplink_subcarriers=64, num_slots=8),
        drops=SplitSizes(train=0, validation=len(delays_s), test=0),
    )
    batch = draw_drops(spec, 1, len(delays_s))
    frequency_hz = torch.arange(64) * 100e3
    time_s = torch.arange(8) * spec.grid.slot_duration_s
    turns = (
        torch.tensor(doppler_hz)[:, None, None] * time_s[:, None]
        - torch.tensor(delays_s)[:, None, None] * frequency_hz
    )  # [drops, slots, subcarriers]
    waves = torch.polar(torch.tensor(amplitudes)[:, None, None] * torch.ones_like(turns), 2 * math.pi * turns)
    batch = dataclasses.replace(
        batch,
        h_freq=waves.reshape(batch.h_freq.shape),
        speed_m_per_s=torch.full_like(batch.speed_m_per_s, speed_m_per_s),
    )
    write_dataset(path, spec, {"validation": batch}, "a test")
    return path


def curves_of(path: Path, title: str, **options: Any) -> CurvePanel:
    """The panel of curves of that title."""
    (found,) = [panel for panel in portrait(path, **options).panels if panel.title == title]
    assert isinstance(found, CurvePanel)
    return found


def test_the_sample_is_bounded_and_spread_from_first_to_last(tmp_path: Path) -> None:
    delays_s = [0.5e-6, 2e-6, 2e-6, 2e-6, 2e-6, 4e-6]
    path = of_paths(tmp_path / "set.h5", delays_s, [0.0] * 6, [1.0] * 6, 3.0)
    assert "2 of 6 validation drops" in portrait(path, num_drops=2).subtitle
    profile = curves_of(path, "Power delay profile", num_drops=2).curves[0]
    level_db = np.interp([0.5, 2.0, 4.0], profile.x, profile.y)
    assert level_db[0] > -1 and level_db[1] < -30 and level_db[2] > -1  # the first and the last


def test_the_delay_spread_is_the_cards_in_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    spec = dataclasses.replace(packaged_spec("quickstart"), drops=SplitSizes(train=5, validation=0, test=0))
    write_dataset(path, spec, {"train": draw_drops(spec, 1, 5)}, "a test")
    spread_s = verify(path).rms_delay_spread_s
    assert spread_s is not None and 1e-9 < spread_s < 1e-5
    assert f"RMS delay spread {spread_s * 1e9:.3g} ns" in curves_of(path, "Power delay profile").note


def test_every_link_counts_alike_in_the_error_of_holding(tmp_path: Path) -> None:
    dopplers_hz, strengths = [100.0, 300.0], [1.0, 1e-4]
    path = of_paths(tmp_path / "set.h5", [0.0, 0.0], dopplers_hz, strengths, 10.0)
    measured, _ = curves_of(path, "Error of holding the channel").curves
    slot_s = packaged_spec("tdl_a").grid.slot_duration_s
    each = [2 - 2 * np.cos(2 * math.pi * shift * slot_s * np.arange(1, 8)) for shift in dopplers_hz]
    assert measured.y == pytest.approx(np.mean(each, axis=0), rel=1e-3)
    rms_hz = math.sqrt(measured.y[0]) / (2 * math.pi * slot_s)
    assert f"RMS Doppler {rms_hz:.3g} Hz" in curves_of(path, "Error of holding the channel").note


@pytest.mark.parametrize("value", [0, math.nan])
def test_channels_without_power_or_sense_have_no_portrait(tmp_path: Path, value: float) -> None:
    path = stored(tmp_path / "set.h5", packaged_spec("quickstart"))
    with h5py.File(path, "r+") as file:
        file["validation/h_freq"][...] = value
    with pytest.raises(DataError, match="all zero or not all finite"):
        portrait(path)


def street_spec() -> DatasetSpec:
    sensors = SensorsSpec(
        position=PositionSensorSpec(),
        inertial=InertialSensorSpec(),
        camera=CameraSpec(rate_hz=5.0),
        range_scan=RangeSensorSpec(),
        beams=BeamSensorSpec(num_beams=16),
    )
    return DatasetSpec(
        name="street",
        channel=ChannelSpec(model="ray_traced", carrier_frequency_hz=3.5e9),
        base_station=ArraySpec(num_cols=4),
        site=SiteSpec(
            scene="somewhere",
            base_station_position_m=(10.0, 20.0, 30.0),
            base_station_yaw_deg=120.0,
            num_cars=2,
        ),
        sensors=sensors,
        mobility=MobilitySpec(min_speed_m_per_s=10, max_speed_m_per_s=10),
        grid=GridSpec(subcarrier_spacing_hz=120e3, num_uplink_subcarriers=8, num_slots=4),
        drops=SplitSizes(train=20, validation=0, test=0),
        num_users=2,
        shard_drops=10,
    )


def street_batch(spec: DatasetSpec) -> ChannelBatch:
    """Two trajectories of ten drops in any order of time, along x at 1 m a drop; made-up readings."""
    generator = torch.Generator().manual_seed(1)
    step = torch.randperm(10, generator=generator).repeat(2)  # [20]
    trajectory = torch.arange(20, dtype=torch.int32) // 10
    position_m = torch.zeros(20, 2, 3)
    position_m[..., 0] = step[:, None].float()
    position_m[..., 1] = 50.0 * trajectory[:, None] + torch.tensor([0.0, 5.0])
    readings = {
        name: torch.zeros((20, *field.shape), dtype=getattr(torch, field.dtype))
        for name, field in reading_fields(spec).items()
    }
    for name, values in readings.items():
        if name.endswith("_present"):
            values[...] = True
    readings |= {"trajectory": trajectory, "time_s": 0.1 * step.double()}
    readings["beam_present"][step == 4] = False
    readings["beam_power"][torch.arange(20), :, -1, step] = 1e-9
    readings["gnss_position_m"] = position_m + torch.tensor([1.0, -2.0, 0.0])
    return ChannelBatch(
        h_freq=torch.randn((20, *drop_shape(spec)), generator=generator, dtype=torch.complex64),
        direction="uplink",
        speed_m_per_s=torch.full((20, 2), 10.0),
        position_m=position_m,
        los=(step < 5)[:, None].repeat(1, 2),
        path_loss_db=80 + position_m[..., 0],
        readings=readings,
    )


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """A made-up ray-traced set with every sensor that has a panel, and a map of heights."""
    spec = street_spec()
    write_dataset(tmp_path / "street.h5", spec, {"train": street_batch(spec)}, "a test")
    with h5py.File(tmp_path / "street.h5", "r+") as file:
        file["site_height_m"] = 7 + np.arange(6, dtype=np.float32).reshape(2, 3)
        file["site_height_m"].attrs["extent_m"] = (-30.0, -40.0, 30.0, 60.0)
    return tmp_path / "street.h5"


def panel_of(path: Path, kind: type) -> Any:
    return next(panel for panel in portrait(path).panels if isinstance(panel, kind))


def test_tracks_are_drawn_in_order_of_time_over_the_sites_heights(street: Path) -> None:
    found = panel_of(street, MapPanel)
    assert len(found.tracks_m) == 4  # two users on two trajectories
    for track_m, y in zip(found.tracks_m, (0.0, 5.0, 50.0, 55.0), strict=True):
        assert np.array_equal(track_m, np.stack([np.arange(10.0), np.full(10, y)], axis=1))
    assert found.relief.extent_m == (-30.0, -40.0, 30.0, 60.0) and found.relief.height_m[1, 2] == 5
    assert found.outline_m.min(axis=0).tolist() == [-210.0, -220.0]  # the area, seen from the mast
    assert found.los.mean() == 0.5 and found.path_loss_db.max() == 89
    assert found.boresight_deg == 120


def test_path_loss_is_shown_over_the_way_to_the_antennas(street: Path) -> None:
    found = curves_of(street, "Path loss")
    hidden, seen, free_space = found.curves
    assert hidden.look != seen.look and len(hidden.x) == len(seen.x) == 20
    x_m = np.sqrt(np.arange(5.0) ** 2 + 30**2)  # a user who starts below the antennas, 30 m up
    for distance_m, loss_db in zip(x_m, 80 + np.arange(5), strict=True):
        assert np.isclose(seen.x, distance_m)[seen.y == loss_db].any()
    wave_m = 299_792_458 / 3.5e9
    assert free_space.y == pytest.approx(20 * np.log10(4 * math.pi * free_space.x / wave_m))


def test_buildings_are_shown_above_the_ground_they_stand_on() -> None:
    rows, columns = np.mgrid[:300, :300]
    ground_m = 3 + 0.1 * rows + 0.02 * columns  # a hillside of 10 %
    building = np.zeros((300, 300))
    building[100:140, 200:260] = 20
    found_m = above_ground_m(ground_m + building, (1.0, 1.0))
    assert found_m.min() >= 0
    assert np.abs(found_m - building)[10:-10, 10:-10].max() < 0.12 * WIDEST_BUILDING_M / 2
    assert above_ground_m(building + 5, (1.0, 1.0)) == pytest.approx(building)
    assert above_ground_m(building + 5, (1e-9, 1e9)).shape == building.shape


@pytest.mark.parametrize(("arc_deg", "num_parts"), [((0.0, 360.0), 2), ((-60.0, 60.0), 1)])
def test_the_outline_is_where_users_may_be(
    tmp_path: Path, arc_deg: tuple[float, float], num_parts: int
) -> None:
    place = PlacementSpec(user_center_m=(70.0, 10.0), min_radius_m=20.0, max_radius_m=50.0, arc_deg=arc_deg)
    found = panel_of(stored(tmp_path / "set.h5", packaged_spec("quickstart"), placement=place), MapPanel)
    radius_m = np.linalg.norm(found.outline_m - (70.0, 10.0), axis=1)
    known = ~np.isnan(radius_m)
    assert np.allclose(np.minimum(abs(radius_m[known] - 20), abs(radius_m[known] - 50)), 0)
    assert (~known).sum() == num_parts - 1


def test_a_file_without_heights_has_a_map_all_the_same(street: Path) -> None:
    with h5py.File(street, "r+") as file:
        del file["site_height_m"]
    assert panel_of(street, MapPanel).relief is None


def test_a_damaged_height_map_is_named(street: Path) -> None:
    with h5py.File(street, "r+") as file:
        del file["site_height_m"].attrs["extent_m"]
    with pytest.raises(DataError, match="site_height_m cannot be read"):
        portrait(street)


@pytest.mark.parametrize(
    ("values", "extent_m", "message"),
    [
        (np.zeros(6, np.float32), (0, 0, 1, 1), r"float32 \(6,\); expected float32 in two dimensions"),
        (np.zeros((0, 3), np.float32), (0, 0, 1, 1), "two dimensions"),
        (np.zeros((2, 3)), (0, 0, 1, 1), "it is float64"),
        (np.zeros((2, 3), np.float32), (0, 0, -1, 1), "expected x and y from, larger x and y to"),
        (np.zeros((2, 3), np.float32), (0, 0, math.nan, 1), "expected x and y from"),
        (np.zeros((2, 3), np.float32), (0, 0, 1), "expected x and y from"),
        (np.full((2, 3), math.nan, np.float32), (0, 0, 1, 1), "has NaN or infinity"),
    ],
)
def test_an_impossible_height_map_is_named(
    street: Path, values: np.ndarray[Any, Any], extent_m: tuple[float, ...], message: str
) -> None:
    with h5py.File(street, "r+") as file:
        del file["site_height_m"]
        file["site_height_m"] = values
        file["site_height_m"].attrs["extent_m"] = extent_m
    with pytest.raises(DataError, match=message):
        portrait(street)


def test_a_height_map_that_claims_to_be_huge_is_not_read(street: Path) -> None:
    with h5py.File(street, "r+") as file:
        del file["site_height_m"]
        huge = file.create_dataset("site_height_m", (10**6, 10**6), "f4", chunks=(1000, 1000))  # a few bytes
        huge.attrs["extent_m"] = (0.0, 0.0, 1.0, 1.0)
    with pytest.raises(DataError, match="at most 1048576 cells"):
        portrait(street)


@pytest.mark.parametrize("name", ["time_s", "position_m", "speed_m_per_s", "path_loss_db", "range_scan_m"])
def test_a_field_that_is_not_finite_is_named(street: Path, name: str) -> None:
    with h5py.File(street, "r+") as file:
        file[f"train/{name}"][...] = math.nan
    with pytest.raises(DataError, match=f"NaN or infinity in {name}"):
        portrait(street)


def test_a_leap_in_time_makes_longer_steps_and_not_more(street: Path) -> None:
    with h5py.File(street, "r+") as file:
        times_s = file["train/time_s"][()]
        times_s[times_s.argmax()] = 1e12
        file["train/time_s"][...] = times_s
    assert panel_of(street, HeatPanel).values.shape == (16, 200)


def test_beams_over_time_show_what_was_last_known(street: Path) -> None:
    found = panel_of(street, HeatPanel)
    assert found.values.shape == (16, 10)
    assert found.values.argmax(axis=0).tolist() == [0, 1, 2, 3, 3, 5, 6, 7, 8, 9]  # the fifth is missing
    assert found.extent == pytest.approx((0.0, -0.5, 1.0, 15.5))


def test_a_scan_goes_counter_clockwise_from_the_heading(street: Path) -> None:
    with h5py.File(street, "r+") as file:
        file["train/range_scan_m"][...] = np.arange(32)
    found = panel_of(street, PolarPanel)
    assert found.distance_m.tolist() == list(range(32))
    assert found.angle_rad == pytest.approx(2 * math.pi * np.arange(32) / 32)


def test_gnss_error_is_what_was_said_less_the_truth(street: Path) -> None:
    found = curves_of(street, "GNSS position less the true one")
    assert [curve.y.mean() for curve in found.curves] == [1.0, -2.0, 0.0]


def test_missing_readings_are_not_shown(street: Path) -> None:
    with ChannelDataset.open(street) as dataset:
        seen = seen_of(dataset, "train", "beam_power")
    assert seen is not None and len(seen.drops) == 18 and (np.diff(seen.time_s)[:8] > 0).all()
    with h5py.File(street, "r+") as file:
        for stem in ("beam", "camera", "range", "gnss", "inertial"):
            file[f"train/{stem}_present"][...] = False
    found = portrait(street)
    assert len(found.absent) == 5 and "No images: the camera's are all missing." in found.absent


def test_another_user_is_shown_where_the_first_has_no_readings(street: Path) -> None:
    with h5py.File(street, "r+") as file:
        for stem in ("beam", "range", "gnss", "inertial"):
            file[f"train/{stem}_present"][:, 0] = False
        shifted_m = file["train/gnss_position_m"][()]
        shifted_m[:, 1] += 3
        file["train/gnss_position_m"][...] = shifted_m
        file["train/range_scan_m"][:, 1] = 9
        power = file["train/beam_power"][()]
        power[:, 1] = np.roll(power[:, 1], 1, axis=-1)
        file["train/beam_power"][...] = power
    assert not portrait(street).absent
    beams, scan = panel_of(street, HeatPanel), panel_of(street, PolarPanel)
    assert "user 1" in beams.note and "user 1" in scan.note
    assert (scan.distance_m == 9).all()
    assert beams.values.argmax(axis=0).tolist() == [1, 2, 3, 4, 4, 6, 7, 8, 9, 10]
    errors = curves_of(street, "GNSS position less the true one")
    assert [curve.y.mean() for curve in errors.curves] == [4.0, 1.0, 3.0]


def test_accelerations_and_turn_rates_have_axes_of_their_own(street: Path) -> None:
    with h5py.File(street, "r+") as file:
        file["train/inertial_reading"][..., -1, :] = (1.0, 2.0, 0.3)
    accelerations, turn_rate = curves_of(street, "Accelerometer"), curves_of(street, "Gyroscope")
    assert [curve.y.mean() for curve in accelerations.curves] == [1.0, 2.0]
    assert [curve.y.mean() for curve in turn_rate.curves] == pytest.approx([0.3])
    assert "m/s²" in accelerations.y_label and "rad/s" in turn_rate.y_label


def test_info_tells_scene_places_and_sensors(street: Path) -> None:
    said = info(street)
    assert "somewhere, base station at (10, 20, 30) m, 2 other cars" in said
    assert "40 on 2 trajectories, every 0.1 s" in said and "in sight     50 % of users" in said
    assert "path loss    80.0 to 89.0 dB" in said
    assert "camera       5 Hz, present in 100 %" in said and "beams        10 Hz, present in 90 %" in said


def test_a_multi_modal_picture_is_one_page_that_asks_for_nothing(street: Path, tmp_path: Path) -> None:
    found = portrait(street)
    assert any(isinstance(panel, ImagePanel) for panel in found.panels)
    assert any(isinstance(panel, PolarPanel) for panel in found.panels)
    nasty = dataclasses.replace(found, title="<script>$\\frac$", facts="<script>alert(1)</script>")
    for name in ("one.html", "two.html"):
        write_picture(nasty, tmp_path / name)
    page = (tmp_path / "one.html").read_text()
    assert page == (tmp_path / "two.html").read_text()
    for forbidden in ("http:", "https:", "<script", "<link", "@import", "xmlns"):
        assert forbidden not in page
    assert page.count("<svg") == 1 and "&lt;script&gt;alert(1)" in page


def airlam(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the command in this process and returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["airlam", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return int(leaving.value.code or 0)


def test_the_command_says_how_to_get_the_picture_and_draws_it(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(tmp_path.iterdir())
    assert airlam(monkeypatch, "dataset", "info", street) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("--picture street.png")
    assert airlam(monkeypatch, "dataset", "info", street, "-p", tmp_path / "look.jpeg") == 2
    assert "ending in" in capsys.readouterr().err and set(tmp_path.iterdir()) == before
    assert airlam(monkeypatch, "dataset", "info", street, "-p", tmp_path / "look.png") == 0
    assert capsys.readouterr().out.startswith("street: ") and (tmp_path / "look.png").stat().st_size > 50_000
