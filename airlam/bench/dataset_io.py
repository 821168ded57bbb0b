"""Reading shuffled training batches, against a raw sequential read of the same file.

Both sides read the same file from the same page cache, in turns, and the medians are compared: the raw side
fills one buffer of a batch's size from start to end, the other side delivers tensors in random order.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.fields import drop_bytes, drop_shape
from airlam.datasets.layout import write_dataset
from airlam.datasets.store import ChannelDataset
from airlam.radio.channel import ChannelBatch
from airlam.specs import DatasetSpec, SplitSizes

BATCH_DROPS = 32
SPEC_NAME = "demo"


def run(quick: bool) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine.

    The figure ``ratio_to_raw_read`` is the median of batches in MB/s over the median of raw reads.
    """
    num_drops, repeats = (64, 3) if quick else (1024, 9)
    spec = dataclasses.replace(
        packaged_spec(SPEC_NAME), drops=SplitSizes(train=num_drops, validation=0, test=0)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.h5"
        write_dataset(path, spec, {"train": _noise_drops(spec, num_drops)}, "benchmark noise")
        rows = _measure(path, spec, repeats)
    raw = statistics.median(row["raw_mb_per_s"] for row in rows)
    batches = statistics.median(row["batches_mb_per_s"] for row in rows)
    return {
        "bench": "dataset-io",
        "settings": {
            "spec": SPEC_NAME,
            "num_drops": num_drops,
            "batch_drops": BATCH_DROPS,
            "repeats": repeats,
        },
        "figures": {
            "ratio_to_raw_read": batches / raw,
            "raw_mb_per_s": raw,
            "batches_mb_per_s": batches,
            "drops_per_s": batches * 1e6 / drop_bytes(spec),
        },
        "rows": rows,
    }


def _noise_drops(spec: DatasetSpec, num_drops: int) -> ChannelBatch:
    """Drops of the spec's size; reading does not care what is in them."""
    generator = torch.Generator().manual_seed(spec.seed)
    users = (num_drops, spec.num_users)
    return ChannelBatch(
        h_freq=torch.randn((num_drops, *drop_shape(spec)), dtype=torch.complex64, generator=generator),
        direction=spec.channel.direction,
        speed_m_per_s=torch.zeros(users),
        position_m=torch.zeros(*users, 3),
        los=torch.zeros(users, dtype=torch.bool),
        path_loss_db=torch.zeros(users),
    )


def _measure(path: Path, spec: DatasetSpec, repeats: int) -> list[dict[str, Any]]:
    """Both rates, in turns; the first round only warms the page cache and is dropped."""
    rows = []
    with ChannelDataset.open(path) as dataset:
        for repeat in range(repeats + 1):
            raw = _raw_mb_per_s(path, BATCH_DROPS * drop_bytes(spec))
            batches = _batches_mb_per_s(dataset, seed=repeat)
            rows.append({"repeat": repeat, "raw_mb_per_s": raw, "batches_mb_per_s": batches})
    return rows[1:]


def _raw_mb_per_s(path: Path, buffer_bytes: int) -> float:
    """One pass over the file into a buffer."""
    buffer = bytearray(buffer_bytes)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return os.path.getsize(path) / (time.perf_counter() - start) / 1e6


def _batches_mb_per_s(dataset: ChannelDataset, seed: int) -> float:
    """One epoch of shuffled batches."""
    order = np.random.default_rng(seed).permutation(dataset.num_drops("train"))
    num_bytes = 0
    start = time.perf_counter()
    for first in range(0, len(order), BATCH_DROPS):
        batch = dataset.batch("train", order[first : first + BATCH_DROPS])
        num_bytes += batch.h_freq.numel() * batch.h_freq.element_size()
    return num_bytes / (time.perf_counter() - start) / 1e6
