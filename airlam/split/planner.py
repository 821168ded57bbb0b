"""Where to run each module, with which LoRA rank, and in which precision to send what is cut.

Chains are solved exactly by dynamic programming, small graphs by a mixed-integer program, larger ones by
local search with the bound of the program's relaxation. What cannot be done is refused with the limits that
stand in the way and by how much.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from airlam.errors import SpecError
from airlam.specs import require
from airlam.split.cost import cost
from airlam.split.graph import ModuleGraph
from airlam.split.ledger import Cost
from airlam.split.network import EdgeNetwork
from airlam.split.plan import Schedule, SplitPlan
from airlam.split.planner_chain import TooManyLabels, chain_edges, solve_chain
from airlam.split.planner_milp import Formulation, Solution
from airlam.split.planner_problem import Assignment, Budgets, Choices, Limit, Objective, Problem
from airlam.split.planner_search import score, solve_search
from airlam.split.timeline import Mode

MAX_BINARIES = 20_000  # beyond, HiGHS takes too long to be the first thing tried
_MAX_COLUMNS = 300_000  # of the relaxation; beyond, no bound is given
_TIGHTENED = 1 - 1e-6  # of limits, where HiGHS used up its feasibility tolerance
_SMALLEST_SHOWN = 1e-6  # relative excess
_REASON_TIME_S = 10.0  # to find the nearest plan; after it, its relaxation has to do

Method = Literal["auto", "chain", "milp", "search"]


class InfeasiblePlan(SpecError):
    """No plan is within all limits. excess: by how much each limit in the way is exceeded, relative to it."""

    def __init__(self, message: str, excess: dict[tuple[Limit, str], float]) -> None:
        super().__init__(message)
        self.excess = excess


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, what it costs, and how good it is known to be.

    value: of the objective, in seconds. bound: no plan has a lower value; equal to it where proven optimal,
    minus infinity where nothing is known.
    """

    plan: SplitPlan
    cost: Cost
    value: float
    bound: float
    method: Literal["chain", "milp", "search"]

    @property
    def is_optimal(self) -> bool:
        """Whether no better plan can exist."""
        return self.value <= self.bound + 1e-6 * (abs(self.bound) + 1e-12)


def plan_split(
    graph: ModuleGraph,
    network: EdgeNetwork,
    *,
    schedule: Schedule | None = None,
    mode: Mode = "training",
    objective: Objective | None = None,
    budgets: Budgets | None = None,
    choices: Choices | None = None,
    method: Method = "auto",
    time_limit_s: float = 10.0,
    seed: int = 0,
) -> Planned:
    """The plan of one flow with the lowest value of the objective within all limits.

    The flow has the servers to itself; ``plan_fleet`` plans for many devices. schedule: shares of the band,
    by default equal for all devices. Limits are the nodes' memory and storage, and ``budgets``. Raises
    InfeasiblePlan where none is within them, SpecError where the method does not fit the graph.
    """
    problem = Problem(
        graph=graph,
        network=network,
        schedule=schedule if schedule is not None else Schedule.equal(network),
        mode=mode,
        objective=objective or Objective(),
        budgets=budgets or Budgets(),
        choices=choices or Choices(),
    )
    edges = chain_edges(problem) if method in ("auto", "chain") else None
    require(method != "chain" or edges is not None, "the graph is no chain; take method 'auto'")
    if edges is not None:
        try:
            found = solve_chain(problem, edges)
        except TooManyLabels:
            require(method != "chain", "too many plans of this chain compare as equals; take method 'auto'")
        else:
            return _finished(problem, found, "chain")
    formulation = Formulation(problem)
    if method != "search" and (method == "milp" or formulation.num_binaries <= MAX_BINARIES):
        return _by_milp(problem, formulation, time_limit_s, seed)
    return _by_search(problem, formulation, time_limit_s, seed)


def _by_milp(problem: Problem, formulation: Formulation, time_limit_s: float, seed: int) -> Planned:
    solution = formulation.solve(time_limit_s=time_limit_s)
    if solution.status == "infeasible":
        raise infeasible(problem)
    if solution.status != "optimal":
        return _by_search(problem, formulation, time_limit_s, seed, known=solution)
    assert solution.assignment is not None
    worth = score(problem, solution.assignment)
    if worth is not None and worth[0] == 0:
        return _finished(problem, solution.assignment, "milp")
    # within HiGHS's tolerance, not within ours
    within = Formulation(_tightened(problem)).solve(time_limit_s=time_limit_s)
    if within.status != "optimal":
        return _by_search(problem, formulation, time_limit_s, seed, known=solution)
    planned = _finished(problem, within.assignment, "milp")
    return dataclasses.replace(planned, bound=min(planned.value, solution.bound))


