"""A backbone is pretrained to the same bytes however often it was killed, and a LAM starts from it."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from airlam import cli
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.generate import generate
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError, SpecError
from airlam.model import backbone as backbone_module
from airlam.model.backbone import build_backbone
from airlam.model.build import lam_for
from airlam.model.lam import LAM, count_parameters
from airlam.radio.channel import PredictionSetting
from airlam.specs import (
    ModelSpec,
    PredictionSpec,
    PretrainingSpec,
    RunSpec,
    SplitSizes,
    TrainingSpec,
    parse_spec,
    spec_to_toml,
)
from airlam.tasks import mixture_tokens
from airlam.tasks.channel_prediction import DatasetLinks, NoisyViews, nmse_of
from airlam.tasks.mixture_tokens import MixtureSamples
from airlam.tasks.pretraining import SCALES, pretrain, resolve_pretraining, told_features
from airlam.tasks.runs import finetune, load_lam

TINY = resolve_pretraining("tiny")
PREDICTION = PredictionSpec(num_history=8, num_horizon=4)
FILES = {"card.json", "config.json", "model.safetensors", "embedding_and_heads.safetensors"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(TINY, tmp_path_factory.mktemp("pretrained") / "backbone")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset whose setting was in no mixture."""
    folder = tmp_path_factory.mktemp("base")
    spec = dataclasses.replace(packaged_spec("quickstart"), drops=SplitSizes(train=16, validation=8, test=8))
    generate(spec, folder / "d.h5")
    return folder


def lam_on(base: Path, model: ModelSpec) -> LAM:
    spec = ChannelDataset.open(base / "d.h5").spec
    return lam_for(model, PredictionSetting.from_dataset(spec, 8, 4, "tdd"), seed=5).eval()


def test_the_folder_is_a_hugging_face_model_with_a_card(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == FILES
    assert not list(made.parent.glob(".*"))  # nothing is left of the work
    model = AutoModel.from_pretrained(made)
    own = build_backbone(ModelSpec(backbone=str(made))).state_dict()
    theirs = model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())
    fresh = build_backbone(ModelSpec(num_layers=1)).state_dict()
    assert fresh.keys() == own.keys()
    assert not torch.equal(
        own["encoder.layer.0.output.dense.weight"], fresh["encoder.layer.0.output.dense.weight"]
    )


def test_the_card_says_what_it_was_made_of(made: Path) -> None:
    card = json.loads((made / "card.json").read_text())
    assert parse_spec(PretrainingSpec, spec_to_toml(TINY)) == TINY
    assert [each["dataset"]["name"] for each in card["settings"]] == [
        "000_uma_nlos",
        "001_cdl_c",
        "002_umi_los",
    ]
    for each in card["settings"]:
        assert each["views"] == {"train": 16, "validation": 4} and len(each["data_sha256"]) == 64
        assert 0 < each["validation"]["nmse"] < 10 and each["validation"]["masked_error"] > 0
        assert each["dataset"]["seed"] and each["dataset"]["drops"]["train"] == 12
    assert card["training"]["num_steps"] == 12 and card["training"]["stop_reason"] == "finished"
    assert set(card["seconds"]) == {"drawing", "tokenising", "training"}
    assert card["machine"]["cores"] >= 1 and {"torch", "sionna", "transformers"} <= set(card["versions"])
    assert "reconstruction" in card["objectives"]["origin"]
    model = build_backbone(ModelSpec(backbone=str(made)))
    assert card["parameters"]["backbone"] == count_parameters(model).total
    assert card["left_out"] == []


def test_a_finished_folder_is_left_alone_and_others_are_refused(made: Path, tmp_path: Path) -> None:
    stamp = (made / "card.json").stat().st_mtime_ns
    assert pretrain(TINY, made) == made
    assert (made / "card.json").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="something else than this spec makes"):
        pretrain(dataclasses.replace(TINY, masked_weight=0.1), made)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        pretrain(TINY, tmp_path)
    assert (tmp_path / "notes.txt").exists()


class StopError(Exception):
    """Ends a run from its progress callback, as a crash would."""


