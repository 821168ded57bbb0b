"""A run of beamforming: it ends the same however often it is killed, and its evaluation says what is true."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from airlam import cli
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError, SpecError
from airlam.model.graph_precoder import GraphPrecoder
from airlam.model.storage import fingerprint
from airlam.results import EvaluationResult
from airlam.specs import (
    ArraySpec,
    BeamformingSpec,
    LinkSpec,
    ModelSpec,
    PrecoderSpec,
    PredictionSpec,
    RunSpec,
    SplitSizes,
    TrainingSpec,
    parse_spec,
    spec_to_toml,
)
from airlam.tasks.beamforming import DownlinkSamples, UserChannels, unit_power
from airlam.tasks.beamforming_data import PilotCsi
from airlam.tasks.beamforming_run import precoder_lam, run_precoders
from airlam.tasks.channel_prediction import quiet
from airlam.tasks.evaluation import evaluate
from airlam.tasks.planning import request_of
from airlam.tasks.runs import finetune, load_lam

RUN = RunSpec(
    name="r",
    dataset="d.h5",
    task="beamforming",
    beamforming=BeamformingSpec(min_users=2, max_users=4, imitation_steps=12),
    precoder=PrecoderSpec(width=8, num_edge_channels=2, num_layers=1, num_stages=2),
    training=TrainingSpec(
        num_steps=24,
        batch_size=8,
        num_samples=96,
        learning_rate=3e-3,
        validation_every_steps=8,
        checkpoint_every_steps=4,
    ),
    link=LinkSpec(num_users=4, snr_db=(0.0, 10.0, 20.0), num_drops=2),
)
PILOTS = dataclasses.replace(
    RUN,
    name="pilots",
    beamforming=BeamformingSpec(
        min_users=2, max_users=4, imitation_steps=2, csi="pilots", pilot_snr_db=5.0, reused_share=0.5
    ),
    precoder=PrecoderSpec(
        width=8,
        num_edge_channels=2,
        num_layers=1,
        num_stages=2,
        backbone=ModelSpec(backbone="small", num_layers=1, lora_rank=2),
    ),
    training=dataclasses.replace(RUN.training, num_steps=4, num_samples=24),
)


@pytest.fixture(scope="module")
def base(downlink_dataset: Callable[..., Path]) -> Path:
    """A folder with a tiny dataset of four users a drop."""
    array = ArraySpec(num_rows=2, num_cols=2, polarization="dual", polarization_type="cross")
    return downlink_dataset(4, array, SplitSizes(train=12, validation=4, test=6))


@pytest.fixture(scope="module")
def trained(base: Path) -> Path:
    return finetune(RUN, base, base / "runs", quiet)


@pytest.fixture(scope="module")
def precoder(trained: Path) -> GraphPrecoder:
    return run_precoders([trained])["r"]


def downlinks(base: Path) -> torch.Tensor:
    """Of the test drops: complex64 [drops, users, num_bs_ant]."""
    with ChannelDataset.open(base / "d.h5") as dataset:
        links = dataset.batch("test", torch.arange(6).numpy()).links()
    h = links[:, :, 0, 0, :, 0]
    return h / h.abs().square().mean(-1, keepdim=True).sqrt()


def test_a_run_leaves_a_model_its_cost_and_the_course_of_both_parts(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["stop_reason"] == "finished" and summary["num_steps"] == 24
    assert summary["drops"] == {"train": 12, "validation": 4, "test": 6}
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 24
    assert len((trained / "imitation" / "metrics.jsonl").read_text().splitlines()) == 12
    assert sorted(path.name for path in (trained / "lam").iterdir()) == [
        "precoder.toml",
        "weights.safetensors",
    ]


def test_a_finished_run_is_left_alone_and_another_spec_is_refused(trained: Path, base: Path) -> None:
    stamp = (trained / "summary.json").stat().st_mtime_ns
    assert finetune(RUN, base, base / "runs", quiet) == trained
    assert (trained / "summary.json").stat().st_mtime_ns == stamp
    other = dataclasses.replace(RUN, precoder=PrecoderSpec(width=16))
    with pytest.raises(DataError, match="run of another spec"):
        finetune(other, base, base / "runs", quiet)


def test_killed_at_any_time_and_started_again_it_ends_the_same(
    trained: Path, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(spec_to_toml(dataclasses.replace(RUN, dataset=str(base / "d.h5"))))
    command = [sys.executable, "-P", "-m", "airlam", "finetune", "r.toml", "-o", "again"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    folder = tmp_path / "again" / "r"
    kills = 0
    for metrics, lines in ((folder / "imitation" / "metrics.jsonl", 5), (folder / "metrics.jsonl", 9)):
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
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 25))
    name = Path("lam") / "weights.safetensors"
    assert (folder / name).read_bytes() == (trained / name).read_bytes()


def test_permuting_users_permutes_beams_and_the_power_is_kept(precoder: GraphPrecoder, base: Path) -> None:
    h, noise = downlinks(base), torch.full((6,), 0.1)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        w, moved = precoder.precode(h, noise), precoder.precode(h[:, order], noise)
    torch.testing.assert_close(moved, w[:, :, order], rtol=1e-3, atol=1e-4)
    power = w.abs().square().sum((-2, -1))
    torch.testing.assert_close(power, torch.ones(6), rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def result(trained: Path) -> EvaluationResult:
    return evaluate(trained)


def rates(result: EvaluationResult) -> dict[tuple[str, float], float]:
    return {(r.method, r.snr_db): r.value for r in result.link if r.metric == "sum_rate_bit_per_s_per_hz"}


def test_the_report_has_every_precoder_with_its_share_and_time(
    result: EvaluationResult, trained: Path
) -> None:
    kinds = {method.name: method.kind for method in result.methods}
    assert kinds == dict.fromkeys(("wmmse_100", "wmmse_5", "rzf", "zf", "mrt"), "classical") | {
        "lam": "lam",
        "dirty_paper_bound": "bound",
    }
    found = rates(result)
    for snr_db in RUN.link.snr_db:
        assert found["mrt", snr_db] < found["wmmse_100", snr_db] < found["dirty_paper_bound", snr_db]
        assert all(
            rate <= found["dirty_paper_bound", snr_db] for (_, at), rate in found.items() if at == snr_db
        )
        assert found["lam", snr_db] > 0.8 * found["wmmse_100", snr_db]
    shares = {(r.method, r.snr_db): r for r in result.link if r.metric == "share_of_wmmse_100"}
    for (method, snr_db), row in shares.items():
        assert row.value == pytest.approx(found[method, snr_db] / found["wmmse_100", snr_db])
        assert row.low <= row.value <= row.high
    timed = {row.method for row in result.cost if row.quantity == "precoding"}
    assert timed == kinds.keys() - {"dirty_paper_bound"}
    assert {row.method for row in result.link if row.metric == "bler"} == {"lam", "wmmse_100", "rzf"}
    assert EvaluationResult.read(trained / "metrics.json") == result
    page = (trained / "report.html").read_text()
    assert "<svg" in page and "Dirty-paper bound" in page and str(trained) not in page


def test_an_evaluation_is_repeatable(result: EvaluationResult, trained: Path) -> None:
    again = evaluate(trained, link=False)
    assert rates(again) == pytest.approx(rates(result))


def test_from_pilots_robust_precoders_stand_beside_it(base: Path) -> None:
    folder = finetune(PILOTS, base, base / "runs", quiet)
    found = evaluate(folder)
    labels = {method.name: method.label for method in found.methods}
    assert labels["lam"] == "Graph precoder with a LAM" and {"robust_rzf", "robust_wmmse_100"} <= set(labels)
    assert {r.method for r in found.link if r.metric == "bler"} == {
        "lam",
        "robust_wmmse_100",
        "wmmse_100",
        "rzf",
    }
    rate = rates(found)
    assert rate["robust_wmmse_100", 20.0] > rate["rzf", 20.0] and rate["lam", 20.0] > rate["rzf", 20.0]
    assert (folder / "lam" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_run_starts_from_another_ones_precoder(trained: Path, base: Path) -> None:
    own = dataclasses.replace(RUN.beamforming, start="runs/r")  # type: ignore[type-var]
    short = dataclasses.replace(RUN.training, num_steps=4)
    spec = dataclasses.replace(RUN, name="on", beamforming=own, training=short, precoder=None)
    folder = finetune(spec, base, base / "runs", quiet)
    assert not (folder / "imitation").exists()
    losses = [
        json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"] for run in (folder, trained)
    ]
    assert losses[0] < losses[1]
    assert PILOTS.precoder is not None
    wider = dataclasses.replace(spec, name="lam", precoder=PILOTS.precoder)
    begun = precoder_lam(_whole(wider, base)).precoder
    before = run_precoders([trained])["r"].state_dict()
    assert begun.backbone is not None
    assert all(torch.equal(begun.state_dict()[name], value) for name, value in before.items())
    other = dataclasses.replace(spec, name="other", precoder=PrecoderSpec(width=16))
    with pytest.raises(SpecError, match="or take the same and add a backbone"):
        finetune(other, base, base / "runs", quiet)


def _whole(spec: RunSpec, base: Path) -> RunSpec:
    assert spec.beamforming is not None and spec.beamforming.start is not None
    start = str(base / spec.beamforming.start)
    return dataclasses.replace(spec, beamforming=dataclasses.replace(spec.beamforming, start=start))


def test_a_saved_precoder_with_a_backbone_comes_back(base: Path) -> None:
    folder = finetune(PILOTS, base, base / "runs", quiet)
    one, other = (run_precoders([folder])["pilots"] for _ in range(2))
    assert fingerprint(one.state_dict()) == fingerprint(other.state_dict())
    weights = folder / "lam" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot read weights"):
        run_precoders([folder])
    weights.write_bytes(whole)


def test_the_command_line_runs_it(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = dataclasses.replace(RUN.training, num_steps=2, num_samples=16)
    spec = dataclasses.replace(RUN, dataset=str(base / "d.h5"), training=training)
    (tmp_path / "r.toml").write_text(spec_to_toml(spec))
    monkeypatch.chdir(tmp_path)
    for arguments in (["finetune", "r.toml"], ["evaluate", "runs/r", "--no-link"]):
        monkeypatch.setattr(sys, "argv", ["airlam", *arguments])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        assert not leaving.value.code
    assert (tmp_path / "runs" / "r" / "report.html").is_file()


def test_tables_of_another_task_are_refused() -> None:
    for change in (
        {"beamforming": BeamformingSpec()},
        {"precoder": PrecoderSpec()},
    ):
        with pytest.raises(SpecError, match=r'is of task "beamforming"; this run\'s task'):
            RunSpec(name="r", dataset="d", **change)  # type: ignore[arg-type]
    for changes, words in (
        ({"model": ModelSpec(lora_rank=2)}, r"has \[precoder.backbone\]"),
        ({"prediction": PredictionSpec(num_horizon=2)}, r"\[prediction\] is of task"),
    ):
        with pytest.raises(SpecError, match=words):
            dataclasses.replace(RUN, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min_users": 5}, "5 to 4; expected 1 <= min <= max"),
        ({"reused_share": 0.5}, 'reused_share is of csi = "pilots"; csi is "perfect"'),
        ({"pilot_snr_db": 5.0}, 'pilot_snr_db is of csi = "pilots"; csi is "perfect"'),
        ({"csi": "genie"}, "expected one of"),
        ({"max_snr_db": -10.0}, "expected min <= max"),
        ({"imitation_step": 3}, "did you mean 'imitation_steps'"),
    ],
)
def test_bad_values_are_one_line(change: dict[str, object], words: str) -> None:
    lines = [f"{name} = {json.dumps(value)}" for name, value in ({"max_users": 4} | change).items()]
    text = "\n".join(['name = "r"', 'dataset = "d"', 'task = "beamforming"', "[beamforming]", *lines])
    with pytest.raises(SpecError, match=words) as refused:
        parse_spec(RunSpec, text)
    assert "\n" not in str(refused.value)


def test_a_run_of_prediction_is_written_as_it_always_was() -> None:
    text = spec_to_toml(RunSpec(name="r", dataset="d"))
    assert "beamforming" not in text and "precoder" not in text
    assert parse_spec(RunSpec, text.replace('task = "channel_prediction"\n', "")).task == "channel_prediction"


def test_what_cannot_be_is_said_before_work(trained: Path, base: Path, tmp_path: Path) -> None:
    crowd = dataclasses.replace(RUN, beamforming=BeamformingSpec(max_users=13))
    with pytest.raises(SpecError, match="max_users is 13, but there are 12 drops of 4 users"):
        finetune(crowd, base, tmp_path, quiet)
    with pytest.raises(DataError, match="is a run of beamforming; give one of channel_prediction"):
        load_lam(trained, None)  # type: ignore[arg-type]
    text = (trained / "run.toml").read_text()
    (trained / "run.toml").write_text(text.replace("num_users = 4", "num_users = 5"))
    with pytest.raises(SpecError, match="set num_users to at most 4"):
        evaluate(trained)
    (trained / "run.toml").write_text(text)
    (tmp_path / "r.toml").write_text(spec_to_toml(RUN))
    with pytest.raises(SpecError, match="whose model is not split"):
        request_of("edge_network", tmp_path / "r.toml")


def test_what_pilots_tell_is_as_wrong_as_it_says_and_follows_its_seed() -> None:
    assert PILOTS.beamforming is not None
    draw = torch.Generator().manual_seed(0)
    shape = torch.randn(6, 6, dtype=torch.complex64, generator=draw) * 0.4 ** torch.arange(6)
    rows = torch.randn(4000, 1, 1, 6, dtype=torch.complex64, generator=draw) @ shape
    pilots = PilotCsi.fit(PILOTS.beamforming, rows)
    h = unit_power(rows[:2000, 0, 0]).reshape(500, 4, 6)
    known = pilots.know(h, range(500))
    assert known.error_covariance is not None
    error = (known.h - h).abs().square().sum((-2, -1)).mean()
    said = known.error_covariance.diagonal(dim1=-2, dim2=-1).real.sum((-2, -1)).mean()
    assert error == pytest.approx(float(said), rel=0.1)
    some = torch.tensor([7, 3, 100])
    again = pilots.know(h[some], some.tolist())
    torch.testing.assert_close(again.h, known.h[some])


def test_users_of_small_drops_come_from_several_and_never_twice() -> None:
    draw = torch.Generator().manual_seed(1)
    pool = [UserChannels(h=torch.randn(9, 2, 2, 3, dtype=torch.complex64, generator=draw))]
    samples = DownlinkSamples(
        pool=pool, num_users=(5,), group_size=40, seed=0, gain_spread_db=0.0, smaller_arrays=False
    )
    h = samples.batch(torch.arange(40)).h
    assert h.shape == (40, 5, 6)
    every = unit_power(pool[0].h.flatten(2)).flatten(end_dim=1)  # [18, 6]
    distance = (h[:, :, None] - every).abs().sum(-1)  # [40, 5, 18]
    nearest = distance.argmin(-1)
    assert float(distance.amin(-1).max()) < 1e-5
    assert all(len(set((row // 2).tolist())) == 5 for row in nearest)


def test_early_stopping_sees_the_estimator_that_training_fitted(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, fit = [], PilotCsi.fit

    def counted(spec: BeamformingSpec, views: torch.Tensor) -> PilotCsi:
        fitted.append(len(views))
        return fit(spec, views)

    monkeypatch.setattr(PilotCsi, "fit", staticmethod(counted))
    finetune(PILOTS, base, tmp_path, quiet)
    assert fitted == [12]  # the training drops, and no others
