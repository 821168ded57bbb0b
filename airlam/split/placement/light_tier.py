"""The light tier: instances follow demand slot by slot, within a long-run budget of their cost.

Every slot minimises V * (share of requests late) + Z * cost / budget by single moves (an instance more, one
fewer, one elsewhere), Z <- max(Z + cost / budget - 1, 1). A task's requests are late where their access takes
longer than the deadline leaves (``TierTask.late_share``) after the shortest way through the instances of its
chain, home again included, the mean work of its other services, and the delay that the instances of the
service in question keep with probability 1 - epsilon (``TierService.delay_s``), from effective capacity;
``by_mean`` takes the mean delay instead, which is the ablation. Reconstructed, after Zhu et al. (2601.19563).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from airlam.specs import require
from airlam.split.placement.tiers import Floats, NoRoom, Stock, TierProblem, TierService, TierTask

_LATE_S = 10.0  # counted for requests that are never done
_LEAST_BACKLOG = 1.0  # without any, instances are free and a slot takes all there is
_TILT = 0.05  # late requests that a deadline's time counts for, so that the late and the early get faster too


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is known at the start of a slot: requests a second and home (node index) of each task, by name."""

    arrival_per_s: Mapping[str, float]
    home: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flow:
    """A task's requests through one service. share: of all requests. spent_s: by the service's node, all but
    their access and the service's delay [num_nodes].
    """

    task: TierTask
    share: float
    spent_s: Floats


class LightTier:
    """Moves light instances; keeps the virtual queue of their cost.

    budget: mean cost a slot. weight: V, in budgets that all requests being late is worth.
    """

    def __init__(
        self,
        problem: TierProblem,
        *,
        budget: float,
        weight: float = 100.0,
        epsilon: float = 0.01,
        by_mean: bool = False,
    ) -> None:
        require(budget > 0, f"the budget must be positive, got {budget}")
        self.problem, self.budget, self.weight = problem, budget, weight
        self.epsilon, self.by_mean, self.backlog = epsilon, by_mean, _LEAST_BACKLOG
        self.spent: list[float] = []
        self._delays: dict[tuple[str, float], float] = {}
        self._message_s = {task.name: _messages_s(problem, task) for task in problem.tasks}

    def step(self, stock: Stock, demand: Demand) -> None:
        """Changes the stock's light instances for the slot to come; NoRoom where one has nowhere to be."""
        deployed = 0.0
        for one in self.problem.services:
            if not one.is_core:
                before = list(stock.count[one.name])
                self._improve(stock, one, demand, before)
                if not stock.hosts(one.name):
                    raise NoRoom(f"no node has room for an instance of {one.name}; add nodes")
                deployed += one.deploy_cost * _added(before, stock.count[one.name])
        self.spent.append(deployed + stock.maintain_cost)
        self.backlog = max(self.backlog + self.spent[-1] / self.budget - 1, _LEAST_BACKLOG)

    def _improve(self, stock: Stock, one: TierService, demand: Demand, before: list[int]) -> None:
        flows = self._flows(stock, one, demand)
        rate = sum(demand.arrival_per_s[flow.task.name] for flow in flows)
        score = self._score(one, stock.count[one.name], before, flows, rate)
        while True:
            found = [
                (value, move)
                for move in self._moves(stock, one)
                if (value := self._score(one, _moved(stock.count[one.name], move), before, flows, rate))
                < score - 1e-12
            ]
            if not found:
                return
            score, move = min(found)
            for node, change in zip(move, (-1, 1), strict=True):
                if node >= 0:
                    stock.add(one.name, node, change)

    def _moves(self, stock: Stock, one: TierService) -> list[tuple[int, int]]:
        """(node that loses an instance, node that gains one); -1 for none. Two instances always stay."""
        gaining = [v for v in range(len(self.problem.nodes)) if stock.fits(one.name, v)]
        losing = stock.hosts(one.name)
        moves = [(-1, v) for v in gaining] + [(u, v) for u in losing for v in gaining if u != v]
        if sum(stock.count[one.name]) > 2:
            moves += [(u, -1) for u in losing]
        return moves

    def _flows(self, stock: Stock, one: TierService, demand: Demand) -> list[_Flow]:
        """Of each task that passes the service."""
        total = sum(demand.arrival_per_s.values()) or 1.0
        return [
            _Flow(
                task=task,
                share=demand.arrival_per_s[task.name] / total,
                spent_s=self._ways_s(stock, task, task.services.index(one.name), demand.home[task.name])
                + sum(self.problem.by_name[name].work_s for name in task.services if name != one.name),
            )
            for task in self.problem.tasks
            if one.name in task.services
        ]

    def _ways_s(self, stock: Stock, task: TierTask, index: int, home: int) -> Floats:
        """All messages of a request, the shortest way, by the node of one of its services: [num_nodes]."""
        sent_s, closed_s = self._message_s[task.name], [self._closed_s(stock, s) for s in task.services]
        into = sent_s[0][home]
        for k in range(index):
            into = ((into + closed_s[k])[:, None] + sent_s[k + 1]).min(axis=0)
        onward = sent_s[-1][:, home]
        for k in range(len(task.services) - 1, index, -1):
            onward = (sent_s[k] + onward + closed_s[k]).min(axis=1)
        both: Floats = into + onward
        return both

    def _closed_s(self, stock: Stock, service: str) -> Floats:
        """0 where a service has an instance (before the first: where one has room), ``_LATE_S`` elsewhere."""
        nodes = range(len(self.problem.nodes))
        found = np.full(len(nodes), _LATE_S)
        found[stock.hosts(service) or [v for v in nodes if stock.fits(service, v)]] = 0.0
        return found

    def _score(
        self, one: TierService, count: list[int], before: list[int], flows: list[_Flow], rate: float
    ) -> float:
        hosts, instances = [v for v, n in enumerate(count) if n], sum(count)
        if instances < 2:  # to begin with; the more, the better
            return math.inf if instances == 0 else 1e12
        delay_s, late = self._delay_s(one, rate / instances), 0.0
        for flow in flows:
            spent_s = float(flow.spent_s[hosts].min()) + delay_s
            late += flow.share * (flow.task.late_share(spent_s) + _TILT * spent_s / flow.task.deadline_s)
        cost = one.deploy_cost * _added(before, count) + one.maintain_cost * instances
        return self.weight * late + self.backlog * cost / self.budget

    def _delay_s(self, one: TierService, arrival_per_s: float) -> float:
        key = one.name, round(arrival_per_s, 3)
        if key not in self._delays:
            exact = one.mean_delay_s(key[1]) if self.by_mean else one.delay_s(key[1], self.epsilon)
            self._delays[key] = min(exact, _LATE_S)
        return self._delays[key]


def _messages_s(problem: TierProblem, task: TierTask) -> list[Floats]:
    """Into each service of a chain, and the answer: [num_nodes, num_nodes] each."""
    sizes = [problem.sent_bytes(task, index) for index in range(len(task.services))]
    answer_bytes = problem.by_name[task.services[-1]].output_bytes
    return [problem.message_s(size) for size in (*sizes, answer_bytes)]


def _added(before: Sequence[int], after: Sequence[int]) -> int:
    return sum(max(new - old, 0) for old, new in zip(before, after, strict=True))


def _moved(count: list[int], move: tuple[int, int]) -> list[int]:
    """The counts after a move."""
    changed = list(count)
    for node, change in zip(move, (-1, 1), strict=True):
        if node >= 0:
            changed[node] += change
    return changed
