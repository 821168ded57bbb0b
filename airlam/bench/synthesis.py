"""Drawing channels: ours against Sionna's own path, from the same random draws, on the same cores.

Every rate is measured in processes of one thread each, one a core, that run at the same time, ours and
Sionna's in turns: so does generation use the cores, and Sionna too is faster that way than with one process
of many threads. Each engine goes at whichever of ``BATCHES`` suits it best. What is timed is what generation
runs: drops drawn together, their channels handed on a few at a time; only the writing is left out.
"""

import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.machine import num_cores
from airlam.errors import AirlamError
from airlam.specs import ArraySpec, ChannelSpec, DatasetSpec, GridSpec, PlacementSpec

ENGINES = ("airlam", "sionna")
BATCHES = (4, 16, 64, 128)
SGEMM_SIZE = 1024
STATUS = Path("/proc/self/status")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured."""

    batches: tuple[int, ...]
    seconds: float  # of each rate
    rounds: int
    memory_drops: int
    error_drops: int


FULL = Effort(batches=BATCHES, seconds=2.0, rounds=3, memory_drops=64, error_drops=32)
QUICK = Effort(batches=(4,), seconds=0.1, rounds=1, memory_drops=64, error_drops=4)


def settings() -> dict[str, DatasetSpec]:
    """CDL-C and UMa at LLM4CP's size (32 ports, 96 subcarriers, 20 slots); 64 ports by 273 blocks."""
    uma = packaged_spec("llm4cp_uma_omni")
    cdl = ChannelSpec(model="cdl_c", carrier_frequency_hz=2.4e9, delay_spread_s=300e-9)
    cdl_c = dataclasses.replace(uma, name="cdl_c", channel=cdl, placement=PlacementSpec())
    large = dataclasses.replace(
        cdl_c,
        name="large",
        base_station=ArraySpec(
            num_rows=4, num_cols=8, polarization="dual", polarization_type="cross", antenna_pattern="38.901"
        ),
        grid=GridSpec(subcarrier_spacing_hz=360e3, num_uplink_subcarriers=273, num_slots=20),
    )
    return {"cdl_c": cdl_c, "uma": uma, "large": large}


def run(quick: bool, on_progress: Callable[[str, int, int, str], None]) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine.

    - ``*.speedup``: drops a second of ours over Sionna's, drawing included.
    - ``*.share_of_sgemm``: the arithmetic of our two matrix products in Gflop/s, over what the same
      processes reach when they multiply square matrices.
    - ``*.peak_memory_ratio``: of drawing ``memory_drops`` drops into one tensor, beyond what libraries take.
    - ``max_relative_error``: of a drop, ours against Sionna's own; ``max_error_to_double`` ours and
      ``sionna_max_error_to_double`` Sionna's against the same draw summed in double precision.

    AirlamError where the system does not tell a process's peak memory.
    """
    effort = QUICK if quick else FULL
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    errors: list[tuple[float, float, float]] = []
    specs = settings()
    with Crew(num_cores()) as crew:
        sgemm = sum(crew.all("sgemm", effort.seconds))
        for done, (name, spec) in enumerate(specs.items()):
            on_progress("settings", done, len(specs), name)
            rates = _rates(crew, spec, effort)
            rows += [{"setting": name, **row} for row in rates]
            stages = crew.one("stages", spec, max(effort.batches), effort.seconds)
            rows += [{"setting": name, "stage": stage, "us_per_drop": us} for stage, us in stages.items()]
            ours, sionnas = (_best(rates, engine) for engine in ENGINES)
            figures |= {
                f"{name}.speedup": ours / sionnas,
                f"{name}.drops_per_s": ours,
                f"{name}.sionna_drops_per_s": sionnas,
                f"{name}.share_of_sgemm": ours * flop(spec) / 1e9 / sgemm,
            }
            errors.append(crew.one("errors", spec, effort.error_drops))
            figures |= _memory(name, spec, effort.memory_drops)
    on_progress("settings", len(specs), len(specs), "")
    names = ("max_relative_error", "max_error_to_double", "sionna_max_error_to_double")
    worst = {name: max(values) for name, values in zip(names, zip(*errors, strict=True), strict=True)}
    return {
        "settings": {
            **dataclasses.asdict(effort),
            "workers": num_cores(),
            "threads_per_worker": 1,
            "sgemm_gflop_per_s": sgemm,
        },
        "figures": {**worst, **figures},
        "rows": rows,
    }


def flop(spec: DatasetSpec) -> int:
    """Real operations of a drop's two complex matrix products: rays into paths, paths into subcarriers."""
    rays, paths = _num_rays_and_paths(spec)
    pairs = spec.base_station.num_ports * spec.user.num_ports
    return 8 * pairs * spec.grid.num_slots * (rays + paths * spec.grid.num_subcarriers)


