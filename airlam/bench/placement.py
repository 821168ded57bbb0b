"""Placement of services on drawn networks: heuristics and diffusion against the optimum, ours against rules.

On each drawn problem the mixed-integer program gives the optimum (where proven within its time), the search
and the diffusion model their placements; then all methods serve the same requests in the simulator. A second
part repeats this in the two-tier setting of 2601.19563 (``placement_tiers``).
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from airlam.bench.placement_learning import DRAWING, TrainingScale, placer
from airlam.bench.placement_runtime import RuntimeScale, calibration
from airlam.bench.placement_tiers import access_bound, draw_tiers, run_strategies
from airlam.errors import SpecError
from airlam.model.placement_diffusion import PlacementDiffusion
from airlam.serving.learned_placement import best_repaired, propose
from airlam.serving.simulator import Scenario, best_simulated, simulate
from airlam.specs import ModelSpec
from airlam.split.placement.baselines import baselines
from airlam.split.placement.drawing import Drawing
from airlam.split.placement.exact import Formulation
from airlam.split.placement.replication import replicated
from airlam.split.placement.routing import PlannedRouter, Router, ShortestDelayRouter, Sight
from airlam.split.placement.search import Search, greedy, spread, starts
from airlam.split.placement.services import Placement, ServiceProblem
from airlam.split.placement.solve import NUM_KICKS, InfeasiblePlacement, place
from airlam.split.placement.tables import Ints, Tables

OURS = "ours"
_DEADLINE = 3.0  # times what a class takes where it is alone
_GAP = 1e-4  # within which a placement is called optimal
_LARGE = Drawing(num_servers=(12, 12), num_tasks=(6, 6), num_classes=(16, 16))
Progress = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured."""

    instances: int
    exact_s: float
    requests: int
    training: TrainingScale
    large: int
    tier_draws: tuple[tuple[float, int], ...]  # load, how many draws of it
    tier_slots: int
    runtime: RuntimeScale


FULL = Scale(
    instances=100,
    exact_s=10.0,
    requests=1000,
    training=TrainingScale(num_examples=1500, num_steps=10_000),
    large=3,
    tier_draws=((1.0, 30), (6.0, 6)),
    tier_slots=15,
    runtime=RuntimeScale(
        model=ModelSpec(backbone="airlam"), loads=(0.3, 0.6, 0.8), duration_s=20.0, repeats=10, num_links=16
    ),
)
QUICK = Scale(
    instances=2,
    exact_s=1.0,
    requests=100,
    training=TrainingScale(num_examples=4, num_steps=20),
    large=0,
    tier_draws=((1.0, 1),),
    tier_slots=2,
    runtime=RuntimeScale(
        model=ModelSpec(num_layers=1, num_paths=4), loads=(0.5,), duration_s=0.3, repeats=1, num_links=2
    ),
)


