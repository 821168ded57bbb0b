"""The LLM4CP replica: published sizes, what trains, independence of links, weights from a folder."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from airlam.errors import SpecError
from airlam.model.llm4cp import Llm4Cp
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec


def setting(num_subcarriers: int = 48, *, fdd: bool = False, num_history: int = 16) -> PredictionSetting:
    history = tuple(180e3 * i for i in range(num_subcarriers))
    return PredictionSetting(
        base_station=ArraySpec(num_cols=2),
        num_user_antennas=2,
        history_frequencies_hz=history,
        target_frequencies_hz=tuple(f + 8.64e6 for f in history) if fdd else history,
        slot_duration_s=0.5e-3,
        num_history=num_history,
        num_horizon=4,
        max_doppler_hz=222.0,
    )


def small(where: PredictionSetting, **options: object) -> Llm4Cp:
    sizes = {"width": 64, "num_layers": 1, "num_maps": 4, "num_residual_blocks": 1} | options
    return Llm4Cp(where, **sizes).eval()  # type: ignore[arg-type]


def test_published_sizes() -> None:
    """About 1.73 M trainable counts GPT-2's 1024 positions, of which a random one keeps the 16 in use.

    82.9 M frozen counts GPT-2's word embeddings, which are dropped here.
    """
    with torch.device("meta"):
        net = Llm4Cp(setting())
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    assert trainable + (1024 - 16) * 768 == pytest.approx(1.73e6, rel=0.03)
    assert frozen + 50257 * 768 == pytest.approx(82.9e6, rel=0.03)
    assert net.backbone_weights == "random"


def test_norms_and_positions_of_gpt2_train() -> None:
    for name, parameter in small(setting(6)).gpt2.named_parameters():
        assert parameter.requires_grad == ("ln_" in name or "wpe" in name), name


@pytest.mark.parametrize("fdd", [False, True])
@pytest.mark.parametrize("num_history", [16, 6, 5])
def test_shapes_scale_and_independence(fdd: bool, num_history: int) -> None:
    where = setting(6, fdd=fdd, num_history=num_history)
    net = small(where)
    history = torch.randn(3, num_history, 2, 2, 6, dtype=torch.complex64)
    with torch.no_grad():
        future = net(history)
        assert future.shape == (3, 4, 2, 2, 6)
        torch.testing.assert_close(net(history[1:2]), future[1:2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(1e-5 * history), 1e-5 * future, rtol=1e-3, atol=1e-9)


def test_weights_from_a_local_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=5, n_embd=64, n_layer=2, n_head=1))
    model.save_pretrained(tmp_path)
    net = small(setting(6), backbone=str(tmp_path))
    assert net.backbone_weights == str(tmp_path)
    stored = model.h[0].attn.c_attn.weight
    assert torch.equal(net.gpt2.get_submodule("h.0.attn.c_attn").weight, stored)  # type: ignore[arg-type]
    assert len(net.gpt2.h) == 1  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="takes a GPT-2 of width 32"):
        small(setting(6), backbone=str(tmp_path), width=32)
