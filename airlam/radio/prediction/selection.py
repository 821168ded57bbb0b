"""Hyperparameters of classical predictors, chosen on training links for each SNR."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.wiener import noise_to_signal
from airlam.units import db_to_linear

TUNING_SNR_DB = (0.0, 10.0, 20.0, 30.0)

AnyPredictor = TypeVar("AnyPredictor", bound=Predictor)


@dataclass(frozen=True, slots=True, kw_only=True)
class BySnr:
    """Sends each drop to the predictor chosen for the SNR nearest to the drop's own.

    predictors: one for each of ``TUNING_SNR_DB``, as ``best_by_snr`` gives them. The drop's SNR is its mean
    power less the noise variance, over the noise variance.
    """

    name: str
    predictors: tuple[Predictor, ...]

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        nearest = nearest_level(history, noise_variance, TUNING_SNR_DB)  # [b]
        pieces = {
            k: self.predictors[k].predict(history[nearest == k], noise_variance[nearest == k])
            for k in sorted(set(nearest.tolist()))
        }
        first = next(iter(pieces.values()))
        future: torch.Tensor = first.new_empty(len(history), *first.shape[1:])
        for k, piece in pieces.items():
            future[nearest == k] = piece
        return future


def nearest_level(
    history: torch.Tensor, noise_variance: torch.Tensor, levels_db: Sequence[float]
) -> torch.Tensor:
    """Index of the level nearest to each drop's SNR: int64 [batch]; shapes as in ``Predictor.predict``."""
    snr_db = -10.0 * noise_to_signal(history, noise_variance).log10()  # [batch]
    levels = torch.tensor(levels_db, dtype=snr_db.dtype, device=snr_db.device)
    bounded = snr_db.clamp(levels.min(), levels.max())  # noise-free drops have infinite SNR
    return (bounded[:, None] - levels).abs().argmin(dim=1)


def best_by_snr(
    candidates: Sequence[AnyPredictor],
    training: TrainingLinks,
    *,
    num_links: int = 24,
    seed: int = 0,
) -> tuple[AnyPredictor, ...]:
    """The candidate with the least mean NMSE on noisy training links, at each of ``TUNING_SNR_DB``.

    Every candidate sees the same ``num_links`` links, spread evenly over the training set, and the same
    noise. Candidates that were themselves fitted should have seen other links: see ``split_links``.
    """
    links = spread_links(training, num_links)
    chosen = []
    for level_index, level_db in enumerate(TUNING_SNR_DB):
        generator = torch.Generator().manual_seed(seed + level_index)
        noisy, noise_variance = add_noise(links.history, level_db, generator)
        errors = [mean_nmse(c.predict(noisy, noise_variance), links.future) for c in candidates]
        chosen.append(candidates[errors.index(min(errors))])
    return tuple(chosen)


def fractional_orders(setting: PredictionSetting, *sixteenths: int) -> list[int]:
    """Filter orders as sixteenths of the history's length, without repeats, ascending."""
    longest = setting.num_history - 1
    return sorted({min(max(1, round(n * setting.num_history / 16)), longest) for n in sixteenths})


def spread_links(training: TrainingLinks, num_links: int) -> TrainingLinks:
    """At most ``num_links`` links, spread evenly over the training set."""
    total = len(training.history)
    index = torch.linspace(0, total - 1, min(total, num_links), dtype=torch.float64).round().long()
    return take_links(training, index)


def take_links(training: TrainingLinks, index: torch.Tensor) -> TrainingLinks:
    """The training links at ``index``, int64 [n] or bool [num_links]."""
    return TrainingLinks(history=training.history[index], future=training.future[index])


def split_links(training: TrainingLinks, every: int = 4) -> tuple[TrainingLinks, TrainingLinks]:
    """Links to fit on and, every ``every``-th, links to choose on."""
    held_out = torch.arange(len(training.history)) % every == 0
    if held_out.all() or not held_out.any():
        return training, training
    return take_links(training, ~held_out), take_links(training, held_out)


def add_noise(
    history: torch.Tensor, snr_db: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """White complex Gaussian noise, every link at one SNR; returns history and variance, float32 [batch]."""
    power = history.abs().square().flatten(1).mean(1)  # [batch]
    variance = power / db_to_linear(snr_db)
    noise = torch.randn(history.shape, dtype=history.dtype, generator=generator).to(history.device)
    return history + variance.sqrt()[:, None, None, None, None] * noise, variance


def link_nmse(estimate: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Each link's error energy over its energy: real [num_links], infinite where that is not finite."""
    error = (estimate - truth).abs().square().flatten(1).sum(1)
    energy = truth.abs().square().flatten(1).sum(1).clamp_min(torch.finfo(error.dtype).tiny)
    return (error / energy).nan_to_num(nan=torch.inf, posinf=torch.inf)


def mean_nmse(estimate: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean of ``link_nmse``."""
    return float(link_nmse(estimate, truth).mean())