def run(quick: bool, on_progress: Progress) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine.

    ``heuristic_over_exact``, ``diffusion_over_exact``: mean ratios of objectives over the problems whose
    optimum is proven, ``.worst`` the largest; ``random_over_exact``: of random samples repaired as those of
    the diffusion model are. ``diffusion_feasible``: share of problems that have a placement.
    ``large.heuristic_over_bound``: on problems beyond the program. ``simulated.<method>``: on-time rates of
    the drawn problems. ``runtime.mean_error``, ``.p95_error``: of the simulator's latencies against the
    embedded runtime's on this machine, the largest of all loads. ``on_time_rate`` and
    ``on_time_rate_best_baseline``: of the two-tier setting, with what the access links alone would allow
    (``on_time_rate_access_bound``) and light services sized by mean delays (``on_time_rate_by_mean``).
    """
    scale = QUICK if quick else FULL
    model, training_s = placer(scale.training, on_progress)
    rows = _instances(scale, model, on_progress)
    large = [_large_row(seed) for seed in range(scale.large)]
    tiers = _tier_rows(scale, on_progress)
    runtime, errors = calibration(scale.runtime, on_progress)
    figures = {**_ratio_figures(rows), **_served_figures(rows), **_tier_figures(tiers), **errors}
    figures["diffusion.training_s"] = training_s
    if large:
        figures["large.heuristic_over_bound"] = statistics.mean(row["over_bound"] for row in large)
    settings = {
        "scale": dataclasses.asdict(scale),
        "drawing": dataclasses.asdict(DRAWING),
        "deadline": _DEADLINE,
    }
    return {
        "settings": settings,
        "figures": figures,
        "rows": [*rows, *large, *tiers, *runtime, *_table(rows, tiers)],
    }


def _instances(scale: Scale, model: PlacementDiffusion, on_progress: Progress) -> list[dict[str, Any]]:
    """A row for each of the first problems drawn that have a placement."""
    rows: list[dict[str, Any]] = []
    seed = 0
    while len(rows) < scale.instances:
        on_progress("placements", len(rows), scale.instances, f"seed {seed}")
        problem = with_deadlines(DRAWING.draw(np.random.default_rng(seed)))
        tables = Tables(problem)
        row = _compared(tables, model, scale, seed)
        if row is not None:
            planned = row.pop("planned")
            rows.append({**row, **_served(tables, planned, scale, seed)})
        seed += 1
    return rows


def with_deadlines(problem: ServiceProblem) -> ServiceProblem:
    """Each class due within ``_DEADLINE`` times what it takes where it is alone."""
    classes = []
    for one in problem.classes:
        idle = dataclasses.replace(one, arrival_per_s=one.arrival_per_s * 1e-6)
        tables = Tables(dataclasses.replace(problem, classes=(idle,), min_replicas=1))
        search = Search(tables, np.random.default_rng(0))
        (_, value_s), _ = search.best_from([greedy(tables)], 0)
        classes.append(dataclasses.replace(one, deadline_s=_DEADLINE * value_s))
    return dataclasses.replace(problem, classes=tuple(classes))


def _compared(tables: Tables, model: PlacementDiffusion, scale: Scale, seed: int) -> dict[str, Any] | None:
    """Values of the objective by method and their times; None where nothing has room."""
    began_s = time.perf_counter()
    exact = Formulation(tables).solve(time_limit_s=scale.exact_s, gap=_GAP)
    exact_s = time.perf_counter() - began_s
    if exact.status == "infeasible":
        return None
    rng = np.random.default_rng((seed, 1))
    search = Search(tables, rng, time_limit_s=scale.exact_s)
    (excess, value_s), at = search.best_from(starts(tables, rng), NUM_KICKS)
    found_s = time.perf_counter() - began_s - exact_s
    if excess > 0:
        if exact.at is None or exact.held is None:
            return None
        return {**_no_room(seed, exact.value_s), "planned": tables.placement(exact.at, exact.held)}
    held = tables.hosts(at)
    assert held is not None  # else there would be excess
    sampled = propose(model, tables, seed=seed)
    sampled_s = time.perf_counter() - began_s - exact_s - found_s
    guessed = best_repaired(tables, np.stack([spread(tables, rng) for _ in range(32)]), seed=seed)
    return {
        "kind": "instance",
        "seed": seed,
        "calls": len(tables.calls),
        "nodes": len(tables.nodes),
        "is_proven": exact.status == "optimal",
        "exact_s": _finite(exact.value_s),
        "bound_s": _finite(exact.bound_s),
        "heuristic_s": value_s,
        "diffusion_s": _value_s(search, sampled),
        "random_s": _value_s(search, guessed),
        "solving_s": {"exact": exact_s, "heuristic": found_s, "diffusion": sampled_s},
        "planned": tables.placement(at, held),
    }


def _no_room(seed: int, exact_s: float) -> dict[str, Any]:
    """A problem that the program placed and the search did not."""
    missing = dict.fromkeys(("heuristic_s", "diffusion_s", "random_s"))
    return {"kind": "instance", "seed": seed, "is_proven": True, "exact_s": exact_s, **missing}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _value_s(search: Search, at: Ints | None) -> float | None:
    return None if at is None else search.score(at)[1]


def _served(tables: Tables, planned: Placement, scale: Scale, seed: int) -> dict[str, Any]:
    """Mean latency and on-time rate of every method on the same requests.

    Ours is the better of two placements in a pilot simulation of other requests: the planned one, and the
    greedy baseline's. Beside it and the baselines, each with all the replicas that fit, stand the planned
    routes without queues in sight, and our router on either placement.
    """
    total = float(tables.rate.sum())
    scenario = Scenario(
        duration_s=1.1 * scale.requests / total, warm_up_s=0.1 * scale.requests / total, seed=seed
    )
    rng = np.random.default_rng((seed, 2))
    rules = baselines(tables, rng, fill=True)
    pilot = dataclasses.replace(scenario, seed=seed + 10**6)
    placement = best_simulated(
        tables, (replicated(tables, planned), rules["greedy"][0]), ShortestDelayRouter, pilot
    )
    makers: dict[str, Callable[[Tables, Sight], Router]] = {
        OURS: lambda t, sight: ShortestDelayRouter(t, placement),
        "ours_planned_routes": lambda t, sight: PlannedRouter(t, planned),
        "planned_our_router": lambda t, sight: ShortestDelayRouter(t, replicated(tables, planned)),
        "greedy_our_router": lambda t, sight: ShortestDelayRouter(t, rules["greedy"][0]),
        **{name: _always(router) for name, (_, router) in rules.items()},
    }
    found = {name: simulate(tables, make, scenario) for name, make in makers.items()}
    return {
        "latency_ms": {name: 1e3 * float(one.latency_s.mean()) for name, one in found.items()},
        "on_time_rate": {name: one.on_time_rate for name, one in found.items()},
    }


def _always(router: Router) -> Callable[[Tables, Sight], Router]:
    return lambda tables, sight: router


def _large_row(seed: int) -> dict[str, Any]:
    """A problem beyond the program: the search against the bound of its relaxation."""
    for number in range(seed * 100, seed * 100 + 100):
        problem = _LARGE.draw(np.random.default_rng((number, 3)))
        try:
            found = place(problem, method="search", seed=seed, time_limit_s=10.0)
        except InfeasiblePlacement:
            continue
        return {"kind": "large", "seed": number, "value_s": found.value_s, "over_bound": 1 + found.gap}
    raise SpecError("no large problem that was drawn has a placement; draw with more room")


def _tier_rows(scale: Scale, on_progress: Progress) -> list[dict[str, Any]]:
    """A row for each draw of the two-tier setting in which every strategy finds room."""
    rows: list[dict[str, Any]] = []
    for load, count in scale.tier_draws:
        seed, end = 0, len(rows) + count
        while len(rows) < end:
            on_progress("two tiers", count - end + len(rows), count, f"load {load:g}, seed {seed}")
            try:
                rows.append(_tier_row(load, scale.tier_slots, seed))
            except SpecError:  # no room for one of the strategies
                pass
            seed += 1
    return rows


def _tier_row(load: float, num_slots: int, seed: int) -> dict[str, Any]:
    problem = draw_tiers(seed, load)
    found = run_strategies(problem, num_slots, seed)
    return {
        "kind": "tiers",
        "load": load,
        "seed": seed,
        "access_bound": access_bound(problem, seed),
        "on_time_rate": {name: one.on_time_rate for name, one in found.items()},
        "latency_ms": {name: 1e3 * float(one.latency_s.mean()) for name, one in found.items()},
        "cost": {name: one.cost for name, one in found.items()},
    }


def _ratio_figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    proven = [row for row in rows if row["is_proven"]]
    figures = {"instances": float(len(rows)), "proven": float(len(proven))}
    for method in ("heuristic", "diffusion", "random"):
        ratios = [row[f"{method}_s"] / row["exact_s"] for row in proven if row[f"{method}_s"] is not None]
        if ratios:
            figures[f"{method}_over_exact"] = statistics.mean(ratios)
            figures[f"{method}_over_exact.worst"] = max(ratios)
    feasible = [row["diffusion_s"] is not None for row in rows]
    return {**figures, "diffusion_feasible": statistics.mean(feasible)}


def _served_figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    means = {
        name: statistics.mean(row["on_time_rate"][name] for row in rows) for name in rows[0]["on_time_rate"]
    }
    return {f"simulated.{name}.on_time_rate": value for name, value in means.items()}


def _tier_figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """At the loads of their table without a suffix; ``.load6``: six times as many requests."""
    figures = {}
    for load in sorted({row["load"] for row in rows}):
        part = [row for row in rows if row["load"] == load]
        names = part[0]["on_time_rate"]
        means = {name: statistics.mean(row["on_time_rate"][name] for row in part) for name in names}
        suffix = "" if load == 1 else f".load{load:g}"
        figures[f"on_time_rate{suffix}"] = means[OURS]
        figures[f"on_time_rate_best_baseline{suffix}"] = max(
            value for name, value in means.items() if not name.startswith(OURS)
        )
        figures[f"on_time_rate_by_mean{suffix}"] = means["ours_by_mean"]
        figures[f"on_time_rate_access_bound{suffix}"] = statistics.mean(row["access_bound"] for row in part)
    return figures


def _table(rows: Sequence[dict[str, Any]], tiers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each method's mean on-time rate and median latency over the problems, with 95 % intervals."""
    found = []
    parts = {"drawn": rows}
    for load in sorted({row["load"] for row in tiers}):
        parts[f"two_tiers.load{load:g}"] = [row for row in tiers if row["load"] == load]
    for setting, part in parts.items():
        for name in part[0]["on_time_rate"]:
            on_time = np.array([row["on_time_rate"][name] for row in part])
            latency = np.array([row["latency_ms"][name] for row in part])
            found.append(
                {
                    "kind": "method",
                    "setting": setting,
                    "method": name,
                    "on_time_rate": _interval(on_time, np.mean),
                    "median_latency_ms": _interval(latency, np.median),
                }
            )
    return found


def _interval(values: np.ndarray, statistic: Callable[..., Any]) -> dict[str, float]:
    """A statistic over problems and its percentile interval over 1000 resamples."""
    drawn = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    low, high = np.quantile(statistic(values[drawn], axis=1), (0.025, 0.975))
    return {"value": float(statistic(values)), "low": float(low), "high": float(high)}
