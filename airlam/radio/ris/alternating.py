r"""Joint active and passive precoding by alternating optimisation: the classical baselines.

max over W and r of sum_k a_k log2(1 + SINR_k(H(r), W)), ||W||^2 <= P, |r_n| = 1 (or one of 2^b phases): a
step of WMMSE for W with r as it is, then phases with W as it is, both of which raise the rate or leave it.
``alternating`` takes one element after another. ``accelerated`` moves all elements at once, further than
their bound allows and with momentum, and takes back what did not help: the extrapolated, line-searched steps
of Guo, Liang, Chen, Larsson (IEEE Trans. Wireless Commun. 19, 2020), with step sizes by a rule of our own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from airlam.errors import SpecError
from airlam.radio.beamforming.power import Scalar, per_link, scale_to_total_power
from airlam.radio.beamforming.wmmse import wmmse
from airlam.radio.precoding import regularized_zero_forcing
from airlam.radio.ris.phases import Streams, discrete_sweep, majorised, sweep, weighted_rate
from airlam.radio.ris.references import beam_aligned_reflection
from airlam.radio.ris.surface import SurfaceLinks, phase_levels, quantised, unit

_MOMENTUM = 0.9
_FIRST_SHARE, _LEAST_SHARE = 0.05, 0.02  # of the bound on the curvature
_SHRINK, _GROW = 0.9, 4.0  # of that share, after a step that helped and one that did not
PhaseStep = Callable[[Streams, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class JointPrecoder:
    """What an optimisation ends with.

    w: complex [..., num_bs_ant, num_users], of exactly the total power. reflection: complex [...,
    num_elements], each of magnitude 1. rates: float [num_iterations, ...], weighted, bit/s/Hz, after each
    iteration.
    """

    w: torch.Tensor
    reflection: torch.Tensor
    rates: torch.Tensor


def alternating(
    links: SurfaceLinks,
    noise_variance: Scalar,
    total_power: Scalar = 1.0,
    *,
    num_iterations: int,
    start: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    num_bits: int | None = None,
) -> JointPrecoder:
    """After ``num_iterations``, each a step of WMMSE and one sweep over the elements.

    noise_variance, total_power: positive, a number or float [...]. start: complex [..., num_elements], of
    magnitude 1; ``beam_aligned_reflection`` where not given. weights: float [..., num_users], 1 where not
    given. num_bits: of a switched element's phase, which takes the nearest level at first and then the best
    by the rate itself; None: any phase, by ``sweep``.
    """
    white = _whitened(links, noise_variance, total_power, num_iterations)
    reflection = beam_aligned_reflection(white, 1.0) if start is None else start
    if num_bits is not None:
        reflection = quantised(reflection, num_bits)
    step = _phase_step(weights, num_bits, white.direct)
    w = regularized_zero_forcing(white.effective(reflection), 1.0)
    rates = []
    for _ in range(num_iterations):
        w = wmmse(white.effective(reflection), 1.0, num_iterations=1, start=w, weights=weights)
        streams = Streams.of(white, w)
        reflection = step(streams, reflection)
        rates.append(weighted_rate(streams.received(reflection), weights))
    return JointPrecoder(
        w=scale_to_total_power(w, total_power), reflection=reflection, rates=torch.stack(rates)
    )


def _phase_step(weights: torch.Tensor | None, num_bits: int | None, like: torch.Tensor) -> PhaseStep:
    """What is done to the phases in an iteration."""
    if num_bits is None:
        return partial(sweep, weights=weights)
    levels = phase_levels(num_bits, like.dtype).to(like.device)
    return partial(discrete_sweep, levels=levels, weights=weights)


def accelerated(
    links: SurfaceLinks,
    noise_variance: Scalar,
    total_power: Scalar = 1.0,
    *,
    num_iterations: int,
    start: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> JointPrecoder:
    """After ``num_iterations``, each a step of WMMSE and one of all phases; arguments as in ``alternating``.

    A step is ``majorised`` with a share of its bound, from phases extrapolated beyond the last move. Drop by
    drop, a step that lowers the rate is taken back, and the next goes without momentum and with a larger
    share; at the whole bound without momentum no step lowers it, so the rate neither falls nor gets stuck.
    """
    white = _whitened(links, noise_variance, total_power, num_iterations)
    reflection = beam_aligned_reflection(white, 1.0) if start is None else start
    h = white.effective(reflection)
    w = regularized_zero_forcing(h, 1.0)
    rate = weighted_rate(h @ w, weights)
    move = torch.zeros_like(reflection)
    share = torch.full_like(rate, _FIRST_SHARE)
    rates = []
    for _ in range(num_iterations):
        ahead = unit(reflection + _MOMENTUM * move, reflection)
        tried_w = wmmse(white.effective(ahead), 1.0, num_iterations=1, start=w, weights=weights)
        streams = Streams.of(white, tried_w)
        tried = majorised(streams, ahead, weights, share=share)
        tried_rate = weighted_rate(streams.received(tried), weights)
        helped = tried_rate >= rate
        move = torch.where(helped[..., None], tried - reflection, 0.0)
        reflection = torch.where(helped[..., None], tried, reflection)
        w = torch.where(helped[..., None, None], tried_w, w)
        share = torch.where(helped, share * _SHRINK, share * _GROW).clamp(_LEAST_SHARE, 1.0)
        rate = torch.maximum(rate, tried_rate)
        rates.append(rate)
    return JointPrecoder(
        w=scale_to_total_power(w, total_power), reflection=reflection, rates=torch.stack(rates)
    )


def _whitened(
    links: SurfaceLinks, noise_variance: Scalar, total_power: Scalar, num_iterations: int
) -> SurfaceLinks:
    """The same links with noise and power of 1."""
    if num_iterations < 1:
        raise SpecError(f"num_iterations must be at least 1, got {num_iterations}")
    noise = per_link(noise_variance, links.direct, "noise_variance")
    power = per_link(total_power, links.direct, "total_power")
    return links.scaled((power / noise).sqrt()[..., None, None])
