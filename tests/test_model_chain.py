"""A backbone in parts is the backbone as a whole: outputs and gradients, for every family, cut anywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
)

from airlam.errors import SpecError
from airlam.model.backbone import build_backbone
from airlam.model.chain import Backbone
from airlam.specs import ModelSpec

WIDTH = 16
MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertModel(
        BertConfig(
            vocab_size=5,
            hidden_size=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            pad_token_id=0,
        )
    ),
    "llama": lambda: LlamaModel(
        LlamaConfig(
            vocab_size=5,
            hidden_size=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
        )
    ),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=5, n_embd=WIDTH, n_layer=3, n_head=2, n_positions=16)),
    "gemma": lambda: Gemma3TextModel(
        Gemma3TextConfig(
            vocab_size=5,
            hidden_size=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            intermediate_size=32,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family, saved as a user would have it."""
    root = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    for name, build in MODELS.items():
        build().save_pretrained(root / name)
    return {name: root / name for name in MODELS}


def loaded(folders: dict[str, Path], family: str, *, num_layers: int | None = None) -> nn.Module:
    return build_backbone(ModelSpec(backbone=str(folders[family]), num_layers=num_layers)).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return torch.randn(2, 6, WIDTH), mask


def gradients(model: nn.Module, output: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    output.square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("ordered", [True, False])
def test_chain_equals_the_model(folders: dict[str, Path], family: str, ordered: bool) -> None:
    model = loaded(folders, family)
    backbone = Backbone(model, ordered=ordered).eval()
    embedded, mask = inputs()
    positions = torch.arange(6)[None] if ordered else torch.zeros(1, 6, dtype=torch.long)
    attention = mask[:, None, None, :].expand(-1, 1, 6, 6)
    whole = model(inputs_embeds=embedded, attention_mask=attention, position_ids=positions).last_hidden_state
    expected = gradients(model, whole)
    chained = backbone(embedded, mask)
    torch.testing.assert_close(chained, whole, rtol=1e-5, atol=1e-5)
    got = gradients(model, chained)
    assert len(got) == len(expected) > 10
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_every_cut_equals_no_cut(folders: dict[str, Path], family: str) -> None:
    """The hidden states cross the cut as numbers; the gradient comes back across it by hand."""
    model = loaded(folders, family)
    backbone = Backbone(model, ordered=True).eval()
    embedded, mask = inputs()
    embedded.requires_grad_()  # stands for the embedding before it
    uncut = backbone(embedded, mask)
    expected = gradients(model, uncut)
    for cut in range(backbone.num_blocks + 1):
        hidden, calls = backbone.enter(embedded, mask)
        for index in range(cut):
            hidden = backbone.block(index, hidden, calls[index])
        received = hidden.detach().requires_grad_()
        other_calls = backbone.calls(received, mask)
        after = received
        for index in range(cut, backbone.num_blocks):
            after = backbone.block(index, after, other_calls[index])
        output = backbone.norm(after)
        torch.testing.assert_close(output, uncut, rtol=1e-5, atol=1e-5)
        model.zero_grad()
        output.square().sum().backward()
        hidden.backward(received.grad)
        got = [p.grad for p in model.parameters() if p.grad is not None]
        for mine, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_tokens_without_places_are_a_set(folders: dict[str, Path], family: str) -> None:
    backbone = Backbone(loaded(folders, family), ordered=False).eval()
    embedded, mask = inputs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = backbone(embedded[:, order], mask[:, order])
    torch.testing.assert_close(shuffled, backbone(embedded, mask)[:, order], rtol=1e-4, atol=1e-5)
    places = Backbone(backbone.model, ordered=True).eval()
    assert not torch.allclose(places(embedded[:, order], mask[:, order]), places(embedded, mask)[:, order])


@pytest.mark.parametrize("family", MODELS)
def test_masked_tokens_change_nothing(folders: dict[str, Path], family: str) -> None:
    backbone = Backbone(loaded(folders, family), ordered=True).eval()
    embedded, mask = inputs()
    other = embedded.clone()
    other[1, 4:] += 7.0
    torch.testing.assert_close(backbone(other, mask)[mask], backbone(embedded, mask)[mask])


@pytest.mark.parametrize("family", MODELS)
def test_depth_cut_keeps_the_first_blocks(folders: dict[str, Path], family: str) -> None:
    embedded, mask = inputs()
    deep = Backbone(loaded(folders, family), ordered=True).eval()
    shallow = Backbone(loaded(folders, family, num_layers=2), ordered=True).eval()
    hidden, calls = deep.enter(embedded, mask)
    for index in range(2):
        hidden = deep.block(index, hidden, calls[index])
    assert shallow.num_blocks == 2
    torch.testing.assert_close(shallow(embedded, mask), deep.norm(hidden))
    with pytest.raises(SpecError, match=r"num_layers 4 is beyond .* 3 layers; choose 1\.\.3"):
        loaded(folders, family, num_layers=4)


def test_separate_calls_draw_no_random_numbers(folders: dict[str, Path]) -> None:
    """A block that runs elsewhere asks for its masks; that must not shift the dropout of the others."""
    backbone = Backbone(loaded(folders, "bert"), ordered=True).train()
    before = torch.get_rng_state()
    backbone.calls(*inputs())
    assert torch.equal(torch.get_rng_state(), before)


def test_bfloat16_stays_inside_the_backbone(folders: dict[str, Path]) -> None:
    backbone = Backbone(loaded(folders, "llama"), ordered=True).eval()
    embedded, mask = inputs()
    exact = backbone(embedded, mask)
    backbone.autocast_dtype = torch.bfloat16
    coarse = backbone(embedded, mask)
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, exact)
    torch.testing.assert_close(coarse, exact, rtol=0.1, atol=0.1)


class PlacedBert(BertModel):
    """A backbone whose positions cannot be chosen."""

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return super().forward(inputs_embeds=inputs_embeds, attention_mask=attention_mask)


def test_a_model_without_position_ids_cannot_hold_a_set() -> None:
    config = BertConfig(vocab_size=5, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2)
    model = PlacedBert(config).eval()
    embedded, mask = inputs()
    attention = mask[:, None, None, :].expand(-1, 1, 6, 6)
    whole = model(inputs_embeds=embedded, attention_mask=attention).last_hidden_state
    torch.testing.assert_close(Backbone(model, ordered=True).eval()(embedded, mask), whole)
    with pytest.raises(SpecError, match="takes no position_ids"):
        Backbone(model, ordered=False)
