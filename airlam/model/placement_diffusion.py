r"""A diffusion model over assignments of calls to nodes, conditioned on services, network and load.

An assignment is a matrix of calls by nodes, 1 where a call runs and -1 elsewhere. Noise is added as

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,   a_t = cos^2(pi t / 2),   t from 0 to 1,

and the network says from x_t which node each call is on. It samples by going back from noise in a few steps
(DDIM: Song et al., 2010.02502). Wang et al. (2505.00321) name a diffusion model for placement without
formulas: all of it is a reconstruction. Rows and columns are treated alike (exchangeable layers: Hartford et
al., 1803.02879), so one model serves any number of calls and nodes.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn

from airlam.model.backbone import seeded

NUM_PAIR_FEATURES = 8
_NUM_SEEN = 5  # features that follow from the assignment so far
_NUM_TIME_FEATURES = 4
_OUT = -1e4  # logit of a node that a call may not take
_MAX_LOAD = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What a placement depends on; times are in units of a typical one. All float32.

    pairs: features of each call on each node [num_calls, num_nodes, NUM_PAIR_FEATURES]. allowed: 0 or 1
    [num_calls, num_nodes]. load: that a call brings to a node [num_calls, num_nodes]. size: of each call's
    instance, in a node's memory [num_calls, num_nodes]. same: 1 for calls of one service, own included
    [num_calls, num_calls]. legs: source and target call, int64 [num_legs, 2]. leg_time: of a message from
    node to node [num_legs, num_nodes, num_nodes].
    """

    pairs: torch.Tensor
    allowed: torch.Tensor
    load: torch.Tensor
    size: torch.Tensor
    same: torch.Tensor
    legs: torch.Tensor
    leg_time: torch.Tensor


class _Exchange(nn.Module):
    """A layer over pairs that sees the mean of their row, of their column and of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.own, self.row = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.column, self.all = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        """[batch, num_calls, num_nodes, width] to the same."""
        h = self.norm(pairs)
        rows, columns = h.mean(dim=2, keepdim=True), h.mean(dim=1, keepdim=True)
        mixed = self.own(h) + self.row(rows) + self.column(columns) + self.all(rows.mean(dim=1, keepdim=True))
        moved: torch.Tensor = self.out(nn.functional.gelu(mixed))
        return pairs + moved


class PlacementDiffusion(nn.Module):
    """The denoiser; ``sample`` draws assignments."""

    def __init__(self, *, width: int = 64, num_layers: int = 4, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.enter = nn.Linear(NUM_PAIR_FEATURES + 1 + _NUM_SEEN + _NUM_TIME_FEATURES, width)
            self.layers = nn.ModuleList([_Exchange(width) for _ in range(num_layers)])
            self.leave = nn.Linear(width, 1)

    def forward(self, noisy: torch.Tensor, time: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Logits of the node of each call.

        noisy: x_t [batch, num_calls, num_nodes]; time: t [batch]. Returns [batch, num_calls, num_nodes].
        """
        batch, calls, nodes = noisy.shape
        seen = _seen(noisy, time, condition)  # [batch, num_calls, num_nodes, _NUM_SEEN]
        given = condition.pairs.expand(batch, calls, nodes, -1)
        angle = time[:, None] * math.pi * torch.tensor([0.5, 1.0], dtype=time.dtype)
        when = torch.cat([angle.sin(), angle.cos()], dim=1)[:, None, None].expand(batch, calls, nodes, -1)
        pairs = self.enter(torch.cat([given, noisy[..., None], seen, when], dim=-1))
        for layer in self.layers:
            pairs = layer(pairs)
        logits = self.leave(pairs)[..., 0]  # [batch, num_calls, num_nodes]
        return torch.where(condition.allowed > 0, logits, _OUT)

    def loss(self, chosen: torch.Tensor, condition: Condition, generator: torch.Generator) -> torch.Tensor:
        """Cross-entropy of the nodes that good placements chose, at times and noises of the generator.

        chosen: int64 [batch, num_calls]. Returns a scalar.
        """
        time = torch.rand(len(chosen), generator=generator)  # [batch]
        clean = 2 * nn.functional.one_hot(chosen, condition.allowed.shape[1]).float() - 1
        noise = torch.randn(clean.shape, generator=generator)
        signal = torch.cos(0.5 * math.pi * time)[:, None, None]
        noisy = signal * clean + (1 - signal.square()).sqrt() * noise
        logits = self(noisy, time, condition)
        return nn.functional.cross_entropy(logits.flatten(0, 1), chosen.flatten())

    @torch.no_grad()
    def sample(
        self, condition: Condition, num_samples: int, generator: torch.Generator, num_steps: int = 10
    ) -> torch.Tensor:
        """Nodes of the calls of each sample: int64 [num_samples, num_calls]."""
        x = torch.randn(num_samples, *condition.allowed.shape, generator=generator)
        times = torch.linspace(1.0, 0.0, num_steps + 1)
        logits = x
        for now, following in itertools.pairwise(times):
            logits = self(x, now.expand(num_samples), condition)
            clean = 2 * logits.softmax(dim=-1) - 1
            signal, spread = torch.cos(0.5 * math.pi * now), torch.sin(0.5 * math.pi * now)
            noise = (x - signal * clean) / spread.clamp_min(1e-3)
            x = torch.cos(0.5 * math.pi * following) * clean + torch.sin(0.5 * math.pi * following) * noise
        return logits.argmax(dim=-1)


def _seen(noisy: torch.Tensor, time: torch.Tensor, condition: Condition) -> torch.Tensor:
    """What the assignment so far, taken as shares, would mean for each call on each node.

    The nearer to the end, the sharper are the shares. Features: the share; the load that others bring; what
    the queue then makes of the call's work; the memory that others take; messages to neighbours. Returns
    [batch, num_calls, num_nodes, _NUM_SEEN].
    """
    sharp = (1 + 4 * (1 - time))[:, None, None]
    shares = torch.where(condition.allowed > 0, sharp * noisy, _OUT).softmax(dim=-1)
    brought = shares * condition.load
    others = brought.sum(dim=1, keepdim=True) - brought  # [batch, num_calls, num_nodes]
    total = (others + condition.load).clamp(max=_MAX_LOAD)
    weights = 1 / condition.same.sum(dim=1)  # a service's instance counts once, spread over its calls
    foreign = 1 - condition.same
    taken = torch.einsum("kj,j,bjv,jv->bkv", foreign, weights, shares, condition.size)
    messages = torch.zeros_like(shares)
    for (source, target), seconds in zip(condition.legs.tolist(), condition.leg_time, strict=True):
        messages[:, target] += shares[:, source] @ seconds
        messages[:, source] += shares[:, target] @ seconds.T
    stretched = -torch.log1p(-total)
    return torch.stack([shares, others, stretched, taken, messages.clamp(max=50).log1p()], dim=-1)
