"""Nodes as Ray actors, on this machine or on many.

Only bytes go in and out of an actor: messages as ``airlam.split.messages`` encodes them, and plain JSON for
how to build a node. Weights go to each actor once, its own and no others. Who may reach the actors is told in
``airlam.ray_cluster``.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from airlam.errors import AirlamError, DataError, SpecError
from airlam.ray_cluster import connect, first_line
from airlam.split.failures import NodeFailure
from airlam.split.messages import Header, Message, MessageError, decode, encode, header_bytes
from airlam.split.node import SplitNode
from airlam.split.recipes import NodeRecipe, named
from airlam.split.transport import Answer

BUILD_S = 300.0  # for an actor to find its place, import torch and take its weights
_TRACE = 1e-3  # of a resource that only says where; Ray counts no less than 1e-4
_ERROR = "error"
_ERRORS: dict[str, type[AirlamError]] = {
    kind.__name__: kind for kind in (MessageError, DataError, SpecError, AirlamError)
}


class RayTransport:
    """Nodes as actors, one process each.

    address: ``local`` starts Ray here and ends it on ``close``; otherwise what ``ray.init`` takes. A process
    that is connected already stays so. recipes: by node. resources: by node, what Ray calls so, to say which
    machine it runs on; None: a node runs where its own name is lent as a resource (``ray start --resources
    '{"NODE": 1}'``), or anywhere. answer_s: how long a node may take before it counts as late.
    Raises DataError where Ray is absent or out of reach, NodeFailure where an actor finds no place.
    """

    def __init__(
        self,
        address: str,
        recipes: Mapping[str, NodeRecipe],
        *,
        resources: Mapping[str, Mapping[str, float]] | None = None,
        answer_s: float = 60.0,
        threads: int = 1,
    ) -> None:
        self._ray, self._owned = connect(address, num_cpus=len(recipes))  # workers start for as many at once
        self._recipes = dict(recipes)
        self._resources = dict(_lent(self._ray, recipes) if resources is None else resources)
        self.answer_s, self._threads = answer_s, threads
        self._under_way: dict[Any, _Waiting] = {}
        self._num_submitted = 0
        self.width = len(self._recipes)
        self.header_bytes = 0
        """Of all messages so far, both ways; payloads are counted where they travel between nodes."""
        self._actors: dict[str, Any] = {}
        self._building: dict[str, Any] = {}
        try:
            for node in self._recipes:
                self._start(node)
            for node in self._recipes:
                self._assign(node)
        except BaseException:
            self.close()
            raise

    def submit(self, node: str, message: Message) -> int:
        """Sends a message to an actor."""
        if node not in self._actors:
            raise SpecError(f"no node {node!r}; there are {', '.join(self._actors)}")
        data = encode(message)
        self.header_bytes += header_bytes(data)
        self._num_submitted += 1
        reference = self._actors[node].handle.remote(data)
        deadline = time.monotonic() + self.answer_s
        self._under_way[reference] = _Waiting(ticket=self._num_submitted, node=node, deadline=deadline)
        return self._num_submitted

    def next_answer(self) -> tuple[int, Answer]:
        """Waits for any actor; one that takes longer than ``answer_s`` has answered that it is late."""
        first = min(waiting.deadline for waiting in self._under_way.values())
        patience_s = max(0.0, first - time.monotonic())
        ready, _ = self._ray.wait(list(self._under_way), num_returns=1, timeout=patience_s)
        if not ready:
            late = min(self._under_way, key=lambda reference: self._under_way[reference].deadline)
            waiting = self._under_way.pop(late)
            reason = f"no answer within {self.answer_s:g} s"
            return waiting.ticket, NodeFailure(node=waiting.node, kind="late", reason=reason)
        waiting = self._under_way.pop(ready[0])
        return waiting.ticket, self._answer(ready[0], waiting.node)

    def restart(self, node: str) -> None:
        """A new actor with the node's first weights; what the old one had under way is answered as lost."""
        self._ray.kill(self._actors[node], no_restart=True)
        self._start(node)
        self._assign(node)

    def process_id(self, node: str) -> int:
        """Of the actor, on its machine."""
        found: int = self._ray.get(self._actors[node].process_id.remote())
        return found

    def busy_s(self) -> dict[str, float]:
        """Wall time that each actor has spent on messages, reading and writing them included."""
        return {node: self._ray.get(actor.busy_s.remote()) for node, actor in self._actors.items()}

    def close(self) -> None:
        """Ends the actors, and Ray where it was started here."""
        for actor in self._actors.values():
            self._ray.kill(actor, no_restart=True)
        self._actors.clear()
        if self._owned:
            self._ray.shutdown()

    def _start(self, node: str) -> None:
        """A new actor; it is built while others are started."""
        recipe, placed = self._recipes[node], self._ray.remote(num_cpus=0, max_restarts=0)(_NodeActor)
        if node in self._resources:
            placed = placed.options(resources=dict(self._resources[node]))
        actor = self._actors[node] = placed.remote()
        arguments = json.dumps({**recipe.arguments, "name": node})
        self._building[node] = actor.build.remote(recipe.factory, arguments, self._threads)

    def _assign(self, node: str) -> None:
        """Waits until an actor is built and has its weights; raises where it cannot be."""
        weights = Message(header=Header(operation="assign"), tensors=self._recipes[node].weights)
        references = [self._building.pop(node), self._actors[node].handle.remote(encode(weights))]
        _, waiting = self._ray.wait(references, num_returns=len(references), timeout=BUILD_S)
        if waiting:
            wanted = f"; has the cluster {dict(self._resources[node])}?" if node in self._resources else ""
            reason = f"it was not built within {BUILD_S:g} s{wanted}"
            raise NodeFailure(node=node, kind="late", reason=reason)
        for reference in references:
            answer = self._answer(reference, node)
            if not isinstance(answer, Message):
                raise answer

    def _answer(self, reference: Any, node: str) -> Answer:
        """What came back; raises what an actor raised, but for a message that it rejected."""
        try:
            data = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            return NodeFailure(node=node, kind="lost", reason=first_line(error))
        self.header_bytes += header_bytes(data)
        try:
            message = decode(data)
        except MessageError as error:
            return NodeFailure(node=node, kind="rejected", reason=str(error))
        if message.header.operation != _ERROR:
            return message
        kind = _ERRORS.get(message.header.flow, AirlamError)
        if kind is MessageError:
            return MessageError(message.header.text)
        raise kind(message.header.text)


