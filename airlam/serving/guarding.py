"""Served as evaluated: a link whose guard says so is predicted by the LAM untuned, or by Path-EB.

A guard was chosen on training links when the run was evaluated (``airlam.radio.prediction.guard``). Links of
one request may go different ways; the LAM untuned is one more LAM on the same backbone.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.base import Predictor
from airlam.radio.prediction.guard import Guarded
from airlam.radio.prediction.path_eb import PathEb
from airlam.serving.lam_services import Observe
from airlam.serving.measurement import Measurement, Question
from airlam.serving.service_graph import Service, ServiceGraph
from airlam.serving.services import Services

TUNED, UNTUNED, CLASSICAL = 0, 1, 2
PATH_EB = "path_eb"


@dataclass(frozen=True, slots=True)
class _Place:
    """A predictor that predicts its own number: what a guard makes of these tells where it sends a link."""

    number: int
    name: str = ""

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """int64 [batch]."""
        return torch.full((len(history),), self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkGuard:
    """Which of a LAM (0), itself untuned (1) and Path-EB (2) predicts a link; fields as of ``Guarded``."""

    levels_db: tuple[float, ...]
    edges: torch.Tensor
    chosen: tuple[tuple[int, ...], ...]

    def uses(self, place: int) -> bool:
        """Whether any link would go there."""
        return any(place in row for row in self.chosen)

    def places(self, request: Measurement) -> torch.Tensor:
        """Where each link of a request goes, int64 [links]."""
        numbers: tuple[Predictor, ...] = tuple(_Place(number) for number in (TUNED, UNTUNED, CLASSICAL))
        guarded = Guarded(
            name="", predictors=numbers, levels_db=self.levels_db, edges=self.edges, chosen=self.chosen
        )
        return guarded.predict(request.history, request.noise_variance)


def untuned_name(lam: str) -> str:
    """What a LAM is called as it was before tuning."""
    return f"{lam}~untuned"


def path_eb_service(lam: str) -> str:
    """What Path-EB is called where it stands in for a LAM."""
    return f"{PATH_EB}@{lam}"


class Lams(Services, Protocol):
    """Services of LAMs that know how large these are."""

    @property
    def num_bytes(self) -> int:
        """Of all weights."""
        ...


class GuardedServices:
    """Services of LAMs with guards; implements ``Services``.

    services: of all LAMs, and of ``untuned_name(lam)`` where the LAM's guard uses it.
    """

    def __init__(
        self,
        services: Lams,
        guards: Mapping[str, LinkGuard],
        observe: Observe = lambda service, links, duration_s: None,
        classical: Callable[[PredictionSetting, str], Predictor] = lambda setting, lam: PathEb(setting),
    ) -> None:
        """classical: Path-EB for a LAM's links, of its setting and its name."""
        self._services, self._guards, self._observe = services, guards, observe
        hidden = {untuned_name(lam) for lam in guards}
        self.settings = {lam: s for lam, s in services.settings.items() if lam not in hidden}
        self.beam_settings = services.beam_settings
        self._classical = {
            lam: classical(self.settings[lam], lam) for lam, guard in guards.items() if guard.uses(CLASSICAL)
        }
        self.graph = _with_path_eb(services.graph, tuple(self._classical))

    @property
    def num_bytes(self) -> int:
        """See ``LamServices.num_bytes``."""
        return self._services.num_bytes

    def warm(self) -> None:
        """See ``Services.warm``."""
        self._services.warm()

    def close(self) -> None:
        """See ``Services.close``."""
        self._services.close()

    def predict(self, requests: Sequence[Question]) -> list[torch.Tensor]:
        """See ``Services.predict``."""
        placed = [self._placed(request) for request in requests]
        by_lam: list[Question] = []
        for request, own in zip(requests, placed, strict=True):
            by_lam += [request] if own is None else own.asked_of_lams()
        answers = iter(self._services.predict(by_lam))
        return [next(answers) if own is None else own.joined(answers, self._classically) for own in placed]

    def _placed(self, request: Question) -> "_Placed | None":
        """None where there is no guard to ask."""
        guard = self._guards.get(request.lam)
        if guard is None or not isinstance(request, Measurement):
            return None
        return _Placed(request, guard.places(request))

    def _classically(self, part: Measurement) -> torch.Tensor:
        started_s = time.perf_counter()
        future = self._classical[part.lam].predict(part.history, part.noise_variance)
        self._observe(path_eb_service(part.lam), len(part), time.perf_counter() - started_s)
        return future


def _part(request: Measurement, rows: torch.Tensor, *, untuned: bool = False) -> Measurement:
    """Some links of a request; the request itself where these are all, so that its tensors stay the same."""
    if rows.all() and not untuned:
        return request
    lam = untuned_name(request.lam) if untuned else request.lam
    if rows.all():
        return replace(request, lam=lam)
    history, noise_variance = request.history[rows], request.noise_variance[rows]
    return replace(request, lam=lam, history=history, noise_variance=noise_variance)


@dataclass(frozen=True, slots=True)
class _Placed:
    """A request, and where each of its links goes (int64 [links])."""

    request: Measurement
    place: torch.Tensor

    def asked_of_lams(self) -> list[Measurement]:
        """What the LAM and itself untuned are asked, in this order."""
        return [
            _part(self.request, self.place == way, untuned=way == UNTUNED)
            for way in (TUNED, UNTUNED)
            if (self.place == way).any()
        ]

    def joined(
        self, answers: Iterator[torch.Tensor], classically: Callable[[Measurement], torch.Tensor]
    ) -> torch.Tensor:
        """Each link's future from the part that predicted it; answers: to what LAMs were asked."""
        parts = {way: next(answers) for way in (TUNED, UNTUNED) if (self.place == way).any()}
        if (self.place == CLASSICAL).any():
            parts[CLASSICAL] = classically(_part(self.request, self.place == CLASSICAL))
        first = next(iter(parts.values()))
        if len(parts) == 1:
            return first
        future = first.new_empty(len(self.place), *first.shape[1:])
        for way, part in parts.items():
            future[self.place == way] = part
        return future


def _with_path_eb(graph: ServiceGraph, lams: Sequence[str]) -> ServiceGraph:
    """The graph with a service of its own for each LAM that falls back to Path-EB."""
    added = tuple(Service(name=path_eb_service(lam), module=PATH_EB, tasks=(lam,)) for lam in lams)
    return replace(graph, services=(*graph.services, *added))
