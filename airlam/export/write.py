"""A LAM's device side written to a folder, which ``runtime.py`` runs."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from airlam.errors import DataError
from airlam.export.device import DeviceSide, Links, frozen_sha256
from airlam.export.litert_file import litert_bytes
from airlam.export.manifest import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    FileEntry,
    Format,
    Manifest,
    Mode,
    SignatureEntry,
    TensorEntry,
)
from airlam.export.onnx_file import onnx_bytes
from airlam.export.trace import Traced, trace
from airlam.files import whole_folder
from airlam.model.storage import write_tensors

MODES: tuple[Mode, ...] = ("inference", "training")
Progress = Callable[[str, int, int, str], None]


def write_device(
    side: DeviceSide,
    links: Links,
    folder: Path,
    *,
    name: str,
    to: Format,
    batch_size: int,
    on_progress: Progress = lambda what, done, total, detail: None,
) -> Manifest:
    """Writes all that can be exported; the folder appears whole. Returns its manifest.

    links: any of the LAM's setting, for shapes. batch_size: samples a training signature takes at a time;
    those for inference take one. DataError where the folder is there already or a package is missing.
    """
    if folder.exists():
        raise DataError(f"{folder} exists; remove it or name another folder")
    entries: list[SignatureEntry] = []
    written: list[FileEntry] = []
    with whole_folder(folder) as temporary:
        for done, mode in enumerate(MODES):
            on_progress("exporting", done, len(MODES), mode)
            size = 1 if mode == "inference" else batch_size
            signatures = side.signatures(mode, links.first(size))
            traced = {each.name: trace(each.function, each.examples) for each in signatures}
            entries += [_entry(each, mode, _file_of(to, mode, each), size, traced[each]) for each in traced]
            for file, data in _files(to, mode, traced).items():
                (temporary / file).write_bytes(data)
                written.append(FileEntry.of(file, data))
        manifest = _manifest(side, name, to, entries, written)
        write_tensors(temporary / WEIGHTS_FILE, side.part.trainable)
        (temporary / MANIFEST_FILE).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    on_progress("exporting", len(MODES), len(MODES), "")
    return manifest


def _manifest(
    side: DeviceSide, name: str, to: Format, entries: list[SignatureEntry], written: list[FileEntry]
) -> Manifest:
    return Manifest(
        format=to,
        name=name,
        modules=side.part.modules,
        left_to_torch=side.left_to_torch,
        frozen_sha256=frozen_sha256(side.part),
        signatures=tuple(entries),
        files=tuple(written),
    )


def _files(to: Format, mode: Mode, traced: Mapping[str, Traced]) -> dict[str, bytes]:
    if to == "litert":
        return {_file_of(to, mode, ""): litert_bytes(traced)}
    return {_file_of(to, mode, name): onnx_bytes(name, each) for name, each in traced.items()}


def _file_of(to: Format, mode: Mode, name: str) -> str:
    """All signatures of a mode share a LiteRT file; ONNX has one function a file."""
    return f"{mode}.tflite" if to == "litert" else f"{mode}_{name}.onnx"


def _entry(name: str, mode: Mode, file: str, batch_size: int, traced: Traced) -> SignatureEntry:
    return SignatureEntry(
        name=name,
        mode=mode,
        file=file,
        batch_size=batch_size,
        inputs=_described(traced.inputs.items()),
        outputs=_described(traced.outputs.items()),
    )


def _described(tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[TensorEntry, ...]:
    return tuple(
        TensorEntry(name=name, shape=tuple(value.shape), dtype=str(value.dtype).removeprefix("torch."))
        for name, value in tensors
    )
