"""A noisy measurement of the channel."""

import numpy as np
from numpy.typing import NDArray

from airlam.specs import CsiSensorSpec


def csi_samples(
    sensor: CsiSensorSpec, links: NDArray[np.complex64], noise_variance: float, rng: np.random.Generator
) -> NDArray[np.complex64]:
    """Every ``comb``-th subcarrier with white noise: complex64 [n, users, user_ant, bs_ant, pilots].

    links: complex64 [n, users, user_ant, bs_ant, subcarriers]. noise_variance: E|z|^2 of a coefficient, the
    same at all times and for all users.
    """
    pilots = links[..., :: sensor.comb]  # [n, users, user_ant, bs_ant, pilots]
    return pilots + complex_noise(pilots.shape, noise_variance, rng)


def complex_noise(shape: tuple[int, ...], variance: float, rng: np.random.Generator) -> NDArray[np.complex64]:
    """Circular white noise of E|z|^2 = ``variance``: complex64 of the shape."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32) * np.float32(np.sqrt(variance / 2))
    return parts.view(np.complex64)[..., 0]
