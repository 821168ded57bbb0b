"""Weights on disk: safetensors only, checked before a single one is assigned.

A LAM's folder holds ``model.toml`` (its spec), ``weights.safetensors`` (embedding and heads, and the backbone
where it was tuned as a whole or drawn at random) and, for LoRA, ``adapter/`` in peft's own format. Pretrained
weights that stayed frozen are known by their SHA-256. A graph precoder's has ``precoder.toml`` instead.
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
from airlam.specs import ModelSpec

_WEIGHTS_FILE = "weights.safetensors"
_ADAPTER_FOLDER = "adapter"
_FROZEN = "frozen_sha256"
_BACKBONE = "backbone."
_MODEL = "backbone.model"  # of Hugging Face, which adapters are in
State = dict[str, torch.Tensor]


def read_tensors(path: Path) -> State:
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


def trainable_tensors(module: nn.Module) -> State:
    """What training changes: parameters with gradients, and persistent buffers (running statistics)."""
    parameters = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    state = module.state_dict()
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    buffers = {name: value for name, value in state.items() if name not in parameters and name not in frozen}
    return parameters | buffers


def save_tuned(module: nn.Module, backbone: ModelSpec | None, folder: Path) -> None:
    """Writes all of a module that ``load_tuned`` does not find elsewhere.

    backbone: the spec of ``module.backbone``; None where it has none.
    """
    notes = {_FROZEN: fingerprint(_frozen_tensors(module, backbone))}
    write_tensors(folder / _WEIGHTS_FILE, _own_tensors(module, backbone), notes)
    if backbone is not None and backbone.tuning == "lora":
        from airlam.model.lora import save_adapter

        save_adapter(module.get_submodule(_MODEL), folder / _ADAPTER_FOLDER)


def load_tuned(module: nn.Module, backbone: ModelSpec | None, folder: Path) -> None:
    """Takes what ``save_tuned`` wrote of a module of the same spec; DataError where it is another's."""
    path = folder / _WEIGHTS_FILE
    own, given = _own_tensors(module, backbone), read_tensors(path)
    check_tensors(own, given, str(path))
    if read_metadata(path).get(_FROZEN) != fingerprint(_frozen_tensors(module, backbone)):
        named = "its backbone" if backbone is None else repr(backbone.backbone)
        raise DataError(
            f"{folder} was tuned on other weights of {named} than the ones loaded here; "
            "take the weights that it was tuned on"
        )
    if backbone is not None and backbone.tuning == "lora":
        from airlam.model.lora import load_adapter

        load_adapter(module.get_submodule(_MODEL), folder / _ADAPTER_FOLDER)
    assign_tensors(own, given, str(path))


def _own_tensors(module: nn.Module, backbone: ModelSpec | None) -> State:
    """What ``weights.safetensors`` holds.

    All but the backbone where pretrained weights stayed frozen; a random one is kept too, since another
    machine need not draw it to the same bits.
    """
    whole = backbone is None or backbone.tuning == "full" or backbone.is_drawn
    state: State = module.state_dict()
    return state if whole else {name: t for name, t in state.items() if not name.startswith(_BACKBONE)}


def _frozen_tensors(module: nn.Module, backbone: ModelSpec | None) -> State:
    """Weights that a folder does not hold and must find again."""
    own = _own_tensors(module, backbone)
    return {name: p for name, p in module.named_parameters() if name not in own and not p.requires_grad}
