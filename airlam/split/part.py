"""Part of a LAM: some of its modules with their weights, and nothing of the others.

Absent modules leave weightless stand-ins, so that what runs here is the LAM's own code.
"""

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from airlam.errors import SpecError
from airlam.model.lam import LAM
from airlam.model.storage import trainable_tensors

State = dict[str, torch.Tensor]
TOKENIZER, EMBEDDING = "tokenizer.csi", "embedding"
BLOCK, HEAD = "block.", "head."


class _Absent(nn.Module):
    """Stands for a module that lives elsewhere; keeps the plain attributes that a model looks up."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        plain = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        self.__dict__.update(plain)

    def forward(self, hidden: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return hidden


class LamPart:
    """The modules of a LAM that one node holds.

    ``lam``: a LAM in which all others are stand-ins. Weights that train are copies of the original's; those
    that are frozen are shared with it, since nobody changes them. Which weights train is decided by then.
    Tensors go by the names that they have in the whole LAM.
    """

    def __init__(self, lam: LAM, modules: Collection[str]) -> None:
        unknown = sorted(set(modules) - set(lam.module_names))
        if unknown:
            raise SpecError(f"no module {unknown[0]!r} in this LAM; it has {', '.join(lam.module_names)}")
        self.modules = tuple(name for name in lam.module_names if name in modules)
        self.lam = copy.deepcopy(lam, _stand_ins(lam, self.modules))
        self.lam.zero_grad(set_to_none=True)
        self._owners = {name: owner_of(lam, name) for name in lam.state_dict()}
        self._trainable: dict[str, dict[str, nn.Parameter]] = {name: {} for name in self.modules}
        for name, parameter in self.lam.named_parameters():
            if parameter.requires_grad:
                self._trainable[self._owners[name]][name] = parameter

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that train here."""
        return {name: p for own in self._trainable.values() for name, p in own.items()}

    def trainable_of(self, modules: Collection[str]) -> list[nn.Parameter]:
        """Parameters of some modules that train."""
        return [parameter for name in modules for parameter in self._trainable[name].values()]

    @property
    def changing(self) -> State:
        """What training changes here: parameters that train, and persistent buffers."""
        own = self.tensors_of(self.modules)
        return {name: value for name, value in trainable_tensors(self.lam).items() if name in own}

    def tensors_of(self, modules: Collection[str]) -> State:
        """Parameters and persistent buffers of some of these modules, detached."""
        wanted = set(modules) & set(self.modules)
        return {name: v for name, v in self.lam.state_dict().items() if self._owners.get(name) in wanted}

    def run(self, modules: Collection[str], state: State) -> State:
        """What consecutive modules of this part make of a state.

        state: ``features`` or ``hidden``, with ``mask`` for embedding and blocks and ``context.*`` for a
        head; as in ``LAM.forward_module``, but what blocks are called with is derived once for all of them.
        Returns ``features``, ``hidden`` (float32 [batch, num_tokens, width]) or the head's output.
        """
        backbone, calls = self.lam.backbone, None
        for name in modules:
            if name not in self.modules:
                raise SpecError(f"module {name!r} is not on this node; it has {', '.join(self.modules)}")
            if name == EMBEDDING:
                hidden, calls = backbone.enter(self.lam.embedding(state["features"]), state["mask"])
                state = state | {"hidden": hidden}
            elif name.startswith(BLOCK):
                calls = calls or backbone.calls(state["hidden"], state["mask"])
                index = int(name.removeprefix(BLOCK))
                state = state | {"hidden": backbone.block(index, state["hidden"], calls[index])}
            elif name != TOKENIZER:  # whose tokens are made when samples are given to a node
                result = self.lam.forward_module(name, state)
                state = result if name.startswith(HEAD) else state | result
        return state


def needs_mask(modules: Collection[str]) -> bool:
    """Whether one of these modules looks at which tokens are real."""
    return any(name == EMBEDDING or name.startswith(BLOCK) for name in modules)


def owner_of(lam: LAM, tensor_name: str) -> str:
    """The module that a parameter or buffer of a LAM belongs to.

    What a backbone runs before its blocks (positions, a norm) belongs to ``embedding``, which runs it.
    """
    kind, _, rest = tensor_name.partition(".")
    if kind == "embedding":
        return EMBEDDING
    if kind == "heads":
        return HEAD + rest.partition(".")[0]
    return lam.backbone.part_of(rest) or EMBEDDING


def freeze(lam: LAM, module: str) -> None:
    """Nothing of this module trains from here on."""
    for name, parameter in lam.named_parameters():
        if owner_of(lam, name) == module:
            parameter.requires_grad_(False)


def _stand_ins(lam: LAM, modules: Collection[str]) -> dict[int, Any]:
    """What ``deepcopy`` is to take instead of copying, by identity."""
    taken: dict[int, Any] = {id(lam.tokenizer): lam.tokenizer}  # no weights, only tables
    for name, parameter in lam.named_parameters():
        owner = owner_of(lam, name)
        if owner == EMBEDDING and owner not in modules:  # a shape without memory, for deriving masks
            nothing = torch.zeros((), device=parameter.device, dtype=parameter.dtype)
            taken[id(parameter)] = nn.Parameter(nothing.expand(parameter.shape), requires_grad=False)
        elif not parameter.requires_grad:
            taken[id(parameter)] = parameter
    heads = {HEAD + task: head for task, head in lam.heads.items()}
    whole: dict[str, nn.Module] = {EMBEDDING: lam.embedding, **lam.backbone.parts(), **heads}
    for name, module in whole.items():
        if name not in modules:
            taken[id(module)] = _Absent(module)
    return taken
