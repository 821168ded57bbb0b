"""Placements that follow load and channels, their moves within a long-run budget of bytes.

Slot after slot the placement minimises V * value + Z * (bytes moved / budget) by local search from the
placement of the slot before, and from a greedy one; Z is a virtual queue of what was moved beyond the budget,

    Z <- max(Z + moved / budget - 1, 0),

so the mean moved over T slots is at most budget * (1 + Z / T). Staying is among what the search compares, so
a move is made only where V times its gain exceeds Z times its bytes: Z stays below
V * (largest gain in value) * budget / (smallest instance) + (largest move) / budget, and the loss against the
best moves falls as 1 / V. A library call: ``airlam place`` places once, and no command migrates.
Reconstructed, after the drift-plus-penalty migration that Wang et al. (2505.00321) describe in prose.
"""

import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from airlam.specs import require
from airlam.split.placement.search import Running, Search, greedy, nearest
from airlam.split.placement.services import Placement
from airlam.split.placement.solve import infeasible
from airlam.split.placement.tables import Bools, Ints, Room, Tables

_NUM_KICKS = 3
_SEARCH_SHARE = 0.8  # of the time; the rest is for saying why there is no placement


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
    """The placement of the next slot, whose loads, channels, nodes and classes ``tables`` have.

    Limits come first: where staying would break them, it moves whatever the queue says. Calls whose node has
    gone, or is no longer reached, start on the nearest that they may take. Raises InfeasiblePlacement where
    no placement is found within the limits. Instances that nobody needs stay while there is room for them.
    """
    stop_s, before = time.monotonic() + time_limit_s, _running(tables, current)
    running = Running(held=before, move_s_per_byte=migration.move_s_per_byte)
    search = Search(tables, generator, time_limit_s=_SEARCH_SHARE * time_limit_s, running=running)
    (excess, _), at = search.best_from([_mended(tables, current), greedy(tables)], _NUM_KICKS)
    held = search.hosts(at)
    if excess > 0 or held is None:
        raise infeasible(tables, max(stop_s - time.monotonic(), 0.0))
    moved = float((held & ~before).sum(axis=1) @ tables.weight_bytes)
    return Slot(
        placement=tables.placement(at, _kept(tables, held, before)),
        value_s=float(tables.price(at[None]).value_s[0]),
        moved_bytes=moved,
        migration=migration.after(moved),
    )


def _running(tables: Tables, current: Placement) -> Bools:
    """Instances of a placement that nodes of this slot have: [num_services, num_nodes]."""
    hosts = {
        service: tuple(node for node in current.hosts.get(service, ()) if node in tables.node_index)
        for service in tables.services
    }
    return tables.held_of(Placement(hosts=hosts, routes={}))


def _mended(tables: Tables, current: Placement) -> Ints:
    """The node of each call [num_calls] as before where it may still run there, else the nearest."""
    at = nearest(tables)
    for k, (n, service) in enumerate(tables.calls):
        name = current.routes.get(tables.problem.classes[n].name, {}).get(service, "")
        if tables.node_index.get(name, -1) in tables.allowed[k]:
            at[k] = tables.node_index[name]
    return at


def _kept(tables: Tables, held: Bools, before: Bools) -> Bools:
    """The instances needed and those from before that fit beside them, small ones first."""
    kept, room = held.copy(), Room(tables, held)
    for m in np.argsort(tables.instance_bytes, kind="stable"):
        for v in np.flatnonzero(before[m] & ~held[m]):
            if room.fits(int(m))[v]:
                kept[m, v] = True
                room.take(int(m), int(v))
    return kept
