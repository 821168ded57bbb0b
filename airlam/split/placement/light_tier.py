"""The light tier: instances follow demand slot by slot, within a long-run budget of their cost.

Every slot minimises V * (mean time of a request) + Z * cost / budget by single moves (an instance more, one
fewer, one elsewhere), Z <- max(Z + cost / budget - 1, 0). A service's time is what its messages take plus the
delay that its instances keep with probability 1 - epsilon (``TierService.delay_s``), from effective capacity;
``by_mean`` takes the mean delay instead, which is the ablation. Reconstructed, after Zhu et al. (2601.19563).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from airlam.specs import require
from airlam.split.placement.tiers import Stock, TierProblem, TierService

_LATE_S = 10.0  # counted for requests that are never done
_FIRST_BACKLOG = 1.0  # with none, the first slot would take all there is


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is known at the start of a slot: requests a second and home (node index) of each task, by name."""

    arrival_per_s: Mapping[str, float]
    home: Mapping[str, int]


class LightTier:
    """Moves light instances; keeps the virtual queue of their cost.

    budget: mean cost a slot. weight_per_s: V, in budgets that a second of a request's mean time is worth.
    """

    def __init__(
        self,
        problem: TierProblem,
        *,
        budget: float,
        weight_per_s: float = 200.0,
        epsilon: float = 0.01,
        by_mean: bool = False,
    ) -> None:
        require(budget > 0, f"the budget must be positive, got {budget}")
        self.problem, self.budget = problem, budget
        self.weight = weight_per_s / sum(
            task.arrival_per_s for task in problem.tasks
        )  # of a sum over requests
        self.epsilon, self.by_mean, self.backlog = epsilon, by_mean, _FIRST_BACKLOG
        self.spent: list[float] = []
        self._delays: dict[tuple[str, float], float] = {}

    def step(self, stock: Stock, demand: Demand) -> None:
        """Changes the stock's light instances for the slot to come."""
        deployed = 0.0
        for one in self.problem.services:
            if not one.is_core:
                before = list(stock.count[one.name])
                self._improve(stock, one, demand, before)
                deployed += one.deploy_cost * _added(before, stock.count[one.name])
        self.spent.append(deployed + stock.maintain_cost)
        self.backlog = max(self.backlog + self.spent[-1] / self.budget - 1, 0.0)

    def _improve(self, stock: Stock, one: TierService, demand: Demand, before: list[int]) -> None:
        times = self._times(stock, one, demand)
        score = self._score(one, stock.count[one.name], before, times)
        while True:
            found = [
                (value, move)
                for move in self._moves(stock, one)
                if (value := self._score(one, _moved(stock.count[one.name], move), before, times))
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

    def _times(self, stock: Stock, one: TierService, demand: Demand) -> list[tuple[float, list[float]]]:
        """Of each task that passes the service: its rate, and what its messages take by node."""
        found = []
        for task in self.problem.tasks:
            if one.name not in task.services:
                continue
            index, home = task.services.index(one.name), demand.home[task.name]
            before = stock.hosts(task.services[index - 1]) if index else [home]
            last = index + 1 == len(task.services)
            after = [home] if last else stock.hosts(task.services[index + 1])
            into_s = self.problem.message_s(self.problem.sent_bytes(task, index))
            on_s = self.problem.message_s(one.output_bytes)
            found.append(
                (
                    demand.arrival_per_s[task.name],
                    [
                        min((into_s[a, v] for a in before), default=0.0)
                        + min((on_s[v, b] for b in after), default=0.0)
                        for v in range(len(self.problem.nodes))
                    ],
                )
            )
        return found

    def _score(
        self, one: TierService, count: list[int], before: list[int], times: list[tuple[float, list[float]]]
    ) -> float:
        hosts, instances = [v for v, n in enumerate(count) if n], sum(count)
        if instances < 2:  # to begin with; the more, the better
            return math.inf if instances == 0 else 1e12
        rate = sum(arrival for arrival, _ in times)
        waited = rate * self._delay_s(one, rate / instances)
        sent = sum(arrival * min(seconds[v] for v in hosts) for arrival, seconds in times)
        cost = one.deploy_cost * _added(before, count) + one.maintain_cost * instances
        return self.weight * (waited + sent) + self.backlog * cost / self.budget

    def _delay_s(self, one: TierService, arrival_per_s: float) -> float:
        key = one.name, round(arrival_per_s, 3)
        if key not in self._delays:
            exact = one.mean_delay_s(key[1]) if self.by_mean else one.delay_s(key[1], self.epsilon)
            self._delays[key] = min(exact, _LATE_S)
        return self._delays[key]


def _added(before: list[int], after: list[int]) -> int:
    return sum(max(new - old, 0) for old, new in zip(before, after, strict=True))


def _moved(count: list[int], move: tuple[int, int]) -> list[int]:
    """The counts after a move."""
    changed = list(count)
    for node, change in zip(move, (-1, 1), strict=True):
        if node >= 0:
            changed[node] += change
    return changed
