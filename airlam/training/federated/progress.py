"""A round under way: who is still in it, who left it and why, and how long each has taken."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from airlam.split.failures import NodeFailure
from airlam.split.radio_link import VirtualClock

_ROUNDING = 1e-9  # relative, of times that were added up in another order


@dataclass(slots=True)
class RoundProgress:
    """One round under way.

    status: of every device. elapsed_s: of each scheduled one since the round began. active: those still in
    it. quorum: share of the scheduled that must come through.
    """

    status: dict[str, str]
    elapsed_s: dict[str, float]
    active: list[str]
    deadline_s: float
    quorum: float
    losses: list[float] = field(default_factory=list)
    gave_up_at_s: float = 0.0  # how long the server waited for those that failed

    def leave_out(self, reasons: Mapping[str, str], *, waited: bool) -> None:
        """These take no further part; ``waited``: the server noticed at the deadline only."""
        self.status.update(reasons)
        self.active = [name for name in self.active if name not in reasons]
        if reasons and waited:
            self.gave_up_at_s = self.deadline_s

    def note(self, failures: Mapping[str, NodeFailure]) -> set[str]:
        """Leaves out the devices that failed, and those that are late by now; returns those that are lost.

        Raises the failure of a node that is no device of its own flow: the server.
        """
        own = {device: f for device, f in failures.items() if f.node == device}
        for failure in (f for device, f in failures.items() if device not in own):
            raise failure
        silent = {device: str(f) for device, f in own.items() if f.kind != "rejected"}
        self.leave_out(silent, waited=True)
        self.leave_out({d: str(f) for d, f in own.items() if d not in silent}, waited=False)
        late = {
            d: f"late: {self.elapsed_s[d]:.3g} s, the deadline was {self.deadline_s:.3g} s"
            for d in self.active
            if self.elapsed_s[d] > self.deadline_s * (1 + _ROUNDING)
        }
        self.leave_out(late, waited=True)
        return {device for device, f in own.items() if f.kind == "lost"}

    def is_quorum(self, devices: Collection[str]) -> bool:
        """Whether so many are enough; nobody never is."""
        return len(devices) >= max(1, math.ceil(self.quorum * len(self.elapsed_s)))


class Timed:
    """Inside, every active device starts at the same moment; what each took is added to its own time."""

    def __init__(self, clock: VirtualClock, progress: RoundProgress) -> None:
        self._seconds, self._progress = clock.seconds, progress

    def __enter__(self) -> None:
        self._seconds.update(dict.fromkeys([*self._seconds, *self._progress.elapsed_s], 0.0))

    def __exit__(self, *_: object) -> None:
        for device in self._progress.active:
            self._progress.elapsed_s[device] += self._seconds[device]
