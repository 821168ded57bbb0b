"""Two tiers of services simulated: each instance a queue of its own, light ones moved at every slot.

Reconstructed, after the setting of Zhu et al. (2601.19563). A request passes its access link, whose rate is
Nakagami distributed, then its services in turn; a message between two nodes takes its wire's latency and its
bytes over the wire's rate, whoever else sends. Users move: a task's home may change at every slot.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simpy
from numpy.typing import NDArray

from airlam.serving.simulator import Station, Steps
from airlam.split.placement.light_tier import Demand, LightTier
from airlam.split.placement.tiers import Stock, TierProblem, TierTask, work_quantiles_s

Rule = Literal["nearest", "random", "round_robin", "least_loaded", "shortest_delay"]
_FORGET = 0.5  # weight of the latest slot in the estimate of a task's rate


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRun:
    """on_time: of each request, in order of its end. cost: of light instances, mean a slot, their deployment
    included.
    """

    on_time: NDArray[np.bool_]
    latency_s: NDArray[np.float64]
    cost: float

    @property
    def on_time_rate(self) -> float:
        """Share within its deadline."""
        return float(self.on_time.mean())


def simulate_tiers(
    problem: TierProblem,
    stock: Stock,
    rule: Rule,
    homes: Sequence[Sequence[int]],
    *,
    light: LightTier | None = None,
    seed: int = 0,
) -> TierRun:
    """Runs as many slots as ``homes`` has rows: the home of each task, by slot."""
    return _TierSimulation(problem, stock, rule, homes, light, seed).run()


class _TierSimulation:
    def __init__(
        self,
        problem: TierProblem,
        stock: Stock,
        rule: Rule,
        homes: Sequence[Sequence[int]],
        light: LightTier | None,
        seed: int,
    ) -> None:
        self.problem, self.stock, self.rule, self.homes, self.light = problem, stock, rule, homes, light
        self.env, self.rng = simpy.Environment(), np.random.default_rng((seed, 1))
        self.seed, self.slot = seed, 0
        self.byte_s: list[list[float]] = problem.byte_s.tolist()
        self.way_s: list[list[float]] = problem.way_s.tolist()
        self.services = problem.by_name
        self.quantiles_s = {one.name: work_quantiles_s(one) for one in problem.services}
        self.stations: dict[tuple[str, int], list[Station]] = {}
        self.turn: dict[str, int] = {}
        self.rows: list[tuple[float, float]] = []
        self.arrived = {task.name: 0 for task in problem.tasks}
        self.rate = {task.name: task.arrival_per_s for task in problem.tasks}
        self.choose: Callable[[TierTask, int, int, int], tuple[int, Station]] = {
            "nearest": self._nearest,
            "random": self._random,
            "round_robin": self._round_robin,
            "least_loaded": self._least_loaded,
            "shortest_delay": self._shortest_delay,
        }[rule]

    def run(self) -> TierRun:
        self.env.process(self._slots())
        for index, task in enumerate(self.problem.tasks):
            self.env.process(self._arrive(index, task))
        self.env.run()
        rows = np.array(self.rows).reshape(-1, 2)
        static = self.stock.maintain_cost + self.stock.deploy_cost / len(self.homes)
        return TierRun(
            on_time=rows[:, 0] <= rows[:, 1],
            latency_s=rows[:, 0],
            cost=float(np.mean(self.light.spent)) if self.light is not None else static,
        )

    def _slots(self) -> Steps:
        for slot in range(len(self.homes)):
            self.slot = slot
            if self.light is not None:
                homes = {t.name: h for t, h in zip(self.problem.tasks, self.homes[slot], strict=True)}
                self.light.step(self.stock, Demand(arrival_per_s=self.rate, home=homes))
            yield self.env.timeout(self.problem.slot_s)
            for name, count in self.arrived.items():
                self.rate[name] += _FORGET * (count / self.problem.slot_s - self.rate[name])
                self.arrived[name] = 0

    def _arrive(self, index: int, task: TierTask) -> Steps:
        rng = np.random.default_rng((self.seed, 2, index))
        end_s = len(self.homes) * self.problem.slot_s
        while True:
            yield self.env.timeout(rng.exponential(1 / task.arrival_per_s))
            if self.env.now >= end_s:
                return
            self.arrived[task.name] += 1
            # a Nakagami variable is the root of a gamma one
            rate_bps = task.access_rate_bps * (rng.gamma(task.access_shape) / task.access_shape) ** 0.5
            home = self.homes[self.slot][index]
            self.env.process(self._request(task, home, 8 * task.input_bytes / rate_bps))

    def _request(self, task: TierTask, home: int, access_s: float) -> Steps:
        start_s, at = self.env.now, home
        yield self.env.timeout(access_s)
        for index, name in enumerate(task.services):
            node, station = self.choose(task, index, at, home)
            yield self.env.timeout(self._message_s(self.problem.sent_bytes(task, index), at, node))
            quantiles = self.quantiles_s[name]
            yield station.submit(float(quantiles[int(self.rng.integers(len(quantiles)))]))
            at = node
        yield self.env.timeout(self._message_s(self.services[task.services[-1]].output_bytes, at, home))
        self.rows.append((self.env.now - start_s, task.deadline_s))

    def _message_s(self, size_bytes: float, source: int, target: int) -> float:
        return self.way_s[source][target] + size_bytes * self.byte_s[source][target]

    def _instances(self, name: str, node: int) -> list[Station]:
        """The queues of a service's instances on a node now."""
        queues = self.stations.setdefault((name, node), [])
        count = self.stock.count[name][node]
        while len(queues) < count:
            queues.append(Station(self.env, "in_turn"))
        return queues[:count]

    def _all(self, name: str) -> list[tuple[int, Station]]:
        hosts = self.stock.hosts(name)
        return [(node, station) for node in hosts for station in self._instances(name, node)]

    def _best(self, name: str, key: Callable[[int, Station], Any]) -> tuple[int, Station]:
        return min(self._all(name), key=lambda one: key(*one))

    def _nearest(self, task: TierTask, index: int, at: int, home: int) -> tuple[int, Station]:
        size = self.problem.sent_bytes(task, index)
        return self._best(task.services[index], lambda node, s: (self._message_s(size, at, node), s.num_jobs))

    def _random(self, task: TierTask, index: int, at: int, home: int) -> tuple[int, Station]:
        every = self._all(task.services[index])
        return every[int(self.rng.integers(len(every)))]

    def _round_robin(self, task: TierTask, index: int, at: int, home: int) -> tuple[int, Station]:
        name = task.services[index]
        every, turn = self._all(name), self.turn.get(name, 0)
        self.turn[name] = turn + 1
        return every[turn % len(every)]

    def _least_loaded(self, task: TierTask, index: int, at: int, home: int) -> tuple[int, Station]:
        return self._best(task.services[index], lambda node, s: s.num_jobs)

    def _shortest_delay(self, task: TierTask, index: int, at: int, home: int) -> tuple[int, Station]:
        """Message, queue, and the same of all that comes after, under the queues of the moment."""
        name, size = task.services[index], self.problem.sent_bytes(task, index)
        work_s, onward_s = self.services[name].work_s, self._onward_s(task, index, home)
        return self._best(
            name,
            lambda node, s: self._message_s(size, at, node) + (s.num_jobs + 1) * work_s + onward_s[node],
        )

    def _onward_s(self, task: TierTask, index: int, home: int) -> dict[int, float]:
        """From the output of the service at an index to the answer at home, by the service's node."""
        name = task.services[index]
        size, nodes = self.services[name].output_bytes, self.stock.hosts(name)
        if index + 1 == len(task.services):
            return {node: self._message_s(size, node, home) for node in nodes}
        following = task.services[index + 1]
        after_s = {
            node: seconds + self._queue_s(following, node)
            for node, seconds in self._onward_s(task, index + 1, home).items()
        }
        return {
            node: min(self._message_s(size, node, b) + seconds for b, seconds in after_s.items())
            for node in nodes
        }

    def _queue_s(self, name: str, node: int) -> float:
        """Until the shortest queue of a service on a node is through with one more request."""
        return (min(s.num_jobs for s in self._instances(name, node)) + 1) * self.services[name].work_s
