"""All methods on the same requests in the simulator: under steady conditions, and under harsh ones.

Steady: Poisson arrivals, links that stay as they are, nodes that stay up, the network that was planned for.
Harsh: the users of each class are behind a radio link to the server that was their home; its gain fades, they
move to other servers' cells, arrivals come in bursts, servers fail. Placements are chosen on the network as
drawn; what each router may know of links is what they are at the moment.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from airlam.serving.simulator import (
    Answered,
    Bursts,
    Moment,
    Outage,
    Scenario,
    best_simulated,
    simulate,
    steady,
)
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink
from airlam.split.placement.baselines import baselines
from airlam.split.placement.replication import replicated
from airlam.split.placement.routing import (
    LeastLoadedRouter,
    NearestRouter,
    PlannedRouter,
    RandomRouter,
    RoundRobinRouter,
    Router,
    ShortestDelayRouter,
    Sight,
)
from airlam.split.placement.search import Search, greedy
from airlam.split.placement.services import Placement, RequestClass, ServiceProblem
from airlam.split.placement.tables import Tables

OURS = "ours"
HARSH = "bursts_failures"
DEADLINE = 3.0  # times what a class takes where it is alone
_PILOT = 10**6  # from the seed of what is measured to that of what a placement is chosen by
# shares of the simulated time, of its classes and servers
_BURST_CYCLE, _OUTAGE, _NUM_OUTAGES, _NUM_MOMENTS, _MOVES_A_MOMENT = 0.1, 0.05, 2, 20, 0.1
# the load is the busiest access link's where all share a cell
_ACCESS_LOAD, _ACCESS_SNR, _ACCESS_ANTENNAS = 0.2, 100.0, 2
MakeRouter = Callable[[Tables, Placement], Router]


def with_deadlines(problem: ServiceProblem) -> ServiceProblem:
    """Each class due within ``DEADLINE`` times what it takes where it is alone."""
    classes = []
    for one in problem.classes:
        idle = dataclasses.replace(one, arrival_per_s=one.arrival_per_s * 1e-6)
        tables = Tables(dataclasses.replace(problem, classes=(idle,), min_replicas=1))
        search = Search(tables, np.random.default_rng(0))
        (_, value_s), _ = search.best_from([greedy(tables)], 0)
        classes.append(dataclasses.replace(one, deadline_s=DEADLINE * value_s))
    return dataclasses.replace(problem, classes=tuple(classes))


def serve(problem: ServiceProblem, planned: Placement, num_requests: int, seed: int) -> dict[str, Any]:
    """Mean latency and on-time rate of every method, under steady conditions and under harsh ones."""
    tables = Tables(problem)
    calm = steady(tables, num_requests, seed)
    pilot = dataclasses.replace(calm, seed=seed + _PILOT)
    found = _answers(tables, planned, calm, pilot, seed)
    rough, scenario = harsh(problem, num_requests, seed)
    _, rough_pilot = harsh(problem, num_requests, seed + _PILOT)
    return {**_summary(found), HARSH: _summary(_answers(rough, planned, scenario, rough_pilot, seed))}


def harsh(problem: ServiceProblem, num_requests: int, seed: int) -> tuple[Tables, Scenario]:
    """The problem with users on radio links, and what happens to them; deadlines allow for idle links."""
    mobile = with_deadlines(with_access(problem))
    tables, rng = Tables(mobile), np.random.default_rng((seed, 4))
    calm = steady(tables, num_requests, seed)
    return tables, dataclasses.replace(
        calm,
        bursts=Bursts(mean_cycle_s=_BURST_CYCLE * calm.duration_s),
        outages=_outages(mobile.network, calm.duration_s, rng),
        moments=_moments(mobile, calm.duration_s, rng),
    )


def with_access(problem: ServiceProblem) -> ServiceProblem:
    """Each class at home on a device, which is in the cell of the server that was its home.

    Cells are alike, with bands of which the busiest class would fill a fifth of its equal part at an SNR of
    20 dB if all classes were in one cell. Gains are 1 on average.
    """
    up_hz = _band_hz(problem, lambda one: one.input_bytes)
    down_hz = _band_hz(problem, lambda one: one.output_bytes)
    noise_w_per_hz = 1 / (_ACCESS_SNR * up_hz)  # 1 W sent
    network = problem.network
    users = {one.name: f"users.{one.name}" for one in problem.classes}
    devices = (Node(name=name, kind="device", compute_flops_per_s=1.0) for name in users.values())
    cells = (
        RadioCell(
            server=name,
            uplink_bandwidth_hz=up_hz,
            downlink_bandwidth_hz=down_hz,
            downlink_power_w=down_hz / up_hz,
            noise_psd_w_per_hz=noise_w_per_hz,
        )
        for name in network.servers
    )
    links = (
        RadioLink(device=users[one.name], server=one.home, gain=1.0, tx_power_w=1.0)
        for one in problem.classes
    )
    return dataclasses.replace(
        problem,
        network=dataclasses.replace(
            network, nodes=(*network.nodes, *devices), cells=tuple(cells), radio_links=tuple(links)
        ),
        classes=tuple(dataclasses.replace(one, home=users[one.name]) for one in problem.classes),
    )


def _band_hz(problem: ServiceProblem, size: Callable[[RequestClass], int]) -> float:
    busiest_bps = max(8 * one.arrival_per_s * size(one) for one in problem.classes)
    return len(problem.classes) * busiest_bps / (_ACCESS_LOAD * math.log2(1 + _ACCESS_SNR))


def _outages(network: EdgeNetwork, duration_s: float, rng: np.random.Generator) -> tuple[Outage, ...]:
    """One in each equal part of the time, of any server."""
    part_s, down_s = duration_s / _NUM_OUTAGES, _OUTAGE * duration_s
    return tuple(
        Outage(
            node=str(rng.choice(network.servers)),
            start_s=index * part_s + float(rng.uniform(0, part_s - down_s)),
            duration_s=down_s,
        )
        for index in range(_NUM_OUTAGES)
    )


def _moments(problem: ServiceProblem, duration_s: float, rng: np.random.Generator) -> tuple[Moment, ...]:
    """Rayleigh fading, two antennas combined, new at every moment; some users in another server's cell."""
    servers = {link.device: link.server for link in problem.network.radio_links}
    moments = []
    for number in range(1, _NUM_MOMENTS):
        for device in servers:
            if rng.uniform() < _MOVES_A_MOMENT:
                servers[device] = str(rng.choice(problem.network.servers))
        links = tuple(
            dataclasses.replace(
                link,
                server=servers[link.device],
                gain=float(rng.gamma(_ACCESS_ANTENNAS)) / _ACCESS_ANTENNAS,
            )
            for link in problem.network.radio_links
        )
        network = dataclasses.replace(problem.network, radio_links=links)
        tables = Tables(dataclasses.replace(problem, network=network))
        moments.append(Moment(start_s=number * duration_s / _NUM_MOMENTS, tables=tables))
    return tuple(moments)


