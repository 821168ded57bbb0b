"""Two tiers in the setting of Zhu et al. (2601.19563): who answers more requests on time.

Parameters are drawn from the ranges of their table, where a byte of work counts as a FLOP; topology, chains,
mobility and slots are not known and are ours: a few servers and more devices, each pair joined by a wire
without latency, tasks of three to five services that begin with a light one, users whose access node changes.
All strategies serve the same requests; every baseline has the instances that the mean load asks for, two of
each at least. A monolith needs them for each task apart; the lean one makes do with a single one of each. Our
light tier may spend as much as the dearest baseline; what the light instances of each cost is told.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np

from airlam.serving.simulator_tiers import Rule, TierRun, simulate_tiers
from airlam.split.network import EdgeNetwork, Node, WiredLink
from airlam.split.placement.core_tier import place_core
from airlam.split.placement.light_tier import LightTier
from airlam.split.placement.tiers import (
    SPREAD_LOAD,
    NoRoom,
    Stock,
    TierProblem,
    TierService,
    TierTask,
    wanted_instances,
)

_MB, _MS = 1e6, 1e-3
_NUM_SERVERS, _NUM_DEVICES, _NUM_CORE, _NUM_LIGHT, _NUM_TASKS = 2, 6, 4, 6, 6
_MOVES_A_SLOT = 0.1  # of a task's users
_CORE_S = 60.0  # takes a second at most where nothing else runs
_OWN = "@"  # between a service and the task whose own it is
Pick = Callable[[Stock, str, list[int]], int]  # service, nodes with room -> node


def draw_tiers(seed: int, load: float = 1.0) -> TierProblem:
    """One problem; load multiplies all arrivals."""
    rng = np.random.default_rng((seed, 7))
    names = [f"server{i}" for i in range(_NUM_SERVERS)] + [f"device{i}" for i in range(_NUM_DEVICES)]
    capacity = {}
    for name in names:
        server = name.startswith("server")
        ranges = (
            ((128, 256), (64, 128), (1024, 2048), (256, 512))
            if server
            else ((1, 64), (1, 32), (0, 64), (0, 64))
        )
        capacity[name] = _drawn(rng, ranges)
    nodes = tuple(Node(name=name, kind="server", compute_flops_per_s=1.0) for name in names)
    wires = tuple(
        WiredLink(first=a, second=b, rate_bps=8 * float(rng.uniform(0.1, 1.0)) * _MB / _MS)
        for a, b in itertools.combinations(names, 2)
    )
    core = [_core(rng, i) for i in range(_NUM_CORE)]
    light = [_light(rng, i) for i in range(_NUM_LIGHT)]
    total = float(rng.uniform(0.15, 1.5)) / _MS * load
    shares = rng.dirichlet(np.full(_NUM_TASKS, 3.0))
    tasks = tuple(_task(rng, i, float(total * share), names) for i, share in enumerate(shares))
    return TierProblem(
        network=EdgeNetwork(nodes=nodes, wired_links=wires),
        capacity=capacity,
        services=(*core, *light),
        tasks=tasks,
    )


def _drawn(
    rng: np.random.Generator, ranges: tuple[tuple[float, float], ...]
) -> tuple[float, float, float, float]:
    cpu, ram, gpu, vram = (float(rng.uniform(*one)) for one in ranges)
    return cpu, ram, gpu, vram


def _core(rng: np.random.Generator, index: int) -> TierService:
    return TierService(
        name=f"core{index}",
        is_core=True,
        needs=_drawn(rng, ((2, 16), (1, 4), (4, 32), (4, 32))),
        work_flops=float(rng.uniform(2, 16)) * _MB,
        output_bytes=float(rng.uniform(0.1, 1)) * _MB,
        speed_flops_per_s=float(rng.uniform(8, 32)) * _MB / _MS,
        deploy_cost=20.0,
        maintain_cost=4.0,
    )


def _light(rng: np.random.Generator, index: int) -> TierService:
    shape = float(rng.uniform(1, 2))
    return TierService(
        name=f"light{index}",
        is_core=False,
        needs=_drawn(rng, ((0.5, 2), (0, 0.5), (0.25, 4), (0, 1))),
        work_flops=float(rng.uniform(0.5, 2)) * _MB,
        output_bytes=float(rng.uniform(0.25, 1.5)) * _MB,
        speed_flops_per_s=shape * float(rng.uniform(1, 20)) * _MB / _MS,
        shape_per_s=shape / _MS,
        deploy_cost=4.0,
        maintain_cost=1.0,
    )


def _task(rng: np.random.Generator, index: int, arrival_per_s: float, names: list[str]) -> TierTask:
    light = rng.permutation(_NUM_LIGHT)
    core = rng.permutation(_NUM_CORE)
    chain = [f"light{light[0]}", f"core{core[0]}", f"light{light[1]}", f"core{core[1]}", f"light{light[2]}"]
    return TierTask(
        name=f"task{index}",
        services=tuple(chain[: int(rng.integers(3, 6))]),
        home=str(rng.choice(names)),
        arrival_per_s=arrival_per_s,
        deadline_s=float(rng.uniform(50, 100)) * _MS,
        input_bytes=float(rng.uniform(0.5, 4)) * _MB,
        access_shape=float(rng.uniform(1.5, 3)),
        access_rate_bps=float(rng.uniform(0.5, 1.0)) ** 0.5 * 1e9,
    )


def wandering_homes(problem: TierProblem, num_slots: int, seed: int) -> list[list[int]]:
    """The access node of each task by slot."""
    rng = np.random.default_rng((seed, 8))
    homes = [problem.nodes.index(task.home) for task in problem.tasks]
    rows = []
    for _ in range(num_slots):
        rows.append(list(homes))
        for index in range(len(homes)):
            if rng.uniform() < _MOVES_A_SLOT:
                homes[index] = int(rng.integers(len(problem.nodes)))
    return rows


def access_bound(problem: TierProblem) -> float:
    """On-time rate if nothing but the access links took any time."""
    late = sum(task.arrival_per_s * task.late_share(0.0) for task in problem.tasks)
    return 1 - late / sum(task.arrival_per_s for task in problem.tasks)


def _filled(problem: TierProblem, pick: Pick) -> Stock:
    """The wanted instances of each service, heavy ones first, each where ``pick`` says."""
    stock = Stock(problem)
    for one in sorted(problem.services, key=lambda s: -sum(s.needs)):
        for _ in range(wanted_instances(problem, one.name)):
            fitting = [v for v in range(len(problem.nodes)) if stock.fits(one.name, v)]
            if not fitting:
                raise NoRoom(f"no node has room for another instance of {one.name}")
            stock.add(one.name, pick(stock, one.name, fitting))
    return stock


def _near(problem: TierProblem, *, spread: bool) -> Pick:
    """Least message time from the homes of the tasks that pass the service.

    spread: on the node with fewest of its instances first; else they stand together where there is room.
    """
    homes = {task.name: problem.nodes.index(task.home) for task in problem.tasks}

    def pick(stock: Stock, name: str, fitting: list[int]) -> int:
        users = [task for task in problem.tasks if name in task.services]

        def far(node: int) -> tuple[int, float]:
            byte_s = problem.byte_s[:, node]
            seconds = sum(one.arrival_per_s * float(byte_s[homes[one.name]]) for one in users)
            return stock.count[name][node] if spread else 0, seconds

        return min(fitting, key=far)

    return pick


def _least_loaded(stock: Stock, name: str, fitting: list[int]) -> int:
    full = np.array([stock.problem.capacity[node] for node in stock.problem.nodes])
    return max(fitting, key=lambda v: float((stock.left[v] / full[v]).min()))


def _in_turn() -> Pick:
    turns = itertools.count()

    def pick(stock: Stock, name: str, fitting: list[int]) -> int:
        return fitting[next(turns) % len(fitting)]

    return pick


def monolithic(problem: TierProblem, *, lean: bool) -> tuple[TierProblem, Stock]:
    """Every task with services of its own, all on one node: the first with room, nearest first.

    lean: one instance of a service at least, where the others have two. NoRoom where a task fits nowhere.
    """
    services, tasks = [], []
    for task in problem.tasks:
        own = tuple(f"{name}{_OWN}{task.name}" for name in task.services)
        tasks.append(dataclasses.replace(task, services=own))
        services += [
            dataclasses.replace(problem.by_name[name], name=renamed)
            for name, renamed in zip(task.services, own, strict=True)
        ]
    apart = dataclasses.replace(problem, services=tuple(services), tasks=tuple(tasks))
    stock = Stock(apart)
    for task in apart.tasks:
        home = apart.nodes.index(task.home)
        for node in np.argsort(apart.byte_s[home]):
            if _held(stock, task, int(node), lean):
                break
        else:
            raise NoRoom(f"no node has room for all of {task.name}")
    return apart, stock


def _held(stock: Stock, task: TierTask, node: int, lean: bool) -> bool:
    """Puts a whole task on a node; False, and nothing is put, where it has no room."""
    put: list[str] = []
    for name in task.services:
        load = task.arrival_per_s * stock.problem.by_name[name].work_s
        wanted = math.ceil(load / SPREAD_LOAD) if lean else wanted_instances(stock.problem, name)
        for _ in range(wanted):
            if not stock.fits(name, node):
                for back in put:
                    stock.add(back, node, -1)
                return False
            stock.add(name, node)
            put.append(name)
    return True


def run_strategies(problem: TierProblem, num_slots: int, seed: int) -> dict[str, TierRun]:
    """Every strategy on the same requests; NoRoom where one of them finds none."""
    homes = wandering_homes(problem, num_slots, seed)
    rng = np.random.default_rng((seed, 9))
    baselines: dict[str, tuple[TierProblem, Stock, Rule]] = {
        "monolithic": (*monolithic(problem, lean=False), "nearest"),
        "monolithic_lean": (*monolithic(problem, lean=True), "nearest"),
        "greedy": (problem, _filled(problem, _near(problem, spread=False)), "nearest"),
        "greedy_spread": (problem, _filled(problem, _near(problem, spread=True)), "nearest"),
        "random": (problem, _filled(problem, lambda s, n, fitting: int(rng.choice(fitting))), "random"),
        "round_robin": (problem, _filled(problem, _in_turn()), "round_robin"),
        "least_loaded": (problem, _filled(problem, _least_loaded), "least_loaded"),
    }
    found = {
        name: simulate_tiers(one, stock, rule, homes, seed=seed)
        for name, (one, stock, rule) in baselines.items()
    }
    budget = max(one.cost for one in found.values())
    for name, by_mean in (("ours", False), ("ours_by_mean", True)):
        stock = place_core(problem, time_limit_s=_CORE_S)
        light = LightTier(problem, budget=budget, by_mean=by_mean)
        found[name] = simulate_tiers(problem, stock, "shortest_delay", homes, light=light, seed=seed)
    return found
