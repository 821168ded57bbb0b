"""Ray-traced sites: channels and sensor readings along drives through a scene; ``airlam.datasets.sites``."""

from airlam.datasets.sites.draw import draw_trajectory, height_map

__all__ = ["draw_trajectory", "height_map"]
