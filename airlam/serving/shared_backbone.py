"""One frozen backbone for several LAMs, each with its adapter: loaded once, run once a batch.

Adapters are found by what they add to a model (peft's low-rank factors and the modules that it trains beside
them), so that nothing here depends on how they were put in.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import nn

from airlam.model.chain import Backbone
from airlam.model.storage import fingerprint
from airlam.serving.multi_lora import AdapterRows, LowRank, MultiLora, PerAdapter

ADAPTER = "default"  # as whatever tuned the LAM called it
_WRAPPED = (".base_layer.", ".original_module.")  # where a plain weight is once an adapter is put in
ENTRANCE = "entrance"
Timed = Callable[[str, int], AbstractContextManager[None]]


def frozen_parts(backbone: Backbone) -> dict[str, str]:
    """SHA-256 of the frozen weights of each of a backbone's parts: ``entrance``, ``block.i``, ``norm``.

    The same whether an adapter is put in or not. A part whose weights all train (nothing can be shared then)
    has the hash of nothing.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in (ENTRANCE, *backbone.parts())}
    for name, parameter in backbone.named_parameters():
        if not parameter.requires_grad:
            plain = name
            for wrapper in _WRAPPED:
                plain = plain.replace(wrapper, ".")
            parts[backbone.part_of(name) or ENTRANCE][plain] = parameter
    return {part: fingerprint(tensors) for part, tensors in parts.items()}


class SharedBackbone:
    """A backbone that carries the adapters of several LAMs.

    backbones: of one kind, the deepest first; their frozen weights are those of the first as far as they
    go. The first is changed to carry all; nothing of the others is kept but their adapters.
    """

    def __init__(self, backbones: Sequence[Backbone]) -> None:
        self._depths = tuple(backbone.num_blocks for backbone in backbones)
        self._rows = AdapterRows()
        model = _joined([backbone.model for backbone in backbones], self._rows)
        model.requires_grad_(False)
        with self._rows.split(self._only_first(1)):  # its check of the chain runs one row
            self.backbone = Backbone(model, ordered=backbones[0].ordered).eval()

    def tensors(self) -> Iterator[torch.Tensor]:
        """All weights, the adapters' included, and buffers."""
        for module in self.backbone.modules():
            yield from (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if isinstance(module, MultiLora):
                yield from module.adapter_tensors()

    def _only_first(self, num_rows: int) -> list[int]:
        return [num_rows] + [0] * (len(self._depths) - 1)

    @torch.inference_mode()
    def run(
        self, embedded: torch.Tensor, mask: torch.Tensor, counts: Sequence[int], timed: Timed
    ) -> torch.Tensor:
        """All parts in order; a row leaves after the last block of its LAM.

        embedded: float32 [batch, num_tokens, width]; mask: bool [batch, num_tokens]. counts: rows of each
        LAM, in the order in which backbones were given. timed: within what it makes of a part's name and
        rows the part runs. Returns float32 [batch, num_tokens, width].
        """
        backbone, done = self.backbone, []
        with self._rows.split(counts):
            hidden, calls = backbone.enter(embedded, mask)
        for index in range(max(depth for depth, n in zip(self._depths, counts, strict=True) if n)):
            kept = [n if depth > index else 0 for depth, n in zip(self._depths, counts, strict=True)]
            num_kept = sum(kept)
            with timed(f"block.{index}", num_kept), self._rows.split(kept):
                if num_kept < len(hidden):  # the shallower LAMs stand last
                    done.append(hidden[num_kept:])
                    hidden, mask = hidden[:num_kept], mask[:num_kept]
                    calls = backbone.calls(hidden, mask)
                hidden = backbone.block(index, hidden, calls[index])
        hidden = torch.cat([hidden, *reversed(done)])
        with timed("norm", len(hidden)), self._rows.split(counts):
            return backbone.norm(hidden)


def _joined(models: Sequence[nn.Module | None], rows: AdapterRows) -> nn.Module:
    """The first model with everyone's adapters in it; None where a shallower model has nothing."""
    first = models[0]
    assert first is not None
    if any(_low_rank(model) is not None for model in models):
        return MultiLora(_plain(first), [_low_rank(model) for model in models], rows)
    if any(hasattr(model, "modules_to_save") for model in models):
        return PerAdapter([nn.Identity() if model is None else _plain(model) for model in models], rows)
    for name in dict(first.named_children()):
        first._modules[name] = _joined([model and model._modules.get(name) for model in models], rows)
    return first


def _plain(module: nn.Module) -> nn.Module:
    """What runs of a projection without its adapter, and the trained copy of what was trained whole."""
    if hasattr(module, "modules_to_save"):
        return cast(nn.ModuleDict, module.modules_to_save)[ADAPTER]
    return cast(nn.Module, module.base_layer) if _low_rank(module) is not None else module


def _low_rank(module: Any) -> LowRank | None:
    if not hasattr(module, "lora_A"):
        return None
    down, up = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight  # [rank, d_in], [d_out, rank]
    scaled = module.scaling[ADAPTER] * up.detach().mT
    return LowRank(down=down.detach().mT.contiguous(), up=scaled.contiguous())
