"""What a service graph takes of machines and links: the bridge from what is served to what is placed.

``service_graph.merge`` says which modules of some tasks are one service, a profile of each task's LAM
(``airlam.split.profile``) what its modules take; together they are a graph that ``airlam.split.placement``
places, with the names that the server has.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from airlam.serving.service_graph import Service, ServiceGraph
from airlam.specs import require
from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.placement.services import RequestClass


@dataclass(frozen=True, kw_only=True)
class ServiceLoads:
    """graph: all services; its bytes are of what all tasks that share a service need together, its FLOPs of
    the task that takes most. flows: task -> its services with what one of its own requests takes of them.
    """

    graph: ModuleGraph
    flows: Mapping[str, ModuleGraph]

    def request_class(
        self,
        task: str,
        *,
        home: str,
        arrival_per_s: float,
        deadline_s: float,
        input_bytes: int,
        output_bytes: int,
    ) -> RequestClass:
        """Requests of one task from one place, ``TASK from HOME``."""
        require(task in self.flows, f"no task {task!r} is served; choose one of {', '.join(self.flows)}")
        flow = self.flows[task]
        return RequestClass(
            name=f"{task} from {home}",
            home=home,
            services=flow.order,
            arrival_per_s=arrival_per_s,
            deadline_s=deadline_s,
            input_bytes=input_bytes,
            output_bytes=output_bytes,
            loads=flow,
        )


def service_loads(services: ServiceGraph, profiles: Mapping[str, ModuleGraph]) -> ServiceLoads:
    """The loads of some tasks' services.

    profiles: task -> its LAM's modules for one request, their LoRA at its rank (``at_ranks``). Of modules
    that are one service the frozen weights are there once, and what tuning added (LoRA, norms) once a task;
    where weights agree to the last, tuned ones too, they are there once. SpecError where a profile is of
    other modules than the task's.
    """
    flows = {task: _renamed(services, task, profiles) for task in services.flows}
    modules = tuple(
        _together(one, [flows[task].by_name[one.name] for task in one.tasks]) for one in services.services
    )
    edges: dict[tuple[str, str], Edge] = {}
    for flow in flows.values():
        for edge in flow.edges:
            edges[edge.key] = max(edge, edges.get(edge.key, edge), key=Edge.forward_bytes)
    return ServiceLoads(graph=ModuleGraph(modules=modules, edges=tuple(edges.values())), flows=flows)


def _renamed(services: ServiceGraph, task: str, profiles: Mapping[str, ModuleGraph]) -> ModuleGraph:
    """A task's profile with the names of its services."""
    require(task in profiles, f"there is no profile of task {task!r}; give one for each task")
    profile, names = profiles[task], services.flows[task]
    different = sorted(set(names) ^ set(profile.by_name))
    require(not different, f"task {task!r} and its profile differ in {', '.join(different)}")
    require(
        profile.batch_size == 1,
        f"the profile of {task!r} is of {profile.batch_size} links; make it for_batch(1)",
    )
    unranked = [module.name for module in profile.modules if module.lora is not None]
    require(not unranked, f"the profile of {task!r} has no LoRA rank yet; put it in with at_ranks")
    return ModuleGraph(
        modules=tuple(dataclasses.replace(module, name=names[module.name]) for module in profile.modules),
        edges=tuple(
            dataclasses.replace(edge, source=names[edge.source], target=names[edge.target])
            for edge in profile.edges
        ),
    )


def _together(service: Service, parts: list[Module]) -> Module:
    """One service for all its tasks."""
    trained = [part.trainable_bytes for part in parts]
    tuned = sum(trained) if _carries_adapters(service) else max(trained)
    return Module(
        name=service.name,
        forward_flops=max(part.forward_flops for part in parts),
        parameter_bytes=max(part.parameter_bytes - part.trainable_bytes for part in parts) + tuned,
        working_bytes=max(part.working_bytes for part in parts),
        output_bytes=max(part.output_bytes for part in parts),
        modality=parts[0].modality,
    )


def _carries_adapters(service: Service) -> bool:
    """Whether tasks share the frozen weights only, as in a backbone; elsewhere they share all."""
    return service.module.startswith("block.") or service.module == "norm"
