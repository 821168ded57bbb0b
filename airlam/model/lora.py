"""How a backbone is tuned, and LoRA by peft (the one module that imports it).

``lora``: low-rank adapters on every projection of the blocks, and the norms; the rest is frozen.
``head``: the backbone is frozen. ``full`` and ``scratch``: all of it trains.

Adapters are kept in peft's own format: ``peft.PeftModel.from_pretrained(build_backbone(spec), folder)`` loads
them. The trained norms travel with them as peft's ``modules_to_save``.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from airlam.errors import DataError
from airlam.model.families import is_linear, norm_names, projection_names
from airlam.model.storage import check_tensors, read_tensors, write_tensors
from airlam.specs import ModelSpec

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."  # where a PeftModel holds the model that it wraps


def prepare_tuning(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """Freezes what ``spec.tuning`` freezes and puts LoRA in where it says so; changes ``model`` itself.

    A fresh adapter changes nothing: y = W x + (alpha / rank) B A x with B = 0. Hu et al., LoRA, 2106.09685.
    """
    if spec.tuning in ("full", "scratch"):
        return model.requires_grad_(True)
    model.requires_grad_(False)
    if spec.tuning == "lora":
        inject_adapter_in_model(_config(model, spec), model)
    return model


def _config(model: nn.Module, spec: ModelSpec) -> LoraConfig:
    projections = projection_names(model)
    transposed = any(
        not isinstance(module, nn.Linear) and is_linear(module)
        for path, module in model.named_modules()
        if path.rpartition(".")[2] in projections
    )
    return LoraConfig(
        r=spec.lora_rank,
        lora_alpha=spec.lora_alpha,
        target_modules=list(projections),
        modules_to_save=list(norm_names(model)),
        fan_in_fan_out=transposed,
    )


def save_adapter(model: nn.Module, folder: Path) -> None:
    """Writes the adapter of a backbone in peft's format; OSError where the disk refuses."""
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    write_tensors(folder / _WEIGHTS, {_PREFIX + name: value for name, value in state.items()})
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}  # type: ignore[index, union-attr]
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / _CONFIG).write_text(json.dumps(plain, indent=2, default=str, sort_keys=True) + "\n")


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Puts a saved adapter into a backbone whose adapter has the same shapes; DataError where it has not."""
    tensors = read_tensors(folder / _WEIGHTS)
    foreign = [name for name in tensors if not name.startswith(_PREFIX)]
    if foreign:
        raise DataError(
            f"{folder / _WEIGHTS} holds {foreign[0]!r}; expected names that start with {_PREFIX!r}"
        )
    state = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    own: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    check_tensors(own, state, str(folder / _WEIGHTS))
    set_peft_model_state_dict(model, state)


def merge_adapters(model: nn.Module) -> None:
    """Adds each adapter's B A to the weights that it stands beside; for good, and for inference only.

    Nothing of peft is left in ``model``, so a projection is one product instead of three.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(path, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(path, module.modules_to_save[module.active_adapter])
