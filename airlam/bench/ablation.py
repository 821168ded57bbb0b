"""What a backbone, its pretraining, LoRA, attention and the physics stage are worth.

Variants of the LAM that differ in one of these, trained on the same noisy views of the same drops (the
training drops of ``airlam bench prediction``, directional and omnidirectional users mixed), in the same
order, for the same number of steps; measured on the same test drops with the same noise. Two variants are
compared by paired bootstrap.

Everything is kept in the cache folder under a digest of what decides it: an interrupted run goes on, and a
run after a new backbone has come trains that one only.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from airlam.bench import trained
from airlam.bench.ablation_variants import CONTRASTS, FULL, QUICK, Scale, Tokenizer, Variant, variants
from airlam.bench.kept import OnceTokenizer, Shelf, as_dict, digest, ready, weights_sha256
from airlam.datasets.store import ChannelDataset
from airlam.errors import AirlamError
from airlam.model.build import lam_for
from airlam.model.lam import LAM, count_parameters
from airlam.radio.metrics import LinkErrors, compare_nmse, summarise_nmse
from airlam.radio.prediction.base import Predictor
from airlam.specs import spec_to_dict
from airlam.tasks.channel_prediction import (
    DatasetLinks,
    LamPredictor,
    MixedLinks,
    NoisyViews,
    Progress,
    TokenSamples,
    prediction_loss,
    tokenise_views,
    with_reference,
)
from airlam.tasks.comparison import Comparison, compare
from airlam.tasks.runs import describe
from airlam.training.loop import fit

SNRS_DB = (0.0, 10.0, 20.0, 30.0)
REFERENCE = "path_eb"
SPLITS = ("train", "validation")


def run(*, quick: bool, on_progress: Progress) -> dict[str, Any]:
    """The table: settings, figures and rows."""
    scale = QUICK if quick else FULL
    with ExitStack() as stack:
        opened = {
            (setting, purpose): stack.enter_context(
                trained.cached_dataset(setting, scale.data, purpose, on_progress)
            )
            for setting in trained.SETTINGS
            for purpose in ("train", "test")
        }
        workshop = _Workshop(scale, [opened[setting, "train"] for setting in trained.SETTINGS], on_progress)
        found, skipped = workshop.train_all()
        comparisons = {
            setting: _measure(
                found, workshop.untrained("path"), opened[setting, "test"], scale.num_test, on_progress
            )
            for setting in trained.SETTINGS
        }
    rows = [row for s, measured in comparisons.items() for row in _variant_rows(s, found, measured)]
    worth = [row for s, measured in comparisons.items() for row in _contrast_rows(s, measured.comparison)]
    return {
        "settings": {
            **_card(scale),
            "variants": {v.name: v.about for v in variants(scale) if v.name in found},
            "skipped": skipped,
        },
        "figures": {**_variant_figures(rows), **_contrast_figures(worth)},
        "rows": [*rows, *worth],
    }


def _card(scale: Scale) -> dict[str, Any]:
    """What all variants have in common."""
    training = scale.training
    return {
        "scale": scale.name,
        "training_drops": f"{scale.data.train} of each of {', '.join(trained.SETTINGS)}",
        "test_drops": f"{scale.num_test} of each",
        "training": f"{training.num_steps} steps x {training.batch_size} of {training.num_samples} views, "
        "the same for all",
        "training_spec": spec_to_dict(training),
        "prediction": spec_to_dict(trained.PREDICTION),
        "nmse": "pooled over links, against the clean channel; intervals are paired bootstraps over drops",
        "network_ms_per_link": "after the tokens, in batches of 32",
        "ratio": "below 1: the variant's error is the lower",
        "reference": "the untrained head, which predicts what Path-EB does",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """A variant after training, and what that cost."""

    lam: LAM
    cost: dict[str, Any]


class _Workshop:
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

    def train_all(self) -> tuple[dict[str, _Trained], dict[str, str]]:
        """The variants by name; and those that cannot be built here, with the reason."""
        found, skipped = {}, {}
        for variant in variants(self.scale):
            try:
                lam = lam_for(variant.model, self.sources["train"].setting, self.scale.training.seed)
            except AirlamError as error:  # a package or the packaged weights are not there
                skipped[variant.name] = str(error)
                continue
            found[variant.name] = _Trained(lam=lam, cost=self._train(variant, lam))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """All variants on one setting's test drops."""

    comparison: Comparison
    network_ms: dict[str, float]  # a link, after its tokens


