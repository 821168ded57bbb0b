"""The server against the bare forward pass; LAMs on one backbone against whole ones (``serve_shared``).

The server is a process of its own on this machine, with one thread for predictions as the bare pass has;
times that are compared are taken in turns. ``added``: what a lone request over HTTP takes beyond the bare
pass, tensors to tensors at the client; ``besides``: what it takes beyond its own pass in the server, so that
no difference between two processes' passes is in it; ``noop``: what a request without body or prediction
takes, the client's own part included. ``batching``: answers a second to more clients than a batch holds, over
links a second of the best batch size offline. ``sustained``: requests at 80 % of that rate, each sent when it
is due.
"""

import functools
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from airlam.bench import trained
from airlam.bench.prediction.sources import drawn_links
from airlam.bench.serve_shared import FDD, SEED, TDD, seconds_of, shared, tuned_lams
from airlam.model.build import lam_for
from airlam.radio.channel import PredictionSetting
from airlam.serving.client import Client
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement
from airlam.serving.monitoring import Metrics
from airlam.serving.replay import replay
from airlam.serving.server import serve
from airlam.specs import ModelSpec, ServingSpec, SplitSizes
from airlam.tasks.channel_prediction import Progress
from airlam.tasks.comparison import observe

SNR_DB, LOAD_SHARE = 20.0, 0.8
SPEC = ServingSpec(port=0, max_batch_links=32, max_queued_links=256, deadline_s=60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How long it all takes."""

    model: ModelSpec
    num_links: int
    lone_requests: int
    batch_sizes: tuple[int, ...]
    saturated_s: float
    sustained_s: float
    shared_repeats: int


FULL = Scale(
    model=ModelSpec(backbone="airlam"),
    num_links=64,
    lone_requests=200,
    batch_sizes=(1, 2, 4, 8, 16, 32),
    saturated_s=20.0,
    sustained_s=300.0,
    shared_repeats=9,
)
QUICK = Scale(
    model=ModelSpec(num_layers=1, num_paths=4),
    num_links=4,
    lone_requests=3,
    batch_sizes=(1, 2),
    saturated_s=0.2,
    sustained_s=0.5,
    shared_repeats=1,
)


def run(quick: bool, on_progress: Progress) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine; figures as the module says."""
    scale = QUICK if quick else FULL
    on_progress("channels", 0, 1, "")
    setting, asked = _measurements(scale)
    settings = _settings(setting)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures, rows = shared(
            scale.model,
            settings,
            asked[: scale.batch_sizes[-1]],
            SPEC.max_batch_links,
            scale.shared_repeats,
            on_progress,
        )
        services = LamServices({TDD: lam_for(scale.model, setting, SEED).eval()})
        with _server_process(scale.model, settings) as (url, pid):
            added, lone = _added_ms(url, services, asked, scale, on_progress)
            saturated, batches = _batching(url, services, asked, scale, on_progress)
            figures |= added | saturated
            figures |= _sustained(url, pid, asked, scale, saturated["served_per_s"], on_progress)
    finally:
        torch.set_num_threads(threads)
    about = {
        "model": f"{scale.model.backbone}, {scale.model.num_paths} paths, LoRA rank {scale.model.lora_rank}",
        "history": list(asked[0].history.shape[1:]),
        "lams": list(settings),
        "snr_db": SNR_DB,
        "max_batch_links": SPEC.max_batch_links,
        "sustained_s": scale.sustained_s,
        "skipped": {},
    }
    return {"settings": about, "figures": figures, "rows": [*rows, *lone, *batches]}


def _measurements(scale: Scale) -> tuple[PredictionSetting, list[Measurement]]:
    """Noisy histories of drawn users, one a request."""
    sizes = SplitSizes(train=0, validation=0, test=scale.num_links)
    source = drawn_links(trained.dataset_spec("uma_omni", sizes, SEED), "test", trained.PREDICTION)
    seen = observe(source.read(np.arange(len(source))), source, SNR_DB, 0)
    asked = [
        Measurement(lam=TDD, history=seen.history[i : i + 1], noise_variance=seen.noise_variance[i : i + 1])
        for i in range(len(source))
    ]
    return source.setting, asked


def _settings(setting: PredictionSetting) -> dict[str, PredictionSetting]:
    """Three tasks of one measurement: the same band, a band beside it, and further ahead."""
    width_hz = setting.history_frequencies_hz[-1] - setting.history_frequencies_hz[0]
    beside = tuple(frequency_hz + 1.5 * width_hz for frequency_hz in setting.target_frequencies_hz)
    return {
        TDD: setting,
        FDD: replace(setting, target_frequencies_hz=beside),
        "far": replace(setting, num_horizon=2 * setting.num_horizon),
    }


def _added_ms(
    url: str, services: LamServices, asked: Sequence[Measurement], scale: Scale, on_progress: Progress
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Median of a request's time less the bare pass's, on the same measurement, and of a no-op, in turns."""
    rows = []
    with Client(url) as client:
        batches_s = _batches_s(client)
        for number in range(scale.lone_requests):
            on_progress("lone requests", number, scale.lone_requests, "")
            one = asked[number % len(asked)]
            bare_s = seconds_of(functools.partial(services.predict, [one]))
            asking = functools.partial(client.predict, one.lam, one.history, one.noise_variance)
            http_s = seconds_of(asking)
            time.sleep(bare_s)  # so that caches are as cold as after a prediction
            noop_s = seconds_of(functools.partial(client.get, "/healthz"))
            batch_s = _batches_s(client) - batches_s
            batches_s += batch_s
            rows.append({"bare_s": bare_s, "http_s": http_s, "batch_s": batch_s, "noop_s": noop_s})
    figures = {
        "added_p50_ms": 1e3 * statistics.median(row["http_s"] - row["bare_s"] for row in rows),
        "besides_p50_ms": 1e3 * statistics.median(row["http_s"] - row["batch_s"] for row in rows),
        "noop_p50_ms": 1e3 * statistics.median(row["noop_s"] for row in rows),
    }
    return figures, rows


def _batches_s(client: Client) -> float:
    """Seconds of all batches that the server has run."""
    seconds: float = json.loads(client.get("/v1/load"))["batches"]["seconds"]
    return seconds


def _batching(
    url: str, services: LamServices, asked: Sequence[Measurement], scale: Scale, on_progress: Progress
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Saturated clients between two measurements of every batch size offline."""
    before = _offline(services, asked, scale, on_progress)
    on_progress("saturated", 0, 1, "")
    served_per_s = _saturated(url, asked, scale.saturated_s)
    after = _offline(services, asked, scale, on_progress)
    rows = [{"batch": size, "links_per_s": (before[size] + after[size]) / 2} for size in scale.batch_sizes]
    best_per_s = max(row["links_per_s"] for row in rows)
    figures = {
        "served_per_s": served_per_s,
        "offline_per_s": best_per_s,
        "batching_share_of_offline": served_per_s / best_per_s,
    }
    return figures, rows


def _offline(
    services: LamServices, asked: Sequence[Measurement], scale: Scale, on_progress: Progress
) -> dict[int, float]:
    """Links a second by batch size, each over half the time for which the server is saturated."""
    found = {}
    for size in scale.batch_sizes:
        on_progress("offline", size, scale.batch_sizes[-1], "links a batch")
        done, began_s, most_s = 0, time.perf_counter(), scale.saturated_s / 2 / len(scale.batch_sizes)
        while not done or time.perf_counter() - began_s < most_s:
            services.predict([asked[(done + i) % len(asked)] for i in range(size)])
            done += size
        found[size] = done / (time.perf_counter() - began_s)
    return found


def _saturated(url: str, asked: Sequence[Measurement], duration_s: float) -> float:
    """Answers a second while two batches' worth of clients ask again as soon as they are answered."""
    counts: list[int] = []
    starts = threading.Barrier(2 * SPEC.max_batch_links + 1)
    end = threading.Event()

    def ask(place: int) -> None:
        with Client(url, timeout_s=120.0) as client:
            client.predict(TDD, asked[0].history, asked[0].noise_variance)
            starts.wait()
            done = 0
            while not end.is_set():
                one = asked[(place + done) % len(asked)]
                client.predict(TDD, one.history, one.noise_variance)
                done += 1
            counts.append(done)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(2 * SPEC.max_batch_links)]
    for thread in threads:
        thread.start()
    starts.wait()
    began_s = time.perf_counter()
    time.sleep(duration_s)
    end.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began_s)


