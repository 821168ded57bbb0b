"""Predictors side by side on the same test links and the same noise."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from airlam.radio.metrics import LinkErrors, link_errors, noisy_target
from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.selection import add_noise
from airlam.tasks.channel_prediction import LinkSource, Progress, split_links

BATCH_LINKS = 32
NOISE_SEED = 5000  # apart from every seed that draws channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One predictor at one SNR, against the clean future and against the future with the history's noise."""

    clean: LinkErrors
    noisy: LinkErrors


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every predictor's errors by SNR; the links' speeds; what a prediction costs."""

    scored: dict[float, dict[str, Scored]]
    speed_m_per_s: torch.Tensor  # float32 [num_links]
    seconds_per_link: dict[str, float]

    def best(self, names: Sequence[str], snr_db: float) -> str:
        """Of ``names``, the one with the least pooled NMSE at one SNR."""
        errors = {name: self.scored[snr_db][name].clean for name in names}
        return min(names, key=lambda name: float(errors[name].error.sum() / errors[name].energy.sum()))


def training_links(source: LinkSource, max_links: int, seed: int) -> TrainingLinks:
    """Clean links drawn without replacement, for predictors that fit covariances."""
    count = min(max_links, len(source))
    chosen = np.random.default_rng(seed).permutation(len(source))[:count]
    history, future = split_links(source.read(np.sort(chosen)), source.setting)
    return TrainingLinks(history=history, future=future)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Test links at one SNR: noisy history, its noise variance, and the clean future."""

    history: torch.Tensor
    noise_variance: torch.Tensor
    future: torch.Tensor
    generator: torch.Generator


def observe(
    clean: torch.Tensor, source: LinkSource, snr_db: float, first: int, power: torch.Tensor | None = None
) -> Observed:
    """Clean links with noise that depends on the SNR and on the index of the first link only.

    The SNR is against each link's own mean power, or against ``power`` (float [batch]) where that is given.
    """
    history, future = split_links(clean, source.setting)
    generator = torch.Generator().manual_seed(NOISE_SEED + 1000 * first + round(10 * snr_db))
    if power is None:
        noisy, variance = add_noise(history, snr_db, generator)
    else:
        variance = power.float() * 10 ** (-snr_db / 10)  # [batch]
        noisy = noisy_target(history, variance, generator)
    return Observed(history=noisy, noise_variance=variance, future=future, generator=generator)


def compare(
    predictors: Sequence[Predictor],
    source: LinkSource,
    snrs_db: Sequence[float],
    on_progress: Progress,
    *,
    max_links: int | None = None,
    power: torch.Tensor | None = None,
) -> Comparison:
    """Every predictor on the same links with the same noise, at each SNR; ``power`` as in ``observe``."""
    count = len(source) if max_links is None else min(max_links, len(source))
    starts = range(0, count, BATCH_LINKS)
    names = [predictor.name for predictor in predictors]
    parts: dict[float, dict[str, list[Scored]]] = {snr: {name: [] for name in names} for snr in snrs_db}
    seconds = dict.fromkeys(names, 0.0)
    for position, start in enumerate(starts):
        indices = np.arange(start, min(start + BATCH_LINKS, count))
        clean = source.read(indices)
        drop = torch.from_numpy(indices // source.links_per_drop)  # [num_links]
        for level, snr in enumerate(snrs_db):
            reference = None if power is None else power[start : start + BATCH_LINKS]
            seen = observe(clean, source, snr, start, reference)
            noisy = noisy_target(seen.future, seen.noise_variance, seen.generator)
            for predictor in predictors:
                began = time.perf_counter()
                estimate = predictor.predict(seen.history, seen.noise_variance)
                seconds[predictor.name] += time.perf_counter() - began
                scored = Scored(
                    clean=link_errors(estimate, seen.future, drop), noisy=link_errors(estimate, noisy, drop)
                )
                parts[snr][predictor.name].append(scored)
            done = position * len(snrs_db) + level + 1
            on_progress("measuring", done, len(starts) * len(snrs_db), f"{snr:g} dB")
    return Comparison(
        scored={snr: {name: _join(p) for name, p in named.items()} for snr, named in parts.items()},
        speed_m_per_s=source.speeds_m_per_s(np.arange(count)),
        seconds_per_link={name: s / (count * len(snrs_db)) for name, s in seconds.items()},
    )


def _join(parts: list[Scored]) -> Scored:
    return Scored(
        clean=LinkErrors.concatenate([part.clean for part in parts]),
        noisy=LinkErrors.concatenate([part.noisy for part in parts]),
    )
