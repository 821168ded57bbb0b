"""Draws drops of a spec with Sionna's TR 38.901 models.

Channels keep the power that TR 38.901 gives them; nothing is normalised. Users' speeds are always handed to
Sionna explicitly, because its CDL takes a lone minimum speed for an upper bound. A drop depends on the seed
and its place in the call, not on torch's global generators, which stay untouched.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from einops import rearrange
from sionna.phy import config
from sionna.phy.channel.tr38901 import CDL, TDL, AntennaArray, RMa, UMa, UMi

from airlam.datasets.rays import RaySet, ray_sets
from airlam.datasets.raysum import RaySumGenerator
from airlam.errors import SpecError
from airlam.radio.channel import ChannelBatch
from airlam.specs import ArraySpec, DatasetSpec

SCENARIOS = {"umi": UMi, "uma": UMa, "rma": RMa}
RANDOM_LOS: dict[str, bool | str] = {"mixed": "random", "los": True, "nlos": False}


def draw_drops(spec: DatasetSpec, seed: int, num_drops: int) -> ChannelBatch:
    """``num_drops`` independent drops of the spec, all in memory.

    The same seed gives the same drops. SpecError where the model cannot do what the spec asks.
    """
    return _draw(spec, seed, num_drops, keeps_rays=False)[0]


def draw_drops_with_rays(spec: DatasetSpec, seed: int, num_drops: int) -> tuple[ChannelBatch, list[RaySet]]:
    """As ``draw_drops``, the same drops, and each drop's rays.

    For CDL-A to C and for UMi, UMa and RMa without line of sight; one user a drop. SpecError otherwise.
    """
    channel = spec.channel
    if channel.model.startswith("tdl") or channel.model in ("cdl_d", "cdl_e"):
        raise SpecError(
            f"{channel.model} is not a sum of diffuse rays; take cdl_a, cdl_b, cdl_c, umi, uma or rma"
        )
    if not channel.is_link_level and channel.los != "nlos":
        raise SpecError(f"los is {channel.los!r}; rays are given without line of sight: set los = 'nlos'")
    if channel.path_loss or channel.shadow_fading:
        raise SpecError("rays are given at unit gain; set path_loss and shadow_fading to false")
    if spec.num_users != 1:
        raise SpecError(f"num_users is {spec.num_users}; rays are given for one user a drop")
    batch, generator = _draw(spec, seed, num_drops, keeps_rays=True)
    assert generator is not None and generator.record is not None
    return batch, ray_sets(generator.record, channel.direction)


def _draw(
    spec: DatasetSpec, seed: int, num_drops: int, keeps_rays: bool
) -> tuple[ChannelBatch, RaySumGenerator | None]:
    """Drops, and the ray generator where the model has one."""
    user_seed, sionna_seed = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
    users = torch.Generator().manual_seed(user_seed)
    with _sionna_seed(sionna_seed):
        if spec.channel.model.startswith("tdl"):
            return _draw_tdl(spec, users, num_drops), None
        if spec.channel.is_link_level:
            return _draw_cdl(spec, users, num_drops, keeps_rays)
        return _draw_cell(spec, users, num_drops, keeps_rays)


@contextmanager
def _sionna_seed(seed: int) -> Iterator[None]:
    """Seeds Sionna's CPU generator, and puts its state back afterwards."""
    generator = config.torch_rng("cpu")
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _draw_cell(
    spec: DatasetSpec, users: torch.Generator, num_drops: int, keeps_rays: bool
) -> tuple[ChannelBatch, RaySumGenerator]:
    """UMi, UMa and RMa: users around the base station at the origin."""
    channel, place = spec.channel, spec.placement
    scenario = _cell_model(spec)
    scenario._cir_sampler = generator = _ray_sum(spec, subclustering=True, keeps_rays=keeps_rays)
    shape = (num_drops, spec.num_users)
    position_m = _positions_m(spec, users, shape)
    speed_m_per_s = _speeds_m_per_s(spec, users, shape)
    heading = _uniform(users, shape, 0.0, 2 * math.pi)
    velocity = _vectors(speed_m_per_s * heading.cos(), speed_m_per_s * heading.sin())
    yaw = heading if place.user_orientation == "heading" else torch.zeros(shape)
    downtilt = torch.tensor([0.0, math.radians(place.base_station_downtilt_deg), 0.0])
    scenario.set_topology(
        ut_loc=position_m,
        bs_loc=torch.tensor([0.0, 0.0, place.base_station_height_m]).expand(num_drops, 1, 3),
        ut_orientations=_vectors(yaw, torch.zeros(shape)),
        bs_orientations=downtilt.expand(num_drops, 1, 3),
        ut_velocities=velocity,
        in_state=torch.rand(shape, generator=users) < channel.indoor_probability,
        los=RANDOM_LOS[channel.los],
    )
    path_gains, delays_s = scenario(spec.grid.num_slots, 1 / spec.grid.slot_duration_s)
    path_loss_db = scenario._lsp.pathloss[:, 0] if channel.path_loss else torch.zeros(shape)
    batch = ChannelBatch(
        h_freq=_frequency_response(path_gains, delays_s, spec),
        direction=channel.direction,
        speed_m_per_s=speed_m_per_s,
        position_m=position_m,
        los=scenario._scenario.los[:, 0].clone(),
        path_loss_db=path_loss_db.clone(),
    )
    return batch, generator


