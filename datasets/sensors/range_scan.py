"""A horizontal range scan around each user."""

import math

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.sensors.world import World
from airlam.specs import RangeSensorSpec


def range_samples_m(
    sensor: RangeSensorSpec, world: World, time_s: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Distances counter-clockwise from the heading, white noise on them: float64 [n, users, directions].

    Clipped to 0 and ``max_range_m``, which also stands where nothing is met. time_s: float64 [n].
    """
    heading_rad = world.motion(time_s).heading_rad  # [n, users]
    turn_rad = 2 * math.pi / sensor.num_directions * np.arange(sensor.num_directions)  # [directions]
    azimuth_rad = heading_rad[..., None] + turn_rad  # [n, users, directions]
    clean_m = np.zeros_like(azimuth_rad)
    for k, time in enumerate(time_s):
        clean_m[k] = world.ranges_m(float(time), azimuth_rad[k], sensor.height_m, sensor.max_range_m)
    noise_m = rng.normal(scale=sensor.noise_std_m, size=clean_m.shape)
    return np.clip(clean_m + noise_m, 0.0, sensor.max_range_m)
