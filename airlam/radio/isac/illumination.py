r"""Downlink precoders that also illuminate targets: integrated sensing and communication.

A target t in the direction of a response a_t receives i_t = sum_k |a_t w_k|^2 of the power that serves users;
an echo is worth having from some i_t on. The problem is

    max_W sum_k log2(1 + SINR_k)   s.t.   ||W||^2 <= P,   i_t >= g_t for every target t.

What is known of its solution, derived here. More power never hurts, so ||W||^2 = P at the optimum, the
constraints read i_t >= (g_t / P) ||W||^2, and the stationary points of the Lagrangian have

    S W = H^H C,   S = I + sum_i (lam_i / s2) h_i h_i^H - sum_t mu_t (a_t a_t^H - (g_t / P) I),   sum lam = P,

C diagonal and mu_t >= 0, 0 where the constraint is slack; h_i^H is row i of H, a_t^H row t of the targets. Up
to a factor the identity takes up g_t / P, and lam shrinks by 1 / (1 + sum_t mu_t g_t / P). A precoder of
WMMSE's is the minimum of a quadratic form within T quadratic constraints; where there are no more targets
than users, its dual has no gap (Beck, SIAM J. Optim. 17 (2007)), so that at a global optimum S is also
positive semidefinite. Where S is definite W = S^-1 H^H C, 2 K + T numbers. Where it is singular, as when no
user's channel has a part along a_t, W has a part in the null space of S besides. A stream of its own for
sensing satisfies S v = 0: it adds nothing where S is definite, and nothing that users' streams could not
carry where it is singular. For no targets see ``airlam.radio.beamforming.structure``.

Conventions: targets complex [..., num_targets, num_bs_ant], rows like those of h; illumination g float [...,
num_targets], in the unit of total_power times |a|^2; w complex [..., num_bs_ant, num_streams].
"""

import math

import torch

from airlam.errors import SpecError
from airlam.radio.beamforming.power import (
    Scalar,
    per_link,
    power_of,
    scale_to_total_power,
    squared_magnitude,
)
from airlam.radio.isac.beam import full_power_beam
from airlam.specs import ArraySpec

_MOST = 1e6  # of a beam on a precoder: beyond it, it is the beam


def array_response(
    array: ArraySpec, azimuth_rad: torch.Tensor, zenith_rad: torch.Tensor | float = math.pi / 2
) -> torch.Tensor:
    r"""a(direction) = exp(2 pi j (y_c sin(zenith) sin(azimuth) + z_r cos(zenith)) d), of single polarisation.

    Ports are ordered (column, row) as ``ArraySpec`` has them, columns along y and rows from the top down,
    both about the array's middle; d is their spacing in wavelengths, azimuth 0 and zenith pi / 2 the
    boresight. The elements' own pattern, a factor of all ports, is left out. TR 38.901, (7.5-28).

    azimuth_rad, zenith_rad: float [...]. Returns complex64 [..., num_ports] with entries of magnitude 1.
    """
    if array.num_polarizations != 1:
        raise SpecError("a target's response is that of one polarisation, the array has 2; take single")
    across, up = (_places(count) * array.spacing_wavelengths for count in (array.num_cols, array.num_rows))
    zenith = torch.as_tensor(zenith_rad, dtype=torch.float64)
    azimuth = azimuth_rad.double()
    turns = (zenith.sin() * azimuth.sin())[..., None, None] * across[:, None] - zenith.cos()[
        ..., None, None
    ] * up  # [..., columns, rows]
    return torch.exp(2j * math.pi * turns).flatten(-2).to(torch.complex64)  # [..., num_ports]


def _places(count: int) -> torch.Tensor:
    """Of elements about their middle, float64 [count]."""
    return torch.arange(count, dtype=torch.float64) - (count - 1) / 2


