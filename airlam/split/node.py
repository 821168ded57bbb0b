"""One node of a split LAM: it holds some modules, runs its stages of each flow, and updates its own weights.

A node knows messages only; who sends them and how they travel is the transport's. Gradients are kept apart by
flow until a ``step`` says how to weigh them, so that a flow may still be left out. ``hold`` gives a node
samples of its own, ``drop`` has it forget what is under way; ``weights`` and ``assign`` mean those that train
where the header wants ``trained``.

| operation | takes | answers |
|---|---|---|
| hold | features, mask, context.* | |
| forward | sample_ids, or what came before | features or hidden; at the end output, or loss, gradient |
| backward | gradient | gradient where the stages before it train, norm |
| step | weights of the flows; learning_rate, max_gradient_norm | |
| drop | | |
| weights, assign | tensors by the LAM's names | those of the header's modules, or all |
| state, restore | what training changes here | the same |
"""

from collections.abc import Callable

import torch
from torch import nn

from airlam.model.backbone import seeded
from airlam.model.lam import LAM
from airlam.model.storage import assign_tensors
from airlam.split.flow_state import FlowGradients, FlowState, Pending, lacking, tensor_of, tokens_of
from airlam.split.messages import Header, Message, MessageError, TensorField, Tensors, check_tensor
from airlam.split.node_state import restore_state, state_tensors
from airlam.split.part import EMBEDDING, HEAD, TOKENIZER, LamPart, needs_mask
from airlam.split.payload import ErrorFeedback, pack, unpack
from airlam.split.sample_cache import SampleCache
from airlam.split.streams import stream_seed
from airlam.tokens.base import TokenBatch

Loss = Callable[[LAM, Tensors, Tensors], torch.Tensor]
"""(LAM, the head's output, its context) -> float32 [batch], the loss of each sample."""
MakeOptimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def nmse_loss(lam: LAM, output: Tensors, context: Tensors) -> torch.Tensor:
    """Error energy over target energy of each link, float32 [batch]; the context needs a target."""
    error, energy = lam.head().squared_error(output, context)
    return error / energy.clamp_min(torch.finfo(torch.float32).tiny)


