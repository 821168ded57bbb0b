r"""A graph network that gives a downlink's precoder while it illuminates targets.

Users and targets are nodes, and all that is read are products of their rows: the network knows nothing of
the numbers of antennas, users or targets, and permuting users or targets permutes what comes out. It
answers the numbers of the optimal structure with targets, from which ``isac.structure`` makes a precoder
that meets all constraints exactly, whatever the answer is, so that the network learns through the rate
alone. A stage starts from one step of alternating optimisation and moves it. A target that asks for nothing
changes nothing. Network and features are a reconstruction, after the graph precoder and the projection that
Wang et al., Edge Large AI Models (2505.00321), name without formulas.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from airlam.model.backbone import seeded
from airlam.radio.beamforming.power import squared_magnitude
from airlam.radio.isac.beam import full_power_beam
from airlam.radio.isac.downlinks import SensingDownlinks, SensingNumbers, normalised
from airlam.radio.isac.illumination import inner, with_beam
from airlam.radio.isac.structure import Illuminating
from airlam.specs import PrecoderSpec

NUM_USER_FEATURES, NUM_TARGET_FEATURES, NUM_COMMON_FEATURES = 9, 5, 4
_SCALE = 3.0  # of features, and so of their weights
_EDGE_SCALE = 0.1  # of the edges' weights at first
_FLOOR, _LEAST_COUPLING, _LEAST_LOG = 1e-7, 1e-5, -16.0  # where features are computed
_LEAST_OF_TARGETS = 1e-4  # likewise
_LEAST_LEVEL = 0.05  # of the duals
_LEAST_FILLED = 1e-3  # of mu_t Q_tt, where a stage starts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a stage reads: nodes and edges, batch last; and where its answer starts, batch first.

    users, targets: float32 [features, num_users or num_targets, batch]. among_users, across, among_targets:
    of pairs, float32 [.., .., batch]. weight: of targets, float32 [num_targets, batch]. log_dual,
    log_content: of one step of WMMSE, up to a factor each, float32 [batch, num_users]. logit: of mu_t Q_tt
    as found, float32 [batch, num_targets]. spent: what each target takes of the duals' level at a
    stationary point, mu_t share_t, float32 [batch, num_targets].
    """

    users: torch.Tensor
    targets: torch.Tensor
    among_users: torch.Tensor
    across: torch.Tensor
    among_targets: torch.Tensor
    weight: torch.Tensor
    log_dual: torch.Tensor
    log_content: torch.Tensor
    logit: torch.Tensor
    spent: torch.Tensor

    @staticmethod
    def of(links: SensingDownlinks, numbers: SensingNumbers, found: Illuminating) -> "_Seen":
        """found: what the numbers make."""
        powers = squared_magnitude(found.heard)
        own = powers.diagonal(dim1=-2, dim2=-1)  # [batch, num_users]
        heard, leaked = powers.sum(-1) + 1.0, powers.sum(-2) + 1.0
        strength = links.gram.diagonal(dim1=-2, dim2=-1).real
        levels = [own, found.serving.norm, strength, leaked, heard, leaked - own, heard - own]
        logs = torch.stack(levels).clamp_min(_FLOOR).log()  # [7, batch, num_users]
        shares = torch.stack([numbers.log_dual, found.serving.log_stream]).clamp_min(_LEAST_LOG)
        spent, filled = _spent(links, found), found.aiming.filled.clamp(_LEAST_FILLED, 1 - _LEAST_FILLED)
        common = _common(numbers, found, links.gram.shape[-1])
        return _Seen(
            users=_with_common(torch.cat([logs, shares]), common),
            targets=_with_common(_of_targets(links, found, spent), common),
            among_users=_log_coupling(found.serving.attained),
            across=_log_coupling(found.serving.coupling),
            among_targets=_log_coupling(found.serving.reach),
            weight=links.weight.mT,
            log_dual=logs[0] - logs[4] - logs[6],
            log_content=logs[0] - 2 * logs[6],
            logit=(filled / (1 - filled)).log(),
            spent=spent,
        )


