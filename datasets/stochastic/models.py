"""Sionna's TR 38.901 models as a spec asks for them, with their users in place.

Users' speeds are always handed to Sionna explicitly, because its CDL takes a lone minimum speed for an upper
bound. Models run on the CPU in single precision, whatever Sionna's global settings are.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from sionna.phy.channel.tr38901 import CDL, TDL, AntennaArray, RMa, UMa, UMi

from airlam.errors import SpecError
from airlam.specs import ArraySpec, DatasetSpec

SCENARIOS = {"umi": UMi, "uma": UMa, "rma": RMa}
RANDOM_LOS: dict[str, bool | str] = {"mixed": "random", "los": True, "nlos": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A model of Sionna's and the users that it is about to draw channels for.

    speed_m_per_s, path_loss_db: float32 [num_drops, num_users]. position_m: float32 [num_drops, num_users,
    3]. los: bool [num_drops, num_users].
    """

    model: Any
    speed_m_per_s: torch.Tensor
    position_m: torch.Tensor
    los: torch.Tensor
    path_loss_db: torch.Tensor

    @property
    def num_links(self) -> int:
        """Users of all drops."""
        return self.speed_m_per_s.numel()


def place_users(spec: DatasetSpec, generator: torch.Generator, num_drops: int) -> Placed:
    """The spec's model with users drawn for so many drops; SpecError where it cannot do what the spec asks.

    generator: of places, speeds and headings; Sionna's own generator decides on the rest.
    """
    if spec.channel.is_ray_traced:
        raise SpecError(f"{spec.name} is ray-traced, not drawn from a model; make it with airlam generate")
    if spec.channel.model.startswith("tdl"):
        return _tdl(spec, generator, num_drops)
    if spec.channel.is_link_level:
        return _cdl(spec, generator, num_drops)
    return _cell(spec, generator, num_drops)


def _cell(spec: DatasetSpec, generator: torch.Generator, num_drops: int) -> Placed:
    """UMi, UMa and RMa: users around the base station at the origin."""
    channel, place = spec.channel, spec.placement
    scenario = _scenario(spec)
    shape = (num_drops, spec.num_users)
    position_m = _positions_m(spec, generator, shape)
    speed_m_per_s = _speeds_m_per_s(spec, generator, shape)
    heading = _uniform(generator, shape, 0.0, 2 * math.pi)
    velocity = _vectors(speed_m_per_s * heading.cos(), speed_m_per_s * heading.sin())
    yaw = heading if place.user_orientation == "heading" else torch.zeros(shape)
    downtilt = torch.tensor([0.0, math.radians(place.base_station_downtilt_deg), 0.0])
    scenario.set_topology(
        ut_loc=position_m,
        bs_loc=torch.tensor([0.0, 0.0, place.base_station_height_m]).expand(num_drops, 1, 3),
        ut_orientations=_vectors(yaw, torch.zeros(shape)),
        bs_orientations=downtilt.expand(num_drops, 1, 3),
        ut_velocities=velocity,
        in_state=torch.rand(shape, generator=generator) < channel.indoor_probability,
        los=RANDOM_LOS[channel.los],
    )
    path_loss_db = scenario._lsp.pathloss[:, 0] if channel.path_loss else torch.zeros(shape)
    return Placed(
        model=scenario,
        speed_m_per_s=speed_m_per_s,
        position_m=position_m,
        los=scenario._scenario.los[:, 0].clone(),
        path_loss_db=path_loss_db.clone(),
    )


def _scenario(spec: DatasetSpec) -> Any:
    """Sionna's system-level model, without a topology yet."""
    channel = spec.channel
    options: dict[str, Any] = {} if channel.model == "rma" else {"o2i_model": channel.o2i_model}
    if channel.blockage is not None:
        options |= {"enable_blockage": True, "blockage_self_blocking": channel.blockage}
    return SCENARIOS[channel.model](
        carrier_frequency=channel.carrier_frequency_hz,
        ut_array=antenna_array(spec.user, channel.carrier_frequency_hz),
        bs_array=antenna_array(spec.base_station, channel.carrier_frequency_hz),
        direction=channel.direction,
        enable_pathloss=channel.path_loss,
        enable_shadow_fading=channel.shadow_fading,
        enable_spatial_consistency=channel.spatial_consistency,
        spec_version=channel.spec_version,
        precision="single",
        device="cpu",
        **options,
    )


