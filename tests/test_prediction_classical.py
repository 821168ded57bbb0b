"""Classical predictors: closed forms, exact recoveries, symmetries, and the registry."""

from dataclasses import replace

import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.radio.metrics import link_errors, summarise_nmse
from airlam.radio.prediction import Predictor, TrainingLinks, classical_predictors, pooled
from airlam.radio.prediction.autoregressive import (
    Pad,
    PerAntennaAr,
    ReducedRankAr,
    VectorProny,
    strong_taps,
)
from airlam.radio.prediction.covariance_mapping import CovarianceMapping
from airlam.radio.prediction.denoise_ls import DenoiseLs, KroneckerDenoiser
from airlam.radio.prediction.esprit import DelayEsprit
from airlam.radio.prediction.kalman import KalmanAr, KalmanJakes, kalman_predict, yule_walker
from airlam.radio.prediction.naive import Hold, LinearExtrapolation
from airlam.radio.prediction.selection import BySnr, add_noise, best_by_snr, split_links, spread_links
from airlam.radio.prediction.wiener import PopulationWiener, lmmse_weights, toeplitz
from airlam.specs import ArraySpec

SPACING_HZ = 180e3
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=2, num_cols=2, polarization="dual", polarization_type="cross"),
    num_user_antennas=2,
    history_frequencies_hz=tuple(SPACING_HZ * k for k in range(-8, 8)),
    target_frequencies_hz=tuple(SPACING_HZ * k for k in range(-8, 8)),
    slot_duration_s=0.5e-3,
    num_history=12,
    num_horizon=3,
    max_doppler_hz=200.0,
)
FDD = replace(SETTING, target_frequencies_hz=tuple(SPACING_HZ * k for k in range(10, 20)))
NO_NOISE = torch.zeros(4)


def _paths(
    num_links: int, num_paths: int, setting: PredictionSetting = SETTING, seed: int = 0
) -> TrainingLinks:
    """Links made of a few specular paths: delay, Doppler, a random response for every pair of antennas."""
    g = torch.Generator().manual_seed(seed)
    delay_s = 2e-6 * torch.rand(num_links, num_paths, generator=g, dtype=torch.float64)
    doppler_hz = setting.max_doppler_hz * torch.cos(
        2 * torch.pi * torch.rand(num_links, num_paths, generator=g, dtype=torch.float64)
    )
    antennas = torch.randn(
        num_links, num_paths, setting.num_user_antennas, 8, generator=g, dtype=torch.complex128
    )
    slots = torch.arange(setting.num_history + setting.num_horizon) * setting.slot_duration_s
    time = torch.exp(2j * torch.pi * doppler_hz[..., None] * slots)

    def channel(frequencies_hz: tuple[float, ...], over: slice) -> torch.Tensor:
        frequency = torch.tensor(frequencies_hz, dtype=torch.float64)
        response = torch.exp(-2j * torch.pi * delay_s[..., None] * frequency)
        h = torch.einsum("nqt,nqua,nqf->ntuaf", time[..., over], antennas, response)
        return (h / num_paths**0.5).to(torch.complex64)

    return TrainingLinks(
        history=channel(setting.history_frequencies_hz, slice(0, setting.num_history)),
        future=channel(setting.target_frequencies_hz, slice(setting.num_history, None)),
    )


def _nmse(predictor: Predictor, links: TrainingLinks, snr_db: float | None = None) -> float:
    history, variance = links.history, torch.zeros(len(links.history))
    if snr_db is not None:
        history, variance = add_noise(history, snr_db, torch.Generator().manual_seed(7))
    return summarise_nmse(link_errors(predictor.predict(history, variance), links.future)).pooled.value


