"""What a tokeniser gives and what a LAM takes."""

from dataclasses import dataclass
from typing import Protocol

import torch

from airlam.radio.channel import PredictionSetting


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Tokens of a batch of links and, beside them, what the task head needs to turn them into a channel.

    features: float32 [batch, num_tokens, num_features].
    mask: bool [batch, num_tokens], true where the token is real.
    context: named tensors, batch first. They stay where the measurement was made (the device) and go from
    the tokeniser to the head without passing the backbone.
    """

    features: torch.Tensor
    mask: torch.Tensor
    context: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.features)

    def select(self, index: torch.Tensor) -> "TokenBatch":
        """The links at ``index`` (int64 [n])."""
        return TokenBatch(
            features=self.features[index],
            mask=self.mask[index],
            context={name: value[index] for name, value in self.context.items()},
        )

    def to(self, device: torch.device) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(
            features=self.features.to(device),
            mask=self.mask.to(device),
            context={name: value.to(device) for name, value in self.context.items()},
        )


class CsiTokenizer(Protocol):
    """CSI to tokens; has no trainable weights (those start at the LAM's embedding).

    setting: what it was made for.
    """

    setting: PredictionSetting
    num_features: int

    def tokenise(self, history: torch.Tensor, noise_variance: torch.Tensor) -> TokenBatch:
        """Tokens of a noisy history; shapes as in ``Predictor.predict``."""
        ...

    def with_target(self, tokens: TokenBatch, future: torch.Tensor) -> TokenBatch:
        """The tokens with the clean future in their context, as the head's ``squared_error`` wants it.

        For training: what only the head's ``channel`` reads may be left out.
        """
        ...
