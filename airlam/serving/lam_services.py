"""Fine-tuned LAMs as services: equal modules are loaded once, and run once for all requests of a batch."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from airlam.model.base import Context, PredictionHead
from airlam.model.lam import CHANNEL_PREDICTION, LAM
from airlam.model.lam_beams import LamBeams
from airlam.radio.beam_selection import BeamHistory
from airlam.radio.channel import PredictionSetting
from airlam.serving.foresight import Foresight, ForesightHead
from airlam.serving.measurement import Measurement, Question, Sweeps, slot_shape, tells_errors
from airlam.serving.module_sharing import (
    BEAM_HEAD,
    EMBEDDING,
    EXPERTS,
    HEAD,
    Tuned,
    backbone_groups,
    beam_tasks,
    lam_tasks,
)
from airlam.serving.service_graph import ServiceGraph, merge
from airlam.serving.shared_backbone import SharedBackbone
from airlam.serving.shared_tokens import distinct, for_setting
from airlam.specs import require
from airlam.tokens.base import CsiTokenizer, TokenBatch
from airlam.tokens.beam_history import BeamScales

Observe = Callable[[str, int, float], None]
"""(service, links, seconds): told after each pass of a service."""
_MOST_PADDING = 64  # tokens of a LAM's rows together; with more another pass takes less time
Entering = tuple[torch.Tensor, torch.Tensor]
"""What a backbone takes: hidden float32 [rows, num_tokens, width], mask bool [rows, num_tokens]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Own:
    """What a LAM has besides the backbone."""

    tokenizer: CsiTokenizer
    embedding: nn.Module
    head: PredictionHead


