"""What averaging the copies of some modules costs, at the end of a federated round."""

from collections.abc import Iterable

from airlam.split.cost import active_flows, flow_resources
from airlam.split.graph import ModuleGraph
from airlam.split.ledger import Cost, FlowCost, Ledger, Step
from airlam.split.network import EdgeNetwork
from airlam.split.plan import Schedule, SplitPlan


def exchange_cost(
    graph: ModuleGraph,
    network: EdgeNetwork,
    plan: SplitPlan,
    schedule: Schedule,
    *,
    aggregator: str,
    modules: Iterable[str],
) -> Cost:
    """What it costs to average the copies of some modules once: trainable weights up, their mean down, fp32.

    The end of a federated round. aggregator: the node that averages; a copy there travels nowhere. modules:
    those that are shared; personal ones stay out. Averaging itself is counted as free.
    """
    plan.check(graph, network)
    schedule.check(network)
    loaded, shared = graph.at_ranks(plan.lora_ranks), tuple(modules)
    ledger = Ledger()
    for flow in active_flows(plan, network, schedule):
        resources = flow_resources(plan, network, schedule, flow.name)
        held = [m for m in shared if flow.node_of[m] == flow.name != aggregator]
        payload_bytes = sum(loaded.by_name[m].trainable_bytes for m in held)
        steps: list[Step] = []
        if payload_bytes:
            up = ledger.send(resources, flow.name, aggregator, payload_bytes, "forward", "weights")
            down = ledger.send(resources, aggregator, flow.name, payload_bytes, "backward", "weights")
            steps = [*up, *down]
        ledger.flows[flow.name] = FlowCost(critical_path=tuple(steps), busy_s={})
    return ledger.closed()
