"""Tracks are smooth curves that agree with their own derivatives; drives keep to the streets."""

import dataclasses

import numpy as np
import pytest

from airlam.datasets.sites.driving import ALONG_M_PER_S2, ROOM_M, SIDEWAYS_M_PER_S2, SMOOTH_M_PER_S2, drive
from airlam.datasets.sites.scene import Array, Scene
from airlam.datasets.sites.streets import CLEARANCE_M, HeightMap, find_streets, find_way, look_down, restrict
from airlam.datasets.sites.trajectory import Track
from airlam.errors import DataError, SpecError
from airlam.llvm import good_llvm

TIMES_S = np.linspace(-2.0, 3.0, 101)


def track(control_m: Array) -> Track:
    return Track(
        control_m=control_m,
        road_heading_rad=np.full(control_m.shape[1], 0.3),
        interval_s=0.5,
        first_s=-2.0,
    )


def test_a_straight_drive_has_the_speed_of_its_controls() -> None:
    """Evenly spaced controls give uniform motion, exactly: position, heading and nothing else."""
    steps = np.arange(15)
    control_m = np.stack([3.0 * steps, 4.0 * steps, np.full(15, 1.5)], axis=-1)[:, None]
    motion = track(control_m).sample(TIMES_S)
    assert np.allclose(motion.velocity_m_per_s, [6.0, 8.0, 0.0])
    assert np.allclose(motion.acceleration_m_per_s2, 0.0, atol=1e-9)
    assert np.allclose(motion.heading_rad, np.arctan2(4.0, 3.0))
    assert np.allclose(np.diff(motion.position_m, axis=0), 0.05 * motion.velocity_m_per_s[1:])


def test_derivatives_are_those_of_the_position() -> None:
    rng = np.random.default_rng(1)
    wandering = track(np.cumsum(rng.normal(size=(15, 2, 3)), axis=0))
    times_s, step_s = np.linspace(-1.9, 2.9, 97), 1e-4
    before, at, after = (wandering.sample(times_s + shift) for shift in (-step_s, 0.0, step_s))
    velocity = (after.position_m - before.position_m) / (2 * step_s)
    acceleration = (after.velocity_m_per_s - before.velocity_m_per_s) / (2 * step_s)
    turned = np.angle(np.exp(1j * (after.heading_rad - before.heading_rad))) / (2 * step_s)
    assert np.allclose(at.velocity_m_per_s, velocity, atol=1e-6)
    assert np.allclose(at.acceleration_m_per_s2, acceleration, atol=1e-2)  # a kink at a knot
    assert np.allclose(at.turn_rate_rad_per_s, turned, rtol=1e-2, atol=1e-2)


def test_a_circle_turns_at_its_own_rate() -> None:
    """Controls on a circle: turn rate v / r and acceleration v^2 / r, to the spline's accuracy."""
    angles = 0.05 * np.arange(15)
    control_m = 20.0 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=-1)[:, None]
    motion = track(control_m).sample(TIMES_S)
    speed = np.linalg.norm(motion.velocity_m_per_s, axis=-1)
    assert np.allclose(speed, 20.0 * 0.05 / 0.5, rtol=1e-3)
    assert np.allclose(motion.turn_rate_rad_per_s, speed / 20.0, rtol=1e-3)
    assert np.allclose(np.linalg.norm(motion.acceleration_m_per_s2, axis=-1), speed**2 / 20.0, rtol=1e-3)


def test_who_is_parked_keeps_the_road_s_heading() -> None:
    motion = track(np.ones((15, 1, 3))).sample(TIMES_S)
    assert np.allclose(motion.velocity_m_per_s, 0) and np.all(motion.turn_rate_rad_per_s == 0)
    assert np.all(motion.heading_rad == 0.3)


def test_times_beyond_the_track_are_refused() -> None:
    short = track(np.zeros((15, 1, 3)))
    assert short.last_s == 4.0
    for time_s in (-2.1, 4.1):
        with pytest.raises(DataError, match="from -2 to 4 s"):
            short.sample(np.array([time_s]))


def town() -> HeightMap:
    """Four blocks of houses, 20 m high, between streets 14 m wide, one with a closed courtyard."""
    height_m = np.zeros((100, 100))
    for row in (14, 57):
        for column in (14, 57):
            height_m[row : row + 29, column : column + 29] = 20.0
    height_m[20:37, 20:37] = 0.0
    return HeightMap(height_m=height_m, extent_m=(0.0, 0.0, 100.0, 100.0), cell_m=1.0)


def test_streets_are_the_ground_and_neither_roofs_nor_courtyards() -> None:
    streets = find_streets(town())
    assert streets.open.sum() == len(streets.cells) == streets.graph.shape[0]
    assert not streets.open[14:43, 14:43].any() and not streets.open[57:86, 57:86].any()
    assert streets.open[50, 50] and streets.open[50, 5]
    assert (streets.clearance_m[streets.open] >= CLEARANCE_M).all()
    assert not streets.has_room(np.array([[28.0, 28.0]]), ROOM_M)  # in the courtyard
    assert not streets.has_room(np.array([[101.0, 50.0]]), ROOM_M)