class LamServices:
    """LAMs by name, behind one ``predict``.

    lams, beams: of channel prediction and of beam selection; taken over: their backbones are merged where
    frozen weights agree, so do not use them afterwards. observe: told what each service did. is_whole:
    whether no others are served beside them.
    """

    def __init__(
        self,
        lams: Mapping[str, LAM],
        observe: Observe = lambda service, links, duration_s: None,
        beams: Mapping[str, LamBeams] | None = None,
        *,
        is_whole: bool = True,
    ) -> None:
        self._beams = dict(beams or {})
        require(bool(lams or self._beams), "there is no LAM to serve; name at least one")
        tuned = {name: Tuned(lam.spec, lam.backbone) for name, lam in lams.items()}
        tuned |= {name: Tuned(own.spec, own.lam.backbone) for name, own in self._beams.items()}
        groups = backbone_groups(tuned)
        backbone_of = {name: names[0] for names in groups for name in names}
        tasks = lam_tasks(lams, backbone_of) | beam_tasks(self._beams, backbone_of)
        self.graph = merge(tasks, is_whole=is_whole)
        self.settings: dict[str, PredictionSetting] = {
            name: lam.tokenizer.setting for name, lam in lams.items()
        }
        self.beam_settings: dict[str, BeamScales] = {name: own.scales for name, own in self._beams.items()}
        self._observe = observe
        self._own = _own_modules(lams, self.graph)
        for own in self._beams.values():
            own.lam.eval().requires_grad_(False)
        self._groups = [(names, SharedBackbone([tuned[name].backbone for name in names])) for names in groups]

    @property
    def num_bytes(self) -> int:
        """Of all weights and buffers, and of what regressions were fitted to, each counted once."""
        modules = [cast(nn.Module, m) for own in self._own.values() for m in (own.embedding, own.head)]
        modules += [module for own in self._beams.values() for module in (own.lam.embedding, own.lam.head)]
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        tensors += [t for _, group in self._groups for t in group.tensors()]
        tensors += [t for own in self._beams.values() for t in own.stack.held()]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def warm(self) -> None:
        """Has each LAM predict something: first passes take longer than all later ones."""
        for measurement in first_measurements(self.settings):
            foresees = isinstance(self._own[measurement.lam].head, ForesightHead)
            self.predict([replace(measurement, with_errors=foresees)])
        self.predict(first_sweeps(self.beam_settings))

    def close(self) -> None:
        """See ``Services.close``: all is in this process."""

    def predict(self, requests: Sequence[Question]) -> list[torch.Tensor]:
        """See ``Services.predict``."""
        return answers_of(requests, self.settings, self._answers)

    @torch.inference_mode()
    def _answers(self, asked: Mapping[str, Sequence[Question]]) -> dict[str, torch.Tensor]:
        """Of each LAM's requests together; those of one backbone run in one pass, or in few (``_passes``)."""
        measured = {name: cast(Sequence[Measurement], asked[name]) for name in asked if name in self.settings}
        tokens = self.tokens(measured)
        entering = {name: self._entering(name, own) for name, own in tokens.items()}
        expected: dict[str, torch.Tensor] = {}
        for name in asked:
            if name not in measured:
                sweeps = cast(Sequence[Sweeps], asked[name])
                entering[name], expected[name] = self._beams_entering(name, sweeps)
        hidden = self._through_backbones(entering)
        answers = {
            name: self.future(name, hidden[name], own.context, tells_errors(asked[name]))
            for name, own in tokens.items()
        }
        return answers | {name: self._shares(name, hidden[name], own) for name, own in expected.items()}

    @torch.inference_mode()
    def tokens(self, asked: Mapping[str, Sequence[Measurement]]) -> dict[str, TokenBatch]:
        """Each LAM's tokens, in the order of its requests; one pass of each tokeniser."""
        sharing: dict[str, list[str]] = {}
        for name in asked:
            sharing.setdefault(self.graph.service_of(name, "tokenizer.csi"), []).append(name)
        found: dict[str, TokenBatch] = {}
        for service, names in sharing.items():
            requests = [request for name in names for request in asked[name]]
            chosen, rows = distinct([(request.history, request.noise_variance) for request in requests])
            history = torch.cat([requests[i].history for i in chosen])  # [links, slots, user, bs, freq]
            variance = torch.cat([requests[i].noise_variance for i in chosen])  # [links]
            tokenizer = self._own[names[0]].tokenizer
            with self._timed(service, len(history)):
                tokens = tokenizer.tokenise(history, variance)
            taken = iter(rows)
            for name in names:
                own = tokens.select(torch.cat([next(taken) for _ in asked[name]]))
                found[name] = for_setting(own, tokenizer, self.settings[name])
        return found

    @torch.inference_mode()
    def hidden(self, tokens: Mapping[str, TokenBatch]) -> dict[str, torch.Tensor]:
        """What a LAM's tokens are behind its backbone, float32 [links, num_tokens, width].

        The tokens' context is not looked at.
        """
        return self._through_backbones({name: self._entering(name, own) for name, own in tokens.items()})

    @torch.inference_mode()
    def future(
        self, lam: str, hidden: torch.Tensor, context: Context, with_errors: bool = False
    ) -> torch.Tensor:
        """What a LAM's head makes of ``hidden`` and its tokens' context: as ``predict`` of all its links."""
        head = self._own[lam].head
        with self._timed(self.graph.service_of(lam, HEAD), len(hidden)):
            output = cast(nn.Module, head)(hidden, context)
            if with_errors:
                return cast(ForesightHead, head).foresight(output, context)
            return head.channel(output, context)

    def _through_backbones(self, entering: Mapping[str, Entering]) -> dict[str, torch.Tensor]:
        return {
            name: own
            for names, group in self._groups
            for present in _passes([name for name in names if name in entering], entering)
            for name, own in self._run(names, present, group, entering)
        }

    def _run(
        self,
        names: Sequence[str],
        present: Sequence[str],
        group: SharedBackbone,
        entering: Mapping[str, Entering],
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What those present of the LAMs of one backbone have behind it, all their rows in one pass."""
        embedded = _padded(entering[name][0] for name in present)  # [rows, num_tokens, width]
        mask = _padded(entering[name][1] for name in present)  # [rows, num_tokens]
        deepest = names[0]

        def timed(part: str, num_links: int) -> AbstractContextManager[None]:
            return self._timed(self.graph.service_of(deepest, part), num_links)

        counts = [len(entering[name][0]) if name in present else 0 for name in names]
        hidden = group.run(embedded, mask, counts, timed)
        rows = torch.split(hidden, [len(entering[name][0]) for name in present])
        for name, own in zip(present, rows, strict=True):
            yield name, own[:, : entering[name][1].shape[1]]  # [links, num_tokens, width]

    def _entering(self, name: str, tokens: TokenBatch) -> Entering:
        with self._timed(self.graph.service_of(name, EMBEDDING), len(tokens)):
            return cast(torch.Tensor, self._own[name].embedding(tokens.features)), tokens.mask

    def _beams_entering(self, name: str, sweeps: Sequence[Sweeps]) -> tuple[Entering, torch.Tensor]:
        """What the backbone takes of some windows, and what their experts expect."""
        own = self._beams[name]
        history = BeamHistory(
            power=torch.cat([each.history.power for each in sweeps]),
            position_m=torch.cat([each.history.position_m for each in sweeps]),
        )
        with self._timed(self.graph.service_of(name, EXPERTS), len(history)):
            tokens, expected = own.inputs(history)
        with self._timed(self.graph.service_of(name, EMBEDDING), len(history)):
            return own.lam.embedding(tokens), expected

    def _shares(self, name: str, hidden: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        """Each beam's share in the LAM's choice: float32 [windows, num_ahead, num_beams]."""
        with self._timed(self.graph.service_of(name, BEAM_HEAD), len(hidden)):
            scores: torch.Tensor = self._beams[name].lam.head(hidden[:, 0], expected)
            return scores.softmax(dim=-1)

    @contextmanager
    def _timed(self, service: str, num_links: int) -> Iterator[None]:
        started_s = time.perf_counter()
        yield
        self._observe(service, num_links, time.perf_counter() - started_s)


def first_measurements(settings: Mapping[str, PredictionSetting]) -> list[Measurement]:
    """One link of noise for each LAM, to begin with."""
    random = torch.Generator().manual_seed(0)
    shapes = {name: slot_shape(setting, 1, setting.num_history) for name, setting in settings.items()}
    return [
        Measurement(
            lam=name,
            history=torch.randn(shape, dtype=torch.complex64, generator=random),
            noise_variance=torch.ones(1),
        )
        for name, shape in shapes.items()
    ]


def first_sweeps(settings: Mapping[str, BeamScales]) -> list[Sweeps]:
    """One window of noise for each LAM of beam selection, to begin with."""
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=random) + 1e-3

    return [
        Sweeps(
            lam=name,
            history=BeamHistory(
                power=drawn(1, own.num_past, own.num_beams), position_m=drawn(1, own.num_past, 3)
            ),
        )
        for name, own in settings.items()
    ]


def answers_of(
    requests: Sequence[Question],
    settings: Mapping[str, PredictionSetting],
    futures_of: Callable[[Mapping[str, Sequence[Question]]], Mapping[str, torch.Tensor]],
) -> list[torch.Tensor]:
    """Each request's own links of what is predicted of each LAM's requests together, as it asks for them."""
    by_lam: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        by_lam.setdefault(request.lam, []).append(index)
    futures = futures_of({name: [requests[i] for i in own] for name, own in by_lam.items()})
    answers: dict[int, torch.Tensor] = {}
    for name, own in by_lam.items():
        found = torch.split(futures[name], [len(requests[i]) for i in own])
        told = tells_errors(requests[i] for i in own)
        for i, part in zip(own, found, strict=True):
            is_more = told and not requests[i].with_errors
            answers[i] = Foresight.unpacked(part, settings[name]).future if is_more else part
    return [answers[index] for index in range(len(requests))]


def _own_modules(lams: Mapping[str, LAM], graph: ServiceGraph) -> dict[str, _Own]:
    """What each LAM has besides the backbone; equal modules are one object."""
    holders = {one.name: lams[one.tasks[0]] for one in graph.services if one.tasks[0] in lams}

    def holder(name: str, module: str) -> LAM:
        return holders[graph.service_of(name, module)]

    return {
        name: _Own(
            tokenizer=holder(name, "tokenizer.csi").tokenizer,
            embedding=holder(name, EMBEDDING).embedding.eval().requires_grad_(False),
            head=cast(
                PredictionHead, holder(name, HEAD).heads[CHANNEL_PREDICTION].eval().requires_grad_(False)
            ),
        )
        for name, lam in lams.items()
    }


def _passes(names: Sequence[str], entering: Mapping[str, Entering]) -> list[list[str]]:
    """LAMs of one backbone by passes: those together whose rows need little padding, in their order."""

    def num_tokens(name: str) -> int:
        return entering[name][1].shape[1]

    found: list[list[str]] = []  # the longest of each first
    for name in sorted(names, key=lambda name: -num_tokens(name)):
        longest = num_tokens(found[-1][0]) if found else math.inf
        if len(entering[name][0]) * (longest - num_tokens(name)) <= _MOST_PADDING:
            found[-1].append(name)
        else:
            found.append([name])
    return [sorted(each, key=names.index) for each in found]


def _padded(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """Rows of several LAMs as one tensor [rows, num_tokens, ...]; zeros where a LAM has fewer tokens."""
    listed = list(parts)
    num_tokens = max(part.shape[1] for part in listed)
    whole = listed[0].new_zeros(sum(map(len, listed)), num_tokens, *listed[0].shape[2:])
    start = 0
    for part in listed:
        whole[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return whole
