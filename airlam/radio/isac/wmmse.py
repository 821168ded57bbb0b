r"""WMMSE that illuminates targets: alternating optimisation with an exact precoder's step.

Receivers and weights are WMMSE's. All power is used at the optimum, so noise of variance s2 ||W||^2 / P takes
the place of the power constraint (see ``wmmse``), and the precoder's step is

    min_W tr(W^H M W) - 2 Re tr(C^H W)   s.t.   ||a_t W||^2 >= (g_t / P) ||W||^2   for every target t.

The constraints are not convex, yet where there are no more targets than users the dual has no gap (Beck, SIAM
J. Optim. 17 (2007)): W = S^-1 C, S = M - sum_t mu_t (a_t a_t^H - (g_t / P) I), with the mu_t >= 0 that
maximise the concave -tr(C^H S^-1 C) where S is definite. They are found by Newton's method, one equation a
target: no successive convex approximation is needed, each step being the global optimum that one would
approach. So the rate never falls, and every iterate meets all constraints. Targets of integrated sensing and
communication are usually met through semidefinite relaxation; this form is a reconstruction.
"""

from dataclasses import dataclass

import torch

from airlam.errors import SpecError
from airlam.radio.beamforming.power import Scalar, per_link, scale_to_total_power, squared_magnitude
from airlam.radio.beamforming.wmmse import Start, first_precoder, urgency_and_load
from airlam.radio.isac.beam import full_power_beam
from airlam.radio.isac.illumination import with_beam

# of the step's curvature: what keeps it near, and gives it a part along a target nobody hears
_STAYING = 1e-4
_MAX_STEPS = 60  # 2 to 6 are needed


