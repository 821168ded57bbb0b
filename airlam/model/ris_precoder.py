r"""Phases of a surface and precoder of a base station in one pass, by alternating optimisation unfolded.

Users and elements are nodes. A stage gives its phases one step of WMMSE, and every pair of users (a receiver
and a stream) tells every element in which direction its phase ought to go: the gradient of the sum rate,
each pair's part weighted by what a graph network over the users makes of it. Each element turns, with a step
and a momentum that a network of its own takes from what it heard. The graph precoder makes beams of the last
channel, with a backbone and LoRA behind it where it has one. Phases of a user's, an antenna's or an element's
channel as a whole do not matter, permuting users or elements permutes what comes out, and the same weights
serve any number of them. After the joint active and passive precoding that Wang et al., Edge Large AI Models
(2505.00321), name without formulas; a reconstruction.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from airlam.errors import SpecError
from airlam.model.backbone import seeded
from airlam.model.graph_precoder import GraphPrecoder, Shares, build_precoder, gram_of
from airlam.radio.beamforming.power import squared_magnitude
from airlam.radio.beamforming.structure import loaded_inverse
from airlam.radio.beamforming.wmmse import urgency_and_load
from airlam.radio.precoding import regularized_zero_forcing
from airlam.radio.ris import Minorant, SurfaceLinks, element_slopes, quantised, unit
from airlam.specs import PrecoderSpec

_NUM_USER_FEATURES, _NUM_PAIR_FEATURES, _NUM_ELEMENT_FEATURES = 6, 2, 7
_SCALE = 3.0  # of logarithms
_FLOOR, _LEAST_SHARE = 1e-6, 1e-7
_LARGEST_LOG = 4.0  # of a pair's weight
_FIRST_LOG_STEP, _FIRST_MOMENTUM = -1.5, 0.5  # before training


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfacePrecoderSpec:
    """num_stages: moves of the phases. width: of both networks. precoder: of the last beams."""

    num_stages: int = 10
    width: int = 16
    precoder: PrecoderSpec = field(default_factory=PrecoderSpec)

    def __post_init__(self) -> None:
        if self.num_stages < 1 or self.width < 1:
            raise SpecError(
                f"num_stages is {self.num_stages}, width {self.width}; both must be at least 1, so raise them"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfolding:
    """What a pass leaves behind.

    reflection: complex64 [batch, num_elements], the last phases. h: complex64 [batch, num_users, num_bs_ant],
    their channel over noise and power of 1. received: H W of each stage before its phases moved, complex64
    [batch, num_users, num_users].
    """

    reflection: torch.Tensor
    h: torch.Tensor
    received: tuple[torch.Tensor, ...]


class _Pairs(nn.Module):
    """From what users and their pairs see to a weight of each pair's wishes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(_NUM_USER_FEATURES, width)
        self.send = nn.Linear(width, 2 * width)
        self.edge = nn.Linear(_NUM_PAIR_FEATURES, width)
        self.update = nn.Linear(3 * width, width)
        self.leave_pair = _silent(nn.Linear(width, 1))
        self.leave_user = _silent(nn.Linear(width, 1))

    def forward(self, users: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """users: float32 [batch, num_users, features]; pairs: [batch, num_users, num_users, features].

        Returns float32 [batch, num_users, num_users], positive.
        """
        nodes = self.enter(users).relu()
        first, second = self.send(nodes).chunk(2, dim=-1)
        said = (first.unsqueeze(2) + second.unsqueeze(1) + self.edge(pairs)).relu()
        heard = self.update(torch.cat([nodes, said.mean(2), said.mean(1)], dim=-1)).relu()
        logs = self.leave_pair(said)[..., 0] + self.leave_user(heard)
        weights: torch.Tensor = logs.clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
        return weights


class _Elements(nn.Module):
    """From what an element heard to its step and its momentum.

    Features stand first: all elements of all drops are one product of matrices.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(_NUM_ELEMENT_FEATURES, width)
        self.middle = nn.Linear(width, width)
        self.leave = _silent(nn.Linear(width, 2))
        self.level = nn.Parameter(torch.tensor([_FIRST_LOG_STEP, math.log(_FIRST_MOMENTUM)]))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [features, batch, num_elements] to float32 [batch, num_elements], twice."""
        nodes = features.flatten(1)  # [features, batch * num_elements]
        for layer in (self.enter, self.middle):
            nodes = torch.addmm(layer.bias.unsqueeze(1), layer.weight, nodes).relu_()
        logs = torch.addmm((self.leave.bias + self.level).unsqueeze(1), self.leave.weight, nodes)
        step, momentum = logs.exp().view(2, *features.shape[1:]).unbind()
        return step, momentum


def _silent(layer: nn.Linear) -> nn.Linear:
    """A layer that says nothing before it is trained."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class _Stage(nn.Module):
    """From phases and beams to better ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pairs = _Pairs(width)
        self.elements = _Elements(width)

    def move(self, seen: "_Seen", reflection: torch.Tensor, last_move: torch.Tensor) -> torch.Tensor:
        """The next phases: complex64 [batch, num_elements], as the others."""
        slope = seen.minorant.slope(seen.received) * self.pairs(seen.users(), seen.pairs())
        slopes = element_slopes(seen.surface_users, seen.at_elements, slope)
        level = squared_magnitude(slopes).mean(-1, keepdim=True).clamp_min(_FLOOR**3).sqrt()  # [batch, 1]
        slopes = slopes / level
        features = _element_features(seen, slopes, level, reflection, last_move)
        step, momentum = self.elements(features)
        return unit(reflection + momentum * last_move - step * slopes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a stage reads.

    surface_users: as in the links; path_gains: their squared magnitude. at_elements: G W, complex64 [batch,
    num_elements, num_users]; received: H W, complex64 [batch, num_users, num_users]; strength: of each user's
    channel, float32 [batch, num_users].
    """

    surface_users: torch.Tensor
    path_gains: torch.Tensor
    at_elements: torch.Tensor
    minorant: Minorant
    received: torch.Tensor
    strength: torch.Tensor

    def users(self) -> torch.Tensor:
        """float32 [batch, num_users, _NUM_USER_FEATURES]."""
        power = squared_magnitude(self.received)
        own = power.diagonal(dim1=-2, dim2=-1)
        rest = power.sum(-1) - own + 1.0
        count = torch.full_like(own, own.shape[-1])
        levels = torch.stack([own, rest, power.sum(-2), self.minorant.load, self.strength, count], dim=-1)
        return levels.clamp_min(_FLOOR).log() / _SCALE

    def pairs(self) -> torch.Tensor:
        """float32 [batch, num_users, num_users, _NUM_PAIR_FEATURES]."""
        logs = squared_magnitude(self.received).clamp_min(_FLOOR).log() / _SCALE
        own = torch.eye(logs.shape[-1], device=logs.device).expand_as(logs)
        return torch.stack([logs, own], dim=-1)


def _element_features(
    seen: _Seen,
    slopes: torch.Tensor,
    level: torch.Tensor,
    reflection: torch.Tensor,
    last_move: torch.Tensor,
) -> torch.Tensor:
    """What does not turn with an element's phase: float32 [_NUM_ELEMENT_FEATURES, batch, num_elements]."""
    served = (seen.minorant.load.unsqueeze(-2) @ seen.path_gains).squeeze(-2)  # [batch, num_elements]
    curvature = served * squared_magnitude(seen.at_elements).sum(-1)  # [batch, num_elements]
    mean = curvature.mean(-1, keepdim=True).clamp_min(_FLOOR**2)
    along, across = torch.view_as_real(reflection.conj() * slopes).unbind(-1)
    turned = (reflection.conj() * last_move).imag
    features = [
        (curvature / mean).clamp_min(_FLOOR).log() / _SCALE,
        ((level / mean).log() / _SCALE).expand_as(curvature),
        along,
        across.abs(),
        turned.abs(),
        across * turned,
        torch.full_like(curvature, math.log(slopes.shape[-1]) / _SCALE),
    ]
    return torch.stack(features)


class SurfacePrecoder(nn.Module):
    """Stages that move the phases, and the graph precoder for the channel that they end in."""

    def __init__(self, spec: SurfacePrecoderSpec, precoder: GraphPrecoder) -> None:
        super().__init__()
        self.spec = spec
        self.stages = nn.ModuleList(_Stage(spec.width) for _ in range(spec.num_stages))
        self.precoder = precoder

    def forward(self, links: SurfaceLinks) -> tuple[Unfolding, tuple[Shares, ...]]:
        """The phases, and the graph precoder's answers for their channel; links over noise and power of 1."""
        course = self.unfold(links)
        return course, self.precoder(gram_of(course.h, 1.0))

    def unfold(self, links: SurfaceLinks) -> Unfolding:
        """From no reflection at all to the last phases; links over noise and power of 1, complex64."""
        reflection = torch.zeros_like(links.surface_users[:, 0])
        path_gains = squared_magnitude(links.surface_users)
        last_move, h, w = reflection, links.direct, regularized_zero_forcing(links.direct, 1.0)
        courses = []
        for stage in cast(Iterable[_Stage], self.stages):
            w, received = _next_beams(h, w)
            courses.append(received)
            seen = _Seen(
                surface_users=links.surface_users,
                path_gains=path_gains,
                at_elements=links.base_surface @ w,
                minorant=Minorant.at(received),
                received=received,
                strength=squared_magnitude(h).sum(-1),
            )
            moved = stage.move(seen, reflection, last_move)
            # the first stage's phases come from nowhere: that is no direction to go on in
            last_move = moved - reflection if len(courses) > 1 else torch.zeros_like(moved)
            reflection = moved
            h = links.effective(reflection)
        return Unfolding(reflection=reflection, h=h, received=tuple(courses))

    def precode(
        self,
        links: SurfaceLinks,
        noise_variance: torch.Tensor,
        total_power: float = 1.0,
        *,
        num_bits: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """W of exactly the total power and the reflection: complex64 [batch, num_bs_ant, num_users] and
        [batch, num_elements].

        links: complex64, of one leading axis; noise_variance: float32 [batch]. num_bits: of a switched
        element, which takes the level nearest to its phase before W is made.
        """
        white = links.scaled((total_power / noise_variance).sqrt()[:, None, None])
        course = self.unfold(white)
        reflection, h = course.reflection, course.h
        if num_bits is not None:
            reflection = quantised(reflection, num_bits)
            h = white.effective(reflection)
        w = self.precoder.precode(h, torch.ones_like(noise_variance))
        return total_power**0.5 * w, reflection


def _next_beams(h: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A step of WMMSE from ``w`` of any power: W of power 1, and H W.

    Differentiable where ``wmmse`` is not, at users that it switches off: they keep a trace of their load.
    h: complex64 [batch, num_users, num_bs_ant]; w: complex64 [batch, num_bs_ant, num_users].
    """
    gram = h @ h.mH
    power = squared_magnitude(w).sum((-2, -1), keepdim=True)  # [batch, 1, 1]
    heard = squared_magnitude(h @ w) / power.clamp_min(_FLOOR**3)  # [batch, num_users, num_users]
    own = heard.diagonal(dim1=-2, dim2=-1)
    rest = (heard - torch.diag_embed(own)).sum(-1) + 1.0
    urgency, load = urgency_and_load(own, rest, None)
    share = load / load.sum(-1, keepdim=True).clamp_min(_FLOOR**3)
    root = share.clamp_min(_LEAST_SHARE).sqrt()
    combination = loaded_inverse(gram, root) * (root.unsqueeze(-1) * urgency.sqrt().unsqueeze(-2))
    received = gram @ combination
    power = (combination.conj() * received).real.sum((-2, -1), keepdim=True)
    gain = power.clamp_min(_FLOOR**3).rsqrt()
    return h.mH @ (combination * gain), received * gain


def build_surface_precoder(spec: SurfacePrecoderSpec, *, seed: int = 0) -> SurfacePrecoder:
    """An untrained one, what is random drawn from ``seed``."""
    precoder = build_precoder(spec.precoder, seed=seed)
    with seeded(seed + 3):
        return SurfacePrecoder(spec, precoder)
