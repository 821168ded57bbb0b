"""A scene with cars in it: where its surfaces are, and what stands where."""

import difflib
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from airlam.datasets.scene_files import own_scene
from airlam.datasets.sites.tracer import mitsuba, ray_tracer
from airlam.errors import DataError, SpecError

Array = NDArray[np.float64]

CAR_COLOR = (0.7, 0.1, 0.1)
CAST_CHUNK = 2**20  # rays at once
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, SyntaxError)  # what Mitsuba raises


class Scene:
    """A packaged scene of Sionna's by name, or a Mitsuba XML file, at a carrier, with room for some cars.

    ``rt_scene`` is Sionna's scene, for the path solver and the camera.
    """

    def __init__(self, name: str, carrier_frequency_hz: float, num_cars: int = 0) -> None:
        """SpecError for an unknown name, DataError for a file that is no scene."""
        self.rt_scene = _load(name)
        self.carrier_frequency_hz = carrier_frequency_hz
        self._cars = _cars(num_cars)
        if self._cars:
            self.rt_scene.edit(add=self._cars)
        self._set_frequency(name, carrier_frequency_hz)

    @property
    def bounds_m(self) -> tuple[Array, Array]:
        """The lowest and highest corner of all there is; zeros in an empty scene."""
        box = self.rt_scene.mi_scene.bbox()
        if not box.valid():
            return np.zeros(3), np.zeros(3)
        return np.array(box.min, dtype=np.float64), np.array(box.max, dtype=np.float64)

    def surfaces(self) -> list[Any]:
        """Mitsuba's shapes, without the cars."""
        cars = {car.mi_mesh.id() for car in self._cars}
        return [shape for shape in self.rt_scene.mi_scene.shapes() if shape.id() not in cars]

    def cast(self, origin_m: Array, direction: Array) -> Array:
        """Distance along each ray to the first surface: float64 [n], inf where there is none.

        origin_m: float64 [n, 3]. direction: float64 [n, 3], unit vectors.
        """
        starts = range(0, len(origin_m), CAST_CHUNK)
        found = [self._cast(origin_m[i : i + CAST_CHUNK], direction[i : i + CAST_CHUNK]) for i in starts]
        return np.concatenate([np.zeros(0), *found])

    def _cast(self, origin_m: Array, direction: Array) -> Array:
        mi = mitsuba()
        ray = mi.Ray3f(_points(mi.Point3f, origin_m), _points(mi.Vector3f, direction))
        hit = self.rt_scene.mi_scene.ray_intersect_preliminary(ray)
        distance = np.asarray(hit.t.numpy(), dtype=np.float64)
        return np.where(np.asarray(hit.is_valid().numpy()), distance, np.inf)

    def place_cars(self, cars: "Cars", velocity_m_per_s: Array) -> None:
        """Moves the cars. velocity_m_per_s: float64 [cars, 3], for their part in Doppler shifts."""
        mi, parameters = mitsuba(), self.rt_scene.mi_scene_params
        for car, vertices, velocity in zip(self._cars, cars.vertices_m(), velocity_m_per_s, strict=True):
            parameters[f"{car.mi_mesh.id()}.vertex_positions"] = mi.Float(vertices.ravel())
            car.velocity = mi.Vector3f(*map(float, velocity))
        if self._cars:
            parameters.update()

    def _set_frequency(self, name: str, carrier_frequency_hz: float) -> None:
        """SpecError where a material of the scene is not defined at the carrier."""
        try:
            self.rt_scene.frequency = carrier_frequency_hz
        except ValueError as error:
            raise SpecError(
                f"carrier_frequency_hz is {carrier_frequency_hz:g}: {_first_line(error)}, in {name}; "
                "ITU-R P.2040 defines most materials from 1e9 to 40e9"
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cars:
    """Where some cars stand. One that is not ``there`` is shrunk to a point, which no ray meets.

    position_m: float64 [cars, 3], of the wheels' middle. heading_rad: float64 [cars]. there: bool [cars].
    """

    position_m: Array
    heading_rad: Array
    there: NDArray[np.bool_]

    def vertices_m(self) -> Array:
        """The cars' meshes in their places: float64 [cars, vertices, 3]."""
        cos, sin = np.cos(self.heading_rad), np.sin(self.heading_rad)
        x, y, z = car_vertices_m().T  # [vertices]
        turned = np.stack(
            [np.outer(cos, x) - np.outer(sin, y), np.outer(sin, x) + np.outer(cos, y), np.outer(cos**0, z)],
            -1,
        )  # [cars, vertices, 3]
        placed = turned + self.position_m[:, None]
        return np.where(self.there[:, None, None], placed, 0.0)


@functools.cache
def car_vertices_m() -> Array:
    """Sionna's car about the origin, wheels at z = 0, facing x: float64 [vertices, 3]."""
    rt, mi = ray_tracer(), mitsuba()
    flat = np.asarray(mi.traverse(rt.load_mesh(rt.scene.low_poly_car))["vertex_positions"].numpy())
    vertices = rearrange(flat.astype(np.float64), "(vertex xyz) -> vertex xyz", xyz=3)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    middle = (low + high) / 2
    centred: Array = vertices - np.array([middle[0], middle[1], low[2]])
    return centred


def _cars(num_cars: int) -> list[Any]:
    """Scene objects of metal."""
    if not num_cars:
        return []
    rt = ray_tracer()
    metal = rt.ITURadioMaterial("airlam-car", "metal", thickness=0.01, color=CAR_COLOR)
    return [
        rt.SceneObject(fname=rt.scene.low_poly_car, name=f"airlam-car-{n}", radio_material=metal)
        for n in range(num_cars)
    ]


def packaged_scenes() -> dict[str, str]:
    """Name and file of each scene that comes with Sionna."""
    scenes = ray_tracer().scene
    found = {name: getattr(scenes, name) for name in dir(scenes) if not name.startswith("_")}
    return {name: path for name, path in found.items() if isinstance(path, str) and path.endswith(".xml")}


def _load(name: str) -> Any:
    """Sionna's scene of a name or file."""
    packaged, own = packaged_scenes(), own_scene(name)
    path = own or Path(packaged.get(name, name))
    if name not in packaged and (own is None or (own.suffix.lower() != ".xml" and not own.is_file())):
        near = difflib.get_close_matches(name, packaged, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"known: {', '.join(packaged)}, or a Mitsuba XML file"
        )
        raise SpecError(f"scene {name!r} is none of Sionna's; {hint}")
    if not path.is_file():
        raise SpecError(f"scene {name!r} is no file, seen from {os.getcwd()}; give its path from there")
    try:
        return ray_tracer().load_scene(str(path.resolve()), merge_shapes=True)
    except UNREADABLE as error:
        raise DataError(
            f"scene {name!r} is no Mitsuba scene that Sionna can read: {_first_line(error)}"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _points(kind: Any, values: Array) -> Any:
    """[n, 3] as Mitsuba's points or vectors."""
    return kind(np.ascontiguousarray(values.T, dtype=np.float32))
