"""Benchmarks: each prints figures measured in one run."""

import importlib
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from airlam.errors import SpecError

BENCHES: dict[str, tuple[str, frozenset[str]]] = {  # by name, the module and what it takes besides quick
    "ablation": ("ablation", frozenset({"data", "only", "on_progress"})),
    "beamforming": ("beamforming", frozenset({"data", "on_progress"})),
    "dataset-io": ("dataset_io", frozenset()),
    "federated": ("federated", frozenset({"on_progress"})),
    "placement": ("placement", frozenset({"on_progress"})),
    "prediction": ("prediction", frozenset({"train", "data", "only", "peers", "on_progress"})),
    "serve": ("serve", frozenset({"on_progress"})),
    "schedule": ("schedule", frozenset({"on_progress"})),
    "split": ("split", frozenset({"on_progress"})),
    "synthesis": ("synthesis", frozenset({"on_progress"})),
    "transfer": ("transfer", frozenset({"data", "on_progress"})),
}
_OPTIONS = {"train": "--train", "data": "--data", "only": "--only", "peers": "--no-peers"}


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

    train: models anew. data: foreign channels or recordings. only: the settings to run. peers: whether
    prediction's learned comparators take part. SpecError where there is no benchmark of that name, or it
    cannot take what is asked of it.
    """
    if name not in BENCHES:
        raise SpecError(f"no benchmark is called {name!r}; there are {', '.join(BENCHES)}")
    module, takes = BENCHES[name]
    given = {"train": train, "data": data is not None, "only": bool(only), "peers": not peers}
    refused = [_OPTIONS[option] for option, is_given in given.items() if is_given and option not in takes]
    if refused:
        raise SpecError(f"{name} does not take {' or '.join(refused)}; drop it")
    options = {"train": train, "data": data, "only": only, "peers": peers, "on_progress": on_progress}
    run = importlib.import_module(f"airlam.bench.{module}").run
    result: dict[str, Any] = run(quick=quick, **{name: options[name] for name in takes})
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
