r"""Plans of any graph as a mixed-integer linear program, its relaxation, and what makes it infeasible.

Variables: x[m, o] places module m by option o; y[e, a, b, p] carries edge e from node a to b in precision p;
F[m] and B[m] are when forward and backward of m end; L is the latency; z[l] (elastic programs only) is the
relative excess over limit l. Below all is in seconds; the program counts in units of a typical latency, and
limits in units of themselves, since HiGHS's tolerances are absolute.

    min  latency_weight L + sum x (energy_s_per_j E - gain) + sum y (energy_s_per_j E + penalty)
    s.t. sum_o x[m, o] = 1
         sum_{b,p} y[e, a, b, p] = sum of x[source, o] over options o on a, and likewise for b and the target
         F[m] >= F[s] + sum y forward_s + sum x forward_s               for each edge e = (s, m)
         B[m] >= B[t] + sum y backward_s + sum x backward_s             for each edge (m, t) with a gradient
         B[m] >= F[m] + sum x backward_s,   L >= F[m], L >= B[m]
         L >= sum of x (forward_s + backward_s) over options on a node  for each node
         sum of what a limit counts <= (1 + z[l]) limit
"""

from dataclasses import dataclass

import numpy as np

from airlam.split.graph import Edge, Precision
from airlam.split.linear_program import LinearProgram, Term
from airlam.split.planner_problem import Assignment, Limit, Message, Option, Problem

