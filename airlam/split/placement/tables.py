"""A service problem as arrays: what each call, message and instance takes, on each node and link.

A call is one class's use of one service; a leg is a message between two calls, or between home and a call.
All prices come from ``airlam.split.resources``. Candidates (the nodes of all calls) are priced many at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from airlam.errors import SpecError
from airlam.split.network import Hop
from airlam.split.placement.services import ANSWER, REQUEST, Placement, ServiceProblem
from airlam.split.resources import Resources

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_CLIPPED = 0.999  # load beyond which a queue is priced as at this load, so that prices stay finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """A message of one class. source, target: calls; -1 is home."""

    class_index: int
    source: int
    target: int
    payload_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """What candidates use and are worth. excess: sum of relative excesses over limits [num_candidates].

    value_s: the objective. latency_s: mean of each class [num_candidates, num_classes]. node_load: [...,
    num_nodes]. link_load: [..., num_links].
    """

    excess: Floats
    value_s: Floats
    latency_s: Floats
    node_load: Floats
    link_load: Floats


class Room:
    """What instances, held [num_services, num_nodes], leave of each node's memory and storage.

    services: an index of one, or several whose instances belong together.
    """

    def __init__(self, tables: "Tables", held: Bools) -> None:
        self._instance_bytes, self._weight_bytes = tables.instance_bytes, tables.weight_bytes
        self.memory_bytes: Floats = tables.memory - tables.instance_bytes @ held  # [num_nodes]
        self.storage_bytes: Floats = tables.storage - tables.weight_bytes @ held  # [num_nodes]

    def fits(self, services: int | Ints) -> Bools:
        """Nodes with room for an instance of each: [num_nodes]."""
        in_memory = self.memory_bytes >= self._instance_bytes[services].sum()
        fits: Bools = in_memory & (self.storage_bytes >= self._weight_bytes[services].sum())
        return fits

    def take(self, services: int | Ints, node: int) -> None:
        """Puts an instance of each on a node, whether or not it fits."""
        self.memory_bytes[node] -= self._instance_bytes[services].sum()
        self.storage_bytes[node] -= self._weight_bytes[services].sum()


class Tables:
    """Prices of one problem, made once; SpecError where a class can reach no node that may run a service."""

    def __init__(self, problem: ServiceProblem) -> None:
        self.problem = problem
        self.resources = Resources(network=problem.network, schedule=problem.shares)
        self.nodes = tuple(problem.network.by_name)
        self.services = problem.services
        self.node_index: Mapping[str, int] = {name: i for i, name in enumerate(self.nodes)}
        self.service_index: Mapping[str, int] = {name: i for i, name in enumerate(self.services)}
        self.graphs = [problem.class_graph(one) for one in problem.classes]
        self.calls = [
            (n, name)
            for n, graph in enumerate(self.graphs)
            for name in graph.order
            if name not in (REQUEST, ANSWER)
        ]
        self.call_class: Ints = np.array([n for n, _ in self.calls])
        self.call_service: Ints = np.array([self.service_index[name] for _, name in self.calls])
        self.home: Ints = np.array([self.node_index[one.home] for one in problem.classes])
        self.rate: Floats = np.array([one.arrival_per_s for one in problem.classes])
        self.legs = self._legs()
        self._price_nodes()
        self._price_links()
        self.is_serial = all(graph.is_chain for graph in self.graphs)

    def _legs(self) -> tuple[Leg, ...]:
        number = {call: k for k, call in enumerate(self.calls)}
        legs = []
        for n, graph in enumerate(self.graphs):
            for edge in graph.edges:
                source = number.get((n, edge.source), -1)
                target = number.get((n, edge.target), -1)
                size = edge.forward_bytes()
                legs.append(Leg(class_index=n, source=source, target=target, payload_bytes=size))
        return tuple(legs)

    def _price_nodes(self) -> None:
        problem, by_name = self.problem, self.problem.graph.by_name
        self.work_s: Floats = np.full((len(self.calls), len(self.nodes)), np.inf)
        for k, (n, name) in enumerate(self.calls):
            for node in problem.nodes_of_call(problem.classes[n], name):
                seconds = self.resources.compute_s(node, self.graphs[n].by_name[name].forward_flops)
                self.work_s[k, self.node_index[node]] = seconds
        loads = [by_name[name] for name in self.services]
        self.weight_bytes: Floats = np.array([float(one.parameter_bytes) for one in loads])
        self.instance_bytes: Floats = self.weight_bytes + [float(one.working_bytes) for one in loads]
        self.memory: Floats = np.array([node.memory_bytes for node in problem.network.nodes])
        self.storage: Floats = np.array([node.storage_bytes for node in problem.network.nodes])
        self.wanted: Ints = np.array([problem.replicas_wanted(name) for name in self.services])
        self.may_host: Bools = np.zeros((len(self.services), len(self.nodes)), dtype=bool)
        for m, name in enumerate(self.services):
            self.may_host[m, [self.node_index[node] for node in problem.nodes_for(name)]] = True

    def _price_links(self) -> None:
        """Every directed link, and which of them lead from node to node."""
        count = len(self.nodes)
        links: dict[tuple[str, str], int] = {}
        hops: list[Hop] = []
        ways: list[tuple[int, list[int]]] = []
        self.reaches: Bools = np.zeros(count * count, dtype=bool)
        for i, source in enumerate(self.nodes):
            for j, target in enumerate(self.nodes):
                route = self._route(source, target)
                if route is None:
                    continue
                for hop in route:
                    if (hop.source, hop.target) not in links:
                        links[hop.source, hop.target] = len(hops)
                        hops.append(hop)
                self.reaches[i * count + j] = True
                ways.append((i * count + j, [links[hop.source, hop.target] for hop in route]))
        self.hops = tuple(hops)
        self.way: Floats = np.zeros((count * count, len(hops)))  # 1 where a way from i to j passes a link
        for pair, passed in ways:
            self.way[pair, passed] = 1.0
        self.byte_s: Floats = np.array([self.resources.hop_air_s(hop, 1.0) for hop in hops])
        self.way_latency_s: Floats = self.way @ np.array([hop.link.latency_s for hop in hops])
        self.leg_bytes: Floats = np.array([float(leg.payload_bytes) for leg in self.legs])
        self.leg_class: Ints = np.array([leg.class_index for leg in self.legs])

    def _route(self, source: str, target: str) -> tuple[Hop, ...] | None:
        """None where no link with a rate leads there."""
        try:
            route = self.problem.network.route(source, target)
            rates = [self.resources.hop_rate_bps(hop) for hop in route]
        except SpecError:
            return None
        return route if all(rate > 0 for rate in rates) else None

    @cached_property
    def allowed(self) -> tuple[Ints, ...]:
        """Nodes that each call may take: it may run there, and messages from and to home can be sent."""
        count, found = len(self.nodes), []
        both = self.reaches.reshape(count, count) & self.reaches.reshape(count, count).T
        for k, (n, name) in enumerate(self.calls):
            nodes = np.flatnonzero(np.isfinite(self.work_s[k]) & both[self.home[n]])
            if not len(nodes):
                one = self.problem.classes[n]
                raise SpecError(
                    f"{one.name} reaches no node from {one.home} that may run {name}; add a link, or pin it "
                    "to other nodes"
                )
            found.append(nodes)
        return tuple(found)

    def ends(self, at: Ints) -> Ints:
        """Which way each leg goes, source node * num_nodes + target node: [num_candidates, num_legs]."""
        columns = []
        for leg in self.legs:
            home = np.full(len(at), self.home[leg.class_index])
            source = at[:, leg.source] if leg.source >= 0 else home
            target = at[:, leg.target] if leg.target >= 0 else home
            columns.append(source * len(self.nodes) + target)
        return np.stack(columns, axis=1)

    def price(self, at: Ints) -> Priced:
        """Prices of candidates, at [num_candidates, num_calls]: the node of each call."""
        batch = np.arange(len(at))[:, None]
        work_s = self.work_s[np.arange(len(self.calls)), at]  # [num_candidates, num_calls]
        node_load = np.zeros((len(at), len(self.nodes)))
        np.add.at(node_load, (batch, at), self.rate[self.call_class] * work_s)
        ways = self.ends(at)
        sent = self.rate[self.leg_class] * self.leg_bytes  # bytes/s of each leg
        passed = self.way[ways]  # [num_candidates, num_legs, num_links]
        link_load = np.einsum("l,blh->bh", sent, passed) * self.byte_s
        spent_s = work_s / (1 - np.minimum(node_load, _CLIPPED)[batch, at])
        link_s = self.byte_s / (1 - np.minimum(link_load, _CLIPPED))
        leg_s = self.way_latency_s[ways] + self.leg_bytes * np.einsum("blh,bh->bl", passed, link_s)
        leg_s = np.where(self.reaches[ways], leg_s, np.inf)
        latency_s = self._latency_s(at, spent_s, leg_s)
        used = self.used(at)
        memory = used.astype(float).transpose(0, 2, 1) @ self.instance_bytes
        stored = used.astype(float).transpose(0, 2, 1) @ self.weight_bytes
        top = self.problem.max_load
        excess = sum(
            np.maximum(amount / limit - 1, 0).sum(axis=1)
            for amount, limit in (
                (node_load, top),
                (link_load, top),
                (memory, self.memory),
                (stored, self.storage),
            )
        )
        replicas = np.maximum((used & self.may_host).sum(axis=2), self.wanted).sum(axis=1)
        instances = replicas + (used & ~self.may_host).sum(axis=(1, 2))
        value_s = latency_s @ self.rate / self.rate.sum() + self.problem.instance_s * instances
        return Priced(
            excess=np.where(np.isfinite(value_s), np.where(excess > 1e-9, excess, 0.0), np.inf),
            value_s=value_s,
            latency_s=latency_s,
            node_load=node_load,
            link_load=link_load,
        )

    def used(self, at: Ints) -> Bools:
        """Which instances the calls take: [num_candidates, num_services, num_nodes]."""
        used = np.zeros((len(at), len(self.services), len(self.nodes)), dtype=bool)
        used[np.arange(len(at))[:, None], self.call_service, at] = True
        return used

    def _latency_s(self, at: Ints, spent_s: Floats, leg_s: Floats) -> Floats:
        """The recursion of ``timeline`` forward, many candidates at once: [num_candidates, num_classes].

        As there, a class's time is at least what it works on any one node.
        """
        into: dict[int, list[int]] = {}
        for index, leg in enumerate(self.legs):
            into.setdefault(leg.target if leg.target >= 0 else -1 - leg.class_index, []).append(index)
        ends: dict[int, Floats] = {}

        def start_s(key: int) -> Floats:
            arrivals = [ends.get(self.legs[i].source, 0.0) + leg_s[:, i] for i in into[key]]
            return arrivals[0] if len(arrivals) == 1 else np.maximum.reduce(arrivals)

        for k in range(len(self.calls)):
            ends[k] = start_s(k) + spent_s[:, k]
        latency_s = np.stack([start_s(-1 - n) for n in range(len(self.graphs))], axis=1)
        for n, graph in enumerate(self.graphs):
            if not graph.is_chain:
                own = np.flatnonzero(self.call_class == n)
                busy = np.zeros((len(at), len(self.nodes)))
                np.add.at(busy, (np.arange(len(at))[:, None], at[:, own]), spent_s[:, own])
                latency_s[:, n] = np.maximum(latency_s[:, n], busy.max(axis=1))
        return latency_s

    def hosts(self, at: Ints, before: Bools | None = None) -> Bools | None:
        """Instances for calls at [num_calls], and as many more as replicas are wanted; None where none fit.

        Services with the largest instances first, each on the allowed node with most memory to spare; where
        it has an instance already (``before``) rather than elsewhere. [num_services, num_nodes].
        """
        held: Bools = self.used(at[None])[0]
        room = Room(self, held)
        for m in np.argsort(-self.instance_bytes, kind="stable"):
            while (held[m] & self.may_host[m]).sum() < self.wanted[m]:
                fits = self.may_host[m] & ~held[m] & room.fits(m)
                if not fits.any():
                    return None
                there = fits if before is None or not (fits & before[m]).any() else fits & before[m]
                node = int(np.argmax(np.where(there, room.memory_bytes, -math.inf)))
                held[m, node] = True
                room.take(m, node)
        return held

    def placement(self, at: Ints, held: Bools) -> Placement:
        """The arrays by name."""
        routes: dict[str, dict[str, str]] = {one.name: {} for one in self.problem.classes}
        for (n, name), node in zip(self.calls, at, strict=True):
            routes[self.problem.classes[n].name][name] = self.nodes[node]
        hosts = {
            name: tuple(self.nodes[v] for v in np.flatnonzero(held[m]))
            for m, name in enumerate(self.services)
        }
        return Placement(hosts=hosts, routes=routes)

    def nodes_of(self, placement: Placement) -> Ints:
        """The node of each call of a placement: [num_calls]."""
        names = (placement.routes[self.problem.classes[n].name][name] for n, name in self.calls)
        return np.array([self.node_index[name] for name in names])

    def held_of(self, placement: Placement) -> Bools:
        """Its instances: [num_services, num_nodes]."""
        held = np.zeros((len(self.services), len(self.nodes)), dtype=bool)
        for m, name in enumerate(self.services):
            held[m, [self.node_index[node] for node in placement.hosts[name]]] = True
        return held
