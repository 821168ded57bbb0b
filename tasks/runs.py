"""Runs: from a spec to a folder that holds a fine-tuned LAM, and from that folder to a report.

``runs/<name>/`` holds ``run.toml`` (the spec), ``metrics.jsonl`` and ``checkpoints/`` while it trains,
``tokens/`` (the training samples, kept until it is done), and in the end ``lam/`` (weights, adapter in peft's
format) and ``summary.json``. Evaluation adds ``metrics.json`` and ``report.html``.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airlam.datasets.layout import SPLITS
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.files import whole_file, write_json
from airlam.model.backbone import NAMED
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.specs import (
    BeamformingSpec,
    ModelSpec,
    PredictionSpec,
    RunSpec,
    TrainingSpec,
    read_spec,
    require,
    spec_to_dict,
    spec_to_toml,
)
from airlam.split.transport import ray_address
from airlam.tasks.channel_prediction import (
    LamPredictor,
    LinkSource,
    NoisyViews,
    Progress,
    prediction_loss,
    quiet,
    tokenise_views,
    with_reference,
)
from airlam.tasks.task import Run, task_of
from airlam.training.loop import fit
from airlam.training.metrics import Progress as TrainingProgress
from airlam.training.metrics import TrainingSummary

RUN_FILE = "run.toml"
SUMMARY_FILE = "summary.json"
LAM_FOLDER = "lam"
TOKENS_FOLDER = "tokens"
VALIDATION_SAMPLES = 256


def finetune(
    spec: RunSpec, base: Path, output: Path, on_progress: Progress = quiet, *, transport: str = "inprocess"
) -> Path:
    """Fine-tunes a LAM and returns the run's folder, ``output / spec.name``.

    The spec's dataset is relative to ``base``. A run that was killed goes on from its last checkpoint, a
    finished one is left alone; a folder that holds another spec's run raises DataError. transport: where the
    nodes of a run with a network are, ``inprocess``, ``ray`` or ``ray:ADDRESS``; the weights are the same.
    """
    address = ray_address(transport)
    require(
        address is None or spec.network is not None,
        f"transport {transport!r} is for runs with a [network]; {spec.name} has none, so drop it",
    )
    spec = _with_whole_paths(spec, base)
    folder = output / spec.name
    with ChannelDataset.open(spec.dataset) as dataset:
        _claim(folder, spec)
        if (folder / SUMMARY_FILE).exists():
            check_data(folder, dataset)
            shutil.rmtree(folder / TOKENS_FOLDER, ignore_errors=True)  # a kill may have left them
            return folder
        run = Run(
            spec=spec,
            dataset=dataset,
            folder=folder,
            on_progress=on_progress,
            identity=spec_to_toml(spec) + data_sha256(dataset),
            ray_address=address,
        )
        found = task_of(spec).fine_tune(run)
        found.model.save(folder / LAM_FOLDER)
        summary = {**found.summary.to_dict(), **found.own, **_data_summary(spec, dataset)}
        write_json(folder / SUMMARY_FILE, summary)
    shutil.rmtree(folder / TOKENS_FOLDER, ignore_errors=True)  # some tasks keep none
    return folder


def _with_whole_paths(spec: RunSpec, base: Path) -> RunSpec:
    """Dataset, local backbones and runs to start from are relative to the spec."""
    precoder, beamforming = spec.precoder, spec.beamforming
    if beamforming is not None:
        beamforming = _with_folders(beamforming, lambda folder: str((base / folder).resolve()))
    if precoder is not None and precoder.backbone is not None:
        precoder = dataclasses.replace(precoder, backbone=_with_whole_path(precoder.backbone, base))
    return dataclasses.replace(
        spec,
        dataset=str((base / spec.dataset).resolve()),
        model=_with_whole_path(spec.model, base),
        precoder=precoder,
        beamforming=beamforming,
    )


def _with_folders(spec: BeamformingSpec, change: Callable[[str], str]) -> BeamformingSpec:
    """The folders of the runs that it builds on, changed."""
    start, predictor = (given and change(given) for given in (spec.start, spec.predictor))
    return dataclasses.replace(spec, start=start, predictor=predictor)


def _with_whole_path(model: ModelSpec, base: Path) -> ModelSpec:
    is_local = model.backbone not in NAMED and (base / model.backbone).is_dir()
    return dataclasses.replace(model, backbone=str((base / model.backbone).resolve())) if is_local else model


def tune(
    lam: LAM,
    sources: Mapping[str, LinkSource],
    prediction: PredictionSpec,
    training: TrainingSpec,
    folder: Path,
    on_progress: Progress,
    identity: str,
) -> TrainingSummary:
    """Trains ``lam`` in place on noisy views of ``sources["train"]``, stopping on ``sources["validation"]``.

    ``folder`` keeps tokens, checkpoints and metrics, from which a killed run goes on; ``identity`` names the
    run, so that another's are refused. KeyboardInterrupt, with a checkpoint, where the user interrupts.
    """
    samples = {}
    for index, split in enumerate(("train", "validation")):
        views = NoisyViews(
            source=sources[split],
            spec=prediction,
            num_samples=training.num_samples if split == "train" else VALIDATION_SAMPLES,
            seed=2 * training.seed + index,
            augment=split == "train",
        )
        place = tokens_folder(folder, identity) / split
        tokens = tokenise_views(lam.tokenizer, views, place, f"tokenising {split}", on_progress)
        samples[split] = with_reference(lam, tokens)
    summary = fit(
        lam,
        prediction_loss,
        samples["train"],
        samples["validation"],
        training,
        folder,
        lambda step: on_progress("training", step.step, step.num_steps, describe(step)),
        identity=identity,
    )
    if summary.stop_reason == "interrupted":
        raise KeyboardInterrupt
    lam.cpu()
    return summary


def tokens_folder(folder: Path, identity: str) -> Path:
    """Where a run's tokens are kept, under a digest of all that decides them."""
    return folder / TOKENS_FOLDER / hashlib.sha256(identity.encode()).hexdigest()[:16]


