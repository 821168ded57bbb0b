r"""Precoding for the mean rate over what the channel may be: WMMSE on samples of it.

max_W mean_s sum_k a_k log2(1 + SINR_ks) s.t. ||W||^2 <= P, the samples being drawn from the channel given
all that is known. The receivers know their own precoded channel, as precoded reference signals teach it.
Razaviyayn, Sanjabi, Luo, Math. Program. 157 (2016), on a fixed set of samples; the power as in ``wmmse``.
"""

import torch
from einops import rearrange

from airlam.errors import SpecError
from airlam.radio.beamforming.power import Scalar, per_link, scale_to_total_power
from airlam.radio.beamforming.wmmse import urgency_and_load
from airlam.radio.precoding import regularized_zero_forcing


def ergodic_wmmse(
    samples: torch.Tensor,
    noise_variance: Scalar,
    total_power: Scalar = 1.0,
    *,
    num_iterations: int,
    start: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The precoder after ``num_iterations``; its mean weighted sum rate never falls with their number.

    samples: complex [..., num_samples, num_users, num_bs_ant]. noise_variance, total_power: positive, a
    number or float [...]. start: complex [..., num_bs_ant, num_users], regularised zero forcing of the
    samples' mean where not given. weights: float [..., num_users], 1 where not given. With one sample it is
    ``wmmse``.
    Returns complex [..., num_bs_ant, num_users], of exactly the total power.
    """
    if num_iterations < 1:
        raise SpecError(
            f"num_iterations must be at least 1, got {num_iterations}; the start is a precoder itself"
        )
    noise = per_link(noise_variance, samples[..., 0, :, :], "noise_variance")
    noise = noise / per_link(total_power, samples[..., 0, :, :], "total_power")  # [...]
    w = regularized_zero_forcing(samples.mean(-3), noise) if start is None else start
    for _ in range(num_iterations):
        w = _step(samples, scale_to_total_power(w, 1.0), noise, weights)
    return scale_to_total_power(w, total_power)


def sample_channels(
    h: torch.Tensor, error_covariance: torch.Tensor, num_samples: int, generator: torch.Generator
) -> torch.Tensor:
    """Channels that an estimate with Gaussian error may stand for: h_k + e_k, E e_k^H e_k = C_k.

    h: complex [..., num_users, num_bs_ant]; error_covariance: complex [..., num_users, num_bs_ant,
    num_bs_ant], of any rank. Returns complex [..., num_samples, num_users, num_bs_ant].
    """
    eigenvalues, vectors = torch.linalg.eigh(error_covariance)
    amplitudes = eigenvalues.clamp_min(0.0).sqrt()[..., None, :]  # [..., num_users, 1, num_bs_ant]
    root = vectors * amplitudes  # [..., num_users, num_bs_ant, num_bs_ant]
    shape = (*h.shape[:-2], num_samples, *h.shape[-2:])
    white = torch.randn(shape, dtype=h.dtype, device=h.device, generator=generator)
    error = torch.einsum("...skm,...knm->...skn", white, root.conj())  # [..., num_samples, num_users, n]
    return h[..., None, :, :] + error


def _step(
    samples: torch.Tensor, w: torch.Tensor, noise: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """Receivers and weights of every sample, then the precoder of their mean; w has power 1."""
    effective = samples @ w[..., None, :, :]  # [..., num_samples, num_users, num_users]
    power = effective.abs().square()
    own = power.diagonal(dim1=-2, dim2=-1)  # [..., num_samples, num_users]
    rest = (power - torch.diag_embed(own)).sum(-1) + noise[..., None, None]
    per_sample = None if weights is None else weights[..., None, :]
    urgency, load = urgency_and_load(own, rest, per_sample)  # [..., num_samples, num_users] each
    stacked = rearrange(samples, "... s k n -> ... (s k) n")
    loads = rearrange(load, "... s k -> ... (s k) 1")
    quadratic = stacked.mH @ (loads * stacked)  # [..., num_bs_ant, num_bs_ant]
    phase = torch.sgn(effective.diagonal(dim1=-2, dim2=-1))  # [..., num_samples, num_users]
    aims = (urgency * load).sqrt() * phase
    aim = (samples.mH * aims[..., None, :]).sum(-3)  # [..., num_bs_ant, num_users]
    # tiny where nobody can be served, so that the system can be solved
    multiplier = (noise * load.sum(dim=(-2, -1))).clamp_min(torch.finfo(load.dtype).tiny)[..., None, None]
    identity = torch.eye(w.shape[-2], dtype=w.dtype, device=w.device)
    solved: torch.Tensor = torch.linalg.solve(quadratic + multiplier * identity, aim)
    return solved
