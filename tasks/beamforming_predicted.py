"""Downlinks whose channels are predicted: what predictor and precoder learn from together.

A sample is some users of a drop, or of several, each with a noisy history. Tokens are made of every history
once, by the predictor's classical front end, which is not tuned; samples then draw from these links. The
loss is the sum rate of the precoders on the true channels of the slots ahead, over that of regularised zero
forcing that knows them. SNRs of histories are those that the predictor was trained with.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import nn

from airlam.errors import SpecError
from airlam.model.lam import LAM
from airlam.model.predictive_precoder import PredictivePrecoder
from airlam.model.storage import assign_tensors, trainable_tensors
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.specs import BeamformingSpec, PredictionSpec, TrainingSpec, require
from airlam.tasks.beamforming import LEAST_RATE, chosen_users
from airlam.tasks.channel_prediction import (
    LinkSource,
    NoisyLinks,
    Progress,
    TokenSamples,
    quiet,
    split_links,
    tokenise_views,
)
from airlam.tasks.runs import describe
from airlam.tokens.base import TokenBatch
from airlam.tokens.path import PathTokenizer
from airlam.tokens.path_error import FUTURE, POWER, PathErrorTokenizer
from airlam.training.batches import batches_in_order
from airlam.training.loop import fit
from airlam.training.metrics import TrainingSummary
from airlam.training.precision import choose_device, choose_precision, set_precision
from airlam.units import db_to_linear

NUM_PLACES = 4  # subcarriers of a sample, evenly spread
VALIDATION_SAMPLES = 256  # and views
REGROUPED = 4  # samples made of a training view: users in ever new company


def spread_places(num_subcarriers: int, num_places: int = NUM_PLACES) -> torch.Tensor:
    """Subcarriers in the middles of equal parts of the band: int64 [num_places], or all if fewer."""
    count = min(num_places, num_subcarriers)
    return ((torch.arange(count) + 0.5) * num_subcarriers / count).long()


def error_tokenizer(lam: LAM, places: torch.Tensor) -> PathErrorTokenizer:
    """The LAM's own front end, telling of errors; SpecError for one whose tokens know of none."""
    if not isinstance(lam.tokenizer, PathTokenizer):
        raise SpecError(
            f'the predictor has tokenizer "{lam.spec.tokenizer}", whose predictions have no known error; '
            'take one with "path"'
        )
    return PathErrorTokenizer(lam.tokenizer, places)


