"""A trained router: what its weights mean, what the adversary may do, and how both answer each other."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airlam.bench import placement_routing
from airlam.bench.placement_routing import FAIR, NOMINAL, ROBUST, RoutingScale, drawn, routing
from airlam.errors import SpecError
from airlam.serving import router_training
from airlam.serving.router_training import (
    RouterTraining,
    Served,
    routed_by,
    surges,
    train_router,
    worst_arrivals,
)
from airlam.serving.simulator import Scenario, steady
from airlam.split.graph import Module, ModuleGraph
from airlam.split.network import EdgeNetwork, Node, WiredLink
from airlam.split.placement.routing import (
    NearestRouter,
    QueueWeights,
    Replicas,
    ShortestDelayRouter,
    Sight,
    shared_loads,
)
from airlam.split.placement.services import Placement, RequestClass, ServiceProblem
from airlam.split.placement.tables import Tables


def served(rates: tuple[float, float] = (40.0, 20.0)) -> Served:
    """One service of 10 ms at home or 20 ms elsewhere, asked for by two classes at either server."""
    nodes = tuple(Node(name=f"s{i}", kind="server", compute_flops_per_s=1e9 / (1 + i)) for i in range(2))
    wire = WiredLink(first="s0", second="s1", rate_bps=8e6, latency_s=1e-3)
    classes = tuple(
        RequestClass(
            name=f"c{i}",
            home=f"s{i}",
            services=("a",),
            arrival_per_s=rate,
            input_bytes=1000,
            output_bytes=1000,
            deadline_s=0.05,
        )
        for i, rate in enumerate(rates)
    )
    graph = ModuleGraph(modules=(Module(name="a", forward_flops=1e7),), edges=())
    tables = Tables(
        ServiceProblem(graph=graph, network=EdgeNetwork(nodes=nodes, wired_links=(wire,)), classes=classes)
    )
    hosts = {"a": ("s0", "s1")}
    return Served(
        tables=tables, placement=Placement(hosts=hosts, routes={"c0": {"a": "s0"}, "c1": {"a": "s1"}})
    )


def sight(*jobs: int) -> Sight:
    return Sight(node_jobs=list(jobs), link_jobs=[0, 0], is_up=[True, True])


def chosen(weights: QueueWeights, *jobs: int) -> int:
    own = served()
    return ShortestDelayRouter(own.tables, own.placement, weights).choose(0, 0, sight(*jobs))


def test_weights_say_what_a_queue_counts() -> None:
    """At home n others make it 10 (1 + n) ms, elsewhere 20 ms and 4 of messages."""
    assert [chosen(QueueWeights(), n, 0) for n in (1, 2)] == [0, 1]
    assert [chosen(QueueWeights(node=0.5), n, 0) for n in (2, 3)] == [0, 1]
    assert [chosen(QueueWeights(node_power=2.0), n, 0) for n in (1, 2)] == [0, 1]
    assert chosen(QueueWeights(node=0.4, node_power=2.0), 2, 0) == 1  # 10 (1 + 1.6) ms
    assert [chosen(QueueWeights(after=after), 1, 0) for after in (1e-6, 1.0)] == [0, 0]
    assert chosen(QueueWeights(after=1e-6, node=1.3), 1, 0) == 1  # 23 ms against 22, the way back ignored
    assert chosen(QueueWeights(node=1.3), 1, 0) == 0  # against 24


def test_a_queue_that_later_calls_meet_is_in_part_its_mean() -> None:
    own = served()
    ahead = ShortestDelayRouter(own.tables, own.placement, QueueWeights(now=0.0))._ahead
    rho = shared_loads(own.tables, Replicas(own.tables, own.placement))
    back_s = ahead._message_s(0, 0, 1000, sight(9, 0))
    found = ahead._rest_s(0, 0, sight(9, 0), {})
    assert found == pytest.approx(0.01 * (1 + rho[0] / (1 - rho[0])) + back_s)


def test_replicas_share_requests_by_speed() -> None:
    """60 requests a second to servers of 100 and of 50: both at 0.4."""
    own = served()
    np.testing.assert_allclose(shared_loads(own.tables, Replicas(own.tables, own.placement)), [0.4, 0.4])


def test_without_queues_all_weights_agree() -> None:
    own = served()
    for weights in (QueueWeights(), QueueWeights(node=3.0, link=0.2, node_power=2.0)):
        for call, source in ((0, 0), (1, 1)):
            router = ShortestDelayRouter(own.tables, own.placement, weights)
            nearest = NearestRouter(own.tables, own.placement)
            assert router.choose(call, source, sight(0, 0)) == nearest.choose(call, source, sight(0, 0))


def test_the_adversary_keeps_its_budget() -> None:
    found = np.array(surges(served().tables, 0.25))
    rate = np.array([40.0, 20.0])
    np.testing.assert_allclose(found[0], rate)
    np.testing.assert_allclose(np.abs(found[1:] - rate).sum(axis=1), 0.25 * 60)
    assert len(found) == 3


def test_the_worst_is_the_worst_and_no_better_than_what_was_drawn() -> None:
    own, router = served((60.0, 30.0)), routed_by(QueueWeights())
    scenario = steady(own.tables, 150, 3)
    rates, worst = worst_arrivals(own, router, scenario, 0.3)
    every = [
        own.answered(router, dataclasses.replace(scenario, arrival_per_s=each)).on_time_rate
        for each in surges(own.tables, 0.3)
    ]
    assert worst == min(every) and rates == surges(own.tables, 0.3)[every.index(worst)]
    assert worst <= own.answered(router, scenario).on_time_rate
    assert own.answered(router, scenario).on_time_rate == every[0]  # the problem's own rates


def test_the_search_finds_an_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    def merit(networks: Sequence[Served], scenarios: Sequence[Scenario], weights: Any) -> np.ndarray:
        return np.array([-(math.log(weights.node / 3) ** 2) - (weights.load - 0.5) ** 2])

    monkeypatch.setattr(router_training, "routed_by", lambda weights: weights)
    monkeypatch.setattr(router_training, "on_time", merit)
    found = train_router([served()], RouterTraining(budget=0.0, num_generations=60))
    assert found.node == pytest.approx(3, rel=0.1) and found.load == pytest.approx(0.5, abs=0.1)


def test_weights_are_tried_under_what_the_adversary_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, ...] | None] = []
    given = (1.0, 2.0)

    def remembered(networks: Sequence[Served], scenarios: Sequence[Scenario], router: Any) -> np.ndarray:
        asked.extend(scenario.arrival_per_s for scenario in scenarios)
        return np.zeros(1)

    monkeypatch.setattr(router_training, "worst_arrivals", lambda *_: (given, 0.0))
    monkeypatch.setattr(router_training, "on_time", remembered)
    train_router([served()], RouterTraining(num_generations=1, num_pairs=1))
    assert asked == [given, given]
    asked.clear()
    train_router([served()], RouterTraining(num_generations=1, num_pairs=1, budget=0.0))
    assert asked == [None, None]


def test_a_seed_gives_the_same_weights() -> None:
    training = RouterTraining(num_generations=2, num_pairs=2, num_requests=30)
    assert train_router([served()], training) == train_router([served()], training)


def test_what_cannot_be_trained_is_told() -> None:
    for weights in ({"node": 0.0}, {"now": 1.5}, {"load": math.nan}):
        with pytest.raises(SpecError):
            QueueWeights(**weights)
    with pytest.raises(SpecError, match="budget"):
        RouterTraining(budget=-0.1)
    with pytest.raises(SpecError, match="no network"):
        train_router([], RouterTraining())


def test_the_benchmark_gives_every_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(tmp_path))
    scale = RoutingScale(
        num_training=1,
        num_test=2,
        num_requests=30,
        training=RouterTraining(num_generations=1, num_pairs=1, num_requests=20),
    )
    rows, figures = routing(scale, lambda *_: None)
    monkeypatch.setattr(placement_routing, "train_router", None)  # what is kept is not trained again
    assert routing(scale, lambda *_: None) == (rows, figures)
    assert [row["seed"] for row in rows] == [seed for seed, _ in drawn(3_000_001, 2)]
    for name in (ROBUST, NOMINAL, FAIR, "least_loaded", "round_robin", "nearest"):
        rates = figures[f"router.{name}.worst_on_time_rate"], figures[f"router.{name}.on_time_rate"]
        assert 0 <= rates[0] <= rates[1] <= 1
    assert figures[f"router.robust_minus_{FAIR}.worst.low"] <= figures[f"router.robust_minus_{FAIR}.worst"]
