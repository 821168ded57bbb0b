"""What goes wrong at a node while others go on."""

from typing import Literal

from airlam.errors import AirlamError

FailureKind = Literal["lost", "late", "rejected"]


class NodeFailure(AirlamError):
    """A node, its link or its message failed; whether the round goes on without it is the caller's choice.

    kind: ``lost``, its process or link is gone; ``late``, it has not answered in time; ``rejected``, what it
    sent is not what it should be. Only the last is the node's own doing.
    """

    def __init__(self, *, node: str, kind: FailureKind, reason: str) -> None:
        super().__init__(f"{node} is {kind}: {reason}")
        self.node, self.kind, self.reason = node, kind, reason
