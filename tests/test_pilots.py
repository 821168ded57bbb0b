"""Pilots: sequences are orthogonal, least squares is unbiased, LMMSE is what no linear estimate beats."""

import pytest
import torch

from airlam.errors import DataError, SpecError
from airlam.radio.beamforming import sample_channels
from airlam.radio.pilots import (
    LmmseEstimator,
    least_squares,
    observe_contaminated,
    orthogonal_sequences,
    received_pilots,
    reused_pilots,
    row_covariance,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_channel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=generator(seed))


def narrow_covariance(angle: float, num_bs_ant: int = 6, power: float = 1.0) -> torch.Tensor:
    """A cluster of directions about ``angle`` on a line of antennas: complex64 [n, n], trace n power."""
    angles = angle + torch.linspace(-0.15, 0.15, 21)
    steering = torch.exp(1j * torch.pi * torch.outer(torch.sin(angles), torch.arange(num_bs_ant).float()))
    return power * steering.mH @ steering / len(angles)


def drawn_rows(covariance: torch.Tensor, num_drops: int, num_users: int, seed: int) -> torch.Tensor:
    """Rows of a covariance: complex64 [num_drops, num_users, n]."""
    zero = torch.zeros(1, len(covariance), dtype=torch.complex64)
    rows = sample_channels(zero, covariance[None], num_drops * num_users, generator(seed))
    return rows.reshape(num_drops, num_users, -1)


def test_sequences_are_orthogonal_and_of_unit_modulus() -> None:
    sequences = orthogonal_sequences(5, 8)
    torch.testing.assert_close(sequences.abs(), torch.ones(5, 8))
    torch.testing.assert_close(
        sequences @ sequences.mH, 8 * torch.eye(5, dtype=torch.complex64), rtol=0, atol=1e-5
    )


def test_least_squares_is_exact_without_noise_and_unbiased_in_it() -> None:
    h, sequences = random_channel(1, 4, 6).expand(5000, 4, 6), orthogonal_sequences(4, 8)
    exact = least_squares(received_pilots(h, sequences, 0.0, generator()), sequences)
    torch.testing.assert_close(exact, h, rtol=0, atol=1e-5)
    noisy = least_squares(received_pilots(h, sequences, 0.8, generator()), sequences)
    torch.testing.assert_close(noisy.mean(0), h[0], rtol=0, atol=0.02)
    variance = (noisy - h).abs().square().mean()
    torch.testing.assert_close(variance, torch.tensor(0.8 / 8), rtol=0.02, atol=0)


def test_contamination_adds_the_other_user_where_the_pilot_is_reused() -> None:
    h, other = random_channel(3, 4, 6), random_channel(3, 4, 6, seed=1)
    reused = reused_pilots((3, 4), 0.5, generator())
    seen = observe_contaminated(h, other, reused, 0.0, generator())
    torch.testing.assert_close(seen, h + other * reused[..., None], rtol=0, atol=1e-5)
    silent, nobody = torch.zeros(9000, 4, 6, dtype=h.dtype), torch.zeros(9000, 4, dtype=torch.bool)
    noise = observe_contaminated(silent, silent, nobody, 2.0, generator())
    torch.testing.assert_close(noise.abs().square().mean(), torch.tensor(2.0 / 4), rtol=0.02, atol=0)


def test_the_share_of_reused_pilots_is_exact_and_everyones_turn_comes() -> None:
    reused = reused_pilots((2000, 8), 0.5, generator())
    assert (reused.sum(-1) == 4).all()
    torch.testing.assert_close(reused.float().mean(0), torch.full((8,), 0.5), rtol=0, atol=0.05)
    assert not reused_pilots((5, 8), 0.0, generator()).any() and reused_pilots((5, 8), 1.0, generator()).all()


def test_row_covariance_is_that_of_the_draw() -> None:
    covariance = narrow_covariance(0.4)
    found = row_covariance(drawn_rows(covariance, 50_000, 1, seed=2))
    torch.testing.assert_close(found, covariance, rtol=0, atol=0.03)
    assert found[0, 1].imag * covariance[0, 1].imag > 0  # conjugated like it, too


def test_lmmse_knows_its_error_and_beats_least_squares() -> None:
    own, interfering = narrow_covariance(0.5), narrow_covariance(-0.4, power=0.5)
    h, other = drawn_rows(own, 20_000, 2, seed=0), drawn_rows(interfering, 20_000, 2, seed=1)
    reused = torch.tensor([True, False]).expand(20_000, 2)
    seen = observe_contaminated(h, other, reused, 0.6, generator(2))
    noise = 0.6 / 2
    estimate, error_covariance = LmmseEstimator(own=own, interfering=interfering).estimate(
        seen, reused, noise
    )
    error = h - estimate
    for user in range(2):
        found = row_covariance(error[:, user])
        torch.testing.assert_close(found, error_covariance[0, user], rtol=0, atol=0.01)
    # orthogonality: nothing of the observation is left in the error
    cross = torch.einsum("dkm,dkn->kmn", seen.conj(), error) / len(h)
    assert cross.abs().max() < 0.02
    assert error.abs().square().mean() < 0.3 * (seen - h).abs().square().mean()


def test_lmmse_has_the_limits() -> None:
    own, interfering = narrow_covariance(0.5), narrow_covariance(-0.4)
    seen = drawn_rows(own, 10, 2, seed=0)
    estimator = LmmseEstimator(own=own + 0.01 * torch.eye(6), interfering=interfering)
    none, everyone = torch.zeros(10, 2, dtype=torch.bool), torch.ones(10, 2, dtype=torch.bool)
    clean, covariance = estimator.estimate(seen, none, 1e-9)
    torch.testing.assert_close(clean, seen, rtol=0, atol=1e-4)
    assert covariance.abs().max() < 1e-4
    lost, covariance = estimator.estimate(seen, everyone, 1e9)
    assert lost.abs().max() < 1e-5
    torch.testing.assert_close(covariance, estimator.own.expand(10, 2, 6, 6), rtol=0, atol=1e-4)


def test_covariances_of_users_may_differ() -> None:
    own = torch.stack([narrow_covariance(0.5), narrow_covariance(-0.8)])  # [2, 6, 6]
    interfering = narrow_covariance(0.0)
    seen = random_channel(4, 2, 6)
    reused = torch.tensor([[True, False]]).expand(4, 2)
    together, _ = LmmseEstimator(own=own, interfering=interfering).estimate(seen, reused, 0.1)
    for user in range(2):
        alone, _ = LmmseEstimator(own=own[user], interfering=interfering).estimate(seen, reused, 0.1)
        torch.testing.assert_close(together[:, user], alone[:, user])


def test_fit_pools_training_channels() -> None:
    own, other = random_channel(3, 4, 6), random_channel(5, 6, seed=1)
    estimator = LmmseEstimator.fit(own, other)
    torch.testing.assert_close(estimator.own, row_covariance(own))
    torch.testing.assert_close(estimator.interfering, row_covariance(other))


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(SpecError, match="9 orthogonal sequences need as many symbols"):
        orthogonal_sequences(9, 8)
    with pytest.raises(SpecError, match=r"must be 0 to 1, got 1\.5"):
        reused_pilots((2, 4), 1.5, generator())
    with pytest.raises(DataError, match="no channels to take a covariance of"):
        row_covariance(torch.zeros(0, 4, dtype=torch.complex64))
    estimator = LmmseEstimator.fit(random_channel(3, 4), random_channel(3, 4))
    with pytest.raises(SpecError, match="noise_variance must be positive"):
        estimator.estimate(random_channel(1, 4), torch.zeros(1, dtype=torch.bool), 0.0)
