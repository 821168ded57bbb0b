"""Placements: proven optimal where a program of that size can be solved, else searched for, with a bound."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from airlam.errors import SpecError
from airlam.split.cost import cost
from airlam.split.ledger import Cost
from airlam.split.placement.exact import Formulation, Limit, Solution
from airlam.split.placement.search import Search, starts
from airlam.split.placement.services import Placement, ServiceProblem
from airlam.split.placement.tables import Bools, Ints, Tables

NUM_KICKS = 20
_MAX_EXACT_COLUMNS = 400  # of the program, up to which it is the first thing tried
_MAX_COLUMNS = 40_000  # of the relaxation; beyond, no bound is given
_RELAXED_S = 30.0
Method = Literal["auto", "exact", "search"]


class InfeasiblePlacement(SpecError):
    """No placement is within all limits. excess: by how much each limit in the way is exceeded, relative."""

    def __init__(self, message: str, excess: dict[tuple[Limit, str], float]) -> None:
        super().__init__(message)
        self.excess = excess


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A placement, what it is worth, and how good it is known to be.

    value_s: of the objective. bound_s: no placement has a lower value; minus infinity where nothing is known.
    latency_s: mean of each class. node_load: by node. link_load: by (sender, receiver) of links in use.
    """

    placement: Placement
    value_s: float
    bound_s: float
    latency_s: Mapping[str, float]
    node_load: Mapping[str, float]
    link_load: Mapping[tuple[str, str], float]
    method: Literal["exact", "search"]

    @property
    def gap(self) -> float:
        """Relative distance from the bound: 0 where proven optimal."""
        return max(self.value_s / self.bound_s - 1, 0.0) if self.bound_s > 0 else math.inf


def place(
    problem: ServiceProblem,
    *,
    method: Method = "auto",
    time_limit_s: float = 20.0,
    seed: int = 0,
    with_bound: bool = True,
) -> Placed:
    """The placement with the lowest objective that is found in time, see ``ServiceProblem``.

    method: ``exact`` solves the mixed-integer program, ``search`` searches and bounds by its relaxation
    (``with_bound`` false: not at all), ``auto`` takes exact for small programs. Raises InfeasiblePlacement
    where none is within the limits, naming those in the way.
    """
    tables = Tables(problem)
    formulation = Formulation(tables)
    exact = method == "exact" or (method == "auto" and formulation.num_columns <= _MAX_EXACT_COLUMNS)
    if exact:
        found = formulation.solve(time_limit_s=time_limit_s)
        if found.status == "infeasible":
            raise infeasible(tables)
        if found.at is not None and found.held is not None:
            return _closed(tables, found.at, found.held, found.bound_s, "exact")
    return _searched(tables, formulation if with_bound else None, time_limit_s, seed)


def _searched(tables: Tables, formulation: Formulation | None, time_limit_s: float, seed: int) -> Placed:
    rng = np.random.default_rng(seed)
    search = Search(tables, rng, time_limit_s=time_limit_s)
    (excess, _), at = search.best_from(starts(tables, rng), NUM_KICKS)
    held = tables.hosts(at) if excess == 0 else None
    bound: Solution | None = None
    if formulation is not None and formulation.num_columns <= _MAX_COLUMNS:
        bound = formulation.solve(relaxed=True, time_limit_s=_RELAXED_S)
    if held is None or (bound is not None and bound.status == "infeasible"):
        raise infeasible(tables)
    return _closed(tables, at, held, -math.inf if bound is None else bound.bound_s, "search")


def _closed(
    tables: Tables, at: Ints, held: Bools, bound_s: float, method: Literal["exact", "search"]
) -> Placed:
    priced = tables.price(at[None])
    names = [one.name for one in tables.problem.classes]
    links = [(hop.source, hop.target) for hop in tables.hops]
    return Placed(
        placement=tables.placement(at, held),
        value_s=float(priced.value_s[0]),
        bound_s=min(bound_s, float(priced.value_s[0])),
        latency_s=dict(zip(names, priced.latency_s[0].tolist(), strict=True)),
        node_load=dict(zip(tables.nodes, priced.node_load[0].tolist(), strict=True)),
        link_load={
            link: load for link, load in zip(links, priced.link_load[0].tolist(), strict=True) if load
        },
        method=method,
    )


def unloaded_cost(problem: ServiceProblem, placement: Placement, class_name: str) -> Cost:
    """One request of a class on an idle network: latency, energy and bytes, as ``cost`` has them."""
    one = problem.by_name[class_name]
    graph, plan = problem.class_graph(one), placement.plan_of(one)
    return cost(graph, problem.network, plan, problem.shares, "inference")


def infeasible(tables: Tables) -> InfeasiblePlacement:
    """Why no placement is within the limits: the placement whose relative excesses add up to least."""
    excess = Formulation(tables, elastic=True).solve(time_limit_s=_RELAXED_S).excess
    if not excess:
        return InfeasiblePlacement(
            "the search found no placement within all limits, and none of them is known to be in the way; "
            "give it more time, or take method 'exact'",
            {},
        )
    parts = [
        f"{_named(limit, name)} by {100 * over:.3g} %"
        for (limit, name), over in sorted(excess.items(), key=lambda row: -row[1])
    ]
    return InfeasiblePlacement(
        f"no placement is within all limits; the nearest exceeds {' and '.join(parts)}; raise what is named, "
        f"or ask for fewer replicas than {tables.problem.min_replicas} or fewer requests",
        excess,
    )


def _named(limit: Limit, name: str) -> str:
    if limit in ("compute", "link"):
        return f"the load allowed on {name}"
    return f"the {limit} of {name}"
