"""Channel model, arrays, users and the grid of times and frequencies."""

from dataclasses import dataclass
from typing import Literal

from airlam.specs.reading import require
from airlam.units import SPEED_OF_LIGHT_M_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Planar antenna array; ports are ordered (polarisation, column, row), as Sionna's panels order them."""

    num_rows: int = 1
    num_cols: int = 1
    polarization: Literal["single", "dual"] = "single"
    polarization_type: Literal["V", "H", "VH", "cross"] = "V"
    antenna_pattern: Literal["omni", "38.901"] = "omni"
    spacing_wavelengths: float = 0.5

    def __post_init__(self) -> None:
        require(self.num_rows >= 1 and self.num_cols >= 1, "num_rows and num_cols must be at least 1")
        allowed = ("VH", "cross") if self.polarization == "dual" else ("V", "H")
        require(
            self.polarization_type in allowed,
            f"polarization_type is {self.polarization_type!r}; "
            f"a {self.polarization} array takes one of {allowed}",
        )
        require(
            self.spacing_wavelengths > 0,
            f"spacing_wavelengths must be positive, got {self.spacing_wavelengths}",
        )

    @property
    def num_polarizations(self) -> int:
        """1 or 2."""
        return 2 if self.polarization == "dual" else 1

    @property
    def num_ports(self) -> int:
        """Number of antenna ports."""
        return self.num_rows * self.num_cols * self.num_polarizations


ChannelModel = Literal[
    "cdl_a",
    "cdl_b",
    "cdl_c",
    "cdl_d",
    "cdl_e",
    "tdl_a",
    "tdl_b",
    "tdl_c",
    "tdl_d",
    "tdl_e",
    "umi",
    "uma",
    "rma",
    "ray_traced",
]
BOTTOM_HZ, TOP_HZ = 0.5e9, 100e9
RMA_TOP_HZ = 30e9  # TR 38.901, notes to table 7.4.1-1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """3GPP TR 38.901 model, as Sionna implements it, or ``ray_traced`` in the dataset's ``site``."""

    model: ChannelModel
    carrier_frequency_hz: float
    direction: Literal["uplink", "downlink"] = "uplink"
    delay_spread_s: float | None = None  # CDL and TDL only: they are scaled, the others draw it
    los: Literal["mixed", "los", "nlos"] = "mixed"  # UMi, UMa, RMa only
    indoor_probability: float = 0.0  # UMi, UMa, RMa only
    o2i_model: Literal["low", "high"] = "low"  # UMi and UMa only
    path_loss: bool = False  # RMa seats users outdoors in cars, 9 dB more on average (table 7.2-3)
    shadow_fading: bool = False
    blockage: Literal["portrait", "landscape"] | None = None  # model A, 7.6.4.1; UMi, UMa, RMa only
    spatial_consistency: bool = False  # of small-scale fading between a drop's users; UMi, UMa, RMa only
    spec_version: Literal["19.2", "16.1"] = "19.2"  # of TR 38.901's tables

    def __post_init__(self) -> None:
        top_hz = RMA_TOP_HZ if self.model == "rma" else TOP_HZ
        require(
            BOTTOM_HZ <= self.carrier_frequency_hz <= top_hz,
            f"carrier_frequency_hz is {self.carrier_frequency_hz:g}; "
            f"TR 38.901 covers 0.5e9 to {top_hz / 1e9:g}e9 in {self.model}",
        )
        require(
            0 <= self.indoor_probability <= 1,
            f"indoor_probability is {self.indoor_probability}; expected 0 to 1",
        )
        require(
            self.o2i_model == "low" or self.model in ("umi", "uma"),
            f"o2i_model is {self.o2i_model!r}, which {self.model} does not know: drop it or take umi or uma",
        )
        if self.is_ray_traced:
            require(
                self.los == "mixed" and self.indoor_probability == 0 and not self.shadow_fading,
                "ray_traced finds line of sight, walls and shadows in the scene: drop los, "
                "indoor_probability and shadow_fading",
            )
        require(
            not (self.is_link_level or self.is_ray_traced)
            or (self.blockage is None and not self.spatial_consistency),
            f"{self.model} has no blockage or spatial consistency: drop those keys or take umi, uma or rma",
        )
        if self.is_link_level:
            require(
                self.delay_spread_s is not None and self.delay_spread_s > 0,
                f"delay_spread_s is {self.delay_spread_s}; {self.model} needs a positive one, e.g. 100e-9",
            )
            require(
                not (self.path_loss or self.shadow_fading),
                f"{self.model} has no path loss or shadow fading: drop those keys or take umi, uma or rma",
            )
            require(
                self.los == "mixed" and self.indoor_probability == 0,
                f"{self.model} has no line of sight or walls to choose: drop los and indoor_probability",
            )
        else:
            require(
                self.delay_spread_s is None,
                f"{self.model} draws its delay spread: drop delay_spread_s",
            )

    @property
    def is_link_level(self) -> bool:
        """CDL or TDL, which know no geometry of the cell."""
        return self.model[:3] in ("cdl", "tdl")

    @property
    def is_ray_traced(self) -> bool:
        """Whether the channel comes from a scene."""
        return self.model == "ray_traced"

    @property
    def knows_path_loss(self) -> bool:
        """Whether drops have a path loss, be it kept in the channel or not."""
        return self.path_loss or self.is_ray_traced


