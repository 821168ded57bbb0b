"""Accelerometer and gyroscope in the user's own frame."""

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.sensors.world import World
from airlam.specs import InertialSensorSpec


def inertial_samples(
    sensor: InertialSensorSpec, world: World, time_s: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Acceleration forwards and to the left, m/s^2, and turn rate, rad/s: float64 [n, users, 3].

    With heading p: forward = a_x cos p + a_y sin p, left = a_y cos p - a_x sin p, each with white noise.
    Gravity is taken off already. time_s: float64 [n].
    """
    motion = world.motion(time_s)
    cos, sin = np.cos(motion.heading_rad), np.sin(motion.heading_rad)  # [n, users]
    a_x, a_y = motion.acceleration_m_per_s2[..., 0], motion.acceleration_m_per_s2[..., 1]
    truth = np.stack(
        [a_x * cos + a_y * sin, a_y * cos - a_x * sin, motion.turn_rate_rad_per_s], axis=-1
    )  # [n, users, 3]
    acceleration, turn_rate = sensor.acceleration_noise_std_m_per_s2, sensor.turn_rate_noise_std_rad_per_s
    return truth + rng.normal(scale=[acceleration, acceleration, turn_rate], size=truth.shape)