def _cell_model(spec: DatasetSpec) -> Any:
    """Sionna's scenario on the CPU in single precision, whatever its global settings are."""
    channel = spec.channel
    options: dict[str, Any] = {} if channel.model == "rma" else {"o2i_model": channel.o2i_model}
    return SCENARIOS[channel.model](
        carrier_frequency=channel.carrier_frequency_hz,
        ut_array=_array(spec.user, channel.carrier_frequency_hz),
        bs_array=_array(spec.base_station, channel.carrier_frequency_hz),
        direction=channel.direction,
        enable_pathloss=channel.path_loss,
        enable_shadow_fading=channel.shadow_fading,
        precision="single",
        device="cpu",
        **options,
    )


def _draw_cdl(
    spec: DatasetSpec, users: torch.Generator, num_drops: int, keeps_rays: bool
) -> tuple[ChannelBatch, RaySumGenerator]:
    """CDL: each user is an independent link; its direction of travel is drawn as Sionna draws it."""
    num_links = num_drops * spec.num_users
    speed_m_per_s = _speeds_m_per_s(spec, users, (num_links,))
    azimuth = _uniform(users, (num_links,), 0.0, 2 * math.pi)
    zenith = _uniform(users, (num_links,), 0.0, math.pi)
    flat = speed_m_per_s * zenith.sin()
    velocity = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), speed_m_per_s * zenith.cos()], -1)
    channel = spec.channel
    model = CDL(
        model=channel.model[-1].upper(),
        delay_spread=channel.delay_spread_s,
        carrier_frequency=channel.carrier_frequency_hz,
        ut_array=_array(spec.user, channel.carrier_frequency_hz),
        bs_array=_array(spec.base_station, channel.carrier_frequency_hz),
        direction=channel.direction,
        ut_velocity=velocity,
        precision="single",
        device="cpu",
    )
    model._cir_gen = generator = _ray_sum(spec, subclustering=False, keeps_rays=keeps_rays)
    cir = model(num_links, spec.grid.num_slots, 1 / spec.grid.slot_duration_s)
    los = channel.model in ("cdl_d", "cdl_e")
    return _link_level_batch(spec, cir, speed_m_per_s, los), generator


def _draw_tdl(spec: DatasetSpec, users: torch.Generator, num_drops: int) -> ChannelBatch:
    """TDL between single antennas: it knows no directions, and the spec no correlation matrices."""
    if spec.base_station.num_ports > 1 or spec.user.num_ports > 1:
        raise SpecError(
            f"{spec.channel.model} has no directions, so it takes one antenna at each end, not "
            f"{spec.base_station.num_ports} and {spec.user.num_ports}; take a cdl model for arrays"
        )
    num_links = num_drops * spec.num_users
    speed_m_per_s = _speeds_m_per_s(spec, users, (num_links,))
    model = TDL(
        model=spec.channel.model[-1].upper(),
        delay_spread=spec.channel.delay_spread_s,
        carrier_frequency=spec.channel.carrier_frequency_hz,
        min_speed=spec.mobility.min_speed_m_per_s,
        max_speed=spec.mobility.max_speed_m_per_s,
        precision="single",
        device="cpu",
    )
    # Sionna draws speeds and forgets them; the file is to state each drop's, so they are given link by link
    doppler = model._compute_doppler(speed_m_per_s).reshape(num_links, *(1,) * 7)
    model._min_doppler = model._max_doppler = doppler
    cir = model(num_links, spec.grid.num_slots, 1 / spec.grid.slot_duration_s)
    return _link_level_batch(spec, cir, speed_m_per_s, spec.channel.model in ("tdl_d", "tdl_e"))