_MAX_COST = 1e6  # of a unit of excess; HiGHS loses what lies further apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What HiGHS found. assignment: None in a relaxation, and where none is feasible or was found in time.

    bound: no plan has a lower value (elastic: excess). excess: relative, by limit; empty unless elastic.
    leaning: module -> the node on which most of it is placed, a relaxation placing parts.
    """

    status: str
    assignment: Assignment | None
    bound: float
    excess: dict[tuple[Limit, str], float]
    leaning: dict[str, str]


class Formulation:
    """The program of a problem; ``elastic``: of the least sum of relative excesses over the limits."""

    def __init__(self, problem: Problem, *, elastic: bool = False) -> None:
        self.problem, self.elastic, self.program = problem, elastic, LinearProgram()
        self.unit_s = _typical_latency_s(problem)
        self.x: dict[str, list[tuple[int, Option]]] = {}
        self.y: dict[tuple[str, str], list[tuple[int, str, str, Precision, Message]]] = {}
        self.z: dict[tuple[Limit, str], tuple[int, float]] = {}
        self._place()
        for edge in problem.graph.edges:
            self._carry(edge)
        self._time()
        self._limit()

    @property
    def num_binaries(self) -> int:
        """Size of the search."""
        return sum(self.program.integer)

    def _worth(self, value_s: float) -> float:
        return 0.0 if self.elastic else value_s / self.unit_s

    def _place(self) -> None:
        goal = self.problem.objective
        for name, options in self.problem.options.items():
            self.x[name] = [
                (
                    self.program.variable(
                        cost=self._worth(goal.energy_s_per_j * option.energy_j - option.gain_s),
                        upper=1.0,
                        integer=True,
                    ),
                    option,
                )
                for option in options
            ]
            self.program.require([(column, 1.0) for column, _ in self.x[name]], lower=1.0, upper=1.0)

    def _carry(self, edge: Edge) -> None:
        """Columns of an edge; their precision is an integer choice only where there is one."""
        goal, precisions = self.problem.objective, self.problem.precisions_of(edge)
        found = []
        for source in self.problem.nodes_for(edge.source):
            for target in self.problem.nodes_for(edge.target):
                for precision in precisions if source != target else precisions[:1]:
                    message = self.problem.message(edge, source, target, precision)
                    if message is None:
                        continue
                    worth = goal.energy_s_per_j * sum(message.energy_j.values()) + message.penalty_s
                    column = self.program.variable(
                        cost=self._worth(worth), upper=1.0, integer=source != target and len(precisions) > 1
                    )
                    found.append((column, source, target, precision, message))
        self.y[edge.key] = found
        for end, position in ((edge.source, 1), (edge.target, 2)):
            for node in self.problem.nodes_for(end):
                carried = [(row[0], 1.0) for row in found if row[position] == node]
                placed = [(column, -1.0) for column, option in self.x[end] if option.node == node]
                self.program.require([*carried, *placed], lower=0.0, upper=0.0)

    def _time(self) -> None:
        graph, program = self.problem.graph, self.program
        forward = {name: program.variable() for name in self.problem.names}
        backward = {name: program.variable() for name in self.problem.names}
        weight = 0.0 if self.elastic else self.problem.objective.latency_weight
        self.latency = program.variable(cost=weight)
        for name in self.problem.names:
            ahead = [(column, -option.forward_s / self.unit_s) for column, option in self.x[name]]
            back = [(column, -option.backward_s / self.unit_s) for column, option in self.x[name]]
            program.require([(forward[name], 1.0), *ahead], lower=0.0)
            program.require([(backward[name], 1.0), (forward[name], -1.0), *back], lower=0.0)
            program.require([(self.latency, 1.0), (backward[name], -1.0)], lower=0.0)
            for edge in graph.incoming[name]:
                sent = [(row[0], -row[4].forward_s / self.unit_s) for row in self.y[edge.key]]
                start = (forward[edge.source], -1.0)
                program.require([(forward[name], 1.0), start, *ahead, *sent], lower=0.0)
            for edge in graph.outgoing[name]:
                if edge.key in self.problem.carrying:
                    sent = [(row[0], -row[4].backward_s / self.unit_s) for row in self.y[edge.key]]
                    start = (backward[edge.target], -1.0)
                    program.require([(backward[name], 1.0), start, *back, *sent], lower=0.0)
        for node in self.problem.network.by_name:
            busy = [(c, -(o.forward_s + o.backward_s) / self.unit_s) for c, o in self._options_on(node)]
            program.require([(self.latency, 1.0), *busy], lower=0.0)

    def _options_on(self, node: str) -> list[tuple[int, Option]]:
        return [(c, option) for placed in self.x.values() for c, option in placed if option.node == node]

    def _limit(self) -> None:
        for (limit, node), budget in self.problem.limits.items():
            sums = self._counted(limit, node)
            unit = max([budget, *(amount for terms in sums for _, amount in terms)])
            over: list[Term] = []
            if self.elastic:
                column = self.program.variable(cost=min(unit / budget, _MAX_COST))
                self.z[limit, node] = column, unit / budget
                over = [(column, -1.0)]
            for terms in sums:
                scaled = [(column, amount / unit) for column, amount in terms]
                self.program.require([*scaled, *over], upper=budget / unit)

    def _counted(self, limit: Limit, node: str) -> list[list[Term]]:
        """What a limit counts, as one sum or as several of which the largest counts."""
        if limit == "latency":
            return [[(self.latency, self.unit_s)]]
        if limit == "storage":
            return [[(c, option.storage_bytes) for c, option in self._options_on(node)]]
        if limit == "memory":
            here = self._options_on(node)
            kept = [(c, option.memory_bytes) for c, option in here]
            working = {c: option.working_bytes for c, option in here if option.working_bytes}
            raised = [[*kept, (column, largest)] for column, largest in working.items()]
            return raised or [kept]
        placed = [row for placed in self.x.values() for row in placed if node in ("", row[1].node)]
        spent: list[Term] = [(c, option.energy_j) for c, option in placed]
        for carried in self.y.values():
            for column, _, _, _, message in carried:
                joules = message.energy_j
                spent.append((column, joules.get(node, 0.0) if node else sum(joules.values())))
        return [spent]

    def solve(self, *, relaxed: bool = False, time_limit_s: float = 60.0) -> Solution:
        """Optimum, or the best found in time; ``relaxed`` drops integrality and gives a bound only."""
        result = self.program.solve(relaxed=relaxed, time_limit_s=time_limit_s)
        status = {0: "optimal", 1: "stopped", 2: "infeasible"}.get(result.status, "stopped")
        found = result.x is not None
        bound = result.fun if status == "optimal" else getattr(result, "mip_dual_bound", None)
        bound_unit = 1.0 if self.elastic else self.unit_s
        return Solution(
            status=status,
            assignment=self._read(result.x) if found and not relaxed else None,
            bound=float(bound) * bound_unit if bound is not None and status != "infeasible" else -np.inf,
            excess={key: float(result.x[c]) * scale for key, (c, scale) in self.z.items()} if found else {},
            leaning=self._leaning(result.x) if found else {},
        )

    def _read(self, values: np.ndarray) -> Assignment:
        options = {name: max(placed, key=lambda row: values[row[0]])[1] for name, placed in self.x.items()}
        precisions: dict[tuple[str, str], Precision] = {}
        for key, carried in self.y.items():
            ends = options[key[0]].node, options[key[1]].node
            here = [row for row in carried if row[1:3] == ends]
            if here and ends[0] != ends[1]:
                precisions[key] = max(here, key=lambda row: values[row[0]])[3]
        return Assignment(options, precisions)

    def _leaning(self, values: np.ndarray) -> dict[str, str]:
        leaning = {}
        for name, placed in self.x.items():
            weight: dict[str, float] = {}
            for column, option in placed:
                weight[option.node] = weight.get(option.node, 0.0) + float(values[column])
            leaning[name] = max(weight, key=lambda node: weight[node])
        return leaning


def _typical_latency_s(problem: Problem) -> float:
    """All modules one after another, each on its fastest node; 1 where none has work."""
    fastest = (min(o.forward_s + o.backward_s for o in options) for options in problem.options.values())
    return sum(fastest) or 1.0
