"""Beam selection on a ray-traced street: a LAM of all sensors, of each alone, and rivals without training.

Sixty-four beams at 28 GHz, one user a drive among four cars, readings every 0.2 s; from eight sweeps to the
best beam one to three sweeps later. Training and test drives are drawn apart, so no drive is on both sides.
Intervals are over test drives. "Best classical" is the best on the test windows themselves.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airlam.bench.beamforming.beam_rows import LAM, difference_figures, figures_of, rows_of
from airlam.bench.kept import kept_dataset
from airlam.bench.trained import cache_folder
from airlam.datasets.catalog import packaged_spec
from airlam.radio.beam_regression import PowerStack
from airlam.radio.beam_selection import BeamScores, score_beams
from airlam.specs import (
    ArraySpec,
    BeamSensorSpec,
    DatasetSpec,
    GridSpec,
    MobilitySpec,
    ModelSpec,
    PositionSensorSpec,
    SplitSizes,
    TrainingSpec,
    spec_to_dict,
)
from airlam.tasks.beam_selection import classical_predictors
from airlam.tasks.beam_sensors import SensorWindows, sensor_windows, tune_sensor_beams
from airlam.tasks.channel_prediction import Progress

SENSORS = ("beams", "position", "inertial", "camera", "range_scan", "csi")
SWEEPS_AND_POSITION = ("beams", "position")
_HISTORY = "lam_history"  # the LAM of these two; of all sensors it is LAM, of one lam_<sensor>


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of a run; drives of ``drops_per_drive`` drops."""

    name: str
    drops_per_drive: int
    training_drives: int
    test_drives: int
    num_past: int
    num_ahead: int
    model: ModelSpec
    training: TrainingSpec


_FULL_TRAINING = TrainingSpec(
    num_steps=240, learning_rate=1e-3, validation_every_steps=40, checkpoint_every_steps=240
)
FULL = Scale(
    name="full",
    drops_per_drive=26,
    training_drives=30,
    test_drives=16,
    num_past=8,
    num_ahead=3,
    model=ModelSpec(backbone="airlam", num_layers=2),
    training=_FULL_TRAINING,
)
QUICK = Scale(
    name="quick",
    drops_per_drive=6,
    training_drives=3,
    test_drives=2,
    num_past=2,
    num_ahead=1,
    model=ModelSpec(backbone="airlam", num_layers=1),
    training=dataclasses.replace(_FULL_TRAINING, num_steps=2, batch_size=8, validation_every_steps=2),
)


def street(scale: Scale) -> DatasetSpec:
    """The packaged street canyon with a row of 32 antennas at 28 GHz, and all sensors in step."""
    base = packaged_spec("street_canyon")
    site, sensors = base.site, base.sensors
    assert site is not None
    period_hz = 1 / site.position_interval_s
    return dataclasses.replace(
        base,
        name=f"street_beams_{scale.name}",
        num_users=1,
        shard_drops=scale.drops_per_drive,
        channel=dataclasses.replace(base.channel, carrier_frequency_hz=28e9),
        site=dataclasses.replace(site, num_cars=4),
        base_station=ArraySpec(num_rows=1, num_cols=32, antenna_pattern="38.901"),
        user=ArraySpec(),
        mobility=MobilitySpec(min_speed_m_per_s=5.0, max_speed_m_per_s=15.0),
        grid=GridSpec(
            subcarrier_spacing_hz=1440e3, num_uplink_subcarriers=8, num_slots=2, slot_duration_s=0.125e-3
        ),
        sensors=dataclasses.replace(
            sensors,
            position=PositionSensorSpec(rate_hz=period_hz),
            beams=BeamSensorSpec(rate_hz=period_hz, num_beams=64, num_past=1),
        ),
        drops=SplitSizes(
            train=scale.training_drives * scale.drops_per_drive,
            validation=0,
            test=scale.test_drives * scale.drops_per_drive,
        ),
    )


def run(quick: bool, on_progress: Progress) -> dict[str, Any]:
    """Draws the street where the cache has it not, tunes, and scores: settings, figures and rows.

    Figures h sweeps ahead: ``raytraced_h<h>.power_loss_db``, ``.within_one``, ``.top1`` and ``.top3`` of the
    LAM of all sensors, the same with a method's name before the metric for all others;
    ``.best_classical.power_loss_db``; ``.lam_minus_best_classical_db`` and ``.lam_minus_lam_history_db``
    (sweeps and positions alone), each with ``.low`` and ``.high``. AirlamError where no ray can be traced.
    """
    scale = QUICK if quick else FULL
    spec = street(scale)
    path = cache_folder() / "datasets" / f"{spec.name}.h5"
    with kept_dataset(spec, path, on_progress) as dataset:
        training, test = (
            sensor_windows(dataset, split, num_past=scale.num_past, num_ahead=scale.num_ahead)
            for split in ("train", "test")
        )
    scores = {**classical_scores(training, test), **learned_scores(training, test, scale, on_progress)}
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    for step in range(1, scale.num_ahead + 1):
        setting = f"raytraced_h{step}"
        found = rows_of(setting, scores, step)
        rows += found
        figures |= figures_of(setting, found, scores, step)
        figures |= difference_figures(f"{setting}.lam_minus_{_HISTORY}_db", scores, _HISTORY, step)
    settings = {
        "dataset": spec_to_dict(spec),
        "num_past": scale.num_past,
        "num_windows": {"train": len(training), "test": len(test)},
        "model": spec_to_dict(scale.model),
        "training": spec_to_dict(scale.training),
    }
    return {"settings": settings, "figures": figures, "rows": rows}


def classical_scores(training: SensorWindows, test: SensorWindows) -> dict[str, BeamScores]:
    """Of the methods that use past sweeps and positions, fitted to the training drives."""
    stack = PowerStack.fitted(training.windows)
    predictors = classical_predictors(training.windows, stack)
    return {each.name: score_beams(each.predict(test.windows.history), test.windows) for each in predictors}


def learned_scores(
    training: SensorWindows, test: SensorWindows, scale: Scale, on_progress: Progress
) -> dict[str, BeamScores]:
    """Of LAMs of all sensors, of sweeps and positions, and of each sensor alone."""
    chosen = {LAM: SENSORS, _HISTORY: SWEEPS_AND_POSITION}
    chosen |= {f"{LAM}_{name}": (name,) for name in SENSORS}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, sensors) in enumerate(chosen.items()):
            on_progress("tuning on sensors", number, len(chosen), name)
            lam = tune_sensor_beams(
                training, sensors, scale.model, scale.training, Path(folder) / name, lambda *_: None
            )
            found[name] = score_beams(lam.predict(test), test.windows)
    on_progress("tuning on sensors", len(chosen), len(chosen), "")
    return found
