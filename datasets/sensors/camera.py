"""The base station's camera."""

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.sensors.world import World
from airlam.specs import CameraSpec

FULL_SCALE = 255


def camera_images(
    sensor: CameraSpec, world: World, time_s: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Rendered images with white noise, rounded and clipped: uint8 [n, height_px, width_px, 3]."""
    images = np.zeros((len(time_s), sensor.height_px, sensor.width_px, 3), np.uint8)
    for image, time in zip(images, time_s, strict=True):
        clean = world.image(float(time), sensor)  # [height_px, width_px, 3]
        noise = FULL_SCALE * sensor.noise_std * rng.standard_normal(clean.shape, dtype=np.float32)
        image[:] = np.clip(np.rint(clean + noise), 0, FULL_SCALE)
    return images
