"""A run's device side as files for other runtimes, with a report on the run's own test links."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from airlam.datasets.store import ChannelDataset
from airlam.export.device import DeviceSide, Links
from airlam.export.manifest import FORMATS, REPORT_FILE, Format
from airlam.export.report import ExportReport, measure_export
from airlam.export.write import write_device
from airlam.files import write_json
from airlam.specs import require
from airlam.tasks.channel_prediction import DatasetLinks, Progress, quiet
from airlam.tasks.comparison import observe
from airlam.tasks.runs import load_lam, read_run

SNR_DB = 20.0  # of the links that the report measures on


def export_run(
    run: Path,
    folder: Path,
    to: str,
    *,
    modules: Sequence[str] = (),
    batch_size: int | None = None,
    on_progress: Progress = quiet,
) -> ExportReport:
    """Writes ``folder`` with the device's modules of a finished run, and ``report.json`` in it.

    modules: more modules that the device has than embedding and head. batch_size: samples of a training step;
    by default the run's. DataError where the folder exists, the run is not finished or of another task, its
    dataset is gone or a package is missing.
    """
    require(to in FORMATS, f"format is {to!r}; expected {' or '.join(FORMATS)}")
    spec = read_run(run, task="channel_prediction")
    size = spec.training.batch_size if batch_size is None else batch_size
    require(size >= 1, f"the batch size is {size}; expected at least 1")
    with ChannelDataset.open(spec.dataset) as dataset:
        source = DatasetLinks(dataset, "test", spec.prediction)
        seen = observe(source.read(np.arange(min(len(source), size))), source, SNR_DB, 0)
    links = Links(history=seen.history, noise_variance=seen.noise_variance, future=seen.future)
    side = DeviceSide(load_lam(run, source.setting).lam, modules)
    write_device(
        side, links, folder, name=spec.name, to=cast(Format, to), batch_size=size, on_progress=on_progress
    )
    report = measure_export(side, links, folder)
    write_json(folder / REPORT_FILE, report.to_dict())
    return report
