"""Where to compute and how precisely."""

import torch
from torch import nn

from airlam.errors import SpecError
from airlam.model.chain import Backbone
from airlam.specs import TrainingSpec


def choose_device(spec: TrainingSpec) -> torch.device:
    """The device that a spec means; ``auto`` takes a GPU where one is."""
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device is 'cuda', but torch sees no GPU here; take 'auto' or 'cpu'")
    use_cuda = spec.device == "cuda" or (spec.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def choose_precision(spec: TrainingSpec, device: torch.device) -> torch.dtype:
    """float32 or bfloat16 for the backbone's matrix products.

    ``auto`` goes by what the hardware multiplies natively, not by a timing, so that a resumed run on the same
    machine decides the same: bfloat16 on GPUs that have it and on CPUs with bfloat16 instructions (AVX-512
    BF16, AMX, or Arm's), float32 elsewhere, where bfloat16 is emulated and slower.
    """
    if spec.precision != "auto":
        return torch.bfloat16 if spec.precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        native = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def set_precision(model: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Makes the backbones inside ``model`` compute in ``dtype``; all else stays in float32.

    Returns the coarsest precision in use: float32 where ``model`` has no backbone.
    """
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    for backbone in backbones:
        backbone.autocast_dtype = None if dtype == torch.float32 else dtype
    return dtype if backbones else torch.float32
