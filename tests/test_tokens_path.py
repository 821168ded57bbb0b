"""Path tokens: an exact inverse, blindness to phase, and a compact target that loses nothing."""

import math

import pytest
import torch

from airlam.errors import DataError
from airlam.model.path_head import PathHead
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec
from airlam.tokens.path import PathTokenizer

NUM_PATHS = 5
BATCH = 4


def setting(fdd: bool = False, num_user_antennas: int = 2, cols: int = 4) -> PredictionSetting:
    frequencies = tuple(180e3 * index for index in range(40))
    return PredictionSetting(
        base_station=ArraySpec(num_rows=2, num_cols=cols, polarization="dual", polarization_type="VH"),
        num_user_antennas=num_user_antennas,
        history_frequencies_hz=frequencies[:16],
        target_frequencies_hz=frequencies[22:] if fdd else frequencies[:16],
        slot_duration_s=0.5e-3,
        num_history=12,
        num_horizon=3,
        max_doppler_hz=150.0,
    )


def links(link: PredictionSetting) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random history, noise variance and future of the right shapes."""
    generator = torch.Generator().manual_seed(0)
    antennas = (link.num_user_antennas, link.base_station.num_ports)
    past = (BATCH, link.num_history, *antennas, len(link.history_frequencies_hz))
    ahead = (BATCH, link.num_horizon, *antennas, len(link.target_frequencies_hz))
    history = torch.randn(past, dtype=torch.complex64, generator=generator)
    history = history + 5 * history[:, :1, :, :1, :1]  # something that lasts
    future = torch.randn(ahead, dtype=torch.complex64, generator=generator)
    return history, torch.rand(BATCH, generator=generator) + 0.1, future


@pytest.mark.parametrize("fdd", [False, True])
def test_the_inverse_is_exact(fdd: bool) -> None:
    link = setting(fdd)
    history, noise, _ = links(link)
    tokenizer = PathTokenizer(link, NUM_PATHS, keep_residual=True)
    back = tokenizer.reconstruct_history(tokenizer.tokenise(history, noise))
    assert (back - history).norm() < 1e-5 * history.norm()


def test_without_the_residual_there_is_no_inverse() -> None:
    history, noise, _ = links(setting())
    tokenizer = PathTokenizer(setting(), NUM_PATHS)
    with pytest.raises(DataError, match="keep_residual=True"):
        tokenizer.reconstruct_history(tokenizer.tokenise(history, noise))


def test_shapes_are_as_promised() -> None:
    history, noise, _ = links(setting())
    tokenizer = PathTokenizer(setting(), NUM_PATHS)
    tokens = tokenizer.tokenise(history, noise)
    assert tokens.features.shape == (BATCH, NUM_PATHS, tokenizer.num_features)
    assert tokens.features.dtype == torch.float32 and torch.isfinite(tokens.features).all()
    assert tokens.mask.shape == (BATCH, NUM_PATHS)
    assert all(len(value) == BATCH for value in tokens.context.values())


def test_features_do_not_see_phase_or_scale() -> None:
    history, noise, _ = links(setting())
    tokenizer = PathTokenizer(setting(), NUM_PATHS)
    plain = tokenizer.tokenise(history, noise)
    turned = tokenizer.tokenise(0.2 * history * torch.exp(torch.tensor(2.0j)), 0.04 * noise)
    assert torch.allclose(plain.features, turned.features, atol=2e-3)
    assert torch.allclose(5 * turned.context["scale"], plain.context["scale"], rtol=1e-5)


def test_a_small_array_gives_fewer_paths() -> None:
    link = PredictionSetting(
        base_station=ArraySpec(),
        num_user_antennas=1,
        history_frequencies_hz=(0.0, 1.0, 2.0),
        target_frequencies_hz=(0.0, 1.0, 2.0),
        slot_duration_s=1e-3,
        num_history=8,
        num_horizon=2,
        max_doppler_hz=50.0,
    )
    history, noise, future = links(link)
    tokenizer = PathTokenizer(link, 32)
    tokens = tokenizer.with_target(tokenizer.tokenise(history, noise), future)
    assert tokens.mask.shape == (BATCH, 3)
    assert torch.isfinite(tokens.features).all()
    assert (tokens.features[~tokens.mask] == 0).all()


@pytest.mark.parametrize("fdd", [False, True])
def test_the_compact_error_equals_the_full_one(fdd: bool) -> None:
    link = setting(fdd)
    history, noise, future = links(link)
    tokenizer = PathTokenizer(link, NUM_PATHS)
    tokens = tokenizer.tokenise(3 * history, 9 * noise)
    head = PathHead(link, 8)
    shape = (BATCH, 4, NUM_PATHS, 3)
    coefficients = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    output = {"coefficients": coefficients}
    full = (head.channel(output, tokens.context) - 3 * future).abs().square().sum((1, 2, 3, 4))
    error, energy = head.squared_error(output, tokenizer.with_target(tokens, 3 * future).context)
    assert torch.allclose(error, full, rtol=1e-4)
    assert torch.allclose(energy, 9 * future.abs().square().sum((1, 2, 3, 4)), rtol=1e-4)


def test_training_tokens_are_small() -> None:
    history, noise, future = links(setting())
    tokenizer = PathTokenizer(setting(), NUM_PATHS)
    tokens = tokenizer.tokenise(history, noise)
    with_target = tokenizer.with_target(tokens, future)
    full_bytes = history[0].numel() * history.element_size()

    def sample_bytes(context: dict[str, torch.Tensor]) -> int:
        return sum(value[0].numel() * value.element_size() for value in context.values())

    assert sample_bytes(with_target.context) < full_bytes / 10 < sample_bytes(tokens.context)


def test_selected_links_equal_the_links_alone() -> None:
    history, noise, _ = links(setting())
    tokenizer = PathTokenizer(setting(), NUM_PATHS)
    together = tokenizer.tokenise(history, noise).select(torch.tensor([2]))
    alone = tokenizer.tokenise(history[[2]], noise[[2]])
    assert torch.allclose(together.features, alone.features, atol=2e-3)
    assert math.isclose(float(together.context["scale"]), float(alone.context["scale"]), rel_tol=1e-5)
