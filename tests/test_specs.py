"""Specs: what is read is what was written, and a bad value is named."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlam.errors import SpecError
from airlam.specs import (
    ArraySpec,
    BeamSensorSpec,
    CameraSpec,
    ChannelModel,
    ChannelSpec,
    CsiSensorSpec,
    DatasetSpec,
    GridSpec,
    InertialSensorSpec,
    ModelSpec,
    PositionSensorSpec,
    RangeSensorSpec,
    RunSpec,
    SensorsSpec,
    SiteSpec,
    parse_spec,
    read_spec,
    spec_from_dict,
    spec_to_dict,
    spec_to_toml,
)
from airlam.specs.sensors import SamplingSpec

BASE: dict[str, Any] = {
    "name": "x",
    "channel": {"model": "uma", "carrier_frequency_hz": 2.4e9},
    "base_station": {"num_rows": 4, "num_cols": 4, "polarization": "dual", "polarization_type": "cross"},
    "mobility": {"min_speed_m_per_s": 1.0, "max_speed_m_per_s": 30.0},
    "grid": {"subcarrier_spacing_hz": 180e3, "num_uplink_subcarriers": 48},
}


def changed(table: str, **values: Any) -> dict[str, Any]:
    return {**BASE, table: {**BASE.get(table, {}), **values}}


def test_toml_round_trip() -> None:
    spec = spec_from_dict(DatasetSpec, BASE)
    assert parse_spec(DatasetSpec, spec_to_toml(spec)) == spec


@given(
    rank=st.integers(1, 64),
    layers=st.none() | st.integers(1, 48),
    tuning=st.sampled_from(["lora", "full", "head", "scratch"]),
    steps=st.integers(1, 10**6),
)
def test_run_specs_round_trip(rank: int, layers: int | None, tuning: Any, steps: int) -> None:
    spec = RunSpec(
        name="r", dataset="d.h5", model=ModelSpec(lora_rank=rank, num_layers=layers, tuning=tuning)
    )
    assert spec_from_dict(RunSpec, spec_to_dict(spec)) == spec
    assert (
        spec_from_dict(RunSpec, {**spec_to_dict(spec), "training": {"num_steps": steps}}).training.num_steps
        == steps
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            changed("channel", carier_frequency_hz=1e9),
            ["carier_frequency_hz", "did you mean 'carrier_frequency_hz'"],
        ),
        (changed("channel", model="cdl_z"), ["cdl_z", "did you mean"]),
        (changed("channel", carrier_frequency_hz="2.4 GHz"), ["carrier_frequency_hz", "2.4 GHz", "float"]),
        (changed("channel", carrier_frequency_hz=2.4), ["carrier_frequency_hz is 2.4", "0.5e9"]),
        (changed("channel", carrier_frequency_hz=float("nan")), ["finite"]),
        (changed("channel", delay_spread_s=1e-7), ["drop delay_spread_s"]),
        (changed("channel", model="cdl_a"), ["delay_spread_s", "100e-9"]),
        (changed("channel", model="cdl_a", delay_spread_s=1e-7, los="los"), ["cdl_a", "drop los"]),
        (
            changed("channel", model="tdl_a", delay_spread_s=1e-7, indoor_probability=0.5),
            ["tdl_a", "drop los and indoor_probability"],
        ),
        (changed("channel", model="cdl_a", delay_spread_s=1e-7, o2i_model="high"), ["o2i_model", "cdl_a"]),
        (
            {
                **changed("channel", model="cdl_a", delay_spread_s=1e-7),
                "placement": {"user_orientation": "heading"},
            },
            ["cdl_a places no users"],
        ),
        (changed("channel", model="rma", o2i_model="high"), ["o2i_model", "rma", "take umi or uma"]),
        (changed("channel", model="rma", carrier_frequency_hz=60e9), ["6e+10", "0.5e9 to 30e9 in rma"]),
        (changed("channel", carrier_frequency_hz=10**400), ["carrier_frequency_hz", "1329 bits"]),
        (changed("grid", num_slots=10**400), ["num_slots", "1329 bits"]),
        (changed("mobility", max_speed_m_per_s=1e12), ["1e+12", "beyond light"]),
        (changed("mobility", min_speed_m_per_s=-1.0), ["-1.0", "0 <= min"]),
        (changed("mobility", min_speed_m_per_s=40.0), ["40.0 to 30.0"]),
        (changed("grid", subcarrier_spacing_hz=180e6), ["beyond the carrier"]),
        (changed("grid", num_uplink_subcarriers=True), ["num_uplink_subcarriers", "int"]),
        (changed("base_station", num_rows=0), ["at least 1"]),
        (changed("base_station", polarization_type="V"), ["'V'", "dual"]),
        (changed("drops", train=0, validation=0, test=0), ["nothing to generate"]),
        ({**BASE, "num_users": 0}, ["num_users", "0"]),
        ({key: BASE[key] for key in BASE if key != "mobility"}, ["missing key 'mobility'"]),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        spec_from_dict(DatasetSpec, values, "spec.toml")
    assert "\n" not in str(caught.value) and "spec.toml" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


SITE: dict[str, Any] = {
    **BASE,
    "channel": {"model": "ray_traced", "carrier_frequency_hz": 3.5e9},
    "site": {"scene": "munich", "base_station_position_m": [8.5, 21.0, 27.0]},
}


def at_site(**values: Any) -> dict[str, Any]:
    return {**SITE, "site": {**SITE["site"], **values}}


def sensing(name: str, **values: Any) -> dict[str, Any]:
    return {**SITE, "sensors": {name: values}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (changed("site", scene="munich", base_station_position_m=[0.0, 0.0, 9.0]), ["uma has no scene"]),
        ({**BASE, "sensors": {"csi": {}}}, ["uma has nothing for sensors to see"]),
        (
            {**SITE, "channel": {**SITE["channel"], "spec_version": "16.1"}},
            ["ray_traced", "drop spec_version"],
        ),
        (at_site(area_m=[0.0, 0.0, 0.0, 10.0]), ["area_m", "larger x and y"]),
        (at_site(position_interval_s=61.0), ["position_interval_s is 61", "at most 60"]),
        (at_site(base_station_downtilt_deg=91.0), ["downtilt_deg is 91"]),
        (at_site(num_rays=10**8 + 1, max_depth=0), ["num_rays is 100000001"]),
        (
            at_site(num_rays=2 * 10**7, max_depth=6),
            ["num_rays = 20000000", "max_depth = 6", "most 100000000"],
        ),
        (sensing("csi", rate_hz=0.0), ["rate_hz", "at most 10000"]),
        (sensing("csi", rate_hz=1e9), ["rate_hz", "at most 10000"]),
        (sensing("csi", rate_hz=0.5), ["max_age_s is 1", "rate_hz = 0.5", "at least 1 / rate_hz"]),
        (sensing("position", max_age_s=-1.0), ["max_age_s is -1"]),
        (sensing("position", max_age_s=60.0), ["position reaches back 60.1 s", "at most 60"]),
        (sensing("inertial", num_samples=6000), ["inertial reaches back 61 s"]),
        (sensing("csi", snr_db=4000.0), ["snr_db is 4000", "-200 to 200"]),
        (sensing("beams", snr_db=-201.0), ["snr_db is -201"]),
        (sensing("beams", num_past=65), ["num_past is 65", "1 to 64"]),
        (sensing("csi", reference_path_loss_db=301.0), ["reference_path_loss_db is 301"]),
        (sensing("csi", reference_path_loss_db=90.0), ["reference_path_loss_db", "path_loss = true"]),
        (sensing("beams") | {"base_station": {"num_rows": 4}}, ["array of 1 column", "num_cols >= 2"]),
        (sensing("camera", tilt_deg=90.0), ["tilt_deg is 90", "below 90"]),
        (sensing("camera", tilt_deg=-200.0), ["tilt_deg is -200"]),
        (sensing("camera", width_px=5000), ["at most 4096"]),
        (sensing("camera", width_px=4096, height_px=1025), ["4096 x 1025", "4194304 pixels"]),
        (
            sensing("camera", width_px=1920, height_px=1080, samples_per_pixel=17),
            ["1920 x 1080", "samples_per_pixel = 17", "at most 33554432"],
        ),
    ],
)
def test_bad_values_of_sites_and_sensors_are_one_line_each(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        spec_from_dict(DatasetSpec, values)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_lies_just_within_the_limits_is_taken() -> None:
    for values in (
        SITE,
        at_site(position_interval_s=60.0, base_station_downtilt_deg=-90.0),
        at_site(num_rays=2 * 10**7, max_depth=5),
        sensing("csi", rate_hz=0.5, max_age_s=2.0),
        sensing("camera", width_px=1920, height_px=1080, samples_per_pixel=16, tilt_deg=-89.9),
        sensing("beams", num_past=64, snr_db=-200.0),
        {
            **sensing("csi", reference_path_loss_db=90.0),
            "channel": {**SITE["channel"], "path_loss": True},
        },
    ):
        spec = spec_from_dict(DatasetSpec, values)
        assert parse_spec(DatasetSpec, spec_to_toml(spec)) == spec


SENSORS = (
    PositionSensorSpec,
    InertialSensorSpec,
    CameraSpec,
    RangeSensorSpec,
    BeamSensorSpec,
    CsiSensorSpec,
)
NUMBERS = [
    (kind, key.name) for kind in SENSORS for key in dataclasses.fields(kind) if isinstance(key.default, float)
]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("kind", "key"), NUMBERS)
def test_numbers_that_are_none_are_refused_in_python_too(kind: type, key: str, value: float) -> None:
    with pytest.raises(SpecError, match=f"{key} is -?(nan|inf); expected a finite number"):
        kind(**{key: value})


@pytest.mark.parametrize(
    "values",
    [
        {"base_station_position_m": (0.0, float("nan"), 9.0)},
        {"base_station_yaw_deg": float("inf")},
        {"area_m": (0.0, 0.0, 1.0, float("inf"))},
        {"position_interval_s": float("inf")},
    ],
)
def test_sites_at_infinity_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="expected a finite number"):
        SiteSpec(**{"scene": "x", "base_station_position_m": (0.0, 0.0, 9.0), **values})


def test_positions_count_from_below_the_mast() -> None:
    site = SiteSpec(scene="x", base_station_position_m=(8.5, 21.0, 27.0))
    assert site.origin_m == (8.5, 21.0, 0.0)


@pytest.mark.parametrize(
    ("sensor", "start_s"),
    [
        (CsiSensorSpec(), -1.1),  # the largest age, and a period
        (BeamSensorSpec(rate_hz=5.0, num_past=5), -2.0),
        (InertialSensorSpec(num_samples=10), -1.1),
        (CameraSpec(rate_hz=0.2, max_age_s=5.0), -10.0),
        (CameraSpec(rate_hz=3.0, max_age_s=0.5), -1.0),  # ages of two whole periods, rounded up
    ],
)
def test_sensors_are_on_before_the_first_drop(sensor: SamplingSpec, start_s: float) -> None:
    assert sensor.start_s == pytest.approx(start_s)


def test_the_first_sensor_starts_the_drive() -> None:
    assert SensorsSpec().start_s == 0.0
    assert SensorsSpec(csi=CsiSensorSpec(), beams=BeamSensorSpec(rate_hz=5.0)).start_s == -2.0


def test_rma_and_the_others_reach_as_high_as_the_report_says() -> None:
    models: tuple[tuple[ChannelModel, float], ...] = (("rma", 30e9), ("uma", 100e9), ("umi", 100e9))
    for model, top_hz in models:
        assert ChannelSpec(model=model, carrier_frequency_hz=top_hz)
        with pytest.raises(SpecError, match="covers"):
            ChannelSpec(model=model, carrier_frequency_hz=top_hz * 1.01)


@pytest.mark.parametrize(
    "text",
    [
        "seed = " + "9" * 5000,
        "seed = 0x" + "f" * 5000,
        "seed = " + "[" * 3000,
        "name" + ".a" * 3000 + " = 1",
        "channel.model" + ".a" * 3000 + " = 1",
        "name = [" + "1," * 3000 + "]",
    ],
)
def test_values_beyond_all_reason_are_one_short_line(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(DatasetSpec, text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_aliasing_doppler_is_a_warning_with_numbers() -> None:
    with pytest.warns(UserWarning, match="240 Hz x 0.004 s = 0.96 cycles per slot"):
        spec_from_dict(DatasetSpec, changed("grid", slot_duration_s=4e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec_from_dict(DatasetSpec, BASE)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot read"):
        read_spec(DatasetSpec, tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(SpecError, match=r"bad\.toml is not TOML"):
        read_spec(DatasetSpec, tmp_path / "bad.toml")


def test_bands_lie_around_the_carrier() -> None:
    grid = GridSpec(
        subcarrier_spacing_hz=30e3,
        num_uplink_subcarriers=300,
        num_downlink_subcarriers=300,
        gap_subcarriers=150,
    )
    uplink, downlink = grid.frequencies_hz[:300], grid.frequencies_hz[300:]
    assert sum(grid.frequencies_hz) == pytest.approx(0, abs=1e-3)
    assert downlink[0] - uplink[-1] == pytest.approx(151 * 30e3)
    assert grid.bandwidth_hz == pytest.approx(750 * 30e3)
    alone = GridSpec(subcarrier_spacing_hz=30e3, num_uplink_subcarriers=3, gap_subcarriers=9)
    assert alone.frequencies_hz == pytest.approx((-30e3, 0, 30e3))


def test_ports_are_counted() -> None:
    array = ArraySpec(num_rows=4, num_cols=8, polarization="dual", polarization_type="cross")
    assert array.num_ports == 64


@pytest.mark.parametrize("text", ["\x1b[2J", "a\tb", "a\x00", "\x85"])
def test_control_characters_in_texts_are_named(text: str) -> None:
    for key in ("name", "description"):
        with pytest.raises(SpecError, match=f"{key} holds the control character"):
            spec_from_dict(DatasetSpec, BASE | {key: text})
    several = spec_from_dict(DatasetSpec, BASE | {"description": "Größe in µm\nand more"})
    assert several.description.endswith("and more")
