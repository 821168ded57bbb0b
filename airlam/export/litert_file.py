"""Signatures as one LiteRT file, by TensorFlow, which the device does not need: built-in operations only."""

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from airlam.errors import DataError
from airlam.export.lowering import lower
from airlam.export.manifest import argument_of
from airlam.export.operations import Array, Binary, Unary
from airlam.export.trace import Traced
from airlam.export.values import dtype_of

# odd in x and even: erf within 4e-7, as Eigen's float kernel has it; beyond 4 it is one to single precision
_ERF_ODD = (
    *(-1.60960333262415e-02, -2.95459980854025e-03, -7.34990630326855e-04, -5.69250639462346e-05),
    *(-2.10102402082508e-06, 2.77068142495902e-08, -2.72614225801306e-10),
)
_ERF_EVEN = (
    *(-1.42647390514189e-02, -7.37332916720468e-03, -1.68282697438203e-03, -2.13374055278905e-04),
    -1.45660718464996e-05,
)


def litert_bytes(signatures: Mapping[str, Traced]) -> bytes:
    """One .tflite file; equal constants of several signatures are kept once. DataError without TensorFlow.

    Arguments and outputs are called as ``argument_of`` says, complex ones with their parts on a last axis.
    """
    tf = _tensorflow()
    functions = {name: _function(tf, traced) for name, traced in signatures.items()}
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tf.Module(), folder, signatures=functions)
        converted: bytes = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    return converted


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it calls the lack of a GPU an error
    try:
        import tensorflow
    except ImportError:
        raise DataError("LiteRT files are written by TensorFlow; pip install 'airlam[litert]'") from None
    return tensorflow


def _function(tf: Any, traced: Traced) -> Any:
    """A concrete function of a graph."""
    specs = {}
    for name, like in traced.inputs.items():
        shape = (*like.shape, 2) if like.is_complex() else tuple(like.shape)
        argument = argument_of(name)
        specs[argument] = tf.TensorSpec(shape, tf.as_dtype(dtype_of(like)), name=argument)

    def function(**given: Any) -> dict[str, Any]:
        found = lower(traced, _LiteRtOperations(tf), [given[argument] for argument in specs])
        named = zip(traced.outputs, found, strict=True)
        return {argument_of(name): tf.identity(value) for name, value in named}

    return tf.function(function, autograph=False).get_concrete_function(**specs)


class _LiteRtOperations:
    """``Operations`` as TensorFlow's, of those that convert to LiteRT's own."""

    def __init__(self, tf: Any) -> None:
        self._tf = tf
        self._unary: dict[Unary, Callable[[Any], Any]] = {
            "exp": tf.exp,
            "log": tf.math.log,
            "sqrt": tf.sqrt,
            "abs": tf.abs,
            "sign": tf.sign,
            "erf": self._erf,
            "gelu": lambda x: tf.nn.gelu(x, approximate=False),
            "tanh": tf.tanh,
            "sigmoid": tf.sigmoid,
            "not": tf.logical_not,
        }
        self._binary: dict[Binary, Callable[[Any, Any], Any]] = {
            "add": tf.add,
            "sub": tf.subtract,
            "mul": tf.multiply,
            "div": tf.divide,
            "max": tf.maximum,
            "min": tf.minimum,
            "eq": tf.equal,
            "ne": tf.not_equal,
            "lt": tf.less,
            "le": tf.less_equal,
            "gt": tf.greater,
            "ge": tf.greater_equal,
            "and": tf.logical_and,
            "or": tf.logical_or,
        }

    def constant(self, value: Array) -> Any:
        return self._tf.constant(value)

    def unary(self, name: Unary, x: Any) -> Any:
        return self._unary[name](x)

    def binary(self, name: Binary, a: Any, b: Any) -> Any:
        return self._binary[name](a, b)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return self._tf.where(condition, a, b)

    def matmul(self, a: Any, b: Any) -> Any:
        return self._tf.linalg.matmul(a, b)

    def reduce(self, name: Literal["sum", "max"], x: Any, axes: Sequence[int]) -> Any:
        reduction = self._tf.reduce_sum if name == "sum" else self._tf.reduce_max
        return reduction(x, axis=list(axes), keepdims=True)

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        return self._tf.reshape(x, list(shape))

    def transpose(self, x: Any, axes: Sequence[int]) -> Any:
        """Axes of one element are left out on the way: LiteRT transposes six at most."""
        shape = x.shape.as_list()
        real = [axis for axis in axes if shape[axis] != 1]
        kept = sorted(real)
        small = self._tf.reshape(x, [shape[axis] for axis in kept])
        turned = self._tf.transpose(small, [kept.index(axis) for axis in real]) if real != kept else small
        return self._tf.reshape(turned, [shape[axis] for axis in axes])

    def broadcast(self, x: Any, shape: Sequence[int]) -> Any:
        return self._tf.broadcast_to(x, list(shape))

    def cut(self, x: Any, axis: int, start: int, stop: int, step: int) -> Any:
        """As of three axes: LiteRT cuts five at most."""
        shape = x.shape.as_list()
        flat = self._tf.reshape(x, [math.prod(shape[:axis]), shape[axis], -1])
        size = len(range(start, stop, step))
        return self._tf.reshape(flat[:, start:stop:step], [*shape[:axis], size, *shape[axis + 1 :]])

    def concat(self, parts: Sequence[Any], axis: int) -> Any:
        return self._tf.concat(list(parts), axis)

    def pad(self, x: Any, before: Sequence[int], after: Sequence[int]) -> Any:
        return self._tf.pad(x, list(zip(before, after, strict=True)))

    def cast(self, x: Any, dtype: np.dtype[np.generic]) -> Any:
        return self._tf.cast(x, self._tf.as_dtype(dtype))

    def _erf(self, x: Any) -> Any:
        """A ratio of polynomials, as LiteRT has no such operation."""
        x = self._tf.clip_by_value(x, -4.0, 4.0)
        square = x * x
        return x * _polynomial(_ERF_ODD, square) / _polynomial(_ERF_EVEN, square)


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    total: Any = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total
