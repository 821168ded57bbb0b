"""Packaged specs: found by name, the peers' settings to the number."""

import warnings
from pathlib import Path

import pytest

from airlam.datasets.catalog import descriptions, packaged_spec, packaged_specs, resolve
from airlam.errors import SpecError
from airlam.specs import DatasetSpec, spec_to_toml


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
    assert models == {"cdl", "tdl", "umi", "uma", "rma"}


def test_llm4cp_is_the_published_setting() -> None:
    directional, omni = packaged_spec("llm4cp_uma_directional"), packaged_spec("llm4cp_uma_omni")
    assert directional.base_station.num_ports == 32 and directional.grid.num_slots == 20
    assert directional.grid.bandwidth_hz == pytest.approx(17.28e6)
    assert directional.placement.user_orientation == "heading"
    assert directional.user.antenna_pattern == "38.901" and omni.user.antenna_pattern == "omni"
    assert directional.mobility.max_speed_m_per_s == pytest.approx(100 / 3.6)


def test_csi4cast_cells_give_both_ends_of_the_speed() -> None:
    spec = packaged_spec("csi4cast_c_300ns_10mps")
    assert spec.channel.model == "cdl_c" and spec.channel.delay_spread_s == pytest.approx(300e-9)
    assert spec.mobility.min_speed_m_per_s == spec.mobility.max_speed_m_per_s == 10.0
    assert spec.grid.num_subcarriers == 600 and spec.grid.bandwidth_hz == pytest.approx(22.5e6)


def test_descriptions_are_the_specs_own() -> None:
    found = descriptions()
    assert tuple(found) == packaged_specs()
    for name in ("demo", "csi4cast_d_100ns_1mps", "tdl_a"):
        assert found[name] == packaged_spec(name).description


def test_a_fast_cell_warns_that_doppler_aliases() -> None:
    with pytest.warns(UserWarning, match="0.56 cycles per slot"):
        packaged_spec("csi4cast_a_30ns_30mps")


def test_resolve_takes_names_and_files(tmp_path: Path) -> None:
    spec: DatasetSpec = packaged_spec("quickstart")
    file = tmp_path / "mine.toml"
    file.write_text(spec_to_toml(spec))
    assert resolve(str(file)) == spec == resolve("quickstart")
    with pytest.raises(SpecError, match="no packaged spec; known: cdl_c_mimo"):
        resolve("quickstrat")
    with pytest.raises(SpecError, match="cannot read"):
        resolve(str(tmp_path / "absent.toml"))
