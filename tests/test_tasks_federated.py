"""A run with a network: its folder says who did what, it survives kills, its evaluation shows its course."""

import csv
import dataclasses
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.generate import generate
from airlam.datasets.store import ChannelDataset
from airlam.errors import SpecError
from airlam.model.build import lam_for
from airlam.pictures import pictures
from airlam.specs import RunSpec, SplitSizes, read_spec, spec_to_toml
from airlam.tasks.channel_prediction import (
    DatasetLinks,
    LamPredictor,
    NoisyViews,
    quiet,
    tokenise_views,
    with_reference,
)
from airlam.tasks.channel_prediction import prediction_loss as central_loss
from airlam.tasks.device_data import divide_links
from airlam.tasks.evaluation import evaluate
from airlam.tasks.federated import prediction_loss
from airlam.tasks.runs import finetune
from airlam.tasks.validation_rate import RATE_SNR_DB, rate_evaluation
from airlam.training.federated.report import read_rounds

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = read_spec(RunSpec, ROOT / "notebooks" / "split_finetuning_run.toml")
RUN = dataclasses.replace(
    SHIPPED,
    name="r",
    dataset="d.h5",
    training=dataclasses.replace(
        SHIPPED.training,
        num_steps=8,
        batch_size=4,
        num_samples=80,
        validation_every_steps=2,
        checkpoint_every_steps=1,
    ),
    link=dataclasses.replace(SHIPPED.link, snr_db=(10.0,), num_drops=4),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny dataset."""
    folder = tmp_path_factory.mktemp("base")
    drops = SplitSizes(train=24, validation=8, test=12)
    generate(dataclasses.replace(packaged_spec("quickstart"), drops=drops), folder / "d.h5")
    return folder


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    return finetune(RUN, base, base / "runs", quiet)


def test_the_folder_says_who_ran_and_why_not(trained: Path) -> None:
    rounds = read_rounds(trained)
    with (trained / "rounds.csv").open() as file:
        table = list(csv.DictReader(file))
    together = json.loads((trained / "summary.json").read_text())["federated"]
    assert len(rounds) == len(table) == 8
    for report, row in zip(rounds, table, strict=True):
        assert row["ran"].split() == list(report.ran) and len(report.status) == 20
        assert set(report.shares) >= set(report.ran) and sum(report.shares.values()) <= 1 + 1e-9
        assert float(row["delay_s"]) == pytest.approx(report.planned_s, rel=0.05)
    assert together["virtual_seconds"] == pytest.approx(sum(report.delay_s for report in rounds))
    assert together["uplink_bytes"] == sum(report.uplink_bytes for report in rounds)
    assert [point["num_rounds"] for point in together["curve"]] == [0, 2, 4, 6, 8]


def test_its_evaluation_shows_accuracy_against_time(trained: Path) -> None:
    result = evaluate(trained)
    assert len(result.network) == 5 and result.network[0].now_s == 0
    assert [row.now_s for row in result.network] == sorted(row.now_s for row in result.network)
    rates = [row.sum_rate_bit_per_s_per_hz for row in result.network]
    assert all(rate is not None and rate > 0 for rate in rates) and len(set(rates)) > 1
    assert "Accuracy against time" in {picture.title for picture in pictures(result)}
    quantities = {row.quantity for row in result.cost}
    assert {"virtual time of the network", "sent up by devices", "energy of devices"} <= quantities


def test_killed_at_any_time_and_started_again_it_ends_the_same(
    trained: Path, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(spec_to_toml(dataclasses.replace(RUN, dataset=str(base / "d.h5"))))
    command = [sys.executable, "-P", "-m", "airlam", "finetune", "r.toml", "-o", "again"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    folder = tmp_path / "again" / "r"
    kills = 0
    for rounds in (2, 5):
        run = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while run.poll() is None and len(read_rounds(folder)) < rounds:
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
        kills += run.wait() == -signal.SIGKILL
    assert kills, "the run was over before it could be killed"
    finetune(dataclasses.replace(RUN, dataset=str(base / "d.h5")), tmp_path, tmp_path / "again", quiet)
    assert read_rounds(folder) == read_rounds(trained)
    for name in ("weights.safetensors", "adapter/adapter_model.safetensors"):
        assert (folder / "lam" / name).read_bytes() == (trained / "lam" / name).read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_over_ray_it_ends_the_same(base: Path, tmp_path: Path) -> None:
    network = RUN.network
    assert network is not None
    two = dataclasses.replace(
        network, devices=tuple(dataclasses.replace(d, count=1) for d in network.devices)
    )
    training = dataclasses.replace(RUN.training, num_steps=2, num_samples=16)
    run = dataclasses.replace(RUN, dataset=str(base / "d.h5"), network=two, training=training)
    (tmp_path / "r.toml").write_text(spec_to_toml(run))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as an actor has
    weights = []
    for transport in ("inprocess", "ray"):
        command = [sys.executable, "-P", "-m", "airlam", "finetune", "r.toml"]
        command += ["-o", transport, "--transport", transport]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        weights.append((tmp_path / transport / "r" / "lam" / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_devices_share_no_drop_and_a_device_knows_its_speeds_only(base: Path) -> None:
    with ChannelDataset.open(base / "d.h5") as dataset:
        source = DatasetLinks(dataset, "train", RUN.prediction)
        for partition in ("iid", "speed"):
            owned = divide_links(source, ["a", "b", "c"], partition, seed=3)  # type: ignore[arg-type]
            seen = [source_of.read(np.arange(len(source_of))) for source_of in owned.values()]
            whole = source.read(np.arange(len(source)))
            assert sum(len(part) for part in seen) == len(source)
            matches = (torch.cat(seen)[:, None, 0, 0, 0, 0] == whole[None, :, 0, 0, 0, 0]).sum(0)  # [links]
            assert bool((matches == 1).all())
        means = [
            part.speeds_m_per_s(np.arange(len(part))).mean()
            for part in divide_links(source, ["a", "b", "c"], "speed", seed=3).values()
        ]
        assert means == sorted(means) and means[0] < 0.8 * means[2]
        with pytest.raises(SpecError, match="24 training drops for 25 devices"):
            divide_links(source, [f"d{k}" for k in range(25)], "iid", seed=3)


def test_the_rate_is_that_of_users_served_on_what_the_lam_predicts(base: Path) -> None:
    """RZF by its textbook formula, written out for each group, step and subcarrier."""
    with ChannelDataset.open(base / "d.h5") as dataset:
        source = DatasetLinks(dataset, "validation", RUN.prediction)
        lam = lam_for(RUN.model, source.setting, seed=1).eval()
        views = NoisyViews(source=source, spec=RUN.prediction, num_samples=5, seed=3, augment=False)
        tokens = tokenise_views(lam.tokenizer, views, base / "rate", "", quiet).tokens
        seen = views.batch(torch.arange(5))
    predicted = LamPredictor.of(lam).predict(seen.history, seen.noise_variance)
    scale = seen.future.abs().square().mean((1, 2, 3, 4)).rsqrt()
    noise_variance, rates = 10 ** (-RATE_SNR_DB / 10), []
    for users in (torch.tensor([0, 1]), torch.tensor([2, 3])):
        true, known = (scale[users, None, None, None] * x[users, :, 0] for x in (seen.future, predicted))
        for step, subcarrier in itertools.product(range(true.shape[1]), range(true.shape[3])):
            h, e = true[:, step, :, subcarrier], known[:, step, :, subcarrier]  # [users, antennas]
            w = e.mH @ torch.linalg.inv(e @ e.mH + 2 * noise_variance * torch.eye(2))
            power = (h @ (w / torch.linalg.vector_norm(w, dim=0) * 0.5**0.5)).abs().square()
            noise = power.sum(1) - power.diagonal() + noise_variance
            rates.append(float(torch.log2(1 + power.diagonal() / noise).sum()))
    assert rate_evaluation(views, tokens, 2)(lam) == pytest.approx(np.mean(rates), rel=1e-3)


def test_the_loss_on_devices_is_that_of_one_machine(base: Path) -> None:
    with ChannelDataset.open(base / "d.h5") as dataset:
        source = DatasetLinks(dataset, "train", RUN.prediction)
        lam = lam_for(RUN.model, source.setting, 1).eval()
        views = NoisyViews(source=source, spec=RUN.prediction, num_samples=8, seed=1)
        made = tokenise_views(lam.tokenizer, views, base / "tokens", "", quiet)
        tokens = with_reference(lam, made).tokens
    found = prediction_loss(lam, lam(tokens), tokens.context)
    torch.testing.assert_close(found, central_loss(lam, tokens))


def test_ray_is_for_networks(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"is for runs with a \[network\]"):
        finetune(dataclasses.replace(RUN, network=None, federated=None), base, tmp_path, transport="ray")
    with pytest.raises(SpecError, match="expected inprocess, ray or"):
        finetune(RUN, base, tmp_path, transport="pigeon")
