"""To which replica a request goes, decided call after call by what is known of the queues at that moment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from airlam.specs import require
from airlam.specs.reading import require_finite
from airlam.split.placement.services import Placement
from airlam.split.placement.tables import Tables

_FULL = 0.97  # load at which a node's mean queue is taken where there is more


@dataclass(slots=True)
class Sight:
    """What a router may know, lists that whoever runs the network keeps up to date.

    node_jobs, link_jobs: requests in each queue, by index in ``Tables``. is_up: of each node.
    """

    node_jobs: list[int]
    link_jobs: list[int]
    is_up: list[bool]

    @classmethod
    def idle(cls, tables: Tables) -> "Sight":
        """Empty queues, all nodes up."""
        nodes, links = len(tables.nodes), len(tables.hops)
        return cls(node_jobs=[0] * nodes, link_jobs=[0] * links, is_up=[True] * nodes)


class Router(Protocol):
    """Chooses a node for a call."""

    def choose(self, call: int, source: int, sight: Sight) -> int:
        """The node (index) that takes a call whose input lies at node ``source``; one with an instance.

        Where no node with an instance is up, one that is down.
        """
        ...


class Replicas:
    """The nodes of each call that hold an instance and that its class may use."""

    def __init__(self, tables: Tables, placement: Placement) -> None:
        held = tables.held_of(placement)
        self.of_call = [
            [int(v) for v in nodes if held[tables.call_service[k], v]]
            for k, nodes in enumerate(tables.allowed)
        ]

    def up(self, call: int, sight: Sight) -> list[int]:
        """Those that are up, or all where none is."""
        nodes = self.of_call[call]
        return [v for v in nodes if sight.is_up[v]] or nodes


class PlannedRouter:
    """The placement's routes; where the planned node is down, the next replica that is up."""

    def __init__(self, tables: Tables, placement: Placement) -> None:
        self._replicas = Replicas(tables, placement)
        self._at = [int(v) for v in tables.nodes_of(placement)]

    def choose(self, call: int, source: int, sight: Sight) -> int:
        """See ``Router``."""
        if sight.is_up[self._at[call]]:
            return self._at[call]
        return self._replicas.up(call, sight)[0]


class RandomRouter:
    """Any replica, all equally likely."""

    def __init__(self, tables: Tables, placement: Placement, generator: np.random.Generator) -> None:
        self._replicas, self._generator = Replicas(tables, placement), generator

    def choose(self, call: int, source: int, sight: Sight) -> int:
        """See ``Router``."""
        nodes = self._replicas.up(call, sight)
        return nodes[int(self._generator.integers(len(nodes)))]


class RoundRobinRouter:
    """The replicas of a service in turn, whoever asks."""

    def __init__(self, tables: Tables, placement: Placement) -> None:
        self._replicas = Replicas(tables, placement)
        self._service = [int(m) for m in tables.call_service]
        self._turn = [0] * len(tables.services)

    def choose(self, call: int, source: int, sight: Sight) -> int:
        """See ``Router``."""
        nodes = self._replicas.up(call, sight)
        turn = self._turn[self._service[call]]
        self._turn[self._service[call]] = turn + 1
        return nodes[turn % len(nodes)]


class LeastLoadedRouter:
    """The replica whose node has the fewest requests."""

    def __init__(self, tables: Tables, placement: Placement) -> None:
        self._replicas = Replicas(tables, placement)

    def choose(self, call: int, source: int, sight: Sight) -> int:
        """See ``Router``."""
        return min(self._replicas.up(call, sight), key=lambda v: sight.node_jobs[v])


class NearestRouter:
    """The replica that an idle network would answer from first, whatever its queue."""

    def __init__(self, tables: Tables, placement: Placement) -> None:
        self._ahead = _Ahead(tables, placement, QueueWeights())
        self._idle = Sight.idle(tables)

    def choose(self, call: int, source: int, sight: Sight) -> int:
        """See ``Router``."""
        self._idle.is_up = sight.is_up
        return self._ahead.best(call, source, self._idle)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueWeights:
    """How a router reads queues; the defaults are those of a fair queue that stays as it is.

    Work that takes w alone is expected to take w (1 + node n^node_power) exp(load (rho - 1/2)) on a node with
    n other requests and w (1 + link n^link_power) on a link. rho: the node's load where replicas share
    requests by their speeds. By the time of later calls a queue has the share ``now`` of what it has now, the
    rest of its mean rho / (1 - rho). after: what the way behind the call counts.
    """

    node: float = 1.0
    node_power: float = 1.0
    link: float = 1.0
    link_power: float = 1.0
    load: float = 0.0
    now: float = 1.0
    after: float = 1.0

    def __post_init__(self) -> None:
        require_finite(self)
        weights = (self.node, self.node_power, self.link, self.link_power, self.after)
        require(
            min(weights) > 0 and 0 <= self.now <= 1,
            f"weights of queues are {self}; expected now of 0 to 1, load of any sign, the others above 0",
        )