def _tightened(problem: Problem) -> Problem:
    budgets = Budgets(
        latency_s=problem.budgets.latency_s * _TIGHTENED,
        energy_j=problem.budgets.energy_j * _TIGHTENED,
        node_energy_j={node: joules * _TIGHTENED for node, joules in problem.budgets.node_energy_j.items()},
    )
    nodes = tuple(
        dataclasses.replace(
            node,
            memory_bytes=node.memory_bytes * _TIGHTENED,
            storage_bytes=node.storage_bytes * _TIGHTENED,
        )
        for node in problem.network.nodes
    )
    network = dataclasses.replace(problem.network, nodes=nodes)
    return dataclasses.replace(problem, budgets=budgets, network=network)


def _by_search(
    problem: Problem,
    formulation: Formulation,
    time_limit_s: float,
    seed: int,
    known: Solution | None = None,
) -> Planned:
    """Local search with the relaxation's bound; ``known`` is what HiGHS had when its time was over."""
    small = len(formulation.program.cost) <= _MAX_COLUMNS
    relaxed = formulation.solve(relaxed=True, time_limit_s=time_limit_s) if small else None
    if relaxed is not None and relaxed.status == "infeasible":
        raise infeasible(problem)
    leaning = relaxed.leaning if relaxed is not None else {}
    found = solve_search(problem, np.random.default_rng(seed), time_limit_s=time_limit_s, leaning=leaning)
    bounds = [solution.bound for solution in (relaxed, known) if solution is not None]
    candidates = [one for one in (found, known.assignment if known else None) if one is not None]
    scored = [(worth, one) for one in candidates if (worth := score(problem, one)) is not None]
    best = min(scored, key=lambda row: row[0])[1] if scored else None
    planned = _finished(problem, best, "search")
    return dataclasses.replace(planned, bound=max(bounds, default=-math.inf))


def _finished(
    problem: Problem, found: Assignment | None, method: Literal["chain", "milp", "search"]
) -> Planned:
    """The assignment priced by ``cost``; InfeasiblePlan where there is none, or it breaks a limit."""
    totals = problem.totals(found) if found is not None else None
    if found is None or totals is None:
        raise infeasible(problem)
    excess = dict(problem.excess(totals))
    if excess:
        over = _listed(problem, excess)
        raise InfeasiblePlan(f"the search found no plan within all limits; its best exceeds {over}", excess)
    plan = problem.plan(found)
    priced = cost(problem.graph, problem.network, plan, problem.schedule, problem.mode)
    return Planned(plan=plan, cost=priced, value=totals.value, bound=totals.value, method=method)


def infeasible(problem: Problem) -> InfeasiblePlan:
    """Why no plan is within the limits: the plan whose relative excesses add up to least, and these."""
    elastic = Formulation(problem, elastic=True)
    solution = elastic.solve(time_limit_s=_REASON_TIME_S)
    proven = solution.status != "stopped"
    if not proven:
        solution = elastic.solve(relaxed=True)
    if solution.status == "infeasible":
        return InfeasiblePlan(
            "no plan can carry its messages: nodes that may run joined modules have no link with a rate "
            "between them; add a link, grant its device a share of the band, or pin other nodes",
            {},
        )
    largest = max(solution.excess.values(), default=0.0)
    shown = min(_SMALLEST_SHOWN, largest)  # where all are within HiGHS's tolerance, the largest is
    excess = {key: over for key, over in solution.excess.items() if over >= shown}
    least = "" if proven else "at least "
    return InfeasiblePlan(
        f"no plan is within all limits; the nearest exceeds {_listed(problem, excess, least)}; raise what is "
        "named, or allow lower ranks, coarser precisions or other nodes",
        excess,
    )


def _listed(problem: Problem, excess: dict[tuple[Limit, str], float], least: str = "") -> str:
    parts = []
    for (limit, node), over in sorted(excess.items(), key=lambda row: -row[1]):
        budget = problem.limits[limit, node]
        where = f"the {limit.replace('node ', '')} of {node}" if node else f"the {limit} budget"
        needed, allowed = _shown(limit, budget * (1 + over)), _shown(limit, budget)
        percent = f"{100 * over:,.0f}" if over >= 1 else f"{100 * over:.3g}"
        parts.append(f"{where} by {least}{percent} % ({needed} of {allowed})")
    return " and ".join(parts)


def _shown(limit: Limit, amount: float) -> str:
    if limit == "latency":
        return f"{amount:.4g} s"
    return f"{amount:.4g} J" if "energy" in limit else f"{amount / 1e6:.6g} MB"
