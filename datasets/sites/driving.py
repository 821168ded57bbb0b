"""Drives along the streets: a way, smoothed, and a speed that suits its curves.

A driver keeps to a speed of their own, slows down for curves so that the sideways acceleration stays
comfortable, and brakes and speeds up gently. The figures are a reconstruction of ordinary city driving.
"""

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from airlam.datasets.sites.scene import Array
from airlam.datasets.sites.streets import Streets, find_way
from airlam.datasets.sites.trajectory import DEGREE, Track
from airlam.errors import SpecError

SPACING_M = 0.25  # between points of a smoothed way
SMOOTHING_M = (5.0, 3.5, 2.5, 1.5)  # tried in turn, until the way keeps off the walls
SIDEWAYS_M_PER_S2, ALONG_M_PER_S2 = 2.5, 1.5  # largest accelerations
CAR_SPEEDS_M_PER_S = (4.0, 14.0)  # of those who are no users
INTERVAL_S = 0.25  # between control points of a track
ROOM_M = 1.0  # that must stay between a driver and the walls
SHORTEST_M = 20.0  # of a way, which also gives those who stand still a heading
HEADING_POINTS = 4  # over which the first heading is taken
LENGTHENED, EXTRA_M = 1.15, 20.0  # how much longer the way over cells is asked for: rounding shortens it
SMOOTH_M_PER_S2 = 4.0  # a track that asks for more, turning on the spot, is drawn again
MAX_TRIES = 10


def drive(
    streets: Streets,
    *,
    speed_m_per_s: Array,
    height_m: float,
    first_s: float,
    last_s: float,
    rng: np.random.Generator,
) -> Track:
    """A track of some users along the streets, each at its own speed where the way is straight.

    speed_m_per_s: float64 [users]. height_m: of the antennas above the ground. SpecError where the streets
    leave no room.
    """
    streams = rng.spawn(len(speed_m_per_s))
    alone = [
        _drive_alone(streets, float(speed), first_s, last_s, stream)
        for speed, stream in zip(speed_m_per_s, streams, strict=True)
    ]
    control_m = np.stack([control for control, _ in alone], axis=1)  # [controls, users, 3]
    return Track(
        control_m=control_m + np.array([0.0, 0.0, height_m]),
        road_heading_rad=np.array([heading for _, heading in alone]),
        interval_s=INTERVAL_S,
        first_s=first_s,
    )


def _drive_alone(
    streets: Streets, speed_m_per_s: float, first_s: float, last_s: float, rng: np.random.Generator
) -> tuple[Array, float]:
    """Control points on the ground, float64 [controls, 3], and the first heading.

    The gentlest of some drives drawn at random, or the first that is gentle enough.
    """
    intervals = int(np.ceil((last_s - first_s) / INTERVAL_S))
    times_s = np.asarray(INTERVAL_S * np.arange(intervals + DEGREE), dtype=np.float64)
    length_m = max(SHORTEST_M, speed_m_per_s * float(times_s[-1]))
    roughest, found = np.inf, None
    for _ in range(MAX_TRIES):
        way_m = find_way(streets, LENGTHENED * length_m + EXTRA_M, rng)
        for smoothing_m in SMOOTHING_M:
            smooth_m = _smooth(way_m, smoothing_m)
            if len(smooth_m) * SPACING_M < length_m + SPACING_M:
                continue
            control_m = _controls(streets, smooth_m, smoothing_m, speed_m_per_s, times_s)
            rough = _largest_acceleration(control_m)
            if rough < roughest and streets.has_room(_curve(control_m), ROOM_M):
                ahead = smooth_m[HEADING_POINTS] - smooth_m[0]
                roughest, found = rough, (control_m, float(np.arctan2(ahead[1], ahead[0])))
        if found is not None and roughest <= SMOOTH_M_PER_S2:
            break
    if found is None:
        raise SpecError(
            f"no way of {length_m:.0f} m keeps {ROOM_M:g} m off the walls in area_m {streets.map.extent_m}; "
            "take a larger area with wider streets, fewer shard_drops or a smaller position_interval_s"
        )
    return found