def _num_rays_and_paths(spec: DatasetSpec) -> tuple[int, int]:
    """Of a link: clusters' rays; clusters, and four more where the two strongest are split in three."""
    from airlam.datasets.stochastic.raydraw import RayDraw
    from airlam.datasets.stochastic.synthesis import draw_links

    _, draw = draw_links(spec, 1, 1)
    assert isinstance(draw, RayDraw)
    split = draw.cluster_delay_spread_s is not None
    return draw.rays.aoa.numel(), draw.rays.powers.numel() + (4 if split else 0)


def _rates(crew: "Crew", spec: DatasetSpec, effort: Effort) -> list[dict[str, Any]]:
    """Drops a second of all workers together, by engine and batch, in turns; the median of the rounds."""
    keys = [(engine, batch) for batch in effort.batches for engine in ENGINES]
    found: dict[tuple[str, int], list[float]] = {key: [] for key in keys}
    for _ in range(effort.rounds):
        for engine, batch in keys:
            found[engine, batch].append(sum(crew.all("rate", spec, engine, batch, effort.seconds)))
    return [
        {"engine": engine, "batch_drops": batch, "drops_per_s": statistics.median(rates)}
        for (engine, batch), rates in found.items()
    ]


def _best(rows: list[dict[str, Any]], engine: str) -> float:
    return float(max(row["drops_per_s"] for row in rows if row["engine"] == engine))


def _memory(name: str, spec: DatasetSpec, num_drops: int) -> dict[str, float]:
    """Peak memory of the same drops in one tensor, each engine in a process of its own."""
    peaks = {}
    for engine in ENGINES:
        with Crew(1) as crew:
            peaks[engine] = crew.one("memory", spec, engine, num_drops)
    return {
        f"{name}.peak_memory_ratio": peaks["airlam"] / peaks["sionna"],
        f"{name}.peak_memory_mb": peaks["airlam"] / 1e6,
        f"{name}.sionna_peak_memory_mb": peaks["sionna"] / 1e6,
    }


class Crew:
    """Worker processes of one thread each that measure when they are told to."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def all(self, task: str, *arguments: Any) -> list[Any]:
        """The task at the same time in each worker; RuntimeError where one fails."""
        for _, pipe in self._workers:
            pipe.send((task, arguments))
        return [_result(pipe, task) for _, pipe in self._workers]

    def one(self, task: str, *arguments: Any) -> Any:
        """The task in the first worker, the others idle."""
        _, pipe = self._workers[0]
        pipe.send((task, arguments))
        return _result(pipe, task)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *exception: object) -> None:
        for process, pipe in self._workers:
            pipe.close()
            process.join()


def _result(pipe: Connection, task: str) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError(f"a worker failed at {task!r}; its error is above") from None


def _work(pipe: Connection) -> None:
    """A worker's life: tasks until the pipe closes."""
    import torch

    torch.set_num_threads(1)
    tasks: dict[str, Callable[..., Any]] = {
        "sgemm": _sgemm_gflop_per_s,
        "rate": _rate,
        "stages": _stages,
        "errors": _errors,
        "memory": _peak_bytes,
    }
    while True:
        try:
            task, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(tasks[task](*arguments))


def _sgemm_gflop_per_s(seconds: float) -> float:
    """This core's rate at multiplying square matrices in single precision."""
    import torch

    left = torch.randn(SGEMM_SIZE, SGEMM_SIZE)
    out = torch.empty_like(left)
    calls, elapsed = _repeat(lambda seed: torch.mm(left, left, out=out), seconds)
    return 2 * SGEMM_SIZE**3 * calls / elapsed / 1e9


def _rate(spec: DatasetSpec, engine: str, batch: int, seconds: float) -> float:
    """Drops a second, each turned into h_freq and let go."""
    from airlam.datasets.stochastic.synthesis import draw_batches, draw_drops_by_sionna

    def ours(seed: int) -> None:
        for _ in draw_batches(spec, seed, batch):
            pass

    def sionnas(seed: int) -> None:
        draw_drops_by_sionna(spec, seed, batch)

    calls, elapsed = _repeat(ours if engine == "airlam" else sionnas, seconds)
    return batch * calls / elapsed


def _repeat(call: Callable[[int], Any], seconds: float) -> tuple[int, float]:
    """How often ``call`` ran, each time with another number, and for how long, after one call to warm up."""
    call(0)
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < seconds:
        calls += 1
        call(calls)
    return calls, time.perf_counter() - start


