"""Fine-tuned runs as LAMs to serve, and a dataset's users as those who ask."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from airlam.datasets.store import ChannelDataset
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.serving.client import Client
from airlam.serving.guarding import (
    CLASSICAL,
    UNTUNED,
    GuardedServices,
    LinkGuard,
    untuned_name,
)
from airlam.serving.lam_services import LamServices
from airlam.serving.monitoring import Metrics
from airlam.serving.replay import ReplayReport, replay
from airlam.serving.server import serve
from airlam.serving.services import Services
from airlam.specs import RunSpec, ServingSpec, require
from airlam.tasks.channel_prediction import DatasetLinks
from airlam.tasks.comparison import observe
from airlam.tasks.run_guard import read_guard
from airlam.tasks.run_setting import read_setting
from airlam.tasks.runs import LAM_FOLDER, read_run

REPLAYED_LINKS = 256  # of a dataset's test drops; more requests begin anew


def served_lams(folders: Sequence[Path]) -> dict[str, LAM]:
    """The LAMs of some runs' folders, by the runs' names.

    Of a run's dataset nothing is needed, unless an older version of airlam fine-tuned it. DataError where a
    folder holds no finished run; SpecError where two runs have one name.
    """
    lams: dict[str, LAM] = {}
    for folder in folders:
        spec = read_run(folder)
        require(spec.name not in lams, f"two runs are called {spec.name!r}; serve one of them, or rename one")
        require(
            spec.task == "channel_prediction",
            f"{folder} is a run of task {spec.task!r}; the server takes runs of task 'channel_prediction'",
        )
        lams[spec.name] = _untuned(folder, spec)
        lams[spec.name].load(folder / LAM_FOLDER)
    return lams


def _untuned(folder: Path, spec: RunSpec) -> LAM:
    return lam_for(spec.model, read_setting(folder, spec), spec.training.seed).eval()


def services_of(folders: Sequence[Path], metrics: Metrics) -> Services:
    """The services of some runs' LAMs, guarded where a run has been evaluated; they report to ``metrics``."""
    lams, guards = served_lams(folders), dict[str, LinkGuard]()
    for name, folder in zip(list(lams), folders, strict=True):
        guard = read_guard(folder)
        if guard is not None and (guard.uses(UNTUNED) or guard.uses(CLASSICAL)):
            guards[name] = guard
            if guard.uses(UNTUNED):
                lams[untuned_name(name)] = _untuned(folder, read_run(folder))
    services = LamServices(lams, metrics.service_ran)
    return GuardedServices(services, guards, metrics.service_ran) if guards else services


def serve_runs(folders: Sequence[Path], spec: ServingSpec, on_listening: Callable[[str], None]) -> None:
    """Serves some runs' LAMs until SIGINT or SIGTERM; SIGHUP has it read the folders anew."""
    metrics = Metrics()
    load = functools.partial(services_of, folders, metrics)
    serve(load(), spec, metrics, on_listening, load)


def replay_run(
    folder: Path, url: str, *, rate_per_s: float, duration_s: float, snr_db: float = 20.0
) -> ReplayReport:
    """Sends noisy histories of the users of a run's test drops to the server that has its LAM.

    snr_db: of the histories. DataError where the run's dataset has no test drops; shapes that the server's
    LAM does not take come back as failures.
    """
    spec = read_run(folder)
    with ChannelDataset.open(spec.dataset) as dataset:
        source = DatasetLinks(dataset, "test", spec.prediction)
        seen = observe(source.read(np.arange(min(len(source), REPLAYED_LINKS))), source, snr_db, 0)

    def send(client: Client, number: int) -> None:
        place = number % len(seen.history)
        one = slice(place, place + 1)
        client.predict(spec.name, seen.history[one], seen.noise_variance[one])

    return replay(url, send, rate_per_s=rate_per_s, duration_s=duration_s)
