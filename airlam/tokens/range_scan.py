"""A range scan as tokens of neighbouring directions."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.specs import RangeSensorSpec
from airlam.tokens.modality import ModalityTokens, all_real

MAX_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class RangeScanTokenizer:
    """Range tokens with an exact inverse (``inverse``); implements ``ReadingTokenizer``.

    A direction's feature is its nearness 1 - range / max_range_m, 0 where nothing is met; zeros also fill up
    the last token.
    """

    num_directions: int
    max_range_m: float
    directions_per_token: int = 8

    @staticmethod
    def from_sensor(sensor: RangeSensorSpec) -> "RangeScanTokenizer":
        """For the scans of a sensor; tokens of a fine scan grow, so that ``MAX_TOKENS`` cover it."""
        directions_per_token = max(
            RangeScanTokenizer.directions_per_token, math.ceil(sensor.num_directions / MAX_TOKENS)
        )
        return RangeScanTokenizer(
            num_directions=sensor.num_directions,
            max_range_m=sensor.max_range_m,
            directions_per_token=directions_per_token,
        )

    @property
    def reading_shape(self) -> tuple[int, ...]:
        """Directions."""
        return (self.num_directions,)

    @property
    def num_tokens(self) -> int:
        """Sectors that cover the circle."""
        return math.ceil(self.num_directions / self.directions_per_token)

    @property
    def num_features(self) -> int:
        """Directions of a token."""
        return self.directions_per_token

    def tokenise(self, reading: torch.Tensor) -> ModalityTokens:
        """reading: float32 [batch, num_directions], m, counter-clockwise from the heading."""
        missing = self.num_tokens * self.directions_per_token - self.num_directions
        nearness = torch.nn.functional.pad(1 - reading / self.max_range_m, (0, missing))
        return all_real(rearrange(nearness, "b (n d) -> b n d", d=self.directions_per_token))

    def inverse(self, tokens: ModalityTokens) -> torch.Tensor:
        """The scans behind the tokens: float32 [batch, num_directions], m."""
        nearness = rearrange(tokens.features, "b n d -> b (n d)")[:, : self.num_directions]
        return (1 - nearness) * self.max_range_m
