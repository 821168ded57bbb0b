"""A traced graph written with a format's own operations.

What follows from constants alone (positions, masks, transposed weights) is computed here, by torch.
"""

import operator
from collections.abc import Sequence
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from airlam.errors import SpecError
from airlam.export import arithmetic, shapes
from airlam.export.operations import Operations, Tensor
from airlam.export.trace import Traced
from airlam.export.values import Value, Writer, dtype_of

_RULES = shapes.RULES | arithmetic.RULES


def lower(traced: Traced, ops: Operations[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a graph for its inputs, in the graph's order.

    Complex inputs and outputs have real and imaginary part on a last axis of size 2. SpecError names an
    operation that has no rule.
    """
    writer = Writer(ops)
    known: dict[Node, Any] = {}
    given = iter(inputs)
    outputs: Sequence[Any] = ()
    for node in traced.graph.graph.nodes:
        if node.op == "placeholder":
            known[node] = _entered(writer, next(given), node)
        elif node.op == "get_attr":
            known[node] = getattr(traced.graph, node.target).detach()
        elif node.op == "output":
            outputs = [known[each] for each in node.args[0]]
        else:
            known[node] = _result(writer, node, known)
    return [_left(writer, value) for value in outputs]


def _result(writer: Writer[Tensor], node: Node, known: dict[Node, Any]) -> Any:
    """What one node gives: a value, several, or a tensor where all that it takes is known."""
    arguments: Any = map_arg(node.args, known.__getitem__)
    options: Any = map_arg(node.kwargs, known.__getitem__)
    target: Any = node.target
    if target is operator.getitem:
        return arguments[0][arguments[1]]
    if not any(isinstance(known[each], Value) for each in node.all_input_nodes):
        return target(*arguments, **options)
    found = _RULES.get(target.overloadpacket)
    if found is None:
        raise SpecError(
            f"{target} has no form in the exported formats; keep the module that needs it on the server"
        )
    return found(writer, node.meta["val"], *arguments, **options)


def _entered(writer: Writer[Tensor], x: Tensor, node: Node) -> Value[Tensor]:
    like = node.meta["val"]
    if like.is_complex():
        return writer.unstacked(x, like)
    return Value(x, None, dtype_of(like), tuple(like.shape))


def _left(writer: Writer[Tensor], x: Any) -> Tensor:
    value = writer.value(x)
    return value.real if value.imag is None else writer.stacked(value)