def illumination_of(targets: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Power towards each target, sum_k |a_t w_k|^2: float [..., num_targets]."""
    return squared_magnitude(targets @ w).sum(dim=-1)


def illuminate(
    w: torch.Tensor, targets: torch.Tensor, illumination: torch.Tensor, total_power: Scalar = 1.0
) -> torch.Tensor:
    r"""``w`` with the least of the targets' beam mixed in that illuminates them, at exactly the total power.

    The beam is turned among w's streams so that it lies closest to w. For one target this is the point
    nearest to w of all that meet both constraints; a precoder that meets them is only scaled.
    Differentiable in w (for more than two targets the turn passes no gradient). SpecError where no precoder
    illuminates as asked.

    w: complex [..., num_bs_ant, num_streams], not 0. Returns complex, same shape.
    """
    beam = full_power_beam(targets, illumination, total_power, w.shape[-1])
    return with_beam(w, beam, targets, illumination, total_power)


def with_beam(
    w: torch.Tensor,
    beam: torch.Tensor,
    targets: torch.Tensor,
    illumination: torch.Tensor,
    total_power: Scalar = 1.0,
) -> torch.Tensor:
    """``illuminate`` where the ``full_power_beam`` is at hand."""
    w = scale_to_total_power(w, total_power)
    beam = beam @ aligned(beam.mH @ w)  # [..., num_bs_ant, num_streams]
    share = illumination / per_link(total_power, w, "total_power")[..., None]  # [..., num_targets]
    seen, beam_seen = targets @ w, targets @ beam
    first, second = smallest_mix(
        squared_magnitude(seen).sum(-1) - share * power_of(w)[..., None],
        inner(seen, beam_seen) - share * inner(w.flatten(-2), beam.flatten(-2))[..., None],
        squared_magnitude(beam_seen).sum(-1) - share * power_of(beam)[..., None],
    )
    mixed = first[..., None, None] * w + second[..., None, None] * beam
    return scale_to_total_power(mixed, total_power)


def inner(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Real part of the inner product over the last axis: complex [..., n] each to float [...]."""
    return (first.conj() * second).real.sum(dim=-1)


def aligned(product: torch.Tensor) -> torch.Tensor:
    """Rows R with R R^H = I that maximise Re tr(R product^H): complex [..., r, k], r <= k, as ``product``."""
    if product.shape[-2] == 1:
        size = torch.linalg.vector_norm(product, dim=-1, keepdim=True)
        first = torch.zeros_like(product)
        first[..., 0] = 1
        return torch.where(size > 0, product / torch.where(size > 0, size, 1.0), first)
    left, _, right = torch.linalg.svd(product.detach(), full_matrices=False)
    turned: torch.Tensor = left @ right
    return turned


def smallest_mix(
    own: torch.Tensor, cross: torch.Tensor, beam: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""(x, y) of norm 1, none negative, with the least y such that own x^2 + 2 cross x y + beam y^2 >= 0.

    For every constraint, all of one mix. With ``beam`` > 0 there is such a y, by the quadratics' larger
    roots; where a ``beam`` is 0 or less, y is 1. Differentiable.

    own, cross, beam: float [..., num_constraints]. Returns float [...] each.
    """
    tiny = torch.finfo(own.dtype).tiny
    spread = (cross.square() - own * beam).clamp_min(tiny).sqrt()
    root = torch.where(
        (cross > 0) & (own < 0),
        -own / (cross + spread).clamp_min(tiny),
        (spread - cross) / beam.clamp_min(tiny),
    )
    root = torch.where(beam > 0, root, _MOST).clamp(0.0, _MOST)
    broken = own < 0
    for _ in range(own.shape[-1] - 1):
        ratio = torch.where(broken, root, 0.0).amax(-1, keepdim=True)  # [..., 1]
        # a constraint that held on its own may fail on the way, and hold again behind its larger root
        broken = broken | (own + 2 * cross * ratio + beam * ratio.square() < -_slack(own, ratio))
    ratio = torch.where(broken, root, 0.0).amax(-1)
    length = (1 + ratio.square()).rsqrt()
    return length, ratio * length


def _slack(own: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """What rounding may take from a constraint that just holds."""
    return 1e2 * torch.finfo(own.dtype).eps * own.abs() * (1 + ratio.square())


def beam_share(
    w: torch.Tensor,
    beam: torch.Tensor,
    targets: torch.Tensor,
    illumination: torch.Tensor,
) -> torch.Tensor:
    """The least share of time, or of power, to give ``beam`` for the illumination asked on average.

    ``w`` has the rest; both of all the power. A stream of its own adds its power to the users', so both
    splits have the same share: max_t (g_t - i_t) / (b_t - i_t). Returns float [...], in [0, 1].
    """
    reached, by_beam = illumination_of(targets, w), illumination_of(targets, beam)
    lacking = (illumination - reached).clamp_min(0.0)
    gain = (by_beam - reached).clamp_min(torch.finfo(reached.dtype).tiny)
    return (lacking / gain).amax(-1).clamp_max(1.0)


def with_sensing_stream(
    w: torch.Tensor, beam: torch.Tensor, targets: torch.Tensor, illumination: torch.Tensor
) -> torch.Tensor:
    """``w`` and the beam as further streams, power split by ``beam_share``.

    complex [..., num_bs_ant, num_users + beam's]. To the rate a further stream is one of a user that
    hears nothing: append rows of zeros to h.
    """
    share = beam_share(w, beam, targets, illumination)[..., None, None]
    return torch.cat([(1 - share).sqrt() * w, share.sqrt() * beam], dim=-1)
