"""A plan and its cost as plain values for JSON, and as text for a terminal."""

from collections.abc import Sequence
from typing import Any

from airlam.split.graph import ModuleGraph
from airlam.split.ledger import Cost, Step
from airlam.split.network import EdgeNetwork
from airlam.split.plan import SplitPlan

_MOST_NAMES = 3  # of nodes in one cell of the table


def cost_values(priced: Cost) -> dict[str, Any]:
    """A cost as nested tables with units in their names."""
    return {
        "latency_s": priced.latency_s,
        "energy_j": priced.energy_j,
        "flows": {
            name: {
                "latency_s": flow.latency_s,
                "forward_compute_s": flow.spent_s("compute", "forward"),
                "backward_compute_s": flow.spent_s("compute", "backward"),
                "uplink_s": flow.spent_s("uplink"),
                "downlink_s": flow.spent_s("downlink"),
                "wire_s": flow.spent_s("wire"),
            }
            for name, flow in priced.flows.items()
        },
        "compute_energy_j": dict(priced.compute_energy_j),
        "radio_energy_j": dict(priced.radio_energy_j),
        "memory_bytes": dict(priced.memory_bytes),
        "link_bytes": {" -> ".join(link): num for link, num in priced.link_bytes.items()},
    }


def plan_text(graph: ModuleGraph, network: EdgeNetwork, plan: SplitPlan, priced: Cost) -> str:
    """Who runs what, where time goes in the slowest flow, and what each node holds: lines of text."""
    blocks = (_modules(graph, plan), _critical_path(priced), _nodes(network, plan, priced))
    return "\n\n".join("\n".join(lines) for lines in blocks)


def _modules(graph: ModuleGraph, plan: SplitPlan) -> list[str]:
    lines = [f"{'module':28} {'rank':>4}  {'GFLOP':>9}  {'sent on as':10}  runs on"]
    loaded = graph.at_ranks(plan.lora_ranks)
    for name in graph.order:
        module, rank = loaded.by_name[name], plan.rank_of(name)
        work = (module.forward_flops + module.backward_flops) / 1e9
        sent = _sent_as(graph, plan, name)
        lines.append(f"{name:28} {rank or '':>4}  {work:9.3f}  {sent:10}  {_some(plan.nodes_of(name))}")
    return lines


def _sent_as(graph: ModuleGraph, plan: SplitPlan, name: str) -> str:
    """The precisions of the module's cut edges in any flow."""
    flows = [plan.flow(flow).node_of for flow in plan.flow_names]
    sent = [edge for edge in graph.outgoing[name] if edge.num_elements]
    cut = [edge for edge in sent if any(f[edge.source] != f[edge.target] for f in flows)]
    return ", ".join(dict.fromkeys(plan.precision_of(*edge.key) for edge in cut))


def _critical_path(priced: Cost) -> list[str]:
    if not priced.flows:
        return ["no flow takes part"]
    name, flow = max(priced.flows.items(), key=lambda item: item[1].latency_s)
    lines = [f"slowest of {len(priced.flows)} flows: {name}, {flow.latency_s:.4g} s", ""]
    lines += [f"{'phase':9} {'what':44} {'where':24} {'seconds':>10} {'bytes':>12}"]
    for phase, kind, what, where, duration_s, num_bytes in _runs(flow.critical_path):
        shown = f"{num_bytes:,}" if num_bytes else ""
        what = f"{kind} {what}" if kind != "compute" else what
        lines.append(f"{phase:9} {what:44} {where:24} {duration_s:10.4g} {shown:>12}")
    return lines


def _runs(steps: Sequence[Step]) -> list[tuple[str, str, str, str, float, int]]:
    """Steps with consecutive work on one node put together."""
    rows: list[tuple[str, str, str, str, float, int]] = []
    for step in steps:
        here = (step.phase, "compute", step.where)
        if step.kind == "compute" and rows and (rows[-1][0], rows[-1][1], rows[-1][3]) == here:
            what = f"{rows[-1][2].partition(' .. ')[0]} .. {step.what}"
            rows[-1] = (step.phase, "compute", what, step.where, rows[-1][4] + step.duration_s, 0)
        else:
            rows.append((step.phase, step.kind, step.what, step.where, step.duration_s, step.payload_bytes))
    return rows


def _nodes(network: EdgeNetwork, plan: SplitPlan, priced: Cost) -> list[str]:
    """Memory and energy of the nodes that hold anything, those of equal load in one line."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for node in network.nodes:
        if plan.modules_on(node.name):
            share = priced.memory_bytes[node.name] / node.memory_bytes
            shown = f"{priced.memory_bytes[node.name] / 1e6:,.1f}", f"{100 * share:.2g} %"
            energy = f"{priced.node_energy_j(node.name):.3g}"
            groups.setdefault((*shown, energy), []).append(node.name)
    lines = [f"{'memory, MB':>12} {'of all':>8} {'joules':>9}  node"]
    for (memory, filled, joules), names in groups.items():
        lines.append(f"{memory:>12} {filled:>8} {joules:>9}  {_some(names)}")
    total = sum(priced.link_bytes.values())
    return [*lines, "", f"all flows: {priced.energy_j:.4g} J, {total:,} bytes over all links"]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES + 1} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[: _MOST_NAMES - 1] if more else names) + more
