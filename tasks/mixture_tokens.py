"""A mixture's settings as tokenised samples: channels drawn, tokenised once, and dropped.

What was made of a setting stays in a folder of its own, from which a killed run goes on: ``train/`` and
``validation/`` hold tokens in chunks, and ``facts.json``, written last, says that they are all there.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from airlam.datasets.generate import generate
from airlam.datasets.mixture import MixtureSetting
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.files import write_json
from airlam.llvm import good_llvm
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.specs import PretrainingSpec
from airlam.tasks.channel_prediction import (
    DatasetLinks,
    NoisyViews,
    Progress,
    TokenSamples,
    read_tokens,
    tokenise_views,
)
from airlam.tasks.runs import data_sha256
from airlam.tokens.base import TokenBatch

SPLITS = ("train", "validation")
FACTS_FILE = "facts.json"
_CHANNELS_FILE = "channels.h5"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SettingBatch:
    """Tokens of one setting, and which it is."""

    tokens: TokenBatch
    setting_index: int

    def to(self, device: torch.device) -> "SettingBatch":
        """The same batch on another device."""
        return SettingBatch(tokens=self.tokens.to(device), setting_index=self.setting_index)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MixtureSamples:
    """Tokenised samples of all settings, one after another; implements ``GroupedSamples``."""

    parts: tuple[TokenSamples, ...]

    def __len__(self) -> int:
        return sum(self.group_sizes)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Samples of each setting."""
        return tuple(len(part) for part in self.parts)

    def batch(self, indices: torch.Tensor) -> SettingBatch:
        """The samples at ``indices`` (int64 [n]), all of one setting."""
        ends = torch.tensor(self.group_sizes).cumsum(0)  # [num_settings]
        index = int(torch.searchsorted(ends, indices[0], right=True))
        start = int(ends[index]) - len(self.parts[index])
        return SettingBatch(tokens=self.parts[index].batch(indices - start), setting_index=index)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreparedSetting:
    """A setting with its untrained LAM, its tokens by split, and what was found in making them."""

    setting: MixtureSetting
    lam: LAM
    samples: dict[str, TokenSamples]
    facts: dict[str, Any]


def usable_settings(settings: Sequence[MixtureSetting]) -> tuple[list[MixtureSetting], list[str]]:
    """The settings that this machine can draw, and the names of the others."""
    usable = [s for s in settings if not s.dataset.channel.is_ray_traced or good_llvm() is not None]
    left_out = [s.name for s in settings if s not in usable]
    if left_out:
        logger.warning("no ray tracer here (see airlam doctor): left out %s", ", ".join(left_out))
    if not usable:
        raise DataError(
            "all settings are ray-traced, and no ray tracer is here; airlam doctor says what to do"
        )
    return usable, left_out


def prepare(
    setting: MixtureSetting, spec: PretrainingSpec, folder: Path, what: str, on_progress: Progress
) -> PreparedSetting:
    """A setting's tokens, from ``folder`` where they are there; its channels are dropped when they are."""
    offered = PredictionSetting.from_dataset(
        setting.dataset,
        setting.prediction.num_history,
        setting.prediction.num_horizon,
        setting.prediction.duplex,
    )
    lam = lam_for(spec.model, offered, spec.training.seed)
    path = folder / FACTS_FILE
    if not path.exists():
        write_json(path, _tokenise(setting, spec, lam, folder, what, on_progress))
    (folder / _CHANNELS_FILE).unlink(missing_ok=True)
    samples = {split: read_tokens(folder / split) for split in SPLITS}
    on_progress(what, 1, 1, "ready")
    return PreparedSetting(setting=setting, lam=lam, samples=samples, facts=json.loads(path.read_text()))


def _tokenise(
    setting: MixtureSetting,
    spec: PretrainingSpec,
    lam: LAM,
    folder: Path,
    what: str,
    on_progress: Progress,
) -> dict[str, Any]:
    """Draws a setting's channels and tokenises noisy views of them, chunk by chunk; says what it took."""
    data, mixture = folder / _CHANNELS_FILE, spec.mixture
    started = time.monotonic()
    if not data.exists():
        generate(setting.dataset, data, on_progress=lambda _, *counts: on_progress(f"{what}: drops", *counts))
    drawn = time.monotonic()
    sizes = {
        "train": spec.training.num_samples // mixture.num_settings,
        "validation": mixture.validation_drops,
    }
    with ChannelDataset.open(data) as dataset:
        for index, split in enumerate(SPLITS):
            views = NoisyViews(
                source=DatasetLinks(dataset, split, setting.prediction),
                spec=setting.prediction,
                num_samples=sizes[split],
                seed=2 * setting.dataset.seed + index,
                augment=split == "train",
            )
            tokenise_views(lam.tokenizer, views, folder / split, f"{what}: {split} tokens", on_progress)
        checksum = data_sha256(dataset)
    return {
        "data_sha256": checksum,
        "views": sizes,
        "seconds_drawing": round(drawn - started, 2),
        "seconds_tokenising": round(time.monotonic() - drawn, 2),
    }
