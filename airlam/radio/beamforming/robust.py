r"""Precoding from an estimate whose error is known by its covariance.

The estimate of user k's row is h_k and the error e_k is uncorrelated with it; C_k = E e_k^H e_k, an N x N
matrix with C_k[m, n] = E conj(e_km) e_kn, so that an uninformed user receives E |(h_k + e_k) w|^2 = w^H
(h_k^H h_k + C_k) w of a beam w.
"""

from dataclasses import dataclass

import torch

from airlam.errors import SpecError
from airlam.radio.beamforming.power import Scalar, per_link, scale_to_total_power
from airlam.radio.beamforming.wmmse import urgency_and_load
from airlam.radio.precoding import equal_stream_power


def robust_regularized_zero_forcing(
    h: torch.Tensor, error_covariance: torch.Tensor, noise_variance: Scalar, total_power: float = 1.0
) -> torch.Tensor:
    r"""W along (sum_k (h_k^H h_k + C_k) + K sigma^2 / P I)^-1 H^H, each stream with the same power.

    The precoder of least expected squared error, E over the channel given its estimate; without error it is
    regularised zero forcing. Dietrich, Utschick, Breun, Proc. EUSIPCO (2005).

    h: complex [..., num_users, num_bs_ant]; error_covariance: complex [..., num_users, num_bs_ant,
    num_bs_ant]; noise_variance: positive, a number or float [...]. Returns complex [..., num_bs_ant,
    num_users].
    """
    loading = per_link(noise_variance, h, "noise_variance") * h.shape[-2] / total_power
    identity = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    system = h.mH @ h + error_covariance.sum(-3) + loading[..., None, None] * identity  # [..., n, n]
    return equal_stream_power(torch.linalg.solve(system, h.mH), total_power)


def robust_wmmse(
    h: torch.Tensor,
    error_covariance: torch.Tensor,
    noise_variance: Scalar,
    total_power: Scalar = 1.0,
    *,
    num_iterations: int,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """WMMSE of ``assured_rates_bit_per_s_per_hz``, from robust regularised zero forcing.

    Its weighted sum never falls with the number of iterations. Arguments as there; weights: float
    [..., num_users], 1 where not given. Returns complex [..., num_bs_ant, num_users], of exactly the total
    power.
    """
    if num_iterations < 0:
        raise SpecError(f"num_iterations must not be negative, got {num_iterations}")
    noise = per_link(noise_variance, h, "noise_variance") / per_link(total_power, h, "total_power")  # [...]
    identity = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    w = scale_to_total_power(robust_regularized_zero_forcing(h, error_covariance, noise), 1.0)
    for _ in range(num_iterations):
        own, rest = _own_and_rest(h, error_covariance, w, noise[..., None])
        urgency, load = urgency_and_load(own, rest, weights)  # [..., num_users] each
        system = h.mH @ (load[..., None] * h) + (load[..., None, None] * error_covariance).sum(-3)
        # tiny where nobody can be served, so that the system can be solved
        multiplier = (noise * load.sum(-1)).clamp_min(torch.finfo(load.dtype).tiny)[..., None, None]
        aim = h.mH * (urgency * load).sqrt()[..., None, :]  # [..., num_bs_ant, num_users]
        w = scale_to_total_power(torch.linalg.solve(system + multiplier * identity, aim), 1.0)
    return scale_to_total_power(w, total_power)


@dataclass(frozen=True, slots=True, kw_only=True)
class SureChannels:
    """Channels that a precoder may take as certain, and the way back from its answer.

    h: complex [..., num_users, num_bs_ant], of links with noise and power of 1. factor: L of Z = L L^H,
    complex [..., num_bs_ant, num_bs_ant].
    """

    h: torch.Tensor
    factor: torch.Tensor

    def back(self, w: torch.Tensor, total_power: Scalar) -> torch.Tensor:
        """L^-H W, of exactly the total power: complex [..., num_bs_ant, num_users], of the real antennas."""
        return scale_to_total_power(torch.linalg.solve_triangular(self.factor.mH, w, upper=True), total_power)


def sure_channels(
    h: torch.Tensor, error_covariance: torch.Tensor, noise_variance: Scalar, total_power: Scalar = 1.0
) -> SureChannels:
    r"""Stand-ins for channels known up to an error, for precoders that know of no errors.

    With power spread evenly user k hears n_k = s2 + P tr(C_k) / N besides what its estimate explains, and the
    optimal directions (sum_k lam_k (h_k^H h_k + C_k) / n_k + I)^-1 h_k^H have even dual powers lam_k = P / K
    in the errors' part: they are those of the rows sqrt(P / n_k) h_k L^-H with Z = I + (P / K) sum_k C_k /
    n_k = L L^H. A reconstruction: nothing is lost without errors, and with them each user's share of them is
    fixed before the powers are known.

    Arguments as in ``robust_regularized_zero_forcing``.
    """
    noise = per_link(noise_variance, h, "noise_variance")[..., None]  # [..., 1]
    power = per_link(total_power, h, "total_power")[..., None]  # [..., 1]
    blur = error_covariance.diagonal(dim1=-2, dim2=-1).real.mean(dim=-1)  # [..., num_users]
    gain = power / (noise + power * blur)  # [..., num_users]
    identity = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    load = (gain[..., None, None] * error_covariance).sum(-3) / h.shape[-2]
    factor = torch.linalg.cholesky(identity + load)
    rows = gain.sqrt()[..., None] * h
    sure = torch.linalg.solve_triangular(factor, rows.mH, upper=False).mH
    return SureChannels(h=sure, factor=factor)


def assured_rates_bit_per_s_per_hz(
    h: torch.Tensor, error_covariance: torch.Tensor, w: torch.Tensor, noise_variance: Scalar
) -> torch.Tensor:
    r"""log2(1 + |h_k w_k|^2 / (sum_{j != k} |h_k w_j|^2 + sum_j w_j^H C_k w_j + sigma^2)) of each user.

    What a receiver can count on that knows h_k w_k only and takes the rest as noise: a lower bound of the
    mean of log2(1 + SINR) over the error. Hassibi, Hochwald, IEEE Trans. Inf. Theory 49 (2003), sec. II.

    h: complex [..., num_users, num_bs_ant]; error_covariance: complex [..., num_users, num_bs_ant,
    num_bs_ant]; w: complex [..., num_bs_ant, num_users]; noise_variance: positive, a number or float [...].
    Returns float [..., num_users].
    """
    noise = per_link(noise_variance, h, "noise_variance")[..., None]  # [..., 1]
    own, rest = _own_and_rest(h, error_covariance, w, noise)
    return torch.log2(1.0 + own / rest)


def _own_and_rest(
    h: torch.Tensor, error_covariance: torch.Tensor, w: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Power of a user's own stream through its estimate, and of all else: float [..., num_users] each."""
    power = (h @ w).abs().square()  # [..., num_users, num_users]
    own = power.diagonal(dim1=-2, dim2=-1)  # [..., num_users]
    blurred = error_covariance @ w[..., None, :, :]  # [..., num_users, num_bs_ant, num_users]
    unknown = (w[..., None, :, :].conj() * blurred).real.sum(dim=(-2, -1))  # [..., num_users]
    return own, (power - torch.diag_embed(own)).sum(-1) + unknown + noise
