"""How users and cars move: what trajectories give, and sensors and path finding take."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Where the members of a track are at some times, and how they move.

    position_m, velocity_m_per_s, acceleration_m_per_s2: float64 [n, users, 3], in scene coordinates.
    heading_rad: float64 [n, users], of the direction of travel, from x towards y, in (-pi, pi].
    turn_rate_rad_per_s: float64 [n, users], the heading's rate of change.
    """

    position_m: Array
    velocity_m_per_s: Array
    acceleration_m_per_s2: Array
    heading_rad: Array
    turn_rate_rad_per_s: Array
