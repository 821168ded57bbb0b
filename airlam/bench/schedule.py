"""The per-round scheduler against CVXPY with Clarabel on the same convex problems.

    least delay   minimise tau                     s.t. t_k + y_k <= tau, y_k = upload_k(b_k), sum_k b_k <= 1
    priced        minimise Q tau + sum_k a_k y_k   under the same constraints

for all K devices of a cell: 10 MHz, users evenly over a disc of 300 m, path loss 128.1 + 37.6 log10(d / km)
dB, Rayleigh fading, 23 dBm, -174 dBm/Hz, 1 to 2 Mbit to send, 0.1 to 0.5 s of fixed delay. CVXPY has one
parametrised (DPP) problem a size, compiled before the clock runs, its variables scaled to about 1; each
instance sets the parameters and solves. Both sides are timed on the same instances in turns; medians are
compared. Choosing the devices is beyond a convex solver: our whole round, which compares every number of
devices, is timed too and set against one of CVXPY's solves for one set.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from airlam.errors import SpecError
from airlam.split.bandwidth import Array, Uplinks, equal_share_delay, least_delay, needed_shares
from airlam.split.energy import allocate_priced
from airlam.split.selection import choose_devices

BANDWIDTH_HZ = 1e7
TX_POWER_DBM, NOISE_DBM_PER_HZ, RADIUS_M = 23.0, -174.0, 300.0
SIZES, QUICK_SIZES = (20, 100, 1000), (20,)
MAX_PRICED_SIZE = 100
REPEATS = 5  # of ours on each instance
LEARNING_PRICE, DELAY_PRICE = 30.0, 1.0
_TIMES = ("solve_ms", "cvxpy_ms", "clarabel_ms", "round_ms")
_GAPS = ("objective_gap", "priced_objective_gap", "certified_gap")


def run(quick: bool, on_progress: Callable[..., None]) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine; SpecError where CVXPY or Clarabel is missing.

    Figures by K: ``solve_ms`` and ``cvxpy_ms`` of the least delay, ``speedup_vs_cvxpy`` their ratio,
    ``speedup_vs_clarabel`` against the seconds that Clarabel itself reports, ``objective_gap`` the largest
    relative difference of the delays (``certified_gap`` bounds ours without another solver),
    ``priced_objective_gap`` that of the priced problem, ``round_ms`` of our whole round and
    ``round_speedup_vs_cvxpy`` against one solve of CVXPY's. Instances that Clarabel does not solve are left
    out of its figures and counted in ``clarabel_failures``.
    """
    sizes, instances = (QUICK_SIZES, 3) if quick else (SIZES, 15)
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for done, size in enumerate(sizes):
        on_progress("schedule", done, len(sizes))
        found = _measure(size, instances)
        rows += found
        figures.update({f"k{size}.{name}": value for name, value in _figures(found).items()})
    on_progress("schedule", len(sizes), len(sizes))
    settings = {"bandwidth_hz": BANDWIDTH_HZ, "instances": instances, "learning_price": LEARNING_PRICE}
    return {"settings": {**settings, "delay_price": DELAY_PRICE}, "figures": figures, "rows": rows}


def _figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    solved = {name: [row[name] for row in rows if row[name] is not None] for name in rows[0]}
    medians = {name: statistics.median(solved[name]) for name in _TIMES}
    gaps = {name: max(solved[name]) for name in _GAPS if solved[name]}
    return {
        **medians,
        "clarabel_failures": float(len(rows) - len(solved["cvxpy_ms"])),
        "speedup_vs_cvxpy": medians["cvxpy_ms"] / medians["solve_ms"],
        "speedup_vs_clarabel": medians["clarabel_ms"] / medians["solve_ms"],
        "round_speedup_vs_cvxpy": medians["cvxpy_ms"] / medians["round_ms"],
        **gaps,
    }


def draw_cell(num_devices: int, seed: int) -> Uplinks:
    """A cell of the setting above."""
    generator = np.random.default_rng([num_devices, seed])
    distance_km = RADIUS_M / 1e3 * np.sqrt(generator.uniform(0.01, 1.0, num_devices))
    gain_db = -(128.1 + 37.6 * np.log10(distance_km))
    noise_dbm = NOISE_DBM_PER_HZ + 10 * np.log10(BANDWIDTH_HZ)
    fading = generator.exponential(size=num_devices)
    return Uplinks.of(
        fixed_delay_s=generator.uniform(0.1, 0.5, num_devices),
        payload_bits=generator.uniform(1e6, 2e6, num_devices),
        full_band_snr=10 ** ((TX_POWER_DBM + gain_db - noise_dbm) / 10) * fading,
        bandwidth_hz=BANDWIDTH_HZ,
    )


