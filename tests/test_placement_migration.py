"""Migration keeps its long-run budget, moves where it pays, and pays less for it the larger its V."""

import dataclasses

import numpy as np
import pytest

from airlam.errors import SpecError
from airlam.split.placement.drawing import Drawing
from airlam.split.placement.migration import Migration, Slot, migrate
from airlam.split.placement.services import Placement, ServiceProblem
from airlam.split.placement.solve import place
from airlam.split.placement.tables import Tables

NUM_SLOTS = 9
FREE = Migration(budget_bytes=1.0, weight_per_s=1.0)  # nothing is owed: moves cost nothing
DRAWING = Drawing(
    num_servers=(4, 4),
    num_tasks=(2, 2),
    num_classes=(3, 3),
    branches=False,
    load=(1.0, 1.0),
    room=(1.0, 1.0),
)


def moments(seed: int = 13) -> list[ServiceProblem]:
    """The same network under loads that change sides every third slot."""
    problem = dataclasses.replace(DRAWING.draw(np.random.default_rng(seed)), min_replicas=1)
    rng = np.random.default_rng(seed)
    found, factors = [], np.ones(3)
    for slot in range(NUM_SLOTS):
        if slot % 3 == 0:
            factors = rng.permutation([1.4, 0.4, 0.1])
        classes = tuple(
            dataclasses.replace(one, arrival_per_s=factor * one.arrival_per_s)
            for one, factor in zip(problem.classes, factors, strict=True)
        )
        found.append(dataclasses.replace(problem, classes=classes))
    return found


def followed(weight_per_s: float, budget_bytes: float) -> list[Slot]:
    """All slots, each from the one before."""
    migration = Migration(budget_bytes=budget_bytes, weight_per_s=weight_per_s)
    problems, slots, rng = moments(), list[Slot](), np.random.default_rng(0)
    placement = place(problems[0], method="search", with_bound=False).placement
    for problem in problems:
        slots.append(migrate(Tables(problem), placement, migration, rng, time_limit_s=20))
        placement, migration = slots[-1].placement, slots[-1].migration
    return slots


def test_the_long_run_budget_holds_and_a_larger_weight_is_faster() -> None:
    tables = Tables(moments()[0])
    budget = float(tables.weight_bytes.min()) / 4  # the smallest instance every fourth slot
    means_s, backlogs = [], []
    for weight in (1.0, 1e8):
        slots = followed(weight, budget)
        moved = np.array([slot.moved_bytes for slot in slots])
        backlogs.append(slots[-1].migration.backlog)
        assert moved.mean() <= budget * (1 + backlogs[-1] / NUM_SLOTS) * (1 + 1e-9)
        largest_s = max(slot.value_s for slot in slots)
        bound = weight * largest_s * budget / tables.weight_bytes.min() + moved.max() / budget
        assert max(slot.migration.backlog for slot in slots) <= bound
        means_s.append(np.mean([slot.value_s for slot in slots]))
    assert means_s[1] < means_s[0] and backlogs[0] < backlogs[1]
    free_s = np.mean([slot.value_s for slot in followed(1.0, 1e18)])
    assert means_s[1] == pytest.approx(free_s, rel=0.01)  # with all weight on latency, moves are as free


def test_nothing_moves_where_nothing_changes() -> None:
    problem = moments()[0]
    placement = place(problem, method="search", with_bound=False).placement
    migration = Migration(budget_bytes=1.0, weight_per_s=1.0, backlog=1e9)
    slot = migrate(Tables(problem), placement, migration, np.random.default_rng(0))
    assert slot.moved_bytes == 0 and slot.placement.hosts == placement.hosts
    assert slot.migration.backlog == 1e9 - 1


def with_nodes(problem: ServiceProblem, slowed: str = "") -> ServiceProblem:
    """Memory enough everywhere, and one node at a quarter of its speed."""
    nodes = tuple(
        dataclasses.replace(
            node,
            memory_bytes=4 * node.memory_bytes,
            compute_flops_per_s=node.compute_flops_per_s / (4 if node.name == slowed else 1),
        )
        for node in problem.network.nodes
    )
    return dataclasses.replace(problem, network=dataclasses.replace(problem.network, nodes=nodes))


