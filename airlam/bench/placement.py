"""Placement of services on drawn networks: heuristics and diffusion against the optimum, ours against rules.

On each drawn problem the mixed-integer program gives the optimum (where proven within its time), the search
and the diffusion model their placements; then all methods serve the same requests in the simulator, under
steady conditions and under harsh ones (``placement_serving``). A second part repeats this in the two-tier
setting of 2601.19563 (``placement_tiers``). Draws that give no row are told with their reason.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from airlam.bench.placement_figures import (
    large_figures,
    method_rows,
    ratio_figures,
    served_figures,
    tier_figures,
)
from airlam.bench.placement_learning import DRAWING, TrainingScale, placer
from airlam.bench.placement_routing import RoutingScale, routing
from airlam.bench.placement_runtime import RuntimeScale, calibration
from airlam.bench.placement_serving import DEADLINE, serve, with_deadlines
from airlam.bench.placement_tiers import access_bound, draw_tiers, run_strategies
from airlam.errors import SpecError
from airlam.model.placement_diffusion import PlacementDiffusion
from airlam.serving.learned_placement import best_repaired, propose
from airlam.serving.router_training import RouterTraining
from airlam.specs import ModelSpec
from airlam.split.placement.drawing import Drawing
from airlam.split.placement.exact import Formulation, Solution
from airlam.split.placement.search import Search, spread, starts
from airlam.split.placement.services import Placement
from airlam.split.placement.solve import NUM_KICKS, InfeasiblePlacement, place
from airlam.split.placement.tables import Ints, Tables
from airlam.split.placement.tiers import NoRoom
from airlam.tasks.channel_prediction import Progress

_GAP = 1e-4  # within which a placement is called optimal
_LARGE = Drawing(num_servers=(12, 12), num_tasks=(6, 6), num_classes=(16, 16))
_LARGE_S = 60.0
_DRAWS = 10  # at most, for each row that is wanted
Row = dict[str, Any]


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
    routing: RoutingScale
    runtime: RuntimeScale


FULL = Scale(
    instances=100,
    exact_s=10.0,
    requests=500,
    training=TrainingScale(num_examples=1500, num_steps=10_000),
    large=3,
    tier_draws=((1.0, 100), (6.0, 12)),
    tier_slots=15,
    routing=RoutingScale(
        num_training=16,
        num_test=60,
        num_requests=400,
        training=RouterTraining(num_generations=16, num_requests=200),
    ),
    runtime=RuntimeScale(
        model=ModelSpec(backbone="airlam"), loads=(0.3, 0.6, 0.8), duration_s=20.0, runs=3, num_links=16
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
    routing=RoutingScale(
        num_training=1,
        num_test=2,
        num_requests=20,
        training=RouterTraining(num_generations=1, num_requests=20, num_pairs=1),
    ),
    runtime=RuntimeScale(
        model=ModelSpec(num_layers=1, num_paths=4), loads=(0.5,), duration_s=0.3, runs=2, num_links=2
    ),
)


def run(quick: bool, on_progress: Progress) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine.

    ``instances``: problems of which some method found a placement; ``infeasible``: drawn beside them and
    proven to have none; ``undecided``: nothing was found, nothing proven. ``heuristic_feasible``,
    ``diffusion_feasible``: shares of the instances that the search, the model placed. ``proven``: of the
    instances, with a proven optimum; over these ``heuristic_over_exact``, ``diffusion_over_exact`` are mean
    ratios of objectives, ``.worst`` the largest; ``random_over_exact``: of random samples repaired as those
    of the diffusion model are. ``large.heuristic_over_bound``: on ``large.draws`` problems beyond the
    program. ``.skipped``: draws in which no placement was found, or a strategy found no room.
    ``simulated.<method>.on_time_rate``: of the instances under steady conditions,
    ``..._bursts_failures`` with bursts, fading and moving access links, and servers that fail. ``router.*``:
    of trained and other routers, see ``placement_routing``.
    ``runtime.mean_error``, ``.p95_error``: of the simulator's latencies against the embedded runtime's on
    this machine, the largest of all loads; ``runtime.others_cpu_share``: of the machine's processors, what
    other processes had meanwhile. ``on_time_rate`` and ``on_time_rate_best_baseline``: of the two-tier
    setting, with what the access links alone would allow (``on_time_rate_access_bound``), light services
    sized by mean delays (``on_time_rate_by_mean``), and what light instances cost a slot (``cost``).
    """
    scale = QUICK if quick else FULL
    model, training_cpu_s = placer(scale.training, on_progress)
    of_instance = functools.partial(_instance_row, model, scale)
    drawn = _drawn("instance", scale.instances, on_progress, of_instance)
    large = _drawn("large", scale.large, on_progress, _large_row)
    tiers = [
        row
        for load, count in scale.tier_draws
        for row in _drawn("tiers", count, on_progress, functools.partial(_tier_row, load, scale.tier_slots))
    ]
    routed, router_figures = routing(scale.routing, on_progress)
    runtime, errors = calibration(scale.runtime, on_progress)
    figures = {**ratio_figures(drawn), **served_figures(drawn), **large_figures(large), **tier_figures(tiers)}
    settings = {
        "scale": dataclasses.asdict(scale),
        "drawing": dataclasses.asdict(DRAWING),
        "deadline": DEADLINE,
    }
    return {
        "settings": settings,
        "figures": {**figures, **router_figures, **errors, "diffusion.training_cpu_s": training_cpu_s},
        "rows": [*drawn, *large, *tiers, *routed, *runtime, *method_rows(drawn, tiers)],
    }


