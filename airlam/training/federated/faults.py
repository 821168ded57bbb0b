"""Simulated faults: a transport and a pace in which some devices fail, lie or dawdle."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from airlam.specs import FaultSpec
from airlam.split.failures import NodeFailure
from airlam.split.messages import Message, Tensors
from airlam.split.pace import Pace
from airlam.split.payload import SCALE
from airlam.split.timeline import Phase
from airlam.split.transport import Answer, Transport

_SPOILT = ("gradient", "hidden", "features")  # beside weights, what a device sends of its own


class FaultyTransport:
    """Another transport, with the faults of ``round_index`` put in; what it counts and moves is its own."""

    def __init__(self, inner: Transport, faults: Sequence[FaultSpec]) -> None:
        self.inner, self.faults, self.width = inner, faults, inner.width
        self.round_index = -1  # before the first nothing fails
        self._sent: dict[int, tuple[str, Message]] = {}

    def submit(self, node: str, message: Message) -> int:
        """Sends on, and remembers to whom."""
        ticket = self.inner.submit(node, message)
        self._sent[ticket] = node, message
        return ticket

    def next_answer(self) -> tuple[int, Answer]:
        """The inner transport's, spoilt where a fault says so."""
        ticket, answer = self.inner.next_answer()
        node, asked = self._sent.pop(ticket)
        for fault in under_way(self.faults, node, self.round_index):
            if fault.kind == "lost":
                return ticket, NodeFailure(node=node, kind="lost", reason="it does not answer")
            if isinstance(answer, Message) and asked.header.operation in ("forward", "backward", "weights"):
                spoilt = _spoilt(answer.tensors, fault, all_of_it=asked.header.operation == "weights")
                answer = replace(answer, tensors=spoilt)
        return ticket, answer

    def restart(self, node: str) -> None:
        """The inner transport's; NodeFailure while the node is lost."""
        if any(fault.kind == "lost" for fault in under_way(self.faults, node, self.round_index)):
            raise NodeFailure(node=node, kind="lost", reason="it cannot be started")
        self.inner.restart(node)

    def close(self) -> None:
        """The inner transport's."""
        self.inner.close()


@dataclass(frozen=True, kw_only=True)
class FaultyPace:
    """Another pace, at which the work of slow devices takes longer."""

    inner: Pace
    faults: Sequence[FaultSpec]
    round_index: int

    def message_s(self, flow: str, sender: str, receiver: str, payload_bytes: float) -> float:
        """The inner pace's."""
        return self.inner.message_s(flow, sender, receiver, payload_bytes)

    def work_s(self, flow: str, node: str, modules: Iterable[str], phase: Phase) -> float:
        """The inner pace's, times the factors of the node's faults."""
        seconds = self.inner.work_s(flow, node, modules, phase)
        for fault in under_way(self.faults, node, self.round_index):
            seconds *= fault.factor if fault.kind == "slow" else 1.0
        return seconds


def under_way(faults: Sequence[FaultSpec], device: str, round_index: int) -> list[FaultSpec]:
    """A device's faults in a round."""
    return [f for f in faults if f.device == device and f.first_round <= round_index <= f.last_round]


def _spoilt(tensors: Tensors, fault: FaultSpec, *, all_of_it: bool) -> Tensors:
    return {
        name: _wrong(value, fault) if all_of_it or name.removesuffix(SCALE) in _SPOILT else value
        for name, value in tensors.items()
    }


def _wrong(value: torch.Tensor, fault: FaultSpec) -> torch.Tensor:
    if fault.kind == "shape":
        return value[:-1]
    if fault.kind == "nan" and value.is_floating_point():
        return value * float("nan")
    if fault.kind == "huge" and value.is_floating_point():
        return value * fault.factor
    return value
