"""Datasets in other people's formats: NPZ, MATLAB v7.3, TFRecord; written whole, block by block."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from airlam.datasets.fields import dataset_fields, drop_bytes
from airlam.datasets.layout import (
    SPLITS,
    batch_arrays,
    file_bytes,
    new_hdf5,
    refuse_existing,
    total_drops,
)
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.files import whole_file
from airlam.specs import spec_to_toml

BLOCK_BYTES = 64 * 2**20
MATLAB_USERBLOCK_BYTES = 512
MATLAB_LIBVER = ("earliest", "v108")  # what the HDF5 in MATLAB releases still in use can open
MATLAB_CLASSES = {
    "complex64": "single",
    "float32": "single",
    "float64": "double",
    "int32": "int32",
    "uint8": "uint8",
    "bool": "logical",
}
MATLAB_COMPLEX = np.dtype([("real", "<f4"), ("imag", "<f4")])


def export(path: Path, target: Path, *, overwrite: bool = False) -> None:
    """Exports to .npz, .mat or .tfrecord, as the target's suffix says; DataError for other suffixes."""
    writers: dict[str, Callable[[ChannelDataset, Path], None]] = {
        ".npz": write_npz,
        ".mat": write_matlab,
        ".tfrecord": write_tfrecord,
    }
    if target.suffix not in writers:
        raise DataError(f"{target} ends in {target.suffix!r}; choose one of {', '.join(writers)}")
    refuse_existing(target, overwrite)
    with ChannelDataset.open(path) as dataset, whole_file(target) as temporary:
        writers[target.suffix](dataset, temporary)


def write_npz(dataset: ChannelDataset, target: Path) -> None:
    """Arrays ``<split>_<field>``, with ``<split>_<field>_axes`` naming their axes, and ``spec`` as TOML."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        _add_array(archive, "spec", np.array(spec_to_toml(dataset.spec)))
        for split in _filled_splits(dataset):
            for name, field in dataset_fields(dataset.spec).items():
                shape = (dataset.num_drops(split), *field.shape)
                _add_array(archive, f"{split}_{name}_axes", np.array(field.axes))
                with _member(archive, f"{split}_{name}", np.dtype(field.dtype), shape) as member:
                    for arrays in _blocks(dataset, split):
                        member.write(arrays[name].tobytes())


def write_matlab(dataset: ChannelDataset, target: Path) -> None:
    """Variables as in ``write_npz``, for MATLAB 7.3 and h5py.

    MATLAB counts axes from the other end: there a channel is (num_subcarriers, ..., num_rx, drop), as its
    ``_axes`` variable says.
    """
    size = file_bytes(dataset.spec, total_drops(dataset.spec))
    with new_hdf5(target, size, userblock_size=MATLAB_USERBLOCK_BYTES, libver=MATLAB_LIBVER) as file:
        _add_matlab_text(file, "spec", spec_to_toml(dataset.spec))
        for split in _filled_splits(dataset):
            for name, field in dataset_fields(dataset.spec).items():
                _add_matlab_text(file, f"{split}_{name}_axes", ",".join(reversed(field.axes)))
                _add_matlab_array(file, dataset, split, name)
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created by airlam, HDF5 schema 1.00 .".ljust(116)
    with target.open("r+b") as raw:
        raw.write(header + bytes(8) + b"\x00\x02IM")  # no subsystem, version 2.0, little-endian


def write_tfrecord(dataset: ChannelDataset, target: Path) -> None:
    """One Example a drop: each field's raw little-endian bytes and ``<field>_shape``, and ``split``."""
    try:
        import tensorflow as tf
    except ImportError:
        raise DataError("TFRecord needs TensorFlow; pip install 'airlam[litert]'") from None

    try:
        with tf.io.TFRecordWriter(str(target)) as writer:
            for split in _filled_splits(dataset):
                for arrays in _blocks(dataset, split):
                    for row in range(len(arrays["h_freq"])):
                        writer.write(_example(tf, split, {k: v[row] for k, v in arrays.items()}))
    except tf.errors.OpError as error:
        raise DataError(f"cannot write TFRecords: {error.message}; check the path and free space") from None


def _example(tf: Any, split: str, drop: dict[str, NDArray[Any]]) -> bytes:
    """A drop as a serialised Example."""

    def text(value: bytes) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {"split": text(split.encode())}
    for name, values in drop.items():
        features[name] = text(values.tobytes())
        shape = tf.train.Int64List(value=values.shape)
        features[f"{name}_shape"] = tf.train.Feature(int64_list=shape)
    example: bytes = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    return example


def _filled_splits(dataset: ChannelDataset) -> list[str]:
    return [split for split in SPLITS if dataset.num_drops(split)]


def _blocks(dataset: ChannelDataset, split: str) -> Iterator[dict[str, NDArray[Any]]]:
    """All fields of a split, a bounded number of drops at a time."""
    step = max(1, BLOCK_BYTES // drop_bytes(dataset.spec))
    for start in range(0, dataset.num_drops(split), step):
        yield batch_arrays(dataset.batch(split, slice(start, start + step), readings=None), dataset.spec)


def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> IO[bytes]:
    """An open array of an NPZ, its header written."""
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # same dataset, same bytes
    member = archive.open(info, "w", force_zip64=True)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    return member


def _add_array(archive: zipfile.ZipFile, name: str, values: NDArray[Any]) -> None:
    with _member(archive, name, values.dtype, values.shape) as member:
        member.write(values.tobytes())


def _add_matlab_text(file: h5py.File, name: str, text: str) -> None:
    """A char row vector."""
    codes = np.frombuffer(text.encode("utf-16-le"), np.uint16)[:, None]
    variable = file.create_dataset(name, data=codes, track_times=False)
    variable.attrs["MATLAB_class"] = np.bytes_("char")
    variable.attrs["MATLAB_int_decode"] = np.int32(2)


def _add_matlab_array(file: h5py.File, dataset: ChannelDataset, split: str, name: str) -> None:
    """A numeric or logical array."""
    field = dataset_fields(dataset.spec)[name]
    dtype = np.dtype(field.dtype)
    stored = {"complex64": MATLAB_COMPLEX, "bool": np.dtype("uint8")}.get(dtype.name, dtype)
    shape = (dataset.num_drops(split), *field.shape)
    variable = file.create_dataset(f"{split}_{name}", shape, stored, track_times=False)
    variable.attrs["MATLAB_class"] = np.bytes_(MATLAB_CLASSES[dtype.name])
    if dtype.name == "bool":
        variable.attrs["MATLAB_int_decode"] = np.int32(1)
    row = 0
    for arrays in _blocks(dataset, split):
        variable[row : row + len(arrays[name])] = arrays[name].view(stored)
        row += len(arrays[name])
