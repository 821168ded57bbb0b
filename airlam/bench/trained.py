"""The trained models that the prediction benchmark compares: where they lie, and how they are made.

All are trained on the same Sionna drops, directional and omnidirectional users mixed, at the same SNRs, and
the peers with more trainable parameters than the LAM; ``card.json`` says for how many steps and seconds each
was trained. They ship with the package; ``airlam bench prediction --train`` makes them anew in the cache,
which then goes before what was shipped. Training that was interrupted goes on, unless anything that decides
its outcome has changed.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from airlam.bench.kept import kept_dataset
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.files import whole_file, write_json
from airlam.model.build import lam_for
from airlam.model.comparators import COMPARATORS, LearnedPredictor, matched, portwise_nmse
from airlam.model.lam import count_parameters
from airlam.model.llm4cp import Llm4Cp
from airlam.model.storage import assign_tensors, read_tensors, trainable_tensors, write_tensors
from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.base import Predictor
from airlam.radio.prediction.guard import Guarded
from airlam.specs import DatasetSpec, ModelSpec, PredictionSpec, SplitSizes, TrainingSpec, spec_to_dict
from airlam.tasks.channel_prediction import (
    DatasetLinks,
    LamPredictor,
    LinkSource,
    MixedLinks,
    NoisyViews,
    Progress,
)
from airlam.tasks.runs import describe, tune
from airlam.training.loop import fit
from airlam.training.metrics import TrainingSummary

SETTINGS = {"uma_directional": "llm4cp_uma_directional", "uma_omni": "llm4cp_uma_omni"}
LAM = "lam"
LLM4CP = "llm4cp"
PEERS = (*COMPARATORS, LLM4CP)
PREDICTION = PredictionSpec(num_history=16, num_horizon=4, duplex="tdd", min_snr_db=0.0, max_snr_db=30.0)
MODEL = ModelSpec(backbone="airlam", tokenizer="path", tuning="lora", lora_rank=8, lora_alpha=16.0)
LAM_TRAINING = TrainingSpec(num_steps=4000, num_samples=16_384, validation_every_steps=200, patience=100)
PEER_SIZE = 565_706  # trainable parameters, about: what the LAM had on MiniLM, and more than it trains now
# a peer's sample is a few antenna ports of a link, each a sequence of its own: 8 x 16 sequences a step
PEER_TRAINING = TrainingSpec(
    num_steps=1500,
    batch_size=16,
    learning_rate=1e-3,
    num_samples=24_000,
    validation_every_steps=250,
    patience=100,
)
PEER_PORTS = 8
# at the LAM's size its convolutions cost twenty times the others' arithmetic: as much time as the LAM took
LLM4CP_STEPS = 250
# narrow enough for two cores, with the published plan of layers otherwise; the maps follow the size
LLM4CP_SHAPE: dict[str, Any] = {"width": 192, "num_layers": 6}
CARD_FILE = "card.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large a benchmark is."""

    train: int  # drops a setting that models are trained on
    fit: int  # drops a setting that classical predictors are fitted on
    test: int
    genie: int  # of the test drops; the bound takes a second each
    lam: TrainingSpec
    peer: TrainingSpec
    peer_size: int
    model: ModelSpec
    name: str


FULL = Scale(
    train=4096,
    fit=512,
    test=512,
    genie=64,
    lam=LAM_TRAINING,
    peer=PEER_TRAINING,
    peer_size=PEER_SIZE,
    model=MODEL,
    name="full",
)
QUICK = Scale(
    train=32,
    fit=6,
    test=8,
    genie=2,
    lam=dataclasses.replace(LAM_TRAINING, num_steps=4, num_samples=32, batch_size=8),
    peer=dataclasses.replace(PEER_TRAINING, num_steps=4, num_samples=32, batch_size=4),
    peer_size=20_000,
    model=dataclasses.replace(MODEL, backbone="small", num_layers=1, num_paths=8),
    name="quick",
)


def cache_folder() -> Path:
    """Where benchmarks keep datasets and models: AIRLAM_CACHE, or airlam under the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "airlam"
    return Path(os.environ.get("AIRLAM_CACHE", default))


def shipped_folder() -> Path:
    """Where the package keeps the models that come with it."""
    return Path(str(files("airlam.bench"))) / "trained_prediction"


def dataset_spec(setting: str, sizes: SplitSizes, seed: int) -> DatasetSpec:
    """LLM4CP's setting with the uplink band only, which is all that TDD needs."""
    packaged = packaged_spec(SETTINGS[setting])
    grid = dataclasses.replace(packaged.grid, num_downlink_subcarriers=0)
    return dataclasses.replace(packaged, grid=grid, drops=sizes, seed=seed)


