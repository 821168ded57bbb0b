"""Placements that follow load and channels, their moves within a long-run budget of bytes.

Slot after slot the placement minimises V * value + Z * (bytes moved / budget) by local search from the
placement of the slot before; Z is a virtual queue of what was moved beyond the budget,

    Z <- max(Z + moved / budget - 1, 0),

so the mean moved over T slots is at most budget * (1 + Z / T). Staying is among what the search compares, so
a move is made only where V times its gain exceeds Z times its bytes: Z stays below
V * (largest gain in value) * budget / (smallest instance) + (largest move) / budget, and the loss against the
best moves falls as 1 / V.
Reconstructed, after the drift-plus-penalty migration that Wang et al. (2505.00321) describe in prose.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from airlam.specs import require
from airlam.split.placement.search import Running, Search
from airlam.split.placement.services import Placement
from airlam.split.placement.solve import infeasible
from airlam.split.placement.tables import Bools, Tables

_NUM_KICKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A long-run budget and the queue of what was moved beyond it; ``after`` gives the next slot's.

    budget_bytes: of weights brought to nodes, a slot, on average. weight_per_s: V, in budgets that a second
    of mean latency is worth. backlog: Z, in budgets.
    """

    budget_bytes: float
    weight_per_s: float
    backlog: float = 0.0

    def __post_init__(self) -> None:
        for key in ("budget_bytes", "weight_per_s"):
            require(getattr(self, key) > 0, f"{key} must be positive, got {getattr(self, key)}")
        require(self.backlog >= 0, f"backlog is {self.backlog}; expected >= 0")

    @property
    def move_s_per_byte(self) -> float:
        """What a byte moved is worth now, in seconds of mean latency."""
        return self.backlog / (self.weight_per_s * self.budget_bytes)

    def after(self, moved_bytes: float) -> "Migration":
        """The queue after a slot in which so much was moved."""
        backlog = max(self.backlog + moved_bytes / self.budget_bytes - 1, 0.0)
        return dataclasses.replace(self, backlog=backlog)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What was decided for one slot. value_s: of the placement, without the price of moves."""

    placement: Placement
    value_s: float
    moved_bytes: float
    migration: Migration


def migrate(
    tables: Tables,
    current: Placement,
    migration: Migration,
    generator: np.random.Generator,
    *,
    time_limit_s: float = 2.0,
) -> Slot:
    """The placement of the next slot, whose loads and channels ``tables`` have.

    Limits come first: where staying would break them, it moves whatever the queue says. Raises
    InfeasiblePlacement where no placement is found within them. Instances that nobody needs stay while there
    is room for them.
    """
    before = tables.held_of(current)
    running = Running(held=before, move_s_per_byte=migration.move_s_per_byte)
    search = Search(tables, generator, time_limit_s=time_limit_s, running=running)
    (excess, _), at = search.best_from([tables.nodes_of(current)], _NUM_KICKS)
    held = search.hosts(at)
    if excess > 0 or held is None:
        raise infeasible(tables)
    moved = float((held & ~before).sum(axis=1) @ tables.weight_bytes)
    return Slot(
        placement=tables.placement(at, _kept(tables, held, before)),
        value_s=float(tables.price(at[None]).value_s[0]),
        moved_bytes=moved,
        migration=migration.after(moved),
    )


def _kept(tables: Tables, held: Bools, before: Bools) -> Bools:
    """The instances needed and those from before that fit beside them, small ones first."""
    kept = held.copy()
    spare, room = tables.memory - tables.instance_bytes @ held, tables.storage - tables.weight_bytes @ held
    for m in np.argsort(tables.instance_bytes, kind="stable"):
        for v in np.flatnonzero(before[m] & ~held[m]):
            if spare[v] >= tables.instance_bytes[m] and room[v] >= tables.weight_bytes[m]:
                kept[m, v] = True
                spare[v] -= tables.instance_bytes[m]
                room[v] -= tables.weight_bytes[m]
    return kept
