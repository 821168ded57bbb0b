"""The two tiers: delays by effective capacity, a program within its limits, a budget that is kept."""

import dataclasses
import itertools

import numpy as np
import pytest
import simpy

from airlam.bench.placement_tiers import (
    _filled,
    _near,
    access_bound,
    draw_tiers,
    monolithic,
    run_strategies,
    wandering_homes,
)
from airlam.errors import SpecError
from airlam.serving.simulator import Station
from airlam.serving.simulator_tiers import simulate_tiers
from airlam.split.cost import cost
from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.network import EdgeNetwork, Node, WiredLink
from airlam.split.placement.core_tier import place_core
from airlam.split.placement.light_tier import Demand, LightTier
from airlam.split.placement.tiers import (
    RESOURCES,
    NoRoom,
    Stock,
    TierProblem,
    TierService,
    wanted_instances,
    work_quantiles_s,
)
from airlam.split.plan import Schedule, SplitPlan

FIXED = TierService(
    name="f", is_core=True, needs=(1, 1, 1, 1), work_flops=1e6, output_bytes=1.0, speed_flops_per_s=1e8
)
GAMMA = dataclasses.replace(FIXED, name="g", is_core=False, shape_per_s=300.0)


@pytest.mark.parametrize("service", [FIXED, GAMMA], ids=["fixed", "gamma"])
def test_the_delay_is_exceeded_as_rarely_as_asked(service: TierService) -> None:
    """One queue with Poisson arrivals at 0.6 of its speed; the bound is exponential in the delay."""
    env = simpy.Environment()
    station, delays = Station(env, "in_turn"), list[float]()
    rng, quantiles = np.random.default_rng(0), work_quantiles_s(service)

    def request() -> object:
        start_s = env.now
        yield station.submit(float(quantiles[rng.integers(len(quantiles))]))
        delays.append(env.now - start_s)

    def arrive() -> object:
        while env.now < 600.0:
            yield env.timeout(rng.exponential(1 / 60.0))
            env.process(request())  # type: ignore[arg-type]

    env.process(arrive())  # type: ignore[arg-type]
    env.run()
    for epsilon in (0.1, 0.01):
        bound_s = service.delay_s(60.0, epsilon)
        exceeded = np.mean(np.array(delays) > bound_s)
        assert epsilon / 10 < exceeded < 1.2 * epsilon


def test_in_small_steps_the_wait_is_that_of_the_effective_capacity() -> None:
    """s = shape ln(1 + theta scale) where lambda (exp(theta work) - 1) = s."""
    fine = dataclasses.replace(GAMMA, shape_per_s=1e4)
    scale = fine.speed_flops_per_s / fine.shape_per_s
    theta = np.geomspace(1e-8, 1e-5, 200_000)
    capacity = fine.shape_per_s * np.log1p(theta * scale)  # theta EC(theta)
    root = capacity[np.argmax(60.0 * np.expm1(theta * fine.work_flops) > capacity)]
    expected = np.log(100) / root + fine.work_s
    assert fine.delay_s(60.0, 0.01) == pytest.approx(expected, rel=0.03)


def test_delays_meet_their_limits() -> None:
    assert FIXED.delay_s(100.0, 0.01) == np.inf  # as much as it can do
    assert FIXED.delay_s(50.0, 0.01) < FIXED.delay_s(80.0, 0.01)
    assert GAMMA.delay_s(50.0, 0.01) > FIXED.delay_s(50.0, 0.01)  # a speed that varies is worth less
    steadier = dataclasses.replace(GAMMA, shape_per_s=1e7)
    assert steadier.delay_s(50.0, 0.01) == pytest.approx(FIXED.delay_s(50.0, 0.01), rel=1e-3)
    assert FIXED.mean_delay_s(50.0) == pytest.approx(0.02)
    scale = GAMMA.speed_flops_per_s / GAMMA.shape_per_s
    draws = np.random.default_rng(1).gamma(GAMMA.shape_per_s * 1e-4, scale, (4000, 1000)).cumsum(axis=1)
    passed_s = 1e-4 * (1 + (draws < GAMMA.work_flops).sum(axis=1))  # by steps of 0.1 ms
    assert work_quantiles_s(GAMMA).mean() == pytest.approx(passed_s.mean() - 5e-5, rel=0.03)
    assert work_quantiles_s(steadier).std() < 0.01 * GAMMA.work_s


def within(problem: TierProblem, stock: Stock) -> bool:
    used = np.zeros((len(problem.nodes), len(RESOURCES)))
    for one in problem.services:
        used += np.outer(stock.count[one.name], one.needs)
    return bool((used <= np.array([problem.capacity[n] for n in problem.nodes]) + 1e-9).all())


