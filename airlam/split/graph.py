"""A LAM without its weights: modules with their work and memory, edges with their payloads.

Every figure of a graph is for one batch of ``batch_size`` samples: one training step, or one request of that
many samples. A multiplication and an addition count as two FLOPs.
"""

import dataclasses
import graphlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

from airlam.errors import SpecError
from airlam.specs import require

Precision = Literal["fp32", "bf16", "int8"]
PRECISION_BYTES: Mapping[Precision, int] = {"fp32": 4, "bf16": 2, "int8": 1}
SCALE_BYTES = 4  # an int8 payload carries one fp32 scale a row


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraLoad:
    """What one unit of LoRA rank adds to a module; all of it is proportional to the rank.

    An adapter on a d_in x d_out projection has rank * (d_in + d_out) parameters. trainable_bytes: of those
    that train; None: all do.
    """

    forward_flops: float
    backward_flops: float
    parameter_bytes: int
    optimiser_bytes: int
    activation_bytes: int
    trainable_bytes: int | None = None

    @property
    def trained_bytes(self) -> int:
        """Of the parameters that train."""
        return self.parameter_bytes if self.trainable_bytes is None else self.trainable_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One module's load per batch, at LoRA rank 0 where ``lora`` is given.

    parameter_bytes: all its weights, trainable ones included. trainable_bytes: those that train, so also the
    size of their gradients. optimiser_bytes: the optimiser's state. activation_bytes: kept from forward for
    backward. working_bytes: live at once in a forward pass without gradients, inputs and outputs included.
    output_bytes: what it gives to the modules after it. modality: whose reading it handles, empty where
    shared.
    """

    name: str
    forward_flops: float
    backward_flops: float = 0.0
    parameter_bytes: int = 0
    trainable_bytes: int = 0
    optimiser_bytes: int = 0
    activation_bytes: int = 0
    working_bytes: int = 0
    output_bytes: int = 0
    modality: str = ""
    lora: LoraLoad | None = None

    def __post_init__(self) -> None:
        require(bool(self.name), "a module has no name")
        for key in ("forward_flops", "backward_flops", "activation_bytes", "working_bytes", "output_bytes"):
            value = getattr(self, key)
            require(value >= 0, f"{self.name}: {key} must not be negative, got {value}")
        require(
            0 <= self.trainable_bytes <= self.parameter_bytes,
            f"{self.name}: trainable_bytes is {self.trainable_bytes}; "
            f"expected 0 to parameter_bytes {self.parameter_bytes}",
        )

    @property
    def trains(self) -> bool:
        """Whether a training step changes anything in it."""
        return self.trainable_bytes > 0 or self.lora is not None

    @property
    def training_state_bytes(self) -> int:
        """Weights, gradients and optimiser state: kept once a training node, however many flows pass."""
        return self.parameter_bytes + self.trainable_bytes + self.optimiser_bytes

    def at_rank(self, rank: int) -> Self:
        """The module with adapters of this rank put in; ``lora`` None is the module itself."""
        if self.lora is None:
            return self
        return dataclasses.replace(
            self,
            forward_flops=self.forward_flops + rank * self.lora.forward_flops,
            backward_flops=self.backward_flops + rank * self.lora.backward_flops,
            parameter_bytes=self.parameter_bytes + rank * self.lora.parameter_bytes,
            trainable_bytes=self.trainable_bytes + rank * self.lora.trained_bytes,
            optimiser_bytes=self.optimiser_bytes + rank * self.lora.optimiser_bytes,
            activation_bytes=self.activation_bytes + rank * self.lora.activation_bytes,
            lora=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What one module gives another, per batch.

    num_elements: floats, sent in the plan's precision. num_rows: their rows, each of which has a scale of its
    own in int8. fixed_bytes: what goes as it is whatever the precision (a mask, integers, a head's context)
    and has no gradient.
    """

    source: str
    target: str
    num_elements: int
    num_rows: int = 1
    fixed_bytes: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Source and target."""
        return self.source, self.target

    def forward_bytes(self, precision: Precision = "fp32") -> int:
        """Payload in the forward direction, headers not counted."""
        return self.backward_bytes(precision) + self.fixed_bytes

    def backward_bytes(self, precision: Precision = "fp32") -> int:
        """Payload of the gradient with respect to the floats (the Jacobian of papers on split learning)."""
        scales = SCALE_BYTES * self.num_rows if precision == "int8" and self.num_elements else 0
        return self.num_elements * PRECISION_BYTES[precision] + scales


@dataclass(frozen=True, kw_only=True)
class ModuleGraph:
    """A directed acyclic graph of modules, for batches of ``batch_size`` samples.

    SpecError names a cycle, an edge without its module, or a name used twice.
    """

    modules: tuple[Module, ...]
    edges: tuple[Edge, ...]
    batch_size: int = 1

    def __post_init__(self) -> None:
        names = [module.name for module in self.modules]
        twice = {name for name in names if names.count(name) > 1}
        require(not twice, f"module {min(twice, default='')!r} stands twice in the graph; names must differ")
        for edge in self.edges:
            for end in edge.key:
                require(end in names, f"edge {edge.source} -> {edge.target}: no module {end!r} in the graph")
        keys = [edge.key for edge in self.edges]
        require(len(set(keys)) == len(keys), "two edges join the same modules; add their payloads")
        require(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        _ = self.order  # a cycle is refused here

    @cached_property
    def by_name(self) -> Mapping[str, Module]:
        """Modules by name."""
        return {module.name: module for module in self.modules}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Names so that each module comes after those it takes from."""
        sorter = graphlib.TopologicalSorter(
            {module.name: self._sources(module.name) for module in self.modules}
        )
        try:
            return tuple(sorter.static_order())
        except graphlib.CycleError as error:
            cycle = " -> ".join(error.args[1])
            raise SpecError(f"the module graph has a cycle: {cycle}; data must flow one way") from None

    @cached_property
    def incoming(self) -> Mapping[str, tuple[Edge, ...]]:
        """Edges into each module."""
        return {name: tuple(e for e in self.edges if e.target == name) for name in self.order}

    @cached_property
    def outgoing(self) -> Mapping[str, tuple[Edge, ...]]:
        """Edges out of each module."""
        return {name: tuple(e for e in self.edges if e.source == name) for name in self.order}

    @cached_property
    def gradient_edges(self) -> frozenset[tuple[str, str]]:
        """Edges that carry a gradient back: those with floats, downstream of anything that trains."""
        reached: dict[str, bool] = {}
        for name in self.order:
            above = any(reached[e.source] for e in self.incoming[name] if e.num_elements)
            reached[name] = self.by_name[name].trains or above
        return frozenset(e.key for e in self.edges if reached[e.source] and e.num_elements)

    @cached_property
    def gradient_modules(self) -> frozenset[str]:
        """Modules that work in the backward phase: those that train, and those that pass a gradient on."""
        passing = {e.target for e in self.edges if e.key in self.gradient_edges}
        return frozenset(passing | {module.name for module in self.modules if module.trains})

    @cached_property
    def is_chain(self) -> bool:
        """Whether each module takes from one and gives to one at most, all of them in one line."""
        ends = [edge.source for edge in self.edges], [edge.target for edge in self.edges]
        single = all(len(set(names)) == len(names) for names in ends)
        return single and len(self.edges) == len(self.modules) - 1

    def at_ranks(self, ranks: Mapping[str, int]) -> "ModuleGraph":
        """The graph with LoRA put in: ``ranks`` by module, one for each module that takes LoRA."""
        for module in self.modules:
            missing = module.lora is not None and module.name not in ranks
            require(not missing, f"the plan has no LoRA rank for {module.name}; give one of at least 1")
        modules = tuple(m if m.lora is None else m.at_rank(ranks[m.name]) for m in self.modules)
        return dataclasses.replace(self, modules=modules)

    def for_batch(self, batch_size: int) -> "ModuleGraph":
        """The graph for batches of another size: weights stay, all else is proportional to it."""
        require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
        ratio = batch_size / self.batch_size
        return ModuleGraph(
            modules=tuple(_scaled(module, ratio) for module in self.modules),
            edges=tuple(
                dataclasses.replace(
                    edge,
                    num_elements=round(edge.num_elements * ratio),
                    num_rows=round(edge.num_rows * ratio),
                    fixed_bytes=round(edge.fixed_bytes * ratio),
                )
                for edge in self.edges
            ),
            batch_size=batch_size,
        )

    def restricted_to(self, names: Iterable[str]) -> "ModuleGraph":
        """The modules of these names and the edges between them.

        What a step costs once the outputs of all others are kept where they are needed, as a frozen
        embedding's are after its first pass.
        """
        kept = set(names)
        unknown = kept - set(self.by_name)
        require(
            not unknown,
            f"no module {min(unknown, default='')!r} in the graph; it has {', '.join(self.order)}",
        )
        return dataclasses.replace(
            self,
            modules=tuple(m for m in self.modules if m.name in kept),
            edges=tuple(e for e in self.edges if e.source in kept and e.target in kept),
        )

    def _sources(self, name: str) -> list[str]:
        return [edge.source for edge in self.edges if edge.target == name]


def _scaled(module: Module, ratio: float) -> Module:
    """A module's load for ``ratio`` times as many samples."""
    lora = module.lora
    return dataclasses.replace(
        module,
        forward_flops=module.forward_flops * ratio,
        backward_flops=module.backward_flops * ratio,
        activation_bytes=round(module.activation_bytes * ratio),
        working_bytes=round(module.working_bytes * ratio),
        output_bytes=round(module.output_bytes * ratio),
        lora=None
        if lora is None
        else dataclasses.replace(
            lora,
            forward_flops=lora.forward_flops * ratio,
            backward_flops=lora.backward_flops * ratio,
            activation_bytes=round(lora.activation_bytes * ratio),
        ),
    )
