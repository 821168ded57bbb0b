"""What placement is compared with: simple rules, each with the router that belongs to it.

All but the monolith have as many replicas as ``ServiceProblem`` wants and share services between classes.
Where a rule finds no room it takes the node with most memory left, so that it can be compared at all.
"""

import functools
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from airlam.errors import SpecError
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
from airlam.split.placement.tables import Bools, Floats, Ints, Room, Tables

Pick = Callable[[int, Ints, Floats], int]  # service, nodes with room, memory left -> node


def monolithic(tables: Tables) -> tuple[Placement, bool]:
    """Each class with modules of its own, all on one node; whether memory and storage have room for them.

    Classes in the order of their load, each on the node where the objective of those placed so far is lowest,
    among nodes with room for its own copies. SpecError where no node may run all that a class passes.
    """
    room, at, fitted = Room(tables, _nothing(tables)), nearest(tables), True
    work = np.bincount(tables.call_class, tables.rate[tables.call_class] * tables.work_s.min(axis=1))
    for n in np.argsort(-work, kind="stable"):
        own = np.flatnonzero(tables.call_class == n)
        common, services = _nodes_of_all(tables, own), tables.call_service[own]
        fitting = common[room.fits(services)[common]]
        fitted = fitted and len(fitting) > 0
        nodes = fitting if len(fitting) else common
        candidates = np.repeat(at[None], len(nodes), axis=0)
        candidates[:, own] = nodes[:, None]
        priced = tables.price(candidates)
        best = np.lexsort((priced.value_s, priced.excess))[0]
        at = candidates[best]
        room.take(services, int(nodes[best]))
    return tables.placement(at, tables.used(at[None])[0]), fitted


def _nothing(tables: Tables) -> Bools:
    """No instance anywhere: [num_services, num_nodes]."""
    return np.zeros((len(tables.services), len(tables.nodes)), dtype=bool)


def _nodes_of_all(tables: Tables, calls: Ints) -> Ints:
    """The nodes that each of one class's calls may take."""
    common: Ints = functools.reduce(np.intersect1d, (tables.allowed[k] for k in calls))
    if not len(common):
        name = tables.problem.classes[tables.call_class[calls[0]]].name
        raise SpecError(
            f"no node may run all services of {name}, as a monolith must; pin them to one node too"
        )
    return common


def ruled(tables: Tables, pick: Pick, *, fill: bool = False) -> Placement:
    """Replicas service by service, large ones first, where ``pick`` says; routes to the nearest of them.

    fill: after that, another of each service in turn where there is room, until there is none.
    """
    held = _nothing(tables)
    room = Room(tables, held)
    for m in np.argsort(-tables.instance_bytes, kind="stable"):
        for _ in range(int(tables.wanted[m])):
            free = np.flatnonzero(tables.may_host[m] & ~held[m])
            fitting = free[room.fits(m)[free]]
            spare = room.memory_bytes
            node = pick(int(m), fitting, spare) if len(fitting) else int(free[np.argmax(spare[free])])
            held[m, node] = True
            room.take(m, node)
    while fill and _one_more_each(tables, pick, held, room):
        pass
    return tables.placement(_nearest_held(tables, held), held)


def _one_more_each(tables: Tables, pick: Pick, held: Bools, room: Room) -> bool:
    """Adds a replica of each service that has room for one; whether any had."""
    added = False
    for m in np.argsort(-tables.instance_bytes, kind="stable"):
        fitting = np.flatnonzero(tables.may_host[m] & ~held[m] & room.fits(m))
        if len(fitting):
            node = pick(int(m), fitting, room.memory_bytes)
            held[m, node] = added = True
            room.take(m, node)
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
    turns = itertools.count()
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
