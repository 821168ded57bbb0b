"""Routers choose replicas by what they say they look at, and never a node that is down if another is up."""

import dataclasses

import numpy as np
import pytest

from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.network import EdgeNetwork, Node, WiredLink
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
from airlam.split.placement.services import Placement, RequestClass, ServiceProblem
from airlam.split.placement.tables import Tables


def two_servers(speeds: tuple[float, float] = (1e9, 1e9), *, latency_s: float = 0.0) -> Tables:
    """Two services of 10 ms on two servers, and requests that arise at the first."""
    graph = ModuleGraph(
        modules=(Module(name="a", forward_flops=1e7), Module(name="b", forward_flops=1e7)),
        edges=(Edge(source="a", target="b", num_elements=0, fixed_bytes=1000),),
    )
    nodes = tuple(
        Node(name=f"s{i}", kind="server", compute_flops_per_s=speed) for i, speed in enumerate(speeds)
    )
    wire = WiredLink(first="s0", second="s1", rate_bps=8e6, latency_s=latency_s)
    one = RequestClass(name="n", home="s0", services=("a", "b"), arrival_per_s=10.0, input_bytes=1000)
    network = EdgeNetwork(nodes=nodes, wired_links=(wire,))
    return Tables(ServiceProblem(graph=graph, network=network, classes=(one,)))


def everywhere(first: str = "s0", second: str = "s0") -> Placement:
    return Placement(hosts={"a": ("s0", "s1"), "b": ("s0", "s1")}, routes={"n": {"a": first, "b": second}})


def sight(jobs: tuple[int, int] = (0, 0), up: tuple[bool, bool] = (True, True)) -> Sight:
    return Sight(node_jobs=list(jobs), link_jobs=[0, 0], is_up=list(up))


def test_each_looks_at_what_it_says() -> None:
    tables, placement = two_servers(), everywhere("s1", "s0")
    planned, turns = PlannedRouter(tables, placement), RoundRobinRouter(tables, placement)
    assert [planned.choose(k, 0, sight((9, 9))) for k in (0, 1)] == [1, 0]
    assert [turns.choose(0, 0, sight()) for _ in range(4)] == [0, 1, 0, 1]
    assert turns.choose(1, 0, sight()) == 0  # each service has its own turns
    least = LeastLoadedRouter(tables, placement)
    assert least.choose(0, 0, sight((2, 1))) == 1 and least.choose(0, 0, sight((1, 2))) == 0
    near = NearestRouter(tables, placement)
    assert near.choose(0, 0, sight((50, 0))) == 0 and near.choose(0, 1, sight()) == 1
    drawn = RandomRouter(tables, placement, np.random.default_rng(0))
    chosen = [drawn.choose(0, 0, sight()) for _ in range(400)]
    assert np.mean(chosen) == pytest.approx(0.5, abs=0.1)


def test_the_shortest_delay_counts_queues_messages_and_the_way_ahead() -> None:
    # at home: (n + 1) 10 ms, elsewhere 10 ms and 1 ms for the message; b adds the same on either side
    router = ShortestDelayRouter(two_servers(), everywhere())
    assert router.choose(1, 0, sight((0, 0))) == 0
    assert router.choose(1, 0, sight((1, 0))) == 1
    far = ShortestDelayRouter(two_servers(latency_s=0.02), everywhere())
    assert far.choose(1, 0, sight((1, 0))) == 0  # there and back takes 40 ms more
    assert far.choose(1, 0, sight((6, 0))) == 1
    # a second service ten times as slow at home: the first is sent to where the second will be
    slow = dataclasses.replace(
        everywhere(), hosts={"a": ("s0", "s1"), "b": ("s1",)}, routes={"n": {"a": "s0", "b": "s1"}}
    )
    ahead = ShortestDelayRouter(two_servers(speeds=(1e9, 1.05e9)), slow)
    assert ahead.choose(0, 0, sight()) == 1


@pytest.mark.parametrize("number", range(6))
def test_a_node_that_is_down_is_left_out(number: int) -> None:
    tables, placement = two_servers(), everywhere()
    routers: list[Router] = [
        PlannedRouter(tables, placement),
        RoundRobinRouter(tables, placement),
        LeastLoadedRouter(tables, placement),
        NearestRouter(tables, placement),
        RandomRouter(tables, placement, np.random.default_rng(0)),
        ShortestDelayRouter(tables, placement),
    ]
    router = routers[number]
    for _ in range(5):
        assert router.choose(0, 0, sight(up=(False, True))) == 1
        assert router.choose(0, 0, sight(up=(False, False))) in (0, 1)
