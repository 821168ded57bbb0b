"""The simulator against the embedded runtime on this machine: one LAM, Poisson arrivals, several loads.

Batches are timed before and after each run where they run in it: in the worker of the server's own batcher,
with the memory that the server keeps; each size alone, every link as often as any other, and those of other
arrivals at half load, since a batch takes longer after an idle moment or after one of another size. Of the
run itself the simulator gets its arrivals alone. All is on one thread, in this process. Where other
processes work meanwhile, or the machine's speed drifts, batches of the run take longer or shorter than those
before and after it, and a queue near its limit multiplies that: each run says what its batches took over
what was expected of them, and what share of the processors the others had.
"""

import asyncio
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from airlam.serving.memory import keep_freed_memory
from airlam.serving.simulator_runtime import Floats, RuntimeTimes, calibrate, replayed_s
from airlam.specs import ModelSpec, SplitSizes
from airlam.tasks.channel_prediction import Progress
from airlam.tasks.comparison import observe

_LAM, _SEED, _SNR_DB = "tdd", 33, 20.0
_MAX_BATCH = 16
_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, _MAX_BATCH)  # the seconds of small ones are on no line
_CALIBRATION_LOAD = 0.5
_DEADLINE_S = 600.0
_DELAYS_S = np.linspace(0.001, 0.01, 30)  # pauses after batches
_PROC_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeScale:
    """What is loaded, how heavily, how long and how often."""

    model: ModelSpec
    loads: tuple[float, ...]
    duration_s: float
    runs: int
    num_links: int


def calibration(scale: RuntimeScale, on_progress: Progress) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows by load; of all, the largest errors of mean and 95th percentile, the largest share of others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        services, asked = _services(scale)
        rows = [asyncio.run(_row(scale, load, services, asked, on_progress)) for load in scale.loads]
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


async def _row(
    scale: RuntimeScale,
    load: float,
    services: LamServices,
    asked: Sequence[Measurement],
    on_progress: Progress,
) -> dict[str, Any]:
    """One load: times, a run, times, another run and so on; errors of all runs together and of each.

    ``errors_at_own_pace``: as if the machine's pace in each run had been known, one number a run. What is
    left there is the simulator's own.
    """
    runtime, rng = _Runtime(services, asked), np.random.default_rng(round(1000 * load))
    await runtime.times(rng, 0.0)  # first passes take longer than all later ones
    before = await runtime.times(rng, scale.duration_s / 2)
    rate = load * _MAX_BATCH / before.batch_s[_MAX_BATCH]
    simulated_s, paced_s, measured_s = [], [], []
    runs: list[dict[str, Any]] = []
    for run in range(scale.runs):
        done = scale.loads.index(load) * scale.runs + run
        on_progress("runtime", done, len(scale.loads) * scale.runs, f"load {load:g}, run {run}")
        began = _Processors.now()
        loaded = await runtime.loaded(_poisson_s(rng, rate, scale.duration_s))
        after = await runtime.times(rng, scale.duration_s / 2)
        times = _between(before, after)
        pace = loaded.over(times)
        simulated_s.append(replayed_s(loaded.sent_s.tolist(), times))
        paced_s.append(replayed_s(loaded.sent_s.tolist(), _at_pace(times, pace)))
        measured_s.append(loaded.latency_s)
        runs.append(
            {
                "errors": list(calibrate(simulated_s[-1], loaded.latency_s).errors),
                "batches_over_expected": pace,
                "others_cpu_share": None if began is None else began.others_share(),
            }
        )
        before = after
    await runtime.drain()
    found = calibrate(np.concatenate(simulated_s), np.concatenate(measured_s))
    shares = [run["others_cpu_share"] for run in runs if run["others_cpu_share"] is not None]
    return {
        "kind": "runtime",
        "load": load,
        "rate_per_s": rate,
        "requests": sum(len(latency_s) for latency_s in measured_s),
        "simulated_ms": [1e3 * value for value in found.simulated_s],
        "measured_ms": [1e3 * value for value in found.measured_s],
        "errors": list(found.errors),
        "errors_at_own_pace": list(calibrate(np.concatenate(paced_s), np.concatenate(measured_s)).errors),
        "others_cpu_share": max(shares, default=None),
        "runs": runs,
    }


def _between(before: RuntimeTimes, after: RuntimeTimes) -> RuntimeTimes:
    """The mean of two measurements."""
    return RuntimeTimes(
        batch_s={size: (before.batch_s[size] + after.batch_s[size]) / 2 for size in before.batch_s},
        max_batch_links=before.max_batch_links,
        hand_over_s=(before.hand_over_s + after.hand_over_s) / 2,
        timer_s=(before.timer_s + after.timer_s) / 2,
    )


