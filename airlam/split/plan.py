"""What was decided: where modules run (SplitPlan), and who takes part with which resources (Schedule)."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from airlam.errors import SpecError
from airlam.specs import require
from airlam.split.graph import PRECISION_BYTES, ModuleGraph, Precision
from airlam.split.network import EdgeNetwork

_ARROW = " -> "


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One device's way through the graph: each module at one node.

    name: the device whose replicas are used; of a plan without replicas, the node of its first module.
    """

    name: str
    node_of: Mapping[str, str]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that take part, each once, in the order of the modules."""
        return tuple(dict.fromkeys(self.node_of.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """Module -> nodes, LoRA rank per module, precision per cut edge.

    replicas: a module's nodes, in the graph's order of modules. One node is the plain case. Several are
    copies: split learning has the embedding and the head on every device, for that device's data.
    lora_ranks: of the modules that take LoRA. precisions: (source, target) -> precision where that edge is
    cut; an edge not named goes as fp32. routes: flow -> module -> the copy that it takes, where ``node_of``
    could not tell. flows: names of the flows, one for each device; see ``flow_names``.
    """

    replicas: Mapping[str, tuple[str, ...]]
    lora_ranks: Mapping[str, int] = field(default_factory=dict)
    precisions: Mapping[tuple[str, str], Precision] = field(default_factory=dict)
    routes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    flows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for module, nodes in self.replicas.items():
            require(len(nodes) > 0, f"module {module} runs nowhere; name a node")
            require(
                len(set(nodes)) == len(nodes), f"module {module} is twice on one node: {', '.join(nodes)}"
            )
        for module, rank in self.lora_ranks.items():
            require(rank >= 1, f"LoRA rank of {module} is {rank}; expected at least 1")
        for edge, precision in self.precisions.items():
            require(
                precision in PRECISION_BYTES,
                f"precision of {_ARROW.join(edge)} is {precision!r}; expected {', '.join(PRECISION_BYTES)}",
            )
        for flow, chosen in self.routes.items():
            for module, node in chosen.items():
                held = node in self.replicas.get(module, ())
                require(held, f"flow {flow} is to take {module} on {node!r}, which does not hold it")

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes that hold anything, each once."""
        return tuple(dict.fromkeys(node for nodes in self.replicas.values() for node in nodes))

    def nodes_of(self, module: str) -> tuple[str, ...]:
        """All nodes that hold the module."""
        if module not in self.replicas:
            raise SpecError(f"the plan has no module {module!r}; it has {', '.join(self.replicas)}")
        return self.replicas[module]

    def node_of(self, module: str, device: str | None = None) -> str:
        """The node that runs the module for a device's data.

        What ``routes`` says; else the device itself where it holds a copy, else the module's one node that is
        no other device's.
        """
        nodes = self.nodes_of(module)
        if device is not None and module in self.routes.get(device, {}):
            return self.routes[device][module]
        if device is not None and device in nodes:
            return device
        own = [name for name in nodes if name not in self.flow_names or len(nodes) == 1]
        if len(own) != 1:
            raise SpecError(
                f"module {module} is on {', '.join(nodes)}: for {device!r} none of them is the one to take"
            )
        return own[0]

    def rank_of(self, module: str) -> int:
        """LoRA rank of a module; 0 where it has no adapter."""
        return self.lora_ranks.get(module, 0)

    def precision_of(self, source: str, target: str) -> Precision:
        """Precision of an edge where it is cut."""
        return self.precisions.get((source, target), "fp32")

    def modules_on(self, node: str) -> tuple[str, ...]:
        """Modules that a node holds, in the plan's order."""
        return tuple(module for module, nodes in self.replicas.items() if node in nodes)

    @property
    def flow_names(self) -> tuple[str, ...]:
        """Names of the flows: ``flows``, else the nodes of the module that has most copies (the first such).

        A plan without copies has one flow.
        """
        return self.flows or max(self.replicas.values(), key=len, default=())

    def flow(self, name: str) -> Flow:
        """The way of one flow's data."""
        require(name in self.flow_names, f"no flow {name!r}; the plan has {', '.join(self.flow_names)}")
        return Flow(name=name, node_of={module: self.node_of(module, name) for module in self.replicas})

    def restricted_to(self, flows: Iterable[str]) -> "SplitPlan":
        """The plan of some of its flows: the devices of one cell, or those that take part."""
        kept = tuple(flows)
        unknown = [name for name in kept if name not in self.flow_names]
        require(bool(kept) and not unknown, f"no flow {unknown}; the plan has {', '.join(self.flow_names)}")
        taken = {m: {self.node_of(m, flow) for flow in kept} for m in self.replicas}
        return dataclasses.replace(
            self,
            replicas={m: tuple(n for n in nodes if n in taken[m]) for m, nodes in self.replicas.items()},
            routes={flow: chosen for flow, chosen in self.routes.items() if flow in kept},
            flows=kept,
        )

    def cut_edges(self, graph: ModuleGraph, flow: str) -> tuple[tuple[str, str], ...]:
        """Edges of the graph whose ends are on different nodes in a flow."""
        node_of = self.flow(flow).node_of
        return tuple(edge.key for edge in graph.edges if node_of[edge.source] != node_of[edge.target])

    def check(self, graph: ModuleGraph, network: EdgeNetwork) -> None:
        """SpecError where the plan, the graph and the network do not name the same things."""
        for module in graph.modules:
            for node in self.nodes_of(module.name):
                require(
                    node in network.by_name,
                    f"the plan puts {module.name} on {node!r}; the network has {', '.join(network.by_name)}",
                )
            missing = module.lora is not None and module.name not in self.lora_ranks
            require(not missing, f"the plan has no LoRA rank for {module.name}; give one of at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``from_dict`` gives the plan back equal."""
        return {
            "replicas": {module: list(nodes) for module, nodes in self.replicas.items()},
            "lora_ranks": dict(self.lora_ranks),
            "precisions": {_ARROW.join(edge): precision for edge, precision in self.precisions.items()},
            "routes": {flow: dict(chosen) for flow, chosen in self.routes.items()},
            "flows": list(self.flows),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SplitPlan":
        """The plan that ``to_dict`` gave."""
        edges = {tuple(key.split(_ARROW)): precision for key, precision in values["precisions"].items()}
        return cls(
            replicas={module: tuple(nodes) for module, nodes in values["replicas"].items()},
            lora_ranks=dict(values["lora_ranks"]),
            precisions=cast(Mapping[tuple[str, str], Precision], edges),
            routes={flow: dict(chosen) for flow, chosen in values["routes"].items()},
            flows=tuple(values["flows"]),
        )

    @classmethod
    def single(
        cls,
        node_of: Mapping[str, str],
        *,
        lora_ranks: Mapping[str, int] | None = None,
        precisions: Mapping[tuple[str, str], Precision] | None = None,
    ) -> "SplitPlan":
        """A plan without copies."""
        return cls(
            replicas={module: (node,) for module, node in node_of.items()},
            lora_ranks=dict(lora_ranks or {}),
            precisions=dict(precisions or {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What one device gets in a round or request.

    uplink_share, downlink_share: of its cell's bands, 0 to 1. tx_power_w: what it sends with, over its share.
    compute_share: of every server that works for it, 0 to 1.
    """

    uplink_share: float
    downlink_share: float
    tx_power_w: float
    compute_share: float = 1.0

    def __post_init__(self) -> None:
        for key in ("uplink_share", "downlink_share", "compute_share"):
            require(0 <= getattr(self, key) <= 1 + 1e-9, f"{key} is {getattr(self, key)}; expected 0 to 1")
        require(self.tx_power_w >= 0, f"tx_power_w must not be negative, got {self.tx_power_w}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Who takes part, with what: device name -> Allocation."""

    allocations: Mapping[str, Allocation]

    @property
    def devices(self) -> tuple[str, ...]:
        """Those that take part."""
        return tuple(self.allocations)

    @classmethod
    def equal(cls, network: EdgeNetwork, devices: Iterable[str] | None = None) -> "Schedule":
        """All named devices (default: every one), each with an equal part of its cell and of the servers.

        They send at full power. A device without radio link gets no band.
        """
        taking = tuple(network.devices if devices is None else devices)
        links = network.radio_of
        crowd = {cell.server: 0 for cell in network.cells}
        for device in taking:
            require(device in network.devices, f"no device {device!r} in the network")
            if device in links:
                crowd[links[device].server] += 1
        return cls(
            allocations={
                device: Allocation(
                    uplink_share=1 / crowd[links[device].server] if device in links else 0.0,
                    downlink_share=1 / crowd[links[device].server] if device in links else 0.0,
                    tx_power_w=links[device].tx_power_w if device in links else 0.0,
                    compute_share=1 / len(taking),
                )
                for device in taking
            }
        )

    def check(self, network: EdgeNetwork) -> None:
        """SpecError where shares of one cell add up to more than its band, or power exceeds a device's."""
        used: dict[str, list[float]] = {}
        for device, allocation in self.allocations.items():
            require(device in network.devices, f"no device {device!r} in the network")
            link = network.radio_of.get(device)
            if link is None:
                continue
            require(
                allocation.tx_power_w <= link.tx_power_w * (1 + 1e-9),
                f"{device} is to send with {allocation.tx_power_w} W; it can {link.tx_power_w} W",
            )
            shares = used.setdefault(link.server, [0.0, 0.0])
            shares[0] += allocation.uplink_share
            shares[1] += allocation.downlink_share
        for server, shares in used.items():
            for total, direction in zip(shares, ("uplink", "downlink"), strict=True):
                require(
                    total <= 1 + 1e-6, f"{direction} shares of cell {server} add up to {total}; at most 1"
                )