@dataclass(frozen=True, slots=True, kw_only=True)
class MobilitySpec:
    """Speeds are drawn uniformly; both ends must be given (Sionna's own default silently slows users)."""

    min_speed_m_per_s: float
    max_speed_m_per_s: float

    def __post_init__(self) -> None:
        require(
            0 <= self.min_speed_m_per_s <= self.max_speed_m_per_s,
            f"speeds are {self.min_speed_m_per_s} to {self.max_speed_m_per_s} m/s; expected 0 <= min <= max",
        )
        require(
            self.max_speed_m_per_s < SPEED_OF_LIGHT_M_PER_S,
            f"max_speed_m_per_s is {self.max_speed_m_per_s:g}, beyond light; is it in m/s?",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSpec:
    """Where users stand, for UMi, UMa and RMa: uniformly in radius and angle on an arc around a centre."""

    base_station_height_m: float = 25.0
    base_station_downtilt_deg: float = 0.0
    user_center_m: tuple[float, float] = (200.0, 0.0)  # base station at the origin, facing +x
    min_radius_m: float = 20.0
    max_radius_m: float = 50.0
    arc_deg: tuple[float, float] = (0.0, 360.0)
    user_height_m: float = 1.5
    user_orientation: Literal["fixed", "heading"] = "fixed"  # heading: the element points where the user goes

    def __post_init__(self) -> None:
        require(
            0 <= self.min_radius_m <= self.max_radius_m,
            f"radii are {self.min_radius_m} to {self.max_radius_m} m; expected 0 <= min <= max",
        )
        require(
            self.base_station_height_m > 0 and self.user_height_m > 0,
            "base_station_height_m and user_height_m must be positive",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpec:
    """Which frequencies and times are kept: ``num_slots`` snapshots, uplink band then downlink band.

    The bands lie side by side around the carrier, ``gap_subcarriers`` apart, the uplink lower. TDD keeps no
    downlink band (``num_downlink_subcarriers = 0``): both directions then share the uplink's.
    """

    subcarrier_spacing_hz: float
    num_uplink_subcarriers: int
    num_downlink_subcarriers: int = 0
    gap_subcarriers: int = 0
    num_slots: int = 20
    slot_duration_s: float = 0.5e-3

    def __post_init__(self) -> None:
        for name in ("subcarrier_spacing_hz", "num_uplink_subcarriers", "num_slots", "slot_duration_s"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("num_downlink_subcarriers", "gap_subcarriers"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def num_subcarriers(self) -> int:
        """Subcarriers kept: uplink and downlink, without the gap."""
        return self.num_uplink_subcarriers + self.num_downlink_subcarriers

    @property
    def bandwidth_hz(self) -> float:
        """From the lowest subcarrier's lower edge to the highest's upper edge, the gap included."""
        gap = self.gap_subcarriers if self.num_downlink_subcarriers else 0
        return (self.num_subcarriers + gap) * self.subcarrier_spacing_hz

    @property
    def frequencies_hz(self) -> tuple[float, ...]:
        """Subcarrier centres relative to the carrier, in stored order (uplink, then downlink)."""
        gap = self.gap_subcarriers if self.num_downlink_subcarriers else 0
        total = self.num_subcarriers + gap
        first_downlink = self.num_uplink_subcarriers + gap
        kept = [*range(self.num_uplink_subcarriers), *range(first_downlink, total)]
        return tuple((index - (total - 1) / 2) * self.subcarrier_spacing_hz for index in kept)
