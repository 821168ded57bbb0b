"""What is to be placed: services, the classes of requests that pass them, and the network they share.

A service is a module that several tasks share. A request enters at its class's home (a device or an access
server), passes the services of its class along the graph's edges, and its answer is due at home.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from airlam.specs import require
from airlam.split.fleet import OWN_DEVICE
from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.network import EdgeNetwork
from airlam.split.plan import Schedule, SplitPlan

REQUEST, ANSWER = "request", "answer"  # without work, at home: where a class's graph begins and ends


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClass:
    """Requests of one kind from one place.

    home: the node at which they arise and are to be answered. services: what they pass; the edges between
    these are the graph's. arrival_per_s: mean rate. deadline_s: from arrival to answer. input_bytes: to each
    service that takes from no other of them; output_bytes: from each that gives to none. loads: what its own
    requests take of the services and send between them, where that differs from the problem's graph.
    """

    name: str
    home: str
    services: tuple[str, ...]
    arrival_per_s: float
    deadline_s: float = math.inf
    input_bytes: int = 0
    output_bytes: int = 0
    loads: ModuleGraph | None = None

    def __post_init__(self) -> None:
        require(len(self.services) > 0, f"class {self.name} passes no service; name at least one")
        twice = len(set(self.services)) < len(self.services)
        require(not twice, f"class {self.name} passes a service twice; a request passes each once")
        for key in ("arrival_per_s", "deadline_s"):
            value = getattr(self, key)
            require(value > 0, f"class {self.name}: {key} must be positive, got {value}")
        least = min(self.input_bytes, self.output_bytes)
        require(least >= 0, f"class {self.name}: {least} bytes of payload; expected >= 0")
        known = self.services if self.loads is None else self.loads.order
        missing = ", ".join(service for service in self.services if service not in known)
        require(not missing, f"class {self.name}: its loads leave out {missing}; give one of each service")


@dataclass(frozen=True, kw_only=True)
class ServiceProblem:
    r"""Where to run instances of services, and to which of them each class sends its requests.

        minimise  sum_n lambda_n T_n / sum_n lambda_n + instance_s * (number of instances)

    T_n is the mean time from a request's arrival to its answer: the longest path through its services, where
    work takes s / (1 - rho) on a node of load rho and a message its air time / (1 - rho) on a link of load
    rho. That is the mean in a network of processor-sharing queues with Poisson arrivals (BCMP, 1975), exact
    where a class's services form a chain, and below the mean where branches join. Subject to

    - an instance holds its weights and the working set of one request, those of ``graph``: sums within each
      node's memory, and weights within its storage;
    - at least ``min_replicas`` instances of each service on different nodes, or as many as nodes may run it;
    - loads of nodes and links of at most ``max_load``.

    pins: service -> nodes that may run it, by default every server; ``OWN_DEVICE`` among them is a class's
    home, which works for its own requests only and is no replica for others. schedule: shares of radio bands,
    by default equal.
    """

    graph: ModuleGraph
    network: EdgeNetwork
    classes: tuple[RequestClass, ...]
    schedule: Schedule | None = None
    pins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    min_replicas: int = 2
    max_load: float = 0.95
    instance_s: float = 0.0

    def __post_init__(self) -> None:
        require(len(self.classes) > 0, "there is no class of requests; nothing is to be placed")
        names = [one.name for one in self.classes]
        require(len(set(names)) == len(names), "two classes of requests have one name; names must differ")
        for one in self.classes:
            require(one.home in self.network.by_name, f"{one.name} is at home on {one.home!r}, no node")
            for service in one.services:
                known = service in self.graph.by_name
                require(known, f"{one.name} passes {service!r}; services: {', '.join(self.graph.order)}")
        for service, nodes in self.pins.items():
            require(service in self.graph.by_name, f"pins name {service!r}, which is no service")
            require(len(nodes) > 0, f"no node may run {service}; give it one in pins")
            for node in nodes:
                known = node == OWN_DEVICE or node in self.network.by_name
                require(known, f"{service} is pinned to {node!r}, which is no node")
        require(self.min_replicas >= 1, f"min_replicas is {self.min_replicas}; expected at least 1")
        require(0 < self.max_load < 1, f"max_load is {self.max_load}; expected above 0 and below 1")
        require(self.instance_s >= 0, f"instance_s is {self.instance_s}; expected >= 0")

    @cached_property
    def shares(self) -> Schedule:
        """The schedule, or equal shares."""
        return self.schedule if self.schedule is not None else Schedule.equal(self.network)

    @cached_property
    def services(self) -> tuple[str, ...]:
        """The services that some class passes, in the graph's order."""
        used = {name for one in self.classes for name in one.services}
        return tuple(name for name in self.graph.order if name in used)

    def nodes_for(self, service: str) -> tuple[str, ...]:
        """Nodes whose instances every class may use."""
        named = self.pins.get(service, self.network.servers)
        return tuple(node for node in named if node != OWN_DEVICE)

    def nodes_of_call(self, one: RequestClass, service: str) -> tuple[str, ...]:
        """Nodes that may run a service for a class."""
        own = OWN_DEVICE in self.pins.get(service, ())
        return tuple(dict.fromkeys((*self.nodes_for(service), *((one.home,) if own else ()))))

    def replicas_wanted(self, service: str) -> int:
        """Least number of instances that every class may use."""
        return min(self.min_replicas, len(self.nodes_for(service)))

    def class_graph(self, one: RequestClass) -> ModuleGraph:
        """A class's services between ``REQUEST`` and ``ANSWER``, as ``cost`` takes it."""
        part = (one.loads or self.graph).restricted_to(one.services)
        ends = (Module(name=REQUEST, forward_flops=0.0), Module(name=ANSWER, forward_flops=0.0))
        first = [name for name in part.order if not part.incoming[name]]
        last = [name for name in part.order if not part.outgoing[name]]
        return ModuleGraph(
            modules=(ends[0], *part.modules, ends[1]),
            edges=(
                *(_payload(REQUEST, name, one.input_bytes) for name in first),
                *part.edges,
                *(_payload(name, ANSWER, one.output_bytes) for name in last),
            ),
            batch_size=part.batch_size,
        )


def _payload(source: str, target: str, num_bytes: int) -> Edge:
    return Edge(source=source, target=target, num_elements=0, fixed_bytes=num_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """hosts: service -> nodes with an instance. routes: class -> service -> the node that it takes."""

    hosts: Mapping[str, tuple[str, ...]]
    routes: Mapping[str, Mapping[str, str]]

    def __post_init__(self) -> None:
        for name, route in self.routes.items():
            for service, node in route.items():
                held = node in self.hosts.get(service, ())
                require(held, f"class {name} is to take {service} on {node!r}, which has no instance of it")

    def services_on(self, node: str) -> tuple[str, ...]:
        """Services with an instance on a node."""
        return tuple(service for service, nodes in self.hosts.items() if node in nodes)

    def plan_of(self, one: RequestClass) -> SplitPlan:
        """One class's way, over its ``class_graph``."""
        return SplitPlan.single({REQUEST: one.home, **self.routes[one.name], ANSWER: one.home})
