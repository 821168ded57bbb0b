"""Exported device modules at work on numpy arrays, by ai-edge-litert or onnxruntime: no torch, no TensorFlow.

A file takes a fixed number of samples; any number is cut into such batches here, the last one filled up. Rows
that fill up have no weight, so sums of gradients are those of the samples alone.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from airlam.errors import DataError
from airlam.export.manifest import (
    WEIGHT,
    WEIGHTS_FILE,
    ZERO_PADDED,
    Mode,
    SignatureEntry,
    TensorEntry,
    argument_of,
    read_manifest,
)

Array = npt.NDArray[Any]
Call = Callable[[dict[str, Array]], Mapping[str, Array]]
"""One signature of a file: arguments and outputs by their names there."""
Calls = dict[str, Call]


class DeviceModules:
    """The modules in a folder that ``airlam export`` wrote.

    weights: those that train, by the LAM's names, where the mode is training; change them, and the next call
    takes the new ones. Files for inference have them built in.
    """

    def __init__(self, folder: Path, mode: Mode = "inference", *, num_threads: int = 1) -> None:
        self.manifest, self.mode = read_manifest(folder), mode
        self.weights = _weights(folder / WEIGHTS_FILE) if mode == "training" else {}
        calls = _litert_calls if self.manifest.format == "litert" else _onnx_calls
        entries = [entry for entry in self.manifest.signatures if entry.mode == mode]
        self._calls = calls(functools.partial(self.manifest.read, folder), entries, num_threads)

    def run(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What a signature gives, by name, for any number of samples.

        Weights that are not among the inputs are taken from ``weights``. DataError where an input is missing
        or of another shape.
        """
        entry = self.manifest.signature(name, self.mode)
        given = self._checked(entry, inputs)
        counts = {len(given[each.name]) for each in entry.inputs if each.is_batched}
        if len(counts) != 1 or 0 in counts:
            raise DataError(f"{name} is given {sorted(counts)} rows; expected as many of all, at least one")
        num_samples = counts.pop()
        parts = [
            self._batch(entry, given, slice(start, min(start + entry.batch_size, num_samples)))
            for start in range(0, num_samples, entry.batch_size)
        ]
        return {
            each.name: np.concatenate([part[each.name] for part in parts])
            if each.is_batched
            else np.sum([part[each.name] for part in parts], axis=0)
            for each in entry.outputs
        }

    def _batch(self, entry: SignatureEntry, given: Mapping[str, Array], rows: slice) -> dict[str, Array]:
        """One call; rows that fill up are cut off again."""
        kept = rows.stop - rows.start
        arguments = {}
        for each in entry.inputs:
            value = given[each.name]
            value = _filled(value[rows], entry.batch_size - kept, each) if each.is_batched else value
            arguments[argument_of(each.name)] = _sent(value)
        found = self._calls[entry.name](arguments)
        outputs = {}
        for each in entry.outputs:
            value = _received(found[argument_of(each.name)], each)
            outputs[each.name] = value[:kept] if each.is_batched else value
        return outputs

    def _checked(self, entry: SignatureEntry, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All arguments of a signature, each of its shape and dtype."""
        given = {}
        for each in entry.inputs:
            own = self.weights if each.name.startswith(WEIGHT) and each.name not in inputs else inputs
            key = each.name.removeprefix(WEIGHT) if own is self.weights else each.name
            if key not in own:
                raise DataError(
                    f"{entry.name} lacks {each.name!r}; it takes {', '.join(e.name for e in entry.inputs)}"
                )
            given[each.name] = _checked_array(np.asarray(own[key]), each)
        return given


def _checked_array(value: Array, entry: TensorEntry) -> Array:
    """The array, where it has the entry's dtype and shape, but for the number of samples."""
    shape = (len(value), *entry.shape[1:]) if entry.is_batched and value.ndim else entry.shape
    if value.shape != shape or value.dtype != entry.dtype:
        raise DataError(f"{entry.name} is {value.shape} {value.dtype}; expected {shape} {entry.dtype}")
    return value


def _weights(path: Path) -> dict[str, Array]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read weights from {path}: {str(error).splitlines()[0]}") from None


def _filled(rows: Array, missing: int, entry: TensorEntry) -> Array:
    if not missing:
        return rows
    last = np.zeros_like(rows[-1:]) if entry.name in ZERO_PADDED else rows[-1:]
    return np.concatenate([rows, np.repeat(last, missing, axis=0)])


def _sent(value: Array) -> Array:
    if not np.iscomplexobj(value):
        return np.ascontiguousarray(value)
    return np.stack([value.real, value.imag], axis=-1)  # [..., 2]


def _received(value: Array, entry: TensorEntry) -> Array:
    return np.ascontiguousarray(value).view(entry.dtype)[..., 0] if entry.is_complex else value


def _litert_calls(read: Callable[[str], bytes], entries: Sequence[SignatureEntry], num_threads: int) -> Calls:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise DataError("LiteRT files are run by ai-edge-litert; pip install 'airlam[litert]'") from None
    make: Any = Interpreter  # which has no types
    opened = {
        name: make(model_content=read(name), num_threads=num_threads) for name in {e.file for e in entries}
    }

    def call(entry: SignatureEntry) -> Call:
        runner = opened[entry.file].get_signature_runner(entry.name)
        return lambda arguments: cast(dict[str, Array], runner(**arguments))

    return {entry.name: call(entry) for entry in entries}


def _onnx_calls(read: Callable[[str], bytes], entries: Sequence[SignatureEntry], num_threads: int) -> Calls:
    try:
        import onnxruntime
    except ImportError:
        raise DataError("ONNX files are run by onnxruntime; pip install 'airlam[onnx]'") from None
    make: Any = onnxruntime
    options = make.SessionOptions()
    options.intra_op_num_threads = num_threads

    def call(entry: SignatureEntry) -> Call:
        session = make.InferenceSession(read(entry.file), options, providers=["CPUExecutionProvider"])
        names = [argument_of(each.name) for each in entry.outputs]
        return lambda arguments: dict(zip(names, session.run(names, arguments), strict=True))

    return {entry.name: call(entry) for entry in entries}
