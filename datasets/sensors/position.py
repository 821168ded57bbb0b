"""GNSS: the position with a slowly varying error and white noise."""

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.sensors.world import World
from airlam.specs import PositionSensorSpec, SiteSpec


def position_samples_m(
    sensor: PositionSensorSpec,
    site: SiteSpec,
    world: World,
    time_s: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Measured positions from the site's ``origin_m``: float64 [n, users, 3].

    truth + bias + white noise; each user and coordinate has a bias of its own (``gauss_markov``).
    time_s: float64 [n], increasing.
    """
    truth_m = world.motion(time_s).position_m - np.array(site.origin_m)  # [n, users, 3]
    bias_m = gauss_markov(
        time_s, truth_m.shape[1:], sensor.bias_std_m, sensor.bias_correlation_s, rng
    )  # [n, users, 3]
    white_m = rng.normal(scale=sensor.noise_std_m, size=truth_m.shape)
    measured_m: NDArray[np.float64] = truth_m + bias_m + white_m
    return measured_m


def gauss_markov(
    time_s: NDArray[np.float64],
    shape: tuple[int, ...],
    std: float,
    correlation_s: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """A stationary first-order Gauss-Markov process at given times: float64 [n, *shape].

    E[b(t) b(t + s)] = std^2 exp(-|s| / correlation_s), exact at any spacing: b_0 = std w_0,
    b_k = a b_(k-1) + std sqrt(1 - a^2) w_k with a = exp(-dt / correlation_s). Brown and Hwang, Introduction
    to Random Signals and Applied Kalman Filtering (2012), sec. 2.9. time_s: float64 [n], increasing.
    """
    white = std * rng.standard_normal((len(time_s), *shape))
    decay = np.exp(-np.diff(time_s) / correlation_s)  # [n - 1]
    for k, a in enumerate(decay, start=1):
        white[k] = a * white[k - 1] + np.sqrt(1 - a * a) * white[k]
    return white
