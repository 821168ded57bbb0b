"""What a task head is."""

from typing import Protocol

import torch

Context = dict[str, torch.Tensor]


class PredictionHead(Protocol):
    """Hidden states and the tokeniser's context to a channel; an ``nn.Module`` in practice."""

    def forward(self, hidden: torch.Tensor, context: Context) -> Context:
        """hidden: float32 [batch, num_tokens, width]; returns named tensors, batch first."""
        ...

    def channel(self, output: Context, context: Context) -> torch.Tensor:
        """The predicted future, complex64 [batch, num_horizon, num_user_ant, num_bs_ant, num_subcarriers]."""
        ...

    def squared_error(self, output: Context, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """Error energy and target energy of each link, float32 [batch]; needs a context ``with_target``."""
        ...
