"""A look into a dataset file: where the users are, how channels spread, and what the sensors see.

Channels are read from a bounded sample of drops, spread evenly over one split; places, speeds and path losses
come from a larger one, as they are read at once.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.card import info
from airlam.datasets.fields import drop_bytes
from airlam.datasets.layout import SPLITS
from airlam.datasets.portrait.channels import channel_panels
from airlam.datasets.portrait.places import map_panel, path_loss_panel
from airlam.datasets.portrait.sample import read_values, spread
from airlam.datasets.portrait.sensors import sensor_panels
from airlam.datasets.portrait.spectra import unit_power
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.panels import BarPanel, Panel, Portrait
from airlam.specs import DatasetSpec

SAMPLE_DROPS = 256
SAMPLE_BYTES = 64 * 2**20
BINS = 24


def portrait(path: str | Path, *, num_drops: int = SAMPLE_DROPS) -> Portrait:
    """The panels that a dataset has something for, from a sample of at most ``num_drops`` drops.

    DataError where the file is none of ours, its channels are all zero, or anything shown is not finite.
    """
    with ChannelDataset.open(path) as dataset:
        spec = dataset.spec
        split = next(split for split in SPLITS if dataset.num_drops(split))
        rows = _sample(dataset, split, num_drops)
        found = _panels(dataset, split, rows)
        drops = f"{len(rows)} of {dataset.num_drops(split)} {split} drops"
    return Portrait(
        title=spec.name,
        subtitle=f"{spec.description}\nSpectra: {drops}, every link at unit power. {_setting(spec)}".strip(),
        panels=tuple(each for each in found if not isinstance(each, str)),
        absent=tuple(each for each in found if isinstance(each, str) and each),
        facts=info(Path(path)),
    )


def _panels(dataset: ChannelDataset, split: str, rows: NDArray[np.int64]) -> list[Panel | str]:
    """All panels, or why they are not there; those of the channels from the drops at ``rows``."""
    uplink = dataset.batch(split, rows).links()[
        ..., : dataset.spec.grid.num_uplink_subcarriers
    ]  # [batch, users, t, ue, bs, f]
    if not 0 < float(uplink.abs().square().mean()) < math.inf:  # NaN is neither
        raise DataError(
            f"{dataset.path}: the sampled channels are all zero or not all finite; generate it again"
        )
    links, alive = unit_power(uplink)  # [num_links, t, ue, bs, f], [batch, users]
    speed_m_per_s = read_values(dataset, split, "speed_m_per_s", rows)[alive.numpy()]  # [num_links]
    return [
        map_panel(dataset, split),
        *channel_panels(links, speed_m_per_s, dataset.spec),
        path_loss_panel(dataset, split),
        _speed_panel(dataset, split),
        *sensor_panels(dataset, split),
    ]


def _sample(dataset: ChannelDataset, split: str, num_drops: int) -> NDArray[np.int64]:
    """Evenly spread drops that together stay within the budget: int64 [at most num_drops]."""
    affordable = max(1, min(num_drops, SAMPLE_BYTES // drop_bytes(dataset.spec)))
    return spread(dataset.num_drops(split), affordable)


def _setting(spec: DatasetSpec) -> str:
    """The radio in a line."""
    grid = spec.grid
    bands = "uplink band of two, " if grid.num_downlink_subcarriers else ""
    return (
        f"{spec.channel.model} at {spec.channel.carrier_frequency_hz / 1e9:g} GHz, {bands}"
        f"{grid.num_uplink_subcarriers} x {grid.subcarrier_spacing_hz / 1e3:g} kHz, "
        f"{grid.num_slots} slots of {grid.slot_duration_s * 1e3:g} ms, "
        f"{spec.base_station.num_ports} x {spec.user.num_ports} antennas."
    )


def _speed_panel(dataset: ChannelDataset, split: str) -> BarPanel:
    speeds = read_values(dataset, split, "speed_m_per_s").ravel()  # [n]
    counts, edges = np.histogram(speeds, bins=BINS)
    return BarPanel(
        title="Speed of the users",
        x_label="speed, m/s",
        edges=edges,
        share=counts / len(speeds),
        note=f"{speeds.min():.3g} to {speeds.max():.3g} m/s, mean {speeds.mean():.3g}",
    )
