"""AdamW and its learning rate over a run."""

import math

import torch
from torch import nn

from airlam.specs import TrainingSpec

_BETAS = (0.9, 0.98)
_WARM_UP_STEPS = 50
_FINAL_RATE = 0.02  # of the highest


def learning_rate(spec: TrainingSpec, step: int) -> float:
    """The rate of the step after ``step`` steps: linear warm-up, then half a cosine down to 2 %.

    The warm-up takes 50 steps, or a tenth of a run shorter than 500.
    """
    warm_up = max(1, min(_WARM_UP_STEPS, spec.num_steps // 10))
    cosine = 0.5 * (1 + math.cos(math.pi * step / spec.num_steps))
    shape = _FINAL_RATE + (1 - _FINAL_RATE) * cosine
    return spec.learning_rate * min(1.0, (step + 1) / warm_up) * shape


def adamw(parameters: list[nn.Parameter], *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Decay pulls matrices only; biases, norms and gates are left alone."""
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=_BETAS)


def adamw_options(spec: TrainingSpec) -> dict[str, float]:
    """What ``adamw`` takes of a spec."""
    return {"learning_rate": spec.learning_rate, "weight_decay": spec.weight_decay}
