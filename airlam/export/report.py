"""How large the exported files are, how close to torch, and how fast, on the same samples."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from airlam.errors import DataError
from airlam.export.device import DeviceSide, Links, Signature
from airlam.export.manifest import WEIGHT, Manifest, Mode, SignatureEntry
from airlam.export.runtime import DeviceModules
from airlam.export.write import MODES

NUM_CALLS = 30  # timed, after as few that are not as NUM_WARM
NUM_WARM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureReport:
    """One signature beside torch's function, both on one thread.

    max_error: the largest difference of any output, over the largest number in that output. Times are the
    medians of a call of ``batch_size`` samples.
    """

    name: str
    mode: Mode
    batch_size: int
    max_error: float
    exported_ms: float
    torch_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """manifest in short, sizes of the files, and each signature."""

    format: str
    modules: tuple[str, ...]
    left_to_torch: str
    file_bytes: Mapping[str, int]
    signatures: tuple[SignatureReport, ...]

    @property
    def max_error(self) -> float:
        """Of all signatures; NaN where one gives it."""
        return float(np.max([each.max_error for each in self.signatures]))

    @property
    def sentences(self) -> tuple[str, ...]:
        """Sizes, and what is not in the files."""
        sizes = ", ".join(f"{name} {size / 1e3:.0f} kB" for name, size in self.file_bytes.items())
        left = (f"left to torch: {self.left_to_torch}",) if self.left_to_torch else ()
        return f"files: {sizes}", *left

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "max_error": self.max_error}

    def table(self) -> Table:
        """For the console."""
        table = Table(title=f"{', '.join(self.modules)} as {self.format}", title_justify="left")
        for column in ("mode", "signature", "batch", "largest error", "exported, ms", "torch, ms"):
            table.add_column(column, justify="left" if column in ("mode", "signature") else "right")
        for each in self.signatures:
            times = (f"{each.exported_ms:.3f}", f"{each.torch_ms:.3f}")
            table.add_row(each.mode, each.name, str(each.batch_size), f"{each.max_error:.1e}", *times)
        return table


def measure_export(side: DeviceSide, links: Links, folder: Path) -> ExportReport:
    """Runs every signature of a folder and torch's function beside it on the first of these links.

    DataError where one gives NaN or infinity.
    """
    found: list[SignatureReport] = []
    manifest: Manifest | None = None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for mode in MODES:
            device = DeviceModules(folder, mode)
            manifest = device.manifest
            found += _of_mode(side, links, device)
    finally:
        torch.set_num_threads(threads)
    assert manifest is not None
    broken = ", ".join(each.name for each in found if not math.isfinite(each.max_error))
    if broken:
        raise DataError(
            f"{broken} in {folder} or in torch gives NaN or infinity; export a LAM that gives numbers"
        )
    return ExportReport(
        format=manifest.format,
        modules=manifest.modules,
        left_to_torch=manifest.left_to_torch,
        file_bytes={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        signatures=tuple(found),
    )


def _of_mode(side: DeviceSide, links: Links, device: DeviceModules) -> list[SignatureReport]:
    """Every signature of a mode; torch's functions are made once for each batch size."""
    entries = [each for each in device.manifest.signatures if each.mode == device.mode]
    made = {
        size: {each.name: each for each in side.signatures(device.mode, links.first(size))}
        for size in {each.batch_size for each in entries}
    }
    return [_compared(device, entry, made[entry.batch_size][entry.name]) for entry in entries]


def _compared(device: DeviceModules, entry: SignatureEntry, signature: Signature) -> SignatureReport:
    examples = dict(signature.examples)
    own = [each.name for each in entry.inputs if not each.name.startswith(WEIGHT)]
    arrays = {name: examples[name].detach().numpy() for name in own}
    with torch.set_grad_enabled(entry.name.endswith("_step")):
        wanted = signature.function(examples)
        torch_ms = _median_ms(lambda: signature.function(examples))
    got = device.run(entry.name, arrays)
    errors = [_relative_error(got[name], value.detach().numpy()) for name, value in wanted.items()]
    return SignatureReport(
        name=entry.name,
        mode=entry.mode,
        batch_size=entry.batch_size,
        max_error=float(np.max(errors)),
        exported_ms=_median_ms(lambda: device.run(entry.name, arrays)),
        torch_ms=torch_ms,
    )


def _relative_error(got: Any, wanted: Any) -> float:
    if wanted.dtype == np.bool_:
        return float((got != wanted).any())
    largest = float(np.abs(wanted).max(initial=0.0))
    error = float(np.abs(got - wanted).max(initial=0.0))
    return error / largest if largest else error


def _median_ms(call: Callable[[], object]) -> float:
    for _ in range(NUM_WARM):
        call()
    times = []
    for _ in range(NUM_CALLS):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)
