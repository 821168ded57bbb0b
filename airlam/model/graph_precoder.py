r"""A graph network that turns the users of a downlink into the 2 K numbers of their best precoder.

Users are nodes, each pair of them an edge; all that is read is the Gram matrix G = (P / s2) H H^H, so the
number of antennas, the phases of channels and the power's unit do not matter, one model serves any number of
users, and permuting users permutes what comes out. A stage looks at what its own answer so far would give
(each user's signal, interference and leakage), passes messages along the edges, and moves the answer; the
last stage's nodes also go through a backbone as tokens, where there is one. After the graph precoder named
without formulas by Wang et al., Edge Large AI Models (2505.00321); the head is the optimal structure of Zheng
and Dai (2412.20772). Layers and features are a reconstruction.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import nn

from airlam.model.backbone import build_backbone, seeded
from airlam.model.chain import Backbone
from airlam.radio.beamforming.robust import sure_channels
from airlam.radio.beamforming.structure import optimal_structure, received_powers
from airlam.specs import PrecoderSpec

NUM_NODE_FEATURES, NUM_EDGE_FEATURES = 8, 5
_LEAST_SHARE = 1e-7  # of a dual power, where features are computed
_FLOOR = 1e-6
_LEAST_LOG = -20.0  # of a share, where features are computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Logarithms of each user's shares of dual and of stream power: float32 [batch, num_users] each."""

    log_dual: torch.Tensor
    log_stream: torch.Tensor

    @staticmethod
    def even(gram: torch.Tensor) -> "Shares":
        """Of regularised zero forcing with equal stream powers."""
        num_users = gram.shape[-1]
        level = torch.full(gram.shape[:-1], -math.log(num_users), dtype=gram.real.dtype, device=gram.device)
        return Shares(log_dual=level, log_stream=level)

    @property
    def dual(self) -> torch.Tensor:
        """Of sum 1."""
        return self.log_dual.exp()

    @property
    def stream(self) -> torch.Tensor:
        """Of sum 1."""
        return self.log_stream.exp()

    def precoder(self, h: torch.Tensor, noise_variance: torch.Tensor, total_power: float) -> torch.Tensor:
        """W of exactly the total power: complex [batch, num_bs_ant, num_users]; see ``optimal_structure``."""
        return optimal_structure(h, self.dual, self.stream, noise_variance, total_power)


def gram_of(h: torch.Tensor, noise_variance: torch.Tensor | float, total_power: float = 1.0) -> torch.Tensor:
    """(P / s2) H H^H: complex [batch, num_users, num_bs_ant] to complex [batch, num_users, num_users]."""
    noise = torch.as_tensor(noise_variance, dtype=h.real.dtype, device=h.device)
    scale = (total_power / noise).expand(h.shape[0])[:, None, None]  # [batch, 1, 1]
    return scale * (h @ h.mH)


