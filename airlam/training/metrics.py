"""What a run writes and reports: JSONL metrics, live progress, and the summary."""

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from airlam.files import whole_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step as it happened."""

    step: int
    num_steps: int
    loss: float
    samples_per_s: float
    seconds_left: float
    validation_loss: float | None  # the latest, None before the first
    best_validation_loss: float | None


OnProgress = Callable[[Progress], None]
StopReason = Literal["finished", "early", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSummary:
    """What a run cost and where it ended; ``to_dict`` is ready for JSON.

    flops_per_sample counts matrix products and convolutions of one forward and backward pass, as torch's
    counter knows them (no factorisations or Fourier transforms). seconds counts resumed parts too.
    """

    num_parameters: int
    num_trainable: int
    trainable_share: float
    flops_per_sample: float
    seconds: float
    peak_memory_bytes: int
    num_steps: int
    num_samples_seen: int
    final_loss: float | None
    best_step: int
    best_validation_loss: float | None
    stop_reason: StopReason
    device: str
    precision: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class MetricsLog:
    """JSON lines, one a step, flushed as they come; resuming drops the lines after the checkpoint."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Keeps what ``path`` has of steps before ``first_step`` and appends from there."""
        kept = [line for line in _lines(path) if _step(line) < first_step]
        with whole_file(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, **values: float | int | None) -> None:
        """Appends one line without the values that are None."""
        self._file.write(json.dumps({k: v for k, v in values.items() if v is not None}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file."""
    return [json.loads(line) for line in _lines(path) if _step(line) < sys.maxsize]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _step(line: str) -> int:
    """The line's step; a line cut short by a kill counts as the last of all."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize


def count_flops(compute: Callable[[], object]) -> int:
    """FLOPs of one call, as torch's counter sees them; draws no random number that the caller would miss."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices), FlopCounterMode(display=False) as counter:
        compute()
    return int(counter.get_total_flops())


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of this process: of the GPU's memory there, of resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
