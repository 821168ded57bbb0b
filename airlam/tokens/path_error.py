"""Path tokens that tell a precoder how far a prediction from them may be wrong, and what it is held to.

Beside the tokens travel the posterior covariance over the array (``airlam.radio.prediction.path_covariance``)
under what the classical front end believes, on some subcarriers, and in training the true future there.
"""

import torch

from airlam.radio.prediction.path_covariance import PathBeliefs, port_covariance
from airlam.tokens.base import TokenBatch
from airlam.tokens.path import PathTokenizer

ERROR_COVARIANCE, FUTURE, POWER = "error_covariance", "future", "power"  # in the context


class PathErrorTokenizer:
    """Implements ``CsiTokenizer`` around a ``PathTokenizer``; the context has besides its own

    - ``error_covariance``: complex64 [batch, horizon, f, ports, ports], E e_m conj(e_n) over the ports of one
      polarisation, at the link's own scale;
    - after ``with_target``: ``future``, complex64 [batch, horizon, num_bs_ant, f], of the user's first
      antenna, and ``power``, float32 [batch], its mean over horizon, antennas and all subcarriers; 1 where
      nothing reaches the user.

    subcarriers: int64 [f], of the target's.
    """

    def __init__(self, paths: PathTokenizer, subcarriers: torch.Tensor) -> None:
        self.setting = paths.setting
        self.num_features = paths.num_features
        self.paths = paths
        self.subcarriers = subcarriers

    def tokenise(self, history: torch.Tensor, noise_variance: torch.Tensor) -> TokenBatch:
        """See ``CsiTokenizer.tokenise``."""
        tokens = self.paths.tokenise(history, noise_variance)
        return _with(tokens, {ERROR_COVARIANCE: self.error_covariance(tokens.context)})

    def error_covariance(self, context: dict[str, torch.Tensor]) -> torch.Tensor:
        """Of predictions from tokens with this context, shape as above."""
        beliefs = PathBeliefs(
            position=context["position"],
            spectrum=context["log_spectrum"].exp() * context["path_mask"].unsqueeze(-1),
            spread=context["spread"],
            noise_variance=context["noise_variance"],
            scale=context["scale"],
        )
        physics = self.paths.predictor
        return port_covariance(beliefs, physics.grid, physics.basis, self.subcarriers)

    def with_target(self, tokens: TokenBatch, future: torch.Tensor) -> TokenBatch:
        """See ``CsiTokenizer.with_target``; nothing is left out but what only ``squared_error`` reads."""
        first = future[:, :, 0]  # [batch, horizon, num_bs_ant, num_subcarriers]
        power = first.abs().square().mean(dim=(1, 2, 3))  # [batch]
        power = torch.where(power > 0, power, 1.0)  # [batch], so that the scaled channel stays zero there
        return _with(tokens, {FUTURE: first[..., self.subcarriers].contiguous(), POWER: power})


def _with(tokens: TokenBatch, added: dict[str, torch.Tensor]) -> TokenBatch:
    return TokenBatch(features=tokens.features, mask=tokens.mask, context={**tokens.context, **added})