def _spent(links: SensingDownlinks, found: Illuminating) -> torch.Tensor:
    """mu_t share_t, mu_t being the factor from what a target sees to what its row has in W."""
    lit = squared_magnitude(found.seen).sum(-1).clamp_min(_FLOOR)  # [batch, num_targets]
    return (inner(found.by_targets, found.seen) / lit).clamp_min(0.0) * links.share


def _of_targets(links: SensingDownlinks, found: Illuminating, spent: torch.Tensor) -> torch.Tensor:
    """Logarithms, float32 [5, batch, num_targets]."""
    unasked, lit = (squared_magnitude(seen).sum(-1) for seen in (found.serving.seen, found.seen))
    reach = found.serving.reach.diagonal(dim1=-2, dim2=-1).real
    levels = torch.stack([unasked, links.share, reach, lit, spent])
    return levels.clamp_min(_LEAST_OF_TARGETS).log()


def _common(numbers: SensingNumbers, found: Illuminating, num_users: int) -> torch.Tensor:
    """What all nodes read, float32 [batch, 4], of the scale of features."""
    aim = found.aim[..., 0]
    users = torch.full_like(aim, math.log(num_users))
    return _SCALE * torch.cat([numbers.level, aim, found.aiming.add[..., 0] * aim, users / _SCALE], dim=-1)


def _with_common(features: torch.Tensor, common: torch.Tensor) -> torch.Tensor:
    """[features, batch, nodes] and [batch, common] to [features + common, nodes, batch], scaled."""
    shared = common.mT[:, :, None].expand(-1, -1, features.shape[-1])
    return torch.cat([features, shared]).transpose(1, 2) / _SCALE


def _log_coupling(values: torch.Tensor) -> torch.Tensor:
    """complex [batch, n, m] to float32 [n, m, batch]."""
    return (squared_magnitude(values) + _LEAST_COUPLING).log().permute(1, 2, 0)


