"""Where the units of a service graph run on a cluster: decided by ``airlam.split.placement``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from airlam.radio.channel import PredictionSetting
from airlam.serving.measurement import future_shape, slot_shape
from airlam.serving.ray_stages import condensed, hosts_of_phases, located, units_of
from airlam.serving.service_graph import ServiceGraph
from airlam.serving.service_loads import ServiceLoads
from airlam.split.network import EdgeNetwork
from airlam.split.placement.services import ServiceProblem
from airlam.split.placement.solve import InfeasiblePlacement, Placed, place

_COMPLEX_BYTES, _VARIANCE_BYTES = 8, 4
_LOAD = 0.3  # of the fastest node, by all requests together: a class takes one route
_HALVINGS = 10  # of the load, where links or memory carry less


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """hosts: of each LAM's phases, the planned node first. graph: with the nodes of each service. placed: of
    units, with loads and latencies.
    """

    hosts: Mapping[str, tuple[tuple[str, ...], ...]]
    graph: ServiceGraph
    placed: Placed

    @property
    def nodes(self) -> tuple[str, ...]:
        """All that run something."""
        return tuple(dict.fromkeys(node for hosts in self.placed.placement.hosts.values() for node in hosts))


def plan_cluster(
    graph: ServiceGraph,
    loads: ServiceLoads,
    settings: Mapping[str, PredictionSetting],
    network: EdgeNetwork,
    home: str,
) -> ClusterPlan:
    """Two nodes for each unit where there are two, for requests that come in at ``home``, one link each.

    The rate of requests is not known yet: it is taken as what fills 30 % of the fastest node, or less where
    memory or links do not carry that. InfeasiblePlacement where nothing is within the limits.
    """
    unit_of = units_of(graph)
    units = condensed(loads, unit_of)
    work = max(sum(module.forward_flops for module in flow.modules) for flow in units.flows.values())
    fastest = max(node.compute_flops_per_s for node in network.nodes)
    rate_per_s = _LOAD * fastest / max(work, 1.0) / len(settings)
    for halvings in range(_HALVINGS + 1):
        try:
            placed = place(_problem(units, settings, network, home, rate_per_s / 2**halvings))
            break
        except InfeasiblePlacement:
            if halvings == _HALVINGS:
                raise
    hosts = {}
    for lam in settings:
        route = placed.placement.routes[f"{lam} from {home}"]
        own = {
            unit: tuple(sorted(nodes, key=lambda node, unit=unit: node != route.get(unit)))  # type: ignore[misc]
            for unit, nodes in placed.placement.hosts.items()
        }
        hosts[lam] = hosts_of_phases(graph, unit_of, own, lam)
    nodes = {service: placed.placement.hosts[unit] for service, unit in unit_of.items()}
    return ClusterPlan(hosts=hosts, graph=located(graph, nodes), placed=placed)


def _problem(
    units: ServiceLoads,
    settings: Mapping[str, PredictionSetting],
    network: EdgeNetwork,
    home: str,
    rate_per_s: float,
) -> ServiceProblem:
    classes = tuple(
        units.request_class(
            lam,
            home=home,
            arrival_per_s=rate_per_s,
            deadline_s=math.inf,
            input_bytes=_COMPLEX_BYTES * math.prod(slot_shape(setting, setting.num_history))
            + _VARIANCE_BYTES,
            output_bytes=_COMPLEX_BYTES * math.prod(future_shape(setting)),
        )
        for lam, setting in settings.items()
    )
    return ServiceProblem(graph=units.graph, network=network, classes=classes)
