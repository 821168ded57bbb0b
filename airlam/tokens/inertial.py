"""Inertial readings as tokens of some consecutive samples."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.specs import InertialSensorSpec
from airlam.tokens.modality import ModalityTokens, all_real

MAX_TOKENS = 32
SCALES = (3.0, 3.0, 0.5)  # m/s^2 forwards and to the left, rad/s: hard braking and a tight bend are 1


@dataclass(frozen=True, kw_only=True)
class InertialTokenizer:
    """Inertial tokens with an exact inverse (``inverse``); implements ``ReadingTokenizer``.

    The window of samples over ``SCALES``, cut into tokens of ``samples_per_token``; zeros go before the
    oldest sample where the window is no multiple.
    """

    num_samples: int
    samples_per_token: int = 5

    @staticmethod
    def from_sensor(sensor: InertialSensorSpec) -> "InertialTokenizer":
        """For the readings of a sensor; tokens of a long window grow, so that ``MAX_TOKENS`` cover it."""
        samples_per_token = max(
            InertialTokenizer.samples_per_token, math.ceil(sensor.num_samples / MAX_TOKENS)
        )
        return InertialTokenizer(num_samples=sensor.num_samples, samples_per_token=samples_per_token)

    @property
    def reading_shape(self) -> tuple[int, ...]:
        """Samples, quantities."""
        return (self.num_samples, 3)

    @property
    def num_tokens(self) -> int:
        """Patches that cover the window."""
        return math.ceil(self.num_samples / self.samples_per_token)

    @property
    def num_features(self) -> int:
        """Three quantities a sample."""
        return 3 * self.samples_per_token

    def tokenise(self, reading: torch.Tensor) -> ModalityTokens:
        """reading: float32 [batch, num_samples, 3], oldest first, as the dataset has it."""
        missing = self.num_tokens * self.samples_per_token - self.num_samples
        scaled = torch.nn.functional.pad(reading / reading.new_tensor(SCALES), (0, 0, missing, 0))
        return all_real(rearrange(scaled, "b (n s) q -> b n (s q)", s=self.samples_per_token))

    def inverse(self, tokens: ModalityTokens) -> torch.Tensor:
        """The readings behind the tokens: float32 [batch, num_samples, 3]."""
        scaled = rearrange(tokens.features, "b n (s q) -> b (n s) q", q=3)[:, -self.num_samples :]
        return scaled * scaled.new_tensor(SCALES)  # [batch, num_samples, 3]
