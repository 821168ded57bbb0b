"""A measured position as one token: coordinates, what the array sees of them, and Fourier features."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.specs import SiteSpec
from airlam.tokens.modality import ModalityTokens, all_real

_NEAREST_M = 1.0  # to the array; a measured position may fall on it


@dataclass(frozen=True, kw_only=True)
class PositionTokenizer:
    """Position tokens with an exact inverse (``inverse``); implements ``ReadingTokenizer``.

    Features: the position p as (p - center_m) / scale_m; the unit vector from the array to p in axes turned
    with the array (along its boresight, to its left, up), whose second component is what a column of the
    array sees; log of the distance over the area's half diagonal; and sin, cos(pi 2^k u) of both scaled
    horizontal coordinates u, k = 0 .. num_octaves - 1 (Tancik et al., Fourier features, NeurIPS 2020).

    Coordinates in metres from the site's ``origin_m``.
    """

    center_m: tuple[float, float, float]
    scale_m: tuple[float, float, float]
    array_height_m: float
    array_yaw_rad: float
    num_octaves: int = 4

    @staticmethod
    def from_site(site: SiteSpec) -> "PositionTokenizer":
        """Scaled to the site's area and the height of its base station."""
        x, y, z = site.origin_m
        height_m = site.base_station_position_m[2] - z
        x_from, y_from, x_to, y_to = site.area_m
        return PositionTokenizer(
            center_m=((x_from + x_to) / 2 - x, (y_from + y_to) / 2 - y, 0.0),
            scale_m=((x_to - x_from) / 2, (y_to - y_from) / 2, max(abs(height_m), _NEAREST_M)),
            array_height_m=height_m,
            array_yaw_rad=math.radians(site.base_station_yaw_deg),
        )

    @property
    def reading_shape(self) -> tuple[int, ...]:
        """x, y, z."""
        return (3,)

    @property
    def num_tokens(self) -> int:
        """One."""
        return 1

    @property
    def num_features(self) -> int:
        """Position, direction, distance, Fourier features."""
        return 7 + 4 * self.num_octaves

    def tokenise(self, reading: torch.Tensor) -> ModalityTokens:
        """reading: float32 [batch, 3], m."""
        scaled = (reading - reading.new_tensor(self.center_m)) / reading.new_tensor(self.scale_m)
        features = torch.cat(
            [scaled, self._seen_from_the_array(reading), self._octaves(scaled[:, :2])], dim=-1
        )
        return all_real(features[:, None])  # [batch, 1, num_features]

    def inverse(self, tokens: ModalityTokens) -> torch.Tensor:
        """The positions behind the tokens: float32 [batch, 3], m."""
        scaled = tokens.features[:, 0, :3]
        return scaled * scaled.new_tensor(self.scale_m) + scaled.new_tensor(self.center_m)

    def _seen_from_the_array(self, position_m: torch.Tensor) -> torch.Tensor:
        """Unit vector in the array's axes, and log distance: float32 [batch, 4]."""
        offset_m = position_m - position_m.new_tensor([0.0, 0.0, self.array_height_m])
        distance_m = offset_m.norm(dim=-1, keepdim=True).clamp_min(_NEAREST_M)  # [batch, 1]
        cos, sin = math.cos(self.array_yaw_rad), math.sin(self.array_yaw_rad)
        turn = offset_m.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        half_diagonal_m = math.hypot(*self.scale_m[:2])
        return torch.cat([offset_m @ turn / distance_m, (distance_m / half_diagonal_m).log()], dim=-1)

    def _octaves(self, scaled: torch.Tensor) -> torch.Tensor:
        """Sines and cosines at octaves: float32 [batch, 4 * num_octaves]."""
        octave = math.pi * 2.0 ** torch.arange(self.num_octaves, device=scaled.device)
        phase = rearrange(scaled[..., None] * octave, "b xy k -> b (xy k)")
        return torch.cat([phase.sin(), phase.cos()], dim=-1)
