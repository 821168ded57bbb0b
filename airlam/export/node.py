"""A device's part in a split session, run by exported files: the same messages in and out as torch's.

Checks, precision on the wire, optimiser and state are ``SplitNode``'s; what its modules compute, forward and
backward, the files do. Torch holds the weights that train, whose memory they read.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from airlam.errors import DataError, SpecError
from airlam.export.device import CONTEXT, ends_of, frozen_sha256
from airlam.export.manifest import GRADIENT, WEIGHT
from airlam.export.runtime import DeviceModules
from airlam.model.lam import LAM
from airlam.model.path_head import PathHead
from airlam.split.node import MakeOptimiser, SplitNode, nmse_loss
from airlam.split.part import HEAD, TOKENIZER, LamPart, State

_TARGET = CONTEXT + "target"


def exported_node(name: str, lam: LAM, folder: Path, make_optimiser: MakeOptimiser) -> SplitNode:
    """A node whose modules are the exported ones in a folder, for the transport of a session.

    lam: the LAM that was exported; its weights are where training starts. Dropout is left out. A library
    call, for a device's own program: no command makes one. DataError where the folder holds another LAM's
    modules.
    """
    part = ExportedPart(lam, DeviceModules(folder, "training"))
    return SplitNode(name, part, nmse_loss if part.posterior else _exported_loss, make_optimiser)


def _exported_loss(lam: LAM, output: State, context: State) -> torch.Tensor:
    """The loss that the exported head has computed already, float32 [batch]."""
    return output["loss"]


class ExportedPart(LamPart):
    """A ``LamPart`` whose stages run in files.

    posterior: what torch computes behind the exported linear map of a path head; None where the files have
    the whole head.
    """

    def __init__(self, lam: LAM, device: DeviceModules) -> None:
        super().__init__(lam, device.manifest.modules)
        self.device = device
        own = {name: tuple(value.shape) for name, value in self.trainable.items()}
        if own != {name: value.shape for name, value in device.weights.items()}:
            raise DataError("the files train other weights than this LAM; export it again")
        if frozen_sha256(self) != device.manifest.frozen_sha256:
            raise DataError("the files have other frozen weights than this LAM; export it again")
        self.posterior = _posterior(self.lam, self.modules[-1]) if device.manifest.left_to_torch else None

    def run(self, modules: Collection[str], state: State) -> State:
        """As ``LamPart.run``, for exported stages; with a target, a head that is all there gives ``loss``."""
        stage = [name for name in modules if name != TOKENIZER]
        if not stage[-1].startswith(HEAD):
            return {"hidden": self._apply(stage, state, "features", "embed", "hidden")}
        if self.posterior is not None:
            correction = self._apply(stage, state, "hidden", "correct", "correction")
            context = {name.removeprefix(CONTEXT): v for name, v in state.items() if name.startswith(CONTEXT)}
            return cast(State, self.posterior(correction, context))
        if torch.is_grad_enabled() and _TARGET in state:
            return {"loss": self._apply(stage, state, "hidden", "head_step", "loss")}
        return _tensors(self.device, "predict", state | self._weights(stage))

    def _apply(
        self, stage: Sequence[str], state: State, source: str, signature: str, result: str
    ) -> torch.Tensor:
        """One result of a signature, as a function of ``source`` and the stage's weights."""
        weights = self._weights(stage)
        rest = {name: value for name, value in state.items() if name != source}
        call = _Call(
            device=self.device,
            signature=signature,
            source=source,
            result=result,
            names=tuple(weights),
            rest=rest,
        )
        function: Any = _WeighedLoss if signature == "head_step" else _Exported
        return cast(torch.Tensor, function.apply(call, state[source], *weights.values()))

    def _weights(self, stage: Sequence[str]) -> State:
        """What trains in a stage; SpecError where the files hold another one."""
        if tuple(stage) not in ends_of(self.lam.module_names, self.modules):
            raise SpecError(f"the plan runs {', '.join(stage)} as one stage, which was not exported as one")
        own = {id(parameter) for parameter in self.trainable_of(stage)}
        return {WEIGHT + name: value for name, value in self.trainable.items() if id(value) in own}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A signature, which of its arguments is differentiated beside the weights, and which result."""

    device: DeviceModules
    signature: str
    source: str
    result: str
    names: tuple[str, ...]
    rest: State

    def run(
        self, signature: str, source: torch.Tensor, weights: Sequence[torch.Tensor], **more: torch.Tensor
    ) -> State:
        named = dict(zip(self.names, weights, strict=True))
        return _tensors(self.device, signature, self.rest | {self.source: source} | named | more)

    def gradients(self, found: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        """Of the call itself, the source and the weights, as autograd wants them."""
        own = (found[GRADIENT + name.removeprefix(WEIGHT)] for name in self.names)
        return None, found.get("hidden_gradient"), *own


class _Exported(torch.autograd.Function):
    """A signature whose backward pass is the signature ``NAME_step``."""

    @staticmethod
    def forward(ctx: Any, call: _Call, source: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.call = call
        ctx.save_for_backward(source, *weights)
        return call.run(call.signature, source, weights)[call.result]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        source, *weights = ctx.saved_tensors
        call: _Call = ctx.call
        return call.gradients(call.run(call.signature + "_step", source, weights, gradient=gradients[0]))


class _WeighedLoss(torch.autograd.Function):
    """Losses by ``head_step``, which gives their mean's gradients along; others it is asked again for."""

    @staticmethod
    def forward(ctx: Any, call: _Call, source: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        count = len(source)
        found = call.run(call.signature, source, weights, sample_weight=torch.full((count,), 1 / count))
        ctx.call, ctx.found = call, found
        ctx.save_for_backward(source, *weights)
        return found[call.result]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call: _Call = ctx.call
        wanted = gradients[0]  # [batch]
        if torch.equal(wanted, torch.full_like(wanted, 1 / len(wanted))):
            return call.gradients(ctx.found)
        source, *weights = ctx.saved_tensors
        return call.gradients(call.run(call.signature, source, weights, sample_weight=wanted.contiguous()))


def _tensors(device: DeviceModules, signature: str, state: Mapping[str, torch.Tensor]) -> State:
    """A signature's results for tensors."""
    found = device.run(signature, {name: value.detach().numpy() for name, value in state.items()})
    return {name: torch.from_numpy(value) for name, value in found.items()}


def _posterior(lam: LAM, head: str) -> nn.Module:
    """The path head with corrections in place of hidden states."""
    behind = copy.deepcopy(lam.heads[head.removeprefix(HEAD)])
    assert isinstance(behind, PathHead)
    behind.correction = nn.Identity()  # type: ignore[assignment]
    return behind
