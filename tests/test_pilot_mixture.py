"""The mixture estimator is LMMSE with one component, the posterior mean with more, and knows its error."""

import pytest
import torch

from airlam.errors import DataError, SpecError
from airlam.radio.beamforming import sample_channels
from airlam.radio.pilot_mixture import MixtureEstimator, RowMixture
from airlam.radio.pilots import LmmseEstimator, row_covariance

NUM_ANT = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cluster(angle: float, power: float = 1.0) -> torch.Tensor:
    """Directions about ``angle`` on a line of antennas, a little of everything: complex128 [n, n]."""
    angles = angle + torch.linspace(-0.1, 0.1, 21)
    phase = torch.outer(torch.sin(angles), torch.arange(NUM_ANT).float())
    steering = torch.exp(1j * torch.pi * phase).to(torch.complex128)
    return power * (steering.mH @ steering / len(angles) + 0.01 * torch.eye(NUM_ANT))


def drawn(covariance: torch.Tensor, num_rows: int, seed: int) -> torch.Tensor:
    return sample_channels(torch.zeros_like(covariance[:1]), covariance[None], num_rows, generator(seed))[
        :, 0
    ]


def three_places(num_rows: int, seed: int) -> torch.Tensor:
    """Rows of three clusters, one after another: complex128 [3 num_rows, n]."""
    return torch.cat([drawn(cluster(a), num_rows, seed + i) for i, a in enumerate((-0.9, 0.1, 0.8))])


def white(num_rows: int, variance: float, seed: int) -> torch.Tensor:
    return variance**0.5 * torch.randn(num_rows, NUM_ANT, dtype=torch.complex128, generator=generator(seed))


def test_one_component_is_lmmse() -> None:
    own, other = three_places(500, 0), drawn(cluster(0.4), 800, 7)
    mixture = MixtureEstimator.fit(own, other, 1, generator())
    plain = LmmseEstimator(own=mixture.own.covariances[0], interfering=mixture.interfering.covariances[0])
    torch.testing.assert_close(plain.own, row_covariance(own), rtol=0, atol=2e-3)
    observed = own[:40].reshape(10, 4, NUM_ANT).to(torch.complex64)
    reused = torch.tensor([True, False, False, True]).expand(10, 4)
    for found, expected in zip(
        mixture.estimate(observed, reused, 0.3), plain.estimate(observed, reused, 0.3), strict=True
    ):
        assert found.dtype == torch.complex64
        torch.testing.assert_close(found, expected)


def test_fitting_finds_the_places() -> None:
    mixture = RowMixture.fit(three_places(3000, 0), 3, generator())
    torch.testing.assert_close(
        mixture.shares, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.05
    )
    for angle in (-0.9, 0.1, 0.8):
        distance = (mixture.covariances - cluster(angle)).abs().amax((-2, -1))
        assert distance.min() < 0.15


def test_more_components_explain_more() -> None:
    rows, fresh = three_places(2000, 0), three_places(500, 50)
    likelihood = [
        float(RowMixture.fit(rows, c, generator()).log_joint(fresh).logsumexp(-1).mean()) for c in (1, 3, 6)
    ]
    assert likelihood[1] > likelihood[0] + 1 and likelihood[2] > likelihood[0] + 1


def test_the_error_is_less_than_that_of_lmmse_and_known() -> None:
    own, other = three_places(2000, 0), drawn(cluster(0.4, 0.5), 2000, 7)
    test, disturbance = three_places(1500, 90), drawn(cluster(0.4, 0.5), 4500, 91)
    reused = torch.rand(4500, generator=generator(3)) < 0.5
    observed = test + disturbance * reused[:, None] + white(4500, 0.5, 92)
    mixture = MixtureEstimator.fit(own, other, 3, generator())
    estimate, covariance = mixture.estimate(observed, reused, 0.5)
    error = test - estimate
    assert covariance.diagonal(dim1=-2, dim2=-1).real.min() > 0
    for who in (reused, ~reused):
        torch.testing.assert_close(row_covariance(error[who]), covariance[who].mean(0), rtol=0, atol=0.03)
    plain, _ = LmmseEstimator.fit(own, other).estimate(observed, reused, 0.5)
    assert error.abs().square().mean() < 0.7 * (test - plain).abs().square().mean()


def test_the_posterior_mean_by_hand() -> None:
    own = RowMixture(
        shares=torch.tensor([0.3, 0.7], dtype=torch.float64),
        covariances=torch.stack([cluster(0.5), cluster(-0.5)]),
    )
    other = RowMixture(shares=torch.ones(1, dtype=torch.float64), covariances=cluster(0.0)[None])
    y = drawn(cluster(0.2), 1, 0)
    total = own.covariances + cluster(0.0) + 0.2 * torch.eye(NUM_ANT)
    density = torch.stack(
        [
            s * torch.exp(-(y @ torch.linalg.inv(c) @ y.mH).real[0, 0]) / torch.linalg.det(c).real
            for s, c in zip(own.shares, total, strict=True)
        ]
    )
    means = [y @ torch.linalg.inv(t) @ c for t, c in zip(total, own.covariances, strict=True)]
    expected = sum(p * m for p, m in zip(density / density.sum(), means, strict=True))
    found, _ = MixtureEstimator(own=own, interfering=other).estimate(y, torch.tensor([True]), 0.2)
    torch.testing.assert_close(found, expected)


def test_impossible_requests_are_refused() -> None:
    rows = three_places(2, 0)
    with pytest.raises(SpecError, match="num_components must be at least 1, got 0"):
        RowMixture.fit(rows, 0, generator())
    with pytest.raises(DataError, match="9 components need as many channels at least, there are 6"):
        RowMixture.fit(rows, 9, generator())
    estimator = MixtureEstimator.fit(rows, rows, 1, generator())
    with pytest.raises(SpecError, match="noise_variance must be positive"):
        estimator.estimate(rows, torch.zeros(6, dtype=torch.bool), -1.0)
