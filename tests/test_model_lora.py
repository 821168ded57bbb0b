"""LoRA: a fresh adapter changes nothing, what trains is what should, plain peft loads what is saved."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from airlam.errors import DataError
from airlam.model.backbone import build_backbone
from airlam.model.families import norm_names, projection_names
from airlam.model.lora import load_adapter, merge_adapters, prepare_tuning, save_adapter
from airlam.specs import ModelSpec

FAMILIES = ("small", "llama", "gpt2")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    root = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    llama = LlamaConfig(
        vocab_size=5, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    LlamaModel(llama).save_pretrained(root / "llama")
    GPT2Model(GPT2Config(vocab_size=5, n_embd=16, n_layer=2, n_head=2)).save_pretrained(root / "gpt2")
    return {
        "small": ModelSpec(num_layers=2, lora_rank=4),
        "llama": ModelSpec(backbone=str(root / "llama"), lora_rank=4),
        "gpt2": ModelSpec(backbone=str(root / "gpt2"), lora_rank=4),
    }


def run(model: nn.Module) -> torch.Tensor:
    width = model.config.hidden_size  # type: ignore[union-attr]
    embedded = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden: torch.Tensor = model.eval()(inputs_embeds=embedded).last_hidden_state
    return hidden


def trained(spec: ModelSpec) -> nn.Module:
    """A backbone whose trainable weights have all moved."""
    model = prepare_tuning(build_backbone(spec), spec)
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_nothing(specs: dict[str, ModelSpec], family: str) -> None:
    plain = run(build_backbone(specs[family]))
    adapted = run(prepare_tuning(build_backbone(specs[family]), specs[family]))
    torch.testing.assert_close(adapted, plain, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_every_projection_and_norm_and_nothing_else(
    specs: dict[str, ModelSpec], family: str
) -> None:
    model = build_backbone(specs[family])
    projections, norms = set(projection_names(model)), set(norm_names(model))
    prepare_tuning(model, specs[family])
    adapted = set()
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if "lora_A" in parts or "lora_B" in parts:
            assert parameter.requires_grad
            adapted |= projections & set(parts)
        else:
            assert parameter.requires_grad == ("modules_to_save" in parts), name
            assert not parameter.requires_grad or norms & set(parts)
    assert adapted == projections


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_size_is_its_closed_form(specs: dict[str, ModelSpec], family: str) -> None:
    spec = specs[family]
    model = build_backbone(spec)
    shapes = [
        module.weight.shape
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in projection_names(model) and hasattr(module, "weight")
    ]
    norms = sum(
        p.numel()
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in norm_names(model)
        for p in module.parameters()
    )
    prepare_tuning(model, spec)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == spec.lora_rank * sum(sum(shape) for shape in shapes) + norms


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_loads_the_adapter(specs: dict[str, ModelSpec], family: str, tmp_path: Path) -> None:
    model = trained(specs[family])
    save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(build_backbone(specs[family]), str(tmp_path))
    torch.testing.assert_close(run(loaded.get_base_model()), run(model), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(run(model), run(build_backbone(specs[family])))


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_is_the_same(specs: dict[str, ModelSpec], family: str, tmp_path: Path) -> None:
    model = trained(specs[family])
    save_adapter(model, tmp_path)
    other = prepare_tuning(build_backbone(specs[family]), specs[family])
    load_adapter(other, tmp_path)
    assert torch.equal(run(other), run(model))


def test_an_adapter_of_another_rank_is_refused(specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    save_adapter(trained(specs["small"]), tmp_path)
    other_spec = ModelSpec(num_layers=2, lora_rank=3)
    other = prepare_tuning(build_backbone(other_spec), other_spec)
    before = run(other)
    with pytest.raises(DataError, match="lora_rank"):
        load_adapter(other, tmp_path)
    assert torch.equal(run(other), before)


def test_tuning_modes(specs: dict[str, ModelSpec]) -> None:
    for tuning, share in {"full": 1.0, "scratch": 1.0, "head": 0.0}.items():
        spec = ModelSpec(num_layers=1, tuning=tuning)  # type: ignore[arg-type]
        model = prepare_tuning(build_backbone(spec), spec)
        flags = [p.requires_grad for p in model.parameters()]
        assert sum(flags) / len(flags) == share


def test_a_disk_that_refuses_is_an_error_of_the_system(specs: dict[str, ModelSpec], tmp_path: Path) -> None:
    """As a full disk is, which the command line reports in one line."""
    (tmp_path / "adapter_model.safetensors" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="cannot write weights"):
        save_adapter(prepare_tuning(build_backbone(specs["gpt2"]), specs["gpt2"]), tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_adapters_change_nothing_and_leave_nothing_of_peft(
    specs: dict[str, ModelSpec], family: str
) -> None:
    model = trained(specs[family])
    before = run(model)
    merge_adapters(model)
    assert torch.allclose(run(model), before, rtol=1e-4, atol=1e-5)
    assert not [name for name, _ in model.named_parameters() if "lora" in name or "modules_to_save" in name]
