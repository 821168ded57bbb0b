"""What placement is compared with: simple rules, each with the router that belongs to it.

All but the monolith have as many replicas as ``ServiceProblem`` wants and share services between classes.
Where a rule finds no room it takes the node with most memory left, so that it can be compared at all.
"""

from collections.abc import Callable, Mapping

import numpy as np

from airlam.split.placement.routing import (
    LeastLoadedRouter,
    NearestRouter,
    PlannedRouter,
    RandomRouter,
    RoundRobinRouter,
    Router,
)
from airlam.split.placement.search import nearest
from airlam.split.placement.services import Placement
from airlam.split.placement.tables import Bools, Floats, Ints, Tables

Pick = Callable[[int, Ints, Floats], int]  # service, nodes with room, memory left -> node


def monolithic(tables: Tables) -> tuple[Placement, bool]:
    """Each class with modules of its own, all on one node; whether their memory fits.

    Classes in the order of their load, each on the node where the objective of those placed so far is lowest,
    among nodes with room for its own copies.
    """
    spare, at, fitted = tables.memory.copy(), nearest(tables), True
    weights = tables.instance_bytes[tables.call_service]
    work = np.bincount(tables.call_class, tables.rate[tables.call_class] * tables.work_s.min(axis=1))
    for n in np.argsort(-work, kind="stable"):
        own = np.flatnonzero(tables.call_class == n)
        common = [v for v in tables.allowed[own[0]] if all(v in tables.allowed[k] for k in own)]
        needed = weights[own].sum()
        fitting = [v for v in common if spare[v] >= needed]
        fitted = fitted and bool(fitting)
        nodes = np.array(fitting or common)
        candidates = np.repeat(at[None], len(nodes), axis=0)
        candidates[:, own] = nodes[:, None]
        priced = tables.price(candidates)
        best = np.lexsort((priced.value_s, priced.excess))[0]
        at = candidates[best]
        spare[nodes[best]] -= needed
    return tables.placement(at, tables.used(at[None])[0]), fitted


def ruled(tables: Tables, pick: Pick, *, fill: bool = False) -> Placement:
    """Replicas service by service, large ones first, where ``pick`` says; routes to the nearest of them.

    fill: after that, another of each service in turn where there is room, until there is none.
    """
    held = np.zeros((len(tables.services), len(tables.nodes)), dtype=bool)
    spare = tables.memory.copy()
    for m in np.argsort(-tables.instance_bytes, kind="stable"):
        for _ in range(int(tables.wanted[m])):
            free = np.flatnonzero(tables.may_host[m] & ~held[m])
            fitting = free[spare[free] >= tables.instance_bytes[m]]
            node = pick(int(m), fitting, spare) if len(fitting) else int(free[np.argmax(spare[free])])
            held[m, node] = True
            spare[node] -= tables.instance_bytes[m]
    while fill and _one_more_each(tables, pick, held, spare):
        pass
    return tables.placement(_nearest_held(tables, held), held)


def _one_more_each(tables: Tables, pick: Pick, held: Bools, spare: Floats) -> bool:
    """Adds a replica of each service that has room for one; whether any had."""
    added = False
    for m in np.argsort(-tables.instance_bytes, kind="stable"):
        fitting = np.flatnonzero(tables.may_host[m] & ~held[m] & (spare >= tables.instance_bytes[m]))
        if len(fitting):
            node = pick(int(m), fitting, spare)
            held[m, node] = added = True
            spare[node] -= tables.instance_bytes[m]
    return added


def _nearest_held(tables: Tables, held: Bools) -> Ints:
    """Each call on the instance nearest to its home."""
    at = []
    for k, nodes in enumerate(tables.allowed):
        there = np.array([v for v in nodes if held[tables.call_service[k], v]])
        if not len(there):
            there = nodes
        ways = tables.home[tables.call_class[k]] * len(tables.nodes) + there
        at.append(there[np.argmin(tables.way_latency_s[ways])])
    return np.array(at)


def near(tables: Tables) -> Pick:
    """The node from which the classes that pass the service are answered first, queues left out."""
    seconds = np.zeros((len(tables.services), len(tables.nodes)))
    size = np.array([max(one.input_bytes, one.output_bytes) for one in tables.problem.classes])
    for k, m in enumerate(tables.call_service):
        n = tables.call_class[k]
        ways = tables.home[n] * len(tables.nodes) + np.arange(len(tables.nodes))
        there = tables.way_latency_s[ways] + size[n] * (tables.way[ways] @ tables.byte_s)
        seconds[m] += tables.rate[n] * (there + np.where(np.isfinite(tables.work_s[k]), tables.work_s[k], 0))
    return lambda m, nodes, spare: int(nodes[np.argmin(seconds[m, nodes])])


def baselines(
    tables: Tables, generator: np.random.Generator, *, fill: bool = False
) -> Mapping[str, tuple[Placement, Router]]:
    """Every baseline's placement and a fresh router; fill: with as many replicas as there is room for."""
    turns = iter(range(10**9))
    picks: Mapping[str, Pick] = {
        "greedy": near(tables),
        "random": lambda m, nodes, spare: int(generator.choice(nodes)),
        "round_robin": lambda m, nodes, spare: int(nodes[next(turns) % len(nodes)]),
        "least_loaded": lambda m, nodes, spare: int(nodes[np.argmax(spare[nodes])]),
    }
    found = {name: ruled(tables, pick, fill=fill) for name, pick in picks.items()}
    alone, _ = monolithic(tables)
    return {
        "monolithic": (alone, PlannedRouter(tables, alone)),
        "greedy": (found["greedy"], NearestRouter(tables, found["greedy"])),
        "random": (found["random"], RandomRouter(tables, found["random"], generator)),
        "round_robin": (found["round_robin"], RoundRobinRouter(tables, found["round_robin"])),
        "least_loaded": (found["least_loaded"], LeastLoadedRouter(tables, found["least_loaded"])),
    }
