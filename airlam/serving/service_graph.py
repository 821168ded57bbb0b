"""The services of several tasks as one directed acyclic graph in which equal modules stand once.

A task is a flow over services. Two tasks share a service where the module behind it is the same: same name in
the model, same weights. After Wang et al., Edge Large AI Models, 2505.00321, who say so in prose and picture;
that a fingerprint decides is a reconstruction.
"""

import graphlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from airlam.errors import SpecError
from airlam.specs import require


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskModules:
    """One task's modules and what each gives to which.

    identity_of: module name -> what its weights and shape are known by. edges: (source, target) names.
    """

    identity_of: Mapping[str, str]
    edges: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        for edge in self.edges:
            for end in edge:
                require(
                    end in self.identity_of, f"edge {edge[0]} -> {edge[1]}: no module {end!r} in the task"
                )

    @classmethod
    def chain(cls, identity_of: Mapping[str, str]) -> "TaskModules":
        """A task whose modules follow one another in the mapping's order."""
        names = tuple(identity_of)
        return cls(identity_of=identity_of, edges=tuple(itertools.pairwise(names)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One module that runs once, for the tasks that share it.

    name: the module's where all tasks share it, otherwise ``MODULE@TASK+TASK``. nodes: that have it, where it
    is not the process that holds this graph.
    """

    name: str
    module: str
    tasks: tuple[str, ...]
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ServiceGraph:
    """Services, edges between them, and each task's way through them.

    edges: (source, target) service names. flows: task -> module name -> service name. SpecError where what is
    shared closes a cycle.
    """

    services: tuple[Service, ...]
    edges: tuple[tuple[str, str], ...]
    flows: Mapping[str, Mapping[str, str]]

    def __post_init__(self) -> None:
        _ = self.order  # a cycle is refused here

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Service names so that each comes after those it takes from."""
        sorter = graphlib.TopologicalSorter({service.name: set[str]() for service in self.services})
        for source, target in self.edges:
            sorter.add(target, source)
        try:
            return tuple(sorter.static_order())
        except graphlib.CycleError as error:
            cycle = " -> ".join(error.args[1])
            raise SpecError(f"the service graph has a cycle: {cycle}; data must flow one way") from None

    @property
    def num_monolithic(self) -> int:
        """Module instances that run where each task has its own."""
        return sum(len(flow) for flow in self.flows.values())

    def service_of(self, task: str, module: str) -> str:
        """The service that runs a task's module."""
        return self.flows[task][module]


def merge(tasks: Mapping[str, TaskModules], *, is_whole: bool = True) -> ServiceGraph:
    """The graph in which modules of equal identity are one service.

    is_whole: whether there are no other tasks beside, whose services might have the same names.

    Within a task every module is a service of its own, whatever its identity: a second pass of one service by
    one request would be a cycle.
    """
    require(len(tasks) > 0, "there is no task to serve; name at least one")
    sharing: dict[tuple[str, str], list[str]] = {}
    for task, modules in tasks.items():
        for name, identity in modules.identity_of.items():
            sharing.setdefault((name, identity), []).append(task)
    services = {
        key: Service(
            name=_service_name(key[0], users, is_whole and len(users) == len(tasks)),
            module=key[0],
            tasks=tuple(users),
        )
        for key, users in sharing.items()
    }
    flows = {
        task: {name: services[name, identity].name for name, identity in modules.identity_of.items()}
        for task, modules in tasks.items()
    }
    edges = {
        (flows[task][source], flows[task][target]): None
        for task, modules in tasks.items()
        for source, target in modules.edges
    }
    return ServiceGraph(services=tuple(services.values()), edges=tuple(edges), flows=flows)


def _service_name(module: str, users: list[str], is_of_all: bool) -> str:
    return module if is_of_all else f"{module}@{'+'.join(users)}"


def beside(first: ServiceGraph, other: ServiceGraph) -> ServiceGraph:
    """Both graphs as one, which share nothing; their services' names must differ."""
    return ServiceGraph(
        services=(*first.services, *other.services),
        edges=(*first.edges, *other.edges),
        flows={**first.flows, **other.flows},
    )
