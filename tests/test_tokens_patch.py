"""Patch tokens: exact inverse, unitary patches, sizes that fit."""

import pytest
import torch

from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec
from airlam.tokens.patch import PatchTokenizer

DUAL = ArraySpec(num_rows=2, num_cols=3, polarization="dual", polarization_type="cross")


def setting(
    array: ArraySpec = DUAL, *, user_antennas: int = 1, history: int = 9, target: int | None = None
) -> PredictionSetting:
    return PredictionSetting(
        base_station=array,
        num_user_antennas=user_antennas,
        history_frequencies_hz=tuple(180e3 * i for i in range(history)),
        target_frequencies_hz=tuple(180e3 * i for i in range(history))
        if target is None
        else tuple(180e3 * (history + i) for i in range(target)),
        slot_duration_s=0.5e-3,
        num_history=6,
        num_horizon=2,
        max_doppler_hz=100.0,
    )


def links(where: PredictionSetting, num_slots: int, num_subcarriers: int, batch: int = 3) -> torch.Tensor:
    shape = (batch, num_slots, where.num_user_antennas, where.base_station.num_ports, num_subcarriers)
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("max_tokens", [1, 7, 64, 10_000])
@pytest.mark.parametrize("array", [ArraySpec(), ArraySpec(num_cols=5), DUAL])
@pytest.mark.parametrize("user_antennas", [1, 2])
def test_inverse_gives_the_history_back(array: ArraySpec, user_antennas: int, max_tokens: int) -> None:
    where = setting(array, user_antennas=user_antennas, history=11)
    tokenizer = PatchTokenizer(where, max_tokens=max_tokens)
    history = 1e-6 * links(where, 6, 11)
    tokens = tokenizer.tokenise(history, torch.full((3,), 1e-14))
    assert tokens.features.shape == (3, tokenizer.num_tokens, tokenizer.num_features)
    assert tokenizer.num_tokens <= max(max_tokens, user_antennas)
    torch.testing.assert_close(tokenizer.inverse(tokens), history, rtol=1e-5, atol=1e-11)


def test_patches_keep_the_energy_and_invert() -> None:
    where = setting(target=7)
    tokenizer = PatchTokenizer(where, max_tokens=12)
    future = links(where, 2, 7)
    patches = tokenizer.to_patches(future, tokenizer.target_taps_per_patch)
    torch.testing.assert_close(patches.abs().square().sum(), future.abs().square().sum())
    back = tokenizer.from_patches(patches, tokenizer.target_taps_per_patch, 7)
    torch.testing.assert_close(back, future, rtol=1e-5, atol=1e-5)


def test_a_path_on_the_grid_fills_one_bin() -> None:
    where = setting(ArraySpec(num_cols=4), history=8)
    tokenizer = PatchTokenizer(where, max_tokens=10_000)
    taps, columns = torch.arange(8), torch.arange(4)
    phase = -2 * torch.pi * 3 * taps[None, :] / 8 + 2 * torch.pi * columns[:, None] / 4
    channel = torch.polar(torch.ones(4, 8), phase)[None, None, None].expand(1, 6, 1, 4, 8)
    tokens = tokenizer.tokenise(channel, torch.ones(1))
    energy = tokens.context["patches"].abs().square().sum(dim=(2, 3))
    assert energy.argmax().item() == 1 * 8 + 3  # column frequency 1, delay tap 3
    torch.testing.assert_close(energy.max(), energy.sum())


def test_tokens_do_not_depend_on_the_scale() -> None:
    where = setting()
    tokenizer = PatchTokenizer(where)
    history, noise = links(where, 6, 9), torch.tensor([0.1, 0.2, 0.3])
    tokens, louder = tokenizer.tokenise(history, noise), tokenizer.tokenise(100 * history, 1e4 * noise)
    torch.testing.assert_close(louder.features, tokens.features, rtol=1e-4, atol=1e-5)


def test_a_batch_is_its_members_and_a_dead_link_stays_finite() -> None:
    where = setting()
    tokenizer = PatchTokenizer(where)
    history, noise = links(where, 6, 9), torch.full((3,), 0.1)
    history[1] = 0
    tokens = tokenizer.tokenise(history, noise)
    assert torch.isfinite(tokens.features).all()
    alone = tokenizer.tokenise(history[2:], noise[2:])
    torch.testing.assert_close(tokens.select(torch.tensor([2])).features, alone.features)


def test_filling_is_not_among_the_target_bins() -> None:
    where = setting(target=7)
    tokenizer = PatchTokenizer(where, max_tokens=12)
    assert int(tokenizer.target_bins().sum()) == where.base_station.num_ports * 7
