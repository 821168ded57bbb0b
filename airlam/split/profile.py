"""A LAM measured module by module on a few tokens: the ``ModuleGraph`` that the planner works on.

Nothing is timed: FLOPs are counted, activations are what autograd keeps, so the same model gives the same
graph on every machine.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from airlam.model.lam import LAM, State
from airlam.specs import require
from airlam.split.flops import LiveBytes, flop_counter, saved_storages, storages
from airlam.split.graph import Edge, LoraLoad, Module, ModuleGraph
from airlam.split.part import owner_of
from airlam.tokens.base import TokenBatch

ADAM_STATES = 2  # numbers that Adam keeps for each that trains
MODALITY = "csi"
_CONTEXT = "context."
_TARGET = (_CONTEXT + "target", _CONTEXT + "target_energy")  # made where the head is, for the loss


def profile_lam(
    lam: LAM,
    tokens: TokenBatch,
    *,
    history: torch.Tensor | None = None,
    noise_variance: torch.Tensor | None = None,
    task: str | None = None,
    optimiser_states: int = ADAM_STATES,
) -> ModuleGraph:
    """The LAM's graph with its loads for batches like ``tokens``; the LAM is left as it was.

    tokens: any batch of the LAM's tokeniser, ``with_target`` where evaluating the loss is to count in the
    head's backward pass. history, noise_variance: of the same links, shapes as in ``CsiTokenizer.tokenise``;
    without them the tokeniser counts as free. optimiser_states: numbers kept for each trainable one (Adam 2,
    SGD 0). What trains is what has ``requires_grad`` now: freeze before what will be frozen.
    """
    require(len(tokens) >= 1, "tokens are empty; give at least one link")
    context = {_CONTEXT + key: value for key, value in tokens.context.items()}
    state: State = {"features": tokens.features, "mask": tokens.mask, **context}
    head = f"head.{task or lam.task}"
    names = tuple(n for n in lam.module_names if not n.startswith("head.") or n == head)
    parameters = _by_owner(lam)
    modules: list[Module] = []
    with _undisturbed(lam):
        for name in names:
            measurement = _Measurement(lam, name, parameters.get(name, []), any(m.trains for m in modules))
            if name.startswith("tokenizer"):
                given = history is not None and noise_variance is not None
                inputs = {"history": history, "noise_variance": noise_variance} if given else {}
                modules.append(measurement.module(inputs, optimiser_states))  # type: ignore[arg-type]
                continue
            modules.append(measurement.module(_inputs(name, state), optimiser_states))
            state |= measurement.outputs
    edges = _edges(names, state)
    return ModuleGraph(modules=tuple(modules), edges=edges, batch_size=len(tokens))


def _by_owner(lam: LAM) -> dict[str, list[nn.Parameter]]:
    owned: dict[str, list[nn.Parameter]] = {}
    for key, parameter in lam.named_parameters():
        owned.setdefault(owner_of(lam, key), []).append(parameter)
    return owned


def _inputs(name: str, state: State) -> State:
    """What a module takes of the state; the table is ``LAM.forward_module``'s."""
    taken = {
        "embedding": ("features", "mask"),
        "block": ("hidden", "mask"),
        "norm": ("hidden",),
        "head": ("hidden", *(key for key in state if key.startswith(_CONTEXT))),
    }[name.partition(".")[0]]
    return {key: state[key] for key in taken}


def _edges(names: Sequence[str], state: State) -> tuple[Edge, ...]:
    """The chain from tokeniser to head, and the context that goes straight from the one to the other."""
    mask_bytes = _num_bytes([state["mask"]])
    context = [value for key, value in state.items() if key.startswith(_CONTEXT) and key not in _TARGET]
    edges = []
    for source, target in itertools.pairwise(names):
        floats = state["features"] if source.startswith("tokenizer") else state["hidden"]
        edges.append(
            Edge(
                source=source,
                target=target,
                num_elements=floats.numel(),
                num_rows=floats.numel() // floats.shape[-1],
                fixed_bytes=mask_bytes if target.startswith(("embedding", "block")) else 0,
            )
        )
    aside = Edge(source=names[0], target=names[-1], num_elements=0, fixed_bytes=_num_bytes(context))
    return (*edges, aside)