def _at_pace(times: RuntimeTimes, pace: float) -> RuntimeTimes:
    """Batches that take ``pace`` times as long."""
    return replace(times, batch_s={size: pace * batch_s for size, batch_s in times.batch_s.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """A run: when its requests were sent, in order, and what they took; links and seconds of its batches."""

    sent_s: Floats
    latency_s: Floats
    batches: list[tuple[int, float]]

    def over(self, times: RuntimeTimes) -> float:
        """What its batches took, over what such batches take by ``times``."""
        expected_s = sum(times.seconds(num_links) for num_links, _ in self.batches)
        return sum(batch_s for _, batch_s in self.batches) / expected_s


class _Runtime:
    """The server's batcher before some LAMs, in the event loop that runs."""

    def __init__(self, services: LamServices, asked: Sequence[Measurement]) -> None:
        self._asked, self._next = asked, 0
        self._batches: list[tuple[int, float]] = []
        self._batcher = Batcher(
            services.predict,
            max_batch_links=_MAX_BATCH,
            max_queued_links=100_000,
            on_batch=lambda num_links, batch_s: self._batches.append((num_links, batch_s)),
        )

    async def times(self, rng: np.random.Generator, duration_s: float) -> RuntimeTimes:
        """Of batches alone, each size until all links were asked, the sizes in random order, and of those
        that fill themselves at ``_CALIBRATION_LOAD`` for so many seconds.
        """
        begins, num_links = len(self._batches), len(self._asked)
        await self._alone_s(1)  # what comes after a batch of several meets its pause
        hand_over_s = [await self._alone_s(1) - self._batches[-1][1] for _ in self._asked]
        often = [size for size in _SIZES for _ in range(math.ceil(num_links / size))]
        for size in rng.permutation(often).tolist():
            await self._alone_s(size)
        full_s = _mean_s(self._batches[begins:], _MAX_BATCH)
        rate = _CALIBRATION_LOAD * _MAX_BATCH / full_s
        await self.loaded(_poisson_s(rng, rate, duration_s))
        return RuntimeTimes(
            batch_s={size: _mean_s(self._batches[begins:], size) for size in _SIZES},
            max_batch_links=_MAX_BATCH,
            hand_over_s=float(np.median(hand_over_s)),
            timer_s=await _timer_s(),
        )

    async def _alone_s(self, num_links: int) -> float:
        """Seconds until a batch of the next links is answered."""
        asked = [self._asked[(self._next + i) % len(self._asked)] for i in range(num_links)]
        self._next += num_links
        began_s = time.perf_counter()
        await self._batcher.submit_all(asked, _DEADLINE_S)
        return time.perf_counter() - began_s

    async def loaded(self, arrival_s: Floats) -> _Loaded:
        """Requests of one link at these times."""
        clock, begins = time.perf_counter, len(self._batches)

        async def ask(number: int) -> tuple[float, float]:
            sent_s = clock()
            await self._batcher.submit(self._asked[number % len(self._asked)], _DEADLINE_S)
            return sent_s, clock() - sent_s

        began_s, jobs = clock(), []
        for number, due_s in enumerate(arrival_s):
            await asyncio.sleep(max(began_s + due_s - clock(), 0.0))
            jobs.append(asyncio.create_task(ask(number)))
        found = np.array(sorted(await asyncio.gather(*jobs)))
        return _Loaded(sent_s=found[:, 0] - began_s, latency_s=found[:, 1], batches=self._batches[begins:])

    async def drain(self) -> None:
        """Ends its worker."""
        await self._batcher.drain()


def _poisson_s(rng: np.random.Generator, rate_per_s: float, duration_s: float) -> Floats:
    """When requests come: as many as are expected in so many seconds, two at least."""
    return rng.exponential(1 / rate_per_s, max(2, round(rate_per_s * duration_s))).cumsum()


def _mean_s(batches: Sequence[tuple[int, float]], size: int) -> float:
    return float(np.mean([batch_s for num_links, batch_s in batches if num_links == size]))


async def _timer_s() -> float:
    """By which this event loop's timers are late, on average."""
    late_s = []
    for delay_s in _DELAYS_S.tolist():
        began_s = time.perf_counter()
        await asyncio.sleep(delay_s)
        late_s.append(time.perf_counter() - began_s - delay_s)
    return float(np.mean(late_s))


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