def _stages(spec: DatasetSpec, batch: int, seconds: float) -> dict[str, float]:
    """Where our time goes, in microseconds a drop; the two products alone, on other data of their shapes."""
    import torch

    from airlam.datasets.fields import BATCH_BYTES
    from airlam.datasets.stochastic.raydraw import RayDraw
    from airlam.datasets.stochastic.raysum import response_batches
    from airlam.datasets.stochastic.response import slot_times_s
    from airlam.datasets.stochastic.synthesis import draw_links

    _, draw = draw_links(spec, 1, batch)
    assert isinstance(draw, RayDraw)
    pairs, slots = spec.base_station.num_ports * spec.user.num_ports, spec.grid.num_slots
    subcarriers, per_cluster = spec.grid.num_subcarriers, draw.rays.aoa.shape[-1]
    rays, paths = _num_rays_and_paths(spec)
    times_s = slot_times_s(slots, spec.grid.slot_duration_s)
    frequencies_hz = torch.tensor(spec.grid.frequencies_hz, dtype=torch.float64)
    held = max(1, min(batch, BATCH_BYTES // (8 * pairs * slots * subcarriers)))
    antennas = torch.randn(rays // per_cluster, pairs, per_cluster, dtype=torch.complex64)
    doppler = torch.randn(rays // per_cluster, per_cluster, slots, dtype=torch.complex64)
    gains = torch.randn(1, paths, pairs * slots, dtype=torch.complex64)
    delays = torch.randn(1, paths, subcarriers, dtype=torch.complex64)
    channels = torch.zeros(2, held, pairs * slots, subcarriers, dtype=torch.complex64)
    timed: dict[str, tuple[Callable[[int], Any], int]] = {
        "draw (Sionna)": (lambda seed: draw_links(spec, seed, batch), batch),
        "ray sum": (
            lambda seed: list(map(len, response_batches(draw, times_s, frequencies_hz, held))),
            batch,
        ),
        "of which rays into paths": (lambda seed: torch.bmm(antennas, doppler), 1),
        "of which paths into subcarriers": (
            lambda seed: torch.bmm(gains.mT, delays, out=channels[0, :1]),
            1,
        ),
        "for comparison, copying the channel": (lambda seed: channels[0].copy_(channels[1]), held),
    }
    found = {}
    for stage, (call, drops) in timed.items():
        calls, elapsed = _repeat(call, seconds / len(timed))
        found[stage] = 1e6 * elapsed / (calls * drops)
    return found


def _errors(spec: DatasetSpec, num_drops: int) -> tuple[float, float, float]:
    """Largest error of a drop, relative to it: ours to Sionna's, ours to double, Sionna's to double."""
    import torch

    from airlam.datasets.stochastic.raydraw import RayDraw
    from airlam.datasets.stochastic.raysum import frequency_response
    from airlam.datasets.stochastic.response import slot_times_s
    from airlam.datasets.stochastic.synthesis import draw_drops, draw_drops_by_sionna, draw_links

    _, draw = draw_links(spec, 7, num_drops)
    assert isinstance(draw, RayDraw)
    times_s = slot_times_s(spec.grid.num_slots, spec.grid.slot_duration_s)
    exact = frequency_response(draw.double(), times_s, torch.tensor(spec.grid.frequencies_hz))

    def error(found: torch.Tensor, expected: torch.Tensor) -> float:
        found, expected = found.flatten(1), expected.flatten(1)
        return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())

    ours, sionnas = (f(spec, 7, num_drops).h_freq for f in (draw_drops, draw_drops_by_sionna))
    return error(ours, sionnas), error(ours, exact), error(sionnas, exact)


def _peak_bytes(spec: DatasetSpec, engine: str, num_drops: int) -> int:
    """What the drops take at the peak, beyond what libraries, models and one drop took before."""
    from airlam.datasets.stochastic.synthesis import draw_drops, draw_drops_by_sionna

    draw = draw_drops if engine == "airlam" else draw_drops_by_sionna
    draw(spec, 1, 1)
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    draw(spec, 1, num_drops)
    taken = _resident_bytes("VmHWM") - before
    if taken <= 0:
        raise AirlamError(f"{num_drops} drops left no mark on the peak memory; draw more")
    return taken


def _resident_bytes(name: str) -> int:
    """A line of the process's status, which Linux keeps."""
    if not STATUS.exists():
        raise AirlamError(f"{STATUS} is not there; peak memory can be measured on Linux only")
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AirlamError(f"{STATUS} has no {name}; peak memory can be measured on Linux only")