class ShortestDelayRouter:
    """Joins the replica from which the answer is expected first, the rest of the way included.

    What comes after the call is taken at its best under the queues of the moment (a shortest path through the
    replicas of all later calls): join-shortest-expected-delay, with a look ahead.
    """

    def __init__(self, tables: Tables, placement: Placement, weights: QueueWeights | None = None) -> None:
        """weights: as trained (``airlam.serving.router_training``); by default those of fair queues."""
        self._ahead = _Ahead(tables, placement, weights or QueueWeights())

    def choose(self, call: int, source: int, sight: Sight) -> int:
        """See ``Router``."""
        return self._ahead.best(call, source, sight)


class _Ahead:
    """Times from a call to the answer, in plain lists: it is asked at every hop."""

    def __init__(self, tables: Tables, placement: Placement, weights: QueueWeights) -> None:
        self._replicas, self._weights = Replicas(tables, placement), weights
        rho = shared_loads(tables, self._replicas)
        self._slowed: list[float] = np.exp(weights.load * (rho - 0.5)).tolist()
        self._mean_jobs: list[float] = (rho / (1 - rho)).tolist()
        self._work_s: list[list[float]] = tables.work_s.tolist()
        self._home = [int(tables.home[n]) for n in tables.call_class]
        self._way = [[int(h) for h in np.flatnonzero(row)] for row in tables.way]
        self._latency_s = [
            float(s) if reached else math.inf
            for s, reached in zip(tables.way_latency_s, tables.reaches, strict=True)
        ]
        self._count = len(tables.nodes)
        self._byte_s: list[float] = tables.byte_s.tolist()
        self._into = [0] * len(tables.calls)
        self._out: list[list[tuple[int, int]]] = [[] for _ in tables.calls]
        for leg in tables.legs:
            if leg.target >= 0:
                self._into[leg.target] = max(self._into[leg.target], leg.payload_bytes)
            if leg.source >= 0:
                self._out[leg.source].append((leg.target, leg.payload_bytes))

    def best(self, call: int, source: int, sight: Sight) -> int:
        """The node from which the answer is expected first."""
        nodes = self._replicas.up(call, sight)
        if len(nodes) == 1:
            return nodes[0]
        known: dict[tuple[int, int], float] = {}
        size, weights = self._into[call], self._weights

        def expected_s(node: int) -> float:
            others = weights.node * math.pow(sight.node_jobs[node], weights.node_power)
            own_s = self._work_s[call][node] * (1 + others) * self._slowed[node]
            after_s = weights.after * self._after_s(call, node, sight, known)
            return self._message_s(source, node, size, sight) + own_s + after_s

        return min(nodes, key=expected_s)

    def _rest_s(self, call: int, node: int, sight: Sight, known: dict[tuple[int, int], float]) -> float:
        """From the input of a later call at a node to the answer at home."""
        found = known.get((call, node))
        if found is None:
            weights = self._weights
            others = weights.node * math.pow(sight.node_jobs[node], weights.node_power)
            later = weights.now * others + (1 - weights.now) * self._mean_jobs[node]
            own_s = self._work_s[call][node] * (1 + later) * self._slowed[node]
            found = own_s + weights.after * self._after_s(call, node, sight, known)
            known[call, node] = found
        return found

    def _after_s(self, call: int, node: int, sight: Sight, known: dict[tuple[int, int], float]) -> float:
        """From a call's output at a node to the answer at home."""
        after = 0.0
        for target, size in self._out[call]:
            nodes: Sequence[int] = self._replicas.up(target, sight) if target >= 0 else (self._home[call],)
            times = (
                self._message_s(node, v, size, sight)
                + (self._rest_s(target, v, sight, known) if target >= 0 else 0.0)
                for v in nodes
            )
            after = max(after, min(times))
        return after

    def _message_s(self, source: int, target: int, size: int, sight: Sight) -> float:
        way = source * self._count + target
        link, power = self._weights.link, self._weights.link_power
        air_s = sum(
            self._byte_s[h] * (1 + link * math.pow(sight.link_jobs[h], power)) for h in self._way[way]
        )
        return self._latency_s[way] + size * air_s


def shared_loads(tables: Tables, replicas: Replicas) -> NDArray[np.float64]:
    """Each node's load, below 1, where replicas share their call's requests by speed: [num_nodes]."""
    load = np.zeros(len(tables.nodes))
    for call, nodes in enumerate(replicas.of_call):
        # a share of 1 / w_v over their sum, times w_v: all of the same load
        load[nodes] += tables.rate[tables.call_class[call]] / (1 / tables.work_s[call, nodes]).sum()
    return np.minimum(load, _FULL)
