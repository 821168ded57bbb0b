"""Fine-tuned LAMs as services: equal modules are loaded once, and run once for all requests of a batch."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from airlam.model.base import Context, PredictionHead
from airlam.model.lam import CHANNEL_PREDICTION, LAM
from airlam.model.storage import fingerprint
from airlam.radio.channel import PredictionSetting
from airlam.serving.foresight import Foresight, ForesightHead
from airlam.serving.measurement import Measurement, slot_shape, tells_errors
from airlam.serving.service_graph import ServiceGraph, TaskModules, merge
from airlam.serving.shared_backbone import SharedBackbone, frozen_parts
from airlam.serving.shared_tokens import distinct, for_setting, tokens_identity
from airlam.specs import require
from airlam.tokens.base import CsiTokenizer, TokenBatch

Observe = Callable[[str, int, float], None]
"""(service, links, seconds): told after each pass of a service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Own:
    """What a LAM has besides the backbone."""

    tokenizer: CsiTokenizer
    embedding: nn.Module
    head: PredictionHead


class LamServices:
    """LAMs by name, behind one ``predict``.

    lams: taken over: their backbones are merged where frozen weights agree, so do not use them afterwards.
    observe: told what each service did.
    """

    def __init__(
        self, lams: Mapping[str, LAM], observe: Observe = lambda service, links, duration_s: None
    ) -> None:
        require(len(lams) > 0, "there is no LAM to serve; name at least one")
        groups = _groups(lams)
        self.graph = merge(_tasks(lams, groups))
        self.settings: dict[str, PredictionSetting] = {
            name: lam.tokenizer.setting for name, lam in lams.items()
        }
        self._observe = observe
        self._own = _own_modules(lams, self.graph)
        self._groups = [(names, SharedBackbone([lams[name].backbone for name in names])) for names in groups]

    @property
    def num_bytes(self) -> int:
        """Of all weights and buffers, each counted once."""
        modules = [cast(nn.Module, m) for own in self._own.values() for m in (own.embedding, own.head)]
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        tensors += [t for _, group in self._groups for t in group.tensors()]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def warm(self) -> None:
        """Has each LAM predict something: first passes take longer than all later ones."""
        for measurement in first_measurements(self.settings):
            foresees = isinstance(self._own[measurement.lam].head, ForesightHead)
            self.predict([replace(measurement, with_errors=foresees)])

    def close(self) -> None:
        """See ``Services.close``: all is in this process."""

    def predict(self, requests: Sequence[Measurement]) -> list[torch.Tensor]:
        """See ``Services.predict``."""
        return answers_of(requests, self.settings, self._futures)

    @torch.inference_mode()
    def _futures(self, asked: Mapping[str, Sequence[Measurement]]) -> dict[str, torch.Tensor]:
        tokens = self.tokens(asked)
        hidden = self.hidden(tokens)
        return {
            name: self.future(name, own, tokens[name].context, tells_errors(asked[name]))
            for name, own in hidden.items()
        }

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
        """What a LAM's tokens are behind its backbone, float32 [links, num_tokens, width]; one pass of each.

        The tokens' context is not looked at.
        """
        return {name: own for names, group in self._groups for name, own in self._run(names, group, tokens)}

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

    def _run(
        self, names: Sequence[str], group: SharedBackbone, tokens: Mapping[str, TokenBatch]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What the LAMs of one backbone have behind it, all rows in one pass."""
        present = [name for name in names if name in tokens]
        if not present:
            return
        counts = [len(tokens[name]) if name in tokens else 0 for name in names]
        embedded = _padded(
            self._embedded(name, tokens[name]) for name in present
        )  # [rows, num_tokens, width]
        mask = _padded(tokens[name].mask for name in present)  # [rows, num_tokens]
        deepest = names[0]

        def timed(part: str, num_links: int) -> AbstractContextManager[None]:
            return self._timed(self.graph.service_of(deepest, part), num_links)

        hidden = group.run(embedded, mask, counts, timed)
        rows = torch.split(hidden, [len(tokens[name]) for name in present])
        for name, own in zip(present, rows, strict=True):
            yield name, own[:, : tokens[name].mask.shape[1]]  # [links, num_tokens, width]

    def _embedded(self, name: str, tokens: TokenBatch) -> torch.Tensor:
        with self._timed(self.graph.service_of(name, "embedding"), len(tokens)):
            return cast(torch.Tensor, self._own[name].embedding(tokens.features))

    @contextmanager
    def _timed(self, service: str, num_links: int) -> Iterator[None]:
        started_s = time.perf_counter()
        yield
        self._observe(service, num_links, time.perf_counter() - started_s)


HEAD = "head." + CHANNEL_PREDICTION


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


def answers_of(
    requests: Sequence[Measurement],
    settings: Mapping[str, PredictionSetting],
    futures_of: Callable[[Mapping[str, Sequence[Measurement]]], Mapping[str, torch.Tensor]],
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


def _groups(lams: Mapping[str, LAM]) -> list[list[str]]:
    """Names of the LAMs of each backbone, the deepest first."""
    deepest_first = sorted(lams, key=lambda name: -lams[name].backbone.num_blocks)
    parts = {name: _backbone_parts(lams[name]) for name in lams}
    groups: list[list[str]] = []
    for name in deepest_first:
        fitting = (names for names in groups if parts[name].items() <= parts[names[0]].items())
        group = next(fitting, None) if _is_shareable(lams[name]) else None
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


def _is_shareable(lam: LAM) -> bool:
    return lam.spec.tuning in ("lora", "head")


def _backbone_parts(lam: LAM) -> dict[str, str]:
    """What must agree for two LAMs to run on one backbone."""
    kind = (lam.spec.backbone, type(lam.backbone.model).__name__, lam.backbone.ordered, _is_shareable(lam))
    return {"kind": str(kind)} | frozen_parts(lam.backbone)


def _tasks(lams: Mapping[str, LAM], groups: Iterable[Sequence[str]]) -> dict[str, TaskModules]:
    """Each LAM's chain, with identities that agree where modules can be shared."""
    backbone_of = {name: names[0] for names in groups for name in names}
    return {name: TaskModules.chain(_identities(lam, backbone_of[name])) for name, lam in lams.items()}


def _identities(lam: LAM, backbone: str) -> dict[str, str]:
    identity: dict[str, str] = {}
    for module in lam.module_names:
        if module.startswith("tokenizer."):
            identity[module] = tokens_identity(lam)
        elif module == "embedding":
            identity[module] = fingerprint(lam.embedding.state_dict())
        elif module.startswith("head."):
            identity[module] = f"{lam.tokenizer.setting} {fingerprint(lam.heads.state_dict())}"
        else:
            identity[module] = backbone
    return identity


def _own_modules(lams: Mapping[str, LAM], graph: ServiceGraph) -> dict[str, _Own]:
    """What each LAM has besides the backbone; equal modules are one object."""
    holders = {service.name: lams[service.tasks[0]] for service in graph.services}

    def holder(name: str, module: str) -> LAM:
        return holders[graph.service_of(name, module)]

    return {
        name: _Own(
            tokenizer=holder(name, "tokenizer.csi").tokenizer,
            embedding=holder(name, "embedding").embedding.eval().requires_grad_(False),
            head=cast(
                PredictionHead, holder(name, HEAD).heads[CHANNEL_PREDICTION].eval().requires_grad_(False)
            ),
        )
        for name, lam in lams.items()
    }


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
