"""The simulator meets closed forms of queueing theory, and loses no request."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import simpy

from airlam.errors import SpecError
from airlam.serving.simulator import (
    Answered,
    Bursts,
    Moment,
    Outage,
    Scenario,
    Station,
    arrival_times_s,
    simulate,
)
from airlam.split.graph import Module, ModuleGraph
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink, WiredLink
from airlam.split.placement.drawing import Drawing
from airlam.split.placement.routing import PlannedRouter, Router, ShortestDelayRouter, Sight
from airlam.split.placement.services import Placement, RequestClass, ServiceProblem
from airlam.split.placement.solve import place
from airlam.split.placement.tables import Tables

MakeRouter = Callable[[Tables, Sight], Router]
SERVICE_S, LOAD = 0.01, 0.7


def planned(placement: Placement) -> MakeRouter:
    return lambda tables, sight: PlannedRouter(tables, placement)


def one_queue() -> tuple[Tables, MakeRouter]:
    """Requests that arise where they are worked on."""
    graph = ModuleGraph(modules=(Module(name="a", forward_flops=1e7),), edges=())
    network = EdgeNetwork(nodes=(Node(name="s", kind="server", compute_flops_per_s=1e7 / SERVICE_S),))
    one = RequestClass(name="n", home="s", services=("a",), arrival_per_s=LOAD / SERVICE_S, deadline_s=0.05)
    tables = Tables(ServiceProblem(graph=graph, network=network, classes=(one,)))
    return tables, planned(Placement(hosts={"a": ("s",)}, routes={"n": {"a": "s"}}))


def queue(**settings: object) -> Answered:
    tables, router = one_queue()
    scenario = Scenario(duration_s=300.0, warm_up_s=10.0, seed=1, **settings)  # type: ignore[arg-type]
    return simulate(tables, router, scenario)


MM1_S = SERVICE_S / (1 - LOAD)
MD1_S = SERVICE_S * (1 + LOAD / 2 / (1 - LOAD))  # Pollaczek and Khinchine, no variance of service


@pytest.mark.parametrize(
    ("discipline", "work", "expected_s"),
    [
        ("sharing", "exponential", MM1_S),
        ("sharing", "fixed", MM1_S),  # sharing is insensitive to how work is distributed
        ("in_turn", "exponential", MM1_S),
        ("in_turn", "fixed", MD1_S),
    ],
)
def test_one_queue_has_the_mean_of_theory(discipline: str, work: str, expected_s: float) -> None:
    found = queue(node_discipline=discipline, work=work)
    mean_s, half_s = found.interval_s()
    assert half_s < 0.1 * expected_s and abs(mean_s - expected_s) < 1.3 * half_s
    rate = len(found.latency_s) / 290.0
    assert found.mean_present == pytest.approx(rate * found.latency_s.mean(), rel=0.01)  # Little's law


def test_the_time_in_a_first_come_queue_is_exponential() -> None:
    """M/M/1 in turn: P(T > t) = exp(-(mu - lambda) t), so the on-time rate is known too."""
    found = queue(node_discipline="in_turn", work="exponential")
    assert found.on_time_rate == pytest.approx(1 - np.exp(-0.05 / MM1_S), abs=0.03)


@pytest.mark.parametrize("seed", [3, 5])
def test_networks_of_chains_have_the_planned_mean(seed: int) -> None:
    problem = Drawing(branches=False).draw(np.random.default_rng(seed))
    tables, found = Tables(problem), place(problem, method="search", with_bound=False)
    total = tables.rate.sum()
    scenario = Scenario(duration_s=8000 / total, warm_up_s=800 / total, seed=seed)
    simulated = simulate(tables, planned(found.placement), scenario)
    mean_s, half_s = simulated.interval_s()
    assert half_s < 0.15 * found.value_s and abs(mean_s - found.value_s) < 1.5 * half_s
    ahead = simulate(tables, lambda t, s: ShortestDelayRouter(t, found.placement), scenario)
    assert ahead.latency_s.mean() < mean_s


def test_branches_wait_for_the_later_one() -> None:
    problem = Drawing().draw(np.random.default_rng(8))
    quiet = tuple(dataclasses.replace(one, arrival_per_s=0.01) for one in problem.classes)
    problem = dataclasses.replace(problem, classes=quiet)
    tables, found = Tables(problem), place(problem, method="search", with_bound=False)
    assert not tables.is_serial
    simulated = simulate(tables, planned(found.placement), Scenario(duration_s=2000.0, seed=2))
    expected = np.array(list(found.latency_s.values()))[simulated.class_index]
    assert np.median(simulated.latency_s / expected) == pytest.approx(1.0, rel=1e-3)


def test_bursts_keep_the_mean_rate_and_come_in_clusters() -> None:
    scenario = Scenario(duration_s=2000.0, bursts=Bursts(high_share=0.1, ratio=10.0, mean_cycle_s=2.0))
    counts = []
    for bursts in (scenario.bursts, None):
        rng = np.random.default_rng(4)
        times = list(arrival_times_s(20.0, dataclasses.replace(scenario, bursts=bursts), rng))
        assert len(times) == pytest.approx(40_000, rel=0.05) and times == sorted(times)
        counts.append(np.histogram(times, bins=2000)[0])
    dispersion = [count.var() / count.mean() for count in counts]
    assert dispersion[0] > 3 and dispersion[1] == pytest.approx(1.0, abs=0.1)
    assert queue(bursts=scenario.bursts).latency_s.mean() > 2 * MM1_S


def test_a_station_shares_its_speed_and_stops_without_it() -> None:
    env = simpy.Environment()
    station, ends = Station(env, "sharing"), []

    def job(start_s: float, work: float) -> object:
        yield env.timeout(start_s)
        yield station.submit(work)
        ends.append((env.now, work))

    def stop() -> object:
        yield env.timeout(2.0)
        station.set_speed(0.0)
        yield env.timeout(1.0)
        station.set_speed(2.0)

    for process in (job(0.0, 2.0), job(1.0, 3.0), stop()):
        env.process(process)  # type: ignore[arg-type]
    env.run()
    # at 1 s: 1 left of the first; at 2 s: 0.5 and 2.5 left; from 3 s on a speed of 1 each, then 2
    assert ends == [(3.5, 2.0), (4.5, 3.0)]


def test_a_message_under_way_feels_the_channel_change() -> None:
    """A device's uplink loses its rate half way through; its replicas answer none the sooner."""
    graph = ModuleGraph(modules=(Module(name="a", forward_flops=0.0),), edges=())
    network = EdgeNetwork(
        nodes=(
            Node(name="d", kind="device", compute_flops_per_s=1.0),
            Node(name="s", kind="server", compute_flops_per_s=1.0),
            Node(name="t", kind="server", compute_flops_per_s=1.0),
        ),
        cells=tuple(
            RadioCell(
                server=name, uplink_bandwidth_hz=1e6, downlink_bandwidth_hz=1e6, noise_psd_w_per_hz=1e-6
            )
            for name in "st"
        ),
        radio_links=(RadioLink(device="d", server="s", gain=1.0, tx_power_w=1.0),),
        wired_links=(WiredLink(first="s", second="t", rate_bps=1e9),),
    )
    one = RequestClass(name="n", home="d", services=("a",), arrival_per_s=2.0, input_bytes=25_000)
    problem = ServiceProblem(graph=graph, network=network, classes=(one,))
    router = planned(Placement(hosts={"a": ("s", "t")}, routes={"n": {"a": "s"}}))
    steady = simulate(Tables(problem), router, Scenario(duration_s=1.0, seed=2))
    assert len(steady.arrival_s) == 1 and steady.latency_s[0] == pytest.approx(0.2)  # 1 Mbit/s
    weaker = dataclasses.replace(problem, network=network.with_gains({"d": 2**0.5 - 1}))  # half the rate
    moved = dataclasses.replace(
        problem,
        network=dataclasses.replace(
            network, radio_links=(RadioLink(device="d", server="t", gain=1.0, tx_power_w=1.0),)
        ),
    )
    for later, expected_s in ((weaker, 0.3), (moved, 0.2)):  # what is under way in the old cell gets through
        moments = (Moment(start_s=float(steady.arrival_s[0]) + 0.1, tables=Tables(later)),)
        found = simulate(Tables(problem), router, Scenario(duration_s=1.0, seed=2, moments=moments))
        assert found.latency_s[0] == pytest.approx(expected_s)


