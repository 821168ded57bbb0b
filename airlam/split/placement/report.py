"""A placement as plain values for JSON, and as text for a terminal."""

import math
from typing import Any

from airlam.split.placement.services import ServiceProblem
from airlam.split.placement.solve import Placed


def placement_values(problem: ServiceProblem, placed: Placed) -> dict[str, Any]:
    """A placement and what it gives, as nested tables with units in their names.

    gap: None where no bound is known.
    """
    return {
        "hosts": {service: list(nodes) for service, nodes in placed.placement.hosts.items()},
        "routes": {name: dict(route) for name, route in placed.placement.routes.items()},
        "latency_s": dict(placed.latency_s),
        "arrival_per_s": {one.name: one.arrival_per_s for one in problem.classes},
        "node_load": dict(placed.node_load),
        "link_load": {" -> ".join(link): load for link, load in placed.link_load.items()},
        "memory_bytes": {node: memory_bytes(problem, placed, node) for node in placed.node_load},
        "value_s": placed.value_s,
        "gap": placed.gap if math.isfinite(placed.gap) else None,
        "method": placed.method,
    }


def placement_text(problem: ServiceProblem, placed: Placed) -> str:
    """Where each service runs, how long each class waits, and how full each node is: lines of text."""
    blocks = (_services(problem, placed), _classes(problem, placed), _nodes(problem, placed))
    return "\n\n".join("\n".join(lines) for lines in blocks)


def memory_bytes(problem: ServiceProblem, placed: Placed, node: str) -> float:
    """Of a node's instances: weights and one request's working set each."""
    held = [problem.graph.by_name[service] for service in placed.placement.services_on(node)]
    return float(sum(module.parameter_bytes + module.working_bytes for module in held))


def requests_per_s(problem: ServiceProblem, placed: Placed, service: str, node: str) -> float:
    """That the routes bring to a service on a node."""
    routes = placed.placement.routes
    return sum(one.arrival_per_s for one in problem.classes if routes[one.name].get(service) == node)


def _services(problem: ServiceProblem, placed: Placed) -> list[str]:
    wide = max(map(len, problem.services))
    lines = [f"{'service':{wide}}  {'MFLOP':>9}  {'MB':>8}  {'replicas':>8}  on (requests/s)"]
    for service in problem.services:
        module, hosts = problem.graph.by_name[service], placed.placement.hosts[service]
        taken = (f"{node} ({requests_per_s(problem, placed, service, node):.4g})" for node in hosts)
        flops, size = module.forward_flops / 1e6, (module.parameter_bytes + module.working_bytes) / 1e6
        lines.append(f"{service:{wide}}  {flops:9.3f}  {size:8.2f}  {len(hosts):8}  {', '.join(taken)}")
    return lines


def _classes(problem: ServiceProblem, placed: Placed) -> list[str]:
    wide = max(len(one.name) for one in problem.classes)
    lines = [f"{'requests':{wide}}  {'a second':>9}  {'mean ms':>9}"]
    for one in problem.classes:
        latency_ms = 1e3 * placed.latency_s[one.name]
        lines.append(f"{one.name:{wide}}  {one.arrival_per_s:9.4g}  {latency_ms:9.3f}")
    return [*lines, f"mean of all requests: {1e3 * placed.value_s:.4g} ms, {_proven(placed.gap)}"]


def _proven(gap: float) -> str:
    if math.isinf(gap):
        return "no bound is known"
    return "proven optimal" if gap < 1e-5 else f"within {100 * gap:.2g} % of the optimum"


def _nodes(problem: ServiceProblem, placed: Placed) -> list[str]:
    wide = max(map(len, placed.node_load))
    lines = [f"{'node':{wide}}  {'load':>8}  {'memory, MB':>10}  {'of all':>8}"]
    for node, load in placed.node_load.items():
        held = memory_bytes(problem, placed, node)
        if held:
            share = 100 * held / problem.network.by_name[node].memory_bytes
            lines.append(f"{node:{wide}}  {100 * load:6.2g} %  {held / 1e6:10.1f}  {share:6.2g} %")
    links = [f"{' -> '.join(link)} {100 * load:.2g} %" for link, load in placed.link_load.items()]
    return [*lines, f"load of links: {', '.join(links) or 'none is used'}"]