def _sustained(
    url: str, pid: int, asked: Sequence[Measurement], scale: Scale, served_per_s: float, on_progress: Progress
) -> dict[str, float]:
    """An open load at a share of what the server can do; memory from a tenth of the time to its end."""

    def send(client: Client, number: int) -> None:
        one = asked[number % len(asked)]
        client.predict(TDD, one.history, one.noise_variance)

    rate_per_s = LOAD_SHARE * served_per_s
    on_progress("sustained load", 0, 1, f"{rate_per_s:.1f} requests a second")
    replay(url, send, rate_per_s=rate_per_s, duration_s=scale.sustained_s / 10)
    before = _resident_bytes(pid)
    report = replay(url, send, rate_per_s=rate_per_s, duration_s=scale.sustained_s)
    return {
        "sustained.rate_per_s": rate_per_s,
        "sustained.requests": float(report.num_requests),
        "sustained.errors": float(sum(report.failures.values())),
        "sustained.p50_ms": report.quantile_ms(0.5),
        "sustained.p99_ms": report.quantile_ms(0.99),
        "sustained.memory_growth_mb": (_resident_bytes(pid) - before) / 1e6,
    }


@contextmanager
def _server_process(model: ModelSpec, settings: Mapping[str, PredictionSetting]) -> Iterator[tuple[str, int]]:
    """A server of all three LAMs in a process of its own: its URL, and its number."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(model, dict(settings), theirs))
    process.start()
    theirs.close()  # so that a child that fails ends the wait
    try:
        url: str = ours.recv()
        assert process.pid is not None
        yield url, process.pid
    finally:
        process.terminate()
        process.join()


def _serve(model: ModelSpec, settings: dict[str, PredictionSetting], answer: Connection) -> None:
    torch.set_num_threads(1)
    metrics = Metrics()
    serve(LamServices(tuned_lams(model, settings), metrics.service_ran), SPEC, metrics, answer.send)


def _resident_bytes(pid: int) -> float:
    """A process' memory, as Linux tells it; NaN elsewhere."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return 1024.0 * int(line.split()[1])
