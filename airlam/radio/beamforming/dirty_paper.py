r"""What no precoder can exceed: the sum capacity of the downlink, reached by dirty-paper coding.

By duality it is the sum capacity of the uplink with the same total power, which is concave in K numbers:

    C = max_q log2 det(I + sum_k q_k h_k h_k^H / s2),  q >= 0, sum_k q_k = P.

Vishwanath, Jindal, Goldsmith, IEEE Trans. Inf. Theory 49 (2003). Solved by a primal-dual interior point
method (Boyd, Vandenberghe, Convex Optimization (2004), sec. 11.7), all links at once. Concavity certifies
what it finds: with gradient g at q, C lies between the value at q and that value + P max_k g_k - q^T g.
"""

import math
from dataclasses import dataclass

import torch

from airlam.errors import SpecError
from airlam.radio.beamforming.power import Scalar, per_link

_MAX_STEPS = 60  # 10 to 20 are needed
_TO_BOUNDARY = 0.98  # share of the way to the nearest bound that a step may go
_CENTERING = 0.1  # what a step multiplies the mean complementarity by


@dataclass(frozen=True, slots=True, kw_only=True)
class SumCapacity:
    """Dual uplink powers and what they certify.

    powers: float64 [..., num_users], summing to the total power. rate: float64 [...], bit/s/Hz, what they
    achieve; gap: float64 [...], the sum capacity exceeds ``rate`` by this at most.
    """

    powers: torch.Tensor
    rate_bit_per_s_per_hz: torch.Tensor
    gap_bit_per_s_per_hz: torch.Tensor


def dirty_paper_bound(
    h: torch.Tensor, noise_variance: Scalar, total_power: Scalar = 1.0, *, tolerance_bit: float = 1e-6
) -> torch.Tensor:
    """The sum capacity from above, by ``tolerance_bit`` at most.

    h: complex [..., num_users, num_bs_ant]. noise_variance, total_power: positive, a number or float [...].
    Returns float64 [...], bit/s/Hz.
    """
    found = sum_capacity(h, noise_variance, total_power, tolerance_bit=tolerance_bit)
    return found.rate_bit_per_s_per_hz + found.gap_bit_per_s_per_hz


def sum_capacity(
    h: torch.Tensor, noise_variance: Scalar, total_power: Scalar = 1.0, *, tolerance_bit: float = 1e-6
) -> SumCapacity:
    """The dual uplink's best powers, to a certified gap of ``tolerance_bit``; arguments as above."""
    if tolerance_bit < 1e-10:
        raise SpecError(f"tolerance_bit must be at least 1e-10, got {tolerance_bit}; rounding allows no less")
    h = h.detach().to(torch.complex128)
    power = per_link(total_power, h, "total_power")
    scale = (power / per_link(noise_variance, h, "noise_variance"))[..., None, None]  # [..., 1, 1]
    gram = scale * (h @ h.mH)  # [..., num_users, num_users]; the powers are shares of 1 from here on
    shares = _best_shares(gram, tolerance_bit)
    rate, gap = _certified(gram, shares)
    return SumCapacity(powers=shares * power[..., None], rate_bit_per_s_per_hz=rate, gap_bit_per_s_per_hz=gap)


def _best_shares(gram: torch.Tensor, tolerance_bit: float) -> torch.Tensor:
    """Shares of the power, interior to the simplex: float64 [..., num_users]."""
    num_users = gram.shape[-1]
    share = torch.full(gram.shape[:-1], 1.0 / num_users, dtype=torch.float64, device=gram.device)
    gradient = _correlation(gram, share).diagonal(dim1=-2, dim2=-1).real  # [..., num_users]
    slack = gradient.amax(-1, keepdim=True) - gradient + gradient.mean(-1, keepdim=True)
    slack = slack.clamp_min(torch.finfo(torch.float64).tiny)  # where no user has a channel
    for _ in range(_MAX_STEPS):
        if bool((_certified(gram, share)[1] <= tolerance_bit).all()):
            return share
        share, slack = _newton_step(gram, share, slack)
    worst = float(_certified(gram, share)[1].max())
    raise SpecError(
        f"the sum capacity is known to {worst} bit/s/Hz only, not {tolerance_bit}; raise tolerance_bit"
    )


def _newton_step(
    gram: torch.Tensor, share: torch.Tensor, slack: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Towards g + z = nu, q z = tau, sum q = 1, staying inside; q and z: float64 [..., num_users]."""
    correlation = _correlation(gram, share)  # [..., num_users, num_users]
    gradient = correlation.diagonal(dim1=-2, dim2=-1).real  # [..., num_users]
    barrier = _CENTERING * (share * slack).mean(-1, keepdim=True)  # [..., 1]
    system = correlation.abs().square() + torch.diag_embed(slack / share)  # minus the Hessian, and the bounds
    right = torch.stack([gradient + barrier / share, torch.ones_like(share)], dim=-1)  # [..., num_users, 2]
    free, level = torch.linalg.solve(system, right).unbind(-1)  # [..., num_users] each
    move = free - level * (free.sum(-1, keepdim=True) / level.sum(-1, keepdim=True))  # sums to 0
    slack_move = barrier / share - slack - slack / share * move
    share = share + _step_length(share, move) * move
    slack = slack + _step_length(slack, slack_move) * slack_move
    return share / share.sum(-1, keepdim=True), slack


def _step_length(value: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
    """The longest step up to 1 that keeps ``value`` positive: float64 [..., 1]."""
    reach = torch.where(move < 0, -value / move.clamp_max(-torch.finfo(move.dtype).tiny), torch.inf)
    return (_TO_BOUNDARY * reach.amin(-1, keepdim=True)).clamp_max(1.0)


def _correlation(gram: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """h_i^H (I + sum_k q_k h_k h_k^H)^-1 h_j = [(I + G diag(q))^-1 G]_ij: complex128, as ``gram``."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    solved: torch.Tensor = torch.linalg.solve(identity + gram * share[..., None, :], gram)
    return solved


def _certified(gram: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rate of the shares and how much more there may be: float64 [...] each, bit/s/Hz."""
    root = share.sqrt()
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    system = identity + root[..., :, None] * gram * root[..., None, :]  # [..., num_users, num_users]
    rate = 2.0 * torch.linalg.cholesky(system).diagonal(dim1=-2, dim2=-1).real.log2().sum(-1)
    gradient = _correlation(gram, share).diagonal(dim1=-2, dim2=-1).real  # [..., num_users]
    gap = gradient.amax(-1) - (share * gradient).sum(-1)
    return rate, gap / math.log(2.0)