def _link_level_batch(
    spec: DatasetSpec, cir: tuple[torch.Tensor, torch.Tensor], speed_m_per_s: torch.Tensor, los: bool
) -> ChannelBatch:
    """Links grouped into drops of ``num_users``; CDL and TDL know no positions and no path loss."""
    h_freq = _frequency_response(*cir, spec)
    pattern = (
        "(b u) 1 rx_ant 1 tx_ant t f -> b 1 rx_ant u tx_ant t f"
        if spec.channel.direction == "uplink"
        else "(b u) 1 rx_ant 1 tx_ant t f -> b u rx_ant 1 tx_ant t f"
    )
    speed_m_per_s = rearrange(speed_m_per_s, "(b u) -> b u", u=spec.num_users)
    return ChannelBatch(
        h_freq=rearrange(h_freq, pattern, u=spec.num_users),
        direction=spec.channel.direction,
        speed_m_per_s=speed_m_per_s,
        position_m=torch.zeros(*speed_m_per_s.shape, 3),
        los=torch.full(speed_m_per_s.shape, los),
        path_loss_db=torch.zeros_like(speed_m_per_s),
    )


def _frequency_response(path_gains: torch.Tensor, delays_s: torch.Tensor, spec: DatasetSpec) -> torch.Tensor:
    """H(f) = sum_p a_p exp(-j 2 pi f tau_p) on the spec's subcarriers.

    path_gains: complex64 [b, rx, rx_ant, tx, tx_ant, paths, slots]. delays_s: float32 [b, rx, tx, paths].
    Returns complex64 [b, rx, rx_ant, tx, tx_ant, slots, subcarriers].
    """
    frequencies_hz = torch.tensor(spec.grid.frequencies_hz, dtype=torch.float64)
    phase = -2 * math.pi * delays_s[..., None].double() * frequencies_hz  # [b, rx, tx, paths, subcarriers]
    steering = torch.polar(torch.ones_like(phase), phase).to(torch.complex64)
    gains = rearrange(path_gains, "b rx rx_ant tx tx_ant p t -> b rx tx (rx_ant tx_ant t) p")
    h_freq = gains @ steering  # [b, rx, tx, rx_ant * tx_ant * slots, subcarriers]
    return rearrange(
        h_freq,
        "b rx tx (rx_ant tx_ant t) f -> b rx rx_ant tx tx_ant t f",
        rx_ant=path_gains.shape[2],
        tx_ant=path_gains.shape[4],
    ).contiguous()


def _ray_sum(spec: DatasetSpec, subclustering: bool, keeps_rays: bool) -> RaySumGenerator:
    """The fast generator for the spec's arrays."""
    user, base_station = (
        _array(a, spec.channel.carrier_frequency_hz) for a in (spec.user, spec.base_station)
    )
    uplink = spec.channel.direction == "uplink"
    generator = RaySumGenerator(
        spec.channel.carrier_frequency_hz,
        tx_array=user if uplink else base_station,
        rx_array=base_station if uplink else user,
        subclustering=subclustering,
        precision="single",
        device="cpu",
    )
    generator.keeps_record = keeps_rays
    return generator


def _array(array: ArraySpec, carrier_frequency_hz: float) -> AntennaArray:
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


def _positions_m(spec: DatasetSpec, users: torch.Generator, shape: tuple[int, int]) -> torch.Tensor:
    """Uniform in radius and angle on the arc around the centre: float32 [num_drops, num_users, 3]."""
    place = spec.placement
    radius_m = _uniform(users, shape, place.min_radius_m, place.max_radius_m)
    angle = _uniform(users, shape, *(math.radians(a) for a in place.arc_deg))
    x, y = (c + radius_m * f for c, f in zip(place.user_center_m, (angle.cos(), angle.sin()), strict=True))
    return torch.stack([x, y, torch.full(shape, place.user_height_m)], dim=-1)


def _speeds_m_per_s(spec: DatasetSpec, users: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return _uniform(users, shape, spec.mobility.min_speed_m_per_s, spec.mobility.max_speed_m_per_s)


def _uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _vectors(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[..., 3] with a third component of zero."""
    return torch.stack([first, second, torch.zeros_like(first)], dim=-1)
