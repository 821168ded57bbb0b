"""The sum capacity meets its closed forms, its certificate is true, and no other way of power beats it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airlam.errors import SpecError
from airlam.radio.beamforming import dirty_paper_bound, sum_capacity


def random_channel(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def uplink_rate(h: torch.Tensor, powers: torch.Tensor, noise: float) -> torch.Tensor:
    matrix = torch.eye(h.shape[-1]) + torch.einsum("...k,...km,...kn->...mn", powers / noise, h.conj(), h)
    return torch.logdet(matrix).real / torch.log(torch.tensor(2.0, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(
    num_users=st.integers(1, 12),
    num_bs_ant=st.integers(1, 12),
    noise_db=st.integers(-50, 30),
    spread_db=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_certified_to_the_tolerance(
    num_users: int, num_bs_ant: int, noise_db: int, spread_db: int, seed: int
) -> None:
    gains = 10 ** (-torch.linspace(0, spread_db, num_users, dtype=torch.float64) / 20)
    h = gains[:, None] * random_channel(4, num_users, num_bs_ant, seed=seed)
    noise = 10 ** (noise_db / 10)
    found = sum_capacity(h, noise, 2.0, tolerance_bit=1e-8)
    assert found.gap_bit_per_s_per_hz.max() <= 1e-8 and found.gap_bit_per_s_per_hz.min() >= -1e-12
    assert found.powers.min() >= 0
    torch.testing.assert_close(found.powers.sum(-1), torch.full((4,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(
        found.rate_bit_per_s_per_hz, uplink_rate(h, found.powers, noise), rtol=1e-9, atol=1e-9
    )


def test_no_other_powers_achieve_more() -> None:
    h = random_channel(3, 5, 4)
    bound = dirty_paper_bound(h, 0.2, 3.0)
    draw = torch.distributions.Dirichlet(torch.full((5,), 0.5, dtype=torch.float64))
    torch.manual_seed(0)
    for _ in range(300):
        assert (uplink_rate(h, 3.0 * draw.sample((3,)), 0.2) <= bound).all()


def test_one_user_has_the_capacity_of_its_link() -> None:
    h = random_channel(6, 1, 4)
    expected = torch.log2(1 + 2.0 * h.abs().square().sum((-2, -1)) / 0.5)
    torch.testing.assert_close(dirty_paper_bound(h, 0.5, 2.0), expected)


def test_one_antenna_serves_the_strongest_user() -> None:
    h = random_channel(6, 5, 1)
    expected = torch.log2(1 + 2.0 * h.abs().square().amax((-2, -1)) / 0.5)
    torch.testing.assert_close(dirty_paper_bound(h, 0.5, 2.0), expected, rtol=0, atol=2e-6)


def test_equal_orthogonal_users_share_evenly() -> None:
    q = torch.linalg.qr(random_channel(8, 4)).Q.mH  # [4, 8]
    found = sum_capacity(3.0 * q, 0.1)
    torch.testing.assert_close(found.powers, torch.full((4,), 0.25, dtype=torch.float64))
    expected = 4 * torch.log2(torch.tensor(1 + 9 * 0.25 / 0.1, dtype=torch.float64))
    torch.testing.assert_close(found.rate_bit_per_s_per_hz, expected)


def test_noise_and_power_may_differ_per_link() -> None:
    h = random_channel(2, 3, 4)
    noise, power = torch.tensor([0.1, 2.0]), torch.tensor([1.0, 5.0])
    together = dirty_paper_bound(h, noise, power)
    for link in range(2):
        alone = dirty_paper_bound(h[link], float(noise[link]), float(power[link]))
        torch.testing.assert_close(together[link], alone, rtol=0, atol=2e-6)


def test_channels_of_zero_have_no_capacity() -> None:
    assert dirty_paper_bound(torch.zeros(2, 3, 4, dtype=torch.complex64), 0.1).abs().max() == 0


def test_a_tolerance_below_rounding_is_refused() -> None:
    with pytest.raises(SpecError, match="tolerance_bit must be at least 1e-10"):
        dirty_paper_bound(random_channel(2, 3), 0.1, tolerance_bit=0.0)
