"""One plan for many devices that share a band and servers.

Each device is planned by itself with its shares of band and servers, exactly where ``plan_split`` is exact,
slow devices first: they gain most, and those after them get the servers' memory that is left. Then all plans
become one: copies of modules, one LoRA rank a module (the smallest that a device asked for) and one precision
an edge (the coarsest).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from airlam.errors import SpecError
from airlam.specs import require
from airlam.split.cost import cost
from airlam.split.graph import PRECISION_BYTES, ModuleGraph, Precision
from airlam.split.ledger import Cost
from airlam.split.network import EdgeNetwork
from airlam.split.plan import Schedule, SplitPlan
from airlam.split.planner import InfeasiblePlan, Method, Planned, plan_split
from airlam.split.planner_problem import Budgets, Choices, Objective
from airlam.split.timeline import Mode

OWN_DEVICE = "device"  # in pins: the device that is being planned
_NOTHING_BYTES = 1.0  # a memory that holds no module


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """One plan with a flow a device, what it costs, and how each device was planned by itself."""

    plan: SplitPlan
    cost: Cost
    planned: Mapping[str, Planned]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What is to be planned; ``plan_fleet`` plans it.

    schedule: the devices, with their shares. choices: at least one module is to be pinned to ``OWN_DEVICE``,
    whose data it reads; modules not pinned run on the own device or any server. budgets: of each device's own
    step; ``node_energy_j`` takes devices only. same_cut: all devices are to be cut alike. method,
    time_limit_s, seed: as in ``plan_split``, for each device.
    """

    graph: ModuleGraph
    network: EdgeNetwork
    schedule: Schedule
    mode: Mode = "training"
    objective: Objective = field(default_factory=Objective)
    budgets: Budgets = field(default_factory=Budgets)
    choices: Choices = field(default_factory=Choices)
    same_cut: bool = False
    method: Method = "auto"
    time_limit_s: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        pinned = any(OWN_DEVICE in nodes for nodes in self.choices.pins.values())
        require(pinned, f"no module is pinned to {OWN_DEVICE!r}; pin the one that reads a device's data")
        require(len(self.schedule.devices) > 0, "no device takes part; there is nothing to plan")
        for node in self.budgets.node_energy_j:
            known = node in self.network.devices
            require(known, f"node_energy_j names {node!r}; in a fleet it takes devices only")


def plan_fleet(fleet: Fleet) -> FleetPlan:
    """A plan for every device of the schedule; raises as ``plan_split`` does, naming the device.

    With ``same_cut``, of the cuts that suit some device best, the one with the lowest sum of values.
    """
    found = _plan_each(fleet)
    if not fleet.same_cut:
        return found
    cuts = {_cut_of(one.plan, device): None for device, one in found.planned.items()}
    alike: list[FleetPlan] = []
    refusals: list[InfeasiblePlan] = []
    for cut in cuts:
        choices = dataclasses.replace(fleet.choices, pins={name: (node,) for name, node in cut})
        try:
            alike.append(_plan_each(dataclasses.replace(fleet, choices=choices)))
        except InfeasiblePlan as refused:
            refusals.append(refused)
    if not alike:
        raise refusals[0]
    return min(alike, key=lambda plan: sum(one.value for one in plan.planned.values()))


def _cut_of(plan: SplitPlan, device: str) -> tuple[tuple[str, str], ...]:
    """Modules and their nodes, with ``OWN_DEVICE`` for the device."""
    placed = ((module, plan.node_of(module)) for module in plan.replicas)
    return tuple((module, OWN_DEVICE if node == device else node) for module, node in placed)


def _plan_each(fleet: Fleet) -> FleetPlan:
    """Device after device, and all plans made one."""
    network, planned = fleet.network, dict[str, Planned]()
    for device in sorted(fleet.schedule.devices, key=lambda name: network.by_name[name].compute_flops_per_s):
        planned[device] = _admitted(fleet, device, {name: found.plan for name, found in planned.items()})
    planned = {device: planned[device] for device in fleet.schedule.devices}
    plan = merged({device: found.plan for device, found in planned.items()})
    priced = cost(fleet.graph, network, plan, fleet.schedule, fleet.mode)
    return FleetPlan(plan=plan, cost=priced, planned=planned)


def _admitted(fleet: Fleet, device: str, before: Mapping[str, SplitPlan]) -> Planned:
    """The device's plan beside those before it, in the memory that they leave.

    Weights that are there already cost nothing again. How many of them the device will use is not known
    before it is planned; where that was taken for too many, it is planned again with less memory.
    """
    capacity = {name: fleet.network.by_name[name].memory_bytes for name in fleet.network.servers}
    shared = _server_bytes(fleet, before, flows=False)
    taken = _server_bytes(fleet, before)
    spare = {name: capacity[name] - taken[name] + shared[name] for name in capacity}
    while True:
        found = _plan_device(fleet, device, spare)
        together = _server_bytes(fleet, {**before, device: found.plan})
        over = {name: together[name] - full for name, full in capacity.items() if together[name] > full}
        if not over:
            return found
        spare |= {name: max(spare[name] - excess, _NOTHING_BYTES) for name, excess in over.items()}


