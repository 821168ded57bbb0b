"""One signature as one ONNX file, by the onnx package; any runtime of opset 20 runs it.

Written from the same graphs as LiteRT files, gradients included, which torch's own exporter leaves out.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from airlam.errors import DataError
from airlam.export.lowering import lower
from airlam.export.manifest import argument_of
from airlam.export.operations import Array, Binary, Unary
from airlam.export.trace import Traced
from airlam.export.values import dtype_of

OPSET = 20
_UNARY: dict[Unary, str] = {
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "sign": "Sign",
    "erf": "Erf",
    "gelu": "Gelu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "not": "Not",
}
_BINARY: dict[Binary, str] = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "and": "And",
    "or": "Or",
}


def onnx_bytes(name: str, traced: Traced) -> bytes:
    """One .onnx file; arguments and outputs are called as ``argument_of`` says. DataError without onnx."""
    onnx = _onnx()
    ops = _OnnxOperations(onnx)
    inputs = [_described(onnx, each, like) for each, like in traced.inputs.items()]
    outputs = [_described(onnx, each, like) for each, like in traced.outputs.items()]
    found = lower(traced, ops, [each.name for each in inputs])
    for result, output in zip(found, outputs, strict=True):
        ops.nodes.append(onnx.helper.make_node("Identity", [result], [output.name]))
    graph = onnx.helper.make_graph(ops.nodes, name, inputs, outputs, ops.constants)
    opset = onnx.helper.make_operatorsetid("", OPSET)
    model = onnx.helper.make_model_gen_version(graph, opset_imports=[opset], producer_name="airlam")
    onnx.checker.check_model(model)
    written: bytes = model.SerializeToString()
    return written


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise DataError("ONNX files are written by the package onnx; pip install 'airlam[onnx]'") from None
    return onnx


def _described(onnx: Any, name: str, like: Any) -> Any:
    shape = (*like.shape, 2) if like.is_complex() else tuple(like.shape)
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype_of(like))
    return onnx.helper.make_tensor_value_info(argument_of(name), kind, shape)


class _OnnxOperations:
    """``Operations`` as nodes of a graph; a tensor is its name."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known: dict[str, str] = {}

    def constant(self, value: Array) -> str:
        digest = hashlib.sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes()).hexdigest()
        if digest not in self._known:
            self._known[digest] = f"constant_{len(self.constants)}"
            contiguous = np.ascontiguousarray(value).reshape(value.shape)
            self.constants.append(self._onnx.numpy_helper.from_array(contiguous, self._known[digest]))
        return self._known[digest]

    def unary(self, name: Unary, x: str) -> str:
        return self._node(_UNARY[name], x)

    def binary(self, name: Binary, a: str, b: str) -> str:
        return self._node("Not", self.binary("eq", a, b)) if name == "ne" else self._node(_BINARY[name], a, b)

    def where(self, condition: str, a: str, b: str) -> str:
        return self._node("Where", condition, a, b)

    def matmul(self, a: str, b: str) -> str:
        return self._node("MatMul", a, b)

    def reduce(self, name: Literal["sum", "max"], x: str, axes: Sequence[int]) -> str:
        return self._node("ReduceSum" if name == "sum" else "ReduceMax", x, self._integers(axes), keepdims=1)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return self._node("Reshape", x, self._integers(shape))

    def transpose(self, x: str, axes: Sequence[int]) -> str:
        return self._node("Transpose", x, perm=list(axes))

    def broadcast(self, x: str, shape: Sequence[int]) -> str:
        return self._node("Expand", x, self._integers(shape))

    def cut(self, x: str, axis: int, start: int, stop: int, step: int) -> str:
        return self._node("Slice", x, *(self._integers([each]) for each in (start, stop, axis, step)))

    def concat(self, parts: Sequence[str], axis: int) -> str:
        return self._node("Concat", *parts, axis=axis)

    def pad(self, x: str, before: Sequence[int], after: Sequence[int]) -> str:
        return self._node("Pad", x, self._integers([*before, *after]))

    def cast(self, x: str, dtype: np.dtype[np.generic]) -> str:
        return self._node("Cast", x, to=self._onnx.helper.np_dtype_to_tensor_dtype(dtype))

    def _integers(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"value_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name
