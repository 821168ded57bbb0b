"""Beam selection as a task of runs: a site's sweeps and positions, regressions of them, the LAM around these.

``lam/`` holds the regressions with the windows that they were fitted to, and the LAM. Training windows, whole
passes of them, are at most as many as the run's ``num_samples``, since a regression's time grows with their
cube.
"""

import dataclasses
import statistics
import time

import torch

from airlam.datasets.layout import software_versions
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.model.lam_beams import LamBeams
from airlam.radio.beam_regression import PowerStack
from airlam.radio.beam_selection import (
    BeamHistory,
    BeamPredictor,
    BeamScores,
    BeamWindows,
    compare_loss,
    cut_windows,
    score_beams,
    summarise_beams,
)
from airlam.results import POWER_LOSS, BeamRow, CostRow, EvaluationResult, Kind, Method
from airlam.specs import BeamSelectionSpec
from airlam.tasks.beam_selection import (
    BeamSamples,
    classical_predictors,
    fit_or_keep,
    held_out_passes,
    recording_of,
)
from airlam.tasks.evaluation import LAM, settings_of, training_costs, training_rows
from airlam.tasks.runs import LAM_FOLDER
from airlam.tasks.task import Outcome, Run
from airlam.tokens.beam_history import BeamScales

__all__ = ["fine_tune", "measure"]

METRICS = (POWER_LOSS, "top1", "top3", "within_one")
LABELS = {
    "persistence": "The last sweep again",
    "straight_line": "Straight line, 8 sweeps",
    "straight_line_5": "Straight line, 5 sweeps",
    "kalman": "Kalman",
    "position_line": "Positions on a line",
    "fingerprint": "Fingerprints",
    "power_regression": "Regression of powers",
    "power_stack": "Stack of regressions",
    LAM: "LAM",
}
NOTES = (
    "The power lost is that of the chosen beam against the best beam of the same sweep, with equally strong "
    "best beams: -10 log10 of the mean share that is kept.",
    "Train, validation and test are disjoint drives. All that is fitted or tuned saw training drives; "
    "validation drives chose the LAM's weights, or a fifth of the training ones where there are none.",
    "The best classical method is the best one on the test windows themselves, which favours it.",
    "Intervals are 95 % bootstrap intervals over passes; differences are paired.",
    "The LAM weighs what the stack's regressions expect, a reconstruction of a head that corrects physics.",
    "Times are of one window alone, from sweeps and positions to scores of all beams, the median of 20.",
)
_TIMED = 20


def fine_tune(run: Run) -> Outcome:
    """See ``Task.fine_tune``; DataError where the dataset lacks sweeps, positions or long enough drives."""
    spec, training = run.spec, training_windows(run)
    run.on_progress("fitting regressions", 0, 1, f"{len(training)} windows")
    stack = PowerStack.fitted(training)
    run.on_progress("fitting regressions", 1, 1, "")
    found = LamBeams.untuned(stack, BeamScales.of(training), spec.model, seed=spec.training.seed)
    tokenizer = found.scales.tokenizer()
    samples = BeamSamples.of(training, stack, tokenizer)
    validation = windows_of(run.dataset, "validation", spec.sweeps)
    if len(validation):
        expected = stack.expect(validation.history)
        parts = samples, BeamSamples.of(validation, stack, tokenizer, expected)
    else:
        held_out = held_out_passes(training, spec.training.seed)
        parts = samples.select(~held_out), samples.select(held_out)
    summary, is_better = fit_or_keep(
        found.lam, *parts, spec.training, run.folder, run.on_progress, identity=run.identity
    )
    return Outcome(model=found, summary=summary, own={"windows": len(training), "tuned_is_better": is_better})


def measure(run: Run, *, link: bool) -> EvaluationResult:
    """See ``Task.measure``; what is lost on the link is the power, so ``link`` changes nothing."""
    lam = LamBeams.load(run.folder / LAM_FOLDER)
    test = windows_of_test(run.dataset, run.spec.sweeps)
    predictors = [*classical_predictors(training_windows(run), lam.stack), lam]
    scores = {}
    for number, each in enumerate(predictors):
        run.on_progress("choosing beams", number, len(predictors), each.name)
        scores[each.name] = score_beams(each.predict(test.history), test)
    run.on_progress("choosing beams", len(predictors), len(predictors), "")
    times = [
        CostRow(method=each.name, quantity="choosing", value=time_ms(each, test.history), unit="ms a window")
        for each in predictors
    ]
    passes = len(test.sequence.unique())  # type: ignore[no-untyped-call]
    return EvaluationResult(
        task="beam selection",
        settings={**settings_of(run), "test": f"{len(test)} windows of {passes} passes"},
        methods=tuple(
            Method(name=name, label=LABELS[name], kind="lam" if name == LAM else "classical")
            for name in scores
        ),
        beams=tuple(beam_rows(scores)),
        training=training_rows(run.folder),
        cost=(*training_costs(run.folder, "training, regressions fitted before"), *times),
        versions=software_versions(),
        notes=NOTES,
    )