def _server_bytes(fleet: Fleet, plans: Mapping[str, SplitPlan], *, flows: bool = True) -> dict[str, float]:
    """Memory of each server under plans without copies: weights once, and what each flow adds."""
    training = fleet.mode == "training"
    used = dict.fromkeys(fleet.network.servers, 0.0)
    weights: dict[tuple[str, str], float] = {}
    for plan in plans.values():
        loaded = fleet.graph.at_ranks(plan.lora_ranks)
        for server in used:
            here = [loaded.by_name[name] for name in plan.modules_on(server)]
            for module in here:
                held = float(module.training_state_bytes if training else module.parameter_bytes)
                weights[server, module.name] = max(weights.get((server, module.name), 0.0), held)
            if flows and training:
                used[server] += sum(module.activation_bytes for module in here)
            elif flows:
                used[server] += max((float(module.working_bytes) for module in here), default=0.0)
    for (server, _), held in weights.items():
        used[server] += held
    return used


def _plan_device(fleet: Fleet, device: str, spare: Mapping[str, float]) -> Planned:
    """One device alone on the network that its shares leave it."""
    own = {device} & set(fleet.budgets.node_energy_j)
    pins = {
        name: tuple(device if node == OWN_DEVICE else node for node in nodes)
        for name, nodes in fleet.choices.pins.items()
    }
    try:
        return plan_split(
            fleet.graph,
            _seen_by(fleet, device, spare),
            schedule=Schedule(allocations={device: fleet.schedule.allocations[device]}),
            mode=fleet.mode,
            objective=fleet.objective,
            budgets=dataclasses.replace(
                fleet.budgets, node_energy_j={node: fleet.budgets.node_energy_j[node] for node in own}
            ),
            choices=dataclasses.replace(fleet.choices, pins=pins),
            method=fleet.method,
            time_limit_s=fleet.time_limit_s,
            seed=fleet.seed,
        )
    except InfeasiblePlan as refused:
        raise InfeasiblePlan(f"{device}: {refused}", refused.excess) from None


def _seen_by(fleet: Fleet, device: str, spare: Mapping[str, float]) -> EdgeNetwork:
    """The device and all servers, these as fast as its share of them and with the memory that is to spare."""
    network = fleet.network.restricted_to((device, *fleet.network.servers))
    alone = len(fleet.schedule.devices) == 1
    share = 1.0 if alone else fleet.schedule.allocations[device].compute_share
    nodes = tuple(
        node
        if node.kind == "device"
        else dataclasses.replace(
            node,
            compute_flops_per_s=node.compute_flops_per_s * share,
            memory_bytes=spare[node.name],
        )
        for node in network.nodes
    )
    return dataclasses.replace(network, nodes=nodes)


def merged(plans: Mapping[str, SplitPlan]) -> SplitPlan:
    """One plan with a flow for each device, of plans without copies; SpecError where no device runs anything.

    Ranks are the smallest of any plan, precisions the coarsest.
    """
    if len(plans) == 1:
        return next(iter(plans.values()))
    modules = list(next(iter(plans.values())).replicas)
    node_of = {device: {m: plan.node_of(m) for m in modules} for device, plan in plans.items()}
    replicas = {m: tuple(dict.fromkeys(node_of[device][m] for device in plans)) for m in modules}
    if not any(set(nodes) == set(plans) for nodes in replicas.values()):
        raise SpecError("no module runs on every device, so the plan has no flows; pin one to them")
    several = {m for m, nodes in replicas.items() if len(set(nodes) - set(plans)) > 1}
    precisions: dict[tuple[str, str], Precision] = {}
    for plan in plans.values():
        for edge, precision in plan.precisions.items():
            known = precisions.get(edge, precision)
            precisions[edge] = min(known, precision, key=lambda name: PRECISION_BYTES[name])
    return SplitPlan(
        replicas=replicas,
        lora_ranks={m: min(plan.lora_ranks[m] for plan in plans.values()) for m in _adapted(plans)},
        precisions=precisions,
        flows=tuple(plans),
        routes={device: {m: node_of[device][m] for m in modules if m in several} for device in plans}
        if several
        else {},
    )


def _adapted(plans: Mapping[str, SplitPlan]) -> list[str]:
    return list(next(iter(plans.values())).lora_ranks)