def _claim(folder: Path, spec: RunSpec) -> None:
    """Makes the folder this spec's, or refuses."""
    path = folder / RUN_FILE
    if path.exists():
        if path.read_text() != spec_to_toml(spec):
            raise DataError(f"{folder} holds a run of another spec; take another name or remove the folder")
        return
    leftovers = {".part"}  # of a write that was killed
    if folder.exists() and any(item.suffix not in leftovers for item in folder.iterdir()):
        raise DataError(f"{folder} is not empty and holds no run; take another name or remove the folder")
    with whole_file(path) as temporary:
        temporary.write_text(spec_to_toml(spec))


def describe(step: TrainingProgress) -> str:
    """One step for the progress line."""
    validation = "" if step.validation_loss is None else f", validation {step.validation_loss:.3f}"
    return f"loss {step.loss:.3f}{validation}, {step.samples_per_s:.0f} samples/s"


def data_sha256(dataset: ChannelDataset) -> str:
    """A digest of all shards of all splits."""
    checksums = [c for split in SPLITS for c in dataset.shard_checksums(split)]
    return hashlib.sha256("".join(checksums).encode()).hexdigest()


def check_data(folder: Path, dataset: ChannelDataset) -> None:
    """DataError where a run was trained on other channels than the dataset holds now."""
    if summary_of(folder).get("data_sha256") != data_sha256(dataset):
        raise DataError(
            f"{folder} was trained on other channels than {dataset.path} holds now; remove the folder and "
            "run airlam finetune again, or bring the old file back"
        )


def _data_summary(spec: RunSpec, dataset: ChannelDataset) -> dict[str, Any]:
    """Where the samples came from, for the summary."""
    drops = dataset.spec.drops
    return {
        "data_sha256": data_sha256(dataset),
        "dataset": dataset.spec.name,
        "dataset_seed": dataset.spec.seed,
        "drops": {"train": drops.train, "validation": drops.validation, "test": drops.test},
        "training_samples": spec.training.num_samples,
    }


def read_run(folder: Path, task: str | None = None) -> RunSpec:
    """The spec of a run's folder; DataError where it is none or has not been trained to its end.

    task: what the run has to be of, if that matters.
    """
    if not (folder / RUN_FILE).is_file():
        raise DataError(f"{folder} holds no {RUN_FILE}; give the folder that airlam finetune wrote")
    if not (folder / SUMMARY_FILE).is_file():
        raise DataError(f"{folder} is not trained to its end; run airlam finetune again to go on")
    spec = read_spec(RunSpec, folder / RUN_FILE)
    if task not in (None, spec.task):
        raise DataError(f"{folder} is a run of {spec.task}; give one of {task}")
    return spec


def summary_of(folder: Path) -> dict[str, Any]:
    """What fine-tuning cost and where it ended, as ``finetune`` wrote it."""
    path = folder / SUMMARY_FILE
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is damaged ({error}); remove the run's folder and train again") from error
    if not isinstance(values, dict) or "num_trainable" not in values:
        raise DataError(f"{path} is no summary of a run; remove the run's folder and train again")
    return values


def load_lam(folder: Path, setting: PredictionSetting) -> LamPredictor:
    """The fine-tuned LAM of a run, as a predictor for ``setting``; DataError where they do not fit."""
    spec = read_run(folder, task="channel_prediction")
    lam = lam_for(spec.model, setting, spec.training.seed)
    lam.load(folder / LAM_FOLDER)
    return LamPredictor.of(lam)


def run_to_dict(spec: RunSpec) -> dict[str, Any]:
    """The spec for a report, without the paths of dataset and other runs on this machine."""
    beamforming = spec.beamforming
    if beamforming is not None:
        beamforming = _with_folders(beamforming, lambda folder: Path(folder).name)
    return spec_to_dict(dataclasses.replace(spec, dataset=Path(spec.dataset).name, beamforming=beamforming))
