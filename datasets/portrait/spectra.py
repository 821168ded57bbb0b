"""Spectra of a few links, for looking at: over delay, Doppler and azimuth, with what theory says of Doppler.

Each link enters with unit power, so that near users do not hide far ones. Those over delay and Doppler are
periodograms under a Hann window, which trades resolution (3 dB width 1.44 / B instead of 0.89 / B) for
sidelobes below -31 dB; the few columns of an array are taken as they are.

All follow from second moments, a few numbers an axis: the mean autocorrelation over frequency or time, whose
transform is the mean periodogram (Wiener and Khinchin), and the covariance of the columns. They are summed up
a few links at a time, so the memory taken does not grow with how finely a spectrum is drawn.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from scipy.special import j0

from airlam.specs import ArraySpec

Values = NDArray[np.float64]
OVERSAMPLING = 4  # points a resolution cell, for a smooth line
HANN_WIDTH = 1.44  # 3 dB width in units of one over the length
BLOCK_BYTES = 2**20  # of links that are transformed at once


def unit_power(links: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Links at unit mean power; those without any power are left out.

    links: complex64 [batch, users, slots, user_ant, bs_ant, subcarriers].
    Returns complex64 [num_links, slots, user_ant, bs_ant, subcarriers], and which were kept: bool
    [batch, users].
    """
    power = links.abs().square().mean(dim=(2, 3, 4, 5))  # [batch, users]
    kept = power > 0
    return links[kept] / power[kept].sqrt()[:, None, None, None, None], kept


def delay_profile(links: torch.Tensor, subcarrier_spacing_hz: float) -> tuple[Values, Values]:
    r"""Power over delay, P(tau) = mean |sum_f w_f h_f exp(j 2 pi f tau)|^2, at most 0 dB.

    links: as ``unit_power`` returns them; at least two subcarriers. Returns delays in s from -0.1 to 0.9 of
    1 / spacing, beyond which they alias, and linear power over its largest: float64 [num_delays] each.
    """
    num_subcarriers = links.shape[-1]
    num_delays = OVERSAMPLING * num_subcarriers
    # a delay turns phases backwards as frequency grows, a Doppler shift forwards as time does
    power = _transform(_autocorrelation(links, -1).conj(), num_delays)  # [num_delays]
    before = num_delays // 10
    delays_s = (np.arange(num_delays) - before) / (num_delays * subcarrier_spacing_hz)
    return delays_s, np.roll(power, before) / power.max()


def doppler_spectrum(links: torch.Tensor, slot_duration_s: float) -> tuple[Values, Values]:
    r"""Power over Doppler, S(nu) = mean |sum_t w_t h_t exp(-j 2 pi nu t)|^2 / sum w^2: white noise has 1.

    links: as ``unit_power`` returns them; at least two slots. Returns Hz, from minus to plus half the slot
    rate, and the density, of mean 1: float64 [num_dopplers] each.
    """
    num_slots = links.shape[1]
    power = _transform(_autocorrelation(links, 1), _num_dopplers(num_slots))  # [num_dopplers]
    density = np.fft.fftshift(power) / float(_hann(num_slots).square().sum())
    return doppler_grid_hz(num_slots, slot_duration_s), density


def clarke_spectrum(doppler_hz: Values, num_slots: int, slot_duration_s: float) -> Values:
    r"""What ``doppler_spectrum`` expects of waves from all sides in the plane, at its frequencies.

    The periodogram's mean is the transform of autocorrelation times the window's own:
    S(nu) = sum_l r_l J0(2 pi f_d l dt) exp(-j 2 pi nu l dt) / r_0, r_l = sum_t w_t w_(t+l); that is Clarke's
    spectrum (1968) convolved with the window's, aliasing included.

    doppler_hz: float64 [num_links], each link's top Doppler shift; the result is their mean.
    """
    window = _hann(num_slots).double().numpy()
    overlap = np.correlate(window, window, mode="full")[num_slots - 1 :]  # [num_slots], lags from 0 on
    correlation = overlap * clarke_correlation(doppler_hz, num_slots, slot_duration_s)
    density: Values = np.fft.fftshift(_transform(correlation, _num_dopplers(num_slots))) / overlap[0]
    return density


def clarke_correlation(doppler_hz: Values, num_lags: int, slot_duration_s: float) -> Values:
    r"""J0(2 pi f_d l dt) at lags l = 0, 1, ..., the mean over links: float64 [num_lags].

    doppler_hz: float64 [num_links].
    """
    turns = 2 * math.pi * slot_duration_s * doppler_hz  # [num_links]
    return np.array([j0(turns * lag).mean() for lag in range(num_lags)])