def cached_dataset(setting: str, scale: Scale, purpose: str, on_progress: Progress) -> ChannelDataset:
    """The drops of a setting for "train" (models) or "test" (fitting and measuring); drawn once, kept."""
    if purpose == "train":
        validation = max(16, scale.train // 32)
        spec = dataset_spec(setting, SplitSizes(train=scale.train, validation=validation, test=0), seed=11)
    else:
        spec = dataset_spec(setting, SplitSizes(train=scale.fit, validation=0, test=scale.test), seed=12)
    path = cache_folder() / "datasets" / f"{setting}_{purpose}_{scale.name}.h5"
    return kept_dataset(spec, path, on_progress)


def models_folder(scale: Scale) -> Path:
    """The models' folder: the cache's where they were made anew, else the package's; DataError if neither."""
    for folder in (cache_folder() / "models" / scale.name, shipped_folder()):
        if (folder / CARD_FILE).exists() and (scale is FULL or folder != shipped_folder()):
            return folder
    quick = " --quick" if scale is QUICK else ""
    raise DataError(f"no trained models are here; make them with airlam bench prediction{quick} --train")


def load_lam(folder: Path, setting: PredictionSetting) -> LamPredictor:
    """The trained LAM, for a setting."""
    card = read_card(folder)
    lam = lam_for(ModelSpec(**card["model"]), setting, card["lam_training"]["seed"])
    lam.load(folder / LAM)
    return LamPredictor.of(lam)


def load_peers(folder: Path, setting: PredictionSetting) -> list[Predictor]:
    """The LAM's learned peers, trained; they fit the setting they were trained for."""
    predictors: list[Predictor] = []
    for name in PEERS:
        net = build_peer(name, setting, read_card(folder)["peer_size"])
        path = folder / f"{name}.safetensors"
        assign_tensors(trainable_tensors(net), read_tensors(path), str(path))
        predictors.append(LearnedPredictor(name, net.eval()))
    return predictors


def read_card(folder: Path) -> dict[str, Any]:
    """What the models were trained on and with."""
    card: dict[str, Any] = json.loads((folder / CARD_FILE).read_text())
    return card


def build_peer(name: str, setting: PredictionSetting, num_trainable: int) -> nn.Module:
    """An untrained peer with about so many trainable parameters."""
    if name != LLM4CP:
        return matched(name, setting, num_trainable)
    sizes = {maps: _llm4cp_size(setting, maps) for maps in range(4, 65, 4)}
    num_maps = min(sizes, key=lambda maps: abs(sizes[maps] - num_trainable))
    return Llm4Cp(setting, **LLM4CP_SHAPE, num_maps=num_maps)


def _llm4cp_size(setting: PredictionSetting, num_maps: int) -> int:
    with torch.device("meta"):
        return count_parameters(Llm4Cp(setting, **LLM4CP_SHAPE, num_maps=num_maps)).trainable


def train_models(scale: Scale, on_progress: Progress) -> Path:
    """Trains the LAM and every peer into the cache; what is already trained there is kept."""
    folder = cache_folder() / "models" / scale.name
    work = cache_folder() / "work" / scale.name
    datasets = [cached_dataset(setting, scale, "train", on_progress) for setting in SETTINGS]
    sources = {
        split: MixedLinks([DatasetLinks(dataset, split, PREDICTION) for dataset in datasets])
        for split in ("train", "validation")
    }
    (folder / CARD_FILE).unlink(missing_ok=True)  # until all are there
    checksums = [c for dataset in datasets for split in sources for c in dataset.shard_checksums(split)]
    job = _Job(scale=scale, sources=sources, checksums=tuple(checksums), folder=folder, work=work)
    cost = {LAM: job.train_lam(on_progress)}
    for name in PEERS:
        cost[name] = job.train_peer(name, on_progress)
    write_json(folder / CARD_FILE, _card(scale, cost))
    shutil.rmtree(work, ignore_errors=True)
    return folder


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all of the trainings share."""

    scale: Scale
    sources: Mapping[str, LinkSource]
    checksums: tuple[str, ...]  # of the data
    folder: Path  # for the models
    work: Path  # for tokens and checkpoints

    def train_lam(self, on_progress: Progress) -> dict[str, Any]:
        """The LAM into ``folder / "lam"``, unless it is there; what it cost."""
        scale = self.scale
        key = self._key(spec_to_dict(scale.model), spec_to_dict(scale.lam))
        if (cost := self._done(LAM, key)) is not None:
            return cost
        lam = lam_for(scale.model, self.sources["train"].setting, scale.lam.seed)
        summary = tune(lam, self.sources, PREDICTION, scale.lam, self.work / f"{LAM}-{key}", on_progress, key)
        lam.save(self.folder / LAM)
        return self._note(LAM, key, summary)

    def train_peer(self, name: str, on_progress: Progress) -> dict[str, Any]:
        """A peer into ``folder / "<name>.safetensors"``, unless it is there; what it cost."""
        spec = self.scale.peer
        if name == LLM4CP:
            spec = dataclasses.replace(spec, num_steps=min(spec.num_steps, LLM4CP_STEPS))
        net = build_peer(name, self.sources["train"].setting, self.scale.peer_size)
        shapes = {tensor: list(value.shape) for tensor, value in trainable_tensors(net).items()}
        key = self._key(name, spec_to_dict(spec), PEER_PORTS, shapes)
        if (cost := self._done(name, key)) is not None:
            return cost
        views = [
            NoisyViews(
                source=source,
                spec=PREDICTION,
                num_samples=spec.num_samples if split == "train" else min(256, spec.num_samples),
                seed=2 * spec.seed + index,
                augment=split == "train",
                num_ports=PEER_PORTS,
            )
            for index, (split, source) in enumerate(self.sources.items())
        ]
        summary = fit(
            net,
            portwise_nmse,
            views[0],
            views[1],
            spec,
            self.work / f"{name}-{key}",
            lambda step: on_progress(f"training {name}", step.step, step.num_steps, describe(step)),
            identity=key,
        )
        if summary.stop_reason == "interrupted":
            raise KeyboardInterrupt
        with whole_file(self.folder / f"{name}.safetensors") as temporary:
            write_tensors(temporary, trainable_tensors(net.cpu()))
        return self._note(name, key, summary)

    def _key(self, *settings: Any) -> str:
        """A digest of everything that decides what a training ends in."""
        text = json.dumps([*settings, spec_to_dict(PREDICTION), self.checksums], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _done(self, name: str, key: str) -> dict[str, Any] | None:
        """What a training that has ended cost; None if it has not, or was another."""
        path = self.folder / f"{name}.json"
        cost = _read_cost(path) if path.exists() else None
        return cost if cost is not None and cost.get("key") == key else None

    def _note(self, name: str, key: str, summary: TrainingSummary) -> dict[str, Any]:
        cost = {"key": key, **summary.to_dict()}
        write_json(self.folder / f"{name}.json", cost)
        return cost


def _read_cost(path: Path) -> dict[str, Any]:
    cost: dict[str, Any] = json.loads(path.read_text())
    return cost


def _card(scale: Scale, cost: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "data": f"Sionna 38.901 UMa without line of sight, {scale.train} training drops each of "
        f"{' and '.join(SETTINGS.values())}, seed 11",
        "prediction": spec_to_dict(PREDICTION),
        "model": spec_to_dict(scale.model),
        "lam_training": spec_to_dict(scale.lam),
        "peer_training": spec_to_dict(scale.peer),
        "peer_size": scale.peer_size,
        "peer_ports": PEER_PORTS,
        "llm4cp_shape": {**LLM4CP_SHAPE, "backbone_weights": "random"},
        "trainable": {name: values["num_trainable"] for name, values in cost.items()},
        "training": {
            name: {key: values[key] for key in ("seconds", "num_steps", "best_step", "best_validation_loss")}
            for name, values in cost.items()
        },
        "torch": torch.__version__,
    }


def trainable_of(predictors: Sequence[Predictor]) -> dict[str, int]:
    """Trainable parameters of the learned ones."""
    sizes: dict[str, int] = {}
    for predictor in predictors:
        if isinstance(predictor, Guarded):
            sizes |= trainable_of(predictor.predictors[:1])
        elif isinstance(predictor, LamPredictor):
            sizes[predictor.name] = count_parameters(predictor.lam).trainable
        elif isinstance(predictor, LearnedPredictor):
            sizes[predictor.name] = count_parameters(predictor.module).trainable
    return sizes
