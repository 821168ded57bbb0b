"""The reconstructed bound is never violated on quadratics, and says what it should about participation."""

import numpy as np
import pytest

from airlam.errors import SpecError
from airlam.split.convergence import Smoothness, gap_after_round, gap_bound, round_weight

NUM_DEVICES, DIMENSION, NUM_STEPS = 10, 6, 2000


class Quadratics:
    """F_k(w) = (w - a_k)^T H_k (w - a_k) / 2, the same data everywhere; F is their mean."""

    def __init__(self, seed: int, alike: bool) -> None:
        generator = np.random.default_rng(seed)
        roots = generator.standard_normal((NUM_DEVICES, DIMENSION, DIMENSION))
        hessians = roots @ roots.transpose(0, 2, 1) / DIMENSION + 0.2 * np.eye(DIMENSION)
        self.hessians = np.repeat(hessians[:1], NUM_DEVICES, axis=0) if alike else hessians
        self.centres = generator.standard_normal((NUM_DEVICES, DIMENSION))
        self.mean = self.hessians.mean(axis=0)
        pulled = np.einsum("kij,kj->i", self.hessians, self.centres) / NUM_DEVICES
        self.optimum = np.linalg.solve(self.mean, pulled)
        self.mu, self.smoothness = np.linalg.eigvalsh(self.mean)[[0, -1]]

    def gradients(self, w: np.ndarray) -> np.ndarray:
        return np.einsum("kij,kj->ki", self.hessians, w - self.centres)

    def gap(self, w: np.ndarray) -> float:
        off = w - self.optimum
        return float(off @ self.mean @ off / 2)


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_never_violated_with_bounded_gradients(seed: int) -> None:
    """xi2 = 0: xi1 is the largest squared gradient on the way."""
    problem, generator = Quadratics(seed, alike=False), np.random.default_rng(seed)
    w = problem.optimum + generator.standard_normal(DIMENSION)
    gaps, counts, largest = [problem.gap(w)], [], 0.0
    for _ in range(NUM_STEPS):
        gradients = problem.gradients(w)
        largest = max(largest, float((gradients**2).sum(axis=1).max()))
        counts.append(int(generator.integers(0, NUM_DEVICES + 1)))
        members = generator.permutation(NUM_DEVICES)[: counts[-1]]
        if counts[-1]:
            w = w - gradients[members].mean(axis=0) / problem.smoothness
        gaps.append(problem.gap(w))
    constants = Smoothness(
        smoothness=problem.smoothness, polyak_lojasiewicz=problem.mu, gradient_bound=largest
    )
    bounds = gap_bound(constants, gaps[0], counts, NUM_DEVICES)
    assert (np.array(gaps[1:]) <= bounds * (1 + 1e-12)).all()
    one_step = [gap_after_round(constants, g, m, NUM_DEVICES) for g, m in zip(gaps, counts, strict=False)]
    assert (np.array(gaps[1:]) <= np.array(one_step) * (1 + 1e-12)).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_never_violated_with_growing_gradients(seed: int) -> None:
    """One Hessian: grad F_k = grad F + H (mean a - a_k), so xi2 = 2 and xi1 = 2 max ||H (mean a - a_k)||^2.

    Few participants make 4 xi2 phi exceed 1, where the bound grows instead of shrinking.
    """
    problem, generator = Quadratics(seed, alike=True), np.random.default_rng(seed)
    apart = (problem.centres.mean(axis=0) - problem.centres) @ problem.mean
    constants = Smoothness(
        smoothness=problem.smoothness,
        polyak_lojasiewicz=problem.mu,
        gradient_bound=2 * float((apart**2).sum(axis=1).max()),
        gradient_growth=2.0,
    )
    w = problem.optimum + 10 * generator.standard_normal(DIMENSION)
    gap = problem.gap(w)
    for _ in range(NUM_STEPS):
        count = int(generator.integers(1, NUM_DEVICES + 1))
        members = generator.permutation(NUM_DEVICES)[:count]
        w = w - problem.gradients(w)[members].mean(axis=0) / problem.smoothness
        bound = gap_after_round(constants, gap, count, NUM_DEVICES)
        gap = problem.gap(w)
        assert gap <= bound * (1 + 1e-12) + 1e-12


def test_minibatch_noise_is_covered_in_the_mean() -> None:
    problem, generator = Quadratics(7, alike=False), np.random.default_rng(7)
    w, sigma, batch_size = problem.optimum + 1.0, 0.5, 4
    gradients = problem.gradients(w)
    constants = Smoothness(
        smoothness=problem.smoothness,
        polyak_lojasiewicz=problem.mu,
        gradient_bound=float((gradients**2).sum(axis=1).max()),
        sample_variance=sigma**2 * DIMENSION,
        batch_size=batch_size,
    )
    for count in (2, 10):
        after = []
        for _ in range(4000):
            members = generator.permutation(NUM_DEVICES)[:count]
            noise = sigma / np.sqrt(batch_size) * generator.standard_normal((count, DIMENSION))
            step = (gradients[members] + noise).mean(axis=0) / problem.smoothness
            after.append(problem.gap(w - step))
        assert np.mean(after) <= gap_after_round(constants, problem.gap(w), count, NUM_DEVICES)


@pytest.mark.parametrize("growth", [0.0, 0.1, 2.0])
def test_the_bound_falls_with_every_device_more(growth: float) -> None:
    constants = Smoothness(
        smoothness=2.0,
        polyak_lojasiewicz=0.5,
        gradient_bound=3.0,
        gradient_growth=growth,
        sample_variance=1.0,
    )
    bounds = [gap_after_round(constants, 1.0, count, 20) for count in range(1, 21)]
    assert (np.diff(bounds) < 0).all()


def test_unrolled_it_is_the_weighted_sum_of_missing_devices() -> None:
    constants = Smoothness(smoothness=4.0, polyak_lojasiewicz=1.0, gradient_bound=3.0)
    counts, rho = [1, 7, 4, 10, 2], 0.75
    weighted = sum(round_weight(rho, t, 5) * (1 - m / 10) ** 2 for t, m in enumerate(counts))
    assert constants.contraction == rho
    assert gap_bound(constants, 9.0, counts, 10)[-1] == pytest.approx(rho**5 * 9 + 2 * 3 / 4 * weighted)


def test_weights_rise_to_one() -> None:
    weights = [round_weight(0.9, t, 50) for t in range(50)]
    assert weights[-1] == 1 and (np.diff(weights) > 0).all() and weights[0] == pytest.approx(0.9**49)
    assert {round_weight(1.0, t, 3) for t in range(3)} == {1.0}


def test_impossible_constants_are_refused() -> None:
    with pytest.raises(SpecError, match="0 < mu <= L"):
        Smoothness(smoothness=1.0, polyak_lojasiewicz=2.0, gradient_bound=0.0)
    constants = Smoothness(smoothness=1.0, polyak_lojasiewicz=1.0, gradient_bound=0.0)
    with pytest.raises(SpecError, match="3 of 2 devices"):
        gap_after_round(constants, 1.0, 3, 2)
    with pytest.raises(SpecError, match="gap must not be negative"):
        gap_after_round(constants, -1.0, 1, 2)
    with pytest.raises(SpecError, match="contraction is 0"):
        round_weight(0.0, 0, 1)
    with pytest.raises(SpecError, match="round 3 is not one of 3"):
        round_weight(0.5, 3, 3)