def _controls(
    streets: Streets, smooth_m: Array, smoothing_m: float, speed_m_per_s: float, times_s: Array
) -> Array:
    """Where the driver is on the way at each time, on ground smoothed as the way is: float64 [times, 3]."""
    distance_m = _distances(smooth_m, speed_m_per_s, times_s)  # [times]
    along_m = SPACING_M * np.arange(len(smooth_m))
    ground_m = gaussian_filter1d(streets.ground_m(smooth_m), smoothing_m / SPACING_M, mode="nearest")
    flat_m = CubicSpline(along_m, smooth_m)(distance_m)  # [times, 2]
    return np.column_stack([flat_m, np.interp(distance_m, along_m, ground_m)])


def _largest_acceleration(control_m: Array) -> float:
    """Of the cubic B-spline of some control points: float64 [controls, 2] -> m/s^2, reached at a knot."""
    second = np.diff(control_m, n=2, axis=0) / INTERVAL_S**2
    return float(np.linalg.norm(second, axis=1).max(initial=0.0))


def _smooth(way_m: Array, smoothing_m: float) -> Array:
    """The way with rounded corners, as points ``SPACING_M`` apart: float64 [points, 2]; a little shorter."""
    fine = _spaced(way_m)
    return _spaced(gaussian_filter1d(fine, smoothing_m / SPACING_M, axis=0, mode="nearest"))


def _spaced(points_m: Array) -> Array:
    """Points ``SPACING_M`` apart along a polyline."""
    steps_m = np.linalg.norm(np.diff(points_m, axis=0), axis=1)
    along_m = np.concatenate([[0.0], np.cumsum(steps_m)])
    even_m = np.arange(0.0, along_m[-1], SPACING_M)
    return np.stack([np.interp(even_m, along_m, points_m[:, axis]) for axis in range(2)], axis=-1)


def _distances(smooth_m: Array, speed_m_per_s: float, times_s: Array) -> Array:
    r"""How far along the way the driver is at each time: float64 [times], not before 0.

    v(s)^2 = min_s' (v_max(s')^2 + 2 a |s - s'|), v_max^2 = min(v^2, a_sideways / curvature): the fastest that
    never asks for more than the accelerations, braking included.
    """
    if speed_m_per_s * times_s[-1] < SPACING_M:  # stands still, or crawls where no curve matters
        return speed_m_per_s * times_s
    first = np.gradient(smooth_m, SPACING_M, axis=0)
    second = np.gradient(first, SPACING_M, axis=0)
    curvature = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])  # 1/m
    square = np.minimum(speed_m_per_s**2, SIDEWAYS_M_PER_S2 / np.maximum(curvature, 1e-9))
    ramp = 2 * ALONG_M_PER_S2 * SPACING_M * np.arange(len(square))
    forwards = np.minimum.accumulate(square - ramp) + ramp
    backwards = np.minimum.accumulate((square + ramp)[::-1])[::-1] - ramp
    speed = np.sqrt(np.minimum(forwards, backwards))
    slowness = 1 / speed
    passed_s = np.concatenate([[0.0], np.cumsum(SPACING_M * (slowness[1:] + slowness[:-1]) / 2)])
    distance_m: Array = np.interp(times_s, passed_s, SPACING_M * np.arange(len(square)))
    return distance_m


def _curve(control_m: Array) -> Array:
    """Points of the cubic B-spline of some control points, at its knots and halfway between them."""
    at_knots = (control_m[:-2] + 4 * control_m[1:-1] + control_m[2:]) / 6
    halfway = (control_m[:-3] + 23 * control_m[1:-2] + 23 * control_m[2:-1] + control_m[3:]) / 48
    return np.concatenate([at_knots, halfway])
