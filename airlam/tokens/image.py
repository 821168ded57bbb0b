"""An image as its square patches, the first step of a vision transformer; the projection is the LAM's.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.specs import CameraSpec
from airlam.tokens.modality import ModalityTokens, all_real

MAX_TOKENS = 64
_PATCH_STEP_PX = 16  # patches are a multiple of the vision transformer's
_HALF_SCALE = 127.5  # of uint8


@dataclass(frozen=True, kw_only=True)
class ImageTokenizer:
    """Image tokens with an exact inverse (``inverse``); implements ``ReadingTokenizer``.

    Colours are taken from 0..255 to -1..1, patches run row by row; mid-grey fills up patches at the right and
    lower edges.
    """

    height_px: int
    width_px: int
    patch_px: int = 16

    @staticmethod
    def from_sensor(sensor: CameraSpec) -> "ImageTokenizer":
        """For the images of a camera, in the smallest patches of which ``MAX_TOKENS`` cover one."""
        patch_px = _PATCH_STEP_PX
        while math.ceil(sensor.height_px / patch_px) * math.ceil(sensor.width_px / patch_px) > MAX_TOKENS:
            patch_px += _PATCH_STEP_PX
        return ImageTokenizer(height_px=sensor.height_px, width_px=sensor.width_px, patch_px=patch_px)

    @property
    def reading_shape(self) -> tuple[int, ...]:
        """Rows, columns, colours."""
        return (self.height_px, self.width_px, 3)

    @property
    def num_tokens(self) -> int:
        """Patches that cover the image."""
        return self._num_rows * self._num_columns

    @property
    def num_features(self) -> int:
        """Colours of a patch's pixels."""
        return 3 * self.patch_px**2

    def tokenise(self, reading: torch.Tensor) -> ModalityTokens:
        """reading: uint8 [batch, height_px, width_px, 3]."""
        below = self._num_rows * self.patch_px - self.height_px
        right = self._num_columns * self.patch_px - self.width_px
        image = torch.nn.functional.pad(reading.float() / _HALF_SCALE - 1, (0, 0, 0, right, 0, below))
        patches = rearrange(
            image, "b (r p) (c q) colour -> b (r c) (p q colour)", p=self.patch_px, q=self.patch_px
        )
        return all_real(patches)  # [batch, num_tokens, num_features]

    def inverse(self, tokens: ModalityTokens) -> torch.Tensor:
        """The images behind the tokens: uint8 [batch, height_px, width_px, 3]."""
        image = rearrange(
            tokens.features,
            "b (r c) (p q colour) -> b (r p) (c q) colour",
            r=self._num_rows,
            p=self.patch_px,
            q=self.patch_px,
        )[:, : self.height_px, : self.width_px]
        return ((image + 1) * _HALF_SCALE).round().clamp(0, 255).to(torch.uint8)

    @property
    def _num_rows(self) -> int:
        return math.ceil(self.height_px / self.patch_px)

    @property
    def _num_columns(self) -> int:
        return math.ceil(self.width_px / self.patch_px)