def _drawn(kind: str, wanted: int, on_progress: Progress, row_of: Callable[[int], Row]) -> list[Row]:
    """Rows by seed until as many as wanted are of the kind, those of other kinds beside them.

    Fewer where most draws have no room; SpecError where none has.
    """
    rows: list[Row] = []
    count = 0
    for seed in range(_DRAWS * wanted):
        if count == wanted:
            break
        on_progress(f"placement, {kind}", count, wanted, f"seed {seed}")
        rows.append(row_of(seed))
        count += rows[-1]["kind"] == kind
    if rows and not count:
        raise SpecError(
            f"none of {len(rows)} draws for {kind} has room for what is compared; draw with more room"
        )
    return rows


def _instance_row(model: PlacementDiffusion, scale: Scale, seed: int) -> Row:
    """Values of the objective by method and their times, and how the placement serves.

    Of kind ``infeasible`` where the program proves that there is no placement, ``undecided`` where no method
    has one.
    """
    problem = with_deadlines(DRAWING.draw(np.random.default_rng(seed)))
    tables = Tables(problem)
    began_s = time.perf_counter()
    exact = Formulation(tables).solve(time_limit_s=scale.exact_s, gap=_GAP)
    solved_s = time.perf_counter()
    if exact.status == "infeasible":
        return {"kind": "infeasible", "seed": seed}
    rng = np.random.default_rng((seed, 1))
    search = Search(tables, rng, time_limit_s=scale.exact_s)
    (excess, _), at = search.best_from(starts(tables, rng), NUM_KICKS)
    searched_s = time.perf_counter()
    sampled = propose(model, tables, seed=seed)
    sampled_s = time.perf_counter()
    guessed = best_repaired(tables, np.stack([spread(tables, rng) for _ in range(32)]), seed=seed)
    found = {"heuristic": at if excess == 0 else None, "diffusion": sampled, "random": guessed}
    planned = _planned(tables, exact, [one for one in found.values() if one is not None])
    if planned is None:
        return {"kind": "undecided", "seed": seed}
    return {
        "kind": "instance",
        "seed": seed,
        "calls": len(tables.calls),
        "nodes": len(tables.nodes),
        "is_proven": exact.status == "optimal",
        "exact_s": _finite(exact.value_s),
        "bound_s": _finite(exact.bound_s),
        **{f"{name}_s": None if one is None else search.score(one)[1] for name, one in found.items()},
        "solving_s": {
            "exact": solved_s - began_s,
            "heuristic": searched_s - solved_s,
            "diffusion": sampled_s - searched_s,
        },
        **serve(problem, planned, scale.requests, seed),
    }


def _planned(tables: Tables, exact: Solution, found: list[Ints]) -> Placement | None:
    """The first placement that was found, the program's where no other has one."""
    for at in found:
        held = tables.hosts(at)
        if held is not None:
            return tables.placement(at, held)
    if exact.at is None or exact.held is None:
        return None
    return tables.placement(exact.at, exact.held)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _large_row(seed: int) -> Row:
    """A problem beyond the program: the search against the bound of its relaxation."""
    problem = _LARGE.draw(np.random.default_rng((seed, 3)))
    try:
        found = place(problem, method="search", seed=seed, time_limit_s=_LARGE_S)
    except InfeasiblePlacement as error:
        return {"kind": "skipped", "setting": "large", "seed": seed, "reason": str(error)}
    over = _finite(1 + found.gap)
    return {"kind": "large", "seed": seed, "value_s": found.value_s, "over_bound": over}


def _tier_row(load: float, num_slots: int, seed: int) -> Row:
    """A draw of the two-tier setting; of kind ``skipped`` where a strategy finds no room."""
    problem = draw_tiers(seed, load)
    about = {"load": load, "seed": seed}
    try:
        found = run_strategies(problem, num_slots, seed)
    except NoRoom as error:
        return {"kind": "skipped", "setting": "tiers", **about, "reason": str(error)}
    return {
        "kind": "tiers",
        **about,
        "access_bound": access_bound(problem),
        "on_time_rate": {name: one.on_time_rate for name, one in found.items()},
        "latency_ms": {name: 1e3 * float(one.latency_s.mean()) for name, one in found.items()},
        "cost": {name: one.cost for name, one in found.items()},
    }