class SplitNode:
    """Modules, samples, gradients and an optimiser of one node.

    make_optimiser: for the parameters that train here; not called where there are none. seed: with step, flow
    and stage it decides what dropout draws (on a CPU), whatever else this process draws.
    """

    def __init__(
        self, name: str, part: LamPart, loss: Loss, make_optimiser: MakeOptimiser, *, seed: int = 0
    ) -> None:
        self.name, self.part, self.loss, self._seed = name, part, loss, seed
        self.parameters = list(part.trainable.values())
        self.optimiser = make_optimiser(self.parameters) if self.parameters else None
        self.cache = SampleCache()
        self._samples: TokenBatch | None = None
        self._flows: dict[str, FlowState] = {}
        self._gradients: dict[str, FlowGradients] = {}
        self._feedback: dict[str, ErrorFeedback] = {}
        self._operations = {
            "hold": self._hold,
            "forward": self._forward,
            "backward": self._backward,
            "step": self._step,
            "drop": self._drop,
            "weights": self._weights,
            "assign": self._assign,
            "state": self._state,
            "restore": self._restore,
        }

    def handle(self, message: Message) -> Message:
        """Does what the header asks; MessageError where the message is not fit for it."""
        operation = self._operations.get(message.header.operation)
        if operation is None:
            raise MessageError(f"{self.name} knows no operation {message.header.operation!r}")
        return Message(header=message.header, tensors=operation(message))

    def _hold(self, message: Message) -> Tensors:
        self._samples = tokens_of(message.tensors, self.part.lam.tokenizer.num_features)
        return {}

    def _forward(self, message: Message) -> Tensors:
        header = message.header
        foreign = [name for name in header.modules if name not in self.part.modules]
        if foreign or not header.modules:
            raise MessageError(f"{self.name} does not hold {', '.join(foreign) or 'a stage without modules'}")
        flow = self._flow(header)
        if header.modules[0] == TOKENIZER:
            return self._first_stage(message, flow)
        lam, is_first = self.part.lam, header.modules[0] == EMBEDDING
        name, size = ("features", lam.tokenizer.num_features) if is_first else ("hidden", lam.backbone.width)
        inputs = flow.take(message.tensors, name, size, header.flow, self.cache)
        if flow.mask is None and needs_mask(header.modules):
            raise lacking(message.tensors, "mask")
        return self._run(header, flow, {name: inputs})

    def _first_stage(self, message: Message, flow: FlowState) -> Tensors:
        """The stage that starts at this node's samples; with ``fresh``, only those rows go through it.

        Rows that are kept elsewhere pass a frozen stage once, without dropout, and are not sent again.
        """
        header, fresh = message.header, message.tensors.get("fresh")
        if self._samples is None:
            raise MessageError(f"{self.name} holds no samples; send it a hold first")
        tokens = flow.start(self._samples, message.tensors)
        if fresh is None:
            return self._run(header, flow, {"features": tokens.features})
        context = flow.extras({"context"} & set(header.wants))
        if not fresh.any():
            return context
        rows = tokens.select(fresh)
        passing = FlowState(step=header.step, mask=rows.mask)
        return context | self._run(header, passing, {"features": rows.features}, frozen=True)

    def _run(self, header: Header, flow: FlowState, state: Tensors, *, frozen: bool = False) -> Tensors:
        """A stage, and what is sent of its result."""
        (name, inputs), needs_gradient = next(iter(state.items())), "gradient" in header.wants
        tracked = header.training and not frozen
        if tracked and needs_gradient:
            inputs = inputs.detach().requires_grad_()
        if self.part.lam.training != tracked:
            self.part.lam.train(tracked)
        dropout_seed = stream_seed(self._seed, header.step, header.flow, header.modules[0])
        with torch.set_grad_enabled(tracked), seeded(dropout_seed):
            result = self.part.run(header.modules, {name: inputs, **flow.tensors})
            if header.modules[-1].startswith(HEAD):
                return self._finish(header, flow, inputs if needs_gradient else None, result)
        name = "features" if header.modules[-1] == TOKENIZER else "hidden"
        output = result[name]
        if output.requires_grad:
            flow.pending[header.modules] = Pending(inputs=inputs if needs_gradient else None, output=output)
        return pack(name, output.detach(), header.precision) | flow.extras(header.wants)

    def _finish(
        self, header: Header, flow: FlowState, inputs: torch.Tensor | None, output: Tensors
    ) -> Tensors:
        """The end of a flow: the head's output, or in training the loss and the first gradient."""
        if not header.training:
            return output
        loss = self.loss(self.part.lam, output, flow.context).mean()
        sent = self._differentiate(header, flow, Pending(inputs=inputs, output=loss), None)
        return sent | {"loss": loss.detach()}

    def _backward(self, message: Message) -> Tensors:
        header, flow = message.header, self._flow(message.header)
        pending = flow.pending.pop(header.modules, None)
        if pending is None:
            raise MessageError(
                f"{self.name} has no forward of {', '.join(header.modules)} for {header.flow} in step "
                f"{header.step}"
            )
        gradient = unpack(message.tensors, "gradient")
        check_tensor("gradient", gradient, TensorField.of(torch.float32, *pending.output.shape))
        return self._differentiate(header, flow, pending, gradient)

    def _differentiate(
        self, header: Header, flow: FlowState, pending: Pending, gradient: torch.Tensor | None
    ) -> Tensors:
        """Gradients of a stage: those of weights stay here, that of its input is sent."""
        own = self.part.trainable_of(header.modules)
        targets = [*own, *([] if pending.inputs is None else [pending.inputs])]
        if not targets:
            return {}
        found = list(torch.autograd.grad(pending.output, targets, gradient, allow_unused=True))
        upstream = None if pending.inputs is None else found.pop()
        sent = {} if upstream is None else self._packed_gradient(header, flow, upstream)
        kept = self._gradients.get(header.flow)
        if kept is None or kept.step != header.step:  # those of a round that this node was left out of
            kept = self._gradients[header.flow] = FlowGradients(step=header.step)
        kept.by_parameter.update({p: g for p, g in zip(own, found, strict=True) if g is not None})
        return sent | {"norm": nn.utils.get_total_norm(kept.by_parameter.values())}

    def _packed_gradient(self, header: Header, flow: FlowState, gradient: torch.Tensor) -> Tensors:
        feedback = self._feedback.setdefault(f"{header.flow}/{header.modules[0]}", ErrorFeedback())
        return pack("gradient", gradient, header.precision, feedback, flow.sample_ids)

    def _step(self, message: Message) -> Tensors:
        """Averages the gradients of the header's flows and takes one optimiser step."""
        flows, tensors = message.header.flows, message.tensors
        given = tensor_of(tensors, "weights", TensorField.of(torch.float64, len(flows)))
        weights = dict(zip(flows, given.tolist(), strict=True))
        if self.optimiser is not None:
            for name in flows:
                if name not in self._gradients or self._gradients[name].step != message.header.step:
                    raise MessageError(
                        f"{self.name} has no gradients of {name} in step {message.header.step}"
                    )
            self._update(self.optimiser, weights, tensors)
        return self._drop(message)

    def _update(self, optimiser: torch.optim.Optimizer, weights: dict[str, float], options: Tensors) -> None:
        for parameter in self.parameters:
            found = [(w, self._gradients[flow].by_parameter.get(parameter)) for flow, w in weights.items()]
            parts = [(weight, gradient) for weight, gradient in found if gradient is not None]
            parameter.grad = _weighted_sum(parts) if parts else None
        if "max_gradient_norm" in options:
            nn.utils.clip_grad_norm_(self.parameters, options["max_gradient_norm"].item())
        if "learning_rate" in options:
            for group in optimiser.param_groups:
                group["lr"] = options["learning_rate"].item()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def _drop(self, message: Message) -> Tensors:
        self._flows.clear()
        self._gradients.clear()
        return {}

    def _weights(self, message: Message) -> Tensors:
        return {name: value.clone() for name, value in self._chosen(message.header).items()}

    def _assign(self, message: Message) -> Tensors:
        assign_tensors(self._chosen(message.header), message.tensors, f"what {self.name} is sent")
        return {}

    def _chosen(self, header: Header) -> Tensors:
        own = self.part.tensors_of(header.modules or self.part.modules)
        return {
            name: v for name, v in own.items() if "trained" not in header.wants or name in self.part.trainable
        }

    def _state(self, message: Message) -> Tensors:
        return state_tensors(self.part, self.optimiser, self._feedback)

    def _restore(self, message: Message) -> Tensors:
        self._feedback = restore_state(self.part, self.optimiser, message.tensors, self.name)
        return self._drop(message)

    def _flow(self, header: Header) -> FlowState:
        """The flow's batch; a new one where the step is new."""
        found = self._flows.get(header.flow)
        if found is None or found.step != header.step:
            found = self._flows[header.flow] = FlowState(step=header.step)
        return found


def _weighted_sum(parts: list[tuple[float, torch.Tensor]]) -> torch.Tensor:
    if len(parts) == 1 and parts[0][0] == 1.0:
        return parts[0][1]
    return torch.stack([weight * gradient for weight, gradient in parts]).sum(0)
