"""The longest path through forward and backward: equal to trying every path, and its steps add up to it."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.timeline import Event, Mode, Phase, Timeline, timeline


def drawn(
    seed: int, length: int
) -> tuple[ModuleGraph, dict[Event, float], dict[tuple[str, str, Phase], float]]:
    """A graph of which some modules train, with whole seconds of work and messages."""
    draw = np.random.default_rng(seed)
    names = [f"m{i}" for i in range(length)]
    modules = tuple(
        Module(name=name, forward_flops=1, parameter_bytes=1, trainable_bytes=int(draw.integers(0, 2)))
        for name in names
    )
    pairs = [pair for pair in itertools.combinations(names, 2) if draw.random() < 0.5]
    edges = tuple(Edge(source=a, target=b, num_elements=int(draw.integers(0, 3))) for a, b in pairs)
    phases: tuple[Phase, Phase] = ("forward", "backward")
    work = {(name, phase): float(draw.integers(1, 9)) for name in names for phase in phases}
    messages = {(a, b, phase): float(draw.integers(0, 9)) for a, b in pairs for phase in phases}
    return ModuleGraph(modules=modules, edges=edges), work, messages


def paths_s(
    graph: ModuleGraph, work: dict[Event, float], messages: dict[tuple[str, str, Phase], float], mode: Mode
) -> Iterator[float]:
    """Every way forward, and from each module on it the ways back along edges with a gradient."""

    def onward(name: str, spent: float, phase: Phase) -> Iterator[float]:
        spent += work[name, phase]
        yield spent
        edges = graph.outgoing[name] if phase == "forward" else graph.incoming[name]
        for edge in edges:
            if phase == "forward":
                yield from onward(edge.target, spent + messages[(*edge.key, phase)], phase)
            elif edge.key in graph.gradient_edges:
                yield from onward(edge.source, spent + messages[(*edge.key, phase)], phase)
        if phase == "forward" and mode == "training" and name in graph.gradient_modules:
            yield from onward(name, spent, "backward")

    for name in graph.order:
        yield from onward(name, 0.0, "forward")


def found(
    graph: ModuleGraph,
    work: dict[Event, float],
    messages: dict[tuple[str, str, Phase], float],
    mode: Mode,
    node_of: dict[str, str],
) -> Timeline:
    return timeline(
        graph,
        mode,
        node_of,
        lambda name, phase: work[name, phase],
        lambda e, phase: messages[(*e.key, phase)],
    )


@given(seed=st.integers(0, 10_000), length=st.integers(1, 6), mode=st.sampled_from(["training", "inference"]))
@settings(max_examples=60, deadline=None)
def test_equals_the_longest_of_all_paths(seed: int, length: int, mode: Mode) -> None:
    graph, work, messages = drawn(seed, length)
    apart = found(graph, work, messages, mode, {name: name for name in graph.order})
    longest = max(paths_s(graph, work, messages, mode))
    assert max(apart.ends_s.values()) == longest
    path = apart.critical_path()
    spent = [work[event] + (messages[(*edge.key, event[1])] if edge else 0) for edge, event in path]
    assert sum(spent) == longest and path[0][0] is None


def test_one_node_works_on_one_thing_at_a_time() -> None:
    graph, work, messages = drawn(3, 5)
    together = found(graph, work, messages, "inference", dict.fromkeys(graph.order, "node"))
    assert together.busy_s == {"node": sum(work[name, "forward"] for name in graph.order)}
    assert together.latency_s == max(together.busy_s["node"], max(together.ends_s.values()))


def test_without_modules_nothing_takes_time() -> None:
    empty = found(ModuleGraph(modules=(), edges=()), {}, {}, "training", {})
    assert empty.latency_s == 0 and empty.critical_path() == []


@pytest.mark.parametrize("trains", [0, 1])
def test_gradients_stop_where_nothing_before_trains(trains: int) -> None:
    modules = (
        Module(name="a", forward_flops=1, parameter_bytes=1, trainable_bytes=trains),
        Module(name="b", forward_flops=1, parameter_bytes=1, trainable_bytes=1),
    )
    graph = ModuleGraph(modules=modules, edges=(Edge(source="a", target="b", num_elements=1),))
    assert graph.gradient_modules == ({"a", "b"} if trains else {"b"})
    seconds = found(
        graph,
        dict.fromkeys([("a", "forward"), ("b", "forward"), ("a", "backward"), ("b", "backward")], 1.0),
        {("a", "b", "forward"): 1.0, ("a", "b", "backward"): 1.0},
        "training",
        {"a": "x", "b": "y"},
    ).latency_s
    assert seconds == (6 if trains else 4)
