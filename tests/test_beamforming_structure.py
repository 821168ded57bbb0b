"""The optimal structure contains what it should, and WMMSE's fixed points are of its form."""

import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.beamforming import optimal_structure, structure_parameters, wmmse
from airlam.radio.beamforming.power import columns_of_power, squared_magnitude
from airlam.radio.beamforming.structure import loaded_inverse, structure_from_gram
from airlam.radio.precoding import maximum_ratio, regularized_zero_forcing, sum_rate_bit_per_s_per_hz


def random_channel(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_powers(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("num_users", "num_bs_ant"), [(8, 16), (16, 8)])
def test_directions_are_those_of_the_formula(num_users: int, num_bs_ant: int) -> None:
    h = random_channel(3, num_users, num_bs_ant)
    lam, p = random_powers(3, num_users), random_powers(3, num_users, seed=2)
    w = optimal_structure(h, lam, p, 0.3, 2.5)
    load = 2.5 * lam / lam.sum(-1, keepdim=True) / 0.3
    matrix = torch.eye(num_bs_ant) + torch.einsum("bk,bkm,bkn->bmn", load, h.conj(), h)
    v = torch.linalg.inv(matrix) @ h.mH
    v = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True)
    torch.testing.assert_close(w, v * (2.5 * p / p.sum(-1, keepdim=True)).sqrt()[:, None])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_power_is_met_whatever_the_scale_of_the_parameters(dtype: torch.dtype) -> None:
    h = random_channel(5, 4, 16, dtype=dtype)
    lam, p = 1e3 * random_powers(5, 4).to(h.real.dtype), 1e-3 * random_powers(5, 4).to(h.real.dtype)
    total_power = torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0], dtype=h.real.dtype)
    w = optimal_structure(h, lam, p, 0.1, total_power)
    assert w.dtype == dtype
    torch.testing.assert_close(w.abs().square().sum((-2, -1)), total_power, rtol=1e-6, atol=0)


def test_equal_parameters_are_regularised_zero_forcing() -> None:
    h = random_channel(5, 4, 16)
    ones = torch.ones(5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        optimal_structure(h, ones, ones, 0.2, 3.0), regularized_zero_forcing(h, 0.2, 3.0)
    )
    torch.testing.assert_close(optimal_structure(h, ones, ones, 1e9), maximum_ratio(h), rtol=1e-6, atol=1e-6)


def test_users_may_be_left_out() -> None:
    h = random_channel(3, 4, 8)
    active = torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    w = optimal_structure(h, active, active, 0.1)
    kept = [0, 2, 3]
    assert w[..., 1].abs().max() == 0
    torch.testing.assert_close(w[..., kept], optimal_structure(h[:, kept], active[kept], active[kept], 0.1))


@pytest.mark.parametrize(("num_users", "num_bs_ant"), [(4, 16), (9, 6)])
def test_the_gram_matrix_is_enough(num_users: int, num_bs_ant: int) -> None:
    h = random_channel(3, num_users, num_bs_ant)
    lam, p = (powers / powers.sum(-1, keepdim=True) for powers in random_powers(2, 3, num_users))
    w = structure_from_gram(h, 2.5 / 0.3 * (h @ h.mH), lam, p, 2.5)
    torch.testing.assert_close(w, optimal_structure(h, lam, p, 0.3, 2.5))


def test_the_loaded_inverse_is_one() -> None:
    h, root = random_channel(3, 5, 7), random_powers(3, 5)
    gram = h @ h.mH
    loaded = torch.eye(5) + root[..., :, None] * gram * root[..., None, :]
    torch.testing.assert_close(loaded_inverse(gram, root) @ loaded, torch.eye(5).to(gram).expand(3, 5, 5))


def test_columns_have_the_powers_given() -> None:
    w, powers = random_channel(3, 6, 4), random_powers(3, 4)
    w[0, :, 2] = 0
    found = squared_magnitude(columns_of_power(w, powers)).sum(-2)
    assert found[0, 2] == 0
    found[0, 2] = powers[0, 2]
    torch.testing.assert_close(found, powers)
    torch.testing.assert_close(squared_magnitude(w), w.abs() ** 2)


def test_permuting_users_permutes_beams() -> None:
    h, lam, p = random_channel(3, 6, 8), random_powers(3, 6), random_powers(3, 6, seed=2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    w = optimal_structure(h, lam, p, 0.1)
    torch.testing.assert_close(optimal_structure(h[:, order], lam[:, order], p[:, order], 0.1), w[..., order])


def test_a_turned_channel_turns_its_beam_back() -> None:
    h, lam = random_channel(3, 6, 8), random_powers(3, 6)
    turn = torch.exp(1j * random_powers(3, 6, seed=4))
    w = optimal_structure(h, lam, lam, 0.1)
    torch.testing.assert_close(
        optimal_structure(turn[..., None] * h, lam, lam, 0.1), w * turn.conj()[:, None]
    )


@pytest.mark.parametrize(("num_users", "num_bs_ant"), [(3, 5), (5, 3)])
def test_gradients_are_right(num_users: int, num_bs_ant: int) -> None:
    h = random_channel(2, num_users, num_bs_ant).requires_grad_()
    lam = (0.1 + random_powers(2, num_users)).requires_grad_()
    p = (0.1 + random_powers(2, num_users, seed=2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: optimal_structure(*x, 0.2, 2.0), (h, lam, p))


def test_a_user_without_a_channel_gets_nothing_and_passes_finite_gradients() -> None:
    h = random_channel(2, 3, 4)
    h[0, 1] = 0
    h, lam = h.requires_grad_(), torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    w = optimal_structure(h, lam, lam, 0.1)
    assert w[0, :, 1].abs().max() == 0
    sum_rate_bit_per_s_per_hz(h, w, 0.1).sum().backward()
    assert h.grad is not None and lam.grad is not None
    assert torch.isfinite(torch.view_as_real(h.grad)).all() and torch.isfinite(lam.grad).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_fixed_points_of_wmmse_have_the_structure(weighted: bool) -> None:
    h = random_channel(20, 6, 8)
    weights = 0.5 + random_powers(20, 6) if weighted else None
    w = wmmse(h, 0.1, 4.0, num_iterations=4000, weights=weights)
    lam, p = structure_parameters(h, w, 0.1, weights)
    torch.testing.assert_close(lam.sum(-1), torch.full((20,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(p.sum(-1), torch.full((20,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(optimal_structure(h, lam, p, 0.1, 4.0), w, rtol=0, atol=1e-6)


def test_rebuilding_an_unfinished_precoder_does_not_lose_rate_on_average() -> None:
    h = random_channel(200, 8, 16)
    w = wmmse(h, 0.1, num_iterations=5)
    rebuilt = optimal_structure(h, *structure_parameters(h, w, 0.1), 0.1)
    gained = sum_rate_bit_per_s_per_hz(h, rebuilt, 0.1) - sum_rate_bit_per_s_per_hz(h, w, 0.1)
    assert gained.mean() > -0.01


def test_impossible_requests_are_refused() -> None:
    h, ones = random_channel(2, 4), torch.ones(2, dtype=torch.float64)
    with pytest.raises(SpecError, match="total_power must be positive, got -1"):
        optimal_structure(h, ones, ones, 0.1, -1.0)
    with pytest.raises(SpecError, match="noise_variance must be positive, got 0"):
        optimal_structure(h, ones, ones, 0.0)