@dataclass(frozen=True, slots=True, kw_only=True)
class EveryLink:
    """Noisy views of the first drops' links in turn: view i is of link i modulo their number, drawn from
    (seed, i).

    Users of a drop are seen at the same time. The SNR is uniform in dB over the spec's range.
    """

    source: LinkSource
    spec: PredictionSpec
    num_drops: int
    num_views: int  # of each link
    seed: int

    @property
    def num_links(self) -> int:
        """That are seen."""
        return self.num_drops * self.source.links_per_drop

    def __len__(self) -> int:
        return self.num_views * self.num_links

    def batch(self, indices: torch.Tensor) -> NoisyLinks:
        """The views at ``indices`` (int64 [n])."""
        links = self.source.read(indices.numpy() % self.num_links)
        seen = [self._view(link, int(index)) for link, index in zip(links, indices, strict=True)]
        clean = torch.stack(seen)  # [n, num_history + num_horizon, num_user_ant, num_bs_ant, num_subcarriers]
        history, future = split_links(clean, self.source.setting)
        draws = [torch.Generator().manual_seed(_seed(self.seed, 1, int(index))) for index in indices]
        low, high = self.spec.min_snr_db, self.spec.max_snr_db
        snr_db = torch.stack([low + (high - low) * torch.rand((), generator=draw) for draw in draws])  # [n]
        variance = history.abs().square().mean(dim=(1, 2, 3, 4)) * 10 ** (-snr_db / 10)  # [n]
        shape = history.shape[1:]
        noise = torch.stack([torch.randn(shape, dtype=history.dtype, generator=draw) for draw in draws])
        noisy = history + noise * variance.sqrt().view(-1, 1, 1, 1, 1)
        return NoisyLinks(history=noisy, noise_variance=variance, future=future, snr_db=snr_db)

    def _view(self, link: torch.Tensor, index: int) -> torch.Tensor:
        """The slots of a link that are seen: complex64 [num_history + num_horizon, ...]."""
        num_slots = self.spec.num_history + self.spec.num_horizon
        draw = np.random.default_rng(_seed(self.seed, 0, index // self.source.links_per_drop))
        start = int(draw.integers(link.shape[0] - num_slots + 1))
        return link[start : start + num_slots]


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedBatch:
    """links: tokens of the samples' users, one sample after another; noise_variance: over the total power,
    float32 [batch]; places: int64 [f], the subcarriers.
    """

    links: TokenBatch
    noise_variance: torch.Tensor
    places: torch.Tensor
    num_users: int

    def to(self, device: torch.device) -> "PredictedBatch":
        """The same on another device."""
        return PredictedBatch(
            links=self.links.to(device),
            noise_variance=self.noise_variance.to(device),
            places=self.places.to(device),
            num_users=self.num_users,
        )

    @property
    def h(self) -> torch.Tensor:
        """The truth, each user at unit mean power: complex64 [batch, horizon, f, num_users, num_bs_ant]."""
        context = self.links.context
        future = context[FUTURE] * context[POWER].rsqrt()[:, None, None, None]
        return rearrange(future, "(b k) t n f -> b t f k n", k=self.num_users)

    def rates(self, w: torch.Tensor) -> torch.Tensor:
        """Sum rate of precoders [batch, horizon, f, num_bs_ant, num_users], mean over slots and subcarriers:
        float32 [batch], differentiable.
        """
        noise = self.noise_variance[:, None, None]  # [batch, 1, 1]
        return sum_rate_bit_per_s_per_hz(self.h, w, noise).mean(dim=(1, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedDownlinks:
    """Samples in groups, each with its own number of users; implements ``GroupedSamples``.

    links: tokens of every view, view after view of ``num_drops`` drops. SNRs of the downlink are a uniform
    draw in dB over the spec's range.
    """

    links: TokenSamples
    places: torch.Tensor
    num_drops: int
    users_per_drop: int
    spec: BeamformingSpec
    group_size: int
    seed: int

    def __len__(self) -> int:
        return self.group_size * len(self.group_sizes)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """All alike, from the fewest users to the most."""
        return (self.group_size,) * (self.spec.max_users - self.spec.min_users + 1)

    def batch(self, indices: torch.Tensor) -> PredictedBatch:
        """The samples at ``indices`` (int64 [n]), all of one group."""
        num_users = self.spec.min_users + int(indices[0]) // self.group_size
        drawn = [self._sample(int(index), num_users) for index in indices]
        rows = torch.cat([links for links, _ in drawn])  # [n * num_users]
        return PredictedBatch(
            links=self.links.batch(rows),
            noise_variance=torch.tensor([noise for _, noise in drawn]),
            places=self.places,
            num_users=num_users,
        )

    def _sample(self, index: int, num_users: int) -> tuple[torch.Tensor, float]:
        """Rows of its users' links, int64 [num_users], and the noise over the total power."""
        draw = np.random.default_rng([self.seed, index])
        drops, users = chosen_users(self.num_drops, self.users_per_drop, num_users, draw)
        links = self.num_drops * self.users_per_drop
        view = int(draw.integers(len(self.links) // links))
        snr_db = draw.uniform(self.spec.min_snr_db, self.spec.max_snr_db)
        rows = torch.from_numpy(np.broadcast_to(drops, users.shape) * self.users_per_drop + users)
        return rows + view * links, db_to_linear(-snr_db)


def predicted_downlinks(
    lam: LAM,
    source: LinkSource,
    prediction: PredictionSpec,
    spec: BeamformingSpec,
    num_views: int,
    num_samples: int,
    seed: int,
    folder: Path,
    on_progress: Progress,
) -> PredictedDownlinks:
    """About ``num_samples`` samples of about ``num_views`` views, whose tokens ``folder`` keeps.

    The views are of as many drops as there are, more than one of each where these are few. SpecError where
    there are too few users, or the predictor's tokens tell nothing of errors.
    """
    users, num_drops = source.links_per_drop, len(source) // source.links_per_drop
    require(
        max(users, num_drops) >= spec.max_users,
        f"max_users is {spec.max_users}, but there are {num_drops} drops of {users} users; lower it or "
        "generate more drops",
    )
    num_drops = min(num_drops, max(spec.max_users, math.ceil(num_views / users)))
    turns = max(1, num_views // (num_drops * users))
    places = spread_places(len(source.setting.target_frequencies_hz))
    views = EveryLink(source=source, spec=prediction, num_drops=num_drops, num_views=turns, seed=seed)
    what = f"tokens in {folder.name}"
    return PredictedDownlinks(
        links=tokenise_views(error_tokenizer(lam, places), views, folder, what, on_progress),
        places=places,
        num_drops=num_drops,
        users_per_drop=users,
        spec=spec,
        group_size=math.ceil(num_samples / (spec.max_users - spec.min_users + 1)),
        seed=seed,
    )


def joint_loss(model: nn.Module, batch: PredictedBatch) -> torch.Tensor:
    """Minus the sum rate over that of regularised zero forcing with the truth: float32 [batch]."""
    with torch.no_grad():
        noise = batch.noise_variance[:, None, None]  # [batch, 1, 1]
        reference = batch.rates(regularized_zero_forcing(batch.h, noise)).clamp_min(LEAST_RATE)  # [batch]
    w = model(batch.links, batch.places, batch.noise_variance, batch.num_users)
    return -batch.rates(w) / reference


def mean_loss(model: nn.Module, samples: PredictedDownlinks, spec: TrainingSpec) -> float:
    """``joint_loss`` over all samples as training validates: on its device, in its precision."""
    device = choose_device(spec)
    model.to(device).eval()
    set_precision(model, choose_precision(spec, device))
    total = 0.0
    with torch.no_grad():
        for indices in batches_in_order(samples, spec.batch_size):
            total += joint_loss(model, samples.batch(indices).to(device)).sum().item()
    return total / len(samples)


def tune_jointly(
    model: PredictivePrecoder,
    samples: PredictedDownlinks,
    validation: PredictedDownlinks,
    spec: TrainingSpec,
    folder: Path,
    *,
    on_progress: Progress = quiet,
    identity: str = "",
) -> tuple[TrainingSummary, float]:
    """Raises the rate in place; what it is given stays where no step does better on ``validation``.

    ``folder`` keeps metrics and checkpoints, from which a killed training of the same ``identity`` goes on.
    Returns also the validation loss of what was given. KeyboardInterrupt where the user interrupts.
    """
    given = {name: value.clone() for name, value in trainable_tensors(model).items()}
    before = mean_loss(model, validation, spec)
    summary = fit(
        model,
        joint_loss,
        samples,
        validation,
        spec,
        folder,
        lambda step: on_progress("tuning both", step.step, step.num_steps, describe(step)),
        identity=identity,
    )
    if summary.stop_reason == "interrupted":
        raise KeyboardInterrupt
    assert summary.best_validation_loss is not None
    if summary.best_validation_loss >= before:
        assign_tensors(trainable_tensors(model), given, "what was given")
    return summary, before
