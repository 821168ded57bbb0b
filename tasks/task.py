"""What a task is to a run: how its model is made and trained, and how it is measured.

A task is a module of ``airlam.tasks`` with the functions of ``Task``; its name in a run spec finds it.
"""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from airlam.datasets.store import ChannelDataset
from airlam.results import EvaluationResult
from airlam.specs import RunSpec
from airlam.tasks.channel_prediction import Progress
from airlam.training.metrics import TrainingSummary

_MODULES = {
    "channel_prediction": "airlam.tasks.prediction_run",
    "beamforming": "airlam.tasks.beamforming_run",
    "beam_selection": "airlam.tasks.beam_selection_run",
}


class Tuned(Protocol):
    """A model that has been trained."""

    def save(self, folder: Path) -> None:
        """Writes it; the folder appears whole or not at all."""
        ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run at work. dataset: open. folder: the run's own.

    identity: names spec and data, so that a checkpoint of others is refused. ray_address: of the Ray that has
    the nodes of a run with a network; None: this process.
    """

    spec: RunSpec
    dataset: ChannelDataset
    folder: Path
    on_progress: Progress
    identity: str = ""
    ray_address: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A tuned model, what it cost, and what else a summary says of this task."""

    model: Tuned
    summary: TrainingSummary
    own: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """The functions of a task's module."""

    def fine_tune(self, run: Run) -> Outcome:
        """Trains the run's model; a killed run goes on from what its folder holds."""
        ...

    def measure(self, run: Run, *, link: bool) -> EvaluationResult:
        """Compares the run's tuned model on test drops; ``link``: over coded blocks, too."""
        ...


def task_of(spec: RunSpec) -> Task:
    """The task that a run is of."""
    return cast(Task, importlib.import_module(_MODULES[spec.task]))
