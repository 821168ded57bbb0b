"""Measured 60 GHz beam sweeps: a user's own copy of DeepSense 6G scenarios.

A phased array at the roadside sweeps 64 beams while a vehicle with a GNSS receiver passes, again and again
(Alkhateeb et al., DeepSense 6G, IEEE Communications Magazine 61(9), 2023). This reads the arrays that were
collected by scenario for Morais et al., Position-aided beam prediction (2205.09054), ``N`` sweeps each:

    scenario<S>_unit1_pwr_60ghz_1-<N>.npy   float [N, 64]  received power of each beam, linear
    scenario<S>_unit1_loc_1-<N>.npy         float [N, 2]   the array's latitude and longitude, degrees
    scenario<S>_unit2_loc_1-<N>.npy         float [N, 2]   the vehicle's; unit2_loc_cal goes before it
    scenario<S>_seq_index_1-<N>.npy         int [N]        the vehicle's pass

The files' own licence (CC BY-NC-SA 4.0) holds for whatever is made of them.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airlam.datasets.foreign_files import READER_ERRORS
from airlam.errors import DataError
from airlam.radio.beam_selection import BeamRecording

EARTH_RADIUS_M = 6_371_000.0
POWER, ARRAY, VEHICLE, CALIBRATED, PASS = (
    "unit1_pwr_60ghz",
    "unit1_loc",
    "unit2_loc",
    "unit2_loc_cal",
    "seq_index",
)


def scenarios_in(folder: Path) -> tuple[int, ...]:
    """Numbers of the scenarios whose beam powers lie in a folder; DataError where there are none."""
    found = [re.match(rf"scenario(\d+)_{POWER}_", path.name) for path in folder.glob("*.npy")]
    numbers = sorted({int(match[1]) for match in found if match})
    if not numbers:
        raise DataError(f"{folder} holds no scenario<S>_{POWER}_*.npy; give a folder of DeepSense arrays")
    return tuple(numbers)


def load_deepsense(folder: Path, scenario: int) -> BeamRecording:
    """One scenario as ``deepsense<S>``: powers as measured, positions in metres east and north of the array.

    DataError where a file is missing, is there twice, is no whole array, or does not fit the others.
    """
    power = _read(folder, scenario, POWER)
    calibrated = bool(_paths(folder, scenario, CALIBRATED))
    vehicle = _read(folder, scenario, CALIBRATED if calibrated else VEHICLE)
    array = _read(folder, scenario, ARRAY)
    sequence = _read(folder, scenario, PASS)
    count = len(power)
    if array.shape != (count, 2) or vehicle.shape != (count, 2) or sequence.shape != (count,):
        raise DataError(
            f"{folder}: scenario {scenario} has {count} sweeps, locations {array.shape} and {vehicle.shape}, "
            f"passes {sequence.shape}; expected one row of each a sweep"
        )
    return BeamRecording(
        name=f"deepsense{scenario}",
        power=torch.from_numpy(power.astype(np.float64)),
        position_m=torch.from_numpy(metres_from(array.mean(axis=0), vehicle)),
        sequence=torch.from_numpy(sequence.astype(np.int64)),
    )


def metres_from(origin_deg: NDArray[Any], location_deg: NDArray[Any]) -> NDArray[np.float64]:
    """East, north and 0 in metres on the plane that touches a sphere at the origin.

    origin_deg: latitude and longitude; location_deg: float [n, 2]. Returns float64 [n, 3].
    """
    north, east = np.radians(location_deg - origin_deg).T * EARTH_RADIUS_M  # [n] each
    east = east * math.cos(math.radians(origin_deg[0]))
    return np.stack([east, north, np.zeros_like(east)], axis=1).astype(np.float64)  # [n, 3]


def _paths(folder: Path, scenario: int, field: str) -> list[Path]:
    return [
        path
        for path in sorted(folder.glob(f"scenario{scenario}_{field}_*.npy"))
        if re.fullmatch(rf"scenario{scenario}_{field}_\d+-\d+\.npy", path.name)
    ]


def _read(folder: Path, scenario: int, field: str) -> NDArray[Any]:
    """The one file of a field, an array of finite numbers."""
    paths = _paths(folder, scenario, field)
    if len(paths) != 1:
        raise DataError(
            f"{folder} holds {len(paths)} files scenario{scenario}_{field}_1-<N>.npy; expected one"
        )
    try:
        values: NDArray[Any] = np.load(paths[0], allow_pickle=False)
    except READER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{paths[0]} is no whole NumPy array: {reason}") from None
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise DataError(f"{paths[0]} holds {values.dtype} or values that are not finite; expected numbers")
    return values
