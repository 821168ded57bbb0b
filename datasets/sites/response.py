"""Frequency responses of ray-traced paths: one matrix product a link."""

import math

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from airlam.datasets.sites.paths import PathSet
from airlam.datasets.sites.scene import Array
from airlam.specs import ArraySpec
from airlam.units import SPEED_OF_LIGHT_M_PER_S

CHUNK_BYTES = 64 * 2**20  # of the larger factor of a product


def frequency_response(
    paths: PathSet,
    *,
    base_station: ArraySpec,
    base_station_angles_rad: tuple[float, float],
    user: ArraySpec,
    user_yaw_rad: Array,
    carrier_frequency_hz: float,
    frequencies_hz: Array,
    offsets_s: Array,
) -> torch.Tensor:
    r"""The channel of each point over a window of time and on some subcarriers.

    H[u, b, t, f] = sum_p g_p[pol_u, pol_b] exp(j 2 pi (r_u . k_u,p + r_b . k_b,p) / lambda)
    exp(j 2 pi nu_p t) exp(-j 2 pi f tau_p): planar waves over the arrays, elements at r, each path with its
    own Doppler shift nu; what Sionna RT calls synthetic arrays.

    base_station_angles_rad: yaw and downtilt. user_yaw_rad: float64 [points]. frequencies_hz: float64
    [subcarriers], relative to the carrier. offsets_s: float64 [slots], after the paths' time.
    Returns complex64 [points, user_ant, bs_ant, slots, subcarriers], antennas in the order of ``ArraySpec``.
    """
    wavelength_m = SPEED_OF_LIGHT_M_PER_S / carrier_frequency_hz
    users = np.stack([rotation(float(yaw), 0.0) for yaw in user_yaw_rad])  # [points, 3, 3]
    at_user = _array_phases(user, users, paths.user_direction, wavelength_m)  # [points, elements, paths]
    at_mast = _array_phases(
        base_station, rotation(*base_station_angles_rad)[None], paths.bs_direction, wavelength_m
    )
    time = np.exp(2j * math.pi * offsets_s[:, None] * paths.doppler_hz[:, None])  # [points, slots, paths]
    rows = user.num_ports * base_station.num_ports * len(offsets_s)
    points, most = paths.delay_s.shape
    path_step = max(1, min(most, CHUNK_BYTES // (8 * rows)))
    step = max(1, CHUNK_BYTES // (8 * rows * path_step))
    found = torch.zeros(points, rows, len(frequencies_hz), dtype=torch.complex64)
    for point in range(0, points, step):
        for path in range(0, most, path_step):
            here = (slice(point, point + step), ..., slice(path, path + path_step))
            left = _port_gains(paths.gain[here], at_user[here], at_mast[here], time[here])
            phase = -2 * math.pi * paths.delay_s[here][..., None] * frequencies_hz
            steering = torch.from_numpy(np.exp(1j * phase).astype(np.complex64))  # [step, paths, subcarriers]
            found[here[0]] += left @ steering
    return rearrange(
        found,
        "n (user_ant bs_ant t) f -> n user_ant bs_ant t f",
        user_ant=user.num_ports,
        bs_ant=base_station.num_ports,
    )


def _port_gains(
    gain: NDArray[np.complex128],
    at_user: NDArray[np.complex128],
    at_mast: NDArray[np.complex128],
    time: NDArray[np.complex128],
) -> torch.Tensor:
    """Each path's coefficient between all ports at all times: complex64 [n, user_ant * bs_ant * t, paths]."""
    users = rearrange(gain, "n u b p -> n u 1 b 1 p") * at_user[:, None, :, None, None]
    ports = users * at_mast[:, None, None, None]  # [n, user_pols, user_elements, bs_pols, bs_elements, paths]
    flat = rearrange(ports, "n u v b c p -> n (u v b c) 1 p").astype(np.complex64)
    over_time = flat * time[:, None].astype(np.complex64)  # [n, ports, t, paths]
    return torch.from_numpy(rearrange(over_time, "n ports t p -> n (ports t) p"))


def rotation(yaw_rad: float, downtilt_rad: float) -> Array:
    """Turns an array that faces x by a downtilt about y, then by a yaw about z: float64 [3, 3]."""
    cos_yaw, sin_yaw = math.cos(yaw_rad), math.sin(yaw_rad)
    cos_tilt, sin_tilt = math.cos(downtilt_rad), math.sin(downtilt_rad)
    yaw = np.array([[cos_yaw, -sin_yaw, 0.0], [sin_yaw, cos_yaw, 0.0], [0.0, 0.0, 1.0]])
    tilt = np.array([[cos_tilt, 0.0, sin_tilt], [0.0, 1.0, 0.0], [-sin_tilt, 0.0, cos_tilt]])
    turned: Array = yaw @ tilt
    return turned


def element_positions(array: ArraySpec) -> Array:
    """Elements of a panel in the y-z plane by (column, row), rows from the top: float64 [elements, 3].

    In wavelengths, about the middle; the same order and places as Sionna PHY's panels.
    """
    columns = (np.arange(array.num_cols) - (array.num_cols - 1) / 2) * array.spacing_wavelengths
    rows = ((array.num_rows - 1) / 2 - np.arange(array.num_rows)) * array.spacing_wavelengths
    y, z = np.meshgrid(columns, rows, indexing="ij")  # [columns, rows]
    return np.stack([np.zeros(y.size), y.ravel(), z.ravel()], axis=-1)


def _array_phases(
    array: ArraySpec, turned: Array, direction: Array, wavelength_m: float
) -> NDArray[np.complex128]:
    """exp(j 2 pi r . k / lambda): complex128 [points, elements, paths]."""
    positions_m = element_positions(array) * wavelength_m  # [elements, 3]
    places_m = np.einsum("nij,ej->nei", turned, positions_m)  # [points or 1, elements, 3]
    projected_m = np.einsum(
        "nei,npi->nep", np.broadcast_to(places_m, (len(direction), *places_m.shape[1:])), direction
    )
    phases: NDArray[np.complex128] = np.exp(2j * math.pi * projected_m / wavelength_m)
    return phases