class _Messages(nn.Module):
    """A round of messages along users' pairs, users and targets, and targets' pairs.

    Features stand first and the batch last, as in ``graph_precoder``. What targets say is summed by their
    weights, what users say averaged.
    """

    def __init__(self, num_user: int, num_target: int, spec: PrecoderSpec) -> None:
        super().__init__()
        channels = spec.num_edge_channels
        self.user_send = nn.Linear(num_user, 3 * channels)
        self.target_send = nn.Linear(num_target, 3 * channels)
        self.edges = nn.Parameter(_EDGE_SCALE * torch.randn(3, channels, 1, 1, 1))
        self.user_update = nn.Linear(num_user + 3 * channels, spec.width)
        self.target_update = nn.Linear(num_target + 2 * channels, spec.width)

    def forward(
        self, users: torch.Tensor, targets: torch.Tensor, seen: _Seen
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """users, targets: float32 [features, num_users or num_targets, batch], as what is returned."""
        first, second, out = _apply(self.user_send, users).chunk(3)
        one, other, back = _apply(self.target_send, targets).chunk(3)
        among = _said(self.edges[0], seen.among_users, first, second)
        across = _said(self.edges[1], seen.across, out, back)
        aside = _said(self.edges[2], seen.among_targets, one, other)
        to_users = [users, among.mean(2), among.mean(1), (across * seen.weight).sum(2)]
        to_targets = [targets, across.mean(1), (aside * seen.weight).sum(2)]
        return (
            _apply(self.user_update, torch.cat(to_users)).relu_(),
            _apply(self.target_update, torch.cat(to_targets)).relu_(),
        )


def _said(
    edge: torch.Tensor, coupling: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    """Of each pair: float32 [channels, n, batch] and [channels, m, batch] to [channels, n, m, batch]."""
    return (edge * coupling).add_(first.unsqueeze(2)).add_(second.unsqueeze(1)).relu_()


def _apply(layer: nn.Linear, given: torch.Tensor) -> torch.Tensor:
    """A layer on features that stand first: float32 [in, n, batch] to [out, n, batch]."""
    flat = torch.addmm(layer.bias.unsqueeze(1), layer.weight, given.flatten(1))
    return flat.view(-1, *given.shape[1:])


class _Stage(nn.Module):
    """From an answer to a better one."""

    def __init__(self, spec: PrecoderSpec, *, is_first: bool) -> None:
        super().__init__()
        common = NUM_COMMON_FEATURES + (0 if is_first else spec.width)
        sizes = [(NUM_USER_FEATURES + common, NUM_TARGET_FEATURES + common)]
        sizes += [(spec.width, spec.width)] * (spec.num_layers - 1)
        self.layers = nn.ModuleList(_Messages(*given, spec) for given in sizes)
        self.leave_user, self.leave_target = nn.Linear(spec.width, 2), nn.Linear(spec.width, 2)
        for layer in (self.leave_user, self.leave_target):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def nodes(
        self, seen: _Seen, before: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Users' and targets' nodes, float32 [width, .., batch]; before: the earlier stage's."""
        users, targets = seen.users, seen.targets
        if before is not None:
            users, targets = torch.cat([users, before[0]]), torch.cat([targets, before[1]])
        for layer in self.layers:
            users, targets = layer(users, targets, seen)
        return users, targets

    def answer(
        self, nodes: tuple[torch.Tensor, torch.Tensor], seen: _Seen, last: SensingNumbers
    ) -> SensingNumbers:
        """From one step of WMMSE that illuminates, as ``sensing_wmmse`` has it, each stage starts."""
        dual, content = _apply(self.leave_user, nodes[0]).transpose(1, 2).unbind()  # [batch, num_users] each
        spent, raised = _apply(self.leave_target, nodes[1]).transpose(1, 2).unbind()
        level = 1 - (seen.spent * spent.exp()).sum(-1, keepdim=True)
        return SensingNumbers(
            log_dual=(seen.log_dual + dual).log_softmax(-1),
            log_content=seen.log_content + content,
            level=level.clamp_min(_LEAST_LEVEL),
            logit=seen.logit,
            raised=last.raised + (seen.weight.mT * raised).sum(-1, keepdim=True),
        )


class SensingPrecoder(nn.Module):
    """Stages of messages; ``spec.backbone`` has no part in it."""

    def __init__(self, spec: PrecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stages = nn.ModuleList(_Stage(spec, is_first=index == 0) for index in range(spec.num_stages))

    def forward(self, links: SensingDownlinks) -> tuple[Illuminating, ...]:
        """The precoders of regularised zero forcing's numbers and of each stage's."""
        numbers, nodes = SensingNumbers.even(links), None
        found = [Illuminating.of(links, numbers)]
        for stage in cast(Iterable[_Stage], self.stages):
            seen = _Seen.of(links, numbers, found[-1])
            nodes = stage.nodes(seen, nodes)
            numbers = stage.answer(nodes, seen, numbers)
            found.append(Illuminating.of(links, numbers))
        return tuple(found)

    def precode(
        self,
        h: torch.Tensor,
        targets: torch.Tensor,
        illumination: torch.Tensor,
        noise_variance: torch.Tensor,
        total_power: float = 1.0,
    ) -> torch.Tensor:
        """W of exactly the total power, every target illuminated: complex [batch, num_bs_ant, num_users].

        h: complex64 [batch, num_users, num_bs_ant], no user's 0; targets: complex64 [batch, num_targets,
        num_bs_ant], one or more; illumination: float32 [batch, num_targets], 0 where nothing is asked;
        noise_variance: float [batch]. SpecError where no precoder illuminates as asked.
        """
        white, towards, share = normalised(h, targets, illumination, noise_variance, total_power)
        beam = full_power_beam(towards, share, 1.0, h.shape[1])
        last = self(SensingDownlinks.of(white, towards, share, beam))[-1]
        # takes away what rounding leaves
        return with_beam(
            total_power**0.5 * last.precoder(white, towards, beam),
            total_power**0.5 * beam,
            targets,
            illumination,
            total_power,
        )


def build_sensing_precoder(spec: PrecoderSpec, *, seed: int = 0) -> SensingPrecoder:
    """An untrained one, what is random drawn from ``seed``."""
    with seeded(seed + 1):
        return SensingPrecoder(spec)
