"""How a session reaches its nodes, and the default: nodes in this process."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from airlam.errors import SpecError
from airlam.split.failures import NodeFailure
from airlam.split.messages import Message, MessageError
from airlam.split.node import SplitNode

Answer = Message | NodeFailure | MessageError


class Transport(Protocol):
    """Nodes by name.

    Several messages may be under way; ``width`` says how many at a time are worth it. An answer that is a
    NodeFailure tells that the node is lost or late, a MessageError that it rejected what it was sent.
    """

    width: int

    def submit(self, node: str, message: Message) -> int:
        """Sends a message; the ticket comes back with its answer."""
        ...

    def next_answer(self) -> tuple[int, Answer]:
        """The next answer to anything submitted, in any order, and its ticket."""
        ...

    def restart(self, node: str) -> None:
        """Puts a fresh node, with the weights that it was first given, in the place of a lost one."""
        ...

    def close(self) -> None:
        """Ends all nodes."""
        ...


def ask(transport: Transport, node: str, message: Message) -> Message:
    """One message and its answer, raised where it is a failure; answers to anything else are dropped."""
    wanted = transport.submit(node, message)
    ticket, answer = transport.next_answer()
    while ticket != wanted:
        ticket, answer = transport.next_answer()
    if isinstance(answer, Message):
        return answer
    raise answer


def ray_address(transport: str) -> str | None:
    """What a transport's name means: None for ``inprocess``, else where Ray is (``ray``: ``local``)."""
    kind, _, address = transport.partition(":")
    if transport == "inprocess":
        return None
    if kind != "ray" or transport == "ray:":
        raise SpecError(f"transport is {transport!r}; expected inprocess, ray or ray:HOST:PORT")
    return address or "local"


class InProcess:
    """Nodes in this process, one flow after another.

    Tensors are handed over as they are: no bytes are made and nothing is copied, but every node checks what
    it is given, and what is rounded for a link is rounded here too. Only safetensors' headers are missing.
    """

    width = 1

    def __init__(self, names: Iterable[str], make_node: Callable[[str], SplitNode]) -> None:
        self._make = make_node
        self.nodes = {name: make_node(name) for name in names}
        self._waiting: deque[tuple[int, str, Message]] = deque()
        self._num_submitted = 0

    def submit(self, node: str, message: Message) -> int:
        """Keeps the message until its answer is asked for."""
        if node not in self.nodes:
            raise SpecError(f"no node {node!r}; there are {', '.join(self.nodes)}")
        self._num_submitted += 1
        self._waiting.append((self._num_submitted, node, message))
        return self._num_submitted

    def next_answer(self) -> tuple[int, Answer]:
        """Runs the oldest message that waits."""
        ticket, node, message = self._waiting.popleft()
        try:
            return ticket, self.nodes[node].handle(message)
        except MessageError as error:
            return ticket, error

    def restart(self, node: str) -> None:
        """Makes the node anew."""
        self.nodes[node] = self._make(node)

    def close(self) -> None:
        """Drops all nodes."""
        self.nodes.clear()