def doppler_grid_hz(num_slots: int, slot_duration_s: float) -> Values:
    """Frequencies of ``doppler_spectrum``: float64 [num_dopplers]."""
    return np.fft.fftshift(np.fft.fftfreq(_num_dopplers(num_slots), slot_duration_s)).astype(np.float64)


def hold_error(links: torch.Tensor, max_lag: int) -> Values:
    r"""Error of holding a channel for 1, 2, ... slots, mean |h(t + k) - h(t)|^2: float64 [num_lags].

    links: as ``unit_power`` returns them, so that every link counts alike and the error is an NMSE; at least
    two slots. Of waves from all sides it is 2 - 2 J0(2 pi f_d k dt). There are at most ``max_lag`` lags.
    """
    lags = range(1, min(max_lag, links.shape[1] - 1) + 1)
    total = np.zeros(len(lags))
    for block in _blocks(links):
        change = [(block[:, lag:] - block[:, :-lag]).abs().square().double().mean() for lag in lags]
        total += len(block) * np.array([float(each) for each in change])
    return total / len(links)


def azimuth_spectrum(links: torch.Tensor, array: ArraySpec) -> tuple[Values, Values]:
    r"""Power over direction at the base station, from its columns, a^T R a^*: at most 1.

    R = mean x x^H is the covariance of the columns x, a_c = exp(-j 2 pi d c sin(phi)) the beam that looks
    towards phi. Waves from above or below the horizon appear nearer to the boresight, at
    sin(phi) sin(theta).

    links: as ``unit_power`` returns them; at least two columns. Returns degrees counter-clockwise from the
    boresight, as far as the columns tell directions apart, and linear power over its largest: float64
    [num_angles] each.
    """
    widest = min(1.0, 0.5 / array.spacing_wavelengths)
    angles_rad = np.arcsin(
        np.linspace(-widest, widest, 4 * OVERSAMPLING * array.num_cols + 1)
    )  # [num_angles]
    turns = np.outer(np.sin(angles_rad), np.arange(array.num_cols)) * array.spacing_wavelengths
    beams = np.exp(-2j * math.pi * turns)  # [num_angles, col]
    covariance = _column_covariance(links, array)  # [col, col]
    power = ((beams @ covariance) * beams.conj()).sum(axis=1).real  # [num_angles]
    return np.degrees(angles_rad), power / power.max()


def _column_covariance(links: torch.Tensor, array: ArraySpec) -> NDArray[np.complex128]:
    """Sum of x x^H over all that the columns x see: complex128 [col, col]."""
    total = np.zeros((array.num_cols, array.num_cols), np.complex128)
    for block in _blocks(links):
        columns = rearrange(
            block,
            "n t ue (pol col row) f -> col (n t ue pol row f)",
            pol=array.num_polarizations,
            col=array.num_cols,
        )
        total += (columns @ columns.mH).numpy()
    return total


def _autocorrelation(links: torch.Tensor, dim: int) -> NDArray[np.complex128]:
    r"""r_l = mean sum_k x_(k+l) x_k^*, x = w h along an axis, the mean over all else: [length], l >= 0.

    The transform over twice the length keeps positive and negative lags apart.
    """
    length = links.shape[dim]
    power = np.zeros(2 * length)
    for block in _blocks(links):
        along = block.movedim(dim, -1) * _hann(length)  # [n, ..., length]
        lines = torch.fft.fft(along, n=2 * length)  # [n, ..., 2 length]
        power += lines.abs().square().flatten(0, -2).sum(dim=0, dtype=torch.float64).numpy()
    correlation = np.fft.ifft(power)[:length] * length / links.numel()  # [length]
    return correlation.astype(np.complex128)


def _transform(correlation: NDArray[Any], num_points: int) -> Values:
    """sum_l r_l exp(-j 2 pi l m / N) over lags of both signs, r_-l = r_l^*: float64 [num_points], >= 0.

    correlation: [num_lags], l >= 0; num_points: at least twice as many.
    """
    one_side = np.fft.fft(correlation, n=num_points)  # [num_points]
    power: Values = np.maximum(2 * one_side.real - correlation[0].real, 0.0)
    return power


def _blocks(links: torch.Tensor) -> Iterator[torch.Tensor]:
    """Some links at a time, at least one."""
    link_bytes = max(1, links[:1].numel() * links.element_size())
    yield from torch.split(links, max(1, BLOCK_BYTES // link_bytes))


def _hann(length: int) -> torch.Tensor:
    """Hann's window without its zeros at the ends: float32 [length]."""
    return torch.hann_window(length + 2, periodic=False)[1:-1]


def _num_dopplers(num_slots: int) -> int:
    return max(128, 2 * OVERSAMPLING * num_slots)
