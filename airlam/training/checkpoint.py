"""Checkpoints: numbered folders of safetensors and JSON that appear whole or not at all."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from airlam.errors import DataError
from airlam.files import recover, whole_folder, write_json
from airlam.model.storage import read_tensors, write_tensors

_KEPT = 2  # the newest, and one before it
_TENSORS = "state.safetensors"
_VALUES = "state.json"
_PREFIX = "step_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """State of a run after a step.

    tensors: by name, "weights/...", "best/...", "optimiser/...", "random/...", "sampler/...".
    progress: counters and bests. settings: what the run was started with; another run's is refused.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    progress: dict[str, Any]
    settings: dict[str, Any]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one part, without the part's name."""
        return {key[len(name) + 1 :]: t for key, t in self.tensors.items() if key.startswith(name + "/")}


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes ``folder/step_NNNNNNNN`` and drops all but the newest ones."""
    path = folder / f"{_PREFIX}{checkpoint.step:08d}"
    with whole_folder(path) as temporary:
        write_tensors(temporary / _TENSORS, checkpoint.tensors)
        values = {"progress": checkpoint.progress, "settings": checkpoint.settings}
        write_json(temporary / _VALUES, values)
    for old in _steps(folder)[:-_KEPT]:
        shutil.rmtree(old)
    return path


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None; what a killed writer left half-done is put right first."""
    if not folder.is_dir():
        return None
    for leftover in list(folder.glob(f".{_PREFIX}*")):
        recover(folder / leftover.name.split(".")[1])
    steps = _steps(folder)
    return _read(steps[-1]) if steps else None


def _read(path: Path) -> Checkpoint:
    try:
        values = json.loads((path / _VALUES).read_text())
        if not (isinstance(values, dict) and values.keys() == {"progress", "settings"}):
            raise DataError(f"{_VALUES} does not hold progress and settings")
        return Checkpoint(
            step=int(path.name.removeprefix(_PREFIX)), tensors=read_tensors(path / _TENSORS), **values
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is no whole checkpoint ({error}); remove it to go on from an older one"
        ) from error


def check_settings(checkpoint: Checkpoint, settings: dict[str, Any], folder: Path) -> None:
    """DataError unless the checkpoint was made under ``settings``; names the first that differs."""
    own = json.loads(json.dumps(settings))  # as JSON would give it back
    difference = _first_difference(checkpoint.settings, own)
    if difference:
        raise DataError(
            f"{folder} holds a checkpoint of another run: {difference}; remove the folder to start anew, or "
            "give the run another name"
        )


def _first_difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """In words, looking into dicts; empty where there is none."""
    for key in {**here, **there}:
        before, now = there.get(key), here.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            inner = _first_difference(before, now)
            if inner:
                return f"{key}: {inner}"
        elif before != now:
            return f"{key} was {before!r}, now it is {now!r}"
    return ""


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}[0-9]*"))
