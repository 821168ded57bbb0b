"""The core tier: heavy services placed once, near their users and on few nodes, by an integer program."""

from airlam.errors import SpecError
from airlam.split.linear_program import INFEASIBLE, LinearProgram, Term
from airlam.split.placement.tiers import (
    RESOURCES,
    SPREAD_LOAD,
    Floats,
    NoRoom,
    Stock,
    TierProblem,
    TierService,
    TierTask,
    wanted_instances,
)

_Shares = dict[int, int]  # node -> the column of the share that is there


def place_core(problem: TierProblem, *, max_hosts: int = 3, time_limit_s: float = 10.0) -> Stock:
    r"""Core instances that minimise deployment cost and network time, on few nodes.

        min  sum_mv cost_m x[m, v] / sum_m cost_m + sum_n lambda_n time(n) / sum_n lambda_n, time in ms
        s.t. x[m, v] whole, o[m, v] in {0, 1},  x <= N o,  sum_v x[m, v] >= 2,  sum_v o[m, v] <= max_hosts
             sum_m needs_mr x[m, v] <= R_vr
             sum_n lambda_n work_s_m z[n, m, v] <= 0.7 x[m, v]
             z[n, m, v] = sum_a w[n, m, a, v],  sum_b w[n, m, a, b] = z[n, the core service before m, a]

    z is the share of a task's requests that a service takes on a node, and begins as 1 at the task's home;
    time(n) is what the messages take on the ways w, light services in between taken to stand with the core
    service before. NoRoom where no placement has the resources, SpecError where none is found in time.
    """
    core = _CoreProgram(problem, max_hosts)
    result = core.program.solve(time_limit_s=time_limit_s, gap=1e-3)
    if result.status == INFEASIBLE:
        raise NoRoom("no placement of the core services has the resources; add nodes or lower arrivals")
    if result.x is None:
        raise SpecError(
            f"no placement of the core services was found in {time_limit_s:g} s; give it more time"
        )
    stock = Stock(problem)
    for (service, v), column in core.x.items():
        stock.add(service, v, round(result.x[column]))
    return stock


class _CoreProgram:
    def __init__(self, problem: TierProblem, max_hosts: int) -> None:
        self.problem, self.program = problem, LinearProgram()
        self.nodes = range(len(problem.nodes))
        core = [one for one in problem.services if one.is_core]
        self.cost = sum(one.deploy_cost for one in core) or 1.0
        self.x: dict[tuple[str, int], int] = {}
        self.load: dict[tuple[str, int], list[Term]] = {}
        for one in core:
            self._host(one, max_hosts)
        for r in range(len(RESOURCES)):
            for v, name in enumerate(problem.nodes):
                held = [(self.x[one.name, v], one.needs[r]) for one in core]
                self.program.require(held, upper=problem.capacity[name][r])
        for task in problem.tasks:
            self._carry(task)
        for key, terms in self.load.items():
            self.program.require([*terms, (self.x[key], -SPREAD_LOAD)], upper=0.0)

    def _host(self, one: TierService, max_hosts: int) -> None:
        """Instances of a service: two at least, on ``max_hosts`` nodes at most."""
        program, most = self.program, float(wanted_instances(self.problem, one.name) + 1)
        opened = [program.variable(upper=1.0, integer=True) for _ in self.nodes]
        for v in self.nodes:
            self.x[one.name, v] = program.variable(cost=one.deploy_cost / self.cost, upper=most, integer=True)
            program.require([(self.x[one.name, v], 1.0), (opened[v], -most)], upper=0.0)
            self.load[one.name, v] = []
        program.require([(self.x[one.name, v], 1.0) for v in self.nodes], lower=2.0)
        program.require([(column, 1.0) for column in opened], upper=float(max_hosts))

    def _carry(self, task: TierTask) -> None:
        """A task's requests from its home through its core services."""
        weight = 1e3 * task.arrival_per_s / sum(one.arrival_per_s for one in self.problem.tasks)
        at_home = self.program.variable(upper=1.0)
        self.program.require([(at_home, 1.0)], lower=1.0)
        before: _Shares = {self.problem.nodes.index(task.home): at_home}
        for index, service in enumerate(task.services):
            one = self.problem.by_name[service]
            if not one.is_core:
                continue
            message_s = self.problem.message_s(self.problem.sent_bytes(task, index))
            before = self._moved(before, weight * message_s)
            for v, column in before.items():
                self.load[service, v].append((column, task.arrival_per_s * one.work_s))

    def _moved(self, before: _Shares, cost: Floats) -> _Shares:
        """Shares after a message; cost: of all of it from node to node [num_nodes, num_nodes]."""
        program = self.program
        ways = {
            (a, b): program.variable(cost=float(cost[a, b]), upper=1.0) for a in before for b in self.nodes
        }
        after = {v: program.variable(upper=1.0) for v in self.nodes}
        for a, column in before.items():
            program.require([*((ways[a, b], 1.0) for b in self.nodes), (column, -1.0)], lower=0.0, upper=0.0)
        for b, column in after.items():
            program.require([*((ways[a, b], 1.0) for a in before), (column, -1.0)], lower=0.0, upper=0.0)
        return after
