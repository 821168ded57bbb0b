"""Path tokens: an exact inverse, the same features everywhere, and a compact target that loses nothing."""

import dataclasses
import math

import pytest
import torch

from airlam.errors import DataError
from airlam.model.path_head import PathHead
from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import NUM_ATOMS, doppler_basis
from airlam.specs import ArraySpec
from airlam.tokens.path import (
    KNOTS_PER_CYCLE,
    MAX_CYCLES,
    NUM_FEATURES,
    NUM_KNOTS,
    NUM_SETTING_FEATURES,
    PathTokenizer,
    from_knots,
    setting_features,
    to_knots,
)

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


def knots() -> torch.Tensor:
    """The knots' Doppler shifts, cycles per history window."""
    return torch.arange(NUM_KNOTS) / KNOTS_PER_CYCLE - MAX_CYCLES


SETTINGS = {
    "plain": setting(),
    "fdd": setting(fdd=True),
    "one column": setting(cols=1, num_user_antennas=1),
    "long and fast": dataclasses.replace(setting(), num_history=18, num_horizon=6, max_doppler_hz=1000.0),
    "beyond the knots": dataclasses.replace(setting(), num_history=24, max_doppler_hz=1000.0),
    "short and static": dataclasses.replace(setting(), num_history=5, num_horizon=1, max_doppler_hz=0.0),
    "single antenna": dataclasses.replace(setting(num_user_antennas=1), base_station=ArraySpec()),
    "one subcarrier": dataclasses.replace(
        setting(), history_frequencies_hz=(0.0,), target_frequencies_hz=(0.0,)
    ),
}


@pytest.mark.parametrize("link", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_setting_has_the_same_features(link: PredictionSetting) -> None:
    history, noise, _ = links(link)
    tokenizer = PathTokenizer(link, NUM_PATHS)
    tokens = tokenizer.tokenise(history, noise)
    num_paths = min(NUM_PATHS, tokenizer.predictor.grid.num_points)
    assert tokenizer.num_features == NUM_FEATURES
    assert tokens.features.shape == (BATCH, num_paths, NUM_FEATURES)
    assert tokens.features.dtype == torch.float32 and torch.isfinite(tokens.features).all()
    assert tokens.features.abs().max() < 10
    assert tokens.mask.shape == (BATCH, num_paths)
    assert all(len(value) == BATCH for value in tokens.context.values())


def test_settings_can_be_told_apart() -> None:
    features = torch.stack([setting_features(link) for link in SETTINGS.values()])
    assert features.shape == (len(SETTINGS), NUM_SETTING_FEATURES)
    assert torch.isfinite(features).all() and features.abs().max() < 4
    assert torch.pdist(features).min() > 0.1


@pytest.mark.parametrize("link", SETTINGS.values(), ids=SETTINGS.keys())
def test_smooth_spectra_survive_the_knots(link: PredictionSetting) -> None:
    basis = doppler_basis(link)
    there, back = to_knots(basis), from_knots(basis)
    assert there.shape == (NUM_KNOTS, basis.num_doppler) and back.shape == (basis.num_doppler, NUM_KNOTS)
    cycles = (link.num_history * basis.doppler_cycles_per_slot).float()  # [doppler]
    between = cycles.abs() <= knots()[there.sum(1) > 0].max()  # beyond the band's last knot it fades
    assert between.any()
    smooth = 1 + torch.cos(0.8 * cycles) + 0.3 * cycles
    assert (back @ (there @ smooth) - smooth)[between].abs().max() < 0.06


@pytest.mark.parametrize("link", SETTINGS.values(), ids=SETTINGS.keys())
def test_knots_beyond_the_band_are_zero(link: PredictionSetting) -> None:
    basis = doppler_basis(link)
    cycles = link.num_history * basis.doppler_cycles_per_slot
    step, top = float(cycles[1] - cycles[0]), float(cycles[-1])
    weight = to_knots(basis).sum(1)  # [knots]
    outside = knots().abs() > top + 0.51 * step
    assert (weight[outside] == 0).all()
    assert torch.allclose(weight[knots().abs() < top + 0.49 * step], torch.tensor(1.0), atol=1e-5)
    assert torch.allclose(from_knots(basis).sum(1), torch.tensor(1.0), atol=1e-5)  # knots reach all the band


def test_a_line_is_read_at_its_doppler_shift() -> None:
    """Both maps are linear in between: a straight line in Doppler is the same line on the knots."""
    basis = doppler_basis(setting())
    cycles = 12 * basis.doppler_cycles_per_slot
    inside = knots().abs() <= float(cycles[-1])
    line = to_knots(basis) @ cycles.float()
    assert inside.sum() > 5 and torch.allclose(line[inside], knots()[inside], atol=1e-5)
    assert torch.allclose(from_knots(basis) @ knots(), cycles.float(), atol=1e-5)


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
    shape = (BATCH, NUM_PATHS, NUM_ATOMS, 4, 3)
    coefficients = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    output = {"coefficients": coefficients}
    full = (head.channel(output, tokens.context) - 3 * future).abs().square().sum((1, 2, 3, 4))
    error, energy = head.squared_error(output, tokenizer.with_target(tokens, 3 * future).context)
    assert torch.allclose(error, full, rtol=1e-4)
    assert torch.allclose(energy, 9 * future.abs().square().sum((1, 2, 3, 4)), rtol=1e-4)


def test_training_tokens_are_small() -> None:
    history, noise, future = links(setting())
    tokenizer = PathTokenizer(setting(), NUM_PATHS, keep_residual=True)
    tokens = tokenizer.tokenise(history, noise)
    with_target = tokenizer.with_target(tokens, future)
    full_bytes = history[0].numel() * history.element_size()

    def sample_bytes(context: dict[str, torch.Tensor]) -> int:
        return sum(value[0].numel() * value.element_size() for value in context.values())

    assert sample_bytes(with_target.context) < full_bytes / 8 < sample_bytes(tokens.context)


def test_selected_links_equal_the_links_alone() -> None:
    history, noise, _ = links(setting())
    tokenizer = PathTokenizer(setting(), NUM_PATHS)
    together = tokenizer.tokenise(history, noise).select(torch.tensor([2]))
    alone = tokenizer.tokenise(history[[2]], noise[[2]])
    assert torch.allclose(together.features, alone.features, atol=2e-3)
    assert math.isclose(float(together.context["scale"]), float(alone.context["scale"]), rel_tol=1e-5)
