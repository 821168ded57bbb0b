"""What a folder of exported device modules holds: ``device.json``, read without torch or TensorFlow.

Names of tensors say what they are: ``weight.NAME`` a weight that trains, under its name in the LAM;
``gradient.NAME`` its gradient, summed over the samples; ``context.*`` what the tokeniser leaves for the head.
All others have one row a sample.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from airlam.errors import DataError, SpecError
from airlam.specs.reading import spec_from_dict

Format = Literal["litert", "onnx"]
FORMATS: tuple[Format, ...] = ("litert", "onnx")
Mode = Literal["inference", "training"]
MANIFEST_FILE, WEIGHTS_FILE, REPORT_FILE = "device.json", "weights.safetensors", "report.json"
WEIGHT, GRADIENT = "weight.", "gradient."
ZERO_PADDED = ("gradient", "sample_weight")  # in a batch that is not full; other rows are repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One argument or output. dtype: numpy's name; complex64 travels as float32 with a last axis of 2."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_complex(self) -> bool:
        """Whether it travels as pairs."""
        return self.dtype.startswith("complex")

    @property
    def is_batched(self) -> bool:
        """Whether it has one row a sample."""
        return not self.name.startswith((WEIGHT, GRADIENT))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureEntry:
    """One function of a file. batch_size: samples it takes at a time."""

    name: str
    mode: Mode
    file: str
    batch_size: int
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of the folder and what it must be."""

    name: str
    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, data: bytes) -> Self:
        """The entry of a file that holds ``data``."""
        return cls(name=name, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """format, the LAM's modules that are here, the signatures of both modes and their files.

    left_to_torch: what of these modules no file holds, in words; empty where all is there. frozen_sha256: of
    the modules' weights that do not train.
    """

    format: Format
    name: str
    modules: tuple[str, ...]
    left_to_torch: str
    frozen_sha256: str
    signatures: tuple[SignatureEntry, ...]
    files: tuple[FileEntry, ...]

    def read(self, folder: Path, name: str) -> bytes:
        """A file of the folder; DataError where it is not what was written."""
        wanted = next((entry for entry in self.files if entry.name == name), None)
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {folder / name}: {error}; run airlam export again") from None
        if FileEntry.of(name, data) != wanted:
            raise DataError(f"{folder / name} is not what was exported; run airlam export again")
        return data

    def signature(self, name: str, mode: Mode) -> SignatureEntry:
        """The entry of a signature; DataError where there is none."""
        for entry in self.signatures:
            if (entry.name, entry.mode) == (name, mode):
                return entry
        known = ", ".join(entry.name for entry in self.signatures if entry.mode == mode)
        raise DataError(f"no signature {name!r} for {mode} here; there are {known or 'none'}")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported folder; DataError where it has none that can be read."""
    path = folder / MANIFEST_FILE
    try:
        return spec_from_dict(Manifest, json.loads(path.read_text()), str(path))
    except (OSError, ValueError, SpecError) as error:
        raise DataError(f"{folder} holds no exported device modules: {error}; run airlam export") from None


def argument_of(name: str) -> str:
    """A tensor's name as the files have it: their runtimes take identifiers."""
    return name.replace(".", "_")
