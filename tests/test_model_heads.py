"""The patch head: a fresh one holds, its error is the channel's, a link is predicted alone as in company."""

import pytest
import torch

from airlam.model.heads import PatchHead
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec
from airlam.tokens.patch import PatchTokenizer


def setting(num_target: int | None = None) -> PredictionSetting:
    history = tuple(180e3 * i for i in range(7))
    target = history if num_target is None else tuple(180e3 * (7 + i) for i in range(num_target))
    return PredictionSetting(
        base_station=ArraySpec(num_rows=2, num_cols=3),
        num_user_antennas=2,
        history_frequencies_hz=history,
        target_frequencies_hz=target,
        slot_duration_s=0.5e-3,
        num_history=5,
        num_horizon=3,
        max_doppler_hz=100.0,
    )


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def perturbed(head: PatchHead) -> PatchHead:
    torch.manual_seed(3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def test_a_fresh_head_holds_the_last_slot() -> None:
    tokenizer = PatchTokenizer(setting(), max_tokens=10)
    head, history = PatchHead(tokenizer, 8), normal(2, 5, 2, 6, 7)
    tokens = tokenizer.tokenise(history, torch.ones(2))
    output = head(torch.randn(2, tokenizer.num_tokens, 8), tokens.context)
    held = history[:, -1:].expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(head.channel(output, tokens.context), held, rtol=1e-5, atol=1e-5)


def test_a_fresh_head_predicts_nothing_for_another_band() -> None:
    tokenizer = PatchTokenizer(setting(num_target=7), max_tokens=10)
    head, history = PatchHead(tokenizer, 8), normal(2, 5, 2, 6, 7)
    tokens = tokenizer.tokenise(history, torch.ones(2))
    output = head(torch.randn(2, tokenizer.num_tokens, 8), tokens.context)
    assert head.channel(output, tokens.context).abs().max() == 0


@pytest.mark.parametrize("num_target", [None, 7, 4])
def test_squared_error_is_that_of_the_channel(num_target: int | None) -> None:
    where = setting(num_target)
    tokenizer = PatchTokenizer(where, max_tokens=10)
    head, history = perturbed(PatchHead(tokenizer, 8)), 1e-3 * normal(2, 5, 2, 6, 7)
    future = 1e-3 * normal(2, 3, 2, 6, len(where.target_frequencies_hz), seed=1)
    tokens = tokenizer.with_target(tokenizer.tokenise(history, torch.ones(2)), future)
    output = head(torch.randn(2, tokenizer.num_tokens, 8), tokens.context)
    error, energy = head.squared_error(output, tokens.context)
    difference = head.channel(output, tokens.context) - future
    torch.testing.assert_close(error, difference.abs().square().sum(dim=(1, 2, 3, 4)), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(energy, future.abs().square().sum(dim=(1, 2, 3, 4)), rtol=1e-4, atol=1e-9)