def _answers(
    tables: Tables, planned: Placement, scenario: Scenario, pilot: Scenario, seed: int
) -> dict[str, Answered]:
    """Every method on the same requests.

    Ours is the better of two placements in a pilot simulation of other requests: the planned one, and the
    greedy baseline's. Beside it and the baselines, each with all the replicas that fit, stand the planned
    routes without queues in sight, and our router on either placement.
    """
    rules = baselines(tables, np.random.default_rng((seed, 2)), fill=True)
    filled, near = replicated(tables, planned), rules["greedy"][0]
    chosen = best_simulated(tables, (filled, near), ShortestDelayRouter, pilot)
    routers = _routers(seed)
    methods: dict[str, tuple[Placement, MakeRouter]] = {
        "ours_planned_routes": (planned, PlannedRouter),
        "planned_our_router": (filled, ShortestDelayRouter),
        "greedy_our_router": (near, ShortestDelayRouter),
        **{name: (placement, routers[name]) for name, (placement, _) in rules.items()},
    }
    found = {
        name: simulate(tables, _makes(router, placement), scenario)
        for name, (placement, router) in methods.items()
    }
    return {OURS: found["planned_our_router" if chosen is filled else "greedy_our_router"], **found}


def _routers(seed: int) -> Mapping[str, MakeRouter]:
    """Of the baselines, made anew whenever links change."""
    return {
        "monolithic": PlannedRouter,
        "greedy": NearestRouter,
        "random": functools.partial(RandomRouter, generator=np.random.default_rng((seed, 3))),
        "round_robin": RoundRobinRouter,
        "least_loaded": LeastLoadedRouter,
    }


def _makes(router: MakeRouter, placement: Placement) -> Callable[[Tables, Sight], Router]:
    return lambda tables, sight: router(tables, placement)


def _summary(found: Mapping[str, Answered]) -> dict[str, dict[str, float]]:
    return {
        "latency_ms": {name: 1e3 * float(one.latency_s.mean()) for name, one in found.items()},
        "on_time_rate": {name: one.on_time_rate for name, one in found.items()},
        "retries": {name: float(one.num_retries) for name, one in found.items()},
    }
