"""Linear prediction in time with weights that many coefficients of a drop share.

Everything such a method can learn from a history is in its temporal Gram matrix, which is small: the
functions here turn Gram matrices into weights, and weights into predictions. Gram matrices and the
systems solved from them are complex128, so that noise-free histories are predicted to float32 accuracy.
"""

import torch

from airlam.errors import SpecError


def temporal_gram(x: torch.Tensor) -> torch.Tensor:
    r"""G_ts = sum_n x_tn conj(x_sn).

    x: complex [..., num_history, num_coefficients]. Returns complex128 [..., num_history, num_history].
    """
    wide = x.to(torch.complex128)
    return wide @ wide.mH  # [..., num_history, num_history]


def forward_backward(gram: torch.Tensor) -> torch.Tensor:
    """The mean of a Gram matrix and that of the conjugated, time-reversed series; shape kept.

    A sum of undamped exponentials obeys one recursion in both directions (Kay, Modern Spectral
    Estimation, 1988, sec. 7.4), so this doubles the equations without adding unknowns.
    """
    return 0.5 * (gram + gram.conj().flip(-1, -2))


def normal_equations(gram: torch.Tensor, order: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Least squares x_{t+step} ~ sum_k w_k x_{t-order+1+k}, summed over every t that the history holds.

    gram: complex128 [..., num_history, num_history]. Returns matrix [..., order, order] and right-hand
    side [..., order]; ``matrix @ w = rhs`` gives the weights, oldest slot first.
    """
    last = gram.shape[-1] - order - step  # windows start at 0 ... last
    blocks = [gram[..., j : j + order, j : j + order] for j in range(last + 1)]
    targets = [gram[..., j + order - 1 + step, j : j + order] for j in range(last + 1)]
    return torch.stack(blocks).sum(0).mT, torch.stack(targets).sum(0)


def compensate_noise(matrix: torch.Tensor, noise_energy: torch.Tensor) -> torch.Tensor:
    """Takes the noise's expected share off the diagonal, at most 99 % of the smallest eigenvalue.

    matrix: complex128 Hermitian [..., order, order]; noise_energy: float [...]. Shape kept.
    """
    smallest = torch.linalg.eigvalsh(matrix)[..., 0]  # [...]
    taken = torch.minimum(noise_energy.to(smallest.dtype), 0.99 * smallest.clamp_min(0.0))  # [...]
    return matrix - taken[..., None, None] * _eye_like(matrix)


def ridge_solve(matrix: torch.Tensor, rhs: torch.Tensor, ridge: float) -> torch.Tensor:
    """Solves ``(matrix + ridge * mean eigenvalue * I) w = rhs``; a drop without power gets zero weights.

    matrix: complex128 [..., order, order]; rhs: [..., order]. Returns [..., order].
    """
    scale = matrix.diagonal(dim1=-2, dim2=-1).real.mean(-1)  # [...]
    floor = torch.finfo(scale.dtype).tiny ** 0.5
    loading = (ridge * scale).clamp_min(floor)[..., None, None]  # [..., 1, 1]
    solution: torch.Tensor = torch.linalg.solve(matrix + loading * _eye_like(matrix), rhs)
    return solution


def truncated_solve(matrix: torch.Tensor, rhs: torch.Tensor, rank: int) -> torch.Tensor:
    """Solves in the span of the ``rank`` strongest eigenvectors; shapes as in ``ridge_solve``."""
    values, vectors = torch.linalg.eigh(matrix)  # [..., order], [..., order, order]
    values, vectors = values[..., -rank:], vectors[..., -rank:]  # [..., rank], [..., order, rank]
    floor = torch.finfo(values.dtype).tiny ** 0.5
    projected = (vectors.mH @ rhs[..., None])[..., 0] / values.clamp_min(floor)  # [..., rank]
    solution: torch.Tensor = (vectors @ projected[..., None])[..., 0]  # [..., order]
    return solution


def iterate(filters: torch.Tensor, known: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Feeds a one-step filter its own output.

    filters: complex [..., order], oldest slot first. known: complex [..., num_known, n], slots in order of
    time, at least ``order`` of them: either values of n coefficients or weights on n slots of history.
    Returns the slots that follow: complex [..., num_steps, n].
    """
    order = filters.shape[-1]
    slots = list(known[..., -order:, :].unbind(-2))
    for _ in range(num_steps):
        recent = torch.stack(slots[-order:], dim=-2)  # [..., order, n]
        slots.append((filters[..., None, :] @ recent)[..., 0, :])  # [..., n]
    return torch.stack(slots[order:], dim=-2)  # [..., num_steps, n]


def recursive_weights(filters: torch.Tensor, num_history: int, num_horizon: int) -> torch.Tensor:
    """``iterate`` as weights on the history: complex [..., order] to [..., num_horizon, num_history]."""
    known = torch.eye(num_history, dtype=filters.dtype, device=filters.device)
    return iterate(filters, known.expand(*filters.shape[:-1], -1, -1), num_horizon)


def direct_weights(gram: torch.Tensor, order: int, ridge: float, num_horizon: int) -> torch.Tensor:
    """One ridge least-squares filter for each step of the horizon.

    Steps so far ahead that the history holds no example of them follow by ``iterate``.
    gram: complex128 [..., num_history, num_history]. Returns [..., num_horizon, num_history].
    """
    num_history = gram.shape[-1]
    num_direct = min(num_horizon, num_history - order)
    filters = [ridge_solve(*normal_equations(gram, order, step + 1), ridge) for step in range(num_direct)]
    weights = torch.stack(filters, dim=-2)  # [..., num_direct, order]
    weights = torch.nn.functional.pad(weights, (num_history - order, 0))  # [..., num_direct, num_history]
    if num_direct == num_horizon:
        return weights
    past = torch.eye(num_history, dtype=gram.dtype, device=gram.device).expand_as(gram)
    known = torch.cat([past, weights], dim=-2)  # [..., num_history + num_direct, num_history]
    return torch.cat([weights, iterate(filters[0], known, num_horizon - num_direct)], dim=-2)


def check_order(order: int, num_history: int) -> None:
    """SpecError unless a filter of this order sees at least one example in the history."""
    if not 1 <= order < num_history:
        raise SpecError(
            f"filter order {order} does not fit {num_history} slots of history; choose 1..{num_history - 1}"
        )


def apply(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Predictions from a history.

    weights: complex [..., num_horizon, num_history]; x: complex [..., num_history, num_coefficients].
    Returns [..., num_horizon, num_coefficients] in the dtype of ``x``.
    """
    return weights.to(x.dtype) @ x  # [..., num_horizon, num_coefficients]


def _eye_like(matrix: torch.Tensor) -> torch.Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
