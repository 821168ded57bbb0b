"""Several settings train one set of weights, and hidden features are hidden."""

from dataclasses import replace

import pytest
import torch

from airlam.errors import DataError
from airlam.model.heads import PatchHead
from airlam.model.lam import LAM, build_lam
from airlam.model.pretrainer import Pretrainer
from airlam.model.storage import trainable_tensors
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
OTHER = replace(SETTING, slot_duration_s=1e-3)  # of the same shapes


def lam(setting: PredictionSetting, seed: int, num_layers: int = 1) -> LAM:
    tokenizer = PatchTokenizer(setting, max_tokens=8)
    spec = ModelSpec(tokenizer="patch", tuning="scratch", num_layers=num_layers)
    return build_lam(spec, tokenizer, lambda width: PatchHead(tokenizer, width), seed=seed)


def tokens(size: int = 3) -> TokenBatch:
    history = torch.randn(size, 4, 1, 4, 6, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    tokenizer = PatchTokenizer(SETTING, max_tokens=8)
    return tokenizer.with_target(tokenizer.tokenise(history, torch.full((size,), 0.1)), history[:, :2])


def pretrainer(share: float = 0.5, told: tuple[int, ...] = (0, 1)) -> Pretrainer:
    size = tokens().features.shape[2]
    flags = torch.zeros(size, dtype=torch.bool)
    flags[list(told)] = True
    return Pretrainer(
        [lam(SETTING, 0), lam(OTHER, 1)],
        mean=torch.zeros(size),
        deviation=torch.ones(size),
        told=flags,
        masked_share=share,
        seed=4,
    ).eval()


def test_all_settings_have_the_weights_of_the_first() -> None:
    model = pretrainer()
    first, second = model.view(0), model.view(1)
    with torch.no_grad():
        for parameter in model.lam.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(first(tokens())["future"], second(tokens())["future"])
    second.head().squared_error(second(tokens()), tokens().context)[0].sum().backward()
    gradients = [p.grad for p in first.heads.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_shared_weights_are_kept_once() -> None:
    model = pretrainer()
    names = set(trainable_tensors(model))
    own = {f"lam.{name}" for name in trainable_tensors(model.lam)}
    assert names == own | {"mask_embedding", "reconstruction.weight", "reconstruction.bias"}
    assert len(list(model.parameters())) == len(names)


def test_moving_the_model_moves_every_setting_s_constants() -> None:
    model = pretrainer().to(torch.float64)
    for index in (0, 1):
        head = model.view(index).heads["channel_prediction"]
        assert all(p.dtype == torch.float64 for p in head.parameters())
        assert all(b.dtype == torch.float64 for b in head.buffers() if b.is_floating_point())


def test_settings_of_other_shapes_are_refused() -> None:
    size = tokens().features.shape[2]
    facts = {"mean": torch.zeros(size), "deviation": torch.ones(size), "told": torch.zeros(size).bool()}
    with pytest.raises(DataError, match="this mixture's first setting"):
        Pretrainer([lam(SETTING, 0), lam(SETTING, 0, num_layers=2)], **facts, masked_share=0.3, seed=0)


def test_hidden_features_do_not_reach_the_guess_and_told_ones_do() -> None:
    """With every token hidden the guess depends on what is told alone."""
    model = pretrainer(share=0.999)
    features, mask = tokens().features, tokens().mask
    with torch.no_grad():
        seen: list[torch.Tensor] = []
        handle = model.reconstruction.register_forward_hook(lambda *call: seen.append(call[2]))
        for changed in (2, 0):
            moved = features.clone()
            moved[..., changed] += 1.0
            model.masked_error(features, mask)
            model.masked_error(moved, mask)
        handle.remove()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[2], seen[3])


def test_the_masked_error_of_a_perfect_guess_of_the_mean_is_the_variance() -> None:
    model = pretrainer(share=0.999)
    torch.nn.init.zeros_(model.reconstruction.weight)
    torch.nn.init.zeros_(model.reconstruction.bias)  # guesses the mean of every feature
    features, mask = tokens().features, tokens().mask
    expected = (features[..., 2:].square() * mask.unsqueeze(-1)).sum((1, 2))
    expected = expected / (mask.sum(1) * (features.shape[2] - 2))
    torch.testing.assert_close(model.masked_error(features, mask), expected)


def test_the_share_is_hidden_of_real_tokens_only() -> None:
    model = pretrainer(share=0.3)
    mask = torch.arange(10) < torch.tensor([[10], [4], [1]])  # [3, 10]
    for training in (True, False):
        hidden = model.train(training)._hide(mask)
        assert hidden.sum(1).tolist() == [3, 2, 1]
        assert not (hidden & ~mask).any()
    assert torch.equal(model.eval()._hide(mask), model._hide(mask))
    torch.manual_seed(0)
    first = model.train()._hide(mask)
    assert any(not torch.equal(model._hide(mask), first) for _ in range(20))
