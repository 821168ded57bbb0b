"""A run's device side is written by one command, which says how it compares to torch."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from airlam import cli
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.generate import generate
from airlam.errors import SpecError
from airlam.specs import ModelSpec, PredictionSpec, RunSpec, SplitSizes, TrainingSpec
from airlam.tasks.channel_prediction import quiet
from airlam.tasks.export import export_run
from airlam.tasks.runs import finetune

RUN = RunSpec(
    name="r",
    dataset="d.h5",
    prediction=PredictionSpec(num_history=8, num_horizon=2),
    model=ModelSpec(backbone="small", tokenizer="patch", num_layers=2),
    training=TrainingSpec(num_steps=2, batch_size=4, num_samples=8, validation_every_steps=2),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    drops = SplitSizes(train=8, validation=4, test=4)
    generate(dataclasses.replace(packaged_spec("quickstart"), drops=drops), folder / "d.h5")
    return finetune(RUN, folder, folder / "runs", quiet)


def test_the_command_writes_a_folder_and_a_report(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr("airlam.export.report.NUM_CALLS", 2)
    folder = tmp_path / "device"
    arguments = ["airlam", "export", str(run), "--to", "onnx", "-o", str(folder), "--on-device", "block.0"]
    monkeypatch.setattr(sys, "argv", arguments)
    for status in (0, 2):  # the second time the folder is there
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == status
    said = capsys.readouterr()
    assert "head_step" in said.out and "weights.safetensors" in said.out and "exists" in said.err
    report = json.loads((folder / "report.json").read_text())
    assert report["max_error"] < 1e-5 and report["left_to_torch"] == ""
    assert report["modules"] == ["tokenizer.csi", "embedding", "block.0", "head.channel_prediction"]
    assert {each["batch_size"] for each in report["signatures"]} == {1, 4}


def test_formats_and_sizes_that_are_none_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected litert or onnx"):
        export_run(run, tmp_path / "x", "keras")
    with pytest.raises(SpecError, match="at least 1"):
        export_run(run, tmp_path / "x", "onnx", batch_size=0)
