r"""The beam that illuminates targets with the least power, and so how much they can have.

min tr(W^H W) s.t. sum_k |a_t w_k|^2 >= g_t, in closed form for one target and for two, else a semidefinite
program in as many numbers as there are targets. Conventions are those of ``illumination``.
"""

import torch

from airlam.errors import SpecError
from airlam.radio.beamforming.power import (
    Scalar,
    per_link,
    power_of,
    scale_to_total_power,
    squared_magnitude,
)

_NOTHING = 1e-30  # an illumination, so that powers do not underflow
_LOADING = 1e-9  # of targets' Gram matrix, so that two targets may lie in one direction
_BARRIER_STEPS, _BARRIER_FALL, _LEAST_BARRIER = 60, 0.3, 1e-7  # for more than two targets
_TOLERANCE = 1e-5  # of a power that is infeasible


def illuminating_beam(
    targets: torch.Tensor, illumination: torch.Tensor, num_streams: int = 1
) -> torch.Tensor:
    r"""The precoder of the least power that illuminates every target, in their span.

    One target takes P = g / |a|^2, two with |a_t|^2 = N and g alike P = 2 g / (N + |a_1^H a_2|): in closed
    form, by one stream. More are a semidefinite program, solved to a hundred thousandth of its power, whose
    least rank is sqrt(num_targets) or below; of it the ``num_streams`` strongest parts are taken, so that one
    stream for three targets or more may need much more power than it has to. No gradient passes.

    targets: complex [..., num_targets, num_bs_ant]; illumination: float [..., num_targets], none negative.
    Returns complex [..., num_bs_ant, min(num_streams, num_targets)], one stream for two targets.
    """
    wide = targets.detach().to(torch.complex128)
    asked = illumination.detach().double().expand(targets.shape[:-1])
    asked = torch.where(asked > _NOTHING, asked, 0.0)
    gram = wide @ wide.mH  # [..., num_targets, num_targets]
    few = targets.shape[-2] <= 2
    coefficients = _of_two(gram, asked) if few else _of_many(gram, asked, num_streams)
    return targets.detach().mH @ coefficients.to(targets.dtype)


def _of_two(gram: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """G^-1 y of one or two targets, complex128 [..., num_targets, 1].

    The power y^H G^-1 y is least in a field of magnitude sqrt(g) or, where the other target's beam gives
    more, of what that gives.
    """
    load = _LOADING * gram.diagonal(dim1=-2, dim2=-1).real.amax(-1)[..., None, None]
    inverse = torch.linalg.inv(gram + load * _identity(gram))
    field = asked.sqrt().to(gram.dtype)  # [..., num_targets]
    if gram.shape[-1] == 2:
        between = inverse[..., 0, 1, None]  # [..., 1]
        given = between.abs() / inverse.diagonal(dim1=-2, dim2=-1).real * field.real.flip(-1)
        turned = torch.cat([torch.ones_like(between), -torch.sgn(between).conj()], dim=-1)
        field = torch.maximum(field.real, given) * torch.where(turned == 0, 1.0, turned)
    coefficients: torch.Tensor = inverse @ field[..., None]
    return coefficients


def _of_many(gram: torch.Tensor, asked: torch.Tensor, num_streams: int) -> torch.Tensor:
    r"""Phi of the least covariance A^H Phi Phi^H A: complex128 [..., num_targets, at most num_streams].

    Phi Phi^H is proportional to D^(1/2) (I - D^(1/2) G D^(1/2))^-1 D^(1/2), D the dual's optimum.
    """
    root = _dual_of_many(gram, asked).sqrt()
    weights = root.unsqueeze(-1) * _resolvent(gram, root) * root.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(weights)
    kept = min(num_streams, gram.shape[-1])
    factor = vectors[..., -kept:] * values[..., None, -kept:].clamp_min(0.0).sqrt()
    reached = squared_magnitude(gram @ factor).sum(-1)  # [..., num_targets]
    lacking = (asked / reached.clamp_min(torch.finfo(asked.dtype).tiny)).amax(-1)
    scaled: torch.Tensor = factor * lacking.sqrt()[..., None, None]
    return scaled


def _dual_of_many(gram: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    r"""max sum_t g_t d_t s.t. D^(1/2) G D^(1/2) <= I, dual of the least power: float64 [..., num_targets].

    A barrier's Newton steps, damped so that none leaves the domain (Boyd and Vandenberghe, Convex
    Optimization (2004), sec. 9.6 and 11.3).
    """
    size = asked.amax(-1, keepdim=True)
    asked = torch.where(size > 0, asked / torch.where(size > 0, size, 1.0), 1.0)
    dual = 0.5 / gram.abs().sum(-1)  # [..., num_targets]
    barrier = (asked * dual).sum(-1, keepdim=True)
    for _ in range(_BARRIER_STEPS):
        root = dual.sqrt()
        rise = (_resolvent(gram, root) - _identity(gram)) / (root.unsqueeze(-1) * root.unsqueeze(-2))
        slope = asked / barrier - rise.diagonal(dim1=-2, dim2=-1).real + 1 / dual
        bend = squared_magnitude(rise) + torch.diag_embed(dual.square().reciprocal())
        step = torch.linalg.solve(bend, slope)
        decrement = (slope * step).sum(-1, keepdim=True).clamp_min(0.0).sqrt()
        dual = dual + step / (1 + decrement)
        barrier = torch.where(decrement < 1, _BARRIER_FALL * barrier, barrier)
        barrier = torch.maximum(barrier, _LEAST_BARRIER * (asked * dual).sum(-1, keepdim=True))
    return dual


def _resolvent(gram: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """(I - R G R)^-1, R = diag(root): complex [..., num_targets, num_targets]."""
    inverse: torch.Tensor = torch.linalg.inv(_identity(gram) - root.unsqueeze(-1) * gram * root.unsqueeze(-2))
    return inverse


def _identity(gram: torch.Tensor) -> torch.Tensor:
    return torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def largest_illumination(targets: torch.Tensor, total_power: Scalar = 1.0) -> torch.Tensor:
    """The most that all targets can have at once, each the same: float [...].

    P N for one target of an array of N antennas, P (N + |a_1^H a_2|) / 2 for two; see ``illuminating_beam``.
    """
    ones = torch.ones(targets.shape[:-1], dtype=targets.real.dtype, device=targets.device)
    power = per_link(total_power, targets, "total_power")
    return power / power_of(illuminating_beam(targets, ones, targets.shape[-2]))


def full_power_beam(
    targets: torch.Tensor, illumination: torch.Tensor, total_power: Scalar, num_streams: int
) -> torch.Tensor:
    """``illuminating_beam`` with all of the power: complex [..., num_bs_ant, fewer streams or as many].

    SpecError where it cannot illuminate every target as asked.
    """
    if bool((illumination < 0).any()):
        raise SpecError(f"illumination must not be negative, got {float(illumination.min())}")
    beam = illuminating_beam(targets, illumination, num_streams)
    excess = float((power_of(beam) / per_link(total_power, targets, "total_power")).max())
    if excess > 1 + _TOLERANCE:
        raise SpecError(
            f"the illumination asked for takes {excess:.4g} times the power there is; ask for at most "
            f"{1 / excess:.4g} of it, or give more power"
        )
    return scale_to_total_power(beam, total_power)