def test_an_outage_loses_no_request() -> None:
    problem = Drawing(branches=True).draw(np.random.default_rng(8))
    tables, found = Tables(problem), place(problem, method="search", with_bound=False)
    busiest = max(found.node_load, key=lambda name: found.node_load[name])
    total = tables.rate.sum()
    outage = Outage(node=busiest, start_s=500 / total, duration_s=200 / total)
    scenario = Scenario(duration_s=2000 / total, seed=3)
    for make in (planned(found.placement), lambda t, s: ShortestDelayRouter(t, found.placement)):
        steady = simulate(tables, make, scenario)
        hit = simulate(tables, make, dataclasses.replace(scenario, outages=(outage,)))
        assert len(hit.latency_s) == len(steady.latency_s) > 1500
        assert hit.num_retries > 0 == steady.num_retries
        assert hit.latency_s.mean() > steady.latency_s.mean()


def test_without_a_replica_requests_wait_for_the_node() -> None:
    tables, router = one_queue()
    outage = Outage(node="s", start_s=1.0, duration_s=2.0)
    found = simulate(tables, router, Scenario(duration_s=10.0, seed=1, outages=(outage,)))
    during = (found.arrival_s > 1.0) & (found.arrival_s < 2.9)
    ends_s = (found.arrival_s + found.latency_s)[during]
    assert during.sum() > 50 and ends_s.min() > 3.0


def test_a_seed_gives_the_same_requests() -> None:
    first, again = queue(work="exponential"), queue(work="exponential")
    assert np.array_equal(first.latency_s, again.latency_s)
    with pytest.raises(SpecError, match="warm_up_s"):
        Scenario(duration_s=1.0, warm_up_s=2.0)
    with pytest.raises(SpecError, match="high_share"):
        Bursts(high_share=1.5)
