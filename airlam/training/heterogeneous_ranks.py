r"""LoRA factors of devices with different ranks, averaged at a server and cut to each device's rank again.

A device of rank r has A [r, num_in] and B [num_out, r]. Zero-padding and truncation are named, not described,
in summaries of P2 (Wang et al., 2505.03139): a reconstruction. The mean of padded factors is not the mean of
products, B A \neq sum_k w_k B_k A_k; ``product_gap`` says by how much, and ``average_by_svd`` has none but
what the rank cuts off (after FlexLoRA, Bai et al., 2402.11505).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from airlam.specs import require


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFactors:
    """down: A, float [rank, num_in]. up: B, float [num_out, rank]."""

    down: torch.Tensor
    up: torch.Tensor

    def __post_init__(self) -> None:
        require(
            self.down.shape[0] == self.up.shape[1],
            f"A is {tuple(self.down.shape)} and B {tuple(self.up.shape)}; expected one rank",
        )

    @property
    def rank(self) -> int:
        """r."""
        return int(self.down.shape[0])

    @property
    def product(self) -> torch.Tensor:
        """B A, float [num_out, num_in]."""
        return self.up @ self.down

    def at_rank(self, rank: int) -> "LoraFactors":
        """Cut to a smaller rank, or filled up with zeros to a larger one."""
        missing = max(rank - self.rank, 0)
        return LoraFactors(
            down=pad(self.down[:rank], (0, 0, 0, missing)),  # [rank, num_in]
            up=pad(self.up[:, :rank], (0, missing)),  # [num_out, rank]
        )


def average_padded(factors: Sequence[LoraFactors], weights: Sequence[float]) -> LoraFactors:
    """sum_k w_k pad(A_k) and sum_k w_k pad(B_k), of the largest rank given; weights add up to 1."""
    rank = max(one.rank for one in factors)
    padded = [one.at_rank(rank) for one in factors]
    return LoraFactors(
        down=torch.stack([w * one.down for w, one in zip(weights, padded, strict=True)]).sum(0),
        up=torch.stack([w * one.up for w, one in zip(weights, padded, strict=True)]).sum(0),
    )


def average_by_svd(factors: Sequence[LoraFactors], weights: Sequence[float], rank: int) -> LoraFactors:
    """The best factors of a rank for sum_k w_k B_k A_k, largest singular values first: B = U S, A = V^H.

    Cut to a smaller rank they are the best of that rank too. The product is never formed: the cost grows with
    the sum of the ranks. Rows of A have unit norm also where S is 0, so that their B can still learn.
    """
    up = torch.cat([w * one.up for w, one in zip(weights, factors, strict=True)], dim=1)  # [num_out, ranks]
    down = torch.cat([one.down for one in factors])  # [ranks, num_in]
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.mT)
    u, singular, vh = torch.linalg.svd(upper @ lower.mT)
    count = len(singular)
    best = LoraFactors(down=vh[:count] @ right.mT, up=left @ (u[:, :count] * singular))
    return best.at_rank(rank)


def product_gap(mean: LoraFactors, factors: Sequence[LoraFactors], weights: Sequence[float]) -> float:
    """||B A - sum_k w_k B_k A_k|| / ||sum_k w_k B_k A_k|| in the Frobenius norm; 0 where both are 0."""
    wanted = torch.stack([w * one.product for w, one in zip(weights, factors, strict=True)]).sum(0)
    size = wanted.norm()
    return float((mean.product - wanted).norm() / size) if size > 0 else float(mean.product.norm())
