"""What a sensor may look at: the scene along one trajectory, at any time."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from airlam.datasets.motion import Motion
from airlam.specs import CameraSpec


class World(Protocol):
    """A site along one trajectory; every answer is free of noise and depends on its arguments only."""

    def motion(self, time_s: NDArray[np.float64]) -> Motion:
        """How the users move at some times.

        time_s: float64 [n], from the sensors' ``start_s`` to the last drop. Positions are in scene
        coordinates.
        """
        ...

    def image(self, time_s: float, camera: CameraSpec) -> NDArray[np.uint8]:
        """What the base station's camera sees, cars included: uint8 [height_px, width_px, 3], sRGB."""
        ...

    def ranges_m(
        self, time_s: float, azimuth_rad: NDArray[np.float64], height_m: float, max_range_m: float
    ) -> NDArray[np.float64]:
        """Distance from each user's place to the first surface met in each horizontal direction.

        azimuth_rad: float64 [users, directions], from x towards y. height_m: above the ground. Returns
        float64 of azimuth_rad's shape, ``max_range_m`` where nothing is met within it.
        """
        ...

    def links(self, time_s: NDArray[np.float64]) -> torch.Tensor:
        """The channel, one slot at each time; dear, so asked for once with all times.

        time_s: float64 [n], from the sensors' ``start_s`` to the last drop. Returns complex64
        [n, users, user_ant, bs_ant, subcarriers], scaled as the drops' h_freq: with its path loss where the
        spec keeps it, at unit path gain otherwise.
        """
        ...
