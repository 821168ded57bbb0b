"""Beam selection from sensors of a ray-traced street: which readings a window has, and who may see them."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from airlam.bench.beamforming import raytraced
from airlam.datasets.catalog import packaged_spec
from airlam.errors import DataError
from airlam.llvm import good_llvm
from airlam.model.beam_selection import BeamHead
from airlam.model.sensor_beams import SensorBeamHead
from airlam.radio.beam_regression import KERNELS, PowerStack
from airlam.specs import ModelSpec, SensorsSpec, TrainingSpec
from airlam.tasks.beam_sensors import (
    MEAN_KERNEL,
    POSITION_KERNELS,
    SensorWindows,
    kernels_of,
    sensor_windows,
    tune_sensor_beams,
)
from airlam.tokens.modality import ModalityTokens

NUM_BEAMS, NUM_DROPS, NUM_DRIVES, NUM_USERS = 8, 6, 10, 2
BASE = packaged_spec("street_canyon")
SPEC = dataclasses.replace(
    BASE,
    num_users=NUM_USERS,
    sensors=SensorsSpec(
        position=BASE.sensors.position, beams=BASE.sensors.beams, range_scan=BASE.sensors.range_scan
    ),
)


class Street:
    """Cars at constant speeds past a base station; the range scan reads where they are. For ``field``."""

    def __init__(self, *, missing: bool = False, spec: object = SPEC) -> None:
        self.spec = spec
        rng = np.random.default_rng(0)
        count = NUM_DRIVES * NUM_DROPS
        drop = np.arange(count)
        pace_m = rng.uniform(1.0, 3.0, (NUM_DRIVES, NUM_USERS))[drop // NUM_DROPS]  # [drops, users]
        start_m = rng.uniform(-10.0, -5.0, (NUM_DRIVES, NUM_USERS))[drop // NUM_DROPS]
        along_m = start_m + pace_m * (drop % NUM_DROPS)[:, None]
        beam = (np.arctan2(along_m, 10.0) / math.pi + 0.5) * (NUM_BEAMS - 1)
        power = 0.05 + np.exp(-((np.arange(NUM_BEAMS) - beam[..., None]) ** 2) / 2)  # [drops, users, beams]
        position_m = np.stack([along_m, np.full_like(along_m, 10.0), np.zeros_like(along_m)], axis=-1)
        present = np.ones((count, NUM_USERS), dtype=bool)
        self._fields = {
            "beam_power": power[:, :, None].repeat(3, axis=2).astype(np.float32),
            "gnss_position_m": position_m.astype(np.float32),
            "range_scan_m": (50 + 4 * along_m)[..., None].repeat(16, axis=2).astype(np.float32),
            "trajectory": (drop // NUM_DROPS).astype(np.int32),
        }
        for stem in ("beam", "gnss", "range"):
            self._fields |= {
                f"{stem}_present": present.copy(),
                f"{stem}_age_s": np.zeros_like(along_m, np.float32),
            }
        self._fields["beam_present"][3, 1] = not missing

    def num_drops(self, _: str) -> int:
        return NUM_DRIVES * NUM_DROPS

    def field(self, _: str, name: str) -> torch.Tensor:
        return torch.from_numpy(self._fields[name])


def windows() -> SensorWindows:
    return sensor_windows(Street(), "train", num_past=3, num_ahead=2)  # type: ignore[arg-type]


def test_a_window_has_its_own_users_readings_at_its_last_sweep() -> None:
    found = windows()
    assert len(found) == NUM_USERS * NUM_DRIVES * (NUM_DROPS - 4)
    read_m = 100 * (1 - found.tokens["range_scan"].features[:, 0, 0])  # the scan, back from its nearness
    torch.testing.assert_close(
        (read_m - 50) / 4, found.windows.history.position_m[:, -1, 0].float(), atol=1e-3, rtol=0
    )


def test_lost_sweeps_and_short_drives_are_refused() -> None:
    with pytest.raises(DataError, match="lacks sweeps"):
        sensor_windows(Street(missing=True), "train", num_past=3, num_ahead=2)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no drive"):
        sensor_windows(Street(), "train", num_past=6, num_ahead=2)  # type: ignore[arg-type]


def test_regressions_use_no_sensor_that_is_not_there() -> None:
    assert kernels_of(("beams", "position", "camera")) == KERNELS
    assert all(kernel.place == 0 for kernel in kernels_of(("beams", "csi")))
    assert kernels_of(("position",)) == POSITION_KERNELS
    assert all(kernel.pattern == kernel.line == 0 for kernel in POSITION_KERNELS)
    assert kernels_of(("camera",)) == (MEAN_KERNEL,)


def test_without_sweeps_and_positions_the_mean_is_expected() -> None:
    found = windows().windows
    expected = PowerStack.fitted(found, (MEAN_KERNEL,)).predict(found.history)
    mean = found.relative_power.mean(dim=0)
    torch.testing.assert_close(expected, mean.expand_as(expected), atol=1e-9, rtol=0)


def test_a_fresh_head_is_that_of_beam_selection() -> None:
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    head = SensorBeamHead(width=6, num_ahead=2, num_beams=NUM_BEAMS, weights=weights)
    plain = BeamHead(width=6, num_ahead=2, weights=weights)
    summary, expected = torch.randn(5, 6), torch.rand(5, 2, 2, NUM_BEAMS)
    assert torch.equal(head(summary, expected), plain(summary, expected))


MODEL = ModelSpec(backbone="small", num_layers=1)
TRAINING = TrainingSpec(
    num_steps=40, learning_rate=3e-3, batch_size=16, validation_every_steps=10, checkpoint_every_steps=40
)


def test_a_lam_sees_its_own_sensors_only(tmp_path: Path) -> None:
    """One of range scans learns from them, and nothing else that is changed changes its scores."""
    training = windows()
    lam = tune_sensor_beams(training, ("range_scan",), MODEL, TRAINING, tmp_path, lambda *_: None)
    scores = lam.predict(training)
    assert scores.shape == training.windows.future_power.shape
    mean = training.windows.relative_power.mean(dim=0).expand_as(scores)
    kept = [
        training.windows.relative_power.gather(2, s.argmax(2, keepdim=True)).mean() for s in (scores, mean)
    ]
    assert kept[0] > kept[1]
    history = training.windows.history
    other = dataclasses.replace(history, power=history.power.flip(-1), position_m=history.position_m + 7)
    changed = dataclasses.replace(training, windows=dataclasses.replace(training.windows, history=other))
    assert torch.equal(lam.predict(changed), scores)
    blind = ModalityTokens(
        features=torch.zeros_like(training.tokens["range_scan"].features),
        mask=torch.zeros_like(training.tokens["range_scan"].mask),
    )
    assert lam.predict(dataclasses.replace(training, tokens={"range_scan": blind})).isfinite().all()


@pytest.mark.skipif(good_llvm() is None, reason="ray tracing on the CPU needs LLVM 17 or newer")
def test_the_benchmark_draws_a_street_and_scores_all() -> None:
    result = raytraced.run(True, lambda *_: None)
    figures = result["figures"]
    assert all(math.isfinite(value) for value in figures.values())
    for who in (
        "",
        "persistence.",
        "straight_line.",
        "power_stack.",
        *(f"lam_{s}." for s in raytraced.SENSORS),
    ):
        for metric in ("power_loss_db", "within_one", "top1", "top3"):
            assert f"raytraced_h1.{who}{metric}" in figures
    assert (
        figures["raytraced_h1.lam_minus_best_classical_db.low"]
        <= (figures["raytraced_h1.lam_minus_best_classical_db"])
    )
    assert result["settings"]["num_windows"] == {"train": 12, "test": 8}
    assert {row["kind"] for row in result["rows"]} == {"lam", "classical"}
