"""A guard: a learned predictor only where training links of like SNR and like fading say that it is better.

What learning gains in one kind of channel it may cost in another. The guard looks at training links of the
channels at hand and takes the classical predictor unless another beats it by more than chance; it never sees
what it is tested on. Its bands and its test are a reconstruction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.selection import (
    TUNING_SNR_DB,
    add_noise,
    link_nmse,
    nearest_level,
    spread_links,
)

NUM_BANDS = 3  # of fading, as many training links in each
MIN_BAND_LINKS = 32  # fewer do not tell predictors apart that differ by some per cent: then fewer bands
FULL_BAND_LINKS = 64  # where there are more bands than NUM_BANDS
NUM_DEVIATIONS = 2.0  # by which a mean of paired logarithms must exceed 0: one in forty by chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """Sends each link to the predictor chosen for its SNR and its fading.

    levels_db: SNRs, of which a link takes the nearest. edges: float32 [levels, bands - 1], of
    ``decorrelation``. chosen: for each level and band the index of a predictor.
    """

    name: str
    predictors: tuple[Predictor, ...]
    levels_db: tuple[float, ...]
    edges: torch.Tensor
    chosen: tuple[tuple[int, ...], ...]

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        level = nearest_level(history, noise_variance, self.levels_db)  # [batch]
        band = _band(decorrelation(history, noise_variance), self.edges[level])  # [batch]
        index = torch.tensor(self.chosen)[level, band]  # [batch]
        pieces = {
            k: self.predictors[k].predict(history[index == k], noise_variance[index == k])
            for k in sorted(set(index.tolist()))
        }
        first = next(iter(pieces.values()))
        future: torch.Tensor = first.new_empty(len(history), *first.shape[1:])
        for k, piece in pieces.items():
            future[index == k] = piece
        return future

    def choices(self) -> dict[str, list[str]]:
        """For each level the names of the predictors chosen, from slow fading to fast."""
        return {
            f"{level:g}db": [self.predictors[k].name for k in row]
            for level, row in zip(self.levels_db, self.chosen, strict=True)
        }


def guarded(
    name: str,
    predictors: Sequence[Predictor],
    training: TrainingLinks,
    *,
    levels_db: tuple[float, ...] = TUNING_SNR_DB,
    num_links: int = 128,
    seed: int = 0,
) -> Guarded:
    """The last predictor, and others where they do better than it on noisy training links.

    Every predictor sees the same links with the same noise, white and at one SNR below each link's power.
    Another predictor is better in a band if its mean NMSE over the band's links is lower and the mean of
    log(the last one's NMSE / its own) exceeds ``NUM_DEVIATIONS`` standard errors of that mean. Logarithms
    weigh all links alike, where means alone follow the few worst. Of several the largest mean logarithm
    decides.
    """
    links = spread_links(training, num_links)
    num_bands = _num_bands(len(links.history))
    edges, chosen = [], []
    for index, level_db in enumerate(levels_db):
        generator = torch.Generator().manual_seed(seed + index)
        noisy, noise_variance = add_noise(links.history, level_db, generator)
        fading = decorrelation(noisy, noise_variance)  # [num_links]
        edges.append(fading.quantile(torch.arange(1, num_bands) / num_bands))
        band = _band(fading, edges[-1].expand(len(fading), -1))
        errors = torch.stack(
            [link_nmse(predictor.predict(noisy, noise_variance), links.future) for predictor in predictors]
        )  # [predictors, num_links]
        row = []
        for one in range(num_bands):
            row.append(_best(errors[:, band == one]))
        chosen.append(tuple(row))
    return Guarded(
        name=name,
        predictors=tuple(predictors),
        levels_db=levels_db,
        edges=torch.stack(edges),
        chosen=tuple(chosen),
    )


def _best(errors: torch.Tensor) -> int:
    """Of predictors that made these errors, real [predictors, links], which to take: see ``guarded``."""
    last, num_links = len(errors) - 1, errors.shape[1]
    if last == 0 or num_links < 2:  # one link tells nothing of chance
        return last
    if not errors[last].isfinite().all():  # nothing could be told to be better
        return int(errors.mean(1).nan_to_num(torch.inf).argmin())
    ratio = (errors[-1] / errors[:-1]).log()  # [predictors - 1, links]
    gain = ratio.mean(1)  # [predictors - 1]
    better = gain > NUM_DEVIATIONS * ratio.std(1) / num_links**0.5
    better &= errors[:-1].mean(1) < errors[-1].mean()
    return max(better.nonzero().flatten().tolist(), key=lambda index: float(gain[index]), default=last)


def _num_bands(num_links: int) -> int:
    """NUM_BANDS; fewer of few links, more of many."""
    return max(1, min(max(NUM_BANDS, num_links // FULL_BAND_LINKS), num_links // MIN_BAND_LINKS))


def decorrelation(history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
    """1 - |sum conj(h_t) h_t+1| / (signal energy): how much changes from a slot to the next, float32 [batch].

    The noise's share of the energy is taken out; shapes as in ``Predictor.predict``.
    """
    energy = history.abs().square().mean((1, 2, 3, 4))  # [batch]
    signal = torch.maximum(energy - noise_variance, energy / 20).clamp_min(torch.finfo(energy.dtype).tiny)
    product = (history[:, :-1].conj() * history[:, 1:]).mean((1, 2, 3, 4)).abs()  # [batch]
    return 1 - product / signal


def _band(fading: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Which band each link is in; fading [batch], edges [batch, bands - 1]; int64 [batch]."""
    return (fading.unsqueeze(1) > edges).sum(1)
