"""Three LAMs on one backbone against three whole ones, in one process.

Bytes of all weights and buffers, and answers a second in mixed batches, over those of each LAM alone.
``throughput_ratio``: three predictors, every request with a measurement of its own;
``one_measurement_ratio``: the three are asked of one. ``tasks``: two predictors and a LAM of beam selection,
whose regressions and the windows that they were fitted to count on both sides.
"""

import copy
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.model.lam_beams import LamBeams
from airlam.radio.beam_regression import PowerStack
from airlam.radio.beam_selection import BeamHistory, BeamWindows
from airlam.radio.channel import PredictionSetting
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement, Question, Sweeps
from airlam.specs import ModelSpec
from airlam.tasks.channel_prediction import Progress
from airlam.tokens.beam_history import BeamScales

SEED = 31
TDD, FDD, BEAMS = "tdd", "fdd", "beams"
_NUM_WINDOWS, _NUM_PAST, _NUM_AHEAD, _NUM_BEAMS = 256, 8, 3, 64
Calls = Sequence[tuple[LamServices, Sequence[Question]]]


def tuned_lams(model: ModelSpec, settings: Mapping[str, PredictionSetting]) -> dict[str, LAM]:
    """Each task's LAM, with an adapter, embedding and head of its own."""
    lams = {name: lam_for(model, setting, SEED).eval() for name, setting in settings.items()}
    for index, lam in enumerate(lams.values()):
        _move(lam, index)
    return lams


def shared(
    model: ModelSpec,
    settings: Mapping[str, PredictionSetting],
    asked: Sequence[Measurement],
    max_batch: int,
    repeats: int,
    on_progress: Progress,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Figures ``shared.*``, and seconds by turn; asked: a request each, put to every LAM."""
    lams, beams = tuned_lams(model, settings), _tuned_beams(model)
    monoliths = {name: LamServices({name: copy.deepcopy(lam)}) for name, lam in lams.items()}
    monoliths[BEAMS] = LamServices({}, beams={BEAMS: copy.deepcopy(beams)})
    both = LamServices({name: copy.deepcopy(lams[name]) for name in (TDD, FDD)}, beams={BEAMS: beams})
    together = LamServices(lams)
    of_one = [replace(one, lam=name) for one in asked for name in settings]
    own: list[Question] = [replace(request, history=request.history.clone()) for request in of_one]
    history = _windows().history
    swept = [Sweeps(lam=BEAMS, history=history.select(torch.tensor([i]))) for i in range(len(asked))]
    pairs = zip(_of(own, TDD), _of(own, FDD), swept, strict=True)
    mixed = [each for three in pairs for each in three]
    calls: dict[str, Calls] = {
        "alone": [(monoliths[name], _of(own, name)) for name in settings],
        "shared": [(together, own)],
        "of_one": [(together, of_one)],
        "tasks_alone": [(monoliths[name], _of(mixed, name)) for name in (TDD, FDD, BEAMS)],
        "tasks": [(both, mixed)],
    }
    rows = []
    for repeat in range(repeats + 1):  # the first warms up
        on_progress("shared backbone", repeat, repeats + 1, "")
        taken = {
            f"{kind}_s": seconds_of(functools.partial(_in_batches, each, max_batch))
            for kind, each in calls.items()
        }
        if repeat:
            rows.append(taken)

    def ratio(alone: str, kind: str) -> float:
        return statistics.median(row[f"{alone}_s"] / row[f"{kind}_s"] for row in rows)

    figures = {
        "shared.throughput_ratio": ratio("alone", "shared"),
        "shared.one_measurement_ratio": ratio("alone", "of_one"),
        "shared.memory_ratio": together.num_bytes / sum(monoliths[name].num_bytes for name in settings),
        "shared.services": float(len(together.graph.services)),
        "shared.modules_alone": float(together.graph.num_monolithic),
        "shared.tasks_throughput_ratio": ratio("tasks_alone", "tasks"),
        "shared.tasks_memory_ratio": both.num_bytes
        / sum(monoliths[name].num_bytes for name in (TDD, FDD, BEAMS)),
    }
    return figures, rows


def seconds_of(call: Callable[[], object]) -> float:
    """What one call takes."""
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def _of(requests: Sequence[Question], name: str) -> list[Question]:
    return [each for each in requests if each.lam == name]


def _in_batches(calls: Calls, max_batch: int) -> None:
    """Some requests to each of some services, in batches of the server's size."""
    for services, requests in calls:
        for i in range(0, len(requests), max_batch):
            services.predict(requests[i : i + max_batch])


def _tuned_beams(model: ModelSpec) -> LamBeams:
    windows = _windows()
    found = LamBeams.untuned(PowerStack.fitted(windows), BeamScales.of(windows), model, seed=SEED)
    _move(found.lam, len(BEAMS))
    found.lam.eval()
    return found


@functools.cache
def _windows() -> BeamWindows:
    """Sweeps and positions of no meaning: only their sizes matter here."""
    random = torch.Generator().manual_seed(SEED)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand((_NUM_WINDOWS, *shape), dtype=torch.float64, generator=random) + 0.01

    return BeamWindows(
        history=BeamHistory(power=drawn(_NUM_PAST, _NUM_BEAMS), position_m=50 * drawn(_NUM_PAST, 3)),
        future_power=drawn(_NUM_AHEAD, _NUM_BEAMS),
        sequence=torch.arange(_NUM_WINDOWS) // 16,
    )


def _move(lam: nn.Module, seed: int) -> None:
    """Moves all that trains, as tuning would."""
    random = torch.Generator().manual_seed(seed)
    for parameter in lam.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=random)
