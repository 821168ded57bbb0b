"""A run ends in the same place however often it was killed, and its evaluation says what was measured."""

import dataclasses
import json
import os
import shutil
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
from airlam.errors import DataError, SpecError
from airlam.results import EvaluationResult
from airlam.specs import (
    DatasetSpec,
    LinkSpec,
    ModelSpec,
    PredictionSpec,
    RunSpec,
    SplitSizes,
    TrainingSpec,
    read_spec,
    spec_from_dict,
    spec_to_dict,
    spec_to_toml,
)
from airlam.tasks.channel_prediction import quiet
from airlam.tasks.demo import packaged_run
from airlam.tasks.evaluation import evaluate
from airlam.tasks.runs import finetune

ROOT = Path(__file__).resolve().parents[1]
RUN = RunSpec(
    name="r",
    dataset="d.h5",
    prediction=PredictionSpec(num_history=8, num_horizon=2),
    model=ModelSpec(backbone="small", num_layers=1, num_paths=6),
    training=TrainingSpec(
        num_steps=30, batch_size=8, num_samples=48, validation_every_steps=10, checkpoint_every_steps=5
    ),
    link=LinkSpec(num_users=2, snr_db=(5.0, 15.0), num_drops=4),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny dataset that serves TDD and FDD."""
    folder = tmp_path_factory.mktemp("base")
    values = spec_to_dict(packaged_spec("quickstart"))
    values["grid"] |= {"num_downlink_subcarriers": 24}
    spec = dataclasses.replace(
        spec_from_dict(DatasetSpec, values), drops=SplitSizes(train=24, validation=8, test=12)
    )
    generate(spec, folder / "d.h5")
    return folder


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    return finetune(RUN, base, base / "runs", quiet)


def test_a_run_leaves_a_model_its_cost_and_its_course(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["stop_reason"] == "finished" and summary["num_steps"] == 30
    assert 0 < summary["trainable_share"] < 1 and summary["flops_per_sample"] > 0
    assert summary["drops"] == {"train": 24, "validation": 8, "test": 12}
    assert (trained / "lam" / "adapter" / "adapter_config.json").exists()
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 30
    assert not (trained / "tokens").exists()


def test_a_finished_run_is_left_alone_and_another_spec_is_refused(trained: Path, base: Path) -> None:
    stamp = (trained / "summary.json").stat().st_mtime_ns
    assert finetune(RUN, base, base / "runs", quiet) == trained
    assert (trained / "summary.json").stat().st_mtime_ns == stamp
    other = dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, seed=9))
    with pytest.raises(DataError, match="run of another spec"):
        finetune(other, base, base / "runs", quiet)
    (base / "full").mkdir()
    (base / "full" / "file").touch()
    with pytest.raises(DataError, match="not empty and holds no run"):
        finetune(dataclasses.replace(RUN, name="full"), base, base, quiet)


def test_killed_at_any_time_and_started_again_it_ends_the_same(
    trained: Path, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(spec_to_toml(dataclasses.replace(RUN, dataset=str(base / "d.h5"))))
    command = [sys.executable, "-P", "-m", "airlam", "finetune", "r.toml", "-o", "again"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    metrics = tmp_path / "again" / "r" / "metrics.jsonl"
    kills = 0
    for lines in (3, 17):
        run = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while run.poll() is None and not (
            metrics.exists() and len(metrics.read_text().splitlines()) >= lines
        ):
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
        kills += run.wait() == -signal.SIGKILL
    assert kills, "the run was over before it could be killed"
    finetune(dataclasses.replace(RUN, dataset=str(base / "d.h5")), tmp_path, tmp_path / "again", quiet)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 31))
    for name in ("weights.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "again" / "r" / "lam" / name).read_bytes() == (trained / "lam" / name).read_bytes()


def test_channels_that_were_drawn_anew_are_not_taken_for_the_old_ones(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.h5"
    spec = ChannelDataset.open(base / "d.h5").spec
    generate(dataclasses.replace(spec, seed=5), data)
    short = dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, num_steps=2))
    folder = finetune(short, tmp_path, tmp_path, quiet)
    weights = (folder / "lam" / "weights.safetensors").read_bytes()
    generate(dataclasses.replace(spec, seed=6), data, overwrite=True)
    for act in (lambda: finetune(short, tmp_path, tmp_path, quiet), lambda: evaluate(folder)):
        with pytest.raises(DataError, match="trained on other channels"):
            act()
    # tokens that an interrupted run left of the old channels are not used for the new ones
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    finetune(short, tmp_path, tmp_path, quiet)
    assert (folder / "lam" / "weights.safetensors").read_bytes() != weights


def test_a_link_that_cannot_be_is_refused_before_the_comparison(trained: Path) -> None:
    text = (trained / "run.toml").read_text()
    (trained / "run.toml").write_text(text.replace("num_users = 2", "num_users = 200"))
    with pytest.raises(SpecError, match="200 users cannot share a band out of 12 links"):
        evaluate(trained)
    (trained / "run.toml").write_text(text)


@pytest.fixture(scope="module")
def result(trained: Path) -> EvaluationResult:
    return evaluate(trained)


def test_the_report_compares_the_lam_with_every_classical_method(
    result: EvaluationResult, trained: Path
) -> None:
    kinds = {method.name: method.kind for method in result.methods}
    assert kinds["lam"] == "lam" and kinds["genie"] == "bound"
    assert {"hold", "denoise_ls", "path_eb", "reduced_rank_ar", "pad", "kalman_ar"} <= {
        name for name, kind in kinds.items() if kind == "classical"
    }
    snrs = {row.snr_db for row in result.prediction}
    assert snrs == {0.0, 10.0, 20.0, 30.0}
    overall = [r for r in result.prediction if r.group == "all" and r.metric == "nmse_pooled"]
    assert len(overall) == 4 * (len(kinds) - 1)
    assert all(row.low <= row.value <= row.high for row in overall)
    assert EvaluationResult.read(trained / "metrics.json") == result
    page = (trained / "report.html").read_text()
    assert "<svg" in page and "Path-EB" in page and str(trained) not in page


def test_perfect_csi_bounds_the_link(result: EvaluationResult) -> None:
    rates = {(r.method, r.snr_db): r.value for r in result.link if r.metric == "sum_rate_bit_per_s_per_hz"}
    assert {method for method, _ in rates} >= {"hold", "lam", "genie"}
    assert all(value <= rates["genie", snr_db] + 1e-6 for (_, snr_db), value in rates.items())


def test_an_evaluation_is_repeatable(result: EvaluationResult, trained: Path) -> None:
    again = evaluate(trained)
    for first, second in ((result.prediction, again.prediction), (result.link, again.link)):
        values = [(row.value, row.low, row.high) for row in (*first, *second)]
        assert len(first) == len(second)
        # to the last bits only: eigensolvers may round otherwise from call to call
        assert np.array(values[: len(first)]) == pytest.approx(np.array(values[len(first) :]), rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "prediction": PredictionSpec(num_history=8, num_horizon=2, duplex="fdd"),
            "model": ModelSpec(backbone="small", num_layers=1, num_paths=24),  # six leave too much out
        },
        {"model": ModelSpec(backbone="small", num_layers=1, tokenizer="patch", tuning="full")},
        {"model": ModelSpec(backbone="small", num_layers=1, num_paths=6, tuning="scratch")},
        {"model": ModelSpec(backbone="small", num_layers=1, num_paths=6, tuning="head")},
    ],
    ids=["fdd", "patch-full", "scratch", "head"],
)
def test_other_tasks_tokens_and_tunings_run_from_end_to_end(
    base: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    training = dataclasses.replace(RUN.training, num_steps=3, validation_every_steps=3)
    spec = dataclasses.replace(RUN, training=training, **changes)  # type: ignore[arg-type]
    scores = evaluate(finetune(spec, base, tmp_path, quiet), link=False)
    overall = {
        (row.method, row.snr_db): row.value
        for row in scores.prediction
        if row.group == "all" and row.metric == "nmse_pooled"
    }
    for (method, snr_db), value in overall.items():
        assert method != "lam" or value < 1.2 * overall["hold", snr_db]


def test_what_is_no_run_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no run\.toml"):
        evaluate(tmp_path)
    (tmp_path / "run.toml").write_text(spec_to_toml(RUN))
    with pytest.raises(DataError, match="not trained to its end"):
        evaluate(tmp_path)
    with pytest.raises(DataError, match="is not there"):
        finetune(dataclasses.replace(RUN, dataset="absent.h5"), base, tmp_path / "x", quiet)


def test_every_shipped_run_spec_reads() -> None:
    for name in ("demo", "demo_quick"):
        assert packaged_run(name).task == "channel_prediction"
    shipped = sorted((ROOT / "notebooks").glob("*.toml"))
    assert shipped
    for path in shipped:
        read_spec(RunSpec, path)
    with pytest.raises(SpecError, match="names the run's folder"):
        dataclasses.replace(RUN, name="a/b")
