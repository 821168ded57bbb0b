"""Fine-tuning on a few drops, without learning them by heart.

A fifth of the drops is held out, training stops when these no longer gain, and the weights that it started
from are a candidate too: where nothing was better on the held-out drops, the LAM stays as it came.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airlam.bench import trained
from airlam.bench.kept import Shelf, digest, ready, weights_sha256
from airlam.bench.transfer_targets import Target
from airlam.model.lam import LAM
from airlam.model.storage import assign_tensors, trainable_tensors
from airlam.specs import TrainingSpec, spec_to_dict
from airlam.tasks.channel_prediction import (
    LinkSource,
    NoisyViews,
    Progress,
    TokenSamples,
    prediction_loss,
    tokenise_views,
    with_reference,
)
from airlam.tasks.runs import describe
from airlam.training.loop import fit

VIEWS_PER_DROP = 16
MAX_VIEWS = 4096
MAX_VALIDATION_VIEWS = 256
VALIDATIONS = 10  # in a training that runs to its end


class ChosenLinks:
    """Some links of a source; implements ``LinkSource``."""

    def __init__(self, source: LinkSource, chosen: NDArray[np.int64]) -> None:
        self.setting = source.setting
        self.links_per_drop = 1
        self._source, self._chosen = source, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """complex64 [num_indices, num_slots, num_user_ant, num_bs_ant, num_subcarriers]."""
        return self._source.read(self._chosen[indices])

    def speeds_m_per_s(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """float32 [num_indices]."""
        return self._source.speeds_m_per_s(self._chosen[indices])


def choose_drops(
    group: NDArray[np.int64], num_drops: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Drops to train on and drops to hold out, a fifth of the groups (a whole number, at least one).

    group: int64 [n]. The drops are spread over as many groups as there are, and fewer of them are always
    among more of them under the same seed.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(group))
    place = generator.permutation(int(group.max()) + 1)  # of each group in the order of choosing
    rank = np.empty(len(group), dtype=np.int64)  # of each drop within its group
    seen: dict[int, int] = {}
    for drop in shuffled:
        rank[drop] = seen.setdefault(group[drop], 0)
        seen[group[drop]] += 1
    chosen = np.lexsort((place[group], rank))[:num_drops]
    own = group[chosen]
    if len(set(own.tolist())) == 1:  # a single drive: its places have to do
        own = np.arange(len(chosen))
    used = list(dict.fromkeys(own.tolist()))
    held_out = np.isin(own, used[: math.ceil(len(used) / 5)])
    return chosen[~held_out], chosen[held_out]


def few_shot_training(num_drops: int, steps_per_root_drop: float) -> TrainingSpec:
    """Steps grow with the root of the number of drops; the rate is a third of what training started with."""
    num_steps = round(steps_per_root_drop * num_drops**0.5)
    return TrainingSpec(
        num_steps=num_steps,
        learning_rate=2e-4,
        num_samples=min(MAX_VIEWS, VIEWS_PER_DROP * num_drops),
        validation_every_steps=max(1, num_steps // VALIDATIONS),
        patience=3,
        checkpoint_every_steps=max(1, num_steps // VALIDATIONS),
    )


def tune_on_few(
    lam: LAM,
    target: Target,
    spec: TrainingSpec,
    num_drops: int,
    shelf: Shelf,
    on_progress: Progress,
) -> dict[str, Any]:
    """Fine-tunes ``lam`` on a few of the target's drops, or leaves it as it came; what that took."""
    name = f"few_shot_{num_drops}"
    key = digest(weights_sha256(lam), spec_to_dict(spec), spec_to_dict(trained.PREDICTION), target.checksums)
    if (note := shelf.fetch(name, key, ready(lam))) is not None:
        return note
    work = shelf.folder / f"work-{name}-{key}"
    parts = choose_drops(target.few_group, num_drops, spec.seed)
    samples = {
        split: _samples(lam, ChosenLinks(target.few, drops), split, spec, work / split, target, on_progress)
        for split, drops in zip(("train", "validation"), parts, strict=True)
    }
    before = {tensor: value.clone() for tensor, value in trainable_tensors(lam).items()}
    summary = fit(
        lam,
        prediction_loss,
        samples["train"],
        samples["validation"],
        spec,
        work,
        lambda step: on_progress(f"{target.name}: {name}", step.step, step.num_steps, describe(step)),
        identity=key,
    )
    if summary.stop_reason == "interrupted":
        raise KeyboardInterrupt
    losses = keep_the_better(ready(lam.cpu()), before, samples["validation"])
    about = {"num_drops": num_drops, "num_held_out": len(parts[1]), **losses, **summary.to_dict()}
    note = shelf.keep(name, key, lam, about)
    shutil.rmtree(work)
    return note


def _samples(
    lam: LAM,
    links: ChosenLinks,
    split: str,
    spec: TrainingSpec,
    folder: Path,
    target: Target,
    on_progress: Progress,
) -> TokenSamples:
    """Tokens of noisy views of a few links; the loss weighs SNRs by what the LAM scores as it comes."""
    training = split == "train"
    views = NoisyViews(
        source=links,
        spec=trained.PREDICTION,
        num_samples=spec.num_samples if training else min(MAX_VALIDATION_VIEWS, VIEWS_PER_DROP * len(links)),
        seed=2 * spec.seed + (not training),
        augment=training,
    )
    what = f"{target.name}: tokens of {len(links)} drops, {split}"
    return with_reference(lam, tokenise_views(lam.tokenizer, views, folder, what, on_progress))


def keep_the_better(
    lam: LAM, before: Mapping[str, torch.Tensor], validation: TokenSamples
) -> dict[str, float | bool]:
    """Puts the weights ``before`` fine-tuning back into ``lam`` unless its own are better on ``validation``.

    The training loop keeps the best weights that it validated, which are never those that it started from.
    Returns the mean loss of both, and whether the LAM was changed.
    """
    tuned = {name: value.clone() for name, value in trainable_tensors(lam).items()}
    tuned_loss = _mean_loss(lam, validation)
    assign_tensors(trainable_tensors(lam), before, "the weights before fine-tuning")
    loss_before = _mean_loss(lam, validation)
    gained = tuned_loss < loss_before
    if gained:
        assign_tensors(trainable_tensors(lam), tuned, "the weights after fine-tuning")
    return {"loss_before": loss_before, "loss_after": tuned_loss, "gained": gained}


def _mean_loss(lam: LAM, samples: TokenSamples, batch_size: int = 64) -> float:
    lam.eval()
    with torch.no_grad():
        parts = [
            prediction_loss(lam, samples.batch(indices))
            for indices in torch.split(torch.arange(len(samples)), batch_size)
        ]
    return float(torch.cat(parts).mean())
