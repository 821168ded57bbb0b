"""How a service graph is cut for many machines: into units that stay whole.

A unit is a tokeniser, a backbone with what leads into it, or a head. Blocks are not apart from each other: a
backbone is one matrix product after the other on one batch, and a message costs more than a block of a small
LAM. Context goes from tokeniser to head past the backbone.
"""

from collections.abc import Mapping
from dataclasses import replace

from airlam.serving.module_sharing import HEAD
from airlam.serving.ray_messages import FUTURE, HIDDEN, PHASES, TOKENS
from airlam.serving.service_graph import ServiceGraph
from airlam.serving.service_loads import ServiceLoads
from airlam.split.graph import Edge, Module, ModuleGraph

_INNER = ("embedding", "block.", "norm")
_MODULE_OF = {TOKENS: "tokenizer.csi", HIDDEN: "norm", FUTURE: HEAD}


def units_of(graph: ServiceGraph) -> dict[str, str]:
    """Service -> the unit it is of, named after one of its services."""
    unit_of = {service.name: service.name for service in graph.services}
    for flow in graph.flows.values():
        joined = {unit_of[service] for module, service in flow.items() if module.startswith(_INNER)}
        kept = unit_of[flow["norm"]]
        unit_of |= {service: kept for service, unit in unit_of.items() if unit in joined}
    return unit_of


def condensed(loads: ServiceLoads, unit_of: Mapping[str, str]) -> ServiceLoads:
    """The loads of units: work and bytes add up, working sets are one after another."""
    flows = {task: _condensed(flow, unit_of) for task, flow in loads.flows.items()}
    return ServiceLoads(graph=_condensed(loads.graph, unit_of), flows=flows)


def hosts_of_phases(
    graph: ServiceGraph, unit_of: Mapping[str, str], hosts: Mapping[str, tuple[str, ...]], lam: str
) -> tuple[tuple[str, ...], ...]:
    """The nodes that can run each phase of a LAM's requests."""
    units = (unit_of[graph.service_of(lam, _MODULE_OF[phase])] for phase in PHASES)
    return tuple(hosts[unit] for unit in units)


def located(graph: ServiceGraph, nodes: Mapping[str, tuple[str, ...]]) -> ServiceGraph:
    """The graph with the nodes of its services; those that are not named stay as they are."""
    services = (replace(one, nodes=nodes.get(one.name, one.nodes)) for one in graph.services)
    return replace(graph, services=tuple(services))


def _condensed(graph: ModuleGraph, unit_of: Mapping[str, str]) -> ModuleGraph:
    members: dict[str, list[Module]] = {}
    for name in graph.order:
        members.setdefault(unit_of[name], []).append(graph.by_name[name])
    edges: dict[tuple[str, str], Edge] = {}
    for edge in graph.edges:
        key = unit_of[edge.source], unit_of[edge.target]
        if key[0] != key[1]:
            moved = Edge(
                source=key[0], target=key[1], num_elements=0, fixed_bytes=round(edge.forward_bytes())
            )
            edges[key] = max(moved, edges.get(key, moved), key=Edge.forward_bytes)
    modules = tuple(_joined(unit, parts) for unit, parts in members.items())
    return ModuleGraph(modules=modules, edges=tuple(edges.values()), batch_size=graph.batch_size)


def _joined(unit: str, parts: list[Module]) -> Module:
    return Module(
        name=unit,
        forward_flops=sum(part.forward_flops for part in parts),
        parameter_bytes=sum(part.parameter_bytes for part in parts),
        working_bytes=max(part.working_bytes for part in parts),
        output_bytes=parts[-1].output_bytes,
    )
