r"""The structure that every optimal linear precoder has: 2 K numbers say all of it.

With total power P, noise variance s2 and single-antenna users, any stationary point of a weighted sum rate
(or of any other increasing utility of the SINRs, where all power is used) is

    w_k = sqrt(p_k) v_k / ||v_k||,   v_k = (I + sum_i (lam_i / s2) h_i h_i^H)^-1 h_k,   sum p = sum lam = P,

h_i^H being row i of H. Bjornson, Bengtsson, Ottersten, IEEE Signal Process. Mag. 31 (4), 2014.
"""

import torch

from airlam.radio.beamforming.power import Scalar, columns_of_power, per_link, squared_magnitude

_LEAST_SHARE = 1e-12  # of a dual power: the direction's limit at 0, to rounding


def optimal_structure(
    h: torch.Tensor, lam: torch.Tensor, p: torch.Tensor, noise_variance: Scalar, total_power: Scalar = 1.0
) -> torch.Tensor:
    r"""The precoder of dual powers ``lam`` and stream powers ``p``, both rescaled to the total power.

    By the matrix inversion lemma the directions are the columns of H^H (I + diag(lam) H H^H / s2)^-1, so the
    system to solve has the size of users or of antennas, whichever is smaller. Differentiable in h, lam and p
    (in p where it is above 0, in lam of as many users as antennas or fewer likewise). lam = P / K for all
    gives regularised zero forcing.

    h: complex [..., num_users, num_bs_ant]. lam, p: float [..., num_users], none negative, not all 0; shapes
    broadcast. noise_variance, total_power: positive, a number or float [...].
    Returns complex [..., num_bs_ant, num_users]; a user whose channel is 0 gets a column of zeros.
    """
    power = per_link(total_power, h, "total_power")[..., None]  # [..., 1]
    gain = power / per_link(noise_variance, h, "noise_variance")[..., None]  # [..., 1]
    num_users, num_bs_ant = h.shape[-2:]
    if num_users <= num_bs_ant:
        directions = _by_users(h, gain[..., None] * (h @ h.mH), _shares(lam))
    else:
        directions = _by_antennas(h, gain * _shares(lam))
    return columns_of_power(directions, _shares(p) * power)  # [..., num_bs_ant, num_users]


def structure_from_gram(
    h: torch.Tensor, gram: torch.Tensor, lam: torch.Tensor, p: torch.Tensor, total_power: float = 1.0
) -> torch.Tensor:
    """``optimal_structure`` where G = (P / s2) H H^H is at hand, whatever the number of antennas.

    h: complex [..., num_users, num_bs_ant]; gram: complex [..., num_users, num_users]; lam, p: float [...,
    num_users], of sum 1. Returns complex [..., num_bs_ant, num_users].
    """
    return columns_of_power(_by_users(h, gram, lam), total_power * p)


def loaded_inverse(gram: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    r"""B = (I + R G R)^-1 with R = diag(root), by Cholesky: complex [..., num_users, num_users], Hermitian.

    H^H R B are the optimal structure's directions for lam = root^2, column k scaled by root_k, and G R B =
    R^-1 (I - B). gram: G; root: float [..., num_users], none negative.
    """
    loaded = gram * (root.unsqueeze(-1) * root.unsqueeze(-2))  # [..., num_users, num_users]
    rounding = root.shape[-1] * torch.finfo(root.dtype).eps  # without it a singular G may end up indefinite
    loaded.diagonal(dim1=-2, dim2=-1).mul_(1.0 + rounding).add_(1.0)
    factor = torch.linalg.cholesky_ex(loaded).L
    inverse: torch.Tensor = torch.cholesky_inverse(factor)
    return inverse


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
    rounding = torch.finfo(norm.dtype).eps * strength * squared_magnitude(inverse).sum(dim=-2, keepdim=True)
    received: torch.Tensor = squared_magnitude(heard) * (p[..., None, :] / torch.maximum(norm, rounding))
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
    power = squared_magnitude(h @ w)  # [..., num_users, num_users]
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


def _by_users(h: torch.Tensor, gram: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """H^H (I + diag(lam) G)^-1, columns scaled: complex [..., num_bs_ant, num_users]; lam of sum 1."""
    root = lam.clamp_min(_LEAST_SHARE).sqrt()  # [..., num_users]
    directions: torch.Tensor = h.mH @ (root.unsqueeze(-1) * loaded_inverse(gram, root))
    return directions


def _by_antennas(h: torch.Tensor, load: torch.Tensor) -> torch.Tensor:
    """(I + H^H diag(load) H)^-1 H^H: complex [..., num_bs_ant, num_users]."""
    identity = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    system = identity + h.mH @ (load[..., None] * h)  # [..., num_bs_ant, num_bs_ant]
    solved: torch.Tensor = torch.linalg.solve(system, h.mH)
    return solved
