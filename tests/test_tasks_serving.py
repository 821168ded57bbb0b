"""Runs are served, their users replayed, and the server ends when it is told to."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.generate import generate
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError, SpecError
from airlam.model.predictive_precoder import PredictivePrecoder
from airlam.serving.client import Client
from airlam.serving.downlinks import Downlinks
from airlam.serving.monitoring import Metrics
from airlam.serving.server import running
from airlam.serving.services import PrecodingServices
from airlam.specs import (
    BeamformingSpec,
    LinkSpec,
    ModelSpec,
    PrecoderSpec,
    PredictionSpec,
    RunSpec,
    ServingSpec,
    SplitSizes,
    TrainingSpec,
    spec_to_toml,
)
from airlam.tasks.beamforming_evaluation import measured_downlinks
from airlam.tasks.beamforming_methods import learned_precoder
from airlam.tasks.beamforming_run import run_precoders
from airlam.tasks.channel_prediction import DatasetLinks, quiet
from airlam.tasks.comparison import observe
from airlam.tasks.predicted_channels import LAM_ERROR, foresee
from airlam.tasks.predicted_precoders import LearnedPrecoder, PredictionError
from airlam.tasks.replaying import replay_run
from airlam.tasks.run_setting import SETTING_FILE, read_setting
from airlam.tasks.runs import finetune, read_run
from airlam.tasks.serving import served_lams, services_of
from airlam.tasks.task import Run

RUN = RunSpec(
    name="r",
    dataset="d.h5",
    prediction=PredictionSpec(num_history=8, num_horizon=2),
    model=ModelSpec(backbone="small", num_layers=1, num_paths=4),
    training=TrainingSpec(num_steps=2, batch_size=4, num_samples=8, validation_every_steps=2),
)
BEAMS = RunSpec(
    name="b",
    dataset="d.h5",
    task="beamforming",
    beamforming=BeamformingSpec(min_users=2, max_users=2, imitation_steps=0, csi="pilots", reused_share=0.5),
    precoder=PrecoderSpec(width=8, num_edge_channels=2, num_layers=1, num_stages=2),
    training=TrainingSpec(num_steps=2, batch_size=4, num_samples=8, validation_every_steps=2),
    link=LinkSpec(num_users=2, snr_db=(10.0,)),
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


@pytest.fixture(scope="module")
def beams(run: Path) -> Path:
    """A run of beamforming beside ``run``."""
    return finetune(BEAMS, run.parents[1], run.parent, quiet)


def test_runs_of_both_tasks_are_served_together(run: Path, beams: Path) -> None:
    services = services_of([run, beams], Metrics())
    assert isinstance(services, PrecodingServices) and dict(services.csi) == {"b": "pilots"}
    assert services.graph.service_of("r", "head.channel_prediction") in services.graph.order
    assert services.graph.flows["b"] == {"precoder": "precoder@b"}
    with running(services, ServingSpec(port=0), Metrics()) as url:
        for folder in (run, beams):
            report = replay_run(folder, url, rate_per_s=10.0, duration_s=0.5)
            assert report.num_requests == 5 and not report.failures
    alone = services_of([beams], Metrics())
    assert not alone.settings and len(alone.graph.services) == 1


def test_what_is_precoded_is_what_was_evaluated(run: Path, beams: Path) -> None:
    with ChannelDataset.open(read_run(run).dataset) as dataset:
        made = Run(spec=read_run(beams), dataset=dataset, folder=beams, on_progress=quiet)
        _, known = measured_downlinks(made).known(slice(0, 2))
    expected = learned_precoder(run_precoders([beams])["b"])(known, 0.1)
    asked = Downlinks(
        precoder="b",
        h=known.h,
        noise_variance=torch.full((2,), 0.1),
        error_covariance=known.error_covariance,
    )
    services = services_of([beams], Metrics())
    assert isinstance(services, PrecodingServices)
    torch.testing.assert_close(services.precode([asked])[0], expected, rtol=1e-5, atol=1e-6)


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


def test_a_pair_tuned_together_is_served_as_it_was_evaluated(run: Path) -> None:
    own = BeamformingSpec(min_users=2, max_users=2, csi="predicted", predictor=str(run))
    joint = finetune(
        dataclasses.replace(BEAMS, name="joint", beamforming=own), run.parents[1], run.parent, quiet
    )
    services = services_of([joint, run], Metrics())
    assert isinstance(services, PrecodingServices) and dict(services.csi) == {"joint": "predicted"}
    flows = services.graph.flows
    assert flows["joint"]["block.0"] == flows["r"]["block.0"]
    with ChannelDataset.open(read_run(run).dataset) as dataset:
        source = DatasetLinks(dataset, "test", RUN.prediction)
        seen = observe(source.read(np.arange(2)), source, 20.0, 0)
        tuned = PredictivePrecoder.load(joint / "lam", source.setting, 0)
        foreseen = foresee(source, [], tuned.lam, {"tuned": tuned}, 20.0, 2, quiet)
    error = PredictionError(
        ports=foreseen.errors[LAM_ERROR][None],
        levels=tuned.levels.detach(),
        num_polarizations=source.setting.base_station.num_polarizations,
    )
    believed = rearrange(foreseen.futures["tuned"], "k t m f -> 1 t f k m")
    expected = LearnedPrecoder(graph=tuned.precoder, error=error)(believed, 0.1, slice(0, 1))[0]
    power = seen.future[:, :, 0].abs().square().mean(dim=(1, 2, 3))  # [users]
    history = seen.history * power.rsqrt().view(-1, 1, 1, 1, 1)
    with running(services, ServingSpec(port=0), Metrics()) as url, Client(url) as client:
        found = client.predict_and_precode("joint", "joint", history, seen.noise_variance / power, 0.1)
        report = replay_run(joint, url, rate_per_s=10.0, duration_s=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert report.num_requests == 5 and not report.failures


def test_two_runs_of_one_name_are_refused(run: Path) -> None:
    with pytest.raises(SpecError, match="two runs are called 'r'"):
        served_lams([run, run])
