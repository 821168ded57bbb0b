"""How long work and messages take on a network: the planner's own sums, applied to what really runs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from airlam.split.cost import flow_resources
from airlam.split.graph import ModuleGraph
from airlam.split.network import EdgeNetwork
from airlam.split.plan import Schedule, SplitPlan
from airlam.split.timeline import Phase


class Pace(Protocol):
    """Seconds for a flow's messages and its nodes' work."""

    def message_s(self, flow: str, sender: str, receiver: str, payload_bytes: float) -> float:
        """Of one message, over all links between the two nodes."""
        ...

    def work_s(self, flow: str, node: str, modules: Iterable[str], phase: Phase) -> float:
        """Of some modules, one after another, for one batch."""
        ...


class Instant:
    """A pace at which nothing takes time."""

    def message_s(self, flow: str, sender: str, receiver: str, payload_bytes: float) -> float:
        """Nothing."""
        return 0.0

    def work_s(self, flow: str, node: str, modules: Iterable[str], phase: Phase) -> float:
        """Nothing."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class NetworkPace:
    """What ``airlam.split.cost`` takes for the same plan, network and schedule.

    A round of full batches therefore lasts as long as the plan was priced at. Where the schedule or the
    network is another in the next round, make a new pace.
    """

    graph: ModuleGraph
    network: EdgeNetwork
    plan: SplitPlan
    schedule: Schedule = field(default_factory=lambda: Schedule(allocations={}))

    @cached_property
    def _loaded(self) -> ModuleGraph:
        return self.graph.at_ranks(self.plan.lora_ranks)

    def message_s(self, flow: str, sender: str, receiver: str, payload_bytes: float) -> float:
        """Transmission over each hop, and its latency."""
        resources = flow_resources(self.plan, self.network, self.schedule, flow)
        return resources.transfer_s(sender, receiver, payload_bytes)

    def work_s(self, flow: str, node: str, modules: Iterable[str], phase: Phase) -> float:
        """FLOPs over the node's speed, or the flow's share of it."""
        resources = flow_resources(self.plan, self.network, self.schedule, flow)
        loads = [self._loaded.by_name[name] for name in modules]
        flops = sum(m.forward_flops if phase == "forward" else m.backward_flops for m in loads)
        return resources.compute_s(node, flops)
