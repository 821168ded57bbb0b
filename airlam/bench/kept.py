"""What the benchmarks of predictors share: datasets and LAMs made once and kept, tokens made once a batch."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from airlam.datasets.generate import generate
from airlam.datasets.store import ChannelDataset
from airlam.files import whole_file, write_json
from airlam.model.lam import LAM, count_parameters
from airlam.model.storage import assign_tensors, fingerprint, read_tensors, trainable_tensors, write_tensors
from airlam.radio.metrics import Interval
from airlam.specs import DatasetSpec
from airlam.tasks.channel_prediction import Progress
from airlam.tokens.base import CsiTokenizer, TokenBatch
from airlam.training.precision import set_precision


def digest(*values: Any) -> str:
    """Of plain values: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def weights_sha256(lam: LAM) -> str:
    """Of every parameter of a LAM, frozen ones included."""
    return fingerprint(dict(lam.named_parameters()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """LAMs in a folder, each as ``<name>/`` with what it cost in ``<name>.json``.

    A note carries a key, the digest of everything that decides what the training ends in: under another key
    the LAM is not there.
    """

    folder: Path

    def fetch(self, name: str, key: str, lam: LAM) -> dict[str, Any] | None:
        """Loads the weights kept under ``key`` into ``lam`` and returns their cost; None where none are."""
        path = self.folder / f"{name}.json"
        note: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if note.get("key") != key:
            return None
        lam.load(self.folder / name)
        return note

    def keep(self, name: str, key: str, lam: LAM, cost: dict[str, Any]) -> dict[str, Any]:
        """Writes the LAM, then its note; returns the note."""
        note = {"key": key, **cost}
        lam.save(self.folder / name)
        write_json(self.folder / f"{name}.json", note)
        return note


def kept_weights(model: nn.Module, folder: Path, name: str, key: str, train: Callable[[], object]) -> None:
    """Gives a model the weights kept under ``key``, else keeps those that ``train`` leaves in it.

    Only what trains is kept, as ``<name>.safetensors``, with what it cost in ``<name>.json``; keys are as on
    a ``Shelf``.
    """
    note, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    if note.exists() and json.loads(note.read_text()).get("key") == key:
        assign_tensors(trainable_tensors(model), read_tensors(weights), str(weights))
        return
    began_s = time.monotonic()
    train()
    with whole_file(weights) as temporary:
        write_tensors(temporary, trainable_tensors(model))
    counts = count_parameters(model)
    cost = {"trainable": counts.trainable, "parameters": counts.total, "seconds": time.monotonic() - began_s}
    write_json(note, {"key": key, **cost})


def ready(lam: LAM) -> LAM:
    """For measuring: in single precision, whatever it was trained in, and without dropout."""
    set_precision(lam, torch.float32)
    return lam.eval()


class OnceTokenizer:
    """A tokeniser that gives the same tokens again where it is asked about the same history (the object).

    LAMs that are compared on one batch after another then cost no more than their networks.
    ``seconds``: spent on tokens so far. Implements ``CsiTokenizer``.
    """

    def __init__(self, tokenizer: CsiTokenizer) -> None:
        self.setting, self.num_features = tokenizer.setting, tokenizer.num_features
        self.seconds = 0.0
        self._tokenizer = tokenizer
        self._history: torch.Tensor | None = None
        self._tokens: TokenBatch | None = None

    def tokenise(self, history: torch.Tensor, noise_variance: torch.Tensor) -> TokenBatch:
        """See ``CsiTokenizer``."""
        if self._tokens is None or history is not self._history:
            began = time.perf_counter()
            self._tokens = self._tokenizer.tokenise(history, noise_variance)
            self._history = history
            self.seconds += time.perf_counter() - began
        return self._tokens

    def with_target(self, tokens: TokenBatch, future: torch.Tensor) -> TokenBatch:
        """See ``CsiTokenizer``."""
        return self._tokenizer.with_target(tokens, future)


def kept_dataset(spec: DatasetSpec, path: Path, on_progress: Progress) -> ChannelDataset:
    """The dataset of a spec at ``path``; drawn where none is there, or another's."""
    if path.exists() and ChannelDataset.open(path).spec != spec:
        path.unlink()
    if not path.exists():
        generate(spec, path, on_progress=on_progress)
    return ChannelDataset.open(path)


def as_dict(interval: Interval) -> dict[str, float]:
    """For a row."""
    return {"value": interval.value, "low": interval.low, "high": interval.high}
