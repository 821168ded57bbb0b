"""Fine-tuned runs as LAMs to serve, and a dataset's users as those who ask."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from airlam.datasets.store import ChannelDataset
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.serving.client import Client
from airlam.serving.lam_services import LamServices
from airlam.serving.monitoring import Metrics
from airlam.serving.replay import ReplayReport, replay
from airlam.specs import RunSpec, require
from airlam.tasks.channel_prediction import DatasetLinks
from airlam.tasks.comparison import observe
from airlam.tasks.runs import load_lam, read_run

REPLAYED_LINKS = 256  # of a dataset's test drops; more requests begin anew


def served_lams(folders: Sequence[Path]) -> dict[str, LAM]:
    """The LAMs of some runs' folders, by the runs' names.

    Arrays, grid and times are those of each run's dataset, which has to be where it was. DataError where it
    is not, or a folder holds no finished run; SpecError where two runs have one name.
    """
    lams: dict[str, LAM] = {}
    for folder in folders:
        spec = read_run(folder)
        require(spec.name not in lams, f"two runs are called {spec.name!r}; serve one of them, or rename one")
        lams[spec.name] = load_lam(folder, run_setting(spec)).lam
    return lams


def run_setting(spec: RunSpec) -> PredictionSetting:
    """What a run's LAM predicts from and to."""
    own = spec.prediction
    with ChannelDataset.open(spec.dataset) as dataset:
        return PredictionSetting.from_dataset(dataset.spec, own.num_history, own.num_horizon, own.duplex)


def run_services(folders: Sequence[Path]) -> tuple[LamServices, Metrics]:
    """The services of some runs' LAMs, and the metrics that they report to."""
    metrics = Metrics()
    return LamServices(served_lams(folders), metrics.service_ran), metrics


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
