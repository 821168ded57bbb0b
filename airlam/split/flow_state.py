"""What a node remembers of one flow's batch between its stages, and what it takes from messages for it."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import nn

from airlam.split.messages import MessageError, TensorField, Tensors, check_tensor
from airlam.split.node_state import under
from airlam.split.payload import unpack
from airlam.split.sample_cache import SampleCache
from airlam.tokens.base import TokenBatch

CONTEXT = "context."


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A stage between forward and backward. inputs: None where nothing before it trains."""

    inputs: torch.Tensor | None
    output: torch.Tensor


@dataclass(slots=True, kw_only=True)
class FlowGradients:
    """What one flow's batch of one step gives the weights of a node."""

    step: int
    by_parameter: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class FlowState:
    """A batch of one flow, from its first stage at a node to the step."""

    step: int
    mask: torch.Tensor | None = None
    context: Tensors = field(default_factory=dict)
    sample_ids: torch.Tensor | None = None
    pending: dict[tuple[str, ...], Pending] = field(default_factory=dict)

    def start(self, samples: TokenBatch, tensors: Tensors) -> TokenBatch:
        """The node's own samples that a message names; leaves ids, mask and context here."""
        ids = tensor_of(tensors, "sample_ids", TensorField.of(torch.int64, None))
        if not len(ids) or ids.min() < 0 or ids.max() >= len(samples):
            raise MessageError(f"sample_ids are not all within 0 to {len(samples) - 1}")
        tokens = samples.select(ids)
        self.sample_ids, self.mask, self.context = ids, tokens.mask, tokens.context
        return tokens

    def take(self, tensors: Tensors, name: str, size: int, flow: str, cache: SampleCache) -> torch.Tensor:
        """A stage's input from another node, float32 [batch, num_tokens, size]; mask and context stay here.

        With ``fresh`` among the tensors, the rows that did not come are those that the cache has.
        """
        value = mask = None
        if name in tensors:
            value = unpack(tensors, name)
            check_tensor(name, value, TensorField.of(torch.float32, None, None, size))
        if "mask" in tensors:
            rows = (None, None) if value is None else value.shape[:2]
            mask = tensor_of(tensors, "mask", TensorField.of(torch.bool, *rows))
            if not mask.any(dim=1).all():
                raise MessageError("a sample's mask has no real token")
        if "fresh" in tensors:
            ids = tensor_of(tensors, "sample_ids", TensorField.of(torch.int64, None))
            value, mask = cache.exchange(flow, ids, tensors["fresh"], value, mask)
            self.sample_ids = ids
        if value is None:
            raise lacking(tensors, name)
        self.mask = self.mask if mask is None else mask
        self._take_context(under(tensors, CONTEXT), len(value))
        return value

    def _take_context(self, context: Tensors, num_samples: int) -> None:
        """One row a sample; what a row of each looks like is the tokeniser's and the head's affair."""
        for name, value in context.items():
            check_tensor(CONTEXT + name, value, TensorField.of(value.dtype, num_samples, *value.shape[1:]))
        self.context = context or self.context

    def extras(self, wants: Collection[str]) -> Tensors:
        """Mask and context, where they are wanted."""
        return {name: v for name, v in self.tensors.items() if name.partition(".")[0] in wants}

    @property
    def tensors(self) -> Tensors:
        """Mask and context by the names that they have in messages and states."""
        mask = {} if self.mask is None else {"mask": self.mask}
        return mask | {CONTEXT + name: value for name, value in self.context.items()}


def tensor_of(tensors: Tensors, name: str, expected: TensorField) -> torch.Tensor:
    """A checked tensor of a message; MessageError where it is missing or another."""
    if name not in tensors:
        raise lacking(tensors, name)
    check_tensor(name, tensors[name], expected)
    return tensors[name]


def lacking(tensors: Tensors, name: str) -> MessageError:
    """That a message lacks a tensor."""
    return MessageError(f"a message lacks {name!r}; it holds {', '.join(tensors) or 'nothing'}")


def sample_tensors(tokens: TokenBatch) -> Tensors:
    """Tokens as the tensors of a ``hold``; ``tokens_of`` gives them back."""
    context = {CONTEXT + name: value for name, value in tokens.context.items()}
    return {"features": tokens.features, "mask": tokens.mask, **context}


def tokens_of(tensors: Tensors, num_features: int) -> TokenBatch:
    """The tokens of a ``hold``, each of ``num_features``."""
    features = tensor_of(tensors, "features", TensorField.of(torch.float32, None, None, num_features))
    mask = tensor_of(tensors, "mask", TensorField.of(torch.bool, *features.shape[:2]))
    return TokenBatch(features=features, mask=mask, context=under(tensors, CONTEXT))
