"""WMMSE climbs to a stationary point of the sum rate, between regularised zero forcing and the capacity."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airlam.errors import SpecError
from airlam.radio.beamforming import dirty_paper_bound, scale_to_total_power, wmmse
from airlam.radio.precoding import maximum_ratio, regularized_zero_forcing, sum_rate_bit_per_s_per_hz


def random_channel(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def water_filling_bit(gains: torch.Tensor, total_power: float) -> float:
    """max sum log2(1 + g_k p_k), sum p = P, by bisection on the water level; gains: float [num_users]."""
    low, high = 0.0, total_power + float((1 / gains).max())
    for _ in range(200):
        level = 0.5 * (low + high)
        used = float((level - 1 / gains).clamp_min(0).sum())
        low, high = (level, high) if used < total_power else (low, level)
    return float(torch.log2(1 + gains * (low - 1 / gains).clamp_min(0)).sum())


@settings(max_examples=25, deadline=None)
@given(
    num_users=st.integers(1, 9),
    num_bs_ant=st.integers(1, 9),
    noise_db=st.integers(-40, 20),
    total_power=st.sampled_from([0.01, 1.0, 50.0]),
    seed=st.integers(0, 1000),
)
def test_power_is_exact_and_the_rate_never_falls(
    num_users: int, num_bs_ant: int, noise_db: int, total_power: float, seed: int
) -> None:
    h = random_channel(3, num_users, num_bs_ant, seed=seed)
    noise = total_power * 10 ** (noise_db / 10)
    rates = [sum_rate_bit_per_s_per_hz(h, regularized_zero_forcing(h, noise, total_power), noise)]
    for num_iterations in (1, 2, 3, 10, 30):
        w = wmmse(h, noise, total_power, num_iterations=num_iterations)
        torch.testing.assert_close(
            w.abs().square().sum((-2, -1)), torch.full((3,), total_power, dtype=torch.float64)
        )
        rates.append(sum_rate_bit_per_s_per_hz(h, w, noise))
    steps = torch.stack(rates).diff(dim=0)
    assert steps.min() > -1e-9 * (1 + torch.stack(rates).max())
    assert (rates[-1] <= dirty_paper_bound(h, noise, total_power) + 1e-9).all()


def test_single_precision_loses_nothing_that_counts() -> None:
    h = random_channel(50, 16, 16)
    for noise in (1.0, 0.1, 1e-3):
        single = wmmse(h.to(torch.complex64), noise, num_iterations=30)
        torch.testing.assert_close(single.abs().square().sum((-2, -1)), torch.ones(50), rtol=1e-6, atol=0)
        rate = sum_rate_bit_per_s_per_hz(h, single.to(h.dtype), noise).mean()
        double = sum_rate_bit_per_s_per_hz(h, wmmse(h, noise, num_iterations=30), noise).mean()
        assert rate > 0.999 * double


def test_one_user_gets_its_capacity() -> None:
    h = random_channel(7, 1, 12)
    for start in ("rzf", "mrt"):
        w = wmmse(h, 0.5, 3.0, num_iterations=1, start=start)
        expected = torch.log2(1 + 3.0 * h.abs().square().sum((-2, -1)) / 0.5)
        torch.testing.assert_close(sum_rate_bit_per_s_per_hz(h, w, 0.5), expected)


@pytest.mark.parametrize("noise", [0.05, 2.0])
def test_orthogonal_users_are_water_filled(noise: float) -> None:
    q = torch.linalg.qr(random_channel(8, 4)).Q.mH  # [4, 8]
    gains = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)
    h = gains.sqrt()[:, None] * q
    w = wmmse(h, noise, num_iterations=3000)
    expected = water_filling_bit(gains / noise, 1.0)
    assert float(sum_rate_bit_per_s_per_hz(h, w, noise)) == pytest.approx(expected, rel=1e-5)
    assert float(dirty_paper_bound(h, noise)) == pytest.approx(expected, abs=2e-6)


def test_better_than_its_start_and_below_the_capacity() -> None:
    h = random_channel(100, 8, 8)
    rates = [
        sum_rate_bit_per_s_per_hz(h, w, 0.1).mean()
        for w in (regularized_zero_forcing(h, 0.1), *(wmmse(h, 0.1, num_iterations=n) for n in (5, 20, 100)))
    ]
    assert rates[0] < rates[1] < rates[2] < rates[3] < dirty_paper_bound(h, 0.1).mean()
    assert rates[3] > rates[0] + 2


@pytest.mark.parametrize("weighted", [False, True])
def test_the_end_is_a_stationary_point(weighted: bool) -> None:
    h = random_channel(10, 6, 8)
    weights = torch.linspace(0.3, 2.0, 6, dtype=torch.float64).expand(10, 6) if weighted else None
    w = wmmse(h, 0.1, num_iterations=3000, weights=weights).requires_grad_()
    sum_rate_bit_per_s_per_hz(h, scale_to_total_power(w, 1.0), 0.1, weights).sum().backward()
    assert w.grad is not None and w.grad.abs().max() < 1e-5


def test_weights_shift_the_rate_to_those_who_have_them() -> None:
    h = random_channel(50, 4, 4)
    weights = torch.tensor([10.0, 1.0, 1.0, 1.0], dtype=torch.float64).expand(50, 4)
    plain, weighted = (wmmse(h, 0.1, num_iterations=200, weights=a) for a in (None, weights))

    def rates(w: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return sum_rate_bit_per_s_per_hz(h, w, 0.1, a).mean()

    first = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert rates(weighted, first) > rates(plain, first) + 0.5
    assert rates(weighted, weights) > rates(plain, weights)
    torch.testing.assert_close(
        wmmse(h, 0.1, num_iterations=9, weights=torch.ones(50, 4) * 3.0), wmmse(h, 0.1, num_iterations=9)
    )


def test_a_user_of_no_weight_is_not_served() -> None:
    h = random_channel(5, 3, 4)
    weights = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    w = wmmse(h, 0.1, num_iterations=50, weights=weights)
    assert w[..., 1].abs().max() == 0
    torch.testing.assert_close(
        w[..., [0, 2]], wmmse(h[:, [0, 2]], 0.1, num_iterations=50, start=w[..., [0, 2]]), rtol=0, atol=1e-2
    )


def test_permuting_users_permutes_beams() -> None:
    h = random_channel(5, 6, 8)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        wmmse(h[:, order], 0.1, num_iterations=20), wmmse(h, 0.1, num_iterations=20)[..., order]
    )


def test_only_power_over_noise_counts_and_links_are_apart() -> None:
    h = random_channel(4, 3, 6)
    noise, power = torch.tensor([0.1, 1.0, 0.1, 0.3]), torch.tensor([1.0, 10.0, 5.0, 2.0])
    together = wmmse(h, noise, power, num_iterations=10)
    for link in range(4):
        alone = wmmse(h[link], float(noise[link] / power[link]), num_iterations=10)
        torch.testing.assert_close(together[link], math.sqrt(power[link]) * alone, rtol=1e-6, atol=1e-6)
    tiny = wmmse(1e-8 * h[0].to(torch.complex64), 1e-17, num_iterations=10)  # channels with their path loss
    torch.testing.assert_close(
        tiny, wmmse(h[0], 0.1, num_iterations=10).to(torch.complex64), rtol=0, atol=1e-4
    )


def test_starts_differ_and_a_given_one_is_taken() -> None:
    h = random_channel(3, 4, 4)
    given = maximum_ratio(h)
    torch.testing.assert_close(
        wmmse(h, 0.1, num_iterations=3, start=7.0 * given), wmmse(h, 0.1, num_iterations=3, start="mrt")
    )
    drawn = [
        wmmse(h, 0.1, num_iterations=3, start="random", generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert (drawn[0] - wmmse(h, 0.1, num_iterations=3)).abs().max() > 0.01


def test_differentiable_through_the_iterations() -> None:
    h = random_channel(2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: wmmse(x, 0.3, num_iterations=2), (h,))


def test_a_link_without_channels_does_not_disturb_the_others() -> None:
    h = random_channel(3, 2, 4)
    h[1] = 0
    w = wmmse(h, 0.1, num_iterations=5)
    assert w[1].abs().max() == 0
    torch.testing.assert_close(w[[0, 2]], wmmse(h[[0, 2]], 0.1, num_iterations=5))


def test_impossible_requests_are_refused() -> None:
    h = random_channel(2, 4)
    with pytest.raises(SpecError, match="num_iterations must be at least 1, got 0"):
        wmmse(h, 0.1, num_iterations=0)
    with pytest.raises(SpecError, match="unknown start 'zf'; take rzf, mrt, random"):
        wmmse(h, 0.1, num_iterations=1, start="zf")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="a random start is drawn from a generator"):
        wmmse(h, 0.1, num_iterations=1, start="random")
    with pytest.raises(SpecError, match="noise_variance must be positive"):
        wmmse(h, -0.1, num_iterations=1)
