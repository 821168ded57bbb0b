"""Runs of beam selection: from drives to a folder, and from the folder to the same choices."""

import dataclasses
import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from airlam import cli
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.generate import generate
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError, SpecError
from airlam.llvm import good_llvm
from airlam.model.lam_beams import LamBeams
from airlam.radio.beam_regression import PowerStack
from airlam.radio.beam_selection import BeamHistory, BeamWindows, score_beams
from airlam.results import EvaluationResult
from airlam.serving.monitoring import Metrics
from airlam.serving.server import running
from airlam.specs import (
    BeamSelectionSpec,
    BeamSensorSpec,
    LinkSpec,
    ModelSpec,
    PredictionSpec,
    RunSpec,
    ServingSpec,
    SplitSizes,
    TrainingSpec,
    read_spec,
    spec_to_toml,
)
from airlam.tasks import beam_selection_run
from airlam.tasks.beam_selection_run import beam_rows, training_windows, windows_of
from airlam.tasks.evaluation import evaluate
from airlam.tasks.export import export_run
from airlam.tasks.replaying import replay_run
from airlam.tasks.runs import finetune
from airlam.tasks.serving import served_beams, services_of
from airlam.tasks.task import Run
from airlam.tokens.beam_history import BeamScales

ROOT = Path(__file__).resolve().parents[1]
RUN = RunSpec(
    name="street",
    dataset="street.h5",
    task="beam_selection",
    beam_selection=BeamSelectionSpec(num_past=3, num_ahead=2),
    model=ModelSpec(num_layers=1, lora_rank=2),
    training=TrainingSpec(num_steps=6, batch_size=8, validation_every_steps=3, checkpoint_every_steps=3),
)
needs_rays = pytest.mark.skipif(good_llvm() is None, reason="ray tracing needs LLVM 17 or newer")


def drawn(count: int, seed: int = 0) -> BeamWindows:
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=random) + 0.01

    return BeamWindows(
        history=BeamHistory(power=numbers(count, 9, 6), position_m=50 * numbers(count, 9, 3)),
        future_power=numbers(count, 2, 6),
        sequence=torch.arange(count) // 4,
    )


def tuned(model: ModelSpec = RUN.model) -> LamBeams:
    windows = drawn(16)
    found = LamBeams.untuned(PowerStack.fitted(windows), BeamScales.of(windows), model, seed=3)
    for parameter in found.lam.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    return found


@pytest.mark.parametrize("model", [RUN.model, ModelSpec(backbone="airlam", num_layers=1)])
def test_what_is_saved_chooses_alike(tmp_path: Path, model: ModelSpec) -> None:
    found, asked = tuned(model), drawn(5, seed=1).history
    found.save(tmp_path / "lam")
    loaded = LamBeams.load(tmp_path / "lam")
    assert torch.equal(loaded.predict(asked), found.predict(asked))
    assert torch.equal(loaded.stack.best.predict(asked), found.stack.best.predict(asked))
    assert (loaded.spec, loaded.scales) == (found.spec, found.scales)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("power", torch.zeros(16, 8, 6, dtype=torch.float64)),
        ("power", torch.zeros(16, 9, 6)),
        ("weights", torch.zeros(3, dtype=torch.float64)),
        ("kernels", torch.zeros(4, 4, dtype=torch.float64)),
        ("best", torch.tensor(9)),
        ("0.weights", torch.full((16, 12), float("nan"), dtype=torch.float64)),
        ("1.profile", None),
        ("0.constant", None),
        ("more", torch.zeros(1)),
    ],
)
def test_regressions_of_another_shape_are_refused(
    tmp_path: Path, name: str, value: torch.Tensor | None
) -> None:
    tuned().save(tmp_path / "lam")
    path = tmp_path / "lam" / "experts.safetensors"
    tensors = load_file(path)
    tensors.pop(name, None)
    save_file(tensors if value is None else {**tensors, name: value}, path)
    with pytest.raises(DataError, match=r"experts\.safetensors") as refused:
        LamBeams.load(tmp_path / "lam")
    assert "\n" not in str(refused.value)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    tuned().save(tmp_path / "lam")
    path = tmp_path / "lam" / "experts.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="whole safetensors file"):
        LamBeams.load(tmp_path / "lam")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction": PredictionSpec(num_horizon=2)}, r"\[prediction\] is of task"),
        ({"link": LinkSpec(num_users=2)}, r"\[link\] is of task"),
        ({"model": ModelSpec(num_paths=3)}, "num_paths"),
        ({"task": "beamforming", "model": ModelSpec()}, r"\[beam_selection\] is of task"),
    ],
)
def test_tables_of_other_tasks_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        dataclasses.replace(RUN, **change)  # type: ignore[arg-type]


def test_datasets_without_sweeps_are_one_line(tmp_path: Path) -> None:
    small = dataclasses.replace(packaged_spec("quickstart"), drops=SplitSizes(train=2))
    generate(small, tmp_path / "street.h5")
    with pytest.raises(DataError, match=r"quickstart has no beam sweeps .* \[sensors\.beams\]") as refused:
        finetune(RUN, tmp_path, tmp_path)
    assert "\n" not in str(refused.value)


def test_what_is_for_other_tasks_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(spec_to_toml(RUN))
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(DataError, match="is a run of beam_selection; give one of channel_prediction"):
        export_run(tmp_path, tmp_path / "device", "onnx")