def test_a_slope_is_ground_and_a_terrace_is_not() -> None:
    slope = np.linspace(0, 15, 100)[None].repeat(100, axis=0)
    slope[:20] += 30.0
    streets = find_streets(dataclasses.replace(town(), height_m=slope))
    assert streets.open[30:].all() and not streets.open[:20].any()
    assert np.allclose(streets.ground_m(np.array([[50.5, 60.5]])), slope[60, 50])


def test_ways_go_from_cell_to_neighbour_for_the_length_asked_for() -> None:
    streets = find_streets(town())
    way_m = find_way(streets, 500.0, np.random.default_rng(3))
    steps_m = np.linalg.norm(np.diff(way_m, axis=0), axis=1)
    assert steps_m.sum() >= 500.0 and steps_m.max() < 1.5
    assert streets.has_room(way_m, CLEARANCE_M)


def test_ways_are_as_long_as_asked_for_where_each_leg_is_short() -> None:
    """On a street 12 m long and wide nobody can but turn on the spot, hundreds of times."""
    flat = HeightMap(height_m=np.zeros((12, 12)), extent_m=(0.0, 0.0, 12.0, 12.0), cell_m=1.0)
    for streets, length_m in ((find_streets(flat), 2081.0), (find_streets(town()), 30_000.0)):
        way_m = find_way(streets, length_m, np.random.default_rng(0))
        steps_m = np.linalg.norm(np.diff(way_m, axis=0), axis=1)
        assert length_m <= steps_m.sum() < length_m + 300 and 0 < steps_m.min() and steps_m.max() < 1.5
    with pytest.raises(SpecError, match=r"no way of 1825 m .* larger area .* fewer shard_drops"):
        go(find_streets(flat), [10.0], 180.0)  # too long once its corners are smooth


def test_a_way_beyond_reason_is_one_line() -> None:
    with pytest.raises(SpecError, match="way of 201 km; expected at most 200 km: take fewer shard_drops"):
        find_way(find_streets(town()), 201_000.0, np.random.default_rng(0))


def test_only_covered_streets_are_driven_on() -> None:
    streets = find_streets(town())
    places_m = streets.places_m[::7]
    west = restrict(streets, places_m[:, 0] < 50, places_m)
    assert 0 < len(west.cells) < len(streets.cells) and west.places_m[:, 0].max() < 60
    motion = go(west, [8.0] * 3, 10.0).sample(np.linspace(-2, 10, 241))
    assert motion.position_m[..., 0].max() < 60


def go(streets: object, speeds: list[float], last_s: float, seed: int = 0) -> Track:
    return drive(
        streets,  # type: ignore[arg-type]
        speed_m_per_s=np.array(speeds),
        height_m=1.5,
        first_s=-2.0,
        last_s=last_s,
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("seed", range(3))
def test_drives_keep_to_the_streets_and_are_gentle(seed: int) -> None:
    streets, speeds = find_streets(town()), [0.0, 1.5, 8.0, 14.0]
    times_s = np.arange(-2, 20, 0.02)
    motion = go(streets, speeds, 20.0, seed).sample(times_s)
    assert streets.has_room(motion.position_m, 0.0) and np.allclose(motion.position_m[..., 2], 1.5)
    speed = np.linalg.norm(motion.velocity_m_per_s, axis=-1)
    assert (speed.max(axis=0) <= np.array(speeds) + 1e-9).all() and (speed[:, 1:].min(axis=0) > 0.5).all()
    acceleration = np.linalg.norm(motion.acceleration_m_per_s2, axis=-1)
    assert acceleration.max() <= SMOOTH_M_PER_S2
    assert SMOOTH_M_PER_S2 >= np.hypot(ALONG_M_PER_S2, SIDEWAYS_M_PER_S2)
    assert np.abs(motion.turn_rate_rad_per_s).max() > 0.2  # it is a town with corners
    # curvature is continuous: the acceleration moves by its largest jerk at most, between samples
    assert np.abs(np.diff(motion.acceleration_m_per_s2, axis=0)).max() < 0.02 * 50


def test_the_seed_decides_a_drive() -> None:
    streets = find_streets(town())
    one, same, other = (go(streets, [8.0, 5.0], 5.0, seed).control_m for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert not np.array_equal(one[:, 0], one[:, 1])


def test_no_room_is_said_in_one_line() -> None:
    walls = np.zeros((20, 20))
    walls[::3] = 10.0
    narrow = HeightMap(height_m=walls, extent_m=(0.0, 0.0, 20.0, 20.0), cell_m=1.0)
    with pytest.raises(SpecError, match="no ground with 3 m of room"):
        find_streets(narrow)


@pytest.mark.skipif(good_llvm() is None, reason="ray casts on the CPU need LLVM 17 or newer")
def test_drives_through_munich_stay_out_of_its_buildings() -> None:
    """Straight down on every place driven through, the first surface met is the street."""
    scene = Scene("munich", 3.5e9)
    streets = find_streets(look_down(scene, (-200.0, -200.0, 200.0, 200.0)))
    motion = go(streets, [5.0, 9.0, 14.0], 20.0).sample(np.arange(-2, 20, 0.05))
    antennas = motion.position_m.reshape(-1, 3)
    above = scene.cast(antennas, np.broadcast_to([0.0, 0.0, 1.0], antennas.shape))
    below = scene.cast(antennas, np.broadcast_to([0.0, 0.0, -1.0], antennas.shape))
    assert np.isinf(above).all() and np.allclose(below, 1.5, atol=0.05)