def _measure(
    found: Mapping[str, _Trained],
    untrained: LAM,
    dataset: ChannelDataset,
    num_drops: int,
    on_progress: Progress,
) -> _Measured:
    """Errors and network times on a setting; the tokens of a batch are made once for all."""
    test = DatasetLinks(dataset, "test", trained.PREDICTION)
    shared = {"path": OnceTokenizer(untrained.tokenizer)}
    predictors: list[Predictor] = [
        LamPredictor(tokenizer=shared["path"], lam=ready(untrained), name=REFERENCE)
    ]
    first = {"path": REFERENCE}  # who waits for the tokens
    for name, each in found.items():
        kind = each.lam.spec.tokenizer
        if kind not in shared:
            shared[kind], first[kind] = OnceTokenizer(each.lam.tokenizer), name
        predictors.append(LamPredictor(tokenizer=shared[kind], lam=each.lam, name=name))
    comparison = compare(predictors, test, SNRS_DB, on_progress, max_links=num_drops)
    num_predictions = len(comparison.speed_m_per_s) * len(SNRS_DB)
    waited_s = {first[kind]: tokens.seconds / num_predictions for kind, tokens in shared.items()}
    network_ms = {
        name: 1000 * (seconds - waited_s.get(name, 0.0))
        for name, seconds in comparison.seconds_per_link.items()
    }
    return _Measured(comparison=comparison, network_ms=network_ms)


def _variant_rows(setting: str, found: Mapping[str, _Trained], measured: _Measured) -> list[dict[str, Any]]:
    """One row a variant and SNR, the untrained head among them."""
    rows = []
    for snr_db, errors in _errors(measured.comparison).items():
        for name, each in errors.items():
            ratio = compare_nmse(each, errors[REFERENCE]).pooled
            rows.append(
                {
                    "setting": setting,
                    "snr_db": snr_db,
                    "variant": name,
                    "nmse_pooled": as_dict(summarise_nmse(each).pooled),
                    "over_path_eb": as_dict(ratio),
                    "network_ms_per_link": measured.network_ms[name],
                    **(_sizes(found[name]) if name in found else {}),
                }
            )
    return rows


def _sizes(each: _Trained) -> dict[str, Any]:
    parameters = count_parameters(each.lam)
    return {
        "trainable_parameters": parameters.trainable,
        "total_parameters": parameters.total,
        "training_seconds": each.cost["seconds"],
        "best_step": each.cost["best_step"],
        "best_validation_loss": each.cost["best_validation_loss"],
    }


def _contrast_rows(setting: str, comparison: Comparison) -> list[dict[str, Any]]:
    """One row a contrast and SNR, where both of its variants are there."""
    return [
        {
            "setting": setting,
            "snr_db": snr_db,
            "contrast": contrast.name,
            **{key: value for key, value in asdict(contrast).items() if key != "name"},
            "nmse_ratio": as_dict(compare_nmse(errors[contrast.variant], errors[contrast.without]).pooled),
        }
        for snr_db, errors in _errors(comparison).items()
        for contrast in CONTRASTS
        if {contrast.variant, contrast.without} <= errors.keys()
    ]


def _errors(comparison: Comparison) -> dict[float, dict[str, LinkErrors]]:
    return {
        snr_db: {name: each.clean for name, each in scored.items()}
        for snr_db, scored in comparison.scored.items()
    }


def _variant_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for row in rows:
        name = f"{row['setting']}.{row['snr_db']:g}db.{row['variant']}"
        figures[name] = row["nmse_pooled"]["value"]
        if row["variant"] != REFERENCE:
            figures[f"{name}_over_path_eb"] = row["over_path_eb"]["value"]
    return figures


def _contrast_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for row in rows:
        name, ratio = f"{row['setting']}.{row['snr_db']:g}db.worth_of_{row['contrast']}", row["nmse_ratio"]
        figures |= {name: ratio["value"], f"{name}_low": ratio["low"], f"{name}_high": ratio["high"]}
    return figures
