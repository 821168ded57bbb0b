"""Precoders that know their estimate's error: limits, monotony, and what they gain on the true channel."""

import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.beamforming import (
    assured_rates_bit_per_s_per_hz,
    ergodic_wmmse,
    robust_regularized_zero_forcing,
    robust_wmmse,
    sample_channels,
    wmmse,
)
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz

NOISE = 0.1


def random_channel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def random_covariance(*shape: int, power: float = 0.1, seed: int = 1) -> torch.Tensor:
    """Hermitian and positive, complex [*shape, n, n] of n = the last of shape, users being unequal."""
    num_users, num_bs_ant = shape[-2:]
    root = random_channel(*shape, num_bs_ant, seed=seed) / num_bs_ant**0.5
    scale = power * torch.linspace(0, 2, num_users, dtype=torch.float64)
    return scale[:, None, None] * root @ root.mH


def test_without_error_they_are_their_plain_selves() -> None:
    h = random_channel(4, 6, 8)
    none = torch.zeros(4, 6, 8, 8, dtype=h.dtype)
    torch.testing.assert_close(
        robust_regularized_zero_forcing(h, none, NOISE, 2.0), regularized_zero_forcing(h, NOISE, 2.0)
    )
    plain = wmmse(h, NOISE, 2.0, num_iterations=10)
    rate = sum_rate_bit_per_s_per_hz(h, plain, NOISE)
    for w in (
        robust_wmmse(h, none, NOISE, 2.0, num_iterations=10),
        ergodic_wmmse(h[:, None], NOISE, 2.0, num_iterations=10),
        ergodic_wmmse(h[:, None].expand(4, 5, 6, 8), NOISE, 2.0, num_iterations=10),
    ):
        torch.testing.assert_close(w.abs(), plain.abs())
        torch.testing.assert_close(sum_rate_bit_per_s_per_hz(h, w, NOISE), rate)
    torch.testing.assert_close(assured_rates_bit_per_s_per_hz(h, none, plain, NOISE).sum(-1), rate)


def test_white_error_is_more_noise() -> None:
    h = random_channel(4, 6, 8)
    white = 0.03 * torch.eye(8, dtype=h.dtype).expand(4, 6, 8, 8)
    w = robust_regularized_zero_forcing(h, white, NOISE, 2.0)
    torch.testing.assert_close(w, regularized_zero_forcing(h, NOISE + 2.0 * 0.03, 2.0))
    torch.testing.assert_close(
        assured_rates_bit_per_s_per_hz(h, white, w, NOISE).sum(-1),
        sum_rate_bit_per_s_per_hz(h, w, NOISE + 2.0 * 0.03),
    )


def test_samples_have_the_mean_and_the_covariance() -> None:
    h, covariance = random_channel(2, 4), random_covariance(2, 4)
    samples = sample_channels(h, covariance, 200_000, torch.Generator().manual_seed(0))
    error = samples - samples.mean(0)
    torch.testing.assert_close(samples.mean(0), h, rtol=0, atol=5e-3)
    found = torch.einsum("skm,skn->kmn", error.conj(), error) / len(error)
    torch.testing.assert_close(found, covariance, rtol=0, atol=5e-3)


def test_the_assured_rate_never_falls_and_the_power_is_exact() -> None:
    h, covariance = random_channel(10, 6, 8), random_covariance(10, 6, 8)
    weights = torch.linspace(0.5, 2, 6, dtype=torch.float64).expand(10, 6)
    rates = []
    for num_iterations in (0, 1, 2, 5, 20, 60):
        w = robust_wmmse(h, covariance, NOISE, 3.0, num_iterations=num_iterations, weights=weights)
        torch.testing.assert_close(
            w.abs().square().sum((-2, -1)), torch.full((10,), 3.0, dtype=torch.float64)
        )
        rates.append((weights * assured_rates_bit_per_s_per_hz(h, covariance, w, NOISE)).sum(-1))
    assert torch.stack(rates).diff(dim=0).min() > -1e-9
    assert (rates[-1] > rates[0]).all()


def test_the_mean_rate_over_samples_never_falls() -> None:
    samples = random_channel(5, 12, 4, 6)
    weights = torch.linspace(0.5, 2, 4, dtype=torch.float64).expand(5, 4)
    rates = []
    for num_iterations in (1, 2, 5, 20, 60):
        w = ergodic_wmmse(samples, NOISE, 3.0, num_iterations=num_iterations, weights=weights)
        torch.testing.assert_close(w.abs().square().sum((-2, -1)), torch.full((5,), 3.0, dtype=torch.float64))
        per_sample = sum_rate_bit_per_s_per_hz(samples, w[:, None], NOISE, weights[:, None])
        rates.append(per_sample.mean(-1))
    assert torch.stack(rates).diff(dim=0).min() > -1e-9
    assert (rates[-1] > rates[0]).all()


def test_the_assured_rate_is_below_the_mean_rate() -> None:
    h, covariance = random_channel(10, 4, 6), random_covariance(10, 4, 6)
    w = robust_wmmse(h, covariance, NOISE, num_iterations=5)
    true = sample_channels(h, covariance, 3000, torch.Generator().manual_seed(0))
    mean = sum_rate_bit_per_s_per_hz(true, w[:, None], NOISE).mean(-1)
    assert (assured_rates_bit_per_s_per_hz(h, covariance, w, NOISE).sum(-1) < mean).all()


def test_knowing_the_error_gains_rate_on_the_true_channel() -> None:
    h, covariance = random_channel(40, 8, 8), random_covariance(40, 8, 8, power=0.15)
    true = sample_channels(h, covariance, 50, torch.Generator().manual_seed(0))

    def mean_rate(w: torch.Tensor) -> float:
        return float(sum_rate_bit_per_s_per_hz(true, w[:, None], NOISE).mean())

    robust_start = robust_wmmse(h, covariance, NOISE, num_iterations=10)
    samples = sample_channels(h, covariance, 100, torch.Generator().manual_seed(1))
    plain_rzf, robust_rzf, plain, robust, ergodic = (
        mean_rate(w)
        for w in (
            regularized_zero_forcing(h, NOISE),
            robust_regularized_zero_forcing(h, covariance, NOISE),
            wmmse(h, NOISE, num_iterations=100),
            robust_wmmse(h, covariance, NOISE, num_iterations=100),
            ergodic_wmmse(samples, NOISE, num_iterations=40, start=robust_start),
        )
    )
    assert robust_rzf > plain_rzf
    assert robust > plain + 0.1 and ergodic > plain + 0.1


def test_links_where_nobody_can_be_served_do_not_disturb_the_others() -> None:
    h, covariance = random_channel(3, 4, 6), random_covariance(3, 4, 6)
    h[1] = 0
    samples = h[:, None].expand(3, 5, 4, 6)
    for w, alone in (
        (
            robust_wmmse(h, covariance, NOISE, num_iterations=3),
            robust_wmmse(h[0], covariance[0], NOISE, num_iterations=3),
        ),
        (
            ergodic_wmmse(samples, NOISE, num_iterations=3),
            ergodic_wmmse(samples[0], NOISE, num_iterations=3),
        ),
    ):
        assert w[1].abs().max() == 0
        torch.testing.assert_close(w[0], alone)


def test_impossible_requests_are_refused() -> None:
    h, covariance = random_channel(2, 3), random_covariance(2, 3)
    with pytest.raises(SpecError, match="must not be negative, got -1"):
        robust_wmmse(h, covariance, NOISE, num_iterations=-1)
    with pytest.raises(SpecError, match="at least 1, got 0"):
        ergodic_wmmse(h[None], NOISE, num_iterations=0)
