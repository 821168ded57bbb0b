"""Tensors while they are written: a real part, an imaginary part where there is one, and their arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import torch

from airlam.export.operations import Binary, Operations, Tensor, Unary

Dtype = np.dtype[np.generic]
_PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}


@dataclass(frozen=True, slots=True)
class Value(Generic[Tensor]):
    """A tensor of the graph, as one or two of the format's; ``dtype`` is that of each part."""

    real: Tensor
    imag: Tensor | None
    dtype: Dtype
    shape: tuple[int, ...]


class Writer(Generic[Tensor]):
    """Arithmetic on values by a format's operations.

    like: a tensor of the shape and dtype that the result is to have. Arguments may be values, numbers, or
    tensors that are known by now.
    """

    def __init__(self, ops: Operations[Tensor]) -> None:
        self.ops = ops

    def value(self, x: Any, dtype: Dtype | None = None) -> Value[Tensor]:
        """An argument as a value, of this dtype where one is given."""
        if isinstance(x, Value):
            return x if dtype is None or dtype == x.dtype else self._cast(x, dtype)
        tensor = torch.as_tensor(x).detach().resolve_conj()
        kind = dtype or dtype_of(tensor)
        parts = [tensor.real, tensor.imag] if tensor.is_complex() else [tensor]
        real, *imag = (self.ops.constant(part.resolve_neg().numpy().astype(kind)) for part in parts)
        return Value(real, imag[0] if imag else None, kind, tuple(tensor.shape))

    def _cast(self, x: Value[Tensor], dtype: Dtype) -> Value[Tensor]:
        imag = None if x.imag is None else self.ops.cast(x.imag, dtype)
        return Value(self.ops.cast(x.real, dtype), imag, dtype, x.shape)

    def each(self, like: torch.Tensor, x: Any, function: Callable[[Tensor], Tensor]) -> Value[Tensor]:
        """A linear function of each part by itself."""
        x = self.value(x, dtype_of(like))
        imag = None if x.imag is None else function(x.imag)
        return Value(function(x.real), imag, x.dtype, tuple(like.shape))

    def unary(self, name: Unary, x: Value[Tensor]) -> Value[Tensor]:
        """A real function, element by element."""
        return Value(self.ops.unary(name, x.real), None, x.dtype, x.shape)

    def binary(self, like: torch.Tensor, name: Binary, a: Any, b: Any) -> Value[Tensor]:
        """A real function of two real arguments, in the dtype that they have in common."""
        dtype = common_dtype(a, b)
        left, right = self.value(a, dtype), self.value(b, dtype)
        found = self.ops.binary(name, left.real, right.real)
        return Value(found, None, dtype_of(like), tuple(like.shape))

    def add(self, like: torch.Tensor, a: Any, b: Any, *, negative: bool = False) -> Value[Tensor]:
        """a + b, or a - b."""
        name: Binary = "sub" if negative else "add"
        dtype = dtype_of(like)
        left, right = self.value(a, dtype), self.value(b, dtype)
        real = self.ops.binary(name, left.real, right.real)
        if left.imag is None and right.imag is None:
            return Value(real, None, dtype, tuple(like.shape))
        imag = self.ops.binary(name, self.imag_of(left), self.imag_of(right))
        return Value(real, imag, dtype, tuple(like.shape))

    def imag_of(self, x: Value[Tensor]) -> Tensor:
        """The imaginary part, zeros where there is none."""
        return self.ops.constant(np.zeros(x.shape, x.dtype)) if x.imag is None else x.imag

    def product(
        self, like: torch.Tensor, a: Any, b: Any, multiply: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Value[Tensor]:
        """A bilinear map: by default a b, element by element."""
        times = multiply or (lambda x, y: self.ops.binary("mul", x, y))
        dtype = dtype_of(like)
        left, right = self.value(a, dtype), self.value(b, dtype)
        real = times(left.real, right.real)
        imag = None if right.imag is None else times(left.real, right.imag)
        if left.imag is not None:
            crossed = times(left.imag, right.real)
            imag = crossed if imag is None else self.ops.binary("add", imag, crossed)
            if right.imag is not None:
                real = self.ops.binary("sub", real, times(left.imag, right.imag))
        return Value(real, imag, dtype, tuple(like.shape))

    def power(self, like: torch.Tensor, x: Value[Tensor]) -> Value[Tensor]:
        """|x|^2, real."""
        real = self.ops.binary("mul", x.real, x.real)
        if x.imag is not None:
            real = self.ops.binary("add", real, self.ops.binary("mul", x.imag, x.imag))
        return Value(real, None, x.dtype, tuple(like.shape))

    def stacked(self, x: Value[Tensor]) -> Tensor:
        """Real and imaginary part on a new last axis."""
        parts = [self.ops.reshape(part, (*x.shape, 1)) for part in (x.real, self.imag_of(x))]
        return self.ops.concat(parts, len(x.shape))

    def unstacked(self, x: Tensor, like: torch.Tensor) -> Value[Tensor]:
        """Inverse of ``stacked``; ``like`` is complex."""
        shape = tuple(like.shape)
        real, imag = (
            self.ops.reshape(self.ops.cut(x, len(shape), part, part + 1, 1), shape) for part in range(2)
        )
        return Value(real, imag, dtype_of(like), shape)


def dtype_of(like: torch.Tensor) -> Dtype:
    """numpy's dtype of a tensor's elements, or of their parts."""
    return torch.empty(0, dtype=_PARTS.get(like.dtype, like.dtype)).numpy().dtype


def common_dtype(*arguments: Any) -> Dtype:
    """Of arguments, of which plain numbers and tensors without axes do not count beside others."""
    strong = [x.dtype for x in arguments if isinstance(x, Value)]
    strong += [dtype_of(x) for x in arguments if isinstance(x, torch.Tensor) and x.ndim]
    return np.result_type(*strong)
