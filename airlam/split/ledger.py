"""What a plan costs: latency along the critical path, energy, memory, bytes; and the sums that lead there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from airlam.split.resources import Resources
from airlam.split.timeline import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that a flow waits for.

    kind: ``compute`` at a node, or the kind of link that a message passes. what: the module, or the edge as
    ``source -> target``. where: the node, or the link as ``sender -> receiver``.
    """

    phase: Phase
    kind: Literal["compute", "uplink", "downlink", "wire"]
    what: str
    where: str
    duration_s: float
    payload_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowCost:
    """What one flow takes. critical_path: the steps on its longest path, in order. busy_s: work by node."""

    critical_path: tuple[Step, ...]
    busy_s: Mapping[str, float]

    @property
    def latency_s(self) -> float:
        """The longest path, or the busiest node's work where that is more."""
        return max(sum(step.duration_s for step in self.critical_path), *self.busy_s.values(), 0.0)

    def spent_s(self, kind: str, phase: Phase | None = None) -> float:
        """Part of the critical path of one kind, and one phase where given."""
        return sum(
            step.duration_s
            for step in self.critical_path
            if step.kind == kind and (phase is None or step.phase == phase)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Costs of one training step or one inference of a batch in every flow, all flows at the same time.

    compute_energy_j, radio_energy_j, memory_bytes, storage_bytes: by node. link_bytes: by (sender, receiver)
    of each link, payloads without headers.
    """

    flows: Mapping[str, FlowCost]
    compute_energy_j: Mapping[str, float]
    radio_energy_j: Mapping[str, float]
    memory_bytes: Mapping[str, float]
    storage_bytes: Mapping[str, float]
    link_bytes: Mapping[tuple[str, str], int]

    @property
    def latency_s(self) -> float:
        """Of the slowest flow."""
        return max((flow.latency_s for flow in self.flows.values()), default=0.0)

    @property
    def energy_j(self) -> float:
        """Of all nodes, computing and transmitting."""
        return sum(self.compute_energy_j.values()) + sum(self.radio_energy_j.values())

    def node_energy_j(self, node: str) -> float:
        """Of one node, computing and transmitting."""
        return self.compute_energy_j.get(node, 0.0) + self.radio_energy_j.get(node, 0.0)


@dataclass(slots=True)
class Ledger:
    """Sums while flows are priced."""

    flows: dict[str, FlowCost] = field(default_factory=dict)
    compute_energy_j: dict[str, float] = field(default_factory=dict)
    radio_energy_j: dict[str, float] = field(default_factory=dict)
    memory_bytes: dict[str, float] = field(default_factory=dict)
    storage_bytes: dict[str, float] = field(default_factory=dict)
    link_bytes: dict[tuple[str, str], int] = field(default_factory=dict)

    def send(
        self, resources: Resources, source: str, target: str, payload_bytes: int, phase: Phase, what: str
    ) -> list[Step]:
        """Enters one message; returns a step a link."""
        steps = []
        for hop in resources.network.route(source, target):
            link = (hop.source, hop.target)
            self.link_bytes[link] = self.link_bytes.get(link, 0) + payload_bytes
            spent_j = resources.hop_energy_j(hop, payload_bytes)
            self.radio_energy_j[hop.source] = self.radio_energy_j.get(hop.source, 0.0) + spent_j
            steps.append(
                Step(
                    phase=phase,
                    kind=hop.kind,
                    what=what,
                    where=f"{hop.source} -> {hop.target}",
                    duration_s=resources.hop_s(hop, payload_bytes),
                    payload_bytes=payload_bytes,
                )
            )
        return steps

    def closed(self) -> Cost:
        """The sums as they are now."""
        return Cost(
            flows=self.flows,
            compute_energy_j=self.compute_energy_j,
            radio_energy_j=self.radio_energy_j,
            memory_bytes=self.memory_bytes,
            storage_bytes=self.storage_bytes,
            link_bytes=self.link_bytes,
        )
