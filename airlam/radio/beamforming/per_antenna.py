r"""Limits on the power of every antenna, as amplifiers set them: sum_k |w_nk|^2 <= P_n for each antenna n."""

import torch

from airlam.errors import SpecError
from airlam.radio.beamforming.power import Scalar, per_link
from airlam.radio.beamforming.wmmse import urgency_and_load
from airlam.radio.precoding import regularized_zero_forcing


def scale_to_antenna_power(w: torch.Tensor, antenna_power: Scalar) -> torch.Tensor:
    """The same directions with the most power that every antenna allows; the busiest meets its limit.

    w: complex [..., num_bs_ant, num_streams]; antenna_power: positive, a number or float [..., num_bs_ant].
    Returns complex, same shape; a precoder of zeros stays so.
    """
    limit = per_link(antenna_power, w, "antenna_power")
    busiest = (w.abs().square().sum(-1) / limit).amax(-1)[..., None, None]  # [..., 1, 1]
    scaled: torch.Tensor = w / torch.where(busiest > 0, busiest, 1.0).sqrt()
    return scaled


def per_antenna_wmmse(
    h: torch.Tensor,
    noise_variance: Scalar,
    antenna_power: Scalar,
    *,
    num_iterations: int,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""WMMSE under a limit on each antenna, from regularised zero forcing scaled to the limits.

    The precoder's step is min_W tr(W^H A W) - 2 Re tr(B^H W) within the limits. Given the others, an
    antenna's row has a minimum in closed form: (B - A W + a_nn W)_n / a_nn, shortened to sqrt(P_n) where it
    is longer. One sweep over the antennas an iteration, so the weighted sum rate never falls and every
    iterate is within the limits. Reconstructed, after Shi, Razaviyayn, Luo, He, IEEE Trans. Signal Process.
    59 (2011).

    h: complex [..., num_users, num_bs_ant]. noise_variance: positive, a number or float [...]. antenna_power:
    positive, a number or float [..., num_bs_ant]. weights: float [..., num_users], 1 where not given.
    Returns complex [..., num_bs_ant, num_users], detached.
    """
    if num_iterations < 0:
        raise SpecError(f"num_iterations must not be negative, got {num_iterations}")
    h = h.detach()
    noise = per_link(noise_variance, h, "noise_variance")
    limit = per_link(antenna_power, h, "antenna_power").expand(
        *h.shape[:-2], h.shape[-1]
    )  # [..., num_bs_ant]
    start = regularized_zero_forcing(h, noise / limit.sum(-1))  # of power 1
    w = scale_to_antenna_power(start, limit).clone()
    for _ in range(num_iterations):
        _sweep(h, w, noise[..., None], limit.sqrt(), weights)
    return w


def _sweep(
    h: torch.Tensor,
    w: torch.Tensor,
    noise: torch.Tensor,
    longest: torch.Tensor,
    weights: torch.Tensor | None,
) -> None:
    """Receivers, weights, then each antenna's row of ``w`` in its place; longest: float [..., num_bs_ant]."""
    effective = h @ w  # [..., num_users, num_users]
    power = effective.abs().square()
    own = power.diagonal(dim1=-2, dim2=-1)  # [..., num_users]
    rest = (power - torch.diag_embed(own)).sum(-1) + noise
    urgency, load = urgency_and_load(own, rest, weights)  # [..., num_users] each
    phase = torch.sgn(effective.diagonal(dim1=-2, dim2=-1))
    wanted = torch.diag_embed((urgency * load).sqrt() * phase)  # [..., num_users, num_users]
    for antenna in range(h.shape[-1]):
        column = h[..., antenna]  # [..., num_users]
        curvature = (load * column.abs().square()).sum(-1, keepdim=True)  # [..., 1]
        # the row of B - A W: what this antenna can still improve
        missing = (column.conj()[..., None] * (wanted - load[..., None] * effective)).sum(
            -2
        )  # [..., num_users]
        tiny = torch.finfo(curvature.dtype).tiny
        row = w[..., antenna, :] + missing / curvature.clamp_min(tiny)
        length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)  # [..., 1]
        row = row * (longest[..., antenna, None] / length.clamp_min(tiny)).clamp_max(1.0)
        effective = effective + column[..., None] * (row - w[..., antenna, :])[..., None, :]
        w[..., antenna, :] = row
