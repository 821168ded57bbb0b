"""How arithmetic of torch's core set is written; rules as ``rules.py`` has them.

Products of complex numbers become real products, Fourier transforms products with their matrices: the small
runtimes have neither.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from airlam.errors import SpecError
from airlam.export.operations import Array, Binary, Unary
from airlam.export.rules import Like, Rule, Rules, aten, registrar
from airlam.export.values import Value, Writer, dtype_of

_UNARY: dict[Any, Unary] = {
    aten.exp: "exp",
    aten.log: "log",
    aten.sqrt: "sqrt",
    aten.sign: "sign",
    aten.erf: "erf",
    aten.tanh: "tanh",
    aten.sigmoid: "sigmoid",
    aten.logical_not: "not",
    aten.bitwise_not: "not",  # of booleans
}
_BINARY: dict[Any, Binary] = {
    aten.maximum: "max",
    aten.minimum: "min",
    aten.eq: "eq",
    aten.ne: "ne",
    aten.lt: "lt",
    aten.le: "le",
    aten.gt: "gt",
    aten.ge: "ge",
    aten.logical_and: "and",
    aten.bitwise_and: "and",
    aten.logical_or: "or",
    aten.bitwise_or: "or",
}


def _unary_rule(name: Unary) -> Rule:
    return lambda writer, like, x: writer.unary(name, writer.value(x, dtype_of(like)))


def _binary_rule(name: Binary) -> Rule:
    return lambda writer, like, a, b: writer.binary(like, name, a, b)


RULES: Rules = {target: _unary_rule(name) for target, name in _UNARY.items()}
RULES |= {target: _binary_rule(name) for target, name in _BINARY.items()}
rule = registrar(RULES)


@rule(aten.add)
def _add(writer: Writer[Any], like: Like, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return writer.add(like, a, b if alpha == 1 else writer.product(like, b, alpha))


@rule(aten.sub)
def _subtract(writer: Writer[Any], like: Like, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return writer.add(like, a, b if alpha == 1 else writer.product(like, b, alpha), negative=True)


@rule(aten.mul)
def _multiply(writer: Writer[Any], like: Like, a: Any, b: Any) -> Any:
    return writer.product(like, a, b)


@rule(aten.neg)
def _negate(writer: Writer[Any], like: Like, x: Any) -> Any:
    return writer.product(like, x, -1.0)


@rule(aten.div)
def _divide(writer: Writer[Any], like: Like, a: Any, b: Any) -> Any:
    left, right = writer.value(a, dtype_of(like)), writer.value(b, dtype_of(like))
    if right.imag is not None:
        raise SpecError("division by complex numbers has no form in the exported formats")
    return writer.each(like, left, lambda part: writer.ops.binary("div", part, right.real))


@rule(aten.reciprocal)
def _reciprocal(writer: Writer[Any], like: Like, x: Any) -> Any:
    return writer.binary(like, "div", 1.0, x)


@rule(aten.rsqrt)
def _reciprocal_root(writer: Writer[Any], like: Like, x: Any) -> Any:
    return writer.binary(like, "div", 1.0, writer.unary("sqrt", x))


@rule(aten.log10)
def _decades(writer: Writer[Any], like: Like, x: Any) -> Any:
    return writer.product(like, writer.unary("log", x), 1 / math.log(10))


@rule(aten.abs)
def _magnitude(writer: Writer[Any], like: Like, x: Any) -> Any:
    return writer.unary("abs", x) if x.imag is None else writer.unary("sqrt", writer.power(like, x))


@rule(aten.pow)
def _raise(writer: Writer[Any], like: Like, x: Any, exponent: float) -> Any:
    if exponent in (2, 3):
        square = writer.product(like, x, x)
        return square if exponent == 2 else writer.product(like, square, x)
    root = {0.5: 1, 1.0: 0, -0.5: 1, -1.0: 0}.get(exponent)
    if root is None:
        raise SpecError(f"power {exponent} has no form in the exported formats")
    value = writer.unary("sqrt", x) if root else x
    return value if exponent > 0 else _reciprocal(writer, like, value)


@rule(aten.clamp)
def _clamp(writer: Writer[Any], like: Like, x: Any, low: Any = None, high: Any = None) -> Any:
    value = x if low is None else writer.binary(like, "max", x, low)
    return value if high is None else writer.binary(like, "min", value, high)


@rule(aten.relu)
def _rectify(writer: Writer[Any], like: Like, x: Any) -> Any:
    return writer.binary(like, "max", x, 0.0)


@rule(aten.gelu)
def _gelu(writer: Writer[Any], like: Like, x: Any, *, approximate: str = "none") -> Any:
    if approximate == "none":
        return writer.unary("gelu", x)
    cube = writer.product(like, writer.product(like, x, x), x)
    inner = writer.product(
        like, writer.add(like, x, writer.product(like, cube, 0.044715)), math.sqrt(2 / math.pi)
    )
    gate = writer.add(like, writer.unary("tanh", inner), 1.0)
    return writer.product(like, writer.product(like, x, 0.5), gate)


@rule(aten.where)
def _choose(writer: Writer[Any], like: Like, condition: Any, a: Any, b: Any) -> Any:
    gate = writer.value(condition).real
    left, right = writer.value(a, dtype_of(like)), writer.value(b, dtype_of(like))
    imag = None
    if like.is_complex():
        imag = writer.ops.where(gate, writer.imag_of(left), writer.imag_of(right))
    real = writer.ops.where(gate, left.real, right.real)
    return Value(real, imag, dtype_of(like), tuple(like.shape))


@rule(aten.mm, aten.bmm)
def _matmul(writer: Writer[Any], like: Like, a: Any, b: Any) -> Any:
    return writer.product(like, a, b, writer.ops.matmul)


@rule(aten.addmm)
def _affine(writer: Writer[Any], like: Like, bias: Any, a: Any, b: Any) -> Any:
    return writer.add(like, writer.product(like, a, b, writer.ops.matmul), bias)


@rule(aten.sum)
def _sum(
    writer: Writer[Any], like: Like, x: Any, axes: Sequence[int] | None = None, keep: bool = False, **_: Any
) -> Any:
    every = axes_of(x, axes)
    return writer.each(
        like, x, lambda part: writer.ops.reshape(writer.ops.reduce("sum", part, every), tuple(like.shape))
    )


@rule(aten.mean)
def _mean(
    writer: Writer[Any], like: Like, x: Any, axes: Sequence[int] | None = None, keep: bool = False, **_: Any
) -> Any:
    count = math.prod(x.shape[axis] for axis in axes_of(x, axes))
    return writer.product(like, _sum(writer, like, x, axes, keep), 1 / count)


@rule(aten.amax)
def _maximum(writer: Writer[Any], like: Like, x: Any, axes: Sequence[int], keep: bool = False) -> Any:
    found = writer.ops.reduce("max", x.real, axes_of(x, axes))
    return Value(writer.ops.reshape(found, tuple(like.shape)), None, x.dtype, tuple(like.shape))


@rule(aten.any)
def _any(writer: Writer[Any], like: Like, x: Any, axis: int, keep: bool = False) -> Any:
    counts = writer.value(x, np.dtype(np.float32))
    found = writer.ops.reshape(writer.ops.reduce("max", counts.real, axes_of(x, [axis])), tuple(like.shape))
    half = writer.value(0.5, counts.dtype).real
    return Value(writer.ops.binary("gt", found, half), None, dtype_of(like), tuple(like.shape))


@rule(aten._softmax)
def _softmax(writer: Writer[Any], like: Like, x: Any, axis: int, half_to_float: bool) -> Any:
    axes = axes_of(x, [axis])
    shifted = writer.ops.binary("sub", x.real, writer.ops.reduce("max", x.real, axes))
    powers = writer.ops.unary("exp", shifted)
    found = writer.ops.binary("div", powers, writer.ops.reduce("sum", powers, axes))
    return Value(found, None, x.dtype, x.shape)


@rule(aten.native_layer_norm)
def _normalise(
    writer: Writer[Any], likes: Sequence[Like], x: Any, shape: Sequence[int], gain: Any, bias: Any, eps: float
) -> Any:
    """The normalised tensor, the mean, and one over the deviation."""
    like, like_mean, like_rate = likes
    axes = list(range(len(x.shape) - len(shape), len(x.shape)))
    mean = _mean(writer, like_mean, x, axes, True)
    centred = writer.add(like, x, mean, negative=True)
    variance = _mean(writer, like_rate, writer.product(like, centred, centred), axes, True)
    rate = _reciprocal_root(writer, like_rate, writer.add(like_rate, variance, eps))
    found = writer.product(like, centred, rate)
    found = found if gain is None else writer.product(like, found, gain)
    return found if bias is None else writer.add(like, found, bias), mean, rate


@rule(aten._fft_c2c)
def _transform(writer: Writer[Any], like: Like, x: Any, axes: Sequence[int], norm: int, forward: bool) -> Any:
    """Axis by axis, as a product with the transform's matrix."""
    value = writer.value(x, dtype_of(like))
    for axis in axes_of(x, axes):
        size, last = like.shape[axis], like.ndim - 1
        if size == 1:
            continue
        swapped = list(range(like.ndim))
        swapped[axis], swapped[last] = last, axis
        matrix = torch.from_numpy(transform_matrix(size, forward=forward, norm=norm))
        moved = like.permute(swapped)
        rows = moved.reshape(-1, size)
        value = writer.each(rows, value, _rows_along(writer, swapped, rows))
        value = writer.product(rows, value, matrix, writer.ops.matmul)
        value = writer.each(like, value, _back_along(writer, swapped, moved))
    return value


def _rows_along(writer: Writer[Any], swapped: Sequence[int], rows: Like) -> Callable[[Any], Any]:
    return lambda part: writer.ops.reshape(writer.ops.transpose(part, swapped), tuple(rows.shape))


def _back_along(writer: Writer[Any], swapped: Sequence[int], moved: Like) -> Callable[[Any], Any]:
    return lambda part: writer.ops.transpose(writer.ops.reshape(part, tuple(moved.shape)), swapped)


def transform_matrix(size: int, *, forward: bool, norm: int) -> Array:
    """The discrete Fourier transform of rows x as x @ W: complex64 [size, size].

    norm: as torch counts them: 0 none, 1 by the root of the size, 2 by the size.
    """
    turns = np.outer(np.arange(size), np.arange(size)) % size / size
    waves = np.exp((-2j if forward else 2j) * math.pi * turns)
    matrix: Array = (waves / (1.0, math.sqrt(size), float(size))[norm]).astype(np.complex64)
    return matrix


def axes_of(x: Any, axes: Sequence[int] | None) -> tuple[int, ...]:
    """Axes counted from the front; none given means all."""
    rank = len(x.shape)
    return tuple(sorted(axis % rank for axis in axes)) if axes else tuple(range(rank))