@dataclass(slots=True)
class _Measurement:
    """One module, run alone. gradient_arrives: whether anything before it trains."""

    lam: LAM
    name: str
    parameters: list[nn.Parameter]
    gradient_arrives: bool
    outputs: State = field(default_factory=dict)

    def module(self, inputs: State, optimiser_states: int) -> Module:
        """The module's load on these inputs; none at all where there are none."""
        trainable = [p for p in self.parameters if p.requires_grad]
        trainable_bytes = _num_bytes(trainable)
        forward_flops, working_bytes = self._infer(inputs) if inputs else (0, 0)
        trains = bool(inputs) and (bool(trainable) or self.gradient_arrives)
        backward_flops, activation_bytes = self._train(inputs, trainable) if trains else (0, 0)
        found = Module(
            name=self.name,
            forward_flops=forward_flops,
            backward_flops=backward_flops,
            parameter_bytes=_num_bytes(self.parameters),
            trainable_bytes=trainable_bytes,
            optimiser_bytes=optimiser_states * trainable_bytes,
            activation_bytes=activation_bytes,
            working_bytes=working_bytes,
            output_bytes=_num_bytes(self.outputs.values()),
            modality=MODALITY if self.name.startswith("tokenizer") else "",
        )
        return self._without_lora(found, inputs, optimiser_states) if self.name.startswith("block") else found

    def _infer(self, inputs: State) -> tuple[int, int]:
        """FLOPs and peak bytes, inputs included, of a forward pass without gradients; keeps the outputs."""
        self.lam.eval()
        run = self._runner(inputs)
        with torch.no_grad(), flop_counter() as counter, LiveBytes() as live:
            self.outputs = run(inputs)
        return counter.get_total_flops(), live.peak + _num_bytes(inputs.values())

    def _train(self, inputs: State, trainable: list[nn.Parameter]) -> tuple[int, int]:
        """FLOPs of the backward pass, and the bytes that the forward pass keeps for it."""
        self.lam.train()
        run, wanted = self._runner(inputs), list(trainable)
        if self.gradient_arrives:
            hidden = inputs["hidden"].detach().requires_grad_()
            inputs, wanted = inputs | {"hidden": hidden}, [*wanted, hidden]  # type: ignore[list-item]
        saved: dict[int, int] = {}
        with torch.enable_grad():
            with saved_storages(saved), LiveBytes() as live:
                outputs = run(inputs)
            kept = saved | {k: n for k, n in live.living().items() if k not in storages(outputs)}
            for constant in storages([*self.lam.parameters(), *self.lam.buffers()]):
                kept.pop(constant, None)
            with flop_counter() as counter:
                self._differentiate(outputs, inputs, wanted)
        return counter.get_total_flops(), sum(kept.values())

    def _differentiate(self, outputs: State, inputs: State, wanted: list[nn.Parameter]) -> None:
        """Gradients of the loss behind a head, of what came in elsewhere; those of ``wanted`` only."""
        if not self.name.startswith("head"):
            hidden = outputs["hidden"]
            torch.autograd.grad(hidden, wanted, torch.ones_like(hidden), allow_unused=True)
            return
        context = {key.removeprefix(_CONTEXT): v for key, v in inputs.items() if key.startswith(_CONTEXT)}
        if "target" in context:
            error = self.lam.head(self.name.partition(".")[2]).squared_error(outputs, context)[0]
        else:
            error = torch.stack([value.abs().square().sum() for value in outputs.values()])
        torch.autograd.grad(error.sum(), wanted, allow_unused=True)

    def _runner(self, inputs: State) -> Callable[[State], State]:
        """The module as a function; what a block is called with besides (masks) is made here, outside."""
        if not self.name.startswith("block"):
            return lambda state: self.lam.forward_module(self.name, state)
        backbone, index = self.lam.backbone, int(self.name.partition(".")[2])
        call = backbone.calls(inputs["hidden"], inputs["mask"])[index]
        return lambda state: {"hidden": backbone.block(index, state["hidden"], call)}

    def _without_lora(self, found: Module, inputs: State, optimiser_states: int) -> Module:
        """The module at rank 0, with what each unit of rank adds: y += B A x, for each adapted projection."""
        adapters = self._adapters(inputs)
        if not adapters:
            return found
        slope = LoraLoad(
            forward_flops=sum(2 * a.num_rows * a.size for a in adapters),
            backward_flops=sum(2 * a.num_rows * a.backward_width for a in adapters),
            parameter_bytes=sum(a.element_bytes * a.size for a in adapters),
            trainable_bytes=sum(a.element_bytes * a.trained_size for a in adapters),
            optimiser_bytes=sum(optimiser_states * a.element_bytes * a.trained_size for a in adapters),
            activation_bytes=sum(a.inner_bytes * a.num_rows for a in adapters),
        )
        return _minus(found, adapters[0].rank, slope)

    def _adapters(self, inputs: State) -> list["_Adapter"]:
        """The block's adapters, seen as data pass them."""
        layers: list[Any] = [m for m in self.lam.backbone.model.modules() if hasattr(m, "lora_A")]
        found: list[_Adapter] = []
        hooks = [
            down.register_forward_hook(_note(found, layer.lora_B[key]))
            for layer in layers
            for key, down in layer.lora_A.items()
        ]
        self.lam.train()
        run = self._runner(inputs)
        found.clear()
        try:
            with torch.enable_grad():
                hidden = inputs["hidden"].detach().requires_grad_(self.gradient_arrives)
                run(inputs | {"hidden": hidden})
        finally:
            for hook in hooks:
                hook.remove()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapter:
    """One low-rank pair on num_in x num_out, and the rows that pass it. gradient_in: num_in or 0.

    down_trains: A as well as B, which always does.
    """

    rank: int
    num_in: int
    num_out: int
    num_rows: int
    gradient_in: int
    element_bytes: int
    inner_bytes: int
    down_trains: bool

    @property
    def size(self) -> int:
        """Parameters a unit of rank."""
        return self.num_in + self.num_out

    @property
    def trained_size(self) -> int:
        """Parameters that train, a unit of rank."""
        return self.num_out + (self.num_in if self.down_trains else 0)

    @property
    def backward_width(self) -> int:
        """Of the products a row: gradients of B and A, and what goes back through B and A."""
        through_up = self.num_out if self.down_trains or self.gradient_in else 0
        return self.trained_size + through_up + self.gradient_in


