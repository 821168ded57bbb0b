"""FLOPs and live bytes of whatever torch runs inside a ``with``.

Counted are matrix products, attention, convolutions, transforms and factorisations: two FLOPs a
multiplication and addition, eight where the numbers are complex. Elementwise work, bound by memory, is not.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

Formula = Callable[..., int]
_COMPLEX_FACTOR = 4  # a complex product is four real ones
_EIGH_FACTOR = 9  # n^3 of a symmetric eigendecomposition with vectors; Golub and Van Loan, 4th ed., sec. 8.3
aten = torch.ops.aten


def flop_counter() -> FlopCounterMode:
    """Counts the FLOPs of what runs inside it; ``get_total_flops`` says how many."""
    return FlopCounterMode(display=False, custom_mapping=_FORMULAS)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the tensors that operators make inside it: ``peak`` bytes at once, and which still live.

    Tensors made before count nothing; neither does what an operator uses inside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = set(storages((*args, *(kwargs or {}).values())))
        result = func(*args, **(kwargs or {}))
        for key, storage in _storages_of(result).items():
            if key not in given and key not in self._made:
                weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._made[key] = weak, storage.nbytes()
        self.peak = max(self.peak, sum(self.living().values()))
        return result

    def living(self) -> dict[int, int]:
        """Bytes of each storage made here that something still holds, by its identity."""
        self._made = {
            key: made
            for key, made in self._made.items()
            if not made[0].expired()  # type: ignore[no-untyped-call]
        }
        return {key: num_bytes for key, (_, num_bytes) in self._made.items()}


def storages(tensors: Any) -> dict[int, int]:
    """Bytes of each storage behind the tensors of a nested structure, by its identity."""
    return {key: storage.nbytes() for key, storage in _storages_of(tensors).items()}


def saved_storages(found: dict[int, int]) -> Any:
    """Inside it, autograd's saved tensors enter ``found`` as in ``storages``."""

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.update(storages(tensor))
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)


def _storages_of(tensors: Any) -> dict[int, torch.UntypedStorage]:
    plain: Iterable[Any] = (leaf for leaf in tree_leaves(tensors) if isinstance(leaf, torch.Tensor))
    found = (tensor.untyped_storage() for tensor in plain)
    return {storage._cdata: storage for storage in found}


def _for_complex(formula: Formula) -> Formula:
    """A formula of shapes as one of tensors, which knows complex ones."""

    def raw(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        complex_ = any(isinstance(a, torch.Tensor) and a.is_complex() for a in args)
        return formula(*args, out_val=out_val, **kwargs) * (_COMPLEX_FACTOR if complex_ else 1)

    raw._get_raw = True  # type: ignore[attr-defined]
    return raw


def _factorisation(factor: float) -> Formula:
    def formula(matrix: torch.Tensor, *_: Any, **__: Any) -> int:
        order = int(matrix.shape[-1])
        return round(math.prod(matrix.shape[:-2]) * factor * order**3)

    return _for_complex(formula)


def _substitution(matrix_position: int, sweeps: int) -> Formula:
    """n^2 a column and triangle, a multiplication and addition for each of its n^2 / 2 entries."""

    def formula(*args: Any, **_: Any) -> int:
        triangle, columns = args[matrix_position].shape, args[1 - matrix_position].shape
        num_flops: int = sweeps * math.prod(columns[:-2]) * triangle[-1] ** 2 * columns[-1]
        return num_flops

    return _for_complex(formula)


def _fft(shape: tuple[int, ...], dims: list[int], *_: Any, **__: Any) -> int:
    """5 n log2 n of a complex transform of length n, for all transforms."""
    length = math.prod(shape[dim] for dim in dims)
    return round(5 * math.prod(shape) * math.log2(max(length, 2)))


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    num_flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return num_flops


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    num_flops: int = sdpa_backward_flop_count(gradient, query, key, value)  # type: ignore[no-untyped-call]
    return num_flops


_FORMULAS: dict[Any, Formula] = {
    **{op: _for_complex(flop_registry[op]) for op in (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)},
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.linalg_cholesky_ex: _factorisation(1 / 3),
    aten._linalg_eigh: _factorisation(_EIGH_FACTOR),
    aten.cholesky_solve: _substitution(1, 2),
    aten.linalg_solve_triangular: _substitution(0, 1),
    aten._fft_c2c: _fft,
}