def _lent(ray: Any, nodes: Iterable[str]) -> dict[str, dict[str, float]]:
    """Of the nodes those whose names are resources of the cluster."""
    lent = ray.cluster_resources()
    return {node: {node: _TRACE} for node in nodes if node in lent}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """A message without its answer; deadline: on the monotonic clock."""

    ticket: int
    node: str
    deadline: float


class _NodeActor:
    """A node in a process of its own: bytes in, bytes out."""

    def __init__(self) -> None:
        self._node: SplitNode | None = None
        self._busy_s = 0.0

    def build(self, factory: str, arguments: str, threads: int) -> bytes:
        """Makes the node; its weights come as a message."""
        torch.set_num_threads(threads)

        def make(message: Message) -> Message:
            self._node = named(factory)(**json.loads(arguments))
            return message

        return _encoded(make, Message(header=Header(operation="build")))

    def handle(self, data: bytes) -> bytes:
        """One message and its answer; what a user can mend is an answer too."""
        assert self._node is not None  # Ray keeps the order of a caller's messages
        start = time.perf_counter()
        answer = _encoded(self._node.handle, data)
        self._busy_s += time.perf_counter() - start
        return answer

    def busy_s(self) -> float:
        """Spent in ``handle`` so far."""
        return self._busy_s

    def process_id(self) -> int:
        """For whoever watches it."""
        return os.getpid()


def _encoded(operation: Callable[[Message], Message], given: Message | bytes) -> bytes:
    try:
        return encode(operation(decode(given) if isinstance(given, bytes) else given))
    except tuple(_ERRORS.values()) as error:
        return encode(Message(header=Header(operation=_ERROR, flow=type(error).__name__, text=str(error))))
