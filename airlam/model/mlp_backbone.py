"""A backbone in which no token sees another: the feed-forward half of transformer blocks, without attention.

What a transformer gains on it is what attention is worth. It has the face of a Hugging Face model
(``config``, ``layers``, ``inputs_embeds``), so that chain.py runs it like any other.
"""

from dataclasses import dataclass

import torch
from torch import nn

NUM_BLOCKS = 4
WIDTH = 192  # both as the ``small`` backbone
EXPANSION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpConfig:
    """What chain.py reads of a model."""

    hidden_size: int
    num_hidden_layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpOutput:
    """What the model returns: float32 [batch, num_tokens, width]."""

    last_hidden_state: torch.Tensor


class MlpBlock(nn.Module):
    """x + W2 dropout(gelu(W1 norm(x))), each token by itself."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.contract = nn.Linear(EXPANSION * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [batch, num_tokens, width] in and out."""
        inner = nn.functional.gelu(self.expand(self.norm(hidden)))  # [batch, num_tokens, 4 * width]
        added: torch.Tensor = self.contract(self.dropout(inner))  # [batch, num_tokens, width]
        return hidden + added


class TokenMlp(nn.Module):
    """A stack of ``MlpBlock`` and a norm."""

    def __init__(self, *, num_blocks: int = NUM_BLOCKS, width: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = MlpConfig(hidden_size=width, num_hidden_layers=num_blocks)
        self.layers = nn.ModuleList(MlpBlock(width, dropout) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> MlpOutput:
        """inputs_embeds: float32 [batch, num_tokens, width]; mask and positions change nothing."""
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden)
        return MlpOutput(last_hidden_state=self.norm(hidden))
