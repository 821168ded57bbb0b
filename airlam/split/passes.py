"""One flow's way through its stages, as messages one after another; and many flows' ways at once."""

from collections import deque
from collections.abc import Generator, Mapping, Sequence

import torch

from airlam.split.failures import NodeFailure
from airlam.split.flow_state import CONTEXT
from airlam.split.messages import Header, Message, MessageError, Tensors
from airlam.split.payload import SCALE
from airlam.split.radio_link import Air
from airlam.split.routes import Route
from airlam.split.timeline import Phase
from airlam.split.transport import Answer, Transport

NORM = "norm/"  # before a node's name
GRADIENT = ("gradient", "gradient" + SCALE)
Exchange = Generator[tuple[str, Message], Message, Tensors]
"""Yields messages with the nodes that they are for, is sent the answers, and returns what came of it."""


class FlowPass:
    """One pass of one flow: carries what its nodes send from one to the next.

    kept: samples whose rows of a frozen first stage the second stage's node has; None where none are kept.
    """

    def __init__(self, route: Route, air: Air, step: int, kept: set[int] | None) -> None:
        self.route, self.air, self.step = route, air, step
        self._kept = kept

    def train(self, ids: torch.Tensor) -> Exchange:
        """Forward through all stages, then back as far as anything trains."""
        route, answer = self.route, (yield from self.forward(ids, training=True))
        result = {"loss": self._loss(answer)}
        for index in reversed(range(len(route.stages))):
            stage = route.stages[index]
            if stage is not route.stages[-1]:
                answer = yield from self._backward(index, answer)
            self._work(stage.node, route.differentiated(index), "backward")
            if "norm" in answer:
                result[NORM + stage.node] = answer["norm"]
            if not route.trains_before(index):
                break
        return result

    def forward(self, ids: torch.Tensor, *, training: bool) -> Exchange:
        """Through all stages, over the samples at ``ids`` (int64 [batch]); what the last one answers."""
        stages, start = self.route.stages, self._first_input(ids)
        answer = yield from self._asked(0, forward_header(self.route, 0, self.step, training), start, None)
        if "fresh" not in start or start["fresh"].any():
            self._work(stages[0].node, stages[0].modules, "forward")
        if len(stages) == 1:
            return answer
        context = {name: value for name, value in answer.items() if name.startswith(CONTEXT)}
        sent = {name: value for name, value in answer.items() if name not in context}
        sent |= start if "fresh" in start else {}
        for index in range(1, len(stages)):
            sender, receiver = stages[index - 1].node, stages[index].node
            sent = self._carry(sent, sender, receiver)
            if index == len(stages) - 1:
                sent |= self._carry(context, stages[0].node, receiver)
            header = forward_header(self.route, index, self.step, training)
            sent = yield from self._asked(index, header, sent, sender)
            self._work(receiver, stages[index].modules, "forward")
            if index == 1 and self._kept is not None:
                self._kept.update(ids.tolist())
        return sent

    def _backward(self, index: int, answer: Tensors) -> Exchange:
        """The gradient of what comes after a stage goes back to it."""
        stage, sender = self.route.stages[index], self.route.stages[index + 1].node
        header = Header(
            operation="backward",
            flow=self.route.flow,
            step=self.step,
            modules=stage.modules,
            precision=stage.precision,
        )
        gradient = {name: value for name, value in answer.items() if name in GRADIENT}
        return self._asked(index, header, self._carry(gradient, sender, stage.node), sender)

    def _asked(self, index: int, header: Header, tensors: Tensors, sender: str | None) -> Exchange:
        """The answer of a stage's node; what it rejects is the failure of ``sender``."""
        node = self.route.stages[index].node
        try:
            answer = yield node, Message(header=header, tensors=tensors)
        except MessageError as error:
            if sender is None:
                raise
            raise NodeFailure(node=sender, kind="rejected", reason=str(error)) from None
        for name in answer.tensors:
            if not self._is_asked_for(name, index, header):
                raise NodeFailure(node=node, kind="rejected", reason=f"it sent {name!r}, unasked")
        return answer.tensors

    def _is_asked_for(self, name: str, index: int, header: Header) -> bool:
        """Whether an answer may hold a tensor of this name; the output of a head has names of its own."""
        kind = name.partition(".")[0]
        if header.operation == "backward":
            return kind in ("gradient", "norm")
        if index < len(self.route.stages) - 1:
            return kind in ("features", "hidden") or (kind in header.wants and kind != "gradient")
        return not header.training or kind in ("loss", "gradient", "norm")

    def _loss(self, answer: Tensors) -> torch.Tensor:
        """The loss in the last stage's answer; NodeFailure where it is no finite number."""
        loss = answer.get("loss")
        if loss is None or loss.numel() != 1 or not torch.isfinite(loss):
            node = self.route.stages[-1].node
            raise NodeFailure(
                node=node, kind="rejected", reason=f"its loss is {loss}; expected a finite number"
            )
        return loss

    def _first_input(self, ids: torch.Tensor) -> Tensors:
        """Which samples; where rows are kept at the next node, also which it has not yet."""
        if self._kept is None:
            return {"sample_ids": ids}
        fresh = torch.tensor([index not in self._kept for index in ids.tolist()])  # [batch]
        return {"sample_ids": ids, "fresh": fresh}

    def _carry(self, tensors: Tensors, sender: str, receiver: str) -> Tensors:
        return self.air.carry(tensors, flow=self.route.flow, step=self.step, sender=sender, receiver=receiver)

    def _work(self, node: str, modules: Sequence[str], phase: Phase) -> None:
        self.air.work(modules, flow=self.route.flow, node=node, phase=phase)


def drive(
    transport: Transport, exchanges: Mapping[str, Exchange]
) -> tuple[dict[str, Tensors], dict[str, NodeFailure]]:
    """Runs exchanges, as many at a time as the transport is wide; what each returned, or why it failed."""
    found: dict[str, Tensors] = {}
    failures: dict[str, NodeFailure] = {}
    waiting, under_way = deque(exchanges), dict[int, str]()
    while waiting or under_way:
        answer: Answer | None = None
        if waiting and len(under_way) < transport.width:
            flow = waiting.popleft()
        else:
            ticket, answer = transport.next_answer()
            if ticket not in under_way:
                continue  # the late answer to something given up
            flow = under_way.pop(ticket)
        try:
            node, message = _advance(exchanges[flow], answer)
            under_way[transport.submit(node, message)] = flow
        except StopIteration as end:
            found[flow] = end.value
        except NodeFailure as failure:
            failures[flow] = failure
    return found, failures


def _advance(exchange: Exchange, answer: Answer | None) -> tuple[str, Message]:
    """The next message of an exchange; StopIteration with its result where there is none."""
    if isinstance(answer, NodeFailure | MessageError):
        return exchange.throw(answer)
    return next(exchange) if answer is None else exchange.send(answer)


def forward_header(route: Route, index: int, step: int, training: bool) -> Header:
    """What a stage of a route is asked to do, and what it is to send on."""
    stages = route.stages
    is_last = index == len(stages) - 1
    wants = {
        "gradient": training and route.trains_before(index),
        "mask": not is_last and route.lacks_mask(index + 1),
        "context": index == 0 and route.context_travels,
    }
    return Header(
        operation="forward",
        flow=route.flow,
        step=step,
        modules=stages[index].modules,
        wants=tuple(name for name, wanted in wants.items() if wanted),
        precision=stages[index if is_last else index + 1].precision,
        training=training,
    )