def test_crashed_and_made_again_is_the_same(made: Path, tmp_path: Path) -> None:
    def crash(what: str, done: int, total: int, detail: str = "") -> None:
        if what == "setting 2 of 3, 001_cdl_c: train tokens":
            raise StopError

    with pytest.raises(StopError):
        pretrain(TINY, tmp_path / "backbone", crash)
    assert not (tmp_path / "backbone").exists()
    drawn: list[str] = []
    again = pretrain(TINY, tmp_path / "backbone", lambda what, *_: drawn.append(what))
    assert "setting 1 of 3, 000_uma_nlos: drops" not in drawn  # its tokens were there
    for name in FILES - {"card.json"}:
        assert (again / name).read_bytes() == (made / name).read_bytes()


def test_killed_and_made_again_is_the_same(made: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "airlam", "pretrain", "tiny", "-o", str(tmp_path / "backbone")]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    checkpoints = tmp_path / ".backbone.unfinished"
    while not list(checkpoints.glob("*/checkpoints/step_*")):
        assert process.poll() is None, "it was over before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = pretrain(TINY, tmp_path / "backbone")
    for name in FILES - {"card.json"}:
        assert (again / name).read_bytes() == (made / name).read_bytes()


def test_hidden_tokens_keep_their_place(base: Path) -> None:
    """Of the features that are told, the first 14 are sines and then cosines of the same phases."""
    with ChannelDataset.open(base / "d.h5") as dataset:
        source = DatasetLinks(dataset, "train", PREDICTION)
        views = NoisyViews(source=source, spec=PREDICTION, num_samples=4, seed=1).batch(torch.arange(4))
        tokenizer = lam_for(TINY.model, source.setting, seed=1).tokenizer
        tokens = tokenizer.tokenise(views.history, views.noise_variance)
    told = tokens.features[..., told_features(tokens.features.shape[2])]  # [4, paths, told]
    sines, cosines = told[..., :7], told[..., 7:14]
    ones = (sines.square() + cosines.square())[tokens.mask]
    torch.testing.assert_close(ones, torch.ones_like(ones))
    setting = told[..., 14:][tokens.mask]
    assert torch.equal(setting, setting[:1].expand_as(setting))  # the rest is the same for every path


@pytest.mark.parametrize("tuning", ["lora", "head", "full"])
def test_a_lam_on_it_starts_from_its_embedding_and_head(made: Path, base: Path, tuning: str) -> None:
    spec = ModelSpec(backbone=str(made), tuning=tuning, num_paths=6)  # type: ignore[arg-type]
    lam = lam_on(base, spec)
    around = backbone_module.tensors_around(spec)
    assert around is not None
    own = lam.tensors_around()
    assert own.keys() == around.keys() and all(torch.equal(own[name], around[name]) for name in own)
    drawn = lam_on(base, dataclasses.replace(spec, tuning="scratch"))
    assert not torch.equal(drawn.tensors_around()["embedding.0.weight"], around["embedding.0.weight"])
    frozen = [name for name, p in lam.named_parameters() if not p.requires_grad]
    assert bool(frozen) == (tuning != "full")
    patches = ModelSpec(backbone=str(made), tokenizer="patch")
    assert backbone_module.tensors_around(patches) is None
    lam_on(base, patches)


