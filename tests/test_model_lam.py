"""The LAM as a graph: module by module equals at once, saved and loaded is the same, others are refused."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from airlam.errors import DataError, SpecError
from airlam.model.heads import PatchHead
from airlam.model.lam import LAM, build_lam, count_parameters, read_model_spec
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec, ModelSpec
from airlam.tokens.base import TokenBatch
from airlam.tokens.patch import PatchTokenizer

FREQUENCIES_HZ = tuple(180e3 * i for i in range(6))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=2, num_cols=2),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=4,
    num_horizon=2,
    max_doppler_hz=100.0,
)
TOKENIZER = PatchTokenizer(SETTING, max_tokens=8)
HISTORY = torch.randn(3, 4, 1, 4, 6, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
NOISE = torch.tensor([0.1, 0.2, 0.3])


def lam(spec: ModelSpec | None = None, *, seed: int = 0) -> LAM:
    spec = spec or ModelSpec(tokenizer="patch", num_layers=2)
    return build_lam(spec, TOKENIZER, lambda width: PatchHead(TOKENIZER, width), seed=seed).eval()


def moved(model: LAM) -> LAM:
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def tokens() -> TokenBatch:
    return TOKENIZER.with_target(TOKENIZER.tokenise(HISTORY, NOISE), HISTORY[:, :2])


def loss(model: LAM, output: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.head().squared_error(output, tokens().context)[0].sum()


def test_names_of_the_graph() -> None:
    assert lam().module_names == (
        "tokenizer.csi",
        "embedding",
        "block.0",
        "block.1",
        "norm",
        "head.channel_prediction",
    )


def test_module_by_module_equals_at_once() -> None:
    model = moved(lam())
    at_once = model(tokens())
    state: dict[str, torch.Tensor] = {"history": HISTORY, "noise_variance": NOISE}
    for name in model.module_names[:-1]:
        state |= model.forward_module(name, state)
    output = model.forward_module(model.module_names[-1], state)
    torch.testing.assert_close(output["future"], at_once["future"], rtol=1e-6, atol=1e-6)
    loss(model, at_once).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss(model, output).backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-5, atol=1e-5)


def test_a_fresh_lam_is_its_head_alone() -> None:
    output = lam()(tokens())
    held = HISTORY[:, -1:].expand(-1, 2, -1, -1, -1)
    torch.testing.assert_close(lam().head().channel(output, tokens().context), held, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tuning", ["lora", "head", "full", "scratch"])
def test_saved_and_loaded_predicts_the_same(tuning: str, tmp_path: Path) -> None:
    spec = ModelSpec(tokenizer="patch", num_layers=1, tuning=tuning)  # type: ignore[arg-type]
    model = moved(lam(spec))
    model.save(tmp_path / "lam")
    other = lam(read_model_spec(tmp_path / "lam"))
    assert not torch.equal(other(tokens())["future"], model(tokens())["future"])
    other.load(tmp_path / "lam")
    assert torch.equal(other(tokens())["future"], model(tokens())["future"])
    assert (tmp_path / "lam" / "adapter").is_dir() == (tuning == "lora")


def local_backbone(folder: Path, seed: int) -> ModelSpec:
    """A tiny backbone with weights of its own."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=5, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    BertModel(config).save_pretrained(folder)
    return ModelSpec(backbone=str(folder), tokenizer="patch", lora_rank=2)


def test_frozen_pretrained_weights_are_not_saved(tmp_path: Path) -> None:
    model = lam(local_backbone(tmp_path / "bert", 0))
    model.save(tmp_path / "lam")
    size = sum(file.stat().st_size for file in (tmp_path / "lam").rglob("*") if file.is_file())
    count = count_parameters(model)
    assert 4 * count.trainable <= size < 4 * count.trainable + 20_000 < 2 * count.total


def test_other_frozen_weights_are_refused(tmp_path: Path) -> None:
    model = moved(lam(local_backbone(tmp_path / "bert", 0)))
    model.save(tmp_path / "lam")
    again = lam(model.spec)
    again.load(tmp_path / "lam")
    assert torch.equal(again(tokens())["future"], model(tokens())["future"])
    local_backbone(tmp_path / "bert", 1)
    with pytest.raises(DataError, match="tuned on other weights"):
        lam(model.spec).load(tmp_path / "lam")


def test_a_random_backbone_travels_with_its_tuning(tmp_path: Path) -> None:
    model = moved(lam())
    model.save(tmp_path / "lam")
    other = lam(seed=7)
    other.load(tmp_path / "lam")
    assert torch.equal(other(tokens())["future"], model(tokens())["future"])


def test_a_copy_stands_alone() -> None:
    model = moved(lam())
    before = model(tokens())["future"]
    moved(copy.deepcopy(model))
    assert torch.equal(model(tokens())["future"], before)


def test_another_model_is_refused(tmp_path: Path) -> None:
    lam().save(tmp_path / "lam")
    with pytest.raises(DataError, match="another spec"):
        lam(ModelSpec(tokenizer="patch", num_layers=1)).load(tmp_path / "lam")
    with pytest.raises(DataError, match=r"no model\.toml"):
        lam().load(tmp_path)
    wider = PatchTokenizer(SETTING, max_tokens=4)
    other = build_lam(lam().spec, wider, lambda width: PatchHead(wider, width))
    with pytest.raises(DataError, match=r"weights\.safetensors"):
        other.load(tmp_path / "lam")


def test_same_seed_same_weights() -> None:
    first, again, other = lam().state_dict(), lam().state_dict(), lam(seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.0.weight"], other["embedding.0.weight"])


def test_counts_add_up() -> None:
    count = count_parameters(lam())
    assert 0 < count.trainable < count.total
    assert count.trainable_share == count.trainable / count.total
    full = count_parameters(lam(ModelSpec(tokenizer="patch", num_layers=2, tuning="full")))
    assert full.trainable == full.total


def test_unknown_modules_and_tasks_are_named() -> None:
    with pytest.raises(SpecError, match=r"no module 'block\.9'"):
        lam().forward_module("block.9", {})
    with pytest.raises(SpecError, match="no head for task 'beams'"):
        lam().head("beams")
