"""What the tokeniser of one sensor's readings is, and what it gives."""

from dataclasses import dataclass
from typing import Protocol

import torch
from einops import repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityTokens:
    """Tokens of one modality for a batch of links, each a user of a drop.

    features: float32 [batch, num_tokens, num_features], zero where the token is missing.
    mask: bool [batch, num_tokens], true where the token is real.
    """

    features: torch.Tensor
    mask: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)

    def select(self, index: torch.Tensor) -> "ModalityTokens":
        """The links at ``index`` (int64 [n])."""
        return ModalityTokens(features=self.features[index], mask=self.mask[index])

    def to(self, device: torch.device) -> "ModalityTokens":
        """The same tokens on another device."""
        return ModalityTokens(features=self.features.to(device), mask=self.mask.to(device))

    def repeated(self, times: int) -> "ModalityTokens":
        """Each row so many times in a row: [batch * times, ...]."""
        return ModalityTokens(
            features=repeat(self.features, "b n f -> (b times) n f", times=times),
            mask=repeat(self.mask, "b n -> (b times) n", times=times),
        )

    def kept(self, keep: torch.Tensor) -> "ModalityTokens":
        """The tokens of the links where ``keep`` (bool [batch]) is true; the other links' are missing."""
        mask = self.mask & keep[:, None]  # [batch, num_tokens]
        return ModalityTokens(features=self.features.where(mask[..., None], 0.0), mask=mask)


class ReadingTokenizer(Protocol):
    """One sensor's readings to tokens; has no trainable weights (those start at the LAM's embedding)."""

    @property
    def reading_shape(self) -> tuple[int, ...]:
        """Shape of one reading: a user's, or the base station's."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens of a reading."""
        ...

    @property
    def num_features(self) -> int:
        """Features of a token."""
        ...

    def tokenise(self, reading: torch.Tensor) -> ModalityTokens:
        """Tokens of readings [batch, *reading_shape] that are there."""
        ...


def all_real(features: torch.Tensor) -> ModalityTokens:
    """Tokens that are all real."""
    return ModalityTokens(
        features=features, mask=torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    )
