"""Baselines use the memory there is, replicas are added where there is room, repair ends within limits."""

import dataclasses

import numpy as np
import pytest

from airlam.errors import SpecError
from airlam.split.placement.baselines import baselines, monolithic, near, ruled
from airlam.split.placement.drawing import Drawing
from airlam.split.placement.replication import replicated
from airlam.split.placement.search import Search, spread
from airlam.split.placement.services import ServiceProblem
from airlam.split.placement.solve import place
from airlam.split.placement.tables import Room, Tables

ROOMY = Drawing(room=(3.0, 3.0), num_servers=(5, 5))


def drawn(drawing: Drawing = ROOMY, seed: int = 4) -> Tables:
    return Tables(drawing.draw(np.random.default_rng(seed)))


def test_baselines_have_the_replicas_that_are_wanted_within_memory() -> None:
    tables = drawn()
    for name, (placement, _) in baselines(tables, np.random.default_rng(0)).items():
        held = tables.held_of(placement)
        if name != "monolithic":
            assert (held.sum(axis=1) == tables.wanted).all()
        assert (tables.instance_bytes @ held <= tables.memory).all()
    filled = baselines(tables, np.random.default_rng(0), fill=True)
    for name in ("greedy", "least_loaded"):
        held = tables.held_of(filled[name][0])
        spare = tables.memory - tables.instance_bytes @ held
        assert (spare >= 0).all() and held.sum() > tables.wanted.sum()
        for m in range(len(tables.services)):  # nothing more fits
            assert not (~held[m] & (spare >= tables.instance_bytes[m])).any()


def with_storage(tables: Tables, share: float) -> Tables:
    """Of each node's memory; instances need more memory than storage, by their working sets."""
    nodes = tuple(
        dataclasses.replace(node, storage_bytes=share * node.memory_bytes)
        for node in tables.problem.network.nodes
    )
    network = dataclasses.replace(tables.problem.network, nodes=nodes)
    return Tables(dataclasses.replace(tables.problem, network=network))


def test_baselines_have_no_more_storage_than_there_is() -> None:
    tables = with_storage(drawn(), 0.5)
    for fill in (False, True):
        for placement, _ in baselines(tables, np.random.default_rng(0), fill=fill).values():
            held = tables.held_of(placement)
            assert (tables.weight_bytes @ held <= tables.storage).all()
    assert not monolithic(with_storage(tables, 0.02))[1]


def test_room_is_what_instances_leave() -> None:
    tables = with_storage(drawn(), 0.5)
    held = np.zeros((len(tables.services), len(tables.nodes)), dtype=bool)
    room = Room(tables, held)
    own = np.arange(2)
    assert np.array_equal(room.fits(own), tables.storage >= tables.weight_bytes[own].sum())
    room.take(own, 1)
    held[own, 1] = True
    assert room.memory_bytes == pytest.approx(Room(tables, held).memory_bytes)
    assert room.storage_bytes == pytest.approx(tables.storage - tables.weight_bytes @ held)


def test_a_class_whose_services_share_no_node_cannot_be_a_monolith() -> None:
    pins = {"tokenizer": ("server0",), "backbone": ("server1",)}
    tables = Tables(dataclasses.replace(drawn().problem, pins=pins))
    with pytest.raises(SpecError, match="no node may run all services of class"):
        monolithic(tables)


def test_a_monolith_stays_on_one_node_and_says_when_its_copies_do_not_fit() -> None:
    tables = drawn()
    placement, fitted = monolithic(tables)
    assert fitted
    assert all(len(set(route.values())) == 1 for route in placement.routes.values())
    nodes = tuple(
        dataclasses.replace(node, memory_bytes=node.memory_bytes / 20)
        for node in tables.problem.network.nodes
    )
    network = dataclasses.replace(tables.problem.network, nodes=nodes)
    assert not monolithic(Tables(dataclasses.replace(tables.problem, network=network)))[1]


def test_the_near_rule_takes_the_home_of_the_only_user() -> None:
    tables = drawn()
    one = dataclasses.replace(tables.problem.classes[0], input_bytes=10**9)
    alone = Tables(dataclasses.replace(tables.problem, classes=(one,), min_replicas=1))
    assert all(nodes == (one.home,) for nodes in ruled(alone, near(alone)).hosts.values())


def test_replicas_are_added_while_there_is_room_and_routes_stay() -> None:
    tables = drawn()
    before = place(tables.problem, method="search", with_bound=False).placement
    after = replicated(tables, before)
    assert after.routes == before.routes and after.hosts != before.hosts
    assert all(set(nodes) <= set(after.hosts[name]) for name, nodes in before.hosts.items())
    spare = tables.memory - tables.instance_bytes @ tables.held_of(after)
    assert (spare >= 0).all()
    assert replicated(tables, after) == after


@pytest.mark.parametrize("seed", range(3))
def test_repair_only_mends(seed: int) -> None:
    tables = drawn(Drawing(), seed=seed + 1)
    search = Search(tables, np.random.default_rng(seed), time_limit_s=20)
    start = spread(tables, np.random.default_rng(seed))
    (excess, _), at = search.repaired(start)
    assert excess == 0 and tables.hosts(at) is not None
    again = search.repaired(at)
    assert np.array_equal(again[1], at)  # what is within the limits stays as it is


def test_pins_hold_for_rules_too() -> None:
    problem: ServiceProblem = drawn().problem
    pinned = dataclasses.replace(problem, pins={"backbone": ("server0", "server1")})
    tables = Tables(pinned)
    for placement, _ in baselines(tables, np.random.default_rng(0), fill=True).values():
        assert set(placement.hosts["backbone"]) <= {"server0", "server1"}
