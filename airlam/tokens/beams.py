"""Past beam powers as tokens, one a sweep."""

from dataclasses import dataclass

import torch

from airlam.specs import ArraySpec, BeamSensorSpec
from airlam.tokens.modality import ModalityTokens, all_real
from airlam.units import linear_to_db

_FADING_DB = 10.0  # below the noise of a beam, a measured power says nothing more
_SMALLEST_POWER = 1e-30


@dataclass(frozen=True, kw_only=True)
class BeamTokenizer:
    """Beam tokens, oldest sweep first; implements ``ReadingTokenizer``.

    Features: each beam's power in dB below the strongest of all sweeps, over ``floor_db``, as 1 (strongest)
    to 0 (at the floor or below it), and a tenth of the strongest power's log10. What lies below the floor is
    lost, so there is no inverse.
    """

    num_past: int
    num_beams: int
    floor_db: float

    @staticmethod
    def from_sensor(sensor: BeamSensorSpec, array: ArraySpec) -> "BeamTokenizer":
        """For the sweeps of a sensor over an array.

        The floor lies a little below the noise under a link of the reference's strength whose power one beam
        collects: array gain and ``snr_db`` above the noise.
        """
        gain_db = linear_to_db(array.num_rows * array.num_cols)
        floor_db = max(sensor.snr_db + gain_db, 0.0) + _FADING_DB
        return BeamTokenizer(num_past=sensor.num_past, num_beams=sensor.num_beams, floor_db=floor_db)

    @property
    def reading_shape(self) -> tuple[int, ...]:
        """Sweeps, beams."""
        return (self.num_past, self.num_beams)

    @property
    def num_tokens(self) -> int:
        """Sweeps."""
        return self.num_past

    @property
    def num_features(self) -> int:
        """Beams, and the level."""
        return self.num_beams + 1

    def tokenise(self, reading: torch.Tensor) -> ModalityTokens:
        """reading: float32 [batch, num_past, num_beams], power gains."""
        strongest = reading.amax(dim=(1, 2), keepdim=True).clamp_min(_SMALLEST_POWER)  # [batch, 1, 1]
        below_db = 10 * torch.log10((reading / strongest).clamp_min(_SMALLEST_POWER))
        height = (1 + below_db / self.floor_db).clamp_min(0)  # [batch, num_past, num_beams]
        level = 0.1 * strongest.log10().expand(-1, self.num_past, 1)  # [batch, num_past, 1]
        return all_real(torch.cat([height, level], dim=-1))
