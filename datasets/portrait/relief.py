"""How high a ray-traced site's buildings are, from the map of heights in the dataset."""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from airlam.datasets.store import H5PY_ERRORS
from airlam.errors import DataError
from airlam.panels import Relief

MAX_CELLS = 2**20  # of a map; those that are generated have at most a quarter of it
WIDEST_BUILDING_M = 80.0


def site_relief(path: Path) -> Relief | None:
    """The site's buildings above their ground, where the file has a map; DataError where it is damaged."""
    try:
        with h5py.File(path, "r") as file:
            if "site_height_m" not in file:
                return None
            stored = file["site_height_m"]
            extent_m = np.asarray(stored.attrs["extent_m"], np.float64)
            _require_map(stored, extent_m)
            height_m = np.asarray(stored[()], np.float64)  # [rows, columns]
    except H5PY_ERRORS as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: site_height_m cannot be read ({reason}); generate it again") from None
    if not np.isfinite(height_m).all():
        raise DataError(f"{path}: site_height_m has NaN or infinity; generate it again")
    x_from, y_from, x_to, y_to = extent_m.tolist()
    cell_m = ((y_to - y_from) / height_m.shape[0], (x_to - x_from) / height_m.shape[1])
    return Relief(height_m=above_ground_m(height_m, cell_m), extent_m=(x_from, y_from, x_to, y_to))


def above_ground_m(height_m: NDArray[np.float64], cell_m: tuple[float, float]) -> NDArray[np.float64]:
    """What stands out of the ground: float64 [rows, columns], >= 0.

    The heights less their morphological opening, which follows the ground and leaves out all that is
    narrower than ``WIDEST_BUILDING_M``, along rows or columns; as laser scans of terrain are told from what
    stands on it (Zhang et al., A progressive morphological filter, 2003, with a single window).

    height_m: float64 [rows, columns], above any level. cell_m: height and width of a cell.
    """
    window = [
        min(2 * count, max(1, round(WIDEST_BUILDING_M / size_m)))
        for count, size_m in zip(height_m.shape, cell_m, strict=True)
    ]
    standing: NDArray[np.float64] = height_m - ndimage.grey_opening(height_m, size=window)
    return standing


def _require_map(stored: h5py.Dataset, extent_m: NDArray[np.float64]) -> None:
    """ValueError unless a map of that shape can be, checked before it takes any memory."""
    if stored.ndim != 2 or stored.dtype != np.float32 or not 1 <= stored.size <= MAX_CELLS:
        raise ValueError(
            f"it is {stored.dtype} {stored.shape}; expected float32 in two dimensions, at most {MAX_CELLS} "
            "cells"
        )
    if extent_m.shape != (4,) or not np.isfinite(extent_m).all() or not (extent_m[:2] < extent_m[2:]).all():
        raise ValueError(f"extent_m is {extent_m.tolist()}; expected x and y from, larger x and y to")
