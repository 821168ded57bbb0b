"""The dataset specs that come with the suite, by name."""

import itertools
import tomllib
from importlib.resources import files
from pathlib import Path

from airlam.errors import SpecError
from airlam.specs import (
    ArraySpec,
    ChannelModel,
    ChannelSpec,
    DatasetSpec,
    GridSpec,
    MobilitySpec,
    SplitSizes,
    parse_spec,
    read_spec,
)

CSI4CAST_PROFILES: tuple[ChannelModel, ...] = ("cdl_a", "cdl_c", "cdl_d")
CSI4CAST_DELAY_SPREADS_NS = (30, 100, 300)
CSI4CAST_SPEEDS_M_PER_S = (1, 10, 30)
CSI4CAST_CELLS = {
    f"csi4cast_{model[-1]}_{delay_ns}ns_{speed}mps": (model, delay_ns, speed)
    for model, delay_ns, speed in itertools.product(
        CSI4CAST_PROFILES, CSI4CAST_DELAY_SPREADS_NS, CSI4CAST_SPEEDS_M_PER_S
    )
}


def packaged_specs() -> tuple[str, ...]:
    """Names of all packaged specs, sorted."""
    texts = (file.name for file in files("airlam.datasets").iterdir())
    named = [name.removesuffix(".toml") for name in texts if name.endswith(".toml")]
    return tuple(sorted([*named, *CSI4CAST_CELLS]))


def descriptions() -> dict[str, str]:
    """One line on each packaged spec, by name; reads no spec in full, so nothing warns of aliasing."""
    found = {}
    for name in packaged_specs():
        if name in CSI4CAST_CELLS:
            model, delay_ns, speed = CSI4CAST_CELLS[name]
            found[name] = csi4cast_description(model, delay_ns, speed)
        else:
            text = files("airlam.datasets").joinpath(f"{name}.toml").read_text()
            found[name] = str(tomllib.loads(text)["description"])
    return found


def packaged_spec(name: str) -> DatasetSpec:
    """A packaged spec; SpecError where there is none of that name."""
    if name in CSI4CAST_CELLS:
        return csi4cast_cell(*CSI4CAST_CELLS[name])
    if name not in packaged_specs():
        raise SpecError(f"{name!r} is no packaged spec; known: {', '.join(packaged_specs())}")
    text = files("airlam.datasets").joinpath(f"{name}.toml").read_text()
    return parse_spec(DatasetSpec, text, f"packaged spec {name}")


def resolve(name_or_path: str) -> DatasetSpec:
    """The spec in a TOML file, or the packaged one of that name (a folder called so does not hide it)."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or (path.exists() and not path.is_dir()):
        return read_spec(DatasetSpec, path)
    return packaged_spec(name_or_path)


def csi4cast_description(model: ChannelModel, delay_spread_ns: int, speed_m_per_s: float) -> str:
    """What a cell of the grid is."""
    profile = model.upper().replace("_", "-")
    return f"CSI-4CAST's cell {profile}, {delay_spread_ns} ns, {speed_m_per_s:g} m/s"


def csi4cast_cell(model: ChannelModel, delay_spread_ns: int, speed_m_per_s: float) -> DatasetSpec:
    """One cell of CSI-4CAST's grid: every user at the same speed, both ends of the range given.

    Its grid has 14 symbols of 750 + 6 samples a slot at 30 kHz and keeps every fifth slot, so snapshots are
    5 * 14 * 756 / (750 * 30 kHz) = 2.352 ms apart. At 30 m/s Doppler aliases; the spec warns of it.
    """
    array = ArraySpec(
        num_rows=4, num_cols=4, polarization="dual", polarization_type="cross", antenna_pattern="38.901"
    )
    grid = GridSpec(
        subcarrier_spacing_hz=30e3,
        num_uplink_subcarriers=300,
        num_downlink_subcarriers=300,
        gap_subcarriers=150,
        num_slots=20,
        slot_duration_s=2.352e-3,
    )
    return DatasetSpec(
        name=f"csi4cast_{model[-1]}_{delay_spread_ns}ns_{speed_m_per_s:g}mps",
        description=csi4cast_description(model, delay_spread_ns, speed_m_per_s),
        channel=ChannelSpec(model=model, carrier_frequency_hz=2.4e9, delay_spread_s=delay_spread_ns * 1e-9),
        base_station=array,
        mobility=MobilitySpec(min_speed_m_per_s=speed_m_per_s, max_speed_m_per_s=speed_m_per_s),
        grid=grid,
        drops=SplitSizes(train=1000, validation=100, test=100),
        shard_drops=50,
    )