class _Messages(nn.Module):
    """One round of messages: each edge's weights carry its neighbour's values, a channel group each."""

    def __init__(self, width: int, num_channels: int) -> None:
        super().__init__()
        self.norm, self.value = nn.LayerNorm(width), nn.Linear(width, width)
        self.update = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self._num_channels = num_channels

    def forward(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """nodes: float32 [batch, num_users, width]; edges: float32 [batch, channels, users, users]."""
        value = rearrange(self.value(self.norm(nodes)), "b k (c d) -> b c k d", c=self._num_channels)
        heard = rearrange(edges @ value, "b c k d -> b k (c d)")
        updated: torch.Tensor = nodes + self.update(torch.cat([nodes, heard], dim=-1))
        return updated


class _Stage(nn.Module):
    """From an answer to a better one."""

    def __init__(self, spec: PrecoderSpec, *, is_first: bool) -> None:
        super().__init__()
        width, channels = spec.width, spec.num_edge_channels
        self.enter = nn.Linear(NUM_NODE_FEATURES + (0 if is_first else width), width)
        self.edges = nn.Sequential(
            nn.Linear(NUM_EDGE_FEATURES, 2 * channels),
            nn.GELU(),
            nn.Linear(2 * channels, channels * spec.num_layers),
        )
        self.layers = nn.ModuleList(_Messages(width, channels) for _ in range(spec.num_layers))
        self.leave = nn.Linear(width, 2)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def nodes(self, seen: "_Seen", before: torch.Tensor | None) -> torch.Tensor:
        """float32 [batch, num_users, width]."""
        given = seen.nodes if before is None else torch.cat([seen.nodes, before], dim=-1)
        nodes: torch.Tensor = self.enter(given)
        scale = seen.edges.shape[-2] ** -0.5
        weights = rearrange(scale * self.edges(seen.edges), "b i j (l c) -> l b c i j", l=len(self.layers))
        for layer, edges in zip(self.layers, weights, strict=True):
            nodes = layer(nodes, edges)
        return nodes

    def answer(self, nodes: torch.Tensor, seen: "_Seen", shares: Shares) -> Shares:
        """The dual powers start from one step of WMMSE, the stream powers from where they are."""
        dual, stream = self.leave(nodes).unbind(dim=-1)  # [batch, num_users]
        return Shares(
            log_dual=(seen.log_step + dual).log_softmax(dim=-1),
            log_stream=(shares.log_stream + stream).log_softmax(dim=-1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a stage reads of an answer.

    nodes: float32 [batch, num_users, NUM_NODE_FEATURES]. edges: float32 [batch, num_users, num_users,
    NUM_EDGE_FEATURES]. log_step: float32 [batch, num_users], the dual shares of one step of WMMSE.
    """

    nodes: torch.Tensor
    edges: torch.Tensor
    log_step: torch.Tensor

    @staticmethod
    def of(gram: torch.Tensor, likeness: torch.Tensor, shares: Shares) -> "_Seen":
        """likeness: |cos|^2 of each pair of channels, float32 [batch, num_users, num_users]."""
        num_users = gram.shape[-1]
        received = received_powers(gram, shares.dual.clamp_min(_LEAST_SHARE), shares.stream)
        own = received.diagonal(dim1=-2, dim2=-1)  # [batch, num_users]
        heard = received.sum(dim=-1) - own + 1  # interference and noise
        leaked = received.sum(dim=-2) - own + 1
        step = own / (heard * (heard + own))
        log_step = (num_users * step / step.sum(dim=-1, keepdim=True) + _FLOOR).log()
        strength = gram.diagonal(dim1=-2, dim2=-1).real
        many = math.log(num_users)
        level_of_own = (own + _FLOOR).log()  # users that are switched off receive nothing
        nodes = [strength.log() / 3, level_of_own / 3, heard.log() / 3, leaked.log() / 3, log_step / 2]
        nodes += [log.clamp_min(_LEAST_LOG) + many for log in (shares.log_dual, shares.log_stream)]
        nodes.append(torch.full_like(own, many / 2))
        level = (received + 1e-3).log() / 5
        same = torch.eye(num_users, device=gram.device).expand_as(level)
        edges = [likeness, (likeness + 1e-4).log() / 4, level, level.mT, same]
        return _Seen(
            nodes=torch.stack(nodes, dim=-1), edges=torch.stack(edges, dim=-1), log_step=log_step - many
        )


class GraphPrecoder(nn.Module):
    """Stages of messages, and a backbone with its adapters behind the last one's.

    The backbone's contribution starts at zero, so that without tuning it changes nothing.
    """

    def __init__(self, spec: PrecoderSpec, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.stages = nn.ModuleList(_Stage(spec, is_first=index == 0) for index in range(spec.num_stages))
        self.backbone = backbone
        if backbone is not None:
            self.to_token = nn.Linear(spec.width, backbone.width)
            self.from_token = nn.Linear(backbone.width, spec.width)
            nn.init.zeros_(self.from_token.weight)
            nn.init.zeros_(self.from_token.bias)

    def forward(self, gram: torch.Tensor) -> tuple[Shares, ...]:
        """The answer of each stage; gram: complex64 [batch, num_users, num_users], see ``gram_of``."""
        strength = gram.diagonal(dim1=-2, dim2=-1).real  # [batch, num_users]
        likeness = gram.abs().square() / (strength[:, :, None] * strength[:, None, :])
        shares, nodes, answers = Shares.even(gram), None, []
        for index, stage in enumerate(cast(Iterable[_Stage], self.stages)):
            seen = _Seen.of(gram, likeness, shares)
            nodes = stage.nodes(seen, nodes)
            if index == len(self.stages) - 1:
                nodes = self._through_backbone(nodes)
            shares = stage.answer(nodes, seen, shares)
            answers.append(shares)
        return tuple(answers)

    def precode(
        self,
        h: torch.Tensor,
        noise_variance: torch.Tensor,
        total_power: float = 1.0,
        *,
        error_covariance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """W of exactly the total power: complex [batch, num_bs_ant, num_users].

        h: complex64 [batch, num_users, num_bs_ant], or an estimate with its error's covariance complex64
        [batch, num_users, num_bs_ant, num_bs_ant] (``sure_channels``); noise_variance: float [batch]. A user
        whose channel is zero has no place here: leave it out.
        """
        if error_covariance is not None:
            sure = sure_channels(h, error_covariance, noise_variance, total_power)
            return sure.back(self.precode(sure.h, torch.ones_like(noise_variance)), total_power)
        answers: tuple[Shares, ...] = self(gram_of(h, noise_variance, total_power))
        return answers[-1].precoder(h, noise_variance, total_power)

    def _through_backbone(self, nodes: torch.Tensor) -> torch.Tensor:
        if self.backbone is None:
            return nodes
        mask = torch.ones(nodes.shape[:2], dtype=torch.bool, device=nodes.device)
        hidden = self.backbone(self.to_token(nodes), mask)  # [batch, num_users, backbone's width]
        joined: torch.Tensor = nodes + self.from_token(hidden)
        return joined


def build_precoder(spec: PrecoderSpec, *, seed: int = 0) -> GraphPrecoder:
    """An untrained precoder, what is random drawn from ``seed``; its backbone's spec says how it tunes."""
    from airlam.model.lora import prepare_tuning

    backbone = None
    if spec.backbone is not None:
        backbone = Backbone(
            prepare_tuning(build_backbone(spec.backbone, seed=seed), spec.backbone), ordered=False
        )
    with seeded(seed + 1):
        return GraphPrecoder(spec, backbone)


def sum_rates(gram: torch.Tensor, shares: Shares) -> torch.Tensor:
    """Sum rate of the precoder that the shares describe, bit/s/Hz: float [batch], differentiable."""
    received = received_powers(gram, shares.dual, shares.stream)
    own = received.diagonal(dim1=-2, dim2=-1)
    rate: torch.Tensor = torch.log2(1 + own / (received.sum(dim=-1) - own + 1)).sum(dim=-1)
    return rate
