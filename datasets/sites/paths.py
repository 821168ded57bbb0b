"""Propagation paths between the base station and points of a scene, found by Sionna's path solver.

Delays come in single precision, 1 part in 10^7: at 300 m and 3.5 GHz the carrier phase of a path is good to
about 1e-3 rad, which sets the floor of what neighbouring places can tell of each other.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.shards import CANDIDATES_AT_ONCE
from airlam.datasets.sites.scene import Array, Scene
from airlam.datasets.sites.tracer import mitsuba, ray_tracer
from airlam.errors import SpecError
from airlam.specs import ArraySpec, SiteSpec

PATTERNS = {"omni": "iso", "38.901": "tr38901"}
MAX_PATHS = 1_000_000  # candidates of a solve, all points together; the solver leaves out what is beyond
MAX_POINTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSet:
    """Paths between the base station and some points, padded with paths of zero gain.

    Sorted by delay and then by directions, whatever order the solver finds them in.

    gain: complex128 [points, user_pols, bs_pols, paths], element patterns and carrier phase included, without
    the arrays' phases. delay_s: float64 [points, paths]. bs_direction, user_direction: float64
    [points, paths, 3], unit vectors from the antennas outwards. doppler_hz: float64 [points, paths], of the
    points' and the cars' motion. los: bool [points].
    """

    gain: NDArray[np.complex128]
    delay_s: Array
    bs_direction: Array
    user_direction: Array
    doppler_hz: Array
    los: NDArray[np.bool_]

    @property
    def power(self) -> Array:
        """sum_p |gain_p|^2, the mean over pairs of polarisations: float64 [points]."""
        power: Array = np.square(np.abs(self.gain)).mean(axis=(1, 2)).sum(axis=-1)
        return power

    def first(self, count: int) -> "PathSet":
        """The first points only."""
        return PathSet(**{each.name: getattr(self, each.name)[:count] for each in fields(self)})


class PathFinder:
    """Sionna's path solver between a base station and points, in batches of bounded memory.

    A point's paths do not depend on the batch that it is in.
    """

    def __init__(self, scene: Scene, site: SiteSpec, base_station: ArraySpec, user: ArraySpec) -> None:
        rt, mi = ray_tracer(), mitsuba()
        self._scene, self._site = scene.rt_scene, site
        self._carrier_frequency_hz = scene.carrier_frequency_hz
        self._solver = rt.PathSolver(deterministic=True)
        self._candidates = _Counted(self._solver._candidate_generator)
        self._solver._candidate_generator = self._candidates
        self._scene.tx_array, self._scene.rx_array = _element(base_station), _element(user)
        yaw, tilt = math.radians(site.base_station_yaw_deg), math.radians(site.base_station_downtilt_deg)
        position, orientation = mi.Point3f(site.base_station_position_m), mi.Point3f(yaw, tilt, 0.0)
        self._scene.add(rt.Transmitter("airlam-mast", position=position, orientation=orientation))
        self._receivers: list[Any] = []
        each = site.num_rays * max(1, site.max_depth)
        self._most = 2 ** int(math.log2(max(1, min(MAX_POINTS, CANDIDATES_AT_ONCE // each))))

    def find(self, position_m: Array, yaw_rad: Array, velocity_m_per_s: Array) -> PathSet:
        """The paths to every point, cars being where they are.

        position_m, velocity_m_per_s: float64 [points, 3]. yaw_rad: float64 [points], of the antennas.
        SpecError where one point has more candidates than the solver keeps.
        """
        count, row = len(position_m), 0
        parts = []
        while row < count:
            size = min(self._most, 2 ** math.ceil(math.log2(count)))
            rows = np.minimum(np.arange(row, row + size), count - 1)  # the last point fills up the last batch
            found = self._find(position_m[rows], yaw_rad[rows], velocity_m_per_s[rows])
            if found is None:
                self._most = self._smaller(size)
                continue
            parts.append(found)
            row += size
        return joined(parts).first(count)

    def _smaller(self, size: int) -> int:
        """Half a batch; SpecError where it is one point."""
        if size > 1:
            return size // 2
        raise SpecError(
            f"num_rays is {self._site.num_rays}, and one user has {MAX_PATHS} paths or more, which the ray "
            "tracer would cut; take fewer num_rays or a smaller max_depth, or leave diffuse_reflection out"
        )

    def _find(self, position_m: Array, yaw_rad: Array, velocity_m_per_s: Array) -> PathSet | None:
        """The paths to a batch; None where candidates were left out."""
        mi, site = mitsuba(), self._site
        self._keep_receivers(len(position_m))
        for receiver, point, yaw, velocity in zip(
            self._receivers, position_m, yaw_rad, velocity_m_per_s, strict=True
        ):
            receiver.position = mi.Point3f(*map(float, point))
            receiver.orientation = mi.Point3f(float(yaw), 0.0, 0.0)
            receiver.velocity = mi.Vector3f(*map(float, velocity))
        found = self._solver(
            self._scene,
            max_depth=site.max_depth,
            max_num_paths_per_src=MAX_PATHS,
            samples_per_src=site.num_rays,
            synthetic_array=True,
            los=True,
            specular_reflection=True,
            diffuse_reflection=site.diffuse_reflection,
            refraction=site.refraction,
            diffraction=site.diffraction,
        )
        if self._candidates.count >= MAX_PATHS:
            return None
        return _sorted_paths(found, self._carrier_frequency_hz)

    def _keep_receivers(self, count: int) -> None:
        """As many receivers as points: powers of two, since each number has kernels of its own to compile."""
        if len(self._receivers) != count:
            for receiver in self._receivers:
                self._scene.remove(receiver.name)
            rt, mi = ray_tracer(), mitsuba()
            self._receivers = [
                rt.Receiver(f"airlam-user-{n}", position=mi.Point3f(0, 0, 0)) for n in range(count)
            ]
            for receiver in self._receivers:
                self._scene.add(receiver)


class _Counted:
    """Sionna's generator of candidate paths, and how many it kept the last time."""

    def __init__(self, generator: Any) -> None:
        self._generator, self.count = generator, 0

    def __call__(self, **arguments: Any) -> Any:
        candidates = self._generator(**arguments)
        self.count = int(candidates.paths_counter[0])
        return candidates