def test_windows_of_impossible_lengths_are_refused() -> None:
    with pytest.raises(SpecError, match="num_past and num_ahead are 1 and 3"):
        BeamSelectionSpec(num_past=1)


def test_passes_are_taken_whole_while_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = drawn(40)
    monkeypatch.setattr(beam_selection_run, "windows_of", lambda *_: every)
    for most, expected in ((8, 8), (14, 12), (1, 8), (1000, 40)):
        spec = dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, num_samples=most))
        run = Run(spec=spec, dataset=None, folder=tmp_path, on_progress=lambda *_: None)  # type: ignore[arg-type]
        found = training_windows(run)
        assert len(found) == expected
        assert set(found.sequence.unique(return_counts=True)[1].tolist()) == {4}  # type: ignore[no-untyped-call]


def test_rows_have_the_difference_from_the_best_classical_method() -> None:
    windows = drawn(16)
    truth = windows.relative_power
    scores = {
        "persistence": score_beams(-truth, windows),
        "kalman": score_beams(truth.flip(-1), windows),
        "lam": score_beams(truth, windows),
    }
    rows = beam_rows(scores)
    value = {(row.method, row.step, row.metric): row.value for row in rows if row.reference is None}
    for row in (row for row in rows if row.reference is not None):
        assert row.reference == "kalman" and row.low <= row.value <= row.high < 0
        lost = value["lam", row.step, row.metric], value["kalman", row.step, row.metric]
        assert lost[0] == 0 and row.value == pytest.approx(lost[0] - lost[1])
    assert value["lam", 1, "top1"] == 1


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped street, small: fourteen drives of eight drops, eight antennas, eight beams."""
    whole = packaged_spec("street_beams")
    assert whole.site is not None
    small = dataclasses.replace(
        whole,
        shard_drops=8,
        base_station=dataclasses.replace(whole.base_station, num_cols=4),
        site=dataclasses.replace(whole.site, num_cars=1, num_rays=2000, max_depth=1),
        sensors=dataclasses.replace(
            whole.sensors, beams=BeamSensorSpec(rate_hz=5.0, num_beams=8, num_past=1)
        ),
        drops=SplitSizes(train=64, validation=16, test=32),
    )
    folder = tmp_path_factory.mktemp("street")
    generate(small, folder / "street.h5")
    return folder


@needs_rays
def test_a_run_is_tuned_evaluated_and_served(street: Path, tmp_path: Path) -> None:
    folder = finetune(RUN, street, tmp_path)
    result = evaluate(folder, link=False)
    assert EvaluationResult.read(folder / "metrics.json").beams == result.beams
    assert {row.step for row in result.beams} == {1, 2} and len(result.methods) == 9
    assert "sweeps ahead" in (folder / "report.html").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["windows"] == 8 * (8 - 4) and summary["tuned_is_better"] in (True, False)
    (served,) = served_beams([folder]).values()
    with ChannelDataset.open(street / "street.h5") as dataset:
        test = windows_of(dataset, "test", RUN.sweeps)
    lost = -10 * score_beams(served.predict(test.history), test).kept.mean(0).log10()
    own = [
        row.value
        for row in result.beams
        if (row.method, row.metric, row.reference) == ("lam", "power_loss_db", None)
    ]
    torch.testing.assert_close(lost, torch.tensor(own, dtype=torch.float64))


@needs_rays
def test_a_server_is_asked_by_the_test_drives(street: Path, tmp_path: Path) -> None:
    folder, metrics = finetune(RUN, street, tmp_path), Metrics()
    with running(services_of([folder], metrics), ServingSpec(port=0), metrics) as url:
        report = replay_run(folder, url, rate_per_s=20.0, duration_s=0.5)
    assert report.num_requests == 10 and not report.failures


@needs_rays
def test_stopped_and_gone_on_is_never_stopped(street: Path, tmp_path: Path) -> None:
    whole = finetune(RUN, street, tmp_path / "whole")

    def stop(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "tuning on beams" and done == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        finetune(RUN, street, tmp_path / "cut", stop)
    resumed = finetune(RUN, street, tmp_path / "cut")
    for name in ("weights.safetensors", "experts.safetensors", "adapter/adapter_model.safetensors"):
        first, second = (load_file(folder / "lam" / name) for folder in (whole, resumed))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@needs_rays
def test_drives_that_are_too_short_are_one_line(street: Path, tmp_path: Path) -> None:
    spec = dataclasses.replace(RUN, beam_selection=BeamSelectionSpec(num_past=8, num_ahead=3))
    with pytest.raises(DataError, match="0 training passes of 11 sweeps or more") as refused:
        finetune(spec, street, tmp_path)
    assert "\n" not in str(refused.value)


@needs_rays
def test_the_shipped_run_reads_the_shipped_street(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = read_spec(RunSpec, ROOT / "notebooks" / "beam_selection_run.toml")
    assert shipped.sweeps.num_past + shipped.sweeps.num_ahead <= packaged_spec("street_beams").shard_drops
    small = dataclasses.replace(
        shipped, dataset=str(street / "street.h5"), beam_selection=RUN.beam_selection, training=RUN.training
    )
    (tmp_path / "run.toml").write_text(spec_to_toml(small))
    monkeypatch.chdir(tmp_path)
    for arguments in (["finetune", "run.toml"], ["evaluate", f"runs/{shipped.name}"]):
        monkeypatch.setattr(sys, "argv", ["airlam", *arguments])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        assert not leaving.value.code
