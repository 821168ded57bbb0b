"""Sensor tokens to what a backbone takes: one embedding a modality, and their concatenation.

In a graph of modules ``embedding.<modality>`` stands between ``tokenizer.<modality>`` and the blocks; each
can run where its sensor is.
"""

from collections.abc import Mapping

import torch
from einops import repeat
from torch import nn

from airlam.tokens.modality import ModalityTokens
from airlam.tokens.sensors import SensorTokenizer

_INITIAL_STD = 0.02  # of what is added to the projections, as transformers draw embeddings


class ModalityEmbedding(nn.Module):
    """Tokens of one modality to hidden states: W x_i + b + m + p_i.

    Beside the projection, m tells the modality and p_i the token's place; both are learned. (Dosovitskiy et
    al., ICLR 2021, for one modality.)
    """

    def __init__(self, *, num_tokens: int, num_features: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(num_features, width)
        self.modality = nn.Parameter(_INITIAL_STD * torch.randn(width))
        self.place = nn.Parameter(_INITIAL_STD * torch.randn(num_tokens, width))

    def forward(self, tokens: ModalityTokens) -> torch.Tensor:
        """Hidden states, zero where the token is missing: float32 [batch, num_tokens, width]."""
        hidden: torch.Tensor = self.projection(tokens.features)  # [batch, num_tokens, width]
        hidden = hidden + self.modality + self.place
        return hidden.where(tokens.mask[..., None], 0.0)


class SensorEmbedding(nn.Module):
    """All modalities side by side, behind one learned token that is always there.

    That first token gives every link something to attend to, even one whose sensors all failed, and a head
    something to read. Modalities follow in the order of the tokeniser, each at fixed places: whether one is
    missing changes nothing for the others. Places are embedded here, so the backbone may take the tokens as
    a set (``Backbone(..., ordered=False)``).
    """

    def __init__(self, tokenizer: SensorTokenizer, width: int) -> None:
        super().__init__()
        self.num_tokens = tokenizer.num_tokens
        self.summary = nn.Parameter(_INITIAL_STD * torch.randn(width))
        self.modalities = nn.ModuleDict(
            {
                name: ModalityEmbedding(
                    num_tokens=num_tokens, num_features=tokenizer.num_features[name], width=width
                )
                for name, num_tokens in self.num_tokens.items()
            }
        )

    def forward(self, tokens: Mapping[str, ModalityTokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the backbone takes, of every modality's tokens.

        Returns hidden float32 [batch, 1 + all tokens, width] and their mask, bool [batch, 1 + all tokens].
        """
        hidden = {name: module(tokens[name]) for name, module in self.modalities.items()}
        return self.join(hidden, {name: tokens[name].mask for name in hidden})

    def join(
        self, hidden: Mapping[str, torch.Tensor], mask: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``forward``, of embeddings that were made elsewhere.

        hidden: float32 [batch, num_tokens, width] by modality; mask: bool [batch, num_tokens] by modality.
        """
        batch = len(next(iter(mask.values())))
        summary = repeat(self.summary, "width -> b 1 width", b=batch)
        first = torch.ones(batch, 1, dtype=torch.bool, device=summary.device)
        joined = torch.cat([summary, *(hidden[name] for name in self.modalities)], dim=1)
        return joined, torch.cat([first, *(mask[name] for name in self.modalities)], dim=1)

    @property
    def places(self) -> dict[str, slice]:
        """Where each modality's tokens stand among all."""
        found, start = {}, 1
        for name, num_tokens in self.num_tokens.items():
            found[name] = slice(start, start + num_tokens)
            start += num_tokens
        return found
