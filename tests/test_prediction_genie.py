"""The genie bound against Monte Carlo, against direct linear algebra, and below every predictor."""

from dataclasses import dataclass, replace

import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction import Predictor, TrainingLinks
from airlam.radio.prediction.autoregressive import Pad, ReducedRankAr, VectorProny
from airlam.radio.prediction.denoise_ls import DenoiseLs, KroneckerDenoiser
from airlam.radio.prediction.esprit import DelayEsprit
from airlam.radio.prediction.genie import genie_bound, genie_prediction
from airlam.radio.prediction.wiener import PopulationWiener
from airlam.specs import ArraySpec

SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=2, num_cols=2),
    num_user_antennas=1,
    history_frequencies_hz=tuple(180e3 * k for k in range(8)),
    target_frequencies_hz=tuple(180e3 * k for k in range(8)),
    slot_duration_s=0.5e-3,
    num_history=8,
    num_horizon=2,
    max_doppler_hz=200.0,
)
FDD = replace(SETTING, target_frequencies_hz=tuple(180e3 * k for k in range(8, 16)))


@dataclass(frozen=True, kw_only=True)
class FewRays:
    delay_s: torch.Tensor
    time_response: torch.Tensor
    spatial_response: torch.Tensor
    power: torch.Tensor


def _rays(num_rays: int = 6, seed: int = 0) -> FewRays:
    g = torch.Generator().manual_seed(seed)
    doppler = 0.1 * (2 * torch.rand(num_rays, 1, generator=g, dtype=torch.float64) - 1)
    angle = torch.rand(num_rays, 2, generator=g, dtype=torch.float64)
    position = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    return FewRays(
        delay_s=2e-6 * torch.rand(num_rays, generator=g, dtype=torch.float64),
        time_response=torch.exp(2j * torch.pi * doppler * torch.arange(10)),
        spatial_response=torch.exp(2j * torch.pi * (angle @ position.mT)),
        power=torch.rand(num_rays, generator=g, dtype=torch.float64) / num_rays,
    )


def _draw(rays: FewRays, setting: PredictionSetting, num_draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Histories and futures [num_draws, t, 1, antennas, f] of Gaussian amplitudes, and the responses."""
    g = torch.Generator().manual_seed(1)
    amplitude = torch.randn(num_draws, len(rays.power), generator=g, dtype=torch.complex128)
    amplitude = amplitude * rays.power.sqrt()
    both = []
    for frequencies, slots in (
        (setting.history_frequencies_hz, slice(0, 8)),
        (setting.target_frequencies_hz, slice(8, 10)),
    ):
        f = torch.tensor(frequencies, dtype=torch.float64)
        band = torch.exp(-2j * torch.pi * rays.delay_s[:, None] * f)
        h = torch.einsum(
            "nq,qt,qa,qf->ntaf", amplitude, rays.time_response[:, slots], rays.spatial_response, band
        )
        both.append(h[:, :, None])
    return both[0], both[1]


@pytest.mark.parametrize("setting", [SETTING, FDD], ids=["tdd", "fdd"])
def test_expected_error_is_what_the_estimates_make(setting: PredictionSetting) -> None:
    rays, noise = _rays(), 0.05
    history, future = _draw(rays, setting, 300)
    g = torch.Generator().manual_seed(2)
    noisy = history + noise**0.5 * torch.randn(history.shape, dtype=torch.complex128, generator=g)
    estimate = torch.stack([genie_prediction(rays, x, noise, setting) for x in noisy])
    error = (estimate - future).abs().square().sum((0, 2, 3, 4)) / 300  # [horizon]
    bound = genie_bound(rays, [noise], setting)
    torch.testing.assert_close(error, bound.error[0], rtol=0.1, atol=0)
    energy = future.abs().square().sum((0, 2, 3, 4)) / 300
    torch.testing.assert_close(energy, bound.energy, rtol=0.1, atol=0)


def test_bound_equals_the_textbook_formula() -> None:
    rays, noise = _rays(), 0.3
    f = torch.tensor(FDD.history_frequencies_hz, dtype=torch.float64)
    g = torch.tensor(FDD.target_frequencies_hz, dtype=torch.float64)

    def responses(slots: slice, frequency: torch.Tensor) -> torch.Tensor:
        band = torch.exp(-2j * torch.pi * rays.delay_s[:, None] * frequency)
        h = torch.einsum("qt,qa,qf->tafq", rays.time_response[:, slots], rays.spatial_response, band)
        return h.reshape(-1, len(rays.power))

    a, b = responses(slice(0, 8), f), responses(slice(8, 10), g)
    covariance = torch.diag(rays.power).to(a.dtype)
    observed = a @ covariance @ a.mH + noise * torch.eye(len(a))
    cross = b @ covariance @ a.mH
    posterior = b @ covariance @ b.mH - cross @ torch.linalg.solve(observed, cross.mH)
    bound = genie_bound(rays, [noise], FDD)
    assert float(bound.error.sum()) == pytest.approx(float(posterior.diagonal().real.sum()))


def test_error_vanishes_with_the_noise_and_is_the_energy_without_signal() -> None:
    bound = genie_bound(_rays(), [0.0, 1e-9, 1e-3, 1.0, 1e12], SETTING)
    nmse = bound.nmse
    assert float(nmse[1]) < 1e-7
    assert bool((nmse.diff() > 0).all())
    assert float(nmse[-1]) == pytest.approx(1.0, abs=1e-6)


def test_no_predictor_gets_below_the_genie() -> None:
    rays, noise = _rays(24), 0.05
    history, future = _draw(rays, SETTING, 64)
    g = torch.Generator().manual_seed(2)
    noisy = history + noise**0.5 * torch.randn(history.shape, dtype=torch.complex128, generator=g)
    training = TrainingLinks(history=history[:32].to(torch.complex64), future=future[:32].to(torch.complex64))
    bound = float(genie_bound(rays, [noise], SETTING).error.sum())
    predictors: list[Predictor] = [
        PopulationWiener.fit(SETTING, training),
        VectorProny(setting=SETTING, order=5, ridge=1e-3),
        Pad(setting=SETTING, order=2, ridge=1e-3, kept_energy=0.99),
        ReducedRankAr(setting=SETTING, order=6, rank=5),
        DenoiseLs(setting=SETTING, denoiser=KroneckerDenoiser.fit(training, prior_slots=2.0), order=5),
        DelayEsprit(setting=SETTING, order=5, ridge=1e-3),
    ]
    for predictor in predictors:
        estimate = predictor.predict(noisy[32:].to(torch.complex64), torch.full((32,), noise))
        error = float((estimate - future[32:]).abs().square().sum()) / 32
        assert error > 0.9 * bound, predictor.name  # 0.9: the mean over 32 draws scatters


def test_rays_that_end_too_early_are_refused() -> None:
    with pytest.raises(SpecError, match="cover 10 slots, fewer than the 12"):
        genie_bound(_rays(), [0.1], replace(SETTING, num_horizon=4))