def test_the_core_tier_is_within_resources_and_sparse() -> None:
    problem = draw_tiers(3)
    stock = place_core(problem, max_hosts=2)
    assert within(problem, stock)
    for one in problem.services:
        count = stock.count[one.name]
        if one.is_core:
            assert sum(count) >= 2 and np.count_nonzero(count) <= 2
            load = problem.arrivals_per_s(one.name) * one.work_s
            assert load <= 0.7 * sum(count) + 1e-6
        else:
            assert sum(count) == 0
    crowded = dataclasses.replace(problem, capacity={name: (1.0,) * 4 for name in problem.nodes})  # type: ignore[misc]
    with pytest.raises(NoRoom, match="no placement of the core services has the resources"):
        place_core(crowded)
    with pytest.raises(SpecError, match="was found in 1e-06 s; give it more time"):
        place_core(problem, time_limit_s=1e-6)


def test_the_light_tier_keeps_its_budget_and_follows_its_users() -> None:
    problem = draw_tiers(5)
    stock = place_core(problem)
    light = LightTier(problem, budget=16.0)
    rates = {task.name: task.arrival_per_s for task in problem.tasks}
    rng = np.random.default_rng(0)
    num_slots = 40
    for _ in range(num_slots):
        homes = {task.name: int(rng.integers(len(problem.nodes))) for task in problem.tasks}
        light.step(stock, Demand(arrival_per_s=rates, home=homes))
        assert within(problem, stock)
        assert all(sum(stock.count[one.name]) >= 2 for one in problem.services if not one.is_core)
    assert np.mean(light.spent) <= light.budget * (1 + light.backlog / num_slots)
    with pytest.raises(SpecError, match="budget"):
        LightTier(problem, budget=0.0)


def test_a_large_budget_is_not_thrown_away() -> None:
    problem = draw_tiers(3)
    stock = place_core(problem)
    light = LightTier(problem, budget=1000.0)
    demand = Demand(
        arrival_per_s={task.name: task.arrival_per_s for task in problem.tasks},
        home={task.name: problem.nodes.index(task.home) for task in problem.tasks},
    )
    for _ in range(20):
        light.step(stock, demand)
    assert max(light.spent[1:]) <= light.spent[0] < 1000.0
    assert light.spent[-1] == stock.maintain_cost  # nothing moves where nothing changes
    crowded = dataclasses.replace(problem, capacity={name: (1e-3,) * 4 for name in problem.nodes})  # type: ignore[misc]
    with pytest.raises(NoRoom, match="light"):
        LightTier(crowded, budget=1.0).step(Stock(crowded), demand)


def test_the_light_tier_prices_the_shortest_way_through_a_chain() -> None:
    """Against every choice of nodes."""
    problem = draw_tiers(4)
    stock, rng = Stock(problem), np.random.default_rng(0)
    for one in problem.services:
        for node in rng.choice(len(problem.nodes), 3, replace=False):
            stock.add(one.name, int(node))
    light, home = LightTier(problem, budget=1.0), 2
    for task in problem.tasks:
        for index in range(len(task.services)):
            sizes = [problem.sent_bytes(task, k) for k in range(len(task.services))]
            sizes.append(problem.by_name[task.services[-1]].output_bytes)
            found = light._ways_s(stock, task, index, home)
            for node in range(len(problem.nodes)):
                hosts = [stock.hosts(name) for name in task.services]
                hosts[index] = [node]
                ways = ((home, *way, home) for way in itertools.product(*hosts))
                expected = min(
                    sum(
                        problem.message_s(size)[a, b]
                        for size, (a, b) in zip(sizes, itertools.pairwise(way), strict=True)
                    )
                    for way in ways
                )
                assert found[node] == pytest.approx(expected)


def test_late_shares_are_those_of_drawn_access_rates() -> None:
    rng = np.random.default_rng(0)
    problem = draw_tiers(1)
    for task in problem.tasks:
        rate_bps = (
            task.access_rate_bps * (rng.gamma(task.access_shape, size=100_000) / task.access_shape) ** 0.5
        )
        for spent_s in (0.0, 0.3 * task.deadline_s, 0.8 * task.deadline_s):
            late = (8 * task.input_bytes / rate_bps > task.deadline_s - spent_s).mean()
            assert task.late_share(spent_s) == pytest.approx(late, abs=0.006)
        assert task.late_share(task.deadline_s) == 1.0
    shares = [task.late_share(0.0) for task in problem.tasks]
    assert 1 - max(shares) <= access_bound(problem) <= 1 - min(shares)


def test_baselines_have_the_instances_that_the_load_asks_for() -> None:
    problem = draw_tiers(3)
    together, apart = (_filled(problem, _near(problem, spread=spread)) for spread in (False, True))
    for one in problem.services:
        wanted = wanted_instances(problem, one.name)
        assert sum(together.count[one.name]) == sum(apart.count[one.name]) == wanted >= 2
        assert max(apart.count[one.name]) <= max(together.count[one.name])
    assert all(len(apart.hosts(one.name)) >= 2 for one in problem.services)
    for lean, least in ((False, 2), (True, 1)):
        own, stock = monolithic(problem, lean=lean)
        for task in own.tasks:
            counts = [stock.count[name] for name in task.services]
            assert all(sum(count) >= least for count in counts)
            assert len({node for count in counts for node in np.flatnonzero(count)}) == 1
            for name, count in zip(task.services, counts, strict=True):
                assert sum(count) * 0.7 >= task.arrival_per_s * own.by_name[name].work_s


