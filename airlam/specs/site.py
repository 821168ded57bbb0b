"""A place whose channels are ray-traced."""

from dataclasses import dataclass
from typing import Literal

from airlam.specs.reading import require, require_finite

MAX_INTERVAL_S = 60.0
MAX_CANDIDATES = 10**8  # rays by interactions


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSpec:
    """A scene, where its base station stands, and how users and other cars drive through it.

    A shard of the dataset is a trajectory of each of its users, driven along the streets at a speed drawn
    from the spec's ``mobility``; its drops are places ``position_interval_s`` apart on it. Coordinates are
    the scene's, whose ground need not be z = 0; the dataset's positions count from ``origin_m``.

    Within a drop paths are traced anew when a user, or a car at its fastest, may have gone
    ``retrace_distance_m``; in between each path keeps its Doppler shift and its directions. Over a distance d
    across a path of length R that leaves out the wavefront's curvature, which is d^2 / (2 R lambda) of a
    period: 0.03 at 0.5 m, 50 m and 3.5 GHz, 0.23 at 28 GHz.
    """

    scene: str  # munich, etoile, florence, san_francisco, simple_street_canyon..., or a Mitsuba XML file
    base_station_position_m: tuple[float, float, float]
    base_station_yaw_deg: float = 0.0  # of the boresight, from x towards y
    base_station_downtilt_deg: float = 0.0
    area_m: tuple[float, float, float, float] = (-200.0, -200.0, 200.0, 200.0)  # x and y from, x and y to
    user_height_m: float = 1.5
    user_orientation: Literal["fixed", "heading"] = "heading"
    position_interval_s: float = 0.1
    retrace_distance_m: float = 0.5  # within a drop, see above
    max_depth: int = 3
    num_rays: int = 100_000  # launched a transmitter; times max_depth 10^8 at most, 40 B of memory each
    num_cars: int = 0  # that drive along the streets, block and reflect
    diffuse_reflection: bool = False
    refraction: bool = False
    diffraction: bool = False

    def __post_init__(self) -> None:
        require_finite(self)
        require(bool(self.scene), "scene is empty; name a packaged scene or a Mitsuba XML file")
        x_from, y_from, x_to, y_to = self.area_m
        require(
            x_from < x_to and y_from < y_to,
            f"area_m is {self.area_m}; expected x and y from, then larger x and y to",
        )
        for name in ("user_height_m", "position_interval_s", "retrace_distance_m"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        require(
            self.position_interval_s <= MAX_INTERVAL_S,
            f"position_interval_s is {self.position_interval_s:g}; expected at most {MAX_INTERVAL_S:g}",
        )
        require(
            abs(self.base_station_downtilt_deg) <= 90,
            f"base_station_downtilt_deg is {self.base_station_downtilt_deg:g}; expected -90 to 90",
        )
        require(0 <= self.max_depth <= 16, f"max_depth is {self.max_depth}; expected 0 to 16")
        require(1 <= self.num_rays <= MAX_CANDIDATES, f"num_rays is {self.num_rays}; expected 1 to 100000000")
        require(
            self.num_rays * self.max_depth <= MAX_CANDIDATES,
            f"num_rays = {self.num_rays} times max_depth = {self.max_depth} is "
            f"{self.num_rays * self.max_depth}; expected at most {MAX_CANDIDATES}, each of which takes 40 B",
        )
        require(0 <= self.num_cars <= 100, f"num_cars is {self.num_cars}; expected 0 to 100")

    @property
    def origin_m(self) -> tuple[float, float, float]:
        """Of the dataset's positions, in scene coordinates: x and y of the mast, and z = 0 of the scene."""
        x, y, _ = self.base_station_position_m
        return (x, y, 0.0)
