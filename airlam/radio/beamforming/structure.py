r"""The structure that every optimal linear precoder has: 2 K numbers say all of it.

With total power P, noise variance s2 and single-antenna users, any stationary point of a weighted sum rate
(or of any other increasing utility of the SINRs, where all power is used) is

    w_k = sqrt(p_k) v_k / ||v_k||,   v_k = (I + sum_i (lam_i / s2) h_i h_i^H)^-1 h_k,   sum p = sum lam = P,

h_i^H being row i of H. Bjornson, Bengtsson, Ottersten, IEEE Signal Process. Mag. 31 (4), 2014.
"""

import torch

from airlam.radio.beamforming.power import Scalar, per_link, unit_columns


def optimal_structure(
    h: torch.Tensor, lam: torch.Tensor, p: torch.Tensor, noise_variance: Scalar, total_power: Scalar = 1.0
) -> torch.Tensor:
    r"""The precoder of dual powers ``lam`` and stream powers ``p``, both rescaled to the total power.

    By the matrix inversion lemma the directions are the columns of H^H (I + diag(lam) H H^H / s2)^-1, so the
    system to solve has the size of users or of antennas, whichever is smaller. Differentiable in h, lam and p
    (in p where it is above 0). lam = P / K for all gives regularised zero forcing.

    h: complex [..., num_users, num_bs_ant]. lam, p: float [..., num_users], none negative, not all 0; shapes
    broadcast. noise_variance, total_power: positive, a number or float [...].
    Returns complex [..., num_bs_ant, num_users]; a user whose channel is 0 gets a column of zeros.
    """
    power = per_link(total_power, h, "total_power")[..., None]  # [..., 1]
    load = _shares(lam) * power / per_link(noise_variance, h, "noise_variance")[..., None]  # [..., num_users]
    num_users, num_bs_ant = h.shape[-2:]
    directions = _by_users(h, load) if num_users <= num_bs_ant else _by_antennas(h, load)
    amplitude = (_shares(p) * power).sqrt()[..., None, :]  # [..., 1, num_users]
    return unit_columns(directions) * amplitude  # [..., num_bs_ant, num_users]


def received_powers(gram: torch.Tensor, lam: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    r"""What each user receives of each stream under ``optimal_structure``, over the noise, without the
    precoder.

    With G = (P / s2) H H^H and A = (I + diag(lam) G)^-1 the streams' directions are H^H A, so user k receives
    p_j |(G A)_kj|^2 / (A^H G A)_jj of stream j: K x K matrices only, whatever the number of antennas.

    gram: G, complex [..., num_users, num_users]. lam, p: float [..., num_users], of sum 1.
    Returns float [..., num_users, num_streams]; differentiable.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.inv(identity + lam[..., None] * gram)
    heard = gram @ inverse
    norm = (inverse.conj() * heard).real.sum(dim=-2, keepdim=True)  # [..., 1, num_streams]
    strength = gram.diagonal(dim1=-2, dim2=-1).real.sum(dim=-1)[..., None, None]  # [..., 1, 1]
    rounding = torch.finfo(norm.dtype).eps * strength * inverse.abs().square().sum(dim=-2, keepdim=True)
    received: torch.Tensor = heard.abs().square() * (p[..., None, :] / torch.maximum(norm, rounding))
    return received


def structure_parameters(
    h: torch.Tensor, w: torch.Tensor, noise_variance: Scalar, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The ``lam`` and ``p`` of a stationary point of the weighted sum rate, as WMMSE finds one.

    p_k = ||w_k||^2 and lam_k is proportional to a_k SINR_k / (sum_j |g_kj|^2 + s2), G = H W, which is WMMSE's
    weight times the squared magnitude of its receiver. At a stationary point
    ``optimal_structure(h, lam, p, ...)`` is w, up to the phase of each column; before it has been reached, it
    is one more step of WMMSE in direction.

    h: complex [..., num_users, num_bs_ant]; w: complex [..., num_bs_ant, num_users]; weights a: float
    [..., num_users], 1 where not given.
    Returns (lam, p), float [..., num_users] each, both with the sum ||W||^2.
    """
    power = (h @ w).abs().square()  # [..., num_users, num_users]
    noise = per_link(noise_variance, h, "noise_variance")[..., None]  # [..., 1]
    own = power.diagonal(dim1=-2, dim2=-1)  # [..., num_users]
    interference = (power - torch.diag_embed(own)).sum(-1) + noise  # [..., num_users]
    lam = own / (interference * (interference + own))  # [..., num_users]
    if weights is not None:
        lam = lam * weights
    p = w.abs().square().sum(-2)  # [..., num_users]
    return _shares(lam) * p.sum(-1, keepdim=True), p


def _shares(values: torch.Tensor) -> torch.Tensor:
    """Of a sum of 1: float [..., num_users]."""
    return values / values.sum(-1, keepdim=True)


def _by_users(h: torch.Tensor, load: torch.Tensor) -> torch.Tensor:
    """H^H (I + diag(load) H H^H)^-1: complex [..., num_bs_ant, num_users]."""
    identity = torch.eye(h.shape[-2], dtype=h.dtype, device=h.device)
    system = identity + load[..., None] * (h @ h.mH)  # [..., num_users, num_users]
    inverse = torch.linalg.solve(system, identity.expand_as(system))  # [..., num_users, num_users]
    directions: torch.Tensor = h.mH @ inverse
    return directions


def _by_antennas(h: torch.Tensor, load: torch.Tensor) -> torch.Tensor:
    """(I + H^H diag(load) H)^-1 H^H: complex [..., num_bs_ant, num_users]."""
    identity = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    system = identity + h.mH @ (load[..., None] * h)  # [..., num_bs_ant, num_bs_ant]
    solved: torch.Tensor = torch.linalg.solve(system, h.mH)
    return solved
