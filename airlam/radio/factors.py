"""Factors of batches of Hermitian matrices, for the sizes at which LAPACK's own are slow on a CPU."""

import torch
from torch import nn

SMALLEST_HALVED = 64  # rows of a triangular matrix whose inverse is worth cutting in two
UNLUCKY_ROWS = 128  # columns of so many rows share the cache's sets: 128 takes twice as long as 130
ROWS_BESIDE = 2


def cholesky(matrices: torch.Tensor) -> torch.Tensor:
    """Lower Cholesky factors of complex or real [batch, n, n]; RuntimeError where one is not positive."""
    size = matrices.shape[-1]
    if matrices.is_cuda or size % UNLUCKY_ROWS:
        return _cholesky(matrices)
    wider = nn.functional.pad(matrices, (0, ROWS_BESIDE, 0, ROWS_BESIDE))  # [batch, n + 2, n + 2]
    wider.diagonal(dim1=-2, dim2=-1)[..., size:] = 1
    return _cholesky(wider)[..., :size, :size]


def _cholesky(matrices: torch.Tensor) -> torch.Tensor:
    lower: torch.Tensor = torch.linalg.cholesky(matrices)
    return lower


def triangular_inverse(lower: torch.Tensor) -> torch.Tensor:
    """Inverse of lower triangular matrices [batch, n, n], by halves: no arithmetic on the zeros above."""
    size = lower.shape[1]
    if size <= SMALLEST_HALVED:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        inverse: torch.Tensor = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
        return inverse
    half = size // 2
    first, last = triangular_inverse(lower[:, :half, :half]), triangular_inverse(lower[:, half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[:, :half, :half], inverse[:, half:, half:] = first, last
    inverse[:, half:, :half] = -(last @ (lower[:, half:, :half] @ first))
    return inverse
