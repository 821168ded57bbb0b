r"""Floats in fewer bits: fp32, bf16, or int8 with one fp32 scale a row, and error feedback for the sender.

int8: q = round(x / s), s = max |x| / 127 over the last axis, so |x - s q| <= s / 2. Error feedback adds what
rounding took from a value to the next message about the same thing: of T messages the mean received is within
s / (2 T) of the mean sent. Seide et al., 1-bit SGD (2014); Karimireddy et al., 1901.09847. For gradients of
activations "the same thing" is the same sample, so its residual waits until that sample comes round again;
Wang et al., 2206.01299, key what they keep of activations the same way.
"""

from typing import Self

import torch

from airlam.split.graph import Precision
from airlam.split.messages import MessageError, TensorField, Tensors, check_tensor

SCALE = ".scale"
_LARGEST = 127


class ErrorFeedback:
    """What rounding has taken from each sample's row so far; the samples of a batch must differ."""

    def __init__(self) -> None:
        self._residuals: dict[int, torch.Tensor] = {}

    def added_to(self, value: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor:
        """``value`` (float32 [batch, ...]) with the residuals of its samples (int64 [batch])."""
        nothing = torch.zeros_like(value[0])
        kept = [self._residuals.get(index, nothing) for index in sample_ids.tolist()]
        return value + torch.stack(kept)

    def keep(self, residual: torch.Tensor, sample_ids: torch.Tensor) -> None:
        """Remembers what was lost (float32 [batch, ...]) of these samples."""
        self._residuals.update(zip(sample_ids.tolist(), residual.unbind(), strict=True))

    def state(self) -> Tensors:
        """All residuals: ``ids`` int64 [num_samples], ``rows`` float32 [num_samples, ...], or nothing."""
        if not self._residuals:
            return {}
        rows = torch.stack(list(self._residuals.values()))
        return {"ids": torch.tensor(list(self._residuals)), "rows": rows}

    @classmethod
    def of(cls, state: Tensors) -> Self:
        """The residuals that ``state`` gave."""
        feedback = cls()
        feedback.keep(state["rows"], state["ids"])
        return feedback


def pack(
    name: str,
    value: torch.Tensor,
    precision: Precision,
    feedback: ErrorFeedback | None = None,
    sample_ids: torch.Tensor | None = None,
) -> Tensors:
    """What is sent of a float32 tensor: itself, a rounded copy, or int8 and ``NAME.scale`` [..., 1].

    feedback, sample_ids: the sender's residuals and which samples the rows are (int64 [batch]); without ids
    there is no feedback, and fp32 needs none.
    """
    if precision == "fp32":
        return {name: value}
    if feedback is None or sample_ids is None:
        return _rounded(name, value, precision)
    value = feedback.added_to(value, sample_ids)
    packed = _rounded(name, value, precision)
    feedback.keep(value - unpack(packed, name), sample_ids)
    return packed


def unpack(tensors: Tensors, name: str) -> torch.Tensor:
    """The float32 tensor that ``pack`` made this of; MessageError where it cannot be."""
    if name not in tensors:
        raise MessageError(f"a message lacks {name!r}; it holds {', '.join(tensors) or 'nothing'}")
    value = tensors[name]
    if value.dtype in (torch.float32, torch.bfloat16):
        return value.float()
    if value.dtype != torch.int8:
        raise MessageError(f"{name} is {value.dtype}; expected float32, bfloat16 or int8")
    if name + SCALE not in tensors:
        raise MessageError(f"a message lacks the scales of {name!r}")
    scale = tensors[name + SCALE]
    check_tensor(name + SCALE, scale, TensorField.of(torch.float32, *value.shape[:-1], 1))
    return value.float() * scale


def _rounded(name: str, value: torch.Tensor, precision: Precision) -> Tensors:
    return {name: value.bfloat16()} if precision == "bf16" else _int8(name, value)


def _int8(name: str, value: torch.Tensor) -> Tensors:
    scale = value.abs().amax(dim=-1, keepdim=True) / _LARGEST  # [..., 1]
    quanta = torch.where(scale > 0, value / scale, 0.0).round().clamp(-_LARGEST, _LARGEST)
    return {name: quanta.to(torch.int8), name + SCALE: scale}
