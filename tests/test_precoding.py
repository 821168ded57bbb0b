"""Precoders meet their power, their closed forms and their limits."""

import math

import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.precoding import (
    maximum_ratio,
    regularized_zero_forcing,
    sinr,
    sum_rate_bit_per_s_per_hz,
    zero_forcing,
)


def random_channel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("total_power", [1.0, 0.02, 30.0])
def test_total_power_is_met(total_power: float) -> None:
    h = random_channel(5, 3, 4, 16)
    precoders = [
        maximum_ratio(h, total_power),
        zero_forcing(h, total_power),
        regularized_zero_forcing(h, 0.1, total_power),
    ]
    for w in precoders:
        assert w.shape == (5, 3, 16, 4)
        power = w.abs().square().sum(dim=(-2, -1)) / total_power
        torch.testing.assert_close(power, torch.ones(5, 3), rtol=1e-6, atol=1e-6)


def test_orthogonal_channels_make_all_precoders_equal() -> None:
    q = torch.linalg.qr(random_channel(7, 12, 3)).Q  # [7, 12, 3]
    h = 2.0 * q.mH  # [7, 3, 12], orthogonal rows of power 4
    expected = 3 * math.log2(1 + 4 / 3 / 0.1)
    for w in (maximum_ratio(h), zero_forcing(h), regularized_zero_forcing(h, 0.1)):
        torch.testing.assert_close(
            sum_rate_bit_per_s_per_hz(h, w, 0.1), torch.full((7,), expected), rtol=1e-4, atol=0
        )


def test_single_user_gets_the_full_array_gain() -> None:
    h = random_channel(9, 1, 8)
    expected = h.abs().square().sum(dim=-1) / 0.5
    for w in (maximum_ratio(h), zero_forcing(h), regularized_zero_forcing(h, 0.5)):
        torch.testing.assert_close(sinr(h, w, 0.5), expected, rtol=1e-5, atol=0)


def test_zero_forcing_leaves_no_interference() -> None:
    h = random_channel(20, 6, 8)
    g = h @ zero_forcing(h)
    off_diagonal = g - torch.diag_embed(g.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-5
    # doubling a high SNR then gives one bit per user
    w = zero_forcing(h)
    gained = sum_rate_bit_per_s_per_hz(h, w, 5e-5) - sum_rate_bit_per_s_per_hz(h, w, 1e-4)
    torch.testing.assert_close(gained, torch.full((20,), 6.0), rtol=1e-2, atol=0)


def test_regularised_zero_forcing_has_both_limits() -> None:
    h = random_channel(20, 4, 16)
    torch.testing.assert_close(regularized_zero_forcing(h, 1e-7), zero_forcing(h), rtol=0, atol=1e-5)
    torch.testing.assert_close(regularized_zero_forcing(h, 1e5), maximum_ratio(h), rtol=0, atol=1e-4)


def test_regularised_zero_forcing_beats_both_neighbours_on_average() -> None:
    h = random_channel(400, 8, 8)
    rzf, zf, mrt = (
        sum_rate_bit_per_s_per_hz(h, w, 0.1).mean()
        for w in (regularized_zero_forcing(h, 0.1), zero_forcing(h), maximum_ratio(h))
    )
    assert rzf > zf and rzf > mrt


def test_noise_variance_may_differ_per_channel() -> None:
    h = random_channel(2, 4, 8)
    w = regularized_zero_forcing(h, torch.tensor([0.1, 10.0]))
    torch.testing.assert_close(w[0], regularized_zero_forcing(h[0], 0.1))
    torch.testing.assert_close(w[1], regularized_zero_forcing(h[1], 10.0))


def test_a_wrong_estimate_costs_rate() -> None:
    h, error = random_channel(200, 4, 16), random_channel(200, 4, 16, seed=1)
    true = sum_rate_bit_per_s_per_hz(h, regularized_zero_forcing(h, 0.01), 0.01).mean()
    wrong = sum_rate_bit_per_s_per_hz(h, regularized_zero_forcing(h + 0.3 * error, 0.01), 0.01).mean()
    assert wrong < true - 4


def test_weights_weigh_the_rates_of_users() -> None:
    h = random_channel(5, 4, 8)
    w = maximum_ratio(h)
    weights = torch.tensor([2.0, 0.0, 1.0, 0.5]).expand(5, 4)
    expected = (weights * torch.log2(1 + sinr(h, w, 0.1))).sum(-1)
    torch.testing.assert_close(sum_rate_bit_per_s_per_hz(h, w, 0.1, weights), expected)
    torch.testing.assert_close(
        sum_rate_bit_per_s_per_hz(h, w, 0.1, torch.ones(5, 4)), sum_rate_bit_per_s_per_hz(h, w, 0.1)
    )


def test_a_user_without_an_estimate_gets_no_power() -> None:
    h = random_channel(3, 8)
    h[1] = 0
    w = regularized_zero_forcing(h, 0.1)
    assert torch.isfinite(w.abs()).all() and w[:, 1].abs().max() == 0


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(SpecError, match="9 users needs as many antennas, there are 8"):
        zero_forcing(random_channel(9, 8))
    with pytest.raises(SpecError, match="total_power must be positive"):
        maximum_ratio(random_channel(2, 8), total_power=0.0)
