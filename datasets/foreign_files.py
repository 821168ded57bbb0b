"""Arrays from NPZ and MATLAB files that others wrote.

What cannot be read is a DataError of one line; nothing is unpickled.
"""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from airlam.errors import AirlamError, DataError

Header = tuple[tuple[int, ...], np.dtype[Any]]  # shape and kind of an array that is not read yet
# what zipfile, numpy, scipy and h5py raise on files that are damaged or hold other things than arrays
READER_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    scipy.io.matlab.MatReadError,
)


def read_npz(
    path: Path, names: set[str], check: Callable[[Path, dict[str, Header]], None]
) -> dict[str, NDArray[Any]]:
    """The named arrays of an NPZ, once ``check`` has seen their headers and before memory is taken."""
    try:
        with zipfile.ZipFile(path) as archive:
            missing = sorted(names - {member.removesuffix(".npy") for member in archive.namelist()})
            if missing:
                raise DataError(f"{path} holds no {missing[0]}; expected {', '.join(sorted(names))}")
            check(path, {name: _npy_header(archive, name) for name in names})
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except AirlamError:
        raise
    except READER_ERRORS as error:
        raise DataError(f"{path} is no whole NPZ file: {_line(error)}") from None


def _npy_header(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(f"{name}.npy") as member:
        return _read_header(member)


def _read_header(member: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype


def read_matlab(path: Path, name: str) -> NDArray[np.complex64]:
    """A finite numeric variable of a .mat file, v7.3 (HDF5) or older, its axes in MATLAB's order."""
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                values = _read_matlab73(file, path, name)
        else:
            values = scipy.io.loadmat(path, variable_names=[name]).get(name)
        if values is None:
            raise DataError(f"{path} holds no {name}; is it the right file?")
        kind = getattr(values, "dtype", np.dtype(object)).kind
        if kind not in "fciu" or not isinstance(values, np.ndarray):  # cells, structs, text, sparse
            raise DataError(f"{path}: {name} is no array of numbers; expected a full real or complex one")
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            channels = np.ascontiguousarray(values, np.complex64)
        require_finite(channels, path, name)
        return channels
    except AirlamError:
        raise
    except READER_ERRORS as error:
        raise DataError(f"cannot read {path} as MATLAB: {_line(error)}") from None


def _read_matlab73(file: h5py.File, path: Path, name: str) -> NDArray[Any]:
    """A variable of a v7.3 file: HDF5 lists the axes in reverse, complex values are pairs real, imag."""
    variable = file.get(name)
    if not isinstance(variable, h5py.Dataset):
        raise DataError(f"{path} holds no {name}; it has {', '.join(file)}")
    if variable.dtype.names != ("real", "imag"):
        values: NDArray[Any] = variable[()]
        return values.T
    pair = np.dtype([("real", "<f4"), ("imag", "<f4")])
    pairs: NDArray[np.complex64] = variable.astype(pair)[()].view(np.complex64)
    return pairs.T


def require_finite(values: NDArray[Any], path: Path, name: str) -> None:
    """DataError where any value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise DataError(f"{path}: {name} holds NaN or infinity; mend or leave out those channels")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
