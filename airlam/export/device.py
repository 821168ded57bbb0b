"""The functions of a LAM's device side, for inference and for training, as torch computes them.

The device has the first modules (tokeniser, embedding, perhaps blocks) and the last (perhaps blocks and the
norm, then the head); the server runs what lies between. Dropout is left out, as everywhere in ``eval``.

| signature | takes | gives |
|---|---|---|
| tokenise | history, noise_variance | features, mask, context.* |
| embed | features, mask | hidden |
| embed_step | features, mask, gradient | gradient.NAME |
| predict | hidden, mask, context.* | the head's output |
| head_step | hidden, mask, context.* with the target, sample_weight | loss, hidden_gradient, gradient.NAME |
| channel | the head's output, context.scale | channel |
| correct | hidden, mask | correction |
| correct_step | hidden, mask, gradient | hidden_gradient, gradient.NAME |

A function takes of these what it needs; for training also ``weight.NAME``. ``gradient`` is that of what the
stage gives, ``hidden_gradient`` that of what it is given. ``embed_step`` is where LoRA's
gradients come from if the device has blocks. The last two take the place of predict and head_step for a head
of path tokens: its linear map is exported, the posterior behind it (eigenvectors and a Cholesky factor of
complex matrices, of a size that the data decide) and the path tokeniser are left to torch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from airlam.export.manifest import GRADIENT, WEIGHT, Mode
from airlam.export.trace import State
from airlam.model.lam import LAM
from airlam.model.path_head import PathHead
from airlam.model.storage import fingerprint
from airlam.specs import require
from airlam.split.node import Loss, nmse_loss
from airlam.split.part import EMBEDDING, HEAD, TOKENIZER, LamPart, owner_of
from airlam.tokens.patch import PatchTokenizer

CONTEXT = "context."
LEFT_TO_TORCH = "the path tokeniser, and of the head the posterior of the paths: all but its linear map"
Function = Callable[[State], State]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A function of named tensors, with arguments of the shapes that it will keep."""

    name: str
    function: Function
    examples: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Links to take shapes from; history, noise_variance and future as a tokeniser takes them."""

    history: torch.Tensor
    noise_variance: torch.Tensor
    future: torch.Tensor

    def __len__(self) -> int:
        return len(self.history)

    def first(self, num_links: int) -> "Links":
        """The first links, from the start again where there are too few."""
        rows = torch.arange(num_links) % len(self)
        return Links(
            history=self.history[rows], noise_variance=self.noise_variance[rows], future=self.future[rows]
        )


class DeviceSide:
    """What a plan leaves of a LAM on a device.

    modules: beside the tokeniser, embedding and head, which are always here: blocks at either end, the norm.
    SpecError where what the server would have is no piece of the chain.
    """

    def __init__(self, lam: LAM, modules: Iterable[str] = (), *, loss: Loss = nmse_loss) -> None:
        heads = [name for name in lam.module_names if name.startswith(HEAD)]
        require(len(heads) == 1, f"this LAM has {len(heads)} heads; export one that has a single head")
        self.lam, self.loss = lam, loss
        self.part = LamPart(lam, {TOKENIZER, EMBEDDING, *modules, heads[0]})
        self.part.lam.eval()
        self.first, self.last = ends_of(lam.module_names, self.part.modules)
        self.head = self.part.lam.head(heads[0].removeprefix(HEAD))
        self.is_complete = not isinstance(self.head, PathHead)

    @property
    def left_to_torch(self) -> str:
        """What no file holds, in words."""
        return "" if self.is_complete else LEFT_TO_TORCH

    def signatures(self, mode: Mode, links: Links) -> list[Signature]:
        """All that can be exported for a mode, for batches of as many links as these."""
        state = self._state(links)
        if mode == "training":
            state |= {WEIGHT + name: value.detach() for name, value in self.part.trainable.items()}
        functions: dict[str, Function] = {"embed": self.embed}
        if mode == "training" and self.part.trainable_of(self.first):
            functions["embed_step"] = self.embed_step
        if self.is_complete:
            functions |= {"predict": self.predict}
            functions |= {"head_step": self.head_step} if mode == "training" else {"channel": self.channel}
        else:
            functions |= {"correct": self.correct}
            functions |= {"correct_step": self.correct_step} if mode == "training" else {}
        if mode == "inference" and isinstance(self.lam.tokenizer, PatchTokenizer):
            functions = {"tokenise": self.tokenise, **functions}
        return [
            Signature(name=name, function=function, examples=self._examples(name, state))
            for name, function in functions.items()
        ]

    def tokenise(self, state: State) -> State:
        """What the tokeniser makes of a history."""
        tokens = self.lam.tokenizer.tokenise(state["history"], state["noise_variance"])
        context = {CONTEXT + name: value for name, value in tokens.context.items()}
        return {"features": tokens.features, "mask": tokens.mask, **context}

    def embed(self, state: State) -> State:
        """The first stage."""
        return {"hidden": self._run(self.first, state)["hidden"]}

    def embed_step(self, state: State) -> State:
        """Gradients of the first stage's weights, given that of the hidden states that it makes."""
        state, own = _tracked(state, self._weights(self.first))
        return _gradients(self.embed(state)["hidden"], own, state["gradient"])

    def predict(self, state: State) -> State:
        """The last stage."""
        return self._run(self.last, state)

    def head_step(self, state: State) -> State:
        """Each sample's loss, and the gradients of the samples' sum, weighed by ``sample_weight``."""
        state, own = _tracked(state, ["hidden", *self._weights(self.last)])
        loss = self.loss(self.part.lam, self.predict(state), _context(state))  # [batch]
        return {"loss": loss.detach(), **_gradients(loss, own, state["sample_weight"])}

    def correct(self, state: State) -> State:
        """The last stage up to the linear map of a path head."""
        return {"correction": self._run(self.last, state)["correction"]}

    def correct_step(self, state: State) -> State:
        """Gradients of ``correct``, given that of the correction."""
        state, own = _tracked(state, ["hidden", *self._weights(self.last)])
        return _gradients(self.correct(state)["correction"], own, state["gradient"])

    def channel(self, state: State) -> State:
        """The predicted channel, from the head's output."""
        return {"channel": self.head.channel(state, _context(state))}

    def _state(self, links: Links) -> State:
        """All that a signature may take of these links."""
        tokens = self.lam.tokenizer.tokenise(links.history, links.noise_variance)
        context = self.lam.tokenizer.with_target(tokens, links.future).context
        state = {"history": links.history, "noise_variance": links.noise_variance}
        state |= {"features": tokens.features, "mask": tokens.mask}
        state |= {CONTEXT + name: value for name, value in context.items()}
        state["sample_weight"] = torch.full((len(links),), 1 / len(links))
        with torch.no_grad():
            state |= self.embed(state)
            state |= self.predict(state) if self.is_complete else self.correct(state)
        return state

    def _examples(self, name: str, state: State) -> State:
        """The state, with some gradient where a signature is given one."""
        of = {"embed_step": "hidden", "correct_step": "correction"}.get(name)
        if of is None:
            return state
        random = torch.Generator().manual_seed(0)  # ones would vanish in the norm behind an embedding
        return state | {"gradient": torch.randn(state[of].shape, generator=random)}

    def _weights(self, modules: Sequence[str]) -> list[str]:
        return [WEIGHT + name for name in self.part.trainable if owner_of(self.lam, name) in modules]

    def _run(self, modules: Sequence[str], state: State) -> State:
        """A stage; with the weights that are among the state, where there are any."""
        given = {name: state[name] for name in self._weights(modules) if name in state}
        named = {"lam." + name.removeprefix(WEIGHT): value for name, value in given.items()}
        stage = _Stage(self.part, modules)
        return cast(State, torch.func.functional_call(stage, named, (state,)))


