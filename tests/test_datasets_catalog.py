"""Packaged specs: found by name, the peers' settings to the number."""

import itertools
import warnings
from pathlib import Path

import pytest

from airlam.datasets.catalog import descriptions, packaged_spec, packaged_specs, resolve
from airlam.errors import SpecError
from airlam.specs import (
    ArraySpec,
    ChannelSpec,
    DatasetSpec,
    GridSpec,
    PlacementSpec,
    SplitSizes,
    spec_to_toml,
)

FOUR_BY_FOUR = ArraySpec(
    num_rows=4, num_cols=4, polarization="dual", polarization_type="cross", antenna_pattern="38.901"
)


def test_all_names_are_there() -> None:
    names = packaged_specs()
    assert sum(name.startswith("csi4cast_") for name in names) == 27
    own = {"llm4cp_uma_directional", "llm4cp_uma_omni", "sca_llm_uma", "sca_llm_umi", "demo", "quickstart"}
    assert own <= set(names) and list(names) == sorted(names)
    models = set()
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models.add(packaged_spec(name).channel.model.split("_")[0])
    assert models == {"cdl", "tdl", "umi", "uma", "rma", "ray"}


@pytest.mark.parametrize("name", ["llm4cp_uma_directional", "llm4cp_uma_omni"])
def test_llm4cp_is_the_published_setting(name: str) -> None:
    spec = packaged_spec(name)
    assert spec.channel == ChannelSpec(model="uma", carrier_frequency_hz=2.4e9, los="nlos")
    assert spec.base_station == FOUR_BY_FOUR and spec.base_station.num_ports == 32
    directional = name.endswith("directional")
    assert spec.user == ArraySpec(antenna_pattern="38.901" if directional else "omni")
    assert spec.placement == PlacementSpec(
        base_station_height_m=30.0,
        base_station_downtilt_deg=7.0,
        user_center_m=(200.0, 0.0),
        min_radius_m=20.0,
        max_radius_m=50.0,
        arc_deg=(120.0, 240.0),
        user_height_m=1.5,
        user_orientation="heading" if directional else "fixed",
    )
    assert spec.mobility.min_speed_m_per_s == pytest.approx(10 / 3.6)
    assert spec.mobility.max_speed_m_per_s == pytest.approx(100 / 3.6)
    assert spec.grid == GridSpec(
        subcarrier_spacing_hz=180e3,
        num_uplink_subcarriers=48,
        num_downlink_subcarriers=48,
        gap_subcarriers=0,
        num_slots=20,
        slot_duration_s=0.5e-3,
    )
    assert spec.grid.bandwidth_hz == pytest.approx(17.28e6)
    assert spec.drops == SplitSizes(train=8100, validation=900, test=1000) and spec.num_users == 1


def test_csi4cast_is_the_published_grid() -> None:
    """27 cells: profile, delay spread and speed in all combinations, both ends of the speed given."""
    found = set()
    for name in packaged_specs():
        if not name.startswith("csi4cast_"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec = packaged_spec(name)
        assert spec.mobility.min_speed_m_per_s == spec.mobility.max_speed_m_per_s
        assert spec.channel.carrier_frequency_hz == 2.4e9 and spec.channel.direction == "uplink"
        assert spec.base_station == FOUR_BY_FOUR and spec.user == ArraySpec() and spec.num_users == 1
        assert spec.grid == GridSpec(
            subcarrier_spacing_hz=30e3,
            num_uplink_subcarriers=300,
            num_downlink_subcarriers=300,
            gap_subcarriers=150,
            num_slots=20,
            slot_duration_s=5 * 14 * 756 / (750 * 30e3),
        )
        assert spec.drops == SplitSizes(train=1000, validation=100, test=100)
        delay_ns = round((spec.channel.delay_spread_s or 0) * 1e9)
        found.add((spec.channel.model, delay_ns, spec.mobility.max_speed_m_per_s))
    profiles, delays_ns, speeds = ("cdl_a", "cdl_c", "cdl_d"), (30, 100, 300), (1.0, 10.0, 30.0)
    assert found == set(itertools.product(profiles, delays_ns, speeds))


@pytest.mark.parametrize(
    ("name", "model", "height_m", "center_m", "sizes"),
    [
        ("sca_llm_uma", "uma", 25.0, 200.0, (8320, 2080, 1300)),
        ("sca_llm_umi", "umi", 10.0, 100.0, (0, 0, 1300)),
    ],
)
def test_sca_llm_is_the_published_setting(
    name: str, model: str, height_m: float, center_m: float, sizes: tuple[int, int, int]
) -> None:
    spec = packaged_spec(name)
    assert (spec.channel.model, spec.channel.los) == (model, "nlos")
    assert spec.channel.carrier_frequency_hz == 2.4e9
    assert spec.base_station == ArraySpec(num_cols=4, antenna_pattern="38.901")
    assert spec.user == ArraySpec(num_cols=4)
    assert spec.grid == GridSpec(
        subcarrier_spacing_hz=120e3, num_uplink_subcarriers=12, num_slots=30, slot_duration_s=0.625e-3
    )
    assert spec.mobility.min_speed_m_per_s == 0.0
    assert spec.mobility.max_speed_m_per_s == pytest.approx(60 / 3.6)
    assert spec.placement == PlacementSpec(
        base_station_height_m=height_m, user_center_m=(center_m, 0.0), min_radius_m=20.0, max_radius_m=50.0
    )
    assert (spec.drops.train, spec.drops.validation, spec.drops.test) == sizes


def test_descriptions_are_the_specs_own() -> None:
    found = descriptions()
    assert tuple(found) == packaged_specs()
    for name in ("demo", "csi4cast_d_100ns_1mps", "tdl_a"):
        assert found[name] == packaged_spec(name).description


def test_a_fast_cell_warns_that_doppler_aliases() -> None:
    with pytest.warns(UserWarning, match="0.56 cycles per slot"):
        packaged_spec("csi4cast_a_30ns_30mps")


def test_a_folder_does_not_hide_a_packaged_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("quickstart") == packaged_spec("quickstart")


def test_resolve_takes_names_and_files(tmp_path: Path) -> None:
    spec: DatasetSpec = packaged_spec("quickstart")
    file = tmp_path / "mine.toml"
    file.write_text(spec_to_toml(spec))
    assert resolve(str(file)) == spec == resolve("quickstart")
    with pytest.raises(SpecError, match="no packaged spec; known: cdl_c_mimo"):
        resolve("quickstrat")
    with pytest.raises(SpecError, match="cannot read"):
        resolve(str(tmp_path / "absent.toml"))
