"""Predictor and precoder as one: gradients reach both, errors are told as they are, no run makes it worse."""

import dataclasses
import json
import math
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
from airlam.errors import DataError, SpecError
from airlam.model.build import lam_for
from airlam.model.graph_precoder import build_precoder
from airlam.model.predictive_precoder import PredictivePrecoder, whole_array
from airlam.model.storage import fingerprint, trainable_tensors
from airlam.radio.prediction import path_posterior
from airlam.radio.prediction.path_covariance import PathBeliefs, port_covariance
from airlam.radio.prediction.path_eb import PathEb
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
from airlam.tasks.beamforming_predicted import (
    EveryLink,
    PredictedDownlinks,
    error_tokenizer,
    joint_loss,
    mean_loss,
    predicted_downlinks,
    tune_jointly,
)
from airlam.tasks.beamforming_run import run_precoders
from airlam.tasks.channel_prediction import DatasetLinks, quiet
from airlam.tasks.comparison import observe
from airlam.tasks.evaluation import evaluate
from airlam.tasks.runs import finetune

PREDICTION = PredictionSpec(num_history=8, num_horizon=2, min_snr_db=10.0, max_snr_db=20.0)
LAM = ModelSpec(backbone="small", num_layers=1, lora_rank=2, num_paths=6)
SHORT = TrainingSpec(
    num_steps=6,
    batch_size=4,
    num_samples=32,
    learning_rate=1e-3,
    validation_every_steps=3,
    checkpoint_every_steps=2,
)
PREDICTOR = RunSpec(
    name="predictor",
    dataset="d.h5",
    prediction=PREDICTION,
    model=LAM,
    training=dataclasses.replace(SHORT, num_steps=2),
)
JOINT = RunSpec(
    name="joint",
    dataset="d.h5",
    task="beamforming",
    beamforming=BeamformingSpec(
        min_users=2, max_users=3, min_snr_db=10.0, csi="predicted", predictor="runs/predictor"
    ),
    precoder=PrecoderSpec(
        width=8,
        num_edge_channels=2,
        num_stages=1,
        backbone=ModelSpec(backbone="small", num_layers=1, lora_rank=2),
    ),
    training=SHORT,
    link=LinkSpec(num_users=3, snr_db=(10.0, 20.0), num_drops=2),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny dataset of three users a drop, and a predictor tuned on it."""
    folder = tmp_path_factory.mktemp("base")
    plain = packaged_spec("quickstart")
    spec = dataclasses.replace(
        plain,
        num_users=3,
        base_station=ArraySpec(num_rows=2, num_cols=2, polarization="dual", polarization_type="cross"),
        grid=dataclasses.replace(plain.grid, num_slots=12, num_uplink_subcarriers=12),
        drops=SplitSizes(train=8, validation=4, test=6),
    )
    generate(spec, folder / "d.h5")
    finetune(PREDICTOR, folder, folder / "runs", quiet)
    return folder


@pytest.fixture(scope="module")
def tuned(base: Path) -> Path:
    return finetune(JOINT, base, base / "runs", quiet)


def samples(base: Path, model: PredictivePrecoder, split: str, folder: Path) -> PredictedDownlinks:
    assert JOINT.beamforming is not None
    with ChannelDataset.open(base / "d.h5") as dataset:
        source = DatasetLinks(dataset, split, PREDICTION)
        return predicted_downlinks(
            model.lam, source, PREDICTION, JOINT.beamforming, 12, 24, 3, folder / split, quiet
        )


def fresh(base: Path) -> PredictivePrecoder:
    """Untuned; every weight that starts at zero is moved, so that what lies before it has a gradient."""
    assert JOINT.precoder is not None
    with ChannelDataset.open(base / "d.h5") as dataset:
        setting = DatasetLinks(dataset, "test", PREDICTION).setting
    model = PredictivePrecoder(lam_for(LAM, setting, 1), build_precoder(JOINT.precoder, seed=1), setting)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in trainable_tensors(model).values():
            value.add_(1e-2 * torch.randn(value.shape, generator=draw))
    return model


def test_the_gradient_of_the_rate_reaches_both_and_their_adapters(base: Path, tmp_path: Path) -> None:
    model = fresh(base)
    joint_loss(model, samples(base, model, "train", tmp_path).batch(torch.arange(4))).mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    for part in ("lam.embedding", "lam.backbone", "lam.heads", "precoder.stages", "precoder.backbone"):
        assert any(name.startswith(part) for name in moved), part
    assert sum(".lora_A." in name for name in moved) >= 2 and "log_level" in moved


def test_the_gradient_is_that_of_the_loss(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_posterior, "MODE_FLOOR", 1e-6)  # modes that come and go make it jump
    model = fresh(base).eval()
    batch = samples(base, model, "train", tmp_path).batch(torch.arange(4))
    joint_loss(model, batch).mean().backward()
    for part in ("lam.heads", "log_level"):  # the others' slopes are lost in single precision
        own = [p for name, p in model.named_parameters() if name.startswith(part) and p.requires_grad]
        ascent = [p.grad for p in own if p.grad is not None]
        steepness = math.sqrt(sum(float(g.square().sum()) for g in ascent))
        length, found = 1e-3 / steepness, []  # where the loss changes by so much
        for sign in (1, -1):
            with torch.no_grad():
                for p, g in zip(own, ascent, strict=True):
                    p.add_(sign * length / steepness * g)
                found.append(float(joint_loss(model, batch).mean()))
                for p, g in zip(own, ascent, strict=True):
                    p.sub_(sign * length / steepness * g)
        assert (found[0] - found[1]) / (2 * length) == pytest.approx(steepness, rel=0.2), part


def test_what_is_told_of_errors_is_the_posterior_s(base: Path) -> None:
    with ChannelDataset.open(base / "d.h5") as dataset:
        source = DatasetLinks(dataset, "test", PREDICTION)
        seen = observe(source.read(np.arange(5)), source, 15.0, 0)
    physics = PathEb(source.setting, num_paths=6)
    analysis = physics.analyse(seen.history, seen.noise_variance)
    beliefs = PathBeliefs(
        position=analysis.position,
        spectrum=analysis.spectrum,
        spread=analysis.spread,
        noise_variance=analysis.noise_variance,
        scale=analysis.scale,
    )
    some = torch.tensor([7, 0])
    found = whole_array(port_covariance(beliefs, physics.grid, physics.basis, some), 2)
    assert found.shape == (5, 2, 2, 8, 8)
    torch.testing.assert_close(found, found.mH)
    assert bool((torch.linalg.eigvalsh(found) > -1e-6 * found.abs().max()).all())
    variance = physics.variance(analysis)[:, :, 0][..., some]  # [5, horizon, ports, f]
    diagonal = found.diagonal(dim1=-2, dim2=-1).real.mT
    torch.testing.assert_close(diagonal, variance, rtol=1e-3, atol=1e-6 * float(variance.max()))


def test_levels_scale_what_is_told_and_polarisations_err_alike(base: Path, tmp_path: Path) -> None:
    model = fresh(base)
    links = samples(base, model, "test", tmp_path).batch(torch.arange(2)).links
    with torch.no_grad():
        model.log_level.zero_()
        before = model.error_covariance(links)
        model.log_level[1] = 0.1
        after = model.error_covariance(links)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1], torch.e * before[:, 1])
    torch.testing.assert_close(before[..., :4, :4], before[..., 4:, 4:])
    assert not bool(before[..., :4, 4:].any())


def test_it_never_ends_worse_on_validation_than_it_began(base: Path, tmp_path: Path) -> None:
    model = fresh(base)
    train, validation = (samples(base, model, split, tmp_path) for split in ("train", "validation"))
    given = {name: value.clone() for name, value in trainable_tensors(model).items()}
    wild = dataclasses.replace(SHORT, learning_rate=0.3, num_steps=3)
    summary, before = tune_jointly(model, train, validation, wild, tmp_path / "wild")
    assert summary.best_validation_loss is not None and summary.best_validation_loss > before
    assert mean_loss(model, validation, SHORT) == pytest.approx(before, rel=1e-5)
    assert all(torch.equal(value, given[name]) for name, value in trainable_tensors(model).items())
    summary, before = tune_jointly(model, train, validation, SHORT, tmp_path / "mild")
    assert mean_loss(model, validation, SHORT) <= before + 1e-5


def test_it_learns(base: Path, tmp_path: Path) -> None:
    model = fresh(base)
    train = samples(base, model, "train", tmp_path)
    longer = dataclasses.replace(SHORT, num_steps=30, validation_every_steps=10, checkpoint_every_steps=30)
    before = mean_loss(model, train, SHORT)
    tune_jointly(model, train, train, longer, tmp_path / "run")
    assert mean_loss(model, train, SHORT) < before - 0.002


def test_views_are_of_their_links_and_users_of_a_drop_are_seen_together(base: Path) -> None:
    with ChannelDataset.open(base / "d.h5") as dataset:
        source = DatasetLinks(dataset, "train", PREDICTION)
        views = EveryLink(source=source, spec=PREDICTION, num_drops=8, num_views=3, seed=5)
        assert len(views) == 72
        every = views.batch(torch.arange(72))
        again = views.batch(torch.tensor([50, 3]))
        clean = source.read(np.arange(24))
    torch.testing.assert_close(every.history[[50, 3]], again.history)
    starts = torch.zeros(72, dtype=torch.long)
    for view in range(72):
        fits = [torch.equal(every.future[view], clean[view % 24, s + 8 : s + 10]) for s in range(3)]
        starts[view] = fits.index(True)
    assert bool((starts.view(24, 3) == starts.view(24, 3)[:, :1]).all()) and len(starts.unique()) == 3
    assert bool(((every.snr_db >= 10) & (every.snr_db <= 20)).all())
    noise = every.history - torch.stack([clean[v % 24, s : s + 8] for v, s in enumerate(starts.tolist())])
    found = noise.abs().square().mean(dim=(1, 2, 3, 4)) / every.noise_variance
    torch.testing.assert_close(found, torch.ones(72), rtol=0.2, atol=0)


def test_a_run_tunes_both_and_leaves_the_predictor_s_run_alone(tuned: Path, base: Path) -> None:
    assert sorted(path.name for path in (tuned / "lam").iterdir()) == [
        "levels.safetensors",
        "precoder",
        "predictor",
    ]
    assert not (tuned / "tokens").exists() and not (tuned / "imitation").exists()
    summary = json.loads((tuned / "summary.json").read_text())
    assert summary["num_steps"] == 6 and "validation_loss_of_what_was_given" in summary
    with ChannelDataset.open(base / "d.h5") as dataset:
        setting = DatasetLinks(dataset, "test", PREDICTION).setting
    one, other = (PredictivePrecoder.load(tuned / "lam", setting, 1) for _ in range(2))
    assert fingerprint(one.state_dict()) == fingerprint(other.state_dict())
    assert fingerprint(run_precoders([tuned])["joint"].state_dict()) == fingerprint(one.precoder.state_dict())
    wider = dataclasses.replace(setting, num_horizon=4)
    with pytest.raises(DataError, match="log_level"):
        PredictivePrecoder.load(tuned / "lam", wider, 1)


def test_killed_and_started_again_it_ends_in_the_same_bits(tuned: Path, base: Path, tmp_path: Path) -> None:
    assert JOINT.beamforming is not None
    own = dataclasses.replace(JOINT.beamforming, predictor=str(base / "runs" / "predictor"))
    spec = dataclasses.replace(JOINT, dataset=str(base / "d.h5"), beamforming=own)
    (tmp_path / "r.toml").write_text(spec_to_toml(spec))
    command = [sys.executable, "-P", "-m", "airlam", "finetune", "r.toml", "-o", "again"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    metrics = tmp_path / "again" / "joint" / "metrics.jsonl"
    run = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while run.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    folder = finetune(spec, tmp_path, tmp_path / "again", quiet)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 7))
    files = [path.relative_to(tuned) for path in (tuned / "lam").rglob("*.safetensors")]
    assert len(files) >= 4
    for file in files:
        assert (folder / file).read_bytes() == (tuned / file).read_bytes(), file


def test_the_report_sets_it_beside_the_chain_and_the_classical(tuned: Path) -> None:
    result = evaluate(tuned)
    kinds = {method.name: method.kind for method in result.methods}
    assert kinds == {
        "lam": "lam",
        "chain_robust_rzf": "learned",
        "chain_rzf": "learned",
        "path_eb_robust_rzf": "classical",
        "path_eb_rzf": "classical",
        "hold_rzf": "classical",
        "perfect_rzf": "bound",
    }
    rate = {(r.method, r.snr_db): r.value for r in result.link if r.metric == "sum_rate_bit_per_s_per_hz"}
    for snr_db in JOINT.link.snr_db:
        assert rate["perfect_rzf", snr_db] > max(rate["hold_rzf", snr_db], rate["path_eb_rzf", snr_db])
    assert {row.reference for row in result.gains} >= {"chain_rzf", "chain_robust_rzf"}
    assert {row.method for row in result.link if row.metric == "bler"} == kinds.keys()
    page = (tuned / "report.html").read_text()
    assert "tuned together" in page and str(tuned) not in page


def test_what_cannot_be_is_said_before_work(base: Path, tmp_path: Path) -> None:
    for change in ('csi = "predicted"', 'predictor = "runs/p"', 'csi = "pilots"\npredictor = "runs/p"'):
        text = f'name = "r"\ndataset = "d"\ntask = "beamforming"\n[beamforming]\n{change}'
        with pytest.raises(SpecError, match="go together"):
            parse_spec(RunSpec, text)
    assert JOINT.beamforming is not None
    for own, words in (
        ({"max_users": 9}, "max_users is 9, but there are 8 drops of 3 users"),
        ({"predictor": "runs/none"}, "holds no run.toml"),
    ):
        spec = dataclasses.replace(JOINT, beamforming=dataclasses.replace(JOINT.beamforming, **own))
        with pytest.raises((SpecError, DataError), match=words):
            finetune(spec, base, tmp_path, quiet)
        assert not list(tmp_path.rglob("metrics.jsonl"))
        for leftover in tmp_path.rglob("run.toml"):
            leftover.unlink()


def test_a_user_whom_nothing_reaches_spoils_no_rate(base: Path, tmp_path: Path) -> None:
    model = fresh(base)
    batch = samples(base, model, "train", tmp_path).batch(torch.arange(4))
    draw = torch.Generator().manual_seed(0)
    future = torch.randn(len(batch.links.features), 2, 1, 8, 12, dtype=torch.complex64, generator=draw)
    future[0] = 0
    batch = dataclasses.replace(
        batch, links=error_tokenizer(model.lam, batch.places).with_target(batch.links, future)
    )
    assert torch.isfinite(torch.view_as_real(batch.h)).all() and not batch.h[0, ..., 0, :].any()
    loss = joint_loss(model, batch).mean()
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.isfinite() and all(grad.isfinite().all() for grad in grads)
