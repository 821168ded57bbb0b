"""What a channel dataset holds."""

import unicodedata
import warnings
from dataclasses import dataclass, field

from airlam.specs.channel import ArraySpec, ChannelSpec, GridSpec, MobilitySpec, PlacementSpec
from airlam.specs.reading import require, require_finite
from airlam.specs.sensors import RadioSensorSpec, SensorsSpec
from airlam.specs.site import SiteSpec
from airlam.units import SPEED_OF_LIGHT_M_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSizes:
    """Drops per split; the splits are disjoint drops with seeds of their own."""

    train: int = 1024
    validation: int = 128
    test: int = 256

    def __post_init__(self) -> None:
        sizes = (self.train, self.validation, self.test)
        require(min(sizes) >= 0, f"drops are {sizes}; none may be negative")
        require(sum(sizes) > 0, "train, validation and test are all 0: nothing to generate")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """One channel dataset."""

    name: str
    description: str = ""
    channel: ChannelSpec
    base_station: ArraySpec
    user: ArraySpec = field(default_factory=ArraySpec)
    placement: PlacementSpec = field(default_factory=PlacementSpec)
    site: SiteSpec | None = None  # ray_traced only
    sensors: SensorsSpec = field(default_factory=SensorsSpec)  # ray_traced only
    mobility: MobilitySpec
    grid: GridSpec
    drops: SplitSizes = field(default_factory=SplitSizes)
    num_users: int = 1  # users that share a drop
    seed: int = 1
    shard_drops: int = 128  # drops drawn from one seed; the unit of resuming

    def __post_init__(self) -> None:
        for part in (self.channel, self.base_station, self.user, self.placement, self.mobility, self.grid):
            require_finite(part)
        for key, text in (("name", self.name), ("description", self.description.replace("\n", " "))):
            control = next((letter for letter in text if unicodedata.category(letter) == "Cc"), None)
            require(control is None, f"{key} holds the control character {control!r}; write it without")
        require(self.num_users >= 1, f"num_users must be at least 1, got {self.num_users}")
        require(self.shard_drops >= 1, f"shard_drops must be at least 1, got {self.shard_drops}")
        require(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        require(
            self.has_placement or self.placement == PlacementSpec(),
            f"{self.channel.model} places no users on an arc: drop placement or take umi, uma or rma",
        )
        require(
            self.channel.is_ray_traced == (self.site is not None),
            "ray_traced needs a [site] table, with scene and base_station_position_m"
            if self.channel.is_ray_traced
            else f"{self.channel.model} has no scene: drop site or set model = 'ray_traced'",
        )
        require(
            not self.channel.is_ray_traced or self.channel.spec_version == "19.2",  # the default
            "ray_traced reads none of TR 38.901's tables: drop spec_version",
        )
        self._require_sensors_fit()
        require(
            self.grid.bandwidth_hz < self.channel.carrier_frequency_hz,
            f"the grid spans {self.grid.bandwidth_hz:g} Hz, beyond the carrier at "
            f"{self.channel.carrier_frequency_hz:g} Hz; take fewer subcarriers or a smaller spacing",
        )
        if self.doppler_cycles_per_slot >= 0.5:
            warnings.warn(
                f"{self.name}: Doppler aliases: {self.max_doppler_hz:.0f} Hz x "
                f"{self.grid.slot_duration_s:g} s = {self.doppler_cycles_per_slot:.2f} cycles per slot, "
                "beyond 0.5; "
                "shorten slot_duration_s or lower max_speed_m_per_s",
                stacklevel=2,
            )

    def _require_sensors_fit(self) -> None:
        """SpecError where the sensors do not go with the channel or the base station."""
        require(
            self.channel.is_ray_traced or self.sensors == SensorsSpec(),
            f"{self.channel.model} has nothing for sensors to see: drop sensors or set model = 'ray_traced'",
        )
        require(
            self.sensors.beams is None or self.base_station.num_cols >= 2,
            f"beams sweep in azimuth, which an array of {self.base_station.num_cols} column cannot; set "
            "num_cols >= 2 in base_station or drop sensors.beams",
        )
        radio = [s for s in self.sensors.present.values() if isinstance(s, RadioSensorSpec)]
        references_db = {sensor.reference_path_loss_db for sensor in radio}
        require(
            self.channel.path_loss or references_db <= {RadioSensorSpec().reference_path_loss_db},
            "reference_path_loss_db says nothing where links are brought to unit gain: drop it or set "
            "path_loss = true in channel",
        )

    @property
    def has_placement(self) -> bool:
        """Whether users stand on an arc around a centre (``placement``)."""
        return not (self.channel.is_link_level or self.channel.is_ray_traced)

    @property
    def max_doppler_hz(self) -> float:
        """v f_c / c at the highest speed."""
        return self.mobility.max_speed_m_per_s * self.channel.carrier_frequency_hz / SPEED_OF_LIGHT_M_PER_S

    @property
    def doppler_cycles_per_slot(self) -> float:
        """Largest Doppler shift times the slot; at 0.5 it aliases."""
        return self.max_doppler_hz * self.grid.slot_duration_s
