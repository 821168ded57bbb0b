"""Sweeps of the base station over a codebook of DFT beams."""

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from airlam.datasets.sensors.csi import complex_noise
from airlam.specs import ArraySpec, BeamSensorSpec


def dft_beams(array: ArraySpec, num_beams: int) -> NDArray[np.complex64]:
    r"""Unit-norm weights over the elements of one polarisation: complex64 [num_beams, num_cols * num_rows].

    w_b[c, r] = exp(j 2 pi c u_b) / sqrt(num_cols num_rows), u_b = (b + 1/2) / num_beams - 1/2: beam b looks
    where spacing sin(azimuth) = u_b, from right to left of the boresight, and along it in elevation. With as
    many beams as columns they are orthogonal; more oversample the circle, fewer leave gaps.
    """
    direction = (np.arange(num_beams) + 0.5) / num_beams - 0.5  # [beams]
    phase = 2 * np.pi * direction[:, None] * np.arange(array.num_cols)  # [beams, cols]
    weights = np.exp(1j * np.repeat(phase, array.num_rows, axis=1))  # [beams, cols * rows]
    unit: NDArray[np.complex64] = (weights / np.sqrt(weights.shape[1])).astype(np.complex64)
    return unit


def beam_samples(
    sensor: BeamSensorSpec,
    array: ArraySpec,
    links: NDArray[np.complex64],
    noise_variance: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    r"""Measured power gain of every beam: float32 [n, users, beams].

    P_b = sum_{user_ant, pol} mean_f |w_b^H h + z|^2, z white of E|z|^2 = noise_variance, which is a port's
    as beams have unit norm; the noise's own power is in P_b, once a branch. links: complex64 [n, users,
    user_ant, bs_ant, subcarriers].
    """
    weights = dft_beams(array, sensor.num_beams)
    measured = np.zeros((*links.shape[:2], sensor.num_beams), np.float32)  # [n, users, beams]
    for power, sample in zip(measured, links, strict=True):  # one at a time: responses are larger than links
        response = _sweep(sample, weights, array)  # [users, branches, beams, subcarriers]
        power[:] = beam_power(response + complex_noise(response.shape, noise_variance, rng))
    return measured


def _sweep(
    links: NDArray[np.complex64], weights: NDArray[np.complex64], array: ArraySpec
) -> NDArray[np.complex64]:
    """Response of every beam: complex64 [users, user_ant * pol, beams, subcarriers] of links without time.

    NumPy's own einsum: a BLAS product rounds otherwise where it has another number of threads.
    """
    branches = rearrange(
        links, "u a (p e) f -> u (a p) e f", p=array.num_polarizations
    )  # [users, branches, elements, subcarriers]
    response: NDArray[np.complex64] = np.einsum("be, uaef -> uabf", weights.conj(), branches)
    return response


def beam_power(response: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Sum over branches of the mean power over subcarriers: float32 [users, beams]."""
    power = np.square(response.real) + np.square(response.imag)  # [users, branches, beams, subcarriers]
    total: NDArray[np.float32] = power.mean(axis=-1).sum(axis=1)
    return total
