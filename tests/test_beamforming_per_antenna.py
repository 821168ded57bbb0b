"""Per-antenna limits are kept to rounding, used where they bind, and the end is a stationary point."""

import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.beamforming import per_antenna_wmmse, scale_to_antenna_power, wmmse
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz

NOISE = 0.1


def random_channel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def antenna_powers(w: torch.Tensor) -> torch.Tensor:
    return w.abs().square().sum(-1)


def test_scaling_keeps_directions_and_fills_the_busiest_antenna() -> None:
    w = random_channel(7, 8, 3)
    limit = torch.linspace(0.1, 1.0, 8, dtype=torch.float64)
    scaled = scale_to_antenna_power(w, limit)
    torch.testing.assert_close((antenna_powers(scaled) / limit).amax(-1), torch.ones(7, dtype=torch.float64))
    ratio = scaled / w
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    assert scale_to_antenna_power(torch.zeros_like(w), limit).abs().max() == 0


def test_limits_are_kept_and_the_rate_never_falls() -> None:
    h = random_channel(10, 4, 8)
    limit = torch.linspace(0.05, 0.4, 8, dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    rates = []
    for num_iterations in (0, 1, 2, 5, 20, 60):
        w = per_antenna_wmmse(h, NOISE, limit, num_iterations=num_iterations, weights=weights)
        assert (antenna_powers(w) <= limit * (1 + 1e-12)).all()
        rates.append(sum_rate_bit_per_s_per_hz(h, w, NOISE, weights))
    assert torch.stack(rates).diff(dim=0).min() > -1e-9
    scaled = scale_to_antenna_power(regularized_zero_forcing(h, NOISE), limit)
    torch.testing.assert_close(
        rates[0].mean(), sum_rate_bit_per_s_per_hz(h, scaled, NOISE, weights).mean(), rtol=0.05, atol=0
    )
    assert (rates[-1] > rates[0] + 1).all()


def test_the_end_is_a_stationary_point() -> None:
    h = random_channel(5, 3, 4)
    limit = 0.25
    w = per_antenna_wmmse(h, NOISE, limit, num_iterations=2000).requires_grad_()
    sum_rate_bit_per_s_per_hz(h, w, NOISE).sum().backward()
    assert w.grad is not None
    # more of an antenna's row would help, and nothing else: the gradient is mu_n w_n with mu_n >= 0
    pull = (w.grad * w.detach().conj()).sum(-1)  # [5, 4]
    power = antenna_powers(w.detach())
    multiplier = pull.real / power
    residual = w.grad - multiplier[..., None] * w.detach()
    assert residual.abs().max() < 1e-4 * w.grad.abs().max()
    assert (multiplier * (limit - power)).abs().max() < 1e-4 and multiplier.min() > -1e-4


def test_one_user_takes_all_of_every_antenna() -> None:
    h = random_channel(6, 1, 5)
    w = per_antenna_wmmse(h, NOISE, 0.3, num_iterations=300)
    expected = torch.log2(1 + 0.3 * h.abs().sum((-2, -1)).square() / NOISE)
    torch.testing.assert_close(sum_rate_bit_per_s_per_hz(h, w, NOISE), expected)


def test_between_scaled_and_total_power() -> None:
    h = random_channel(60, 6, 8)
    total = wmmse(h, NOISE, num_iterations=100)
    scaled, limited, free = (
        sum_rate_bit_per_s_per_hz(h, w, NOISE).mean()
        for w in (
            scale_to_antenna_power(total, 1 / 8),
            per_antenna_wmmse(h, NOISE, 1 / 8, num_iterations=100),
            total,
        )
    )
    assert scaled < limited < free + 1e-9


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(SpecError, match="antenna_power must be positive"):
        per_antenna_wmmse(random_channel(2, 3), NOISE, 0.0, num_iterations=1)
    with pytest.raises(SpecError, match="must not be negative"):
        per_antenna_wmmse(random_channel(2, 3), NOISE, 1.0, num_iterations=-1)
