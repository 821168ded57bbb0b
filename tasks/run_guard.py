"""A run's guard in its folder: which of the LAM, itself untuned and Path-EB predicts a link, as evaluated."""

import json
from pathlib import Path
from typing import Any

import torch

from airlam.errors import DataError
from airlam.files import write_json
from airlam.radio.prediction.guard import Guarded
from airlam.serving.guarding import CLASSICAL, LinkGuard

GUARD_FILE = "guard.json"


def write_guard(folder: Path, guarded: Guarded) -> None:
    """Keeps what an evaluation has chosen for the run in ``folder``."""
    values = {"levels_db": guarded.levels_db, "edges": guarded.edges.tolist(), "chosen": guarded.chosen}
    write_json(folder / GUARD_FILE, values)


def read_guard(folder: Path) -> LinkGuard | None:
    """The guard of a run's folder; None before the run is evaluated. DataError where the file is damaged."""
    path = folder / GUARD_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        guard = LinkGuard(
            levels_db=tuple(map(float, values["levels_db"])),
            edges=torch.tensor(values["edges"], dtype=torch.float32),
            chosen=tuple(tuple(map(int, row)) for row in values["chosen"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); run airlam evaluate again") from None
    if not _fits(guard):
        raise DataError(f"{path} is damaged: its sizes do not agree; run airlam evaluate again")
    return guard


def _fits(guard: LinkGuard) -> bool:
    places: list[Any] = [place for row in guard.chosen for place in row]
    num_levels = len(guard.levels_db)
    return (
        num_levels > 0
        and guard.edges.ndim == 2
        and len(guard.chosen) == len(guard.edges) == num_levels
        and all(len(row) == guard.edges.shape[1] + 1 for row in guard.chosen)
        and all(0 <= place <= CLASSICAL for place in places)
    )