def _cdl(spec: DatasetSpec, generator: torch.Generator, num_drops: int) -> Placed:
    """CDL: each user is an independent link; its direction of travel is drawn as Sionna draws it."""
    num_links = num_drops * spec.num_users
    speed_m_per_s = _speeds_m_per_s(spec, generator, (num_links,))
    azimuth = _uniform(generator, (num_links,), 0.0, 2 * math.pi)
    zenith = _uniform(generator, (num_links,), 0.0, math.pi)
    flat = speed_m_per_s * zenith.sin()
    velocity = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), speed_m_per_s * zenith.cos()], -1)
    channel = spec.channel
    model = CDL(
        model=channel.model[-1].upper(),
        delay_spread=channel.delay_spread_s,
        carrier_frequency=channel.carrier_frequency_hz,
        ut_array=antenna_array(spec.user, channel.carrier_frequency_hz),
        bs_array=antenna_array(spec.base_station, channel.carrier_frequency_hz),
        direction=channel.direction,
        ut_velocity=velocity,
        spec_version=channel.spec_version,
        precision="single",
        device="cpu",
    )
    return _link_level(spec, model, speed_m_per_s)


def _tdl(spec: DatasetSpec, generator: torch.Generator, num_drops: int) -> Placed:
    """TDL between single antennas: it knows no directions, and the spec no correlation matrices."""
    if spec.base_station.num_ports > 1 or spec.user.num_ports > 1:
        raise SpecError(
            f"{spec.channel.model} has no directions, so it takes one antenna at each end, not "
            f"{spec.base_station.num_ports} and {spec.user.num_ports}; take a cdl model for arrays"
        )
    num_links = num_drops * spec.num_users
    speed_m_per_s = _speeds_m_per_s(spec, generator, (num_links,))
    model = TDL(
        model=spec.channel.model[-1].upper(),
        delay_spread=spec.channel.delay_spread_s,
        carrier_frequency=spec.channel.carrier_frequency_hz,
        min_speed=spec.mobility.min_speed_m_per_s,
        max_speed=spec.mobility.max_speed_m_per_s,
        spec_version=spec.channel.spec_version,
        precision="single",
        device="cpu",
    )
    # Sionna draws speeds and forgets them; the file is to state each drop's, so they are given link by link
    doppler = model._compute_doppler(speed_m_per_s).reshape(num_links, *(1,) * 7)
    model._min_doppler = model._max_doppler = doppler
    return _link_level(spec, model, speed_m_per_s)


def _link_level(spec: DatasetSpec, model: Any, speed_m_per_s: torch.Tensor) -> Placed:
    """CDL and TDL know no positions and no path loss; their links are grouped into drops."""
    speed_m_per_s = speed_m_per_s.reshape(-1, spec.num_users)  # [num_drops, num_users]
    return Placed(
        model=model,
        speed_m_per_s=speed_m_per_s,
        position_m=torch.zeros(*speed_m_per_s.shape, 3),
        los=torch.full(speed_m_per_s.shape, spec.channel.model[-2:] in ("_d", "_e")),
        path_loss_db=torch.zeros_like(speed_m_per_s),
    )


def antenna_array(array: ArraySpec, carrier_frequency_hz: float) -> AntennaArray:
    """Sionna's array of a spec."""
    return AntennaArray(
        num_rows=array.num_rows,
        num_cols=array.num_cols,
        polarization=array.polarization,
        polarization_type=array.polarization_type,
        antenna_pattern=array.antenna_pattern,
        carrier_frequency=carrier_frequency_hz,
        vertical_spacing=array.spacing_wavelengths,
        horizontal_spacing=array.spacing_wavelengths,
        precision="single",
        device="cpu",
    )


def _positions_m(spec: DatasetSpec, generator: torch.Generator, shape: tuple[int, int]) -> torch.Tensor:
    """Uniform in radius and angle on the arc around the centre: float32 [num_drops, num_users, 3]."""
    place = spec.placement
    radius_m = _uniform(generator, shape, place.min_radius_m, place.max_radius_m)
    angle = _uniform(generator, shape, *(math.radians(a) for a in place.arc_deg))
    x, y = (c + radius_m * f for c, f in zip(place.user_center_m, (angle.cos(), angle.sin()), strict=True))
    return torch.stack([x, y, torch.full(shape, place.user_height_m)], dim=-1)


def _speeds_m_per_s(spec: DatasetSpec, generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return _uniform(generator, shape, spec.mobility.min_speed_m_per_s, spec.mobility.max_speed_m_per_s)


def _uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _vectors(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[..., 3] with a third component of zero."""
    return torch.stack([first, second, torch.zeros_like(first)], dim=-1)
