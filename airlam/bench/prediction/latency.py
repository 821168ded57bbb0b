"""How long one prediction takes: the whole chain, classical front end and LAM, on all cores.

Links of the omnidirectional setting, alone and in batches; medians of repeats, averaged over SNRs. Times come
from a clock: run it on a machine that does nothing else.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from airlam.bench import trained
from airlam.bench.prediction.job import Job
from airlam.bench.prediction.sources import HeldLinks, drawn_links
from airlam.bench.prediction.table import Part, Row
from airlam.datasets.machine import num_cores
from airlam.radio.prediction.base import Predictor
from airlam.radio.prediction.path_eb import PathEb
from airlam.specs import SplitSizes
from airlam.tasks.comparison import observe

SETTING = "latency"
FIGURES = "latency_ms"
SNRS_DB = (0.0, 10.0, 20.0, 30.0)
SEED = 24
METRIC = "ms_per_link_median"


def measure(job: Job) -> Part:
    """``latency_ms.batch1`` and ``latency_ms.batch64_per_user`` are the LAM's; Path-EB's are in the rows."""
    sizes = SplitSizes(train=0, validation=0, test=job.sizes.latency_batch)
    test = drawn_links(trained.dataset_spec("uma_omni", sizes, SEED), "test", trained.PREDICTION)
    lam = job.lam(test.setting)
    cores = min(num_cores(), job.sizes.latency_cores or num_cores())
    figures: dict[str, float] = {}
    rows: list[Row] = []
    with _threads(cores):
        for predictor, kind in ((PathEb(test.setting), "classical"), (lam, "lam")):
            for num_links, figure in ((1, "batch1"), (len(test), "batch64_per_user")):
                job.on_progress(f"{SETTING}: {predictor.name}", 0, 1, f"{num_links} at a time")
                found = _rows(predictor, kind, test, num_links, job.sizes.latency_repeats)
                rows += found
                if predictor is lam:
                    figures[f"{FIGURES}.{figure}"] = float(np.mean([row.value for row in found]))
    about = {
        "setting": SETTING,
        "dataset": trained.SETTINGS["uma_omni"],
        "cores": cores,
        "batch": len(test),
        "repeats": job.sizes.latency_repeats,
        "seed": SEED,
        "interval": "2.5 and 97.5 % of the repeats; alone, every repeat predicts another link",
    }
    return Part(figures=figures, rows=rows, about=about)


def _rows(predictor: Predictor, kind: str, test: HeldLinks, num_links: int, repeats: int) -> list[Row]:
    """A predictor's times at every SNR, so many links at a time."""
    _time_ms(predictor, test, SNRS_DB[0], num_links, 0)  # warms up
    rows = []
    for snr_db in SNRS_DB:
        times_ms = [_time_ms(predictor, test, snr_db, num_links, index) for index in range(repeats)]
        low, value, high = np.quantile(times_ms, (0.025, 0.5, 0.975)).tolist()
        rows.append(
            Row(
                setting=SETTING,
                predictor=predictor.name,
                kind=kind,
                metric=METRIC,
                value=value,
                low=low,
                high=high,
                group=f"batch={num_links}",
                snr_db=snr_db,
                num_links=num_links,
                trainable_parameters=trained.trainable_of([predictor]).get(predictor.name),
                ms_per_link=value,
            )
        )
    return rows


def _time_ms(predictor: Predictor, test: HeldLinks, snr_db: float, num_links: int, repeat: int) -> float:
    """Milliseconds a link of one prediction."""
    first = repeat * num_links % len(test)
    indices = (first + np.arange(num_links)) % len(test)
    seen = observe(test.read(indices), test, snr_db, first)
    began = time.perf_counter()
    predictor.predict(seen.history, seen.noise_variance)
    return 1000 * (time.perf_counter() - began) / num_links


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    """Torch on so many threads; afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
