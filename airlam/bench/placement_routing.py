"""A router trained against an adversary, one trained without, and untrained ones: on time, and at worst.

All have the same placements, those of the search with every replica that fits, on networks that none was
trained on. The worst is over who asks more (``router_training.surges``), found for each router by itself.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from airlam.bench.kept import as_dict, digest
from airlam.bench.placement_learning import DRAWING
from airlam.bench.placement_serving import with_deadlines
from airlam.bench.trained import cache_folder
from airlam.files import write_json
from airlam.radio.metrics import mean_interval
from airlam.serving.router_training import (
    MakeRouter,
    RouterTraining,
    Served,
    routed_by,
    train_router,
    worst_arrivals,
)
from airlam.serving.simulator import steady
from airlam.split.placement.replication import replicated
from airlam.split.placement.routing import (
    LeastLoadedRouter,
    NearestRouter,
    QueueWeights,
    RoundRobinRouter,
    ShortestDelayRouter,
)
from airlam.split.placement.search import Search, greedy
from airlam.split.placement.tables import Tables
from airlam.tasks.channel_prediction import Progress

ROBUST, NOMINAL, FAIR = "robust", "trained", "shortest_delay"
_TRAINING_SEED, _TEST_SEED = 2_000_001, 3_000_001  # of drawn problems; the benchmark's others begin at 0
_NUM_KICKS, _SEARCH_S = 5, 2.0
_VERSION = 1  # of what decides the weights beside the numbers below


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingScale:
    """Networks to learn from and to be tested on, requests of a test, and how training goes."""

    num_training: int
    num_test: int
    num_requests: int
    training: RouterTraining


def routing(scale: RoutingScale, on_progress: Progress) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows by network, and figures.

    ``router.<name>.on_time_rate`` and ``.worst_on_time_rate``; of the robust one less each of the two others
    that expect delays ``router.robust_minus_<name>`` and ``.worst``, with ``.low`` and ``.high``.
    """
    robust, nominal = (trained(scale, budget, on_progress) for budget in (scale.training.budget, 0.0))
    routers: dict[str, MakeRouter] = {
        ROBUST: routed_by(robust),
        NOMINAL: routed_by(nominal),
        FAIR: ShortestDelayRouter,
        "least_loaded": LeastLoadedRouter,
        "round_robin": RoundRobinRouter,
        "nearest": NearestRouter,
    }
    rows = []
    for number, (seed, served) in enumerate(drawn(_TEST_SEED, scale.num_test)):
        on_progress("routers", number, scale.num_test, f"seed {seed}")
        scenario = steady(served.tables, scale.num_requests, seed)
        found = {
            name: {
                "on_time_rate": served.answered(router, scenario).on_time_rate,
                "worst": worst_arrivals(served, router, scenario, scale.training.budget)[1],
            }
            for name, router in routers.items()
        }
        rows.append({"kind": "router", "seed": seed, "nodes": len(served.tables.nodes), **found})
    return rows, {**_figures(rows, list(routers)), **_weight_figures(robust)}


def trained(scale: RoutingScale, budget: float, on_progress: Progress) -> QueueWeights:
    """The weights that were trained with the adversary's budget, or are now; the cache keeps them."""
    training = asdict(scale.training) | {"budget": budget}
    key = digest(_VERSION, _TRAINING_SEED, repr(DRAWING), scale.num_training, training)
    path = cache_folder() / "placement" / f"router-{key}.json"
    if path.exists():
        return QueueWeights(**json.loads(path.read_text()))
    networks = [served for _, served in drawn(_TRAINING_SEED, scale.num_training)]
    what = "router against an adversary" if budget else "router"
    found = train_router(
        networks,
        RouterTraining(**training),
        lambda done, count, on_time: on_progress(what, done, count, f"on time {on_time:.3f}"),
    )
    write_json(path, asdict(found))
    return found


def drawn(first_seed: int, count: int) -> Iterator[tuple[int, Served]]:
    """So many drawn networks of which the search has a placement, with their seeds."""
    found, seed = 0, first_seed
    while found < count:
        tables = Tables(with_deadlines(DRAWING.draw(np.random.default_rng(seed))))
        search = Search(tables, np.random.default_rng((seed, 1)), time_limit_s=_SEARCH_S)
        (excess, _), at = search.best_from([greedy(tables)], _NUM_KICKS)
        held = tables.hosts(at) if excess == 0 else None
        if held is not None:
            found += 1
            yield seed, Served(tables=tables, placement=replicated(tables, tables.placement(at, held)))
        seed += 1


def _figures(rows: list[dict[str, Any]], names: list[str]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for metric, suffix in (("on_time_rate", ""), ("worst", ".worst")):
        rates = {name: torch.tensor([row[name][metric] for row in rows]).double() for name in names}
        key = "on_time_rate" if metric == "on_time_rate" else "worst_on_time_rate"
        figures |= {f"router.{name}.{key}": float(own.mean()) for name, own in rates.items()}
        for other in (FAIR, NOMINAL):
            gain = as_dict(mean_interval(rates[ROBUST] - rates[other]))
            named = f"router.{ROBUST}_minus_{other}{suffix}"
            figures |= {named: gain["value"], f"{named}.low": gain["low"], f"{named}.high": gain["high"]}
    return figures


def _weight_figures(weights: QueueWeights) -> dict[str, float]:
    return {f"router.weights.{name}": value for name, value in asdict(weights).items()}
