"""Settings of a pretraining mixture: what each of them draws, and what is predicted in it.

An axis of the mixture is gone through in shuffled rounds, so that each of its values comes about equally
often and no two axes go together. What cannot be is mended, in this order:

- a ray-traced site keeps its own carrier and speeds, for which its streets and antenna places were chosen,
  and has a ``SITE_DROPS_SHARE`` of the drops, each of which takes a hundred times as long to draw;
- a slot is halved until Doppler stays below ``MAX_DOPPLER_CYCLES`` a slot, where it would alias at 0.5, and
  below ``MAX_HISTORY_CYCLES`` a history, which path tokens cover;
- subcarriers beyond ``MAX_COEFFICIENTS`` a slot are left out, down to ``FEWEST_SUBCARRIERS``, which keeps
  drops small.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from airlam.datasets.catalog import packaged_spec
from airlam.specs import (
    ArraySpec,
    ChannelSpec,
    DatasetSpec,
    GridSpec,
    MixtureSpec,
    MobilitySpec,
    PlacementSpec,
    PredictionSpec,
    SensorsSpec,
    SplitSizes,
)
from airlam.units import SPEED_OF_LIGHT_M_PER_S

MAX_DOPPLER_CYCLES = 0.45
MAX_HISTORY_CYCLES = 9.0
FEWEST_SUBCARRIERS = 12
MAX_COEFFICIENTS = 4096  # ports at both ends times subcarriers, a band
SITES = ("munich", "etoile", "street_canyon")
SITE_SHARD_DROPS = 16  # a trajectory: short, so that few drops see many places
SITE_DROPS_SHARE = 0.25
PLACEMENTS = {  # a sector of 120 degrees with the heights of TR 38.901, table 7.2-1 and 7.2-3
    "uma": PlacementSpec(
        user_center_m=(0.0, 0.0), min_radius_m=35.0, max_radius_m=400.0, arc_deg=(-60.0, 60.0)
    ),
    "umi": PlacementSpec(
        base_station_height_m=10.0,
        user_center_m=(0.0, 0.0),
        min_radius_m=15.0,
        max_radius_m=150.0,
        arc_deg=(-60.0, 60.0),
    ),
    "rma": PlacementSpec(
        base_station_height_m=35.0,
        user_center_m=(0.0, 0.0),
        min_radius_m=50.0,
        max_radius_m=1500.0,
        arc_deg=(-60.0, 60.0),
    ),
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSetting:
    """One setting of a mixture: its channels, and what is predicted of them."""

    dataset: DatasetSpec
    prediction: PredictionSpec

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.dataset.name


def draw_settings(mixture: MixtureSpec) -> tuple[MixtureSetting, ...]:
    """The mixture's settings, in order; the same spec gives the same ones."""
    rng = np.random.default_rng(mixture.seed)
    axes = {
        axis.name: _rounds(getattr(mixture, axis.name), mixture.num_settings, rng)
        for axis in dataclasses.fields(mixture)
        if isinstance(getattr(mixture, axis.name), tuple) and axis.name != "channels"
    }
    drawn = []
    for index in range(mixture.num_settings):
        channel = mixture.channels[index % len(mixture.channels)]
        values = {name: values[index] for name, values in axes.items()}
        drawn.append(_setting(index, channel, values, mixture))
    return tuple(drawn)


