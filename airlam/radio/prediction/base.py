"""What every predictor is, learned or not."""

from dataclasses import dataclass
from typing import Protocol

import torch


class Predictor(Protocol):
    """Noisy history in, future out."""

    @property
    def name(self) -> str:
        """Short key, e.g. ``denoise_ls``."""
        ...

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """The future of each link.

        history: complex64 [batch, num_history, num_user_ant, num_bs_ant, num_history_subcarriers], noisy.
        noise_variance: float32 [batch], E|n|^2 of each coefficient of the history.
        Returns complex64 [batch, num_horizon, num_user_ant, num_bs_ant, num_target_subcarriers].
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLinks:
    """Clean training links from which fitted predictors take their statistics (train split only).

    history: complex64 [num_links, num_history, num_user_ant, num_bs_ant, num_history_subcarriers].
    future: complex64 [num_links, num_horizon, num_user_ant, num_bs_ant, num_target_subcarriers].
    """

    history: torch.Tensor
    future: torch.Tensor
