"""A dataset's users as those who ask a server: what ``airlam client`` sends."""

from pathlib import Path

import numpy as np
import torch

from airlam.datasets.store import ChannelDataset
from airlam.serving.client import Client
from airlam.serving.replay import ReplayReport, Send, replay
from airlam.specs import RunSpec, require
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

    Of channel prediction that is a noisy history of one user, of beam selection one's last sweeps and
    positions, of beamforming what is known of one downlink of the run's ``link.num_users`` users, or their
    noisy histories where it is to be predicted. snr_db: of the histories of channel prediction; of
    beamforming the total power over noise; sweeps have their own. DataError where the run's dataset has no
    test drops; what the server does not take comes back as failures.
    """
    spec = read_run(folder)
    with ChannelDataset.open(spec.dataset) as dataset:
        if spec.task == "beamforming" and spec.downlink.csi == "predicted":
            send = _groups(spec, dataset, snr_db)
        elif spec.task == "beam_selection":
            send = _sweeps(spec, dataset)
        elif spec.task == "beamforming":
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


def _groups(spec: RunSpec, dataset: ChannelDataset, snr_db: float) -> Send:
    """Users at unit mean power, of one drop where it has enough of them."""
    assert spec.downlink.predictor is not None
    prediction = read_run(Path(spec.downlink.predictor), task="channel_prediction").prediction
    source, num_users = DatasetLinks(dataset, "test", prediction), spec.link.num_users
    require(
        len(source) >= num_users,
        f"num_users is {num_users}, but the test drops have {len(source)}; generate more of them",
    )
    links = source.read(np.arange(min(len(source), max(REPLAYED_REQUESTS, num_users))))
    seen = observe(links, source, spec.link.csi_snr_db, 0)
    power = seen.history.abs().square().mean(dim=(1, 2, 3, 4))  # [links]
    history = seen.history * power.rsqrt().view(-1, 1, 1, 1, 1)
    noise_variance = seen.noise_variance / power

    def send(client: Client, number: int) -> None:
        start = number % (len(history) // num_users) * num_users
        own = slice(start, start + num_users)
        client.predict_and_precode(
            spec.name, spec.name, history[own], noise_variance[own], db_to_linear(-snr_db)
        )

    return send


def _sweeps(spec: RunSpec, dataset: ChannelDataset) -> Send:
    from airlam.tasks.beam_selection_run import windows_of_test

    history = windows_of_test(dataset, spec.sweeps).history

    def send(client: Client, number: int) -> None:
        place = number % min(len(history), REPLAYED_REQUESTS)
        one = slice(place, place + 1)
        client.choose_beams(spec.name, history.power[one], history.position_m[one])

    return send


def _downlinks(run: Run, snr_db: float) -> Send:
    from airlam.tasks.beamforming_evaluation import measured_downlinks

    _, known = measured_downlinks(run).known(slice(0, REPLAYED_REQUESTS))
    noise_variance = torch.full((1,), db_to_linear(-snr_db))

    def send(client: Client, number: int) -> None:
        place = number % len(known.h)
        one = slice(place, place + 1)
        errors = None if known.error_covariance is None else known.error_covariance[one]
        client.precode(run.spec.name, known.h[one], noise_variance, errors)

    return send
