"""A user's last measured positions as one token."""

from dataclasses import dataclass

import torch

from airlam.tokens.modality import ModalityTokens, all_real
from airlam.tokens.position import PositionTokenizer


@dataclass(frozen=True, kw_only=True)
class TrackTokenizer:
    """One token of ``num_past`` fixes, oldest first; implements ``ReadingTokenizer``.

    Features: those of the last fix (``PositionTokenizer``), then how far each earlier one lies behind it,
    horizontally, over ``step_m``.
    """

    position: PositionTokenizer
    num_past: int
    step_m: float  # about what the user covers in the window

    @property
    def reading_shape(self) -> tuple[int, ...]:
        """Fixes; x, y, z."""
        return (self.num_past, 3)

    @property
    def num_tokens(self) -> int:
        """One."""
        return 1

    @property
    def num_features(self) -> int:
        """Those of a position, and two an earlier fix."""
        return self.position.num_features + 2 * (self.num_past - 1)

    def tokenise(self, reading: torch.Tensor) -> ModalityTokens:
        """reading: float32 [batch, num_past, 3], m."""
        last = self.position.tokenise(reading[:, -1]).features[:, 0]  # [batch, features of a position]
        behind = (reading[:, -1:, :2] - reading[:, :-1, :2]).flatten(1) / self.step_m
        return all_real(torch.cat([last, behind], dim=-1)[:, None])  # [batch, 1, num_features]
