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
from airlam.radio.beamforming.power import squared_magnitude
from airlam.radio.beamforming.robust import sure_channels
from airlam.radio.beamforming.structure import (
    loaded_inverse,
    optimal_structure,
    received_powers,
    structure_from_gram,
)
from airlam.specs import PrecoderSpec

NUM_NODE_FEATURES = 10
_NODE_SCALE = 3.0  # of nodes' features, and so of their weights
_EDGE_SCALE = 0.1  # of the edges' weights at first
_FLOOR, _LEAST_COUPLING = 1e-7, 1e-5  # where features are computed
_LEAST_LOG = -16.0  # of a share, likewise
_LEAST_EXPONENT = -80.0  # of an answered share: the root of one that underflows has no gradient


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
    """One round of messages: what each pair of users says, averaged over its second and its first user.

    Features stand first and the batch last: a step over all nodes is one product of matrices, and what is
    done to each pair runs along the batch, which is longer than the list of users.
    """

    def __init__(self, num_given: int, spec: PrecoderSpec) -> None:
        super().__init__()
        channels = spec.num_edge_channels
        self.send = nn.Linear(num_given, 2 * channels)
        self.edge = nn.Parameter(_EDGE_SCALE * torch.randn(channels, 1, 1, 1))
        self.update = nn.Linear(num_given + 2 * channels, spec.width)

    def forward(self, given: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """given: float32 [num_given, num_users * batch]; edges: float32 [num_users, num_users, batch].

        Returns float32 [width, num_users * batch].
        """
        sent = _apply(self.send, given).view(2, -1, *edges.shape[1:])  # [2, channels, num_users, batch]
        first, second = sent.unbind()
        said = (self.edge * edges).add_(first.unsqueeze(2)).add_(second.unsqueeze(1)).relu_()
        heard = torch.cat([said.mean(dim=2), said.mean(dim=1)]).flatten(1)  # [2 channels, num_users batch]
        return _apply(self.update, torch.cat([given, heard])).relu_()


def _apply(layer: nn.Linear, given: torch.Tensor) -> torch.Tensor:
    """A layer on features that stand first: float32 [in, n] to [out, n]."""
    return torch.addmm(layer.bias.unsqueeze(1), layer.weight, given)


class _Stage(nn.Module):
    """From an answer to a better one."""

    def __init__(self, spec: PrecoderSpec, *, is_first: bool) -> None:
        super().__init__()
        given = [NUM_NODE_FEATURES + (0 if is_first else spec.width)] + [spec.width] * (spec.num_layers - 1)
        self.layers = nn.ModuleList(_Messages(num_given, spec) for num_given in given)
        self.leave = nn.Linear(spec.width, 2)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def nodes(self, seen: "_Seen", before: torch.Tensor | None) -> torch.Tensor:
        """float32 [width, num_users * batch]; before: the earlier stage's."""
        nodes = seen.nodes if before is None else torch.cat([seen.nodes, before])
        for layer in self.layers:
            nodes = layer(nodes, seen.edges)
        return nodes

    def answer(self, nodes: torch.Tensor, seen: "_Seen", logs: torch.Tensor) -> torch.Tensor:
        """The dual powers start from one step of WMMSE, the stream powers from where they are.

        logs: of both shares, float32 [2, num_users, batch], as what is returned.
        """
        start = torch.stack([seen.log_step, logs[1]])
        return (start + _apply(self.leave, nodes).view_as(start)).log_softmax(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Downlinks:
    """What all stages read. gram: complex64 [batch, num_users, num_users]; identity: as one of these.

    strength: each user's own entry, float32 [num_users, batch]. log_users: of their number, float32 [1,
    num_users, batch].
    """

    gram: torch.Tensor
    identity: torch.Tensor
    strength: torch.Tensor
    log_users: torch.Tensor

    @staticmethod
    def of(gram: torch.Tensor) -> "_Downlinks":
        """Of the users' Gram matrices."""
        batch, num_users = gram.shape[:2]
        strength = gram.diagonal(dim1=-2, dim2=-1).real.mT
        return _Downlinks(
            gram=gram,
            identity=torch.eye(num_users, dtype=gram.dtype, device=gram.device),
            strength=strength,
            log_users=strength.new_full((1, num_users, batch), math.log(num_users)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a stage reads of an answer.

    nodes: float32 [NUM_NODE_FEATURES, num_users * batch]. edges: float32 [num_users, num_users, batch].
    log_step: float32 [num_users, batch], the dual shares of one step of WMMSE, up to a factor.
    """

    nodes: torch.Tensor
    edges: torch.Tensor
    log_step: torch.Tensor

    @staticmethod
    def of(downlinks: _Downlinks, logs: torch.Tensor) -> "_Seen":
        r"""With D = diag(dual) and E = I - (I + D^(1/2) G D^(1/2))^-1, direction j has the power n_j = E_jj -
        sum_i |E_ij|^2 over dual_j, and user k receives |E_kj|^2 stream_j / (n_j dual_k) of stream j.

        logs: of both shares, float32 [2, num_users, batch].
        """
        logs = logs.clamp_min(_LEAST_LOG)
        dual, stream = logs.exp().unbind()  # [num_users, batch] each
        attained = downlinks.identity - loaded_inverse(downlinks.gram, dual.sqrt().mT.contiguous())  # E
        coupling = squared_magnitude(attained).permute(1, 2, 0).contiguous()  # symmetric in its first two
        served = attained.diagonal(dim1=-2, dim2=-1).real.mT  # [num_users, batch]
        norm = (served - coupling.sum(dim=0)).clamp_min(_FLOOR)
        scale = torch.stack([dual.reciprocal(), stream / norm])  # [2, num_users, batch]: receivers, streams
        own = served.square() * scale.prod(dim=0)
        powers = (coupling * scale.unsqueeze(1)).sum(dim=2) * scale.flip(0)  # [2, num_users, batch]
        leaked, heard = powers.add_(1.0).unbind()  # noise and own signal included
        levels = torch.stack([own, norm, downlinks.strength, leaked, heard, leaked - own, heard - own])
        levels = levels.clamp_min(_FLOOR).log()  # [7, num_users, batch]
        log_own, _, _, _, log_heard, _, log_rest = levels.unbind()
        return _Seen(
            nodes=torch.cat([levels, logs, downlinks.log_users]).flatten(1) / _NODE_SCALE,
            edges=(coupling + _LEAST_COUPLING).log(),
            log_step=log_own - log_heard - log_rest,
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
        pairs = (logs.mT.unbind() for logs in self._logs(gram))
        return tuple(Shares(log_dual=dual, log_stream=stream) for dual, stream in pairs)

    def _logs(self, gram: torch.Tensor) -> list[torch.Tensor]:
        """Logarithms of both shares after each stage: float32 [2, num_users, batch]."""
        downlinks, nodes, answers = _Downlinks.of(gram), None, []
        logs = -downlinks.log_users.expand(2, -1, -1)  # ``Shares.even``
        for index, stage in enumerate(cast(Iterable[_Stage], self.stages)):
            seen = _Seen.of(downlinks, logs)
            nodes = stage.nodes(seen, nodes)
            if index == len(self.stages) - 1:
                nodes = self._through_backbone(nodes, len(gram))
            logs = stage.answer(nodes, seen, logs)
            answers.append(logs)
        return answers

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
        gram = gram_of(h, noise_variance, total_power)
        logs = self._logs(gram)[-1].clamp_min(_LEAST_EXPONENT)
        dual, stream = logs.exp().mT.contiguous().unbind()  # [batch, num_users] each
        return structure_from_gram(h, gram, dual, stream, total_power)

    def _through_backbone(self, nodes: torch.Tensor, batch: int) -> torch.Tensor:
        if self.backbone is None:
            return nodes
        tokens = self.to_token(rearrange(nodes, "w (k b) -> b k w", b=batch))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=nodes.device)
        hidden = self.backbone(tokens, mask)  # [batch, num_users, backbone's width]
        joined: torch.Tensor = nodes + rearrange(self.from_token(hidden), "b k w -> w (k b)")
        return joined


def build_precoder(spec: PrecoderSpec, *, seed: int = 0) -> GraphPrecoder:
    """An untrained precoder, what is random drawn from ``seed``; its backbone's spec says how it tunes."""
    from airlam.model.lora import prepare_tuning

    backbone = None
    if spec.backbone is not None:
        model = build_backbone(spec.backbone, seed=seed)
        with seeded(seed + 2):
            backbone = Backbone(prepare_tuning(model, spec.backbone), ordered=False)
    with seeded(seed + 1):
        return GraphPrecoder(spec, backbone)


def sum_rates(gram: torch.Tensor, shares: Shares) -> torch.Tensor:
    """Sum rate of the precoder that the shares describe, bit/s/Hz: float [batch], differentiable."""
    received = received_powers(gram, shares.dual, shares.stream)
    own = received.diagonal(dim1=-2, dim2=-1)
    rate: torch.Tensor = torch.log2(1 + own / (received.sum(dim=-1) - own + 1)).sum(dim=-1)
    return rate
