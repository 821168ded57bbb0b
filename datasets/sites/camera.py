"""What a camera sees of a scene: a path-traced image in daylight."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.sites.scene import CAR_COLOR, Array, Cars, Scene
from airlam.datasets.sites.tracer import CPU_VARIANT, mitsuba, ray_tracer
from airlam.specs import CameraSpec

SKY = (0.55, 0.75, 1.0)  # linear RGB, where no surface is seen
CAR_NAME = "airlam-car-{}"
MAX_BOUNCES = 3
LIGHTS: dict[str, Any] = {
    "integrator": {"type": "path", "hide_emitters": True, "max_depth": MAX_BOUNCES},
    "sky": {"type": "constant", "radiance": {"type": "rgb", "value": [0.45, 0.5, 0.6]}},
    "sun": {
        "type": "directional",
        "direction": [-0.5, 0.4, -0.8],
        "irradiance": {"type": "rgb", "value": [1.6, 1.5, 1.3]},
    },
}


class Camera:
    """A camera that stays where it is and renders the scene, cars moving in it.

    The scene's surfaces are copied once into a scene for visible light; later only cars move in it.
    """

    def __init__(
        self, scene: Scene, camera: CameraSpec, *, position_m: Array, yaw_rad: float, num_cars: int
    ) -> None:
        """``yaw_rad`` is the direction in which it looks, from x towards y; its tilt is the spec's."""
        self._camera, self._position_m, self._yaw_rad = camera, position_m, yaw_rad
        mi = mitsuba()
        with mi.util.scoped_set_variant("llvm_ad_rgb" if mi.variant() == CPU_VARIANT else "cuda_ad_rgb"):
            parts = LIGHTS | _surfaces(scene) | _car_shapes(num_cars)
            # unoptimised, so that cars are not merged into one shape
            self._visible = mi.load_dict({"type": "scene", "sensor": self._sensor(), **parts}, optimize=False)
            self._parameters = mi.traverse(self._visible)
        ends = [f"{CAR_NAME.format(n)}.vertex_positions" for n in range(num_cars)]
        self._keys = [next(key for key in self._parameters.keys() if key.endswith(end)) for end in ends]

    def image(self, cars: Cars, seed: int) -> NDArray[np.uint8]:
        """The view with cars in their places: uint8 [height_px, width_px, 3], sRGB. seed: of the rays."""
        mi = mitsuba()
        for key, vertices in zip(self._keys, cars.vertices_m(), strict=True):
            self._parameters[key] = mi.Float(vertices.ravel())
        self._parameters.update()
        # the integrator's own method: mi.render would want the variant switched, which takes longer than this
        rendered = self._visible.integrator().render(
            self._visible, sensor=0, seed=seed, spp=self._camera.samples_per_pixel
        )
        rgba = np.asarray(rendered.numpy(), dtype=np.float64)  # [rows, columns, 4]
        linear = rgba[..., :3] + (1 - rgba[..., 3:]) * np.array(SKY)  # [rows, columns, 3]
        return np.rint(255 * _srgb(linear)).astype(np.uint8)

    def _sensor(self) -> dict[str, Any]:
        """A pinhole camera, upright, tilted downwards."""
        mi, camera = mitsuba(), self._camera
        tilt = np.radians(camera.tilt_deg)
        ahead = np.array(
            [np.cos(tilt) * np.cos(self._yaw_rad), np.cos(tilt) * np.sin(self._yaw_rad), -np.sin(tilt)]
        )
        view = mi.ScalarTransform4f().look_at(
            origin=self._position_m.tolist(), target=(self._position_m + ahead).tolist(), up=[0, 0, 1]
        )
        return {
            "type": "perspective",
            "fov": camera.field_of_view_deg,
            "fov_axis": "x",
            "near_clip": 0.1,
            "far_clip": 10_000.0,
            "to_world": view,
            "film": {
                "type": "hdrfilm",
                "width": camera.width_px,
                "height": camera.height_px,
                "pixel_format": "rgba",
                "rfilter": {"type": "box"},
            },
        }


def _surfaces(scene: Scene) -> dict[str, Any]:
    """Copies of the scene's surfaces in their materials' colours."""
    rt, mi = ray_tracer(), mitsuba()
    found = {}
    for number, shape in enumerate(scene.surfaces()):
        properties = mi.Properties()
        properties["bsdf"] = rt.utils.twosided_diffuse(shape.bsdf().color)
        name = f"airlam-surface-{number}"
        found[name] = rt.utils.clone_mesh(shape, name=name, props=properties)
    return found


def _car_shapes(num_cars: int) -> dict[str, Any]:
    rt = ray_tracer()
    paint = rt.utils.twosided_diffuse(CAR_COLOR)
    shape = {"type": "ply", "filename": rt.scene.low_poly_car, "face_normals": True, "paint": paint}
    return {CAR_NAME.format(number): dict(shape) for number in range(num_cars)}


def _srgb(linear: Array) -> Array:
    """Linear light in [0, 1] to sRGB (IEC 61966-2-1)."""
    clipped = np.clip(linear, 0.0, 1.0)
    encoded: Array = np.where(
        clipped <= 0.0031308, 12.92 * clipped, 1.055 * np.power(clipped, 1 / 2.4) - 0.055
    )
    return encoded
