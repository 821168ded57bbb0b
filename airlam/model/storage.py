"""Weights on disk: safetensors only, checked before a single one is assigned.

A LAM's folder holds ``model.toml`` (its spec), ``weights.safetensors`` (embedding and heads, and the backbone
where it was tuned as a whole or drawn at random) and, for LoRA, ``adapter/`` in peft's own format. Pretrained
weights that stayed frozen are known by their SHA-256.
"""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from airlam.errors import DataError


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; DataError where it is missing, foreign or cut short."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, struct.error) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"cannot read weights from {path}: {reason}; expected a whole safetensors file"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The notes in a safetensors file that ``read_tensors`` could read."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes tensors as safetensors, each on its own storage, with notes; OSError where the disk refuses."""
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        save_file(own, path, metadata)
    except SafetensorError as error:  # its name for a full disk, too
        raise OSError(f"cannot write weights to {path}: {error}") from error


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tensors(
    expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], where: str
) -> None:
    """DataError unless names, shapes and dtypes are those expected."""
    missing = sorted(expected.keys() - given.keys())
    extra = sorted(given.keys() - expected.keys())
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which the model has not"
        raise DataError(
            f"{where} {what}; it was saved from another model: check backbone, tokenizer and tuning"
        )
    for name, value in given.items():
        own = expected[name]
        if value.shape != own.shape or value.dtype != own.dtype:
            raise DataError(
                f"{where}: {name} is {tuple(value.shape)} {value.dtype}, the model's is {tuple(own.shape)} "
                f"{own.dtype}; it was saved from another model: check num_layers, lora_rank and num_paths"
            )


def assign_tensors(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], where: str) -> None:
    """Copies checked tensors over a module's own."""
    check_tensors(own, given, where)
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)


def trainable_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters with gradients, and persistent buffers (running statistics)."""
    parameters = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    state = module.state_dict()
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    buffers = {name: value for name, value in state.items() if name not in parameters and name not in frozen}
    return parameters | buffers
