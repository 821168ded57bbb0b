"""Beam selection on measured DeepSense sweeps: the LAM, the regressions it weighs, and simpler rivals.

From eight sweeps to the best beam one to three sweeps later. The passes of a scenario are dealt into five
parts; each part is the test once, for models fitted to the other four, so that every window is tested and no
pass is on both sides. All methods are scored on the same windows; intervals are over passes. "Best classical"
is the best on these test windows themselves.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airlam.bench.beamforming.beam_rows import figures_of, rows_of
from airlam.datasets.deepsense import load_deepsense, scenarios_in
from airlam.model.lam import count_parameters
from airlam.radio.beam_regression import PowerStack
from airlam.radio.beam_selection import (
    BeamRecording,
    BeamScores,
    BeamWindows,
    cut_windows,
    score_beams,
    split_by_pass,
)
from airlam.specs import ModelSpec, TrainingSpec, spec_to_dict
from airlam.tasks.beam_selection import classical_predictors, tune_beams
from airlam.tasks.channel_prediction import Progress

NUM_PAST, NUM_AHEAD = 8, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of a run; ``training`` has the seed of the first part, the others follow."""

    num_parts: int
    model: ModelSpec
    training: TrainingSpec


_FULL_TRAINING = TrainingSpec(
    num_steps=120,
    learning_rate=1e-3,
    validation_every_steps=40,
    checkpoint_every_steps=120,
)
FULL = Scale(num_parts=5, model=ModelSpec(backbone="airlam", num_layers=2), training=_FULL_TRAINING)
QUICK = Scale(
    num_parts=2,
    model=ModelSpec(backbone="airlam", num_layers=1),
    training=dataclasses.replace(_FULL_TRAINING, num_steps=4, batch_size=8, validation_every_steps=4),
)


def run(data: Path, quick: bool, on_progress: Progress) -> dict[str, Any]:
    """Every scenario in the folder ``data`` (``airlam.datasets.deepsense``): settings, figures and rows.

    Figures by scenario S and h sweeps ahead: ``deepsense<S>_h<h>.power_loss_db``, ``.within_one``, ``.top1``
    and ``.top3`` of the LAM; the same with a predictor's name before the metric for each classical one;
    ``.best_classical.power_loss_db``, and ``.lam_minus_best_classical_db`` with its interval (negative: the
    LAM loses less). DataError where a file is missing or unfit.
    """
    recordings = [load_deepsense(data, scenario) for scenario in scenarios_in(data)]
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    scale = QUICK if quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        for recording in recordings:
            scores, trainable = cross_validate(recording, scale, Path(folder), on_progress)
            for step in range(1, NUM_AHEAD + 1):
                found = rows_of(f"{recording.name}_h{step}", scores, step)
                figures |= figures_of(f"{recording.name}_h{step}", found, scores, step)
                rows += found
            figures["trainable_parameters"] = float(trainable)
    settings = {
        "num_past": NUM_PAST,
        "num_parts": scale.num_parts,
        "model": spec_to_dict(scale.model),
        "training": spec_to_dict(scale.training),
    }
    return {"settings": settings, "figures": figures, "rows": rows}


def cross_validate(
    recording: BeamRecording, scale: Scale, folder: Path, on_progress: Progress
) -> tuple[dict[str, BeamScores], int]:
    """Scores of every predictor on every window, each from a part that it has not seen.

    Returns them by name, and the LAM's trainable parameters.
    """
    windows = cut_windows(recording, num_past=NUM_PAST, num_ahead=NUM_AHEAD)
    found: dict[str, list[BeamScores]] = {}
    trainable = 0
    for part, held_out in enumerate(split_by_pass(windows.sequence, scale.num_parts, seed=0)):
        on_progress(recording.name, part, scale.num_parts, "")
        training, test = windows.select(~held_out), windows.select(held_out)
        work = folder / f"{recording.name}_{part}"
        scores, trainable = _measure(training, test, scale, part, work)
        for name, each in scores.items():
            found.setdefault(name, []).append(each)
    on_progress(recording.name, scale.num_parts, scale.num_parts, "")
    return {name: BeamScores.concatenate(parts) for name, parts in found.items()}, trainable


def _measure(
    training: BeamWindows, test: BeamWindows, scale: Scale, part: int, folder: Path
) -> tuple[dict[str, BeamScores], int]:
    """Fits and tunes everything on ``training``; scores on ``test`` by name, and trainable parameters."""
    stack = PowerStack.fitted(training)
    spec = dataclasses.replace(scale.training, seed=scale.training.seed + part)
    lam = tune_beams(training, stack, scale.model, spec, folder, lambda *_: None)
    predictors = [*classical_predictors(training, stack), lam]
    scores = {each.name: score_beams(each.predict(test.history), test) for each in predictors}
    return scores, count_parameters(lam.lam).trainable
