r"""The error of a genie that knows every ray's delay, direction, Doppler shift and mean power.

The channel is h[t, a, f] = sum_q g_q d_q(t) s_q(a) exp(-2 pi i f tau_q) with g_q ~ CN(0, P_q). Given the
rest, the LMMSE estimate of the future from noisy history is optimal (Kay, Estimation Theory, 1993, 12.3). The
responses are products over time, antennas and frequency, so their Gram matrices are Hadamard products and
everything happens in num_rays dimensions. It is a bound that no method reaches which has to find the rays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting


class Rays(Protocol):
    """One drop's rays; ``airlam.datasets`` provides them for the models whose rays are known.

    delay_s: float64 [num_rays]. time_response: complex128 [num_rays, num_slots], history then future.
    spatial_response: complex128 [num_rays, num_user_ant * num_bs_ant]. power: float64 [num_rays].
    """

    @property
    def delay_s(self) -> torch.Tensor: ...

    @property
    def time_response(self) -> torch.Tensor: ...

    @property
    def spatial_response(self) -> torch.Tensor: ...

    @property
    def power(self) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GenieBound:
    """Expected squared error and energy of one drop's future, over the rays' amplitudes and the noise.

    error: float64 [num_noise_levels, num_horizon]. energy: float64 [num_horizon].
    """

    error: torch.Tensor
    energy: torch.Tensor

    @property
    def nmse(self) -> torch.Tensor:
        """Error over energy, the horizon pooled: float64 [num_noise_levels]."""
        return self.error.sum(1) / self.energy.sum()


def genie_bound(rays: Rays, noise_variance: Sequence[float], setting: PredictionSetting) -> GenieBound:
    r"""tr(B S B^H), S = (P^{-1} + A^H A / noise)^{-1}, A the history's and B the future's responses.

    noise_variance: one value a noise level, E|n|^2 of a coefficient at the scale of the rays' powers.
    """
    spatial, past, _, target_response = _factors(rays, setting)
    eigenvalues, modes = _whitened_modes(rays.power, past)
    frequency = _gram(target_response) * spatial
    future_time = rays.time_response[:, setting.num_history :][:, : setting.num_horizon]
    mode_energy, energy = [], []
    for response in future_time.unbind(1):  # [num_rays]
        future = _gram(response[:, None]) * frequency  # [num_rays, num_rays]
        mode_energy.append((modes.conj() * (future @ modes)).sum(0).real)  # [num_rays]
        energy.append((rays.power * future.diagonal().real).sum())
    noise = torch.tensor(noise_variance, dtype=torch.float64, device=past.device)
    left = _left_over(eigenvalues, noise)  # [num_noise_levels, num_rays]
    return GenieBound(error=left @ torch.stack(mode_energy, dim=1), energy=torch.stack(energy))


def genie_prediction(
    rays: Rays, history: torch.Tensor, noise_variance: float, setting: PredictionSetting
) -> torch.Tensor:
    """The genie's estimate of one drop's future.

    history: complex [num_history, num_user_ant, num_bs_ant, num_history_subcarriers], at the scale of the
    rays' powers. Returns complex64 [num_horizon, num_user_ant, num_bs_ant, num_target_subcarriers].
    """
    _, past, history_response, target_response = _factors(rays, setting)
    eigenvalues, modes = _whitened_modes(rays.power, past)
    y = history.flatten(1, 2).to(torch.complex128)  # [t, antennas, f]
    matched = torch.einsum("taf,qf->qta", y, history_response.conj())
    matched = torch.einsum("qta,qa->qt", matched, rays.spatial_response.conj())
    matched = (matched * rays.time_response[:, : setting.num_history].conj()).sum(1)  # [num_rays]
    noise = max(noise_variance, float(_noise_floor(eigenvalues)))
    amplitude = modes @ ((modes.mH @ matched) / (eigenvalues + noise))  # [num_rays]
    future_time = rays.time_response[:, setting.num_history :][:, : setting.num_horizon]
    weighted = torch.einsum("q,ql,qa->qla", amplitude, future_time, rays.spatial_response)
    future = torch.einsum("qla,qf->laf", weighted, target_response)  # [horizon, antennas, target f]
    return future.reshape(len(future), *history.shape[1:3], -1).to(torch.complex64)


def _factors(
    rays: Rays, setting: PredictionSetting
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gram matrices over antennas and over the history, and the frequency responses of both bands.

    Complex128 [num_rays, num_rays] twice, then [num_rays, num_subcarriers] of the history and the target.
    """
    needed = setting.num_history + setting.num_horizon
    if rays.time_response.shape[1] < needed:
        raise SpecError(
            f"the rays cover {rays.time_response.shape[1]} slots, fewer than the {needed} of history and "
            "horizon; draw them with more slots"
        )
    history_response = _frequency_response(rays.delay_s, setting.history_frequencies_hz)
    target_response = _frequency_response(rays.delay_s, setting.target_frequencies_hz)
    spatial = _gram(rays.spatial_response)
    past = _gram(rays.time_response[:, : setting.num_history]) * spatial * _gram(history_response)
    return spatial, past, history_response, target_response


def _frequency_response(delay_s: torch.Tensor, frequencies_hz: tuple[float, ...]) -> torch.Tensor:
    """exp(-2 pi i f tau): complex128 [num_rays, num_subcarriers]."""
    frequency = torch.tensor(frequencies_hz, dtype=torch.float64, device=delay_s.device)
    angle = -2 * torch.pi * delay_s[:, None] * frequency
    return torch.polar(torch.ones_like(angle), angle)


def _gram(response: torch.Tensor) -> torch.Tensor:
    """A^H A of responses that are rows here: complex [num_rays, n] to [num_rays, num_rays]."""
    return response.conj() @ response.mT


def _whitened_modes(power: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues of P^{1/2} G P^{1/2}, [num_rays], and P^{1/2} times its eigenvectors, squared."""
    root = power.sqrt()
    eigenvalues, vectors = torch.linalg.eigh(root[:, None] * past * root)
    return eigenvalues.clamp_min(0.0), root[:, None] * vectors


def _noise_floor(eigenvalues: torch.Tensor) -> torch.Tensor:
    """Below this, rounding and not noise decides which modes are seen."""
    floor: torch.Tensor = 1e-13 * eigenvalues[-1].clamp_min(torch.finfo(eigenvalues.dtype).tiny)
    return floor


def _left_over(eigenvalues: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Share of each mode's variance that the history leaves open: [num_noise_levels, num_rays]."""
    noise = noise.clamp_min(float(_noise_floor(eigenvalues)))[:, None]
    return noise / (noise + eigenvalues)
