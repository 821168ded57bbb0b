"""A precoder's folder gives it back, as a precoder and with the face of a LAM, and no other one."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from airlam.errors import DataError
from airlam.model.graph_precoder import GraphPrecoder, build_precoder
from airlam.model.precoder_chain import PrecoderLam, load_precoder, save_precoder
from airlam.specs import ModelSpec, PrecoderSpec

ALONE = PrecoderSpec(width=8, num_edge_channels=2, num_layers=1)
JOINED = dataclasses.replace(ALONE, backbone=ModelSpec(backbone="small", num_layers=1, lora_rank=2))


def stirred(spec: PrecoderSpec, seed: int = 1) -> GraphPrecoder:
    """One whose answers are not those it starts with."""
    precoder = build_precoder(spec, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for parameter in precoder.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return precoder.eval()


def precoded(precoder: GraphPrecoder) -> torch.Tensor:
    h = torch.randn(2, 3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return precoder.precode(h, torch.full((2,), 0.1))


def pretrained(folder: Path, seed: int) -> PrecoderSpec:
    """With a tiny backbone that has weights of its own."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=5, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return dataclasses.replace(ALONE, backbone=ModelSpec(backbone=str(folder), lora_rank=2))


@pytest.mark.parametrize("spec", [ALONE, JOINED], ids=["alone", "joined"])
def test_saved_and_loaded_it_precodes_the_same(spec: PrecoderSpec, tmp_path: Path) -> None:
    precoder = stirred(spec)
    PrecoderLam(precoder, max_users=3).save(tmp_path / "lam")
    assert torch.equal(precoded(load_precoder(tmp_path / "lam")), precoded(precoder))
    other = PrecoderLam(stirred(spec, seed=2), max_users=3)
    assert not torch.equal(precoded(other.precoder), precoded(precoder))
    other.load(tmp_path / "lam")
    assert torch.equal(precoded(other.precoder), precoded(precoder))
    assert (tmp_path / "lam" / "adapter").is_dir() == (spec.backbone is not None)


def test_another_precoder_is_refused(tmp_path: Path) -> None:
    save_precoder(stirred(ALONE), tmp_path / "lam")
    with pytest.raises(DataError, match="precoder of another spec"):
        PrecoderLam(stirred(JOINED), max_users=3).load(tmp_path / "lam")
    with pytest.raises(DataError, match=r"no precoder\.toml"):
        load_precoder(tmp_path)


def test_frozen_weights_stay_where_they_are_and_others_are_refused(tmp_path: Path) -> None:
    spec = pretrained(tmp_path / "bert", 0)
    precoder = stirred(spec)
    save_precoder(precoder, tmp_path / "lam")
    assert torch.equal(precoded(load_precoder(tmp_path / "lam")), precoded(precoder))
    kept = sum(p.numel() for p in precoder.parameters() if p.requires_grad)
    size = sum(file.stat().st_size for file in (tmp_path / "lam").rglob("*") if file.is_file())
    assert size < 4 * kept + 20_000 < 4 * sum(p.numel() for p in precoder.parameters())
    pretrained(tmp_path / "bert", 1)
    with pytest.raises(DataError, match="tuned on other weights of"):
        load_precoder(tmp_path / "lam")