class _Stage(nn.Module):
    """Modules of a part as one; a path head counts up to its linear map."""

    def __init__(self, part: LamPart, modules: Sequence[str]) -> None:
        super().__init__()
        self.lam = part.lam
        self._run, self._modules_run = part.run, modules

    def forward(self, state: State) -> State:
        *before, last = self._modules_run
        head = self.lam.heads[last.removeprefix(HEAD)] if last.startswith(HEAD) else None
        if not isinstance(head, PathHead):
            return self._run(self._modules_run, state)
        return {"correction": head.correction(self._run(before, state)["hidden"])}


def ends_of(chain: Sequence[str], here: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The device's modules before those of the server, less the tokeniser, and after them."""
    away = [index for index, name in enumerate(chain) if name not in here]
    require(bool(away), "nothing is left for the server; keep a block there")
    whole = away == list(range(away[0], away[-1] + 1))
    require(whole, f"the server would have {', '.join(chain[i] for i in away)}; expected modules in a row")
    return tuple(chain[1 : away[0]]), tuple(chain[away[-1] + 1 :])


def frozen_sha256(part: LamPart) -> str:
    """Of the weights of a part that do not train, which files have built in."""
    own = part.tensors_of(part.modules)
    return fingerprint({name: value for name, value in own.items() if name not in part.trainable})


def _context(state: State) -> State:
    return {name.removeprefix(CONTEXT): v for name, v in state.items() if name.startswith(CONTEXT)}


def _tracked(state: State, names: Sequence[str]) -> tuple[State, State]:
    """The state with some tensors made leaves of a graph, and those."""
    own = {name: state[name].detach().requires_grad_() for name in names}
    return state | own, own


def _gradients(value: torch.Tensor, of: State, gradient: torch.Tensor) -> State:
    """Gradients under their names: ``hidden_gradient``, ``gradient.NAME`` of a weight."""
    found = torch.autograd.grad(value, list(of.values()), gradient, allow_unused=True, materialize_grads=True)
    names = (GRADIENT + n.removeprefix(WEIGHT) if n.startswith(WEIGHT) else "hidden_gradient" for n in of)
    return dict(zip(names, found, strict=True))