def sensing_wmmse(
    h: torch.Tensor,
    targets: torch.Tensor,
    illumination: torch.Tensor,
    noise_variance: Scalar,
    total_power: Scalar = 1.0,
    *,
    num_iterations: int,
    start: Start = "rzf",
    weights: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The precoder after ``num_iterations``; its weighted sum rate never falls with their number.

    h: complex [..., num_users, num_bs_ant]; targets: complex [..., num_targets, num_bs_ant]; illumination:
    float [..., num_targets], towards each, none negative. noise_variance, total_power, start and weights as
    ``wmmse`` has them; the start is made to illuminate first. SpecError where none can illuminate as asked.
    Returns complex [..., num_bs_ant, num_users], of exactly the total power, detached.
    """
    if num_iterations < 0:
        raise SpecError(f"num_iterations must not be negative, got {num_iterations}")
    h, targets = h.detach(), targets.detach()
    power = per_link(total_power, h, "total_power")
    noise = per_link(noise_variance, h, "noise_variance") / power  # [...]
    white = h * noise.rsqrt()[..., None, None]  # the same links with noise and power of 1
    size = torch.linalg.vector_norm(targets, dim=-1, keepdim=True)  # [..., num_targets, 1]
    towards = targets / size
    share = illumination / (power[..., None] * size[..., 0].square())  # [..., num_targets]
    w = first_precoder(h, noise, start, generator)
    basis, white, towards = _within_reach(white, towards)
    beam = full_power_beam(towards, share, 1.0, h.shape[-2])
    w = with_beam(basis.mH @ w, beam, towards, share)
    multiplier = torch.zeros_like(share).expand(*w.shape[:-2], -1)
    heard = _Heard.of(white, w, weights)
    for _ in range(num_iterations):
        found, multiplier = _step(white, towards, share, w, heard, multiplier)
        found = with_beam(found, beam, towards, share)  # takes away what rounding leaves
        new = _Heard.of(white, found, weights)
        # only more targets than users, or rounding next to the most that is possible, can lower the rate
        better = (new.rate >= heard.rate)[..., None, None]
        w, heard = torch.where(better, found, w), new if bool(better.all()) else new.where(better, heard)
    return scale_to_total_power(basis @ w, total_power)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """What users receive of a precoder.

    effective: complex [..., num_users, num_users]. urgency, load: see ``urgency_and_load``, float [...,
    num_users]. rate: the weighted sum rate in nats, float [...].
    """

    effective: torch.Tensor
    urgency: torch.Tensor
    load: torch.Tensor
    rate: torch.Tensor

    @staticmethod
    def of(white: torch.Tensor, w: torch.Tensor, weights: torch.Tensor | None) -> "_Heard":
        """Of links with noise and power of 1."""
        effective = white @ w
        powers = squared_magnitude(effective)
        own = powers.diagonal(dim1=-2, dim2=-1)  # [..., num_users]
        rest = (powers - torch.diag_embed(own)).sum(-1) + 1.0
        urgency, load = urgency_and_load(own, rest, weights)
        rates = torch.log1p(own / rest)
        rate = (rates if weights is None else weights * rates).sum(-1)
        return _Heard(effective=effective, urgency=urgency, load=load, rate=rate)

    def where(self, chosen: torch.Tensor, other: "_Heard") -> "_Heard":
        """This one where ``chosen``, bool [..., 1, 1], and the other elsewhere."""
        flat = chosen[..., 0]
        return _Heard(
            effective=torch.where(chosen, self.effective, other.effective),
            urgency=torch.where(flat, self.urgency, other.urgency),
            load=torch.where(flat, self.load, other.load),
            rate=torch.where(flat[..., 0], self.rate, other.rate),
        )


def _within_reach(white: torch.Tensor, towards: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A basis of what users and targets hear, complex [..., num_bs_ant, r], and both in it."""
    rows = torch.cat([white, towards], dim=-2)
    basis = torch.linalg.qr(rows.mH).Q
    return basis, white @ basis, towards @ basis


def _step(
    white: torch.Tensor,
    towards: torch.Tensor,
    share: torch.Tensor,
    w: torch.Tensor,
    heard: _Heard,
    multiplier: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The precoder's step from what was heard, of any power, and its multipliers float [..., num_targets]."""
    urgency, load = heard.urgency, heard.load
    total = load.sum(-1)[..., None, None].clamp_min(torch.finfo(load.dtype).tiny)  # the noise's part of M
    load, urgency = load / total[..., 0], urgency / total[..., 0]
    served = torch.where(load > 0, heard.effective.diagonal(dim1=-2, dim2=-1), 0.0)
    wanted = (load * urgency).sqrt() * torch.sgn(served)  # [..., num_users]
    identity = torch.eye(white.shape[-1], dtype=white.dtype, device=white.device)
    curvature = white.mH @ (load[..., None] * white) + (1.0 + _STAYING) * identity
    content = white.mH * wanted[..., None, :] + _STAYING * w
    return _least_error(curvature, content, towards, share, multiplier)


def _least_error(
    curvature: torch.Tensor,
    content: torch.Tensor,
    towards: torch.Tensor,
    share: torch.Tensor,
    multiplier: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The precoder's step: complex [..., r, num_users], and its multipliers float [..., num_targets].

    Newton's method on the dual, from ``multiplier`` or a part of it; a step that leaves the domain or lowers
    the dual is halved. curvature: M, complex [..., r, r]; content: C, complex [..., r, num_users].
    """
    identity = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
    reached, step = torch.zeros_like(multiplier), multiplier
    w, value = content, content.new_full(content.shape[:-2], -torch.inf, dtype=share.dtype)
    eps = torch.finfo(share.dtype).eps
    for _ in range(_MAX_STEPS):
        trial = (reached + step).clamp_min(0.0)  # [..., num_targets]
        loaded = curvature - towards.mH @ (trial[..., None] * towards)
        loaded = loaded + (trial * share).sum(-1)[..., None, None] * identity
        factor, failed = torch.linalg.cholesky_ex(loaded)
        found = torch.cholesky_solve(content, factor)
        dual = -(content.conj() * found).real.sum(dim=(-2, -1))  # [...]
        better = (failed == 0) & (dual >= value - 1e2 * eps * value.abs().nan_to_num(0.0, 0.0))
        reached = torch.where(better[..., None], trial, reached)
        w = torch.where(better[..., None, None], found, w)
        value = torch.where(better, dual, value)
        newton, is_there = _newton_step(found, factor, towards, share, trial)
        step = torch.where(better[..., None], newton, 0.5 * step)
        if bool((is_there & better).all()):
            break
    return w, reached


def _newton_step(
    w: torch.Tensor,
    factor: torch.Tensor,
    towards: torch.Tensor,
    share: torch.Tensor,
    multiplier: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the multipliers, float [..., num_targets], and whether they are found, bool [...]."""
    fields = towards @ w  # [..., num_targets, num_users]
    power = squared_magnitude(w).sum(dim=(-2, -1))[..., None]  # [..., 1]
    surplus = squared_magnitude(fields).sum(-1) - share * power  # [..., num_targets]
    free = (multiplier > 0) | (surplus < 0)
    lacking = torch.where(free, surplus, 0.0)
    is_there = (lacking.abs() <= 1e2 * torch.finfo(share.dtype).eps * power).all(-1)
    along = towards.mH.mT.unsqueeze(-1) * fields.unsqueeze(-2)  # [..., num_targets, r, num_users]
    along = along - share[..., None, None] * w.unsqueeze(-3)
    half = torch.linalg.solve_triangular(factor.unsqueeze(-3), along, upper=False).flatten(-2)
    slope = 2 * (half.conj() @ half.mT).real  # [..., num_targets, num_targets]
    both = free.unsqueeze(-1) & free.unsqueeze(-2)
    slope = torch.where(both, slope, 0.0)
    rounding = torch.finfo(share.dtype).eps * slope.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
    slope = slope + torch.diag_embed(torch.where(free, rounding + torch.finfo(share.dtype).tiny, 1.0))
    return torch.linalg.solve(slope, -lacking), is_there
