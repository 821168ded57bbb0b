"""Training samples of the devices of a network: each has drops of its own, alike or by speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from airlam.errors import SpecError
from airlam.model.lam import LAM
from airlam.specs import PredictionSpec
from airlam.split.streams import stream_seed
from airlam.tasks.channel_prediction import (
    LinkSource,
    NoisyViews,
    Progress,
    TokenSamples,
    concatenate,
    tokenise_views,
    with_reference,
)
from airlam.tokens.base import TokenBatch

_Indices = NDArray[np.int64]


class OwnLinks:
    """Some links of a source, as one device has them; implements ``LinkSource``."""

    def __init__(self, source: LinkSource, chosen: _Indices) -> None:
        self.setting, self.links_per_drop = source.setting, 1
        self._source, self._chosen = source, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, indices: _Indices) -> torch.Tensor:
        """complex64 [num_indices, num_slots, num_user_ant, num_bs_ant, num_subcarriers]."""
        return self._source.read(self._chosen[indices])

    def speeds_m_per_s(self, indices: _Indices) -> torch.Tensor:
        """float32 [num_indices]."""
        return self._source.speeds_m_per_s(self._chosen[indices])


def divide_links(
    source: LinkSource, devices: Sequence[str], partition: Literal["iid", "speed"], seed: int
) -> dict[str, LinkSource]:
    """Every drop's links to one device, the same number of drops give or take one.

    iid: at random. speed: in the order of the mean speed of a drop's users, so that each device knows a range
    of speeds only. SpecError where there are fewer drops than devices.
    """
    num_drops = len(source) // source.links_per_drop
    links = np.arange(num_drops * source.links_per_drop).reshape(num_drops, -1)  # [drops, links]
    speeds = None
    if partition == "speed":
        speeds = source.speeds_m_per_s(links.ravel()).numpy().reshape(links.shape).mean(1)  # [drops]
    parts = divide_drops(num_drops, devices, speeds, seed)
    return {device: OwnLinks(source, links[part].ravel()) for device, part in parts.items()}


def divide_drops(
    num_drops: int, devices: Sequence[str], speed_m_per_s: NDArray[np.floating[Any]] | None, seed: int
) -> dict[str, _Indices]:
    """Drops by device, at random or, where their speeds are given, in the order of these."""
    if num_drops < len(devices):
        raise SpecError(
            f"{num_drops} training drops for {len(devices)} devices; generate one a device or more"
        )
    order = np.random.default_rng(seed).permutation(num_drops)
    if speed_m_per_s is not None:
        order = order[np.argsort(speed_m_per_s[order], kind="stable")]
    return dict(zip(devices, np.array_split(order, len(devices)), strict=True))


def device_samples(
    lam: LAM,
    owned: Mapping[str, LinkSource],
    prediction: PredictionSpec,
    *,
    num_samples: int,
    seed: int,
    folder: Path,
    on_progress: Progress,
) -> dict[str, TokenBatch]:
    """Tokens with targets, by device, each made once and kept in ``folder``; ``num_samples`` in all."""
    sizes = [len(part) for part in np.array_split(np.arange(num_samples), len(owned))]
    parts = []
    for done, ((device, source), size) in enumerate(zip(owned.items(), sizes, strict=True)):
        views = NoisyViews(
            source=source,
            spec=prediction,
            num_samples=size,
            seed=stream_seed(seed, 0, device, "views"),
        )
        parts.append(tokenise_views(lam.tokenizer, views, folder / device, "tokens", _silent).tokens)
        on_progress("tokenising for the devices", done + 1, len(owned), device)
    scored = with_reference(lam, TokenSamples(tokens=concatenate(parts))).tokens
    places = torch.split(torch.arange(len(scored)), sizes)
    return {device: scored.select(place) for device, place in zip(owned, places, strict=True)}


def _silent(what: str, done: int, total: int, detail: str = "") -> None:
    """Progress of one device's part."""