def _note(found: list[_Adapter], up: Any) -> Callable[..., None]:
    def hook(down: Any, inputs: tuple[torch.Tensor, ...], inner: torch.Tensor) -> None:
        rank, num_in = down.weight.shape
        found.append(
            _Adapter(
                rank=rank,
                num_in=num_in,
                num_out=up.weight.shape[0],
                num_rows=inner.numel() // rank,
                gradient_in=num_in if inputs[0].requires_grad else 0,
                element_bytes=down.weight.element_size(),
                inner_bytes=inner.element_size(),
                down_trains=down.weight.requires_grad,
            )
        )

    return hook


def _minus(module: Module, rank: int, slope: LoraLoad) -> Module:
    """What is left of a module that was measured at ``rank``."""
    return Module(
        name=module.name,
        forward_flops=module.forward_flops - rank * slope.forward_flops,
        backward_flops=module.backward_flops - rank * slope.backward_flops,
        parameter_bytes=module.parameter_bytes - rank * slope.parameter_bytes,
        trainable_bytes=module.trainable_bytes - rank * slope.trained_bytes,
        optimiser_bytes=module.optimiser_bytes - rank * slope.optimiser_bytes,
        activation_bytes=module.activation_bytes - rank * slope.activation_bytes,
        working_bytes=module.working_bytes,
        output_bytes=module.output_bytes,
        modality=module.modality,
        lora=slope,
    )


def _num_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _undisturbed(lam: LAM) -> Iterator[None]:
    """Modes and torch's random state are afterwards as before."""
    modes: Mapping[nn.Module, bool] = {module: module.training for module in lam.modules()}
    cuda = sorted({p.device.index or 0 for p in lam.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
