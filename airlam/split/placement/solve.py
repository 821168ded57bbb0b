"""Placements: proven optimal where a program of that size can be solved, else searched for, with a bound."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from airlam.errors import SpecError
from airlam.split.placement.exact import Formulation, Limit, Solution
from airlam.split.placement.search import Search, starts
from airlam.split.placement.services import Placement, ServiceProblem
from airlam.split.placement.tables import Bools, Ints, Tables

NUM_KICKS = 20
_MAX_EXACT_COLUMNS = 400  # of the program, up to which it is the first thing tried
_MAX_COLUMNS = 40_000  # of the relaxation; beyond, no bound is given
_PROGRAM_SHARE = 0.4  # of the time, at most, for the program or its relaxation where a search is to follow
_SEARCH_SHARE = 0.9  # of what is left then; the rest is for saying why there is no placement
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
    method: by which it was found.
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
        """Relative distance from the bound: 0 where proven optimal, infinite where no bound is known."""
        if self.value_s <= self.bound_s:
            return 0.0
        return self.value_s / self.bound_s - 1 if self.bound_s > 0 else math.inf


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
    (``with_bound`` false: not at all), ``auto`` takes exact for small programs, and searches too where these
    are not solved in a part of the time. time_limit_s: of all of it; only writing the program down is not
    stopped. Raises InfeasiblePlacement where no placement within the limits is found, naming those in the
    way, and SpecError where ``exact`` finds none in time.
    """
    stop_s, tables = time.monotonic() + time_limit_s, Tables(problem)
    if method == "search" and not with_bound:
        return _searched(tables, None, stop_s, seed)
    program = Formulation(tables)
    whole = method == "exact" or (method == "auto" and program.num_columns <= _MAX_EXACT_COLUMNS)
    if not whole and (program.num_columns > _MAX_COLUMNS or not with_bound):
        return _searched(tables, None, stop_s, seed)
    share = 1.0 if method == "exact" else _PROGRAM_SHARE
    found = program.solve(relaxed=not whole, time_limit_s=share * _left_s(stop_s))
    if found.status == "infeasible":
        raise infeasible(tables, _left_s(stop_s))
    if method == "exact" or (whole and found.status == "optimal"):
        return _solved(tables, found)
    return _searched(tables, found, stop_s, seed)


def _left_s(stop_s: float) -> float:
    return max(stop_s - time.monotonic(), 0.0)


def _solved(tables: Tables, found: Solution) -> Placed:
    if found.at is None or found.held is None:
        raise SpecError("the program found no placement in time; give it more, or take method 'search'")
    return _closed(tables, found.at, found.held, found.bound_s, "exact")


def _searched(tables: Tables, known: Solution | None, stop_s: float, seed: int) -> Placed:
    """The best of the search, and of what is known from the program: a bound, perhaps a placement."""
    rng = np.random.default_rng(seed)
    search = Search(tables, rng, time_limit_s=_SEARCH_SHARE * _left_s(stop_s))
    (excess, value_s), at = search.best_from(starts(tables, rng), NUM_KICKS)
    held = tables.hosts(at) if excess == 0 else None
    if known is not None and known.at is not None and (held is None or known.value_s < value_s):
        return _solved(tables, known)
    if held is None:
        raise infeasible(tables, _left_s(stop_s))
    return _closed(tables, at, held, -math.inf if known is None else known.bound_s, "search")


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


def infeasible(tables: Tables, time_limit_s: float) -> InfeasiblePlacement:
    """Why no placement is within the limits: the placement whose relative excesses add up to least."""
    least = Formulation(tables, elastic=True).solve(time_limit_s=time_limit_s)
    if not least.excess:
        return InfeasiblePlacement(
            "no placement within all limits was found, and none of them is known to be in the way; give it "
            "more time, or take method 'exact'",
            {},
        )
    parts = [
        f"{_named(limit, name)} by {100 * over:.3g} %"
        for (limit, name), over in sorted(least.excess.items(), key=lambda row: -row[1])
    ]
    nearest = "nearest" if least.status == "optimal" else "nearest found"
    return InfeasiblePlacement(
        f"no placement is within all limits; the {nearest} exceeds {' and '.join(parts)}; raise what is "
        f"named, or ask for fewer replicas than {tables.problem.min_replicas} or fewer requests",
        least.excess,
    )


def _named(limit: Limit, name: str) -> str:
    if limit in ("compute", "link"):
        return f"the load allowed on {name}"
    return f"the {limit} of {name}"
