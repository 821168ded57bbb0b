"""A service network simulated by discrete events: requests pass the queues of nodes and links.

Networks far larger than one machine, under Poisson or bursty arrivals, fading and moving access links, and
nodes that fail. Times of work and messages are those of ``airlam.split.placement.tables``; simpy keeps the
clock. A failed node loses what it was working on; each request so hit asks another replica. Its links still
forward.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simpy
from numpy.typing import NDArray

from airlam.specs import require
from airlam.split.placement.routing import Router, Sight
from airlam.split.placement.services import Placement, RequestClass
from airlam.split.placement.tables import Tables

_WARM_UP = 0.1  # of the requests counted
Floats = NDArray[np.float64]
Discipline = Literal["sharing", "in_turn"]
Steps = Generator[simpy.Event, Any, Any]


class Station:
    """One queue on simpy's clock: jobs of some work, done at ``speed`` units of it a second.

    ``sharing``: all jobs share the speed equally (a processor with several requests, a fair link).
    ``in_turn``: first come, first served.
    """

    def __init__(self, env: simpy.Environment, discipline: Discipline, speed: float = 1.0) -> None:
        self._env, self._sharing = env, discipline == "sharing"
        self._speed, self._since_s, self._done = speed, 0.0, 0.0  # done: work that each sharing job got
        self._jobs: list[tuple[float, int, simpy.Event]] = []  # heap by the done at which it ends
        self._numbers = itertools.count()
        self._waiting: deque[tuple[float, simpy.Event]] = deque()
        self._timer = 0
        self._counts, self._index = [0], 0

    def count_in(self, counts: list[int], index: int) -> None:
        """Keeps the number of jobs here in ``counts[index]`` from now on."""
        counts[index] = self._counts[self._index]
        self._counts, self._index = counts, index

    @property
    def num_jobs(self) -> int:
        """Jobs here, waiting ones included."""
        return self._counts[self._index]

    def submit(self, work: float) -> simpy.Event:
        """An event with value True when the work is done, False when it is lost."""
        self._advance()
        event = self._env.event()
        self._counts[self._index] += 1
        if self._sharing or not self._jobs:
            heapq.heappush(self._jobs, (self._done + work, next(self._numbers), event))
        else:
            self._waiting.append((work, event))
        self._set_timer()
        return event

    def set_speed(self, speed: float) -> None:
        """From now on; 0 stops it."""
        self._advance()
        self._speed = speed
        self._set_timer()

    def lose_all(self) -> None:
        """Everything here is lost."""
        self._advance()
        lost = [event for *_, event in self._jobs] + [event for _, event in self._waiting]
        self._jobs.clear()
        self._waiting.clear()
        self._counts[self._index] = 0
        self._set_timer()
        for event in lost:
            event.succeed(False)

    def _advance(self) -> None:
        passed_s, self._since_s = self._env.now - self._since_s, self._env.now
        if self._jobs:
            self._done += passed_s * self._speed / len(self._jobs)

    def _set_timer(self) -> None:
        self._timer += 1
        if self._jobs and self._speed > 0:
            left_s = max(self._jobs[0][0] - self._done, 0.0) * len(self._jobs) / self._speed
            timer = self._env.timeout(left_s, value=self._timer)
            timer.callbacks.append(self._ends)

    def _ends(self, timer: simpy.Event) -> None:
        if timer.value != self._timer:  # jobs came or went since it was set
            return
        self._advance()
        self._done, _, event = heapq.heappop(self._jobs)  # exactly, without what rounding left
        self._counts[self._index] -= 1
        if self._waiting:
            work, following = self._waiting.popleft()
            heapq.heappush(self._jobs, (self._done + work, next(self._numbers), following))
        self._set_timer()
        event.succeed(True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Arrivals whose rate switches between two levels (a two-state MMPP), of the class's mean rate together.

    high_share: of time at the high level. ratio: of the high level to the low. mean_cycle_s: of one high and
    one low period, both exponential.
    """

    high_share: float = 0.2
    ratio: float = 5.0
    mean_cycle_s: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.high_share < 1, f"high_share is {self.high_share}; expected above 0 and below 1")
        require(self.ratio >= 1, f"ratio is {self.ratio}; expected at least 1")
        require(self.mean_cycle_s > 0, f"mean_cycle_s is {self.mean_cycle_s}; expected > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A node that is down for a while; what it was working on is lost."""

    node: str
    start_s: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """From ``start_s`` on, the links are those of ``tables``: other gains, or a device in another's cell."""

    start_s: float
    tables: Tables


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens while a network is simulated.

    duration_s: of arrivals; requests that are there then are still answered. warm_up_s: arrivals before it
    are not counted. arrival_per_s: of each class; None for the problem's. bursts: None for Poisson arrivals.
    work: what a request's work is drawn from, with its service's as mean. moments: same nodes, services and
    classes as at first.
    """

    duration_s: float
    warm_up_s: float = 0.0
    arrival_per_s: tuple[float, ...] | None = None
    bursts: Bursts | None = None
    work: Literal["fixed", "exponential"] = "fixed"
    node_discipline: Discipline = "sharing"
    link_discipline: Discipline = "sharing"
    outages: tuple[Outage, ...] = ()
    moments: tuple[Moment, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            0 <= self.warm_up_s < self.duration_s,
            f"warm_up_s is {self.warm_up_s}; expected at least 0 and below duration_s {self.duration_s}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Requests after the warm-up, in order of arrival: arrival_s, latency_s and class_index, each [num].

    mean_present: of requests in the network over the counted time.
    """

    arrival_s: Floats
    latency_s: Floats
    class_index: NDArray[np.int64]
    deadline_s: Floats
    mean_present: float
    num_retries: int

    @property
    def on_time_rate(self) -> float:
        """Share answered within their class's deadline."""
        return float((self.latency_s <= self.deadline_s[self.class_index]).mean())

    def interval_s(self, num_batches: int = 20) -> tuple[float, float]:
        """Mean latency and the half width of its 95 % interval by batch means, t = 2.09 for 20 batches."""
        means = [part.mean() for part in np.array_split(self.latency_s, num_batches)]
        return float(np.mean(means)), 2.09 * float(np.std(means, ddof=1)) / num_batches**0.5


def steady(tables: Tables, num_requests: int, seed: int) -> Scenario:
    """Poisson arrivals; about so many requests are counted, after a tenth as many that are not."""
    counted_s = num_requests / float(tables.rate.sum())
    return Scenario(duration_s=(1 + _WARM_UP) * counted_s, warm_up_s=_WARM_UP * counted_s, seed=seed)


def simulate(tables: Tables, make_router: Callable[[Tables, Sight], Router], scenario: Scenario) -> Answered:
    """Runs a scenario; what a seed gives is the same every time.

    make_router: called at first, and at each moment with the tables that hold from then on.
    """
    return _Simulation(tables, make_router, scenario).run()


def best_simulated(
    tables: Tables,
    placements: Sequence[Placement],
    router: Callable[[Tables, Placement], Router],
    scenario: Scenario,
) -> Placement:
    """Of some placements the one that answers most requests on time in a scenario; of equals the faster.

    What the mean latency of fixed routes does not show: how much a router that sees queues makes of replicas.
    """

    def merit(placement: Placement) -> tuple[float, float]:
        found = simulate(tables, lambda now, sight: router(now, placement), scenario)
        return found.on_time_rate, -float(found.latency_s.mean())

    return max(placements, key=merit)


def arrival_times_s(rate_per_s: float, scenario: Scenario, rng: np.random.Generator) -> Iterator[float]:
    """Arrivals of one class until ``duration_s``: exponential gaps at the rate of the moment."""
    now_s, bursts = 0.0, scenario.bursts
    if bursts is None:
        while (now_s := now_s + rng.exponential(1 / rate_per_s)) < scenario.duration_s:
            yield now_s
        return
    low = rate_per_s / (bursts.high_share * bursts.ratio + 1 - bursts.high_share)
    is_high = bool(rng.uniform() < bursts.high_share)
    while now_s < scenario.duration_s:
        share = bursts.high_share if is_high else 1 - bursts.high_share
        end_s = min(now_s + rng.exponential(share * bursts.mean_cycle_s), scenario.duration_s)
        rate = low * bursts.ratio if is_high else low
        while (now_s := now_s + rng.exponential(1 / rate)) < end_s:
            yield now_s
        now_s, is_high = end_s, not is_high


class _Simulation:
    def __init__(
        self, tables: Tables, make_router: Callable[[Tables, Sight], Router], scenario: Scenario
    ) -> None:
        self.scenario, self.env, self.make_router = scenario, simpy.Environment(), make_router
        self.sight = Sight.idle(tables)
        self.nodes = [Station(self.env, scenario.node_discipline) for _ in tables.nodes]
        for index, station in enumerate(self.nodes):
            station.count_in(self.sight.node_jobs, index)
        self.up = {v: self.env.event() for v in range(len(self.nodes))}  # of a node that is down
        self.links: dict[tuple[str, str], Station] = {}
        self.calls = [np.flatnonzero(tables.call_class == n).tolist() for n in range(len(tables.graphs))]
        self.into: dict[int, list[int]] = {}  # legs by the call that they go to; home is -1 - class
        for index, leg in enumerate(tables.legs):
            target = leg.target if leg.target >= 0 else -1 - leg.class_index
            self.into.setdefault(target, []).append(index)
        self.work_rng = np.random.default_rng((scenario.seed, 1))
        self.rows: list[tuple[float, float, int]] = []
        self.area, self.present, self.since_s, self.num_retries = 0.0, 0, 0.0, 0
        self._take(tables)

    def _take(self, tables: Tables) -> None:
        """The links as they are from now on; messages under way pass them at their new speed."""
        self.tables, self.sight.link_jobs = tables, [0] * len(tables.hops)
        for index, (hop, byte_s) in enumerate(zip(tables.hops, tables.byte_s.tolist(), strict=True)):
            key = (hop.source, hop.target)
            if key in self.links:
                self.links[key].set_speed(1 / byte_s)
            else:
                self.links[key] = Station(self.env, self.scenario.link_discipline, 1 / byte_s)
            self.links[key].count_in(self.sight.link_jobs, index)
        stations = [self.links[hop.source, hop.target] for hop in tables.hops]
        self.ways = [[stations[h] for h in np.flatnonzero(row)] for row in tables.way]
        self.latency_s, self.work_s = tables.way_latency_s.tolist(), tables.work_s.tolist()
        self.router = self.make_router(tables, self.sight)

    def run(self) -> Answered:
        """Until every request is answered."""
        for n, one in enumerate(self.tables.problem.classes):
            self.env.process(self._arrive(n, one))
        for outage in self.scenario.outages:
            self.env.process(self._fail(outage))
        for moment in self.scenario.moments:
            self.env.process(self._change(moment))
        self.env.run()
        counted = sorted(row for row in self.rows if row[0] >= self.scenario.warm_up_s)
        found = np.array(counted, dtype=np.float64).reshape(-1, 3)
        return Answered(
            arrival_s=found[:, 0],
            latency_s=found[:, 1],
            class_index=found[:, 2].astype(np.int64),
            deadline_s=np.array([one.deadline_s for one in self.tables.problem.classes]),
            mean_present=self.area / (self.scenario.duration_s - self.scenario.warm_up_s),
            num_retries=self.num_retries,
        )

    def _arrive(self, n: int, one: RequestClass) -> Steps:
        rng = np.random.default_rng((self.scenario.seed, 2, n))
        given = self.scenario.arrival_per_s
        rate_per_s = one.arrival_per_s if given is None else given[n]
        for arrival_s in arrival_times_s(rate_per_s, self.scenario, rng):
            yield self.env.timeout(arrival_s - self.env.now)
            self.env.process(self._request(n))

    def _fail(self, outage: Outage) -> Steps:
        node = self.tables.node_index[outage.node]
        yield self.env.timeout(outage.start_s)
        self.sight.is_up[node] = False
        self.nodes[node].lose_all()
        yield self.env.timeout(outage.duration_s)
        self.sight.is_up[node] = True
        back, self.up[node] = self.up[node], self.env.event()
        back.succeed()

    def _change(self, moment: Moment) -> Steps:
        yield self.env.timeout(moment.start_s)
        self._take(moment.tables)

    def _count(self, change: int) -> None:
        """Integrates the number present over the counted time."""
        start_s = max(self.since_s, self.scenario.warm_up_s)
        end_s = min(self.env.now, self.scenario.duration_s)
        self.area += self.present * max(end_s - start_s, 0.0)
        self.present, self.since_s = self.present + change, self.env.now

    def _request(self, n: int) -> Steps:
        """One request from its arrival to its answer."""
        arrival_s, home = self.env.now, int(self.tables.home[n])
        self._count(1)
        at: dict[int, int] = {-1: home}  # where each call's output lies
        if self.tables.graphs[n].is_chain:
            for k in self.calls[n]:
                yield from self._call(k, at, {})
        else:
            done: dict[int, simpy.Event] = {}
            for k in self.calls[n]:
                done[k] = self.env.process(self._call(k, at, done))
            yield self.env.all_of(list(done.values()))
        yield from self._gather(-1 - n, home, at)
        self._count(-1)
        self.rows.append((arrival_s, self.env.now - arrival_s, n))

    def _call(self, k: int, at: dict[int, int], done: Mapping[int, simpy.Event]) -> Steps:
        """A call on the node that the router chooses, again on another where it was lost."""
        sources = [self.tables.legs[i].source for i in self.into[k]]
        before = [done[source] for source in sources if source in done]
        if before:
            yield self.env.all_of(before)
        while True:
            node = self.router.choose(k, at[sources[-1]], self.sight)
            yield from self._gather(k, node, at)
            if not self.sight.is_up[node]:
                replica = self.router.choose(k, at[sources[-1]], self.sight)
                if replica == node or not self.sight.is_up[replica]:
                    yield self.up[node]
            work_s = self.work_s[k][node]
            if self.scenario.work == "exponential":
                work_s *= self.work_rng.exponential()
            if self.sight.is_up[node] and (yield self.nodes[node].submit(work_s)):
                at[k] = node
                return
            self.num_retries += 1

    def _gather(self, target: int, node: int, at: Mapping[int, int]) -> Steps:
        """All messages that a call (or home) waits for, side by side."""
        legs = [self.tables.legs[i] for i in self.into[target]]
        if len(legs) == 1:
            yield from self._send(at[legs[0].source], node, legs[0].payload_bytes)
            return
        sent = [self.env.process(self._send(at[leg.source], node, leg.payload_bytes)) for leg in legs]
        yield self.env.all_of(sent)

    def _send(self, source: int, target: int, payload_bytes: int) -> Steps:
        """A message, link after link; their latencies at its end."""
        way = source * len(self.nodes) + target
        latency_s = self.latency_s[way]
        for link in self.ways[way] if payload_bytes else ():
            yield link.submit(payload_bytes)
        if latency_s:
            yield self.env.timeout(latency_s)
