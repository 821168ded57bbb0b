"""Draws trajectories of a ray-traced spec: the channel at each drop, and what the sensors read."""

from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from airlam.datasets.sensors import read_sensors
from airlam.datasets.sites.driving import CAR_SPEEDS_M_PER_S, drive
from airlam.datasets.sites.scene import Array
from airlam.datasets.sites.site import Site, open_site
from airlam.datasets.sites.trajectory import Track
from airlam.datasets.sites.world import Drive, unit_gain
from airlam.errors import SpecError
from airlam.radio.channel import ChannelBatch
from airlam.specs import DatasetSpec

MAX_DRIVES = 20


def draw_trajectory(spec: DatasetSpec, split: str, index: int, seed: int, num_drops: int) -> ChannelBatch:
    """One trajectory of the spec's users: ``num_drops`` drops ``position_interval_s`` apart, all in memory.

    Users start at random and drive along the covered streets; every drop of every user has a path, else the
    drive is drawn again. ``h_freq`` at drop i is the channel over the spec's slots from then on, seen from
    the base station's array to the users' or back. ``path_loss_db`` is -10 log10 sum_p |a_p|^2, element
    patterns included, the mean over pairs of polarisations; unless the spec keeps path loss, ``h_freq`` is
    divided by sqrt of that gain, user by user and drop by drop. ``position_m`` counts from the
    site's ``origin_m``.

    split, index: where the trajectory belongs; ``index`` becomes ``trajectory`` of the readings. The same
    seed gives the same bits on the same kind of processor. SpecError where the site cannot do what the spec
    asks, DataError without a ray tracer.
    """
    site = open_site(spec)
    rng = np.random.default_rng(seed)
    assert spec.site is not None  # a ray-traced spec has one
    times_s = np.asarray(spec.site.position_interval_s * np.arange(num_drops), dtype=np.float64)
    for _ in range(MAX_DRIVES):
        of_users, of_cars, of_sensors = rng.spawn(3)
        world = Drive(spec, site, _users(spec, site, times_s, of_users), _cars(spec, site, times_s, of_cars))
        h, gain, los = world.window(times_s)
        if (gain > 0).all():
            batch = _batch(spec, world, times_s, h, gain, los)
            readings = {"trajectory": torch.full((num_drops,), index, dtype=torch.int32)}
            if spec.sensors.present:
                readings |= read_sensors(spec, world, times_s, of_sensors)
            return replace(batch, readings=batch.readings | readings)
    raise SpecError(
        f"{split} trajectory {index}: in each of {MAX_DRIVES} drives one of {num_drops} drops has no path; "
        f"take {'fewer cars' if spec.site.num_cars else 'more num_rays'} or allow a larger max_depth"
    )


def height_map(spec: DatasetSpec) -> tuple[NDArray[np.float32], tuple[float, float, float, float]]:
    """The site from above: float32 [rows, columns], metres above z = 0, rows along y, and where it lies.

    The second value is x and y from, x and y to, in scene coordinates.
    """
    found = open_site(spec).map
    return found.height_m.astype(np.float32), found.extent_m


def _users(spec: DatasetSpec, site: Site, times_s: Array, rng: np.random.Generator) -> Track:
    """Each user on a way of their own that is covered at every drop; SpecError where none is found."""
    slowest, fastest = spec.mobility.min_speed_m_per_s, spec.mobility.max_speed_m_per_s
    found: list[Track] = []
    for _ in range(MAX_DRIVES * spec.num_users):
        track = _drive(spec, site, times_s, rng.uniform(slowest, fastest, 1), site.spec.user_height_m, rng)
        if site.reaches(track.sample(times_s).position_m[:, 0]).all():
            found.append(track)
        if len(found) == spec.num_users:
            return Track.together(found)
    raise SpecError(
        f"of {MAX_DRIVES * spec.num_users} drives over {len(times_s)} drops {len(found)} stay covered; "
        f"the base station covers {site.coverage[1].mean():.0%} of the streets: raise or move it, shrink "
        "area_m, or allow a larger max_depth"
    )


def _cars(spec: DatasetSpec, site: Site, times_s: Array, rng: np.random.Generator) -> Track | None:
    """Cars on ways of their own, which take no notice of each other."""
    speed_m_per_s = rng.uniform(*CAR_SPEEDS_M_PER_S, site.spec.num_cars)
    return _drive(spec, site, times_s, speed_m_per_s, 0.0, rng) if site.spec.num_cars else None


def _drive(
    spec: DatasetSpec,
    site: Site,
    times_s: Array,
    speed_m_per_s: Array,
    height_m: float,
    rng: np.random.Generator,
) -> Track:
    """A drive from the start of the sensors to the end of the last window."""
    return drive(
        site.streets,
        speed_m_per_s=speed_m_per_s,
        height_m=height_m,
        first_s=spec.sensors.start_s,
        last_s=float(times_s[-1]) + spec.grid.num_slots * spec.grid.slot_duration_s,
        rng=rng,
    )


def _batch(
    spec: DatasetSpec, world: Drive, times_s: Array, h: torch.Tensor, gain: Array, los: NDArray[np.bool_]
) -> ChannelBatch:
    """Drops in the suite's axes; h: complex64 [n, users, user_ant, bs_ant, slots, subcarriers]."""
    assert spec.site is not None  # a ray-traced spec has one
    if not spec.channel.path_loss:
        h = h * unit_gain(gain)[..., None, None, None, None]
    pattern = (
        "n u i j t f -> n 1 j u i t f"
        if spec.channel.direction == "uplink"
        else "n u i j t f -> n u i 1 j t f"
    )
    motion = world.motion(times_s)
    return ChannelBatch(
        h_freq=rearrange(h, pattern),
        direction=spec.channel.direction,
        speed_m_per_s=_float32(np.linalg.norm(motion.velocity_m_per_s, axis=-1)),
        position_m=_float32(motion.position_m - np.array(spec.site.origin_m)),
        los=torch.from_numpy(los),
        path_loss_db=_float32(-10 * np.log10(gain)),
        readings={
            "time_s": torch.from_numpy(times_s),
            "velocity_m_per_s": _float32(motion.velocity_m_per_s),
        },
    )


def _float32(values: Array) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