def _rounds(values: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """``count`` of the values: whole shuffled rounds of them, one after another."""
    order: list[int] = []
    while len(order) < count:
        order += rng.permutation(len(values)).tolist()
    return [values[index] for index in order[:count]]


def _setting(index: int, channel: str, values: dict[str, object], mixture: MixtureSpec) -> MixtureSetting:
    """One setting from a value of each axis."""
    base = _base(channel, values)
    share = SITE_DROPS_SHARE if channel in SITES else 1.0
    train, validation = (
        math.ceil(share * count) for count in (mixture.train_drops, mixture.validation_drops)
    )
    rows, cols = _of(values, "array_shapes", tuple)
    array = _array(rows, cols, _of(values, "polarizations", str))
    user = _array(1, 1, _of(values, "user_polarizations", str))
    prediction = PredictionSpec(
        num_history=_of(values, "num_history", int),
        num_horizon=_of(values, "num_horizon", int),
        duplex=_of(values, "duplex", str),  # type: ignore[arg-type]
        min_snr_db=mixture.min_snr_db,
        max_snr_db=mixture.max_snr_db,
    )
    dataset = dataclasses.replace(
        base,
        name=f"{index:03d}_{channel}",
        base_station=array,
        user=dataclasses.replace(user, antenna_pattern="omni"),
        grid=_grid(base, array.num_ports * user.num_ports, prediction, values),
        drops=SplitSizes(train=train, validation=validation, test=0),
        seed=mixture.seed * 1000 + index,
    )
    return MixtureSetting(dataset=dataset, prediction=prediction)


def _of(values: dict[str, object], name: str, kind: type[T]) -> T:
    """The drawn value of an axis, of the kind that its spec holds."""
    value = values[name]
    assert isinstance(value, kind)
    return value


def _base(channel: str, values: dict[str, object]) -> DatasetSpec:
    """Channel, users and speeds; arrays, grid and drops are put in by the caller."""
    if channel in SITES:
        packaged = packaged_spec(channel)
        return dataclasses.replace(
            packaged, description="", sensors=SensorsSpec(), shard_drops=SITE_SHARD_DROPS, num_users=1
        )
    carrier_frequency_hz = _of(values, "carrier_frequencies_hz", float)
    mobility = MobilitySpec(min_speed_m_per_s=0.0, max_speed_m_per_s=_of(values, "max_speeds_m_per_s", float))
    grid = GridSpec(subcarrier_spacing_hz=1.0, num_uplink_subcarriers=1, slot_duration_s=1e-9)
    array = ArraySpec()
    if channel.startswith("cdl"):
        spec = ChannelSpec(
            model=channel,  # type: ignore[arg-type]
            carrier_frequency_hz=carrier_frequency_hz,
            delay_spread_s=_of(values, "delay_spreads_s", float),
        )
        return DatasetSpec(name=channel, channel=spec, base_station=array, mobility=mobility, grid=grid)
    model, _, los = channel.partition("_")
    spec = ChannelSpec(model=model, carrier_frequency_hz=carrier_frequency_hz, los=los)  # type: ignore[arg-type]
    return DatasetSpec(
        name=channel,
        channel=spec,
        base_station=array,
        placement=PLACEMENTS[model],
        mobility=mobility,
        grid=grid,
    )


def _array(rows: int, cols: int, polarization: str) -> ArraySpec:
    if polarization == "dual":
        return ArraySpec(
            num_rows=rows,
            num_cols=cols,
            polarization="dual",
            polarization_type="cross",
            antenna_pattern="38.901",
        )
    return ArraySpec(num_rows=rows, num_cols=cols, antenna_pattern="38.901")


def _grid(
    base: DatasetSpec, num_pairs: int, prediction: PredictionSpec, values: dict[str, object]
) -> GridSpec:
    """Times and frequencies, with slots halved and subcarriers left out as the module says."""
    slot_duration_s = _of(values, "slot_durations_s", float)
    max_doppler_hz = (
        base.mobility.max_speed_m_per_s * base.channel.carrier_frequency_hz / SPEED_OF_LIGHT_M_PER_S
    )
    max_cycles = min(MAX_DOPPLER_CYCLES, MAX_HISTORY_CYCLES / prediction.num_history)
    while max_doppler_hz * slot_duration_s > max_cycles:
        slot_duration_s /= 2
    most = max(FEWEST_SUBCARRIERS, MAX_COEFFICIENTS // num_pairs)
    num_subcarriers = min(_of(values, "num_subcarriers", int), most)
    return GridSpec(
        subcarrier_spacing_hz=_of(values, "subcarrier_spacings_hz", float),
        num_uplink_subcarriers=num_subcarriers,
        num_downlink_subcarriers=num_subcarriers if prediction.duplex == "fdd" else 0,
        num_slots=prediction.num_history + prediction.num_horizon,
        slot_duration_s=slot_duration_s,
    )