def _measure(size: int, instances: int) -> list[dict[str, Any]]:
    """One row an instance."""
    cvxpy = ConvexProblem(size)
    cvxpy.solve(draw_cell(size, instances))  # compiles
    return [_row(cvxpy, draw_cell(size, seed), seed) for seed in range(instances)]


def _row(cvxpy: "ConvexProblem", cell: Uplinks, seed: int) -> dict[str, Any]:
    """Times in ms and relative differences; None for what Clarabel did not solve."""
    cvxpy_s, expected = _timed(lambda: cvxpy.solve(cell))
    solve_s, (delay_s, _) = _median_time(lambda: least_delay(cell))
    round_s, _ = _median_time(lambda: _whole_round(cell))
    return {
        "devices": len(cell),
        "seed": seed,
        "solve_ms": 1e3 * solve_s,
        "round_ms": 1e3 * round_s,
        "cvxpy_ms": None if expected is None else 1e3 * cvxpy_s,
        "clarabel_ms": None if expected is None else 1e3 * cvxpy.clarabel_s,
        "objective_gap": None if expected is None else abs(delay_s / expected - 1),
        "certified_gap": _certified_gap(cell, delay_s),
        "priced_objective_gap": _priced_gap(cvxpy, cell, seed) if len(cell) <= MAX_PRICED_SIZE else None,
    }


def _certified_gap(cell: Uplinks, delay_s: float) -> float:
    """The least power of ten by which a shorter delay, relative to ours, would need more than the band.

    A bound on our error that asks no other solver; 1 where none is found.
    """
    gaps = (10.0**-digits for digits in range(15, 0, -1))
    return next((g for g in gaps if needed_shares(cell, delay_s * (1 - g)).sum() > 1), 1.0)


def _whole_round(cell: Uplinks) -> Any:
    ones = np.ones(len(cell))
    return choose_devices(cell, ones, learning_price=LEARNING_PRICE, delay_price=DELAY_PRICE)


def _priced_gap(cvxpy: "ConvexProblem", cell: Uplinks, seed: int) -> float | None:
    prices = np.random.default_rng(seed).exponential(size=len(cell)) / len(cell)
    everyone = np.ones((1, len(cell)), dtype=bool)
    ours = allocate_priced(cell, everyone, delay_price=DELAY_PRICE, upload_prices=prices)
    expected = cvxpy.solve(cell, prices)
    return None if expected is None else abs(float(ours.cost[0]) / expected - 1)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def _median_time(call: Callable[[], Any]) -> tuple[float, Any]:
    times = [_timed(call) for _ in range(REPEATS)]
    return statistics.median(seconds for seconds, _ in times), times[0][1]


class ConvexProblem:
    """Both problems as CVXPY has them, for one number of devices; the oracle of the tests too."""

    def __init__(self, num_devices: int) -> None:
        try:
            import clarabel  # noqa: F401  # CVXPY's import does not need it, its use here does
            import cvxpy as cp
        except ImportError as error:
            raise SpecError("the comparison needs CVXPY and Clarabel; pip install 'airlam[bench]'") from error
        self._cvxpy, self._size = cp, num_devices
        share, upload = cp.Variable(num_devices), cp.Variable(num_devices, pos=True)
        delay = cp.Variable()
        self._fixed = cp.Parameter(num_devices, nonneg=True)
        self._work, self._snr = (cp.Parameter(num_devices, nonneg=True) for _ in range(2))
        self._prices = cp.Parameter(num_devices, nonneg=True)
        rate = -cp.rel_entr(share, share + self._snr)  # b ln(1 + s / b)
        constraints = [
            cp.sum(share) <= num_devices,  # shares in units of 1 / K
            self._fixed + upload <= delay,
            cp.multiply(self._work, cp.inv_pos(upload)) <= rate,
        ]
        self._problem = cp.Problem(cp.Minimize(delay + self._prices @ upload), constraints)

    def solve(self, cell: Uplinks, upload_prices: Array | None = None) -> float | None:
        """The optimum: least delay in seconds, or tau + sum_k a_k y_k with prices (Q = 1).

        None where Clarabel gives up or does not reach its tolerances.
        """
        unit_s = equal_share_delay(cell)[0]
        self._fixed.value = cell.fixed_delay_s / unit_s
        self._snr.value = cell.full_band_snr * self._size
        self._work.value = cell.wideband_upload_s * cell.full_band_snr * self._size / unit_s
        self._prices.value = np.zeros(self._size) if upload_prices is None else upload_prices
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of inaccurate solutions, which are left out
            try:
                self._problem.solve(solver=self._cvxpy.CLARABEL)
            except self._cvxpy.error.SolverError:
                return None
        solved = self._problem.status == self._cvxpy.OPTIMAL
        return float(self._problem.value) * unit_s if solved else None

    @property
    def clarabel_s(self) -> float:
        """Seconds of the last solve without CVXPY's part."""
        return float(self._problem.solver_stats.solve_time)
