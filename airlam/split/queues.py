"""Virtual queues: what a long run has spent beyond its budgets so far."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airlam.errors import DataError
from airlam.specs import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Means over all rounds that must not be exceeded.

    delay_s: of a round. energy_j: of a device in a round, by device; those not named may spend what they
    like.
    """

    delay_s: float
    energy_j: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.delay_s > 0, f"the delay budget must be positive, got {self.delay_s} s")
        for device, budget in self.energy_j.items():
            require(budget > 0, f"the energy budget of {device} must be positive, got {budget} J")


@dataclass(frozen=True, slots=True, kw_only=True)
class Queues:
    """Backlogs in budgets, so numbers without unit: Q <- max(Q + spent / budget - 1, 0) after each round.

    The mean over T rounds exceeds its budget by at most a share backlog / T. Values only: ``after`` gives the
    next, and ``to_json`` what a checkpoint keeps.
    """

    num_rounds: int = 0
    delay: float = 0.0
    energy: Mapping[str, float] = field(default_factory=dict)

    def after(self, budgets: Budgets, delay_s: float, energy_j: Mapping[str, float]) -> "Queues":
        """The queues after a round that took and spent so much; devices not named spent nothing."""
        require(delay_s >= 0, f"a round took {delay_s} s; expected >= 0")
        return Queues(
            num_rounds=self.num_rounds + 1,
            delay=max(self.delay + delay_s / budgets.delay_s - 1, 0.0),
            energy={
                device: max(self.energy.get(device, 0.0) + energy_j.get(device, 0.0) / budget - 1, 0.0)
                for device, budget in budgets.energy_j.items()
            },
        )

    def to_json(self) -> str:
        """Text from which ``from_json`` makes the same queues to the bit."""
        return json.dumps({"num_rounds": self.num_rounds, "delay": self.delay, "energy": dict(self.energy)})

    @classmethod
    def from_json(cls, text: str) -> "Queues":
        """DataError where the text is not what ``to_json`` wrote."""
        try:
            values: dict[str, Any] = json.loads(text)
            found = cls(
                num_rounds=int(values["num_rounds"]),
                delay=float(values["delay"]),
                energy={str(name): float(backlog) for name, backlog in values["energy"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"these are no saved queues ({error}); start the schedule anew") from error
        backlogs = (found.delay, *found.energy.values())
        if found.num_rounds < 0 or not all(0 <= backlog < math.inf for backlog in backlogs):
            raise DataError("saved queues are negative or not finite; start the schedule anew")
        return found
