"""The simulator against the embedded runtime on this machine: one LAM, Poisson arrivals, several loads.

Seconds of each batch size and of a lone request are measured before and after the load; the simulator
replays the arrivals that were sent. Both are on one thread, in this process, with the server's own batcher.
Where other processes work meanwhile, batches under load may take longer than those before and after it, so
each row says what share of the processors the others had.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from airlam.bench import trained
from airlam.bench.prediction.sources import drawn_links
from airlam.model.build import lam_for
from airlam.serving.batching import Batcher
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement
from airlam.serving.simulator_runtime import RuntimeTimes, calibrate
from airlam.specs import ModelSpec, SplitSizes
from airlam.tasks.channel_prediction import Progress
from airlam.tasks.comparison import observe

_LAM, _SEED, _SNR_DB = "tdd", 33, 20.0
_MAX_BATCH = 16
_PROC_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeScale:
    """What is loaded, how heavily and how long."""

    model: ModelSpec
    loads: tuple[float, ...]
    duration_s: float
    repeats: int
    num_links: int


def calibration(scale: RuntimeScale, on_progress: Progress) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows by load; of all, the largest errors of mean and 95th percentile, the largest share of others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        services, asked = _services(scale)
        rows = [_row(scale, load, services, asked, on_progress) for load in scale.loads]
    finally:
        torch.set_num_threads(threads)
    figures = {
        "runtime.mean_error": max((row["errors"][0] for row in rows), key=abs),
        "runtime.p95_error": max((row["errors"][2] for row in rows), key=abs),
    }
    shares = [row["others_cpu_share"] for row in rows if row["others_cpu_share"] is not None]
    if shares:
        figures["runtime.others_cpu_share"] = max(shares)
    return rows, figures


def _services(scale: RuntimeScale) -> tuple[LamServices, list[Measurement]]:
    sizes = SplitSizes(train=0, validation=0, test=scale.num_links)
    source = drawn_links(trained.dataset_spec("uma_omni", sizes, _SEED), "test", trained.PREDICTION)
    seen = observe(source.read(np.arange(len(source))), source, _SNR_DB, 0)
    asked = [
        Measurement(lam=_LAM, history=seen.history[i : i + 1], noise_variance=seen.noise_variance[i : i + 1])
        for i in range(len(source))
    ]
    return LamServices({_LAM: lam_for(scale.model, source.setting, _SEED).eval()}), asked


def _row(
    scale: RuntimeScale,
    load: float,
    services: LamServices,
    asked: Sequence[Measurement],
    on_progress: Progress,
) -> dict[str, Any]:
    """One load: times before, the load, times after."""
    on_progress("runtime", scale.loads.index(load), len(scale.loads), f"load {load:g}")
    began = _Processors.now()
    before = _batch_times_s(scale, services, asked)
    rate = load * _MAX_BATCH / before[_MAX_BATCH]
    rng = np.random.default_rng(round(1000 * load))
    count = max(2, round(rate * scale.duration_s))
    arrival_s = np.cumsum(rng.exponential(1 / rate, count))
    sent_s, measured_s, overhead_s = asyncio.run(_loaded(services, asked, arrival_s, before[1]))
    after = _batch_times_s(scale, services, asked)
    times = RuntimeTimes(
        batch_s={size: (before[size] + after[size]) / 2 for size in before},
        max_batch_links=_MAX_BATCH,
        overhead_s=overhead_s,
    )
    order = np.argsort(sent_s, kind="stable")
    found = calibrate(sent_s[order].tolist(), measured_s[order], times)
    return {
        "kind": "runtime",
        "load": load,
        "rate_per_s": rate,
        "requests": count,
        "simulated_ms": [1e3 * value for value in found.simulated_s],
        "measured_ms": [1e3 * value for value in found.measured_s],
        "errors": list(found.errors),
        "others_cpu_share": None if began is None else began.others_share(),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Processors:
    """Seconds at a moment: of the clock; of all processors at work; of those, at work for this process."""

    clock_s: float
    busy_s: float
    own_s: float

    @staticmethod
    def now() -> "_Processors | None":
        """None where the system does not tell; what a hypervisor took (steal) counts as work."""
        if not _PROC_STAT.exists():
            return None
        fields = [int(field) for field in _PROC_STAT.read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, _idle, _waiting, interrupts, soft_interrupts, steal = fields
        ticks = user + nice + system + interrupts + soft_interrupts + steal
        return _Processors(
            clock_s=time.monotonic(),
            busy_s=ticks / os.sysconf("SC_CLK_TCK"),
            own_s=time.process_time(),
        )

    def others_share(self) -> float:
        """Of all processors' time since then, what others worked in."""
        now = _Processors.now()
        assert now is not None
        others_s = now.busy_s - self.busy_s - (now.own_s - self.own_s)
        return max(others_s, 0.0) / ((now.clock_s - self.clock_s) * (os.cpu_count() or 1))


def _batch_times_s(
    scale: RuntimeScale, services: LamServices, asked: Sequence[Measurement]
) -> dict[int, float]:
    """Mean seconds of a batch by its size."""
    sizes, found = [1, 2, 4, 8, _MAX_BATCH], {}
    for size in sizes:
        batch = [asked[i % len(asked)] for i in range(size)]
        services.predict(batch)
        began_s = time.perf_counter()
        for _ in range(scale.repeats):
            services.predict(batch)
        found[size] = (time.perf_counter() - began_s) / scale.repeats
    return found


async def _loaded(
    services: LamServices, asked: Sequence[Measurement], arrival_s: np.ndarray, alone_s: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """When requests were sent, what they took, and what a lone one takes beyond its batch; in seconds."""
    batcher = Batcher(services.predict, max_batch_links=_MAX_BATCH, max_queued_links=100_000)
    clock = time.perf_counter

    async def ask(number: int) -> tuple[float, float]:
        sent_s = clock()
        await batcher.submit(asked[number % len(asked)], deadline_s=600.0)
        return sent_s, clock() - sent_s

    lone = [(await ask(number))[1] for number in range(5)]
    began_s = clock()
    jobs = []
    for number, due_s in enumerate(arrival_s):
        await asyncio.sleep(max(began_s + due_s - clock(), 0.0))
        jobs.append(asyncio.create_task(ask(number)))
    found = np.array(await asyncio.gather(*jobs))
    await batcher.drain()
    return found[:, 0] - began_s, found[:, 1], max(float(np.median(lone)) - alone_s, 0.0)
