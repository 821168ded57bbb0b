"""Where users and cars are at any time: smooth curves in time, with speed, acceleration and heading."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import BSpline

from airlam.datasets.motion import Array, Motion
from airlam.errors import DataError

DEGREE = 3  # of the spline: position, velocity and acceleration are continuous, so a gyroscope sees no jumps
PARKED_M_PER_S = 1e-6  # slower than this, the direction of travel is that of the road


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """Users (or cars) driving along the streets together, as cubic B-splines in time.

    The curve of a user is sum_k control_m[k] B_3((t - first_s) / interval_s - k + 3), B_3 the uniform cubic
    B-spline on [0, 4]; it lies in the convex hull of the control points around it. ``first_s`` is not
    after the first drop at 0 s; where there are sensors it is when they start, so that they have a past.

    control_m: float64 [controls, users, 3], in scene coordinates; the position is that of the antenna.
    road_heading_rad: float64 [users], the heading of those who are parked.
    """

    control_m: Array
    road_heading_rad: Array
    interval_s: float
    first_s: float

    @property
    def num_users(self) -> int:
        """How many move together."""
        return int(self.control_m.shape[1])

    @property
    def last_s(self) -> float:
        """The end of the track."""
        return self.first_s + (len(self.control_m) - DEGREE) * self.interval_s

    @staticmethod
    def together(tracks: "Sequence[Track]") -> "Track":
        """Tracks of the same times as one, their users one after the other."""
        return Track(
            control_m=np.concatenate([track.control_m for track in tracks], axis=1),
            road_heading_rad=np.concatenate([track.road_heading_rad for track in tracks]),
            interval_s=tracks[0].interval_s,
            first_s=tracks[0].first_s,
        )

    def sample(self, time_s: Array) -> Motion:
        """The motion at some times.

        time_s: float64 [n], from ``first_s`` to ``last_s``; DataError beyond. Derivatives are the spline's
        own: heading = atan2(v_y, v_x), turn rate = (v_x a_y - v_y a_x) / (v_x^2 + v_y^2), 0 where parked.
        """
        time_s = np.asarray(time_s, dtype=np.float64)
        if time_s.size and not (self.first_s <= time_s.min() and time_s.max() <= self.last_s):
            raise DataError(
                f"a track from {self.first_s:g} to {self.last_s:g} s was asked for "
                f"{time_s.min():g} to {time_s.max():g} s; ask for times within it"
            )
        knots = self.first_s + self.interval_s * np.arange(-DEGREE, len(self.control_m) + 1)
        spline = BSpline(knots, self.control_m, DEGREE, extrapolate=True)  # rounding at either end
        position, velocity, acceleration = (spline(time_s, nu=order) for order in range(3))  # [n, users, 3]
        square = np.square(velocity[..., :2]).sum(axis=-1)  # [n, users]
        moves = square > PARKED_M_PER_S**2
        cross = velocity[..., 0] * acceleration[..., 1] - velocity[..., 1] * acceleration[..., 0]
        heading = np.arctan2(velocity[..., 1], velocity[..., 0])  # [n, users]
        return Motion(
            position_m=position,
            velocity_m_per_s=velocity,
            acceleration_m_per_s2=acceleration,
            heading_rad=np.where(moves, heading, self.road_heading_rad),
            turn_rate_rad_per_s=np.where(moves, cross / np.where(moves, square, 1.0), 0.0),
        )
