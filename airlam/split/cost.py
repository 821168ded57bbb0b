"""What a plan costs under a schedule: the one formula for training and serving.

Training is one split step: forward through the graph, then gradients back along the edges that carry any
(Wang et al., Edge Large AI Models, 2505.00321: embeddings up, representations down, Jacobians up). Inference
is the forward half. Latency is the longest path through that sequence, each module taking FLOPs / speed and
each cut edge its messages' time; a node that has more work in a flow than its longest path shows delays the
flow to the end of that work.
"""

from airlam.specs import require
from airlam.split.graph import Edge, ModuleGraph
from airlam.split.ledger import Cost, FlowCost, Ledger, Step
from airlam.split.network import EdgeNetwork
from airlam.split.plan import Flow, Schedule, SplitPlan
from airlam.split.resources import Resources
from airlam.split.timeline import Mode, Phase, timeline


def cost(
    graph: ModuleGraph,
    network: EdgeNetwork,
    plan: SplitPlan,
    schedule: Schedule,
    mode: Mode = "training",
) -> Cost:
    """Latency, energy, memory and bytes of a plan; SpecError where its arguments do not fit together.

    Flows whose device takes no part in the schedule cost nothing, but nodes hold their modules all the same.
    Memory: weights once a node; in training also gradients, optimiser state and the activations of every
    flow, in inference the largest working set of every flow. A plan with one flow has the servers to itself;
    with several, each has its device's ``compute_share``, and those of a server add up to at most 1.
    """
    plan.check(graph, network)
    schedule.check(network)
    loaded = graph.at_ranks(plan.lora_ranks)
    ledger = Ledger()
    active = active_flows(plan, network, schedule)
    if len(plan.flow_names) > 1:
        _check_compute_shares(active, network, schedule)
    for flow in active:
        resources = flow_resources(plan, network, schedule, flow.name)
        ledger.flows[flow.name] = _flow_cost(loaded, flow, plan, resources, mode, ledger)
    for node in network.by_name:
        on_node = plan.modules_on(node)
        ledger.storage_bytes[node] = sum(
            loaded.by_name[m].parameter_bytes for m in on_node if m in loaded.by_name
        )
        ledger.memory_bytes[node] = _memory_bytes(loaded, plan, active, node, mode)
    return ledger.closed()


def _check_compute_shares(flows: list[Flow], network: EdgeNetwork, schedule: Schedule) -> None:
    """SpecError where the flows on one server are to have more than all of it."""
    for server in network.servers:
        there = [flow.name for flow in flows if server in flow.nodes and flow.name in schedule.allocations]
        total = sum(schedule.allocations[name].compute_share for name in there)
        require(total <= 1 + 1e-6, f"compute shares of {server} add up to {total:g}; at most 1")


def flow_resources(plan: SplitPlan, network: EdgeNetwork, schedule: Schedule, flow: str) -> Resources:
    """What a flow of a plan gets: the servers whole where it is the only flow, else its device's share."""
    granted = schedule.allocations.get(flow)
    alone = len(plan.flow_names) == 1 or granted is None
    return Resources(
        network=network,
        schedule=schedule,
        compute_share=1.0 if alone or granted is None else granted.compute_share,
    )


def _flow_cost(
    graph: ModuleGraph, flow: Flow, plan: SplitPlan, resources: Resources, mode: Mode, ledger: Ledger
) -> FlowCost:
    """The timeline of one flow; its energy and bytes are entered in the ledger."""
    steps: dict[tuple[str, Phase] | tuple[tuple[str, str], Phase], list[Step]] = {}

    def work_s(name: str, phase: Phase) -> float:
        steps[name, phase] = [_work(graph, flow, resources, ledger, name, phase)]
        return steps[name, phase][0].duration_s

    def message_s(edge: Edge, phase: Phase) -> float:
        steps[edge.key, phase] = _message(flow, plan, resources, ledger, edge, phase)
        return sum(step.duration_s for step in steps[edge.key, phase])

    found = timeline(graph, mode, flow.node_of, work_s, message_s)
    path: list[Step] = []
    for edge, (name, phase) in found.critical_path():
        path += [*(steps[edge.key, phase] if edge is not None else ()), *steps[name, phase]]
    return FlowCost(critical_path=tuple(path), busy_s=found.busy_s)


def _work(
    graph: ModuleGraph, flow: Flow, resources: Resources, ledger: Ledger, name: str, phase: Phase
) -> Step:
    """One module's work in one phase, its energy entered."""
    module, node = graph.by_name[name], flow.node_of[name]
    flops = module.forward_flops if phase == "forward" else module.backward_flops
    spent_j = resources.compute_energy_j(node, flops)
    ledger.compute_energy_j[node] = ledger.compute_energy_j.get(node, 0.0) + spent_j
    duration_s = resources.compute_s(node, flops)
    return Step(phase=phase, kind="compute", what=name, where=node, duration_s=duration_s)


def _message(
    flow: Flow, plan: SplitPlan, resources: Resources, ledger: Ledger, edge: Edge, phase: Phase
) -> list[Step]:
    """What goes over an edge in one phase, a step a link; none within a node."""
    source, target = flow.node_of[edge.source], flow.node_of[edge.target]
    if source == target:
        return []
    precision, what = plan.precision_of(*edge.key), f"{edge.source} -> {edge.target}"
    if phase == "forward":
        return ledger.send(resources, source, target, edge.forward_bytes(precision), phase, what)
    return ledger.send(resources, target, source, edge.backward_bytes(precision), phase, what)


def active_flows(plan: SplitPlan, network: EdgeNetwork, schedule: Schedule) -> list[Flow]:
    """Flows all of whose devices take part; SpecError where a plan's only flow cannot run."""
    flows = [plan.flow(name) for name in plan.flow_names]
    active = [
        flow
        for flow in flows
        if all(network.by_name[n].kind == "server" or n in schedule.allocations for n in flow.nodes)
    ]
    if len(flows) == 1:
        require(
            bool(active), f"the plan runs on {', '.join(flows[0].nodes)}; the schedule leaves a device out"
        )
    return active


def _memory_bytes(graph: ModuleGraph, plan: SplitPlan, flows: list[Flow], node: str, mode: Mode) -> float:
    on_node = [graph.by_name[m] for m in plan.modules_on(node) if m in graph.by_name]
    if mode == "training":
        state = sum(module.training_state_bytes for module in on_node)
        kept = sum(m.activation_bytes for f in flows for m in on_node if f.node_of[m.name] == node)
        return state + kept
    largest = [max((m.working_bytes for m in on_node if f.node_of[m.name] == node), default=0) for f in flows]
    return sum(module.parameter_bytes for module in on_node) + sum(largest)
