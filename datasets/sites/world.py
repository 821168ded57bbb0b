"""What there is along one trajectory: the channel, and what sensors see and hear."""

import math

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from airlam.datasets.motion import Motion
from airlam.datasets.sites.driving import CAR_SPEEDS_M_PER_S
from airlam.datasets.sites.paths import PathSet, joined
from airlam.datasets.sites.response import frequency_response
from airlam.datasets.sites.scene import Array, Cars
from airlam.datasets.sites.site import Site
from airlam.datasets.sites.trajectory import Track
from airlam.specs import CameraSpec, DatasetSpec

CAR_ROOM_M = 4.0  # a car nearer to a user's antenna than this is left out: it would drive through the user


class Drive:
    """A site along one trajectory: users and cars on their tracks. Sensors see it as their ``World``.

    Cars stand where they are at the time of each trace; until the next one paths keep their Doppler shifts
    and their directions.
    """

    def __init__(self, spec: DatasetSpec, site: Site, users: Track, cars: Track | None) -> None:
        self._spec, self._site, self._users, self._cars = spec, site, users, cars

    def motion(self, time_s: Array) -> Motion:
        """How the users move at times [n]."""
        return self._users.sample(time_s)

    def window(self, time_s: Array) -> tuple[torch.Tensor, Array, NDArray[np.bool_]]:
        """The spec's slots from each time on, with path gain and line of sight at its start.

        Paths are traced anew every so many slots that no user and no car has moved further than the site's
        ``retrace_distance_m``. time_s: float64 [n]. Returns the channel at full path loss, complex64
        [n, users, user_ant, bs_ant, slots, subcarriers], then float64 [n, users] and bool [n, users].
        """
        num_slots, slot_s = self._spec.grid.num_slots, self._spec.grid.slot_duration_s
        together = slots_a_trace(self._spec)
        starts_s = slot_s * np.arange(0, num_slots, together)  # [traces]
        paths = self._trace((time_s[:, None] + starts_s).ravel())
        offsets_s = np.asarray(slot_s * np.arange(together), dtype=np.float64)
        h = self._responses(paths, (time_s[:, None] + starts_s).ravel(), offsets_s)
        h = rearrange(h, "(n s u) i j t f -> n u i j (s t) f", s=len(starts_s), u=self._users.num_users)
        first = rearrange(np.arange(len(paths.los)), "(n s u) -> n s u", s=len(starts_s), n=len(time_s))[:, 0]
        return h[..., :num_slots, :], paths.power[first], paths.los[first]

    def links(self, time_s: Array) -> torch.Tensor:
        """The channel's first slot at each time: complex64 [n, users, user_ant, bs_ant, subcarriers].

        Scaled as the drops' h_freq.
        """
        paths = self._trace(time_s)
        h = self._responses(paths, time_s, np.zeros(1)).squeeze(-2)  # [links, user_ant, bs_ant, subcarriers]
        if not self._spec.channel.path_loss:
            h = h * unit_gain(paths.power)[:, None, None, None]
        return rearrange(h, "(n u) i j f -> n u i j f", n=len(time_s))

    def image(self, time_s: float, camera: CameraSpec) -> NDArray[np.uint8]:
        """The base station's view: uint8 [height_px, width_px, 3]; each user is seen as a car, too."""
        users, others = self._users.sample(np.array([time_s])), self._other_cars(time_s)[0]
        wheels_m = users.position_m[0] - np.array([0.0, 0.0, self._site.spec.user_height_m])
        all_cars = Cars(
            position_m=np.concatenate([others.position_m, wheels_m]),
            heading_rad=np.concatenate([others.heading_rad, users.heading_rad[0]]),
            there=np.append(others.there, np.ones(self._users.num_users, dtype=bool)),
        )
        seed = round(time_s * 1e6) % 2**31
        return self._site.camera(camera, len(all_cars.there)).image(all_cars, seed)

    def ranges_m(self, time_s: float, azimuth_rad: Array, height_m: float, max_range_m: float) -> Array:
        """Distances from the users' places, horizontally at a height: float64 [users, directions]."""
        self._place_cars(time_s)
        above_antennas_m = np.array([0.0, 0.0, height_m - self._site.spec.user_height_m])
        position_m = self._users.sample(np.array([time_s])).position_m[0] + above_antennas_m  # [users, 3]
        origins = np.broadcast_to(position_m[:, None], (*azimuth_rad.shape, 3)).reshape(-1, 3)
        flat = azimuth_rad.ravel()
        directions = np.stack([np.cos(flat), np.sin(flat), np.zeros_like(flat)], axis=-1)
        return np.minimum(self._site.scene.cast(origins, directions), max_range_m).reshape(azimuth_rad.shape)

    def _trace(self, time_s: Array) -> PathSet:
        """Paths at all times, users within times: [n * users]."""
        motion, yaw_rad = self.motion(time_s), self._yaw_rad(time_s)
        if self._cars is None:
            self._site.hide_cars()
            return self._site.finder.find(
                motion.position_m.reshape(-1, 3), yaw_rad.ravel(), motion.velocity_m_per_s.reshape(-1, 3)
            )
        found = []
        for index, time in enumerate(time_s):
            self._place_cars(float(time))
            place = (motion.position_m[index], yaw_rad[index], motion.velocity_m_per_s[index])
            found.append(self._site.finder.find(*place))
        return joined(found)

    def _yaw_rad(self, time_s: Array) -> Array:
        """Where the users' antennas face: float64 [n, users]."""
        heading_rad = self.motion(time_s).heading_rad
        return heading_rad if self._site.spec.user_orientation == "heading" else np.zeros_like(heading_rad)

    def _responses(self, paths: PathSet, time_s: Array, offsets_s: Array) -> torch.Tensor:
        spec, site = self._spec, self._site.spec
        return frequency_response(
            paths,
            base_station=spec.base_station,
            base_station_angles_rad=(
                math.radians(site.base_station_yaw_deg),
                math.radians(site.base_station_downtilt_deg),
            ),
            user=spec.user,
            user_yaw_rad=self._yaw_rad(time_s).ravel(),
            carrier_frequency_hz=spec.channel.carrier_frequency_hz,
            frequencies_hz=np.array(spec.grid.frequencies_hz),
            offsets_s=offsets_s,
        )

    def _place_cars(self, time_s: float) -> None:
        cars, velocity_m_per_s = self._other_cars(time_s)
        self._site.scene.place_cars(cars, velocity_m_per_s)

    def _other_cars(self, time_s: float) -> tuple[Cars, Array]:
        """The cars at a time and their velocities, those aside that would drive through a user."""
        if self._cars is None:
            nobody = np.zeros((0, 3))
            return Cars(position_m=nobody, heading_rad=np.zeros(0), there=np.zeros(0, dtype=bool)), nobody
        motion = self._cars.sample(np.array([time_s]))
        users_m = self._users.sample(np.array([time_s])).position_m[0]
        apart_m = np.linalg.norm(motion.position_m[0, :, None, :2] - users_m[None, :, :2], axis=-1)
        cars = Cars(
            position_m=motion.position_m[0],
            heading_rad=motion.heading_rad[0],
            there=(apart_m >= CAR_ROOM_M).all(axis=1),
        )
        return cars, motion.velocity_m_per_s[0]


def slots_a_trace(spec: DatasetSpec) -> int:
    """Slots that the fastest user or car needs for the site's ``retrace_distance_m``, at least one."""
    assert spec.site is not None  # a ray-traced spec has one
    of_cars = CAR_SPEEDS_M_PER_S[1] if spec.site.num_cars else 0.0
    a_slot_m = max(spec.mobility.max_speed_m_per_s, of_cars) * spec.grid.slot_duration_s
    if a_slot_m * spec.grid.num_slots <= spec.site.retrace_distance_m:
        return spec.grid.num_slots
    return max(1, int(spec.site.retrace_distance_m / a_slot_m))


def unit_gain(power: Array) -> torch.Tensor:
    """1 / sqrt(power), which brings a link to unit path gain; 0 where there is no path: float32."""
    return torch.from_numpy(np.where(power > 0, 1 / np.sqrt(np.where(power > 0, power, 1.0)), 0.0)).float()
