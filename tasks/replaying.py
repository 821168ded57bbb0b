"""A dataset's users as those who ask a server: what ``airlam client`` sends."""

from pathlib import Path

import numpy as np
import torch

from airlam.datasets.store import ChannelDataset
from airlam.serving.client import Client
from airlam.serving.replay import ReplayReport, Send, replay
from airlam.specs import BeamformingSpec, RunSpec
from airlam.tasks.channel_prediction import DatasetLinks, quiet
from airlam.tasks.comparison import observe
from airlam.tasks.runs import read_run
from airlam.tasks.task import Run
from airlam.units import db_to_linear

REPLAYED_REQUESTS = 256  # of a dataset's test drops; more begin anew


def replay_run(
    folder: Path, url: str, *, rate_per_s: float, duration_s: float, snr_db: float = 20.0
) -> ReplayReport:
    """Sends what the users of a run's test drops would ask to the server that has the run.

    Of channel prediction that is a noisy history of one user, of beamforming what is known of one downlink of
    the run's ``link.num_users`` users. snr_db: of the histories; of beamforming the total power over noise.
    DataError where the run's dataset has no test drops; what the server does not take comes back as failures.
    """
    spec = read_run(folder)
    with ChannelDataset.open(spec.dataset) as dataset:
        if spec.task == "beamforming":
            send = _downlinks(Run(spec=spec, dataset=dataset, folder=folder, on_progress=quiet), snr_db)
        else:
            send = _histories(spec, dataset, snr_db)
    return replay(url, send, rate_per_s=rate_per_s, duration_s=duration_s)


def _histories(spec: RunSpec, dataset: ChannelDataset, snr_db: float) -> Send:
    source = DatasetLinks(dataset, "test", spec.prediction)
    seen = observe(source.read(np.arange(min(len(source), REPLAYED_REQUESTS))), source, snr_db, 0)

    def send(client: Client, number: int) -> None:
        place = number % len(seen.history)
        one = slice(place, place + 1)
        client.predict(spec.name, seen.history[one], seen.noise_variance[one])

    return send


def _downlinks(run: Run, snr_db: float) -> Send:
    from airlam.tasks.beamforming_data import PilotCsi, all_drops, read_views
    from airlam.tasks.beamforming_evaluation import test_downlinks

    own, pilots = run.spec.beamforming or BeamformingSpec(), None
    if own.csi == "pilots":
        drops = all_drops(run.dataset, "train")[: run.spec.training.num_samples]
        pilots = PilotCsi.fit(own, read_views(run.dataset, "train", drops, quiet).h)
    test = test_downlinks(run, pilots)
    _, known = test.known(slice(0, REPLAYED_REQUESTS))
    noise_variance = torch.full((1,), db_to_linear(-snr_db))

    def send(client: Client, number: int) -> None:
        place = number % len(known.h)
        one = slice(place, place + 1)
        errors = None if known.error_covariance is None else known.error_covariance[one]
        client.precode(run.spec.name, known.h[one], noise_variance, errors)

    return send