def _element(array: ArraySpec) -> Any:
    """One element of an array, both its polarisations."""
    return ray_tracer().PlanarArray(
        num_rows=1, num_cols=1, pattern=PATTERNS[array.antenna_pattern], polarization=array.polarization_type
    )


def _sorted_paths(found: Any, carrier_frequency_hz: float) -> PathSet:
    """Sionna's paths of one transmitter as numbers of ours."""
    valid = np.asarray(found.valid.numpy())[:, 0]  # [points, paths]
    delay_s, theta_t, phi_t, theta_r, phi_r, doppler_hz = (
        np.asarray(values.numpy(), dtype=np.float64)[:, 0]  # [points, paths]
        for values in (found.tau, found.theta_t, found.phi_t, found.theta_r, found.phi_r, found.doppler)
    )
    real, imaginary = (np.asarray(part.numpy(), dtype=np.float64)[:, :, 0] for part in found.a)
    gain = np.where(valid[:, None, None], real + 1j * imaginary, 0)  # [points, user_pols, bs_pols, paths]
    gain = gain * np.exp(-2j * np.pi * carrier_frequency_hz * delay_s)[:, None, None]
    straight = (np.asarray(found.interactions.numpy())[:, :, 0] == 0).all(axis=0)  # [points, paths]
    order = np.lexsort((phi_r, theta_r, phi_t, theta_t, np.where(valid, delay_s, np.inf)))  # [points, paths]
    order = order[:, : max(1, valid.sum(axis=1).max(initial=0))]

    def pick(values: Array) -> Array:
        picked: Array = np.take_along_axis(np.where(valid, values, 0.0), order, axis=1)
        return picked

    return PathSet(
        gain=np.take_along_axis(gain, order[:, None, None], axis=3),
        delay_s=pick(delay_s),
        bs_direction=_unit_vectors(pick(theta_t), pick(phi_t)),
        user_direction=_unit_vectors(pick(theta_r), pick(phi_r)),
        doppler_hz=pick(doppler_hz),
        los=(valid & straight).any(axis=1),
    )


def _unit_vectors(zenith_rad: Array, azimuth_rad: Array) -> Array:
    """[..., 3] of directions."""
    flat = np.sin(zenith_rad)
    return np.stack([flat * np.cos(azimuth_rad), flat * np.sin(azimuth_rad), np.cos(zenith_rad)], axis=-1)


def joined(parts: list[PathSet]) -> PathSet:
    """Batches one after the other, padded to as many paths as the richest has."""
    most = max(part.delay_s.shape[1] for part in parts)

    def join(name: str, axis: int) -> NDArray[Any]:
        padded = []
        for part in parts:
            values = getattr(part, name)
            room = [(0, 0)] * values.ndim
            room[axis] = (0, most - values.shape[axis])
            padded.append(np.pad(values, room))
        return np.concatenate(padded)

    return PathSet(
        gain=join("gain", 3),
        delay_s=join("delay_s", 1),
        bs_direction=join("bs_direction", 1),
        user_direction=join("user_direction", 1),
        doppler_hz=join("doppler_hz", 1),
        los=np.concatenate([part.los for part in parts]),
    )
