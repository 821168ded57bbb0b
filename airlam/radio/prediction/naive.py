"""Predictors without statistics: the floor of every comparison."""

from dataclasses import dataclass

import torch
from einops import repeat

from airlam.radio.channel import PredictionSetting


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Zero-order hold: the last measured slot, repeated. In FDD it takes uplink for downlink."""

    num_horizon: int
    name: str = "hold"

    @staticmethod
    def for_setting(setting: PredictionSetting) -> "Hold":
        """The hold for a setting's horizon."""
        return Hold(num_horizon=setting.num_horizon)

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``; ``noise_variance`` is not used."""
        return repeat(history[:, -1], "b u p f -> b t u p f", t=self.num_horizon).clone()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearExtrapolation:
    """The least-squares line through the last ``num_points`` slots, continued.

    With two points it is x_T + l (x_T - x_{T-1}); more points pass less noise.
    """

    num_horizon: int
    num_points: int = 2
    name: str = "linear"

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``; ``noise_variance`` is not used."""
        weights = self._weights().to(history)  # [num_horizon, num_points]
        return torch.einsum("lt,btupf->blupf", weights, history[:, -self.num_points :])

    def _weights(self) -> torch.Tensor:
        """The line's value at each step as weights on the points: float64 [num_horizon, num_points]."""
        past = torch.arange(1 - self.num_points, 1, dtype=torch.float64)
        ahead = torch.arange(1, self.num_horizon + 1, dtype=torch.float64)
        design = torch.stack([torch.ones_like(past), past], dim=1)  # [num_points, 2]
        wanted = torch.stack([torch.ones_like(ahead), ahead], dim=1)  # [num_horizon, 2]
        weights: torch.Tensor = wanted @ torch.linalg.pinv(design)
        return weights  # [num_horizon, num_points]