def _kind(name: str) -> Kind:
    return "lam" if name == LAM else "classical"


def windows_of_test(dataset: ChannelDataset, spec: BeamSelectionSpec) -> BeamWindows:
    """All windows of the test drives; DataError where there are none."""
    found = windows_of(dataset, "test", spec)
    if not len(found):
        length = spec.num_past + spec.num_ahead
        raise DataError(f"no test drive of {dataset.spec.name} has {length} sweeps; draw longer ones")
    return found


def windows_of(dataset: ChannelDataset, split: str, spec: BeamSelectionSpec) -> BeamWindows:
    """All windows of a split's drives; there may be none. DataError where the dataset lacks either sensor."""
    sensors = dataset.spec.sensors
    if sensors.beams is None or sensors.position is None:
        raise DataError(
            f"{dataset.spec.name} has no beam sweeps or no measured positions; draw it with [sensors.beams] "
            "and [sensors.position]"
        )
    if not dataset.num_drops(split):
        return _none(sensors.beams.num_beams, spec)
    return cut_windows(recording_of(dataset, split), num_past=spec.num_past, num_ahead=spec.num_ahead)


def _none(num_beams: int, spec: BeamSelectionSpec) -> BeamWindows:
    history = BeamHistory(
        power=torch.empty(0, spec.num_past, num_beams), position_m=torch.empty(0, spec.num_past, 3)
    )
    future = torch.empty(0, spec.num_ahead, num_beams)
    return BeamWindows(history=history, future_power=future, sequence=torch.empty(0, dtype=torch.int64))


def training_windows(run: Run) -> BeamWindows:
    """Windows that regressions are fitted to: of whole passes, drawn in random order while there is room.

    DataError where there are fewer than two passes.
    """
    spec, found = run.spec, windows_of(run.dataset, "train", run.spec.sweeps)
    passes, counts = found.sequence.unique(return_counts=True)  # type: ignore[no-untyped-call]
    if len(passes) < 2:
        length = spec.sweeps.num_past + spec.sweeps.num_ahead
        raise DataError(
            f"{run.dataset.spec.name} has {len(passes)} training passes of {length} sweeps or more; expected "
            "at least 2: draw more or longer drives, or take smaller num_past and num_ahead"
        )
    order = torch.randperm(len(passes), generator=torch.Generator().manual_seed(spec.training.seed))
    room = counts[order].cumsum(0) <= spec.training.num_samples
    room[:2] = True
    return found.select(torch.isin(found.sequence, passes[order[room]]))


def beam_rows(scores: dict[str, BeamScores]) -> list[BeamRow]:
    """Every figure of every method at every step, and the LAM's loss less the best classical one's."""
    rows = []
    for step in range(1, next(iter(scores.values())).kept.shape[1] + 1):
        lost = {}
        for name, each in scores.items():
            summary = summarise_beams(each, step)
            lost[name] = summary.power_loss_db.value
            rows += [
                BeamRow(method=name, step=step, metric=metric, **dataclasses.asdict(getattr(summary, metric)))
                for metric in METRICS
            ]
        best = min((name for name in scores if name != LAM), key=lambda name: lost[name])
        difference = dataclasses.asdict(compare_loss(scores[LAM], scores[best], step))
        rows.append(BeamRow(method=LAM, step=step, metric=POWER_LOSS, reference=best, **difference))
    return rows


def time_ms(predictor: BeamPredictor, history: BeamHistory) -> float:
    """Of one window, alone."""
    one, spent = history.select(torch.arange(1)), []
    for _ in range(_TIMED + 1):
        began_s = time.perf_counter()
        predictor.predict(one)
        spent.append(1e3 * (time.perf_counter() - began_s))
    return statistics.median(spent[1:])
