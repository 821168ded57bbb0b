"""The ablation's variants trained on the same samples, or fetched where they are trained already."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airlam.bench import trained
from airlam.bench.ablation_variants import Scale, Tokenizer, Variant, variants
from airlam.bench.kept import Shelf, digest, ready, weights_sha256
from airlam.datasets.store import ChannelDataset
from airlam.errors import AirlamError
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.specs import spec_to_dict
from airlam.tasks.channel_prediction import (
    DatasetLinks,
    MixedLinks,
    NoisyViews,
    Progress,
    TokenSamples,
    prediction_loss,
    tokenise_views,
    with_reference,
)
from airlam.tasks.runs import describe
from airlam.training.loop import fit

SPLITS = ("train", "validation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A variant after training, and what that cost."""

    lam: LAM
    cost: dict[str, Any]


class Workshop:
    """Trains the variants, or fetches them where they are trained already."""

    def __init__(self, scale: Scale, datasets: Sequence[ChannelDataset], on_progress: Progress) -> None:
        self.scale, self.on_progress = scale, on_progress
        self.sources = {
            split: MixedLinks([DatasetLinks(dataset, split, trained.PREDICTION) for dataset in datasets])
            for split in SPLITS
        }
        self.checksums = [
            c for dataset in datasets for split in SPLITS for c in dataset.shard_checksums(split)
        ]
        folder = trained.cache_folder() / "ablation" / scale.name
        self.shelf, self.work = Shelf(folder=folder / "models"), folder / "work"
        self._samples: dict[Tokenizer, Mapping[str, TokenSamples]] = {}

    def train_all(self) -> tuple[dict[str, Trained], dict[str, str]]:
        """The variants by name; and those that cannot be built here, with the reason."""
        found, skipped = {}, {}
        for variant in variants(self.scale):
            try:
                lam = lam_for(variant.model, self.sources["train"].setting, self.scale.training.seed)
            except AirlamError as error:  # a package or the packaged weights are not there
                skipped[variant.name] = str(error)
                continue
            found[variant.name] = Trained(lam=lam, cost=self._train(variant, lam))
        shutil.rmtree(self.work, ignore_errors=True)
        return found, skipped

    def untrained(self, tokenizer: Tokenizer) -> LAM:
        """A fresh LAM with a head as all variants start with, on the smallest backbone."""
        fresh = replace(
            self.scale.data.model, backbone="mlp", num_layers=1, tuning="scratch", tokenizer=tokenizer
        )
        return lam_for(fresh, self.sources["train"].setting, self.scale.training.seed)

    def _train(self, variant: Variant, lam: LAM) -> dict[str, Any]:
        """The variant's weights into ``lam``; what they cost."""
        spec = self.scale.training
        key = digest(spec_to_dict(variant.model), weights_sha256(lam), *self._decisive(lam))
        if (cost := self.shelf.fetch(variant.name, key, ready(lam))) is not None:
            return cost
        samples = self._tokens(variant.model.tokenizer)
        summary = fit(
            lam,
            prediction_loss,
            samples["train"],
            samples["validation"],
            spec,
            self.work / f"{variant.name}-{key}",
            lambda step: self.on_progress(
                f"training {variant.name}", step.step, step.num_steps, describe(step)
            ),
            identity=key,
        )
        if summary.stop_reason == "interrupted":
            raise KeyboardInterrupt
        return self.shelf.keep(variant.name, key, ready(lam.cpu()), summary.to_dict())

    def _decisive(self, lam: LAM) -> list[Any]:
        """What decides the samples and what is made of them."""
        scale = self.scale
        return [
            spec_to_dict(scale.training),
            spec_to_dict(trained.PREDICTION),
            scale.num_validation,
            scale.data.model.num_paths,
            lam.tokenizer.num_features,
            self.checksums,
        ]

    def _tokens(self, tokenizer: Tokenizer) -> Mapping[str, TokenSamples]:
        """Training and validation samples; only one tokeniser's are kept in memory."""
        if tokenizer not in self._samples:
            fresh = self.untrained(tokenizer)
            folder = self.work / f"tokens-{digest(tokenizer, *self._decisive(fresh))}"
            self._samples = {tokenizer: {split: self._make(fresh, split, folder) for split in SPLITS}}
        return self._samples[tokenizer]

    def _make(self, fresh: LAM, split: str, folder: Path) -> TokenSamples:
        training = split == "train"
        views = NoisyViews(
            source=self.sources[split],
            spec=trained.PREDICTION,
            num_samples=self.scale.training.num_samples if training else self.scale.num_validation,
            seed=2 * self.scale.training.seed + SPLITS.index(split),
            augment=training,
        )
        what = f"{fresh.spec.tokenizer} tokens, {split}"
        return with_reference(
            fresh, tokenise_views(fresh.tokenizer, views, folder / split, what, self.on_progress)
        )
