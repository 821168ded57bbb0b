"""What a file format has to offer so that a traced module can be written in it.

All tensors are real and of fixed shape; complex numbers are pairs by then (``lowering.py``).
"""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Tensor = TypeVar("Tensor")
"""A tensor of the format that is written."""
Unary = Literal["exp", "log", "sqrt", "abs", "sign", "erf", "gelu", "tanh", "sigmoid", "not"]
Binary = Literal["add", "sub", "mul", "div", "max", "min", "eq", "ne", "lt", "le", "gt", "ge", "and", "or"]


class Operations(Protocol[Tensor]):
    """The operations of a format; they broadcast and promote as numpy does, but for dtypes, which agree."""

    def constant(self, value: Array) -> Tensor:
        """A tensor that is known when the file is written."""
        ...

    def unary(self, name: Unary, x: Tensor) -> Tensor:
        """Element by element; ``not`` of booleans, ``gelu`` with the error function."""
        ...

    def binary(self, name: Binary, a: Tensor, b: Tensor) -> Tensor:
        """Element by element; comparisons give booleans, ``and`` and ``or`` take them."""
        ...

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``a`` where the condition holds, else ``b``."""
        ...

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """The matrix product over the last two axes."""
        ...

    def reduce(self, name: Literal["sum", "max"], x: Tensor, axes: Sequence[int]) -> Tensor:
        """Over some axes, which stay with size 1."""
        ...

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same elements in another shape."""
        ...

    def transpose(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        """Axis i of the result is axis ``axes[i]``."""
        ...

    def broadcast(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Repeated along axes of size 1."""
        ...

    def cut(self, x: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
        """``x[start:stop:step]`` along one axis."""
        ...

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """One after another along an axis."""
        ...

    def pad(self, x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
        """Zeros before and after, by axis."""
        ...

    def cast(self, x: Tensor, dtype: np.dtype[np.generic]) -> Tensor:
        """Numbers or booleans of another dtype."""
        ...
