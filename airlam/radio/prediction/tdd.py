"""The classical predictors where history and future share a band, each with its choices to tune."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.autoregressive import Pad, PerAntennaAr, ReducedRankAr, VectorProny
from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.denoise_ls import DenoiseLs, KroneckerDenoiser
from airlam.radio.prediction.esprit import can_tell_delays, delay_esprit
from airlam.radio.prediction.kalman import KalmanAr, KalmanJakes
from airlam.radio.prediction.naive import Hold, LinearExtrapolation
from airlam.radio.prediction.selection import BySnr, best_by_snr, fractional_orders, split_links
from airlam.radio.prediction.wiener import PopulationWiener

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


def tdd_predictors(setting: PredictionSetting, training: TrainingLinks) -> list[Predictor]:
    """All of them, tuned for each SNR and fitted on training links."""
    return [
        Hold.for_setting(setting),
        linear(setting, training),
        per_antenna_ar(setting, training),
        kalman_jakes(setting, training),
        kalman_ar(setting, training),
        PopulationWiener.fit(setting, training),
        vector_prony(setting, training),
        pad(setting, training),
        reduced_rank_ar(setting, training),
        denoise_ls(setting, training),
        adaptive_denoise_ls(setting, training),
        *([delay_esprit(setting, training)] if can_tell_delays(setting) else []),
    ]


def linear(setting: PredictionSetting, training: TrainingLinks) -> BySnr:
    """Number of slots that the line goes through."""
    candidates = [
        LinearExtrapolation(num_horizon=setting.num_horizon, num_points=n)
        for n in (2, 3, 4, 6, 8, 12)
        if n <= max(2, setting.num_history)
    ]
    return BySnr(name="linear", predictors=best_by_snr(candidates, training))


def per_antenna_ar(setting: PredictionSetting, training: TrainingLinks) -> BySnr:
    """Order, ridge and how much of the noise to take off."""
    candidates = [
        PerAntennaAr(setting=setting, order=order, ridge=ridge, compensation=compensation)
        for order, ridge, compensation in product(fractional_orders(setting, 2, 4, 8), RIDGES[1:], (0.0, 0.5))
    ]
    return BySnr(name="per_antenna_ar", predictors=best_by_snr(candidates, training))


def kalman_jakes(setting: PredictionSetting, training: TrainingLinks) -> BySnr:
    """Order of the state."""
    candidates = [
        KalmanJakes(setting=setting, order=order) for order in fractional_orders(setting, 1, 2, 4, 8)
    ]
    return BySnr(name="kalman_jakes", predictors=best_by_snr(candidates, training))


def kalman_ar(setting: PredictionSetting, training: TrainingLinks) -> BySnr:
    """Order of the state."""
    candidates = [KalmanAr(setting=setting, order=order) for order in fractional_orders(setting, 2, 4, 8, 12)]
    return BySnr(name="kalman_ar", predictors=best_by_snr(candidates, training))


def vector_prony(setting: PredictionSetting, training: TrainingLinks) -> BySnr:
    """Order and ridge."""
    candidates = [
        VectorProny(setting=setting, order=order, ridge=ridge)
        for order, ridge in product(fractional_orders(setting, 2, 4, 8, 12, 13), (1e-6, 1e-4, 1e-2))
    ]
    return BySnr(name="vector_prony", predictors=best_by_snr(candidates, training))


def pad(setting: PredictionSetting, training: TrainingLinks) -> BySnr:
    """Order, ridge and the energy of the kept taps."""
    candidates = [
        Pad(setting=setting, order=order, ridge=ridge, kept_energy=kept)
        for order, ridge, kept in product(
            fractional_orders(setting, 2, 3, 4), (1e-4, 1e-2), (0.8, 0.95, 0.998)
        )
    ]
    return BySnr(name="pad", predictors=best_by_snr(candidates, training, num_links=16))


def reduced_rank_ar(setting: PredictionSetting, training: TrainingLinks) -> BySnr:
    """Order and rank."""
    candidates = [
        ReducedRankAr(setting=setting, order=order, rank=rank)
        for order, rank in product(fractional_orders(setting, 8, 12, 13), (2, 3, 4, 5, 6, 8))
        if rank <= order
    ]
    return BySnr(name="reduced_rank_ar", predictors=best_by_snr(candidates, training))


def denoise_ls(setting: PredictionSetting, training: TrainingLinks) -> BySnr:
    """Order 8 and the population's powers; only the ridge is tuned."""
    order = min(8, setting.num_history - 1)
    return _tuned_denoise_ls("denoise_ls", setting, training, [(order, r, None) for r in (1e-5, *RIDGES)])


def adaptive_denoise_ls(setting: PredictionSetting, training: TrainingLinks) -> BySnr:
    """Order, ridge, and how much the drop's own powers count in the denoiser."""
    choices = product(fractional_orders(setting, 8, 12, 13), (1e-5, 1e-2), (0.0, 1.0, 8.0))
    return _tuned_denoise_ls("adaptive_denoise_ls", setting, training, choices)


def _tuned_denoise_ls(
    name: str,
    setting: PredictionSetting,
    training: TrainingLinks,
    choices: Iterable[tuple[int, float, float | None]],
) -> BySnr:
    """Chooses on links that the covariances have not seen, then pools covariances over all links."""
    fit_links, held_out = split_links(training)
    denoiser = KroneckerDenoiser.fit(fit_links)
    candidates = [
        DenoiseLs(
            setting=setting,
            denoiser=replace(denoiser, prior_slots=prior_slots),
            order=order,
            ridge=ridge,
        )
        for order, ridge, prior_slots in choices
    ]
    final = KroneckerDenoiser.fit(training)
    return BySnr(
        name=name,
        predictors=tuple(
            replace(best, denoiser=replace(final, prior_slots=best.denoiser.prior_slots))
            for best in best_by_snr(candidates, held_out)
        ),
    )
