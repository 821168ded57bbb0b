"""A function of named tensors as a graph of ATen operations, its gradients included.

Torch differentiates; what is written to a file is its own backward pass. The graph has fixed shapes, and only
operations of torch's core set, which ``lowering.py`` knows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch._decomp import core_aten_decompositions
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A graph and what goes in and out, in the graph's order; inputs that nothing depends on are dropped.

    inputs, outputs: example tensors by name.
    """

    graph: GraphModule
    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]


def trace(function: Callable[[State], State], examples: Mapping[str, torch.Tensor]) -> Traced:
    """The graph of ``function`` for inputs of the examples' shapes.

    The function may differentiate (``torch.autograd.grad``). What it does must not depend on values.
    """
    names = tuple(examples)
    outputs: State = {}

    def flat(*values: torch.Tensor) -> list[torch.Tensor]:
        found = function(dict(zip(names, values, strict=True)))
        outputs.update(found)
        return list(found.values())

    values, rules = [examples[name].detach() for name in names], dict(core_aten_decompositions())
    with sdpa_kernel(SDPBackend.MATH):  # attention as matrix products, whose gradient is in the core set
        graph = make_fx(flat, rules)(*values)
    graph = make_fx(functionalize(graph, remove="mutations"), rules)(*values)  # nothing is done in place
    shown = dict(zip(outputs, graph(*examples.values()), strict=True))
    graph.graph.eliminate_dead_code()
    used = {}
    for name, node in zip(names, graph.graph.find_nodes(op="placeholder"), strict=True):
        if node.users:
            used[name] = examples[name]
        else:
            graph.graph.erase_node(node)
    return Traced(graph=graph, inputs=used, outputs=shown)
