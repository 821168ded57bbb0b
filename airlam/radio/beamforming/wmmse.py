r"""Weighted MMSE precoding of single-antenna users under a total power: a stationary point of the sum rate.

max_W sum_k a_k log2(1 + SINR_k) s.t. ||W||^2 <= P, by alternating the receivers, the weights and the
precoder of an equivalent weighted mean squared error. Shi, Razaviyayn, Luo, He, IEEE Trans. Signal Process.
59 (2011).

All power is used at every stationary point, so the constraint goes into the objective: noise of variance
s2 ||W||^2 / P instead of s2, and W scaled to the power at the end. The precoder's step then has its
multiplier in closed form, mu = (s2 / P) sum_k a_k |u_k|^2 / e_k, where the textbook searches it in every
iteration, and each iteration still raises the rate (Christensen et al., IEEE Trans. Wireless Commun. 7
(2008); Zhao et al., IEEE Trans. Signal Process. 71 (2023)). W = H^H A at every step, so iterations run on K
x K matrices, whatever the number of antennas.
"""

from typing import Literal

import torch

from airlam.errors import SpecError
from airlam.radio.beamforming.power import Scalar, per_link, scale_to_total_power, squared_magnitude
from airlam.radio.beamforming.structure import loaded_inverse
from airlam.radio.precoding import maximum_ratio, regularized_zero_forcing

Start = Literal["rzf", "mrt", "random"] | torch.Tensor


def wmmse(
    h: torch.Tensor,
    noise_variance: Scalar,
    total_power: Scalar = 1.0,
    *,
    num_iterations: int,
    start: Start = "rzf",
    weights: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The precoder after ``num_iterations``; its weighted sum rate never falls with their number.

    h: complex [..., num_users, num_bs_ant]. noise_variance, total_power: positive, a number or float [...].
    start: "rzf" or "mrt" with equal stream powers, "random" (drawn from ``generator``), or a precoder complex
    [..., num_bs_ant, num_users]. weights a: float [..., num_users], none negative; 1 where not given.
    Differentiable in h, through all iterations. Single precision reaches to 60 dB; beyond it, with more users
    than antennas, rounding takes rate away, so give complex128.
    Returns complex [..., num_bs_ant, num_users], of exactly the total power.
    """
    if num_iterations < 1:
        raise SpecError(
            f"num_iterations must be at least 1, got {num_iterations}; the start is a precoder itself"
        )
    noise = per_link(noise_variance, h, "noise_variance") / per_link(total_power, h, "total_power")  # [...]
    white = h * noise.rsqrt()[..., None, None]  # the same links with noise and power of 1
    gram = white @ white.mH  # [..., num_users, num_users]
    effective = white @ scale_to_total_power(first_precoder(h, noise, start, generator), 1.0)
    for _ in range(num_iterations):
        combination = _step(gram, effective, weights)
        effective = gram @ combination  # H W
        power = (combination.conj() * effective).real.sum(dim=(-2, -1), keepdim=True)  # tr(A^H G A) = ||W||^2
        effective = effective * torch.where(power > 0, power, 1.0).rsqrt()
    return scale_to_total_power(white.mH @ combination, total_power)


def first_precoder(
    h: torch.Tensor, noise_variance: Scalar, start: Start, generator: torch.Generator | None = None
) -> torch.Tensor:
    """What an iteration starts from, of any power; arguments as in ``wmmse``, the power being 1."""
    if isinstance(start, torch.Tensor):
        return start
    if start == "rzf":
        return regularized_zero_forcing(h, noise_variance)
    if start == "mrt":
        return maximum_ratio(h)
    if start == "random":
        if generator is None:
            raise SpecError("a random start is drawn from a generator; give one")
        return torch.randn(h.mH.shape, dtype=h.dtype, device=h.device, generator=generator)
    raise SpecError(f"unknown start {start!r}; take rzf, mrt, random or a precoder")


def _step(gram: torch.Tensor, effective: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    r"""One round of receivers u = g_kk / t, weights a / e and precoders: A of W = H^H A, up to a factor.

    t is what a user receives, r what of it is not its own, e = r / t the error. A = (D G + mu I)^-1 C with
    D = diag(a |u|^2 / e) and C = diag(a |u| / e), solved in its Hermitian form; the phases of u, which turn
    whole columns of W, are left out.

    gram, effective: complex [..., num_users, num_users], of links with noise and power of 1. Returns
    complex, as gram.
    """
    power = squared_magnitude(effective)  # [..., num_users, num_users]
    own = power.diagonal(dim1=-2, dim2=-1)  # [..., num_users]
    rest = (power - torch.diag_embed(own)).sum(-1) + 1.0  # [..., num_users]
    urgency, load = urgency_and_load(own, rest, weights)
    tiny = torch.finfo(load.dtype).tiny
    multiplier = load.sum(-1, keepdim=True).clamp_min(tiny)  # [..., 1]; 0 where nobody has a channel
    root = (load / multiplier).sqrt()
    return loaded_inverse(gram, root) * (root.unsqueeze(-1) * urgency.sqrt().unsqueeze(-2))


def urgency_and_load(
    own: torch.Tensor, rest: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights a / e and what each user adds to the quadratic form, a |u|^2 / e.

    own, rest: received power of a user's own stream and of all else, noise included; weights a: 1 where not
    given; float [..., num_users] each, as what is returned. A user of no SINR adds nothing and stays off.
    """
    ratio = own / rest
    urgency = 1.0 + ratio  # 1 / e
    if weights is not None:
        urgency = weights * urgency
    load = urgency * own / (own + rest).square()
    # users that WMMSE switches off fade for ever, and denormals are slow: far below rounding they are off
    return urgency, torch.where(ratio > torch.finfo(ratio.dtype).eps ** 2, load, 0.0)