def test_the_router_takes_the_shortest_way_where_nothing_waits() -> None:
    """A lone request: its median latency is that of the best choice of nodes."""
    problem = draw_tiers(6)
    task = dataclasses.replace(problem.tasks[0], arrival_per_s=0.5, access_shape=1e9)
    fixed = tuple(dataclasses.replace(one, shape_per_s=0.0) for one in problem.services)
    problem = dataclasses.replace(problem, tasks=(task,), services=fixed)
    stock, rng = Stock(problem), np.random.default_rng(1)
    for name in task.services:
        for node in rng.choice(len(problem.nodes), 3, replace=False):
            stock.add(name, int(node))
    homes = [[problem.nodes.index(task.home)]] * 300
    found = simulate_tiers(problem, stock, "shortest_delay", homes, seed=1)
    ways_s = LightTier(problem, budget=1.0)._ways_s(stock, task, 0, homes[0][0])
    best_s = float(ways_s[stock.hosts(task.services[0])].min())
    work_s = sum(problem.by_name[name].work_s for name in task.services)
    expected = 8 * task.input_bytes / task.access_rate_bps + best_s + work_s
    assert np.median(found.latency_s) == pytest.approx(expected, rel=1e-3)


def test_all_strategies_serve_the_same_requests() -> None:
    problem = draw_tiers(5)
    found = run_strategies(problem, 3, 5)
    counts = {len(one.on_time) for one in found.values()}
    assert len(counts) == 1 and counts.pop() > 100
    assert found["ours"].on_time_rate > found["random"].on_time_rate
    again = run_strategies(problem, 3, 5)
    assert np.array_equal(found["ours"].latency_s, again["ours"].latency_s)


def test_without_a_load_a_request_takes_what_cost_says() -> None:
    """Each instance as a node of its own speed, on a wire that takes no time."""
    problem = draw_tiers(2)
    task = dataclasses.replace(problem.tasks[0], arrival_per_s=0.5, access_shape=1e9)
    fixed = tuple(dataclasses.replace(one, shape_per_s=0.0) for one in problem.services)
    network = dataclasses.replace(
        problem.network,
        wired_links=tuple(dataclasses.replace(w, latency_s=3e-3) for w in problem.network.wired_links),
    )
    problem = dataclasses.replace(problem, network=network, tasks=(task,), services=fixed)
    stock, at = Stock(problem), [1, 0, 1, 0]
    for name, node in zip(task.services, at, strict=False):
        stock.add(name, node)
    found = simulate_tiers(problem, stock, "nearest", wandering_homes(problem, 1, 0) * 300, seed=1)
    own = [problem.by_name[name] for name in task.services]
    ends = ("start", *task.services, "end")
    sizes = (task.input_bytes, *(one.output_bytes for one in own))
    graph = ModuleGraph(
        modules=(
            *(Module(name=one.name, forward_flops=one.work_flops) for one in own),
            *(Module(name=end, forward_flops=0.0) for end in ("start", "end")),
        ),
        edges=tuple(
            Edge(source=a, target=b, num_elements=0, fixed_bytes=round(size))
            for (a, b), size in zip(itertools.pairwise(ends), sizes, strict=True)
        ),
    )
    instances = EdgeNetwork(
        nodes=(
            *network.nodes,
            *(Node(name=o.name, kind="server", compute_flops_per_s=o.speed_flops_per_s) for o in own),
        ),
        wired_links=(
            *network.wired_links,
            *(
                WiredLink(first=one.name, second=problem.nodes[node], rate_bps=np.inf)
                for one, node in zip(own, at, strict=False)
            ),
        ),
    )
    plan = SplitPlan.single({name: name for name in task.services} | {"start": task.home, "end": task.home})
    priced = cost(graph, instances, plan, Schedule(allocations={}), "inference")
    expected = 8 * task.input_bytes / task.access_rate_bps + priced.latency_s
    assert np.median(found.latency_s) == pytest.approx(expected, rel=1e-3)


def test_latency_of_wires_counts_once_a_message_in_every_decision() -> None:
    problem = draw_tiers(5)
    slow = tuple(dataclasses.replace(w, latency_s=0.01) for w in problem.network.wired_links)
    slowed = dataclasses.replace(problem, network=dataclasses.replace(problem.network, wired_links=slow))
    away = ~np.eye(len(problem.nodes), dtype=bool)
    assert np.allclose(slowed.message_s(1e6) - problem.message_s(1e6), 0.01 * away)
    stock = place_core(slowed)
    light = LightTier(slowed, budget=16.0)
    homes = {task.name: problem.nodes.index(task.home) for task in problem.tasks}
    light.step(stock, Demand(arrival_per_s={t.name: t.arrival_per_s for t in problem.tasks}, home=homes))
    assert within(slowed, stock) and sum(sum(count) for count in stock.count.values()) >= 2 * len(stock.count)
