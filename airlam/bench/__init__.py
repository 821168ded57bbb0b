"""Benchmarks: each prints figures measured in one run."""

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from airlam.errors import SpecError

BENCHES = (
    "ablation",
    "beamforming",
    "dataset-io",
    "federated",
    "prediction",
    "schedule",
    "split",
    "synthesis",
    "transfer",
)


def run_bench(
    name: str,
    *,
    quick: bool,
    train: bool,
    data: Path | None,
    on_progress: Callable[..., None],
    only: Sequence[str] = (),
    peers: bool = True,
) -> dict[str, Any]:
    """Runs the benchmark and returns its JSON object: bench, machine, settings, figures, rows.

    ``only``: the settings to run, of prediction and ablation. ``peers``: whether prediction's learned
    comparators take part. SpecError where there is no benchmark of that name, or it cannot take what is asked of it.
    """
    if name not in BENCHES:
        raise SpecError(f"no benchmark is called {name!r}; there are {', '.join(BENCHES)}")
    if only and name not in ("prediction", "ablation"):
        raise SpecError(f"{name} has no settings to choose; drop --only")
    if not peers and name != "prediction":
        raise SpecError(f"{name} has no peers to leave out; drop --no-peers")
    if name == "dataset-io":
        if train or data is not None:
            raise SpecError("dataset-io trains nothing and writes its own data; drop --train and --data")
        from airlam.bench import dataset_io

        result = dataset_io.run(quick)
    elif name == "ablation":
        if train:
            raise SpecError("ablation trains what is not in the cache; drop --train")
        from airlam.bench import ablation

        result = ablation.run(quick=quick, on_progress=on_progress, data=data, only=only)
    elif name == "transfer":
        if train:
            raise SpecError("transfer tunes the models that are there; drop --train")
        from airlam.bench import transfer

        result = transfer.run(quick=quick, data=data, on_progress=on_progress)
    elif name == "beamforming":
        if train:
            raise SpecError("beamforming trains what its cache lacks; drop --train")
        from airlam.bench import beamforming

        result = beamforming.run(quick=quick, data=data, on_progress=on_progress)
    elif name == "federated":
        if train or data is not None:
            raise SpecError("federated trains in each run and draws its own data; drop --train and --data")
        from airlam.bench import federated

        result = federated.run(quick, on_progress)
    elif name == "schedule":
        if train or data is not None:
            raise SpecError("schedule trains nothing and draws its own cells; drop --train and --data")
        from airlam.bench import schedule

        result = schedule.run(quick, on_progress)
    elif name == "split":
        if train or data is not None:
            raise SpecError("split trains for a few steps and draws its own data; drop --train and --data")
        from airlam.bench import split

        result = split.run(quick, on_progress)
    elif name == "synthesis":
        if train or data is not None:
            raise SpecError("synthesis trains nothing and draws its own data; drop --train and --data")
        from airlam.bench import synthesis

        result = synthesis.run(quick, on_progress)
    else:
        from airlam.bench import prediction

        result = prediction.run(
            quick=quick, train=train, data=data, only=only, peers=peers, on_progress=on_progress
        )
    return {"bench": name, "machine": machine(), **result}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
    }