def test_it_is_fine_tuned_by_lora_as_any_backbone(made: Path, base: Path, tmp_path: Path) -> None:
    run = RunSpec(
        name="r",
        dataset="d.h5",
        prediction=PREDICTION,
        model=ModelSpec(backbone="backbone", tuning="lora", num_paths=6),
        training=TrainingSpec(num_steps=3, batch_size=8, num_samples=16, validation_every_steps=3),
    )
    shutil.copytree(made, tmp_path / "backbone")
    shutil.copy(base / "d.h5", tmp_path)
    folder = finetune(run, tmp_path, tmp_path / "runs")
    with ChannelDataset.open(tmp_path / "d.h5") as dataset:
        source = DatasetLinks(dataset, "test", PREDICTION)
        views = NoisyViews(source=source, spec=PREDICTION, num_samples=4, seed=1, augment=False)
        links = views.batch(torch.arange(4))
        predictor = load_lam(folder, source.setting)
        future = predictor.predict(links.history, links.noise_variance)
    assert (future - links.future).abs().square().sum() < links.future.abs().square().sum()
    weights = predictor.lam.tensors_around()
    assert not torch.equal(
        weights["embedding.0.weight"], lam_on(base, run_model(made)).tensors_around()["embedding.0.weight"]
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_trainable"] < summary["num_parameters"]


def run_model(made: Path) -> ModelSpec:
    return ModelSpec(backbone=str(made), num_paths=6)


def test_the_pretrained_head_serves_settings_it_has_not_seen(made: Path, base: Path) -> None:
    lam = lam_on(base, ModelSpec(backbone=str(made), tuning="head", num_paths=6))
    with ChannelDataset.open(base / "d.h5") as dataset:
        source = DatasetLinks(dataset, "test", PREDICTION)
        views = NoisyViews(source=source, spec=PREDICTION, num_samples=4, seed=1).batch(torch.arange(4))
    tokens = lam.tokenizer.with_target(
        lam.tokenizer.tokenise(views.history, views.noise_variance), views.future
    )
    with torch.no_grad():
        assert torch.isfinite(nmse_of(lam, tokens)).all() and nmse_of(lam, tokens).max() < 2


def test_without_shipped_weights_airlam_says_how_to_make_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Path
) -> None:
    monkeypatch.setattr(backbone_module, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match="make some with airlam pretrain -o FOLDER"):
        build_backbone(ModelSpec(backbone="airlam"))
    shutil.copytree(made, tmp_path / "pretrained_backbone")
    expected = build_backbone(ModelSpec(backbone=str(made))).state_dict()
    got = build_backbone(ModelSpec(backbone="airlam")).state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_folder_called_airlam_does_not_hide_the_shipped_backbone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "airlam").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backbone_module, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match="backbone 'airlam' has no weights"):
        build_backbone(ModelSpec(backbone="airlam"))


def test_sites_are_left_out_where_no_ray_tracer_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mixture_tokens, "good_llvm", lambda: None)
    only = dataclasses.replace(TINY, mixture=dataclasses.replace(TINY.mixture, channels=("munich",)))
    with pytest.raises(DataError, match="all settings are ray-traced"):
        pretrain(only, tmp_path / "b")
    mixed = dataclasses.replace(
        TINY,
        mixture=dataclasses.replace(TINY.mixture, channels=("cdl_a", "street_canyon"), num_settings=2),
        training=dataclasses.replace(TINY.training, num_steps=1, validation_every_steps=1),
    )
    with caplog.at_level(logging.WARNING):
        card = json.loads((pretrain(mixed, tmp_path / "c") / "card.json").read_text())
    assert card["left_out"] == ["001_street_canyon"] and len(card["settings"]) == 1
    assert "001_street_canyon" in caplog.text


def test_a_batch_holds_one_setting(made: Path) -> None:
    class Part:
        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

        def batch(self, indices: torch.Tensor) -> Any:
            return indices

    samples = MixtureSamples(parts=(Part(3), Part(4)))  # type: ignore[arg-type]
    assert len(samples) == 7
    batch = samples.batch(torch.tensor([5, 3]))
    assert batch.setting_index == 1 and batch.tokens.tolist() == [2, 0]  # type: ignore[attr-defined]


def test_every_packaged_scale_reads_and_others_are_refused(tmp_path: Path) -> None:
    for name in SCALES:
        assert resolve_pretraining(name).name == name
    (tmp_path / "mine.toml").write_text(spec_to_toml(TINY))
    assert resolve_pretraining(str(tmp_path / "mine.toml")) == TINY
    with pytest.raises(SpecError, match="no packaged scale; take two_cores or tiny"):
        resolve_pretraining("huge")
    with pytest.raises(SpecError, match="expected 'path', and 'scratch' or 'full'"):
        dataclasses.replace(TINY, model=ModelSpec(tuning="lora"))
    with pytest.raises(SpecError, match="cannot be kept as one; take 'small'"):
        dataclasses.replace(TINY, model=ModelSpec(backbone="mlp", tuning="scratch"))
    with pytest.raises(SpecError, match="masked_share is 1"):
        dataclasses.replace(TINY, masked_share=1.0)


def test_the_command_prints_the_folder(made: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["airlam", "pretrain", "tiny", "-o", str(made)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert not leaving.value.code
    assert capsys.readouterr().out.strip() == str(made)
