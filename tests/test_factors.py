"""Factors: those of LAPACK's plain call, at any size."""

import pytest
import torch

from airlam.radio.factors import SMALLEST_HALVED, UNLUCKY_ROWS, cholesky, triangular_inverse


def positive(size: int, dtype: torch.dtype) -> torch.Tensor:
    draw = torch.Generator().manual_seed(size)
    roots = torch.randn(3, size, size + 5, generator=draw, dtype=dtype)
    return roots @ roots.mH / size + torch.eye(size, dtype=dtype)


@pytest.mark.parametrize("size", [1, 7, UNLUCKY_ROWS, UNLUCKY_ROWS + 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_cholesky_factors(size: int, dtype: torch.dtype) -> None:
    matrices = positive(size, dtype)
    lower = cholesky(matrices)
    assert torch.equal(lower, lower.tril())
    assert torch.allclose(lower @ lower.mH, matrices, atol=1e-12)


def test_what_is_not_positive_is_refused() -> None:
    with pytest.raises(RuntimeError):
        cholesky(-positive(UNLUCKY_ROWS, torch.float64))


@pytest.mark.parametrize("size", [1, SMALLEST_HALVED, SMALLEST_HALVED + 1, 3 * SMALLEST_HALVED + 2])
def test_inverse_times_matrix_is_one(size: int) -> None:
    lower = torch.linalg.cholesky(positive(size, torch.complex128))
    inverse = triangular_inverse(lower)
    assert torch.equal(inverse, inverse.tril())
    assert torch.allclose(inverse @ lower, torch.eye(size, dtype=lower.dtype).expand_as(lower), atol=1e-11)
