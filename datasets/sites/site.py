"""A site: its scene, the base station on its mast, and the streets that it covers."""

import functools
import math

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.scene_files import scene_digest
from airlam.datasets.sites.camera import Camera
from airlam.datasets.sites.paths import PathFinder
from airlam.datasets.sites.scene import Array, Cars, Scene
from airlam.datasets.sites.streets import HeightMap, Streets, find_streets, heights_m, look_down, restrict
from airlam.errors import SpecError
from airlam.specs import ArraySpec, CameraSpec, ChannelSpec, DatasetSpec, SiteSpec

COVERAGE_SPACING_M = 8.0  # between places where coverage is looked up
MAX_COVERAGE_PLACES = 1000


class Site:
    """The scene with the base station on its mast, the path finder, and the streets that are covered."""

    def __init__(
        self, site: SiteSpec, channel: ChannelSpec, base_station: ArraySpec, user: ArraySpec
    ) -> None:
        """SpecError where the mast stands in a building or nothing is covered."""
        self.spec = site
        self.scene = Scene(site.scene, channel.carrier_frequency_hz, site.num_cars)
        self.hide_cars()
        _require_open_sky(self.scene, site)
        self.map: HeightMap = look_down(self.scene, site.area_m)
        self.finder = PathFinder(self.scene, site, base_station, user)
        self._cameras: dict[tuple[CameraSpec, int], Camera] = {}

    @functools.cached_property
    def ground(self) -> Streets:
        """All streets, covered or not."""
        return find_streets(self.map)

    @functools.cached_property
    def streets(self) -> Streets:
        """The largest connected part of the streets where at least one path arrives, cars aside."""
        places_m, covered = self.coverage
        if not covered.any():
            raise SpecError(
                f"no path reaches any of {len(covered)} places on the streets of {self.spec.scene}; move or "
                "raise the base station, move area_m, or allow a larger max_depth"
            )
        return restrict(self.ground, covered, places_m)

    @functools.cached_property
    def coverage(self) -> tuple[Array, NDArray[np.bool_]]:
        """Places on the streets, float64 [places, 2], and whether a path reaches each."""
        spacing_m = max(
            COVERAGE_SPACING_M,
            math.sqrt(len(self.ground.cells) * self.map.cell_m**2 / MAX_COVERAGE_PLACES),
        )
        every = max(1, round(spacing_m / self.map.cell_m))
        chosen = (self.ground.cells % every == 0).all(axis=1)
        places_m = self.ground.places_m[chosen if chosen.any() else slice(None, None, every)]
        antennas_m = self.ground.ground_m(places_m) + self.spec.user_height_m
        return places_m, self.reaches(np.column_stack([places_m, antennas_m]))

    def reaches(self, position_m: Array) -> NDArray[np.bool_]:
        """Whether a path reaches each point [n, 3], cars aside: bool [n]."""
        self.hide_cars()
        still = np.zeros_like(position_m)
        return self.finder.find(position_m, still[:, 0], still).power > 0

    def hide_cars(self) -> None:
        """Takes all cars off the streets."""
        none = np.zeros((self.spec.num_cars, 3))
        cars = Cars(position_m=none, heading_rad=none[:, 0], there=np.zeros(self.spec.num_cars, dtype=bool))
        self.scene.place_cars(cars, none)

    def camera(self, camera: CameraSpec, num_cars: int) -> Camera:
        """The base station's camera, set up once."""
        key = (camera, num_cars)
        if key not in self._cameras:
            self._cameras[key] = Camera(
                self.scene,
                camera,
                position_m=np.array(self.spec.base_station_position_m),
                yaw_rad=math.radians(self.spec.base_station_yaw_deg),
                num_cars=num_cars,
            )
        return self._cameras[key]


@functools.lru_cache(maxsize=2)
def _open_site(
    site: SiteSpec, channel: ChannelSpec, base_station: ArraySpec, user: ArraySpec, digest: str
) -> Site:
    """``digest`` is of the scene's files, so that edited ones are loaded anew."""
    return Site(site, channel, base_station, user)


def open_site(spec: DatasetSpec) -> Site:
    """The site of a ray-traced spec; the last ones stay loaded while their scenes' files stay the same."""
    assert spec.site is not None  # a ray-traced spec has one
    digest = scene_digest(spec.site.scene)
    return _open_site(spec.site, spec.channel, spec.base_station, spec.user, digest)


def _require_open_sky(scene: Scene, site: SiteSpec) -> None:
    """SpecError where something is above the base station: it stands in a building or below the ground."""
    x, y, z = site.base_station_position_m
    height_m = float(heights_m(scene, np.array([[x, y]]))[0])
    if z <= height_m:
        raise SpecError(
            f"base_station_position_m is {z:g} m high at x {x:g}, y {y:g}, where {site.scene} reaches up to "
            f"{height_m:.2f} m; place it at {height_m + 1:.1f} m or higher, or elsewhere"
        )