def test_an_overload_is_mended_whatever_the_queue_says() -> None:
    problem = moments()[0]
    found = place(with_nodes(problem), method="search", with_bound=False)
    busiest = max(found.node_load, key=lambda name: found.node_load[name])
    slower = Tables(with_nodes(problem, busiest))
    assert slower.price(slower.nodes_of(found.placement)[None]).excess[0] > 0
    migration = Migration(budget_bytes=1.0, weight_per_s=1.0, backlog=1e9)
    slot = migrate(slower, found.placement, migration, np.random.default_rng(0))
    assert slower.price(slower.nodes_of(slot.placement)[None]).excess[0] == 0


def quiet(seed: int) -> ServiceProblem:
    """Memory enough, and so little load that any node can be spared."""
    problem = with_nodes(moments(seed)[0])
    classes = tuple(
        dataclasses.replace(one, arrival_per_s=0.2 * one.arrival_per_s) for one in problem.classes
    )
    return dataclasses.replace(problem, classes=classes)


def without(problem: ServiceProblem, name: str) -> ServiceProblem:
    """The network when a node has gone with its wires; who lived there is at home elsewhere."""
    network = problem.network
    left = tuple(node.name for node in network.nodes if node.name != name)
    wires = tuple(wire for wire in network.wired_links if name not in (wire.first, wire.second))
    network = dataclasses.replace(
        network, nodes=tuple(node for node in network.nodes if node.name != name), wired_links=wires
    )
    classes = tuple(
        dataclasses.replace(one, home=left[0] if one.home == name else one.home) for one in problem.classes
    )
    return dataclasses.replace(problem, network=network, classes=classes)


@pytest.mark.parametrize("gone", ["server0", "server1", "server2", "server3"])
def test_where_a_node_has_gone_the_rest_takes_over(gone: str) -> None:
    problem = quiet(13)
    found = place(problem, method="search", with_bound=False)
    after = without(problem, gone)
    slot = migrate(Tables(after), found.placement, FREE, np.random.default_rng(0))
    assert_served(after, slot.placement)
    alone = place(after, method="search", with_bound=False)
    assert slot.value_s <= 1.05 * alone.value_s


def test_where_a_node_is_cut_off_its_calls_go_elsewhere() -> None:
    """The node is there, its wires are not, and all ran on it: no single move makes that better."""
    problem = dataclasses.replace(quiet(13), min_replicas=2)
    name = next(n for n in problem.network.servers if n not in {one.home for one in problem.classes})
    wires = tuple(wire for wire in problem.network.wired_links if name not in (wire.first, wire.second))
    cut = dataclasses.replace(problem, network=dataclasses.replace(problem.network, wired_links=wires))
    everything = Placement(
        hosts=dict.fromkeys(problem.services, problem.network.servers),
        routes={one.name: dict.fromkeys(one.services, name) for one in problem.classes},
    )
    slot = migrate(Tables(cut), everything, FREE, np.random.default_rng(0))
    assert_served(cut, slot.placement)
    assert all(name not in route.values() for route in slot.placement.routes.values())


def assert_served(problem: ServiceProblem, placement: Placement) -> None:
    tables = Tables(problem)
    assert tables.price(tables.nodes_of(placement)[None]).excess[0] == 0
    assert (tables.held_of(placement).sum(axis=1) >= tables.wanted).all()


def test_classes_come_and_go() -> None:
    problem = quiet(13)
    fewer = dataclasses.replace(problem, classes=problem.classes[:1])
    placement = place(fewer, method="search", with_bound=False).placement
    slot = migrate(Tables(problem), placement, FREE, np.random.default_rng(0))
    assert_served(problem, slot.placement)
    again = migrate(Tables(fewer), slot.placement, FREE, np.random.default_rng(0))
    assert set(again.placement.routes) == {problem.classes[0].name}


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="budget_bytes"):
        Migration(budget_bytes=0.0, weight_per_s=1.0)