TRAINING = _paths(24, 4, seed=1)
PREDICTORS: list[Predictor] = [
    Hold.for_setting(SETTING),
    LinearExtrapolation(num_horizon=3, num_points=3),
    PerAntennaAr(setting=SETTING, order=4, ridge=1e-2, compensation=0.5),
    VectorProny(setting=SETTING, order=6, ridge=1e-3),
    Pad(setting=SETTING, order=2, ridge=1e-3, kept_energy=0.99),
    ReducedRankAr(setting=SETTING, order=8, rank=4),
    KalmanJakes(setting=SETTING, order=3),
    KalmanAr(setting=SETTING, order=4),
    PopulationWiener.fit(SETTING, TRAINING),
    DenoiseLs(setting=SETTING, denoiser=KroneckerDenoiser.fit(TRAINING), order=6),
    DenoiseLs(setting=SETTING, denoiser=KroneckerDenoiser.fit(TRAINING, prior_slots=2.0), order=6, name="a"),
    DelayEsprit(setting=SETTING, order=6, ridge=1e-3),
]


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: p.name)
def test_a_batch_is_its_links_one_by_one_and_scale_passes_through(predictor: Predictor) -> None:
    history, variance = add_noise(_paths(4, 4).history, 15.0, torch.Generator().manual_seed(0))
    together = predictor.predict(history, variance)
    assert together.shape == (4, 3, 2, 8, 16) and together.dtype == torch.complex64
    alone = torch.cat([predictor.predict(history[i : i + 1], variance[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, together, rtol=2e-3, atol=2e-4)
    scaled = predictor.predict(10 * history, 100 * variance) / 10
    torch.testing.assert_close(scaled, together, rtol=2e-3, atol=2e-4)
    turned = predictor.predict(1j * history, variance) / 1j
    torch.testing.assert_close(turned, together, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: p.name)
def test_nothing_but_noise_or_nothing_at_all_stays_finite(predictor: Predictor) -> None:
    silent = torch.zeros(1, 12, 2, 8, 16, dtype=torch.complex64)
    assert float(predictor.predict(silent, torch.zeros(1)).abs().max()) == 0.0
    noise = torch.randn(silent.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert bool(predictor.predict(noise, torch.ones(1)).isfinite().all())


@pytest.mark.parametrize(
    "predictor",
    [
        PerAntennaAr(setting=SETTING, order=6, ridge=1e-13, compensation=1.0),
        VectorProny(setting=SETTING, order=6, ridge=1e-13),
        ReducedRankAr(setting=SETTING, order=6, rank=4),
        DelayEsprit(setting=SETTING, order=6, ridge=1e-10),
    ],
    ids=lambda p: p.name,
)
def test_a_few_undamped_paths_without_noise_are_predicted_exactly(predictor: Predictor) -> None:
    assert _nmse(predictor, _paths(4, 3, seed=2)) < 1e-5


def test_prony_per_tap_is_exact_when_each_tap_holds_one_path() -> None:
    f = torch.arange(16)
    t = torch.arange(15)
    h = torch.zeros(1, 15, 2, 8, 16, dtype=torch.complex64)
    for tap, doppler in ((0, 0.05), (3, -0.08), (7, 0.02)):
        wave = torch.exp(2j * torch.pi * doppler * t)[:, None] * torch.exp(-2j * torch.pi * f * tap / 16)
        h = h + wave[None, :, None, None]
    predictor = Pad(setting=SETTING, order=1, ridge=1e-12, kept_energy=0.9999)
    future = predictor.predict(h[:, :12], torch.zeros(1))
    torch.testing.assert_close(future, h[:, 12:], atol=1e-4, rtol=0)


def test_kalman_filters_a_known_autoregression_as_the_batch_lmmse_does() -> None:
    correlation = torch.special.bessel_j0(2 * torch.pi * 0.05 * torch.arange(15.0, dtype=torch.float64))
    coefficients, _ = yule_walker(correlation[None, :2].to(torch.complex128))
    exponential = coefficients[0, 0] ** torch.arange(15)  # the correlation that an AR(1) really has
    history = _paths(4, 5).history
    ratio = torch.full((4,), 0.2, dtype=torch.float64)
    filtered = kalman_predict(history, exponential[None, :2].expand(4, -1), ratio, 3)
    weights = lmmse_weights(exponential, ratio, 12).to(torch.complex64)
    expected = torch.einsum("blt,btupf->blupf", weights, history)
    torch.testing.assert_close(filtered, expected, rtol=1e-3, atol=1e-4)


def test_wiener_meets_its_closed_form() -> None:
    wiener = PopulationWiener.fit(SETTING, TRAINING)
    history, variance = add_noise(_paths(4, 4).history, 10.0, torch.Generator().manual_seed(0))
    covariance = toeplitz(wiener.correlation)
    signal = history.abs().square().flatten(1).mean(1) - variance
    for link in range(4):
        noisy = covariance[:12, :12] + torch.eye(12) * (variance[link] / signal[link])
        weights = covariance[12:, :12] @ torch.linalg.inv(noisy)
        expected = torch.einsum("lt,tupf->lupf", weights.to(torch.complex64), history[link])
        torch.testing.assert_close(wiener.predict(history, variance)[link], expected, rtol=1e-3, atol=1e-4)


def test_hold_error_on_clarke_channels_is_two_minus_two_bessel() -> None:
    g = torch.Generator().manual_seed(0)
    setting = replace(SETTING, num_horizon=1)
    doppler = 0.1 * torch.cos(2 * torch.pi * torch.rand(2000, 32, generator=g))
    phase = torch.exp(2j * torch.pi * torch.rand(2000, 32, generator=g))
    slots = torch.arange(13)
    h = (phase[..., None] * torch.exp(2j * torch.pi * doppler[..., None] * slots)).sum(1)
    h = h[:, :, None, None, None]
    nmse = _nmse(Hold.for_setting(setting), TrainingLinks(history=h[:, :12], future=h[:, 12:]))
    expected = 2 - 2 * float(torch.special.bessel_j0(torch.tensor(2 * torch.pi * 0.1)))
    assert nmse == pytest.approx(expected, rel=0.05)


def test_a_line_is_continued_exactly() -> None:
    t = torch.arange(15.0)[None, :, None, None, None]
    h = ((2 - 1j) + (0.5 + 0.25j) * t).to(torch.complex64)
    for num_points in (2, 5):
        future = LinearExtrapolation(num_horizon=3, num_points=num_points).predict(h[:, :12], torch.zeros(1))
        torch.testing.assert_close(future, h[:, 12:], rtol=1e-4, atol=1e-4)


def test_denoiser_removes_noise_and_leaves_clean_channels_alone() -> None:
    denoiser = KroneckerDenoiser.fit(TRAINING)
    clean = _paths(8, 4, seed=3).history
    torch.testing.assert_close(denoiser.denoise(clean, torch.zeros(8)), clean, rtol=1e-3, atol=1e-3)
    noisy, variance = add_noise(clean, 0.0, torch.Generator().manual_seed(0))
    for one in (denoiser, replace(denoiser, prior_slots=4.0)):
        left = (one.denoise(noisy, variance) - clean).abs().square().sum()
        assert float(left) < 0.6 * float((noisy - clean).abs().square().sum())


def test_iterated_filter_as_weights_equals_iterating_values() -> None:
    filters = torch.randn(2, 3, dtype=torch.complex128)
    x = torch.randn(2, 6, 4, dtype=torch.complex128)
    torch.testing.assert_close(
        pooled.apply(pooled.recursive_weights(filters, 6, 4), x), pooled.iterate(filters, x, 4)
    )


def test_direct_filters_reach_beyond_the_examples_that_a_short_history_holds() -> None:
    t = torch.arange(9)
    x = torch.exp(2j * torch.pi * 0.07 * t)[:, None].to(torch.complex128)  # 3 slots of history, 6 ahead
    weights = pooled.direct_weights(pooled.temporal_gram(x[:3]), 2, 1e-14, 6)
    torch.testing.assert_close(pooled.apply(weights, x[:3]), x[3:], atol=1e-4, rtol=0)


def test_strong_taps_are_the_fewest_that_hold_the_energy() -> None:
    energy = torch.tensor([[1.0, 6.0, 3.0], [10.0, 0.0, 0.0]])
    expected = torch.tensor([[False, True, True], [True, False, False]])
    assert torch.equal(strong_taps(energy, 0.85), expected)


def test_esprit_continues_paths_into_another_band() -> None:
    links = _paths(4, 3, FDD, seed=4)
    predictor = DelayEsprit(setting=FDD, order=6, ridge=1e-10)
    assert _nmse(predictor, links) < 1e-3
    assert _nmse(predictor, links, snr_db=25.0) < 0.3


def test_covariance_mapping_learns_a_fixed_delay_and_is_lmmse_for_it() -> None:
    g = torch.Generator().manual_seed(0)
    gains = torch.randn(64, 1, 2, 8, 1, dtype=torch.complex64, generator=g)

    def band(frequencies_hz: tuple[float, ...], num_slots: int) -> torch.Tensor:
        phase = torch.exp(-2j * torch.pi * 0.4e-6 * torch.tensor(frequencies_hz))
        return (gains * phase).expand(-1, num_slots, -1, -1, -1).to(torch.complex64)

    links = TrainingLinks(
        history=band(FDD.history_frequencies_hz, 12), future=band(FDD.target_frequencies_hz, 3)
    )
    mapping = CovarianceMapping.fit(FDD, links)
    assert _nmse(mapping, links) < 1e-4
    # each of the 16 antenna gains is seen 12 x 16 times, so the noise is averaged by as much
    assert _nmse(mapping, links, snr_db=0.0) < 1.5 / (12 * 16)


def test_choice_by_snr_takes_the_best_and_dispatches_each_link() -> None:
    links = _paths(12, 3, seed=5)
    candidates = [Hold.for_setting(SETTING), VectorProny(setting=SETTING, order=6, ridge=1e-6)]
    chosen = best_by_snr(candidates, links)
    assert chosen[-1] is candidates[1]
    both = BySnr(name="x", predictors=(candidates[0],) * 3 + (candidates[1],))
    history, variance = links.history[:2], torch.tensor([1.0, 1e-4])
    future = both.predict(history, variance)
    torch.testing.assert_close(future[0], candidates[0].predict(history, variance)[0])
    torch.testing.assert_close(future[1], candidates[1].predict(history, variance)[1])


def test_spread_links_reach_both_ends_and_never_repeat() -> None:
    count = torch.arange(24.0)[:, None, None, None, None]
    links = spread_links(TrainingLinks(history=count, future=count), 17)
    index = links.history.flatten()
    assert len(index.unique()) == 17 and index[0] == 0 and index[-1] == 23
    assert len(spread_links(links, 100).history) == 17


def test_links_for_fitting_and_choosing_are_disjoint() -> None:
    fit, held_out = split_links(TRAINING)
    assert len(fit.history) + len(held_out.history) == len(TRAINING.history)
    gap = (fit.history[:, None] - held_out.history[None]).abs().flatten(2).amax(2)
    assert float(gap.min()) > 1e-3


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        (
            SETTING,
            "hold linear per_antenna_ar kalman_jakes kalman_ar population_wiener vector_prony pad "
            "reduced_rank_ar denoise_ls adaptive_denoise_ls delay_esprit path_eb",
        ),
        (FDD, "covariance_mapping delay_esprit path_eb"),
        (replace(SETTING, history_frequencies_hz=(0.0,), target_frequencies_hz=(0.0,), num_history=4), None),
    ],
)
def test_registry_fits_and_predicts(setting: PredictionSetting, names: str | None) -> None:
    predictors = classical_predictors(setting, _paths(12, 4, setting, seed=6))
    test_links = _paths(4, 4, setting, seed=7)
    if names is not None:
        assert [p.name for p in predictors] == names.split()
    nmse = {p.name: _nmse(p, test_links, snr_db=20.0) for p in predictors}
    assert all(value < 10 for value in nmse.values()), nmse
    if setting is SETTING:
        assert min(nmse, key=lambda name: nmse[name]) in (
            "adaptive_denoise_ls",
            "delay_esprit",
            "path_eb",
            "reduced_rank_ar",
        )


def test_orders_and_bands_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SpecError, match="filter order 12 does not fit 12 slots"):
        VectorProny(setting=SETTING, order=12, ridge=1e-3)
    with pytest.raises(SpecError, match="too few to tell delays"):
        DelayEsprit(setting=replace(SETTING, history_frequencies_hz=(0.0, 1.0)), order=4, ridge=1e-3)
