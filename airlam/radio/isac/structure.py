r"""The optimal structure with targets: from its numbers to a precoder that meets all constraints.

With S0 = I + sum_i (lam_i / s2) h_i h_i^H the solution of (S0 - sum_t mu_t a_t a_t^H) W = H^H C is W0 +
S0^-1 A^H X: the optimal structure without targets, and regularised beams at the targets, which carry what
reaches them already. The mu that illuminate as is asked, and a little more, are searched by a few of
Newton's steps; should they not do, the least of the beam that illuminates best is mixed in, and what is too
much then goes back to W0. Both mixtures are in closed form, so that the constraints are met exactly
whatever the numbers are, and from the numbers of a stationary point comes that point. Differentiable in the
numbers. All of it is products of matrices of users and targets, whatever the number of antennas; see
``illumination`` for the problem and for what is derived.
"""

from dataclasses import dataclass

import torch

from airlam.radio.beamforming.power import squared_magnitude
from airlam.radio.beamforming.structure import loaded_inverse
from airlam.radio.isac.downlinks import SensingDownlinks, SensingNumbers
from airlam.radio.isac.illumination import aligned, inner, smallest_mix

_FLOOR = 1e-7  # of powers
_LEAST_REACH = 1e-6  # of what reaches a target behind the loading: below it is rounding
_LEAST_SHARE = 1e-12  # of a dual power
_LEAST_EXPONENT = -80.0  # of a stream's share: the root of one that underflows has no gradient
_LARGEST, _LARGEST_START = 0.99, 0.8  # of the mu: at 1 the system is singular, and steps climb from below
_SQUARINGS = 4  # of a matrix, to bound its largest eigenvalue
_STEPS = 3  # towards the mu that meet the constraints


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """W0 = white^H weights, of power 1, and what its dual powers make of directions.

    With R = lam^(1/2) and E = (I + R G R)^-1: attained = I - E; norm: of the columns of white^H R E, float32
    [batch, num_users]; coupling = E R cross, complex64 [batch, num_users, num_targets]; reach = A S0^-1 A^H,
    complex64 [batch, num_targets, num_targets]. root: R, float32 [batch, num_users, 1]. log_stream: of shares
    of power, float32 [batch, num_users]. heard, seen: what users and targets receive, complex64 [batch, ...,
    num_users].
    """

    root: torch.Tensor
    attained: torch.Tensor
    norm: torch.Tensor
    coupling: torch.Tensor
    reach: torch.Tensor
    log_stream: torch.Tensor
    weights: torch.Tensor
    heard: torch.Tensor
    seen: torch.Tensor

    @staticmethod
    def of(links: SensingDownlinks, numbers: SensingNumbers) -> "Serving":
        """The optimal structure without targets."""
        dual = (numbers.level * numbers.log_dual.exp()).clamp_min(_LEAST_SHARE)
        root = dual.sqrt().unsqueeze(-1)  # [batch, num_users, 1]
        inverse = loaded_inverse(links.gram, root[..., 0])  # E
        attained = torch.eye(root.shape[1], dtype=inverse.dtype, device=inverse.device) - inverse
        norm = attained.diagonal(dim1=-2, dim2=-1).real - squared_magnitude(attained).sum(-1)
        norm = norm.clamp_min(_FLOOR)
        # of S0^-1 white_k^H, which S0 makes shorter than white_k, even where rounding is all there is
        length = torch.minimum(norm / dual, links.gram.diagonal(dim1=-2, dim2=-1).real)
        log_stream = (numbers.log_content + length.log()).log_softmax(-1)
        gain = (log_stream.clamp_min(_LEAST_EXPONENT).exp() / norm).sqrt().unsqueeze(-2)
        lifted = root * links.cross  # [batch, num_users, num_targets]
        coupling = inverse @ lifted
        return Serving(
            root=root,
            attained=attained,
            norm=norm,
            coupling=coupling,
            reach=links.targets - lifted.mH @ coupling,
            log_stream=log_stream,
            weights=root * inverse * gain,
            heard=attained * gain / root,
            seen=coupling.mH * gain,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Aiming:
    """keep W0 + S0^-1 A^H carried + add beam turn, of power 1: what illuminates somewhat more than is asked.

    carried, turn: complex64 [batch, num_targets or num_streams, num_users]. filled: mu_t Q_tt, float32
    [batch, num_targets]. keep, add: float32 [batch, 1, 1]. heard, seen: as in ``Serving``.
    """

    carried: torch.Tensor
    turn: torch.Tensor
    filled: torch.Tensor
    keep: torch.Tensor
    add: torch.Tensor
    heard: torch.Tensor
    seen: torch.Tensor

    @staticmethod
    def of(links: SensingDownlinks, numbers: SensingNumbers, serving: Serving) -> "Aiming":
        """Where regularised beams do not suffice the beam that illuminates best joins them."""
        more = links.surplus ** (0.5 * numbers.raised.sigmoid())
        carried, seen, filled, power = _carried(links.share * more.square(), links.weight, numbers, serving)
        size = power.rsqrt()[:, None, None]
        carried, seen = size * carried, size * seen
        heard = size * serving.heard + (serving.coupling @ carried) / serving.root
        lifted = serving.root * links.beam_heard
        unturned = links.beam_seen - serving.coupling.mH @ lifted  # A S0^-1 beam
        towards = size * (links.beam_heard.mH @ serving.weights) + unturned.mH @ carried
        turn = aligned(towards)  # [batch, num_streams, num_users]
        beam_seen, between = links.beam_seen @ turn, _inner(turn, towards)
        # half of what is aimed at is enough, so that what is only just found needs no more beam
        keep, add = _mixed(links.share * more, seen, beam_seen, between)
        return Aiming(
            carried=keep * carried,
            turn=turn,
            filled=filled,
            keep=keep * size,
            add=add,
            heard=keep * heard + add * (links.beam_heard @ turn),
            seen=keep * seen + add * beam_seen,
        )


def _carried(
    wanted_share: torch.Tensor, weight: torch.Tensor, numbers: SensingNumbers, serving: Serving
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""X = D Y, what targets see, Y = (I - Q D)^-1 Y0, mu_t Q_tt, and the power of W.

    D = diag(mu), Q the reach, W = W0 + S0^-1 A^H X. Wanted is |y_t|^2 = wanted_share_t ||W||^2, or more
    where mu_t is 0: Newton's steps, the power as it was. Returns complex [batch, num_targets, num_users]
    twice, float [batch, num_targets], float [batch].
    """
    coupling, reach = serving.coupling, serving.reach
    own = reach.diagonal(dim1=-2, dim2=-1).real.clamp_min(_LEAST_REACH)
    spread = reach - coupling.mH @ coupling  # A S0^-2 A^H
    back = (coupling / serving.root).mH @ serving.weights  # A S0^-1 W0
    multiplier = _within_domain(weight * numbers.logit.sigmoid() / own, reach, _LARGEST_START)
    for step in range(_STEPS + 1):
        resolvent = _resolvent(reach, multiplier)
        seen = resolvent @ serving.seen
        carried = multiplier.unsqueeze(-1) * seen
        power = (1 + _inner(carried, 2 * back + spread @ carried)).clamp_min(_FLOOR)
        if step < _STEPS:
            wanted = (wanted_share * power.unsqueeze(-1)).clamp_min(_FLOOR)
            change = _newton_step(resolvent @ reach, seen, wanted, multiplier)
            changed = torch.minimum((multiplier + change).clamp_min(0.0), own.reciprocal())
            multiplier = _within_domain(changed, reach, _LARGEST)
    return carried, seen, multiplier * own, power


def _resolvent(reach: torch.Tensor, multiplier: torch.Tensor) -> torch.Tensor:
    """(I - Q D)^-1: complex [batch, num_targets, num_targets]."""
    if reach.shape[-1] == 1:
        return (1 - reach * multiplier.unsqueeze(-1)).reciprocal()
    identity = torch.eye(reach.shape[-1], dtype=reach.dtype, device=reach.device)
    inverse: torch.Tensor = torch.linalg.inv(identity - reach * multiplier.unsqueeze(-2))
    return inverse


def _newton_step(
    moved: torch.Tensor, seen: torch.Tensor, wanted: torch.Tensor, multiplier: torch.Tensor
) -> torch.Tensor:
    """Of the multipliers, towards |y_t|^2 = wanted_t: float [batch, num_targets], as the last two arguments.

    Newton's method on 1 / |y_t|: for one target that is linear in mu, for targets far apart nearly so. A
    target that has enough without a multiplier goes without.

    moved: K = (I - Q D)^-1 Q, of which d y_t / d mu_s = K_ts y_s; complex [batch, num_targets, num_targets].
    """
    lit = squared_magnitude(seen).sum(-1).clamp_min(_FLOOR)  # [batch, num_targets]
    lacking = 1 - (lit / wanted).sqrt()
    if moved.shape[-1] == 1:
        return lacking / moved[..., 0].real
    slope = (moved * (seen.conj() @ seen.mT)).real / lit.unsqueeze(-1)
    free, step = (multiplier > 0) | (lacking > 0), torch.zeros_like(multiplier)
    for _ in range(2):
        # those that are not free go to 0, or stay there, and the others know it
        fixed = torch.where(free, 0.0, -multiplier)
        among = torch.where(free.unsqueeze(-1) & free.unsqueeze(-2), slope, 0.0)
        rounding = _LEAST_REACH * among.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).clamp_min(
            _LEAST_REACH
        )
        among = among + torch.diag_embed(torch.where(free, rounding, 1.0))
        rest = torch.where(free, lacking - (slope @ fixed.unsqueeze(-1))[..., 0], fixed)
        step = torch.linalg.solve(among, rest)
        free = free & (multiplier + step > 0)
    return step


def _within_domain(multiplier: torch.Tensor, reach: torch.Tensor, limit: float) -> torch.Tensor:
    """Where the largest eigenvalue of D^(1/2) Q D^(1/2) is above the limit, shrunk until it is not.

    The eigenvalue is bounded by the norm of a high power of the matrix, which is little above it.
    """
    root = multiplier.detach().sqrt()
    matrix = root.unsqueeze(-1) * reach.detach() * root.unsqueeze(-2)
    if matrix.shape[-1] == 1:
        largest = matrix[..., 0].real
    else:
        for _ in range(_SQUARINGS):
            matrix = matrix @ matrix
        norm = torch.linalg.matrix_norm(matrix).unsqueeze(-1)
        largest = norm ** (0.5**_SQUARINGS)  # [batch, 1]
    return multiplier * (limit / largest.clamp_min(limit))


@dataclass(frozen=True, slots=True, kw_only=True)
class Illuminating:
    """W = stay W0 + aim times what illuminates more than is asked, of power 1, every target illuminated.

    heard, seen: what users and targets receive of it, complex64 [batch, num_users or num_targets, num_users].
    stay, aim: float32 [batch, 1, 1].
    """

    serving: Serving
    aiming: Aiming
    stay: torch.Tensor
    aim: torch.Tensor
    heard: torch.Tensor
    seen: torch.Tensor

    @staticmethod
    def of(links: SensingDownlinks, numbers: SensingNumbers) -> "Illuminating":
        """Of the structure's numbers."""
        serving = Serving.of(links, numbers)
        aiming = Aiming.of(links, numbers, serving)
        between = _inner(serving.weights, aiming.heard)
        stay, aim = _mixed(links.share, serving.seen, aiming.seen, between)
        return Illuminating(
            serving=serving,
            aiming=aiming,
            stay=stay,
            aim=aim,
            heard=stay * serving.heard + aim * aiming.heard,
            seen=stay * serving.seen + aim * aiming.seen,
        )

    def precoder(self, white: torch.Tensor, towards: torch.Tensor, beam: torch.Tensor) -> torch.Tensor:
        """W, of power 1: complex64 [batch, num_bs_ant, num_users]; arguments as of ``SensingDownlinks``."""
        aiming, serving = self.aiming, self.serving
        by_users = (self.stay + self.aim * aiming.keep) * serving.weights
        by_users = by_users - serving.root * (serving.coupling @ self.by_targets)
        return (
            white.mH @ by_users + towards.mH @ self.by_targets + beam @ (self.aim * aiming.add * aiming.turn)
        )

    @property
    def by_targets(self) -> torch.Tensor:
        """What targets' rows have in W: complex64 [batch, num_targets, num_users]."""
        return self.aim * self.aiming.carried

    @property
    def rate(self) -> torch.Tensor:
        """Sum rate, bit/s/Hz: float32 [batch]."""
        powers = squared_magnitude(self.heard)
        own = powers.diagonal(dim1=-2, dim2=-1)
        total: torch.Tensor = torch.log2(1 + own / (powers.sum(-1) - own + 1)).sum(-1)
        return total


def _inner(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Re tr(first^H second): complex [batch, n, m] each to float [batch]."""
    return inner(first.flatten(1), second.flatten(1))


def _mixed(
    share: torch.Tensor, seen: torch.Tensor, beam_seen: torch.Tensor, between: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of the smallest mix, of power 1: float [batch, 1, 1]; of two precoders of power 1.

    share: float [batch, num_targets]; seen, beam_seen: what targets see of each, complex [batch, num_targets,
    num_users]; between: the precoders' inner product, float [batch].
    """
    first, second = smallest_mix(
        squared_magnitude(seen).sum(-1) - share,
        inner(seen, beam_seen) - share * between[:, None],
        squared_magnitude(beam_seen).sum(-1) - share,
    )
    scale = (1 + 2 * first * second * between).clamp_min(_FLOOR).rsqrt()
    return (scale * first)[:, None, None], (scale * second)[:, None, None]
