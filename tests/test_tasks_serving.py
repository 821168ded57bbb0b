"""Runs are served, their users replayed, and the server ends when it is told to."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.generate import generate
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError, SpecError
from airlam.specs import ModelSpec, PredictionSpec, RunSpec, SplitSizes, TrainingSpec, spec_to_toml
from airlam.tasks.channel_prediction import DatasetLinks, quiet
from airlam.tasks.run_setting import SETTING_FILE, read_setting
from airlam.tasks.runs import finetune, read_run
from airlam.tasks.serving import served_lams

RUN = RunSpec(
    name="r",
    dataset="d.h5",
    prediction=PredictionSpec(num_history=8, num_horizon=2),
    model=ModelSpec(backbone="small", num_layers=1, num_paths=4),
    training=TrainingSpec(num_steps=2, batch_size=4, num_samples=8, validation_every_steps=2),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    drops = SplitSizes(train=8, validation=4, test=4)
    generate(dataclasses.replace(packaged_spec("quickstart"), drops=drops), folder / "d.h5")
    return finetune(RUN, folder, folder / "runs", quiet)


def test_a_served_run_answers_its_own_users_and_ends_when_told(run: Path) -> None:
    airlam = [sys.executable, "-P", "-m", "airlam"]
    server = subprocess.Popen(
        [*airlam, "serve", str(run), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), server.communicate()
        options = ["--url", url, "--rate", "10", "--seconds", "1"]
        done = subprocess.run([*airlam, "client", str(run), *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("10 requests in") and "none failed" in done.stdout
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate()
    assert server.returncode == 0


def test_a_run_folder_is_served_without_its_dataset(run: Path, tmp_path: Path) -> None:
    spec = read_run(run)
    with ChannelDataset.open(spec.dataset) as dataset:
        assert read_setting(run, spec) == DatasetLinks(dataset, "test", spec.prediction).setting
    dataset_path = Path(spec.dataset)
    away = dataset_path.rename(tmp_path / "away.h5")
    try:
        assert served_lams([run])["r"].tokenizer.setting == read_setting(run, spec)
        (run / SETTING_FILE).rename(tmp_path / SETTING_FILE)
        with pytest.raises(DataError, match=r"holds no setting\.toml.*bring the dataset back"):
            served_lams([run])
    finally:
        away.rename(dataset_path)
    setting = served_lams([run])["r"].tokenizer.setting  # as a run of an older version, from its dataset
    (tmp_path / SETTING_FILE).rename(run / SETTING_FILE)
    assert setting == read_setting(run, spec)


def test_a_run_of_another_task_is_refused(run: Path, tmp_path: Path) -> None:
    other = RunSpec(name="b", dataset="d.h5", task="beamforming")
    (tmp_path / "run.toml").write_text(spec_to_toml(other))
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(SpecError, match="task 'beamforming'"):
        served_lams([tmp_path])


def test_two_runs_of_one_name_are_refused(run: Path) -> None:
    with pytest.raises(SpecError, match="two runs are called 'r'"):
        served_lams([run, run])
