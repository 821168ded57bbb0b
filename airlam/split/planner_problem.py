"""What the planner decides and what each choice costs: tables shared by all of its solvers.

For each module an option is a node and a LoRA rank; for each edge between two nodes, a precision. All prices
come from ``airlam.split.resources``, as those of ``airlam.split.cost`` do.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from airlam.errors import SpecError
from airlam.specs import require
from airlam.split.graph import PRECISION_BYTES, Edge, ModuleGraph, Precision
from airlam.split.network import EdgeNetwork
from airlam.split.plan import Schedule, SplitPlan
from airlam.split.resources import Resources
from airlam.split.timeline import Mode, Phase, timeline

Limit = Literal["latency", "energy", "node energy", "memory", "storage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What the planner minimises, in seconds; see ``Problem.value``.

    energy_s_per_j: seconds of latency that a joule is worth. rank_value_s: what one unit of
    sum_l s_l log2(1 + r_l) is worth, the benefit of LoRA ranks r_l with ``importance`` s_l (1 where not
    named): reconstructed, after parameter-size control in Wu, Chen and Huang (2310.18602).
    precision_penalty_s: what sending one edge in a precision is taken to cost beside its bytes.
    """

    latency_weight: float = 1.0
    energy_s_per_j: float = 0.0
    rank_value_s: float = 0.0
    importance: Mapping[str, float] = field(default_factory=dict)
    precision_penalty_s: Mapping[Precision, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("latency_weight", "energy_s_per_j", "rank_value_s"):
            value = getattr(self, key)
            require(0 <= value < math.inf, f"{key} is {value}; expected finite and not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Limits beside each node's memory and storage, for one step or request."""

    latency_s: float = math.inf
    energy_j: float = math.inf
    node_energy_j: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the planner may choose from.

    pins: module -> nodes that may run it; a module not named may run anywhere. ranks: LoRA ranks for modules
    that take it. precisions: of cut edges.
    """

    pins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ranks: tuple[int, ...] = (8,)
    precisions: tuple[Precision, ...] = ("fp32",)

    def __post_init__(self) -> None:
        positive = len(self.ranks) > 0 and min(self.ranks) >= 1
        require(positive, f"ranks are {self.ranks}; expected at least one, each 1 or more")
        known = len(self.precisions) > 0 and all(p in PRECISION_BYTES for p in self.precisions)
        require(known, f"precisions are {self.precisions}; expected some of {', '.join(PRECISION_BYTES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to place a module. memory_bytes add up on a node; of working_bytes the largest counts."""

    module: str
    node: str
    rank: int
    forward_s: float
    backward_s: float
    energy_j: float
    memory_bytes: float
    working_bytes: float
    storage_bytes: float
    gain_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One way to carry an edge between two nodes; energy by node."""

    forward_s: float
    backward_s: float
    energy_j: Mapping[str, float]
    penalty_s: float


NO_MESSAGE = Message(forward_s=0.0, backward_s=0.0, energy_j={}, penalty_s=0.0)


@dataclass(frozen=True, slots=True)
class Assignment:
    """An option for each module, a precision for each edge that needs one."""

    options: Mapping[str, Option]
    precisions: Mapping[tuple[str, str], Precision]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What an assignment uses: one number for each limit, and its value to be minimised."""

    used: Mapping[tuple[Limit, str], float]
    value: float


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Minimise ``value`` over options and precisions, within every limit.

    value = latency_weight * latency + energy_s_per_j * energy + sum of precision penalties
    - rank_value_s * sum_l s_l log2(1 + r_l); all in seconds.
    """

    graph: ModuleGraph
    network: EdgeNetwork
    schedule: Schedule
    mode: Mode = "training"
    objective: Objective = field(default_factory=Objective)
    budgets: Budgets = field(default_factory=Budgets)
    choices: Choices = field(default_factory=Choices)

    def __post_init__(self) -> None:
        for module, nodes in self.choices.pins.items():
            known = module in self.graph.by_name
            require(known, f"pins name {module!r}; the graph has {', '.join(self.names)}")
            for node in nodes:
                require(node in self.network.by_name, f"{module} is pinned to {node!r}, which is no node")
        for node in self.budgets.node_energy_j:
            require(node in self.network.by_name, f"node_energy_j names {node!r}, which is no node")
        for name in self.names:
            require(bool(self.nodes_for(name)), f"no node may run {name}; give it one in pins")

    @property
    def names(self) -> tuple[str, ...]:
        """Modules in an order in which they can run."""
        return self.graph.order

    def nodes_for(self, module: str) -> tuple[str, ...]:
        """Nodes that may run a module: its pins, devices only where they take part."""
        allowed = self.choices.pins.get(module, tuple(self.network.by_name))
        servers = self.network.servers
        return tuple(n for n in allowed if n in servers or n in self.schedule.allocations)

    @cached_property
    def resources(self) -> Resources:
        """Prices; the flow to be planned has the servers to itself."""
        return Resources(network=self.network, schedule=self.schedule)

    @cached_property
    def options(self) -> Mapping[str, tuple[Option, ...]]:
        """Every way to place each module."""
        return {name: tuple(self._options_of(name)) for name in self.names}

    def _options_of(self, name: str) -> Iterator[Option]:
        module, goal = self.graph.by_name[name], self.objective
        training = self.mode == "training"
        backward = training and name in self.graph.gradient_modules
        for rank in self.choices.ranks if module.lora is not None else (0,):
            loaded = module.at_rank(rank)
            flops = loaded.forward_flops, loaded.backward_flops if backward else 0.0
            benefit = goal.importance.get(name, 1.0) * math.log2(1 + rank)
            for node in self.nodes_for(name):
                yield Option(
                    module=name,
                    node=node,
                    rank=rank,
                    forward_s=self.resources.compute_s(node, flops[0]),
                    backward_s=self.resources.compute_s(node, flops[1]),
                    energy_j=self.resources.compute_energy_j(node, sum(flops)),
                    memory_bytes=loaded.training_state_bytes + loaded.activation_bytes
                    if training
                    else loaded.parameter_bytes,
                    working_bytes=0 if training else loaded.working_bytes,
                    storage_bytes=loaded.parameter_bytes,
                    gain_s=goal.rank_value_s * benefit,
                )

    @cached_property
    def carrying(self) -> frozenset[tuple[str, str]]:
        """Edges with a gradient, none in inference."""
        return self.graph.gradient_edges if self.mode == "training" else frozenset()

    def precisions_of(self, edge: Edge) -> tuple[Precision, ...]:
        """Precisions to choose from for an edge; one where it has no floats."""
        return self.choices.precisions if edge.num_elements else self.choices.precisions[:1]

    def message(self, edge: Edge, source: str, target: str, precision: Precision) -> Message | None:
        """The price of an edge between two nodes; None where no link with a rate joins them."""
        if source == target:
            return NO_MESSAGE
        key = (edge.key, source, target, precision)
        if key not in self._messages:
            self._messages[key] = self._priced(edge, source, target, precision)
        return self._messages[key]

    @cached_property
    def _messages(self) -> dict[tuple[tuple[str, str], str, str, Precision], Message | None]:
        return {}

    def _priced(self, edge: Edge, source: str, target: str, precision: Precision) -> Message | None:
        up = edge.forward_bytes(precision)
        back = edge.backward_bytes(precision) if edge.key in self.carrying else 0
        try:
            forward_s = self.resources.transfer_s(source, target, up)
            backward_s = self.resources.transfer_s(target, source, back) if back else 0.0
            spent = dict(self.resources.transfer_energy_j(source, target, up))
            for node, joules in self.resources.transfer_energy_j(target, source, back).items():
                spent[node] = spent.get(node, 0.0) + joules
        except SpecError:  # no route, or over a device that takes no part
            return None
        if not math.isfinite(forward_s + backward_s):
            return None
        penalty_s = self.objective.precision_penalty_s.get(precision, 0.0) if edge.num_elements else 0.0
        return Message(forward_s=forward_s, backward_s=backward_s, energy_j=spent, penalty_s=penalty_s)

    @cached_property
    def limits(self) -> Mapping[tuple[Limit, str], float]:
        """Every finite limit, by what it is and where."""
        nodes = self.network.nodes
        found: dict[tuple[Limit, str], float] = {
            ("latency", ""): self.budgets.latency_s,
            ("energy", ""): self.budgets.energy_j,
            **{("node energy", n): budget for n, budget in self.budgets.node_energy_j.items()},
            **{("memory", node.name): node.memory_bytes for node in nodes},
            **{("storage", node.name): node.storage_bytes for node in nodes},
        }
        return {key: budget for key, budget in found.items() if math.isfinite(budget)}

    def totals(self, assignment: Assignment) -> Totals | None:
        """What an assignment uses and is worth; None where one of its messages cannot be sent."""
        options = assignment.options
        messages: dict[tuple[str, str], Message] = {}
        for edge in self.graph.edges:
            precision = assignment.precisions.get(edge.key, self.choices.precisions[0])
            message = self.message(edge, options[edge.source].node, options[edge.target].node, precision)
            if message is None:
                return None
            messages[edge.key] = message
        used = self._node_sums(options)
        for message in messages.values():
            for node, joules in message.energy_j.items():
                used["node energy", node] = used.get(("node energy", node), 0.0) + joules
        energy_j = sum(amount for (limit, _), amount in used.items() if limit == "node energy")
        latency_s = self._latency_s(options, messages)
        used["latency", ""], used["energy", ""] = latency_s, energy_j
        value = self.objective.latency_weight * latency_s + self.objective.energy_s_per_j * energy_j
        value += sum(message.penalty_s for message in messages.values())
        value -= sum(option.gain_s for option in options.values())
        return Totals(used=used, value=value)

    def _node_sums(self, options: Mapping[str, Option]) -> dict[tuple[Limit, str], float]:
        used: dict[tuple[Limit, str], float] = {}
        working: dict[str, float] = {}
        for option in options.values():
            amounts: tuple[tuple[Limit, float], ...] = (
                ("memory", option.memory_bytes),
                ("storage", option.storage_bytes),
                ("node energy", option.energy_j),
            )
            for limit, amount in amounts:
                used[limit, option.node] = used.get((limit, option.node), 0.0) + amount
            working[option.node] = max(working.get(option.node, 0.0), option.working_bytes)
        for node, largest in working.items():
            used["memory", node] += largest
        return used

    def _latency_s(self, options: Mapping[str, Option], messages: Mapping[tuple[str, str], Message]) -> float:
        """Of the flow, from these prices."""

        def work_s(name: str, phase: Phase) -> float:
            return options[name].forward_s if phase == "forward" else options[name].backward_s

        def message_s(edge: Edge, phase: Phase) -> float:
            return messages[edge.key].forward_s if phase == "forward" else messages[edge.key].backward_s

        node_of = {name: option.node for name, option in options.items()}
        return timeline(self.graph, self.mode, node_of, work_s, message_s).latency_s

    def excess(self, totals: Totals) -> Mapping[tuple[Limit, str], float]:
        """By how much each broken limit is exceeded, relative to the limit."""
        return {
            key: totals.used[key] / budget - 1 if budget > 0 else math.inf
            for key, budget in self.limits.items()
            if totals.used.get(key, 0.0) > budget * (1 + 1e-9)
        }

    def plan(self, assignment: Assignment) -> SplitPlan:
        """The assignment as a plan."""
        options = assignment.options
        cut = [e for e in self.graph.edges if options[e.source].node != options[e.target].node]
        return SplitPlan.single(
            {name: options[name].node for name in self.names},
            lora_ranks={name: option.rank for name, option in options.items() if option.rank},
            precisions={
                e.key: assignment.precisions.get(e.key, self.choices.precisions[0])
                for e in cut
                if e.num_elements
            },
        )
