"""The planner: equal to exhaustive search, within its limits, and clear about what cannot be done."""

import dataclasses
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from airlam.errors import SpecError
from airlam.split.cost import cost
from airlam.split.graph import Edge, LoraLoad, Module, ModuleGraph, Precision
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink, WiredLink
from airlam.split.plan import Schedule, SplitPlan
from airlam.split.planner import InfeasiblePlan, Method, plan_split
from airlam.split.planner_chain import chain_edges
from airlam.split.planner_milp import Formulation
from airlam.split.planner_problem import Assignment, Budgets, Choices, Objective, Problem
from airlam.split.planner_search import score, solve_search
from airlam.split.timeline import Mode

RANKS = (2, 8)
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


def network(draw: np.random.Generator, *, num_servers: int = 2, tight: bool = True) -> EdgeNetwork:
    """A device, servers in a row, and memories that not every plan fits."""
    servers = tuple(f"s{i}" for i in range(num_servers))
    memory = (lambda: float(draw.integers(40, 200))) if tight else (lambda: math.inf)
    nodes = [
        Node(name="d", kind="device", compute_flops_per_s=1.0, memory_bytes=memory(), energy_j_per_flop=0.5)
    ]
    for name in servers:
        speed = float(draw.integers(2, 9))
        nodes.append(Node(name=name, kind="server", compute_flops_per_s=speed, memory_bytes=memory()))
    return EdgeNetwork(
        nodes=tuple(nodes),
        cells=(
            RadioCell(
                server="s0", uplink_bandwidth_hz=200.0, downlink_bandwidth_hz=400.0, noise_psd_w_per_hz=1e-3
            ),
        ),
        radio_links=(RadioLink(device="d", server="s0", gain=float(draw.uniform(0.5, 4)), latency_s=0.1),),
        wired_links=tuple(
            WiredLink(first=a, second=b, rate_bps=float(draw.integers(100, 900)), latency_s=0.05)
            for a, b in itertools.pairwise(servers)
        ),
    )


def module(draw: np.random.Generator, name: str) -> Module:
    adapted = bool(draw.integers(0, 2))
    lora = LoraLoad(
        forward_flops=0.1, backward_flops=0.2, parameter_bytes=1, optimiser_bytes=2, activation_bytes=1
    )
    return Module(
        name=name,
        forward_flops=float(draw.integers(1, 20)),
        backward_flops=float(draw.integers(1, 20)),
        parameter_bytes=int(draw.integers(2, 40)),
        trainable_bytes=int(draw.integers(0, 2)),
        activation_bytes=int(draw.integers(0, 20)),
        working_bytes=int(draw.integers(0, 20)),
        lora=lora if adapted else None,
    )


def edge(draw: np.random.Generator, source: str, target: str) -> Edge:
    return Edge(
        source=source,
        target=target,
        num_elements=int(draw.integers(1, 40)),
        fixed_bytes=int(draw.integers(0, 9)),
    )


def chain(draw: np.random.Generator, length: int) -> ModuleGraph:
    names = [f"m{i}" for i in range(length)]
    edges = tuple(edge(draw, a, b) for a, b in itertools.pairwise(names))
    return ModuleGraph(modules=tuple(module(draw, name) for name in names), edges=edges)


def branching(draw: np.random.Generator, length: int) -> ModuleGraph:
    names = [f"m{i}" for i in range(length)]
    pairs = [(a, b) for a, b in itertools.combinations(names, 2) if draw.random() < 0.6]
    edges = tuple(edge(draw, a, b) for a, b in pairs)
    return ModuleGraph(modules=tuple(module(draw, name) for name in names), edges=edges)


def objective(draw: np.random.Generator) -> Objective:
    return Objective(
        energy_s_per_j=float(draw.choice([0.0, 0.3])),
        rank_value_s=float(draw.choice([0.0, 0.5])),
        precision_penalty_s={"int8": float(draw.choice([0.0, 0.5]))},
    )


def problem(draw: np.random.Generator, graph: ModuleGraph, mode: Mode, *, num_servers: int = 2) -> Problem:
    net = network(draw, num_servers=num_servers)
    return Problem(
        graph=graph,
        network=net,
        schedule=Schedule.equal(net),
        mode=mode,
        objective=objective(draw),
        budgets=Budgets(
            latency_s=float(draw.choice([math.inf, 40.0])),
            node_energy_j={"d": float(draw.choice([1e9, 12.0]))},
        ),
        choices=Choices(pins={"m0": ("d",)}, ranks=RANKS, precisions=PRECISIONS),
    )


def best_value(given: Problem) -> float:
    """By trying every option of every module and every precision of every edge; infinite where none fits."""
    best = math.inf
    keys = [e.key for e in given.graph.edges]
    for options in itertools.product(*(given.options[name] for name in given.names)):
        placed = {option.module: option for option in options}
        cut = [k for k in keys if placed[k[0]].node != placed[k[1]].node]
        for chosen in itertools.product(PRECISIONS, repeat=len(cut)):
            worth = score(given, Assignment(placed, dict(zip(cut, chosen, strict=True))))
            if worth is not None and worth[0] == 0:
                best = min(best, worth[1])
    return best


def planned_value(given: Problem, method: Method) -> float:
    try:
        found = plan_split(
            given.graph,
            given.network,
            mode=given.mode,
            objective=given.objective,
            budgets=given.budgets,
            choices=given.choices,
            method=method,
        )
    except InfeasiblePlan as refused:
        assert refused.excess
        return math.inf
    for node in given.network.nodes:
        assert found.cost.memory_bytes[node.name] <= node.memory_bytes
    assert found.cost.latency_s <= given.budgets.latency_s * (1 + 1e-9)
    assert found.cost.node_energy_j("d") <= given.budgets.node_energy_j["d"] * (1 + 1e-9)
    return found.value


@settings(max_examples=25, deadline=None)
@drawn(st.integers(0, 10_000), st.sampled_from(["training", "inference"]))
def test_chains_equal_exhaustive_search(seed: int, mode: Mode) -> None:
    draw = np.random.default_rng(seed)
    given = problem(draw, chain(draw, 4), mode)
    assert chain_edges(given) is not None
    exhaustive = best_value(given)
    assert planned_value(given, "chain") == pytest.approx(exhaustive, rel=1e-9, abs=1e-9)
    assert planned_value(given, "milp") == pytest.approx(exhaustive, rel=1e-6, abs=1e-6)


@settings(max_examples=25, deadline=None)
@drawn(st.integers(0, 10_000), st.sampled_from(["training", "inference"]))
def test_small_graphs_equal_exhaustive_search(seed: int, mode: Mode) -> None:
    draw = np.random.default_rng(seed)
    given = problem(draw, branching(draw, 4), mode, num_servers=1)
    assert planned_value(given, "auto") == pytest.approx(best_value(given), rel=1e-6, abs=1e-6)


@settings(max_examples=30, deadline=None)
@drawn(st.integers(0, 10_000), st.sampled_from(["training", "inference"]))
def test_tables_say_what_cost_says(seed: int, mode: Mode) -> None:
    draw = np.random.default_rng(seed)
    given = problem(draw, branching(draw, 6), mode, num_servers=3)
    options = {name: choices[draw.integers(len(choices))] for name, choices in given.options.items()}
    precisions = {e.key: PRECISIONS[draw.integers(2)] for e in given.graph.edges}
    assignment = Assignment(options, precisions)
    totals = given.totals(assignment)
    assert totals is not None
    priced = cost(given.graph, given.network, given.plan(assignment), given.schedule, mode)
    assert totals.used["latency", ""] == pytest.approx(priced.latency_s, rel=1e-12)
    assert totals.used["energy", ""] == pytest.approx(priced.energy_j, rel=1e-12)
    for node in given.network.by_name:
        assert totals.used.get(("memory", node), 0) == priced.memory_bytes[node]
        assert totals.used.get(("storage", node), 0) == priced.storage_bytes[node]
        assert totals.used.get(("node energy", node), 0) == pytest.approx(priced.node_energy_j(node))


def sized(seed: int, length: int, num_servers: int, *, branching_edges: bool) -> Problem:
    """A larger graph, with memory to match."""
    draw = np.random.default_rng(seed)
    graph = chain(draw, length)
    if branching_edges:
        extra = [
            (i, j) for i in range(length) for j in range(i + 2, min(length, i + 4)) if draw.random() < 0.2
        ]
        added = tuple(edge(draw, f"m{i}", f"m{j}") for i, j in extra)
        graph = dataclasses.replace(graph, edges=(*graph.edges, *added))
    given = problem(draw, graph, "training", num_servers=num_servers)
    nodes = tuple(
        dataclasses.replace(node, memory_bytes=node.memory_bytes * length / 4) for node in given.network.nodes
    )
    return dataclasses.replace(
        given, network=dataclasses.replace(given.network, nodes=nodes), budgets=Budgets()
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_search_comes_close_and_its_bound_holds(seed: int) -> None:
    given = sized(seed, 12, 3, branching_edges=True)
    options = {"objective": given.objective, "choices": given.choices}
    exact = plan_split(given.graph, given.network, method="milp", time_limit_s=30, **options)  # type: ignore[arg-type]
    found = plan_split(given.graph, given.network, method="search", **options)  # type: ignore[arg-type]
    assert exact.is_optimal
    assert found.bound <= exact.value * (1 + 1e-6)
    assert exact.value * (1 - 1e-6) <= found.value <= 1.05 * exact.value


def test_search_gives_the_same_for_the_same_seed() -> None:
    given = sized(5, 10, 2, branching_edges=True)
    first, second = (solve_search(given, np.random.default_rng(3)) for _ in range(2))
    assert first == second


def test_out_of_time_the_best_known_is_given_with_its_bound() -> None:
    given = sized(3, 16, 3, branching_edges=True)
    options = {"objective": given.objective, "choices": given.choices}
    exact = plan_split(given.graph, given.network, method="milp", time_limit_s=30, **options)  # type: ignore[arg-type]
    hasty = plan_split(given.graph, given.network, method="milp", time_limit_s=0.02, **options)  # type: ignore[arg-type]
    assert hasty.bound <= exact.value * (1 + 1e-6)
    assert hasty.value >= exact.value * (1 - 1e-6)


def test_the_relaxation_is_below_the_optimum() -> None:
    given = sized(4, 8, 2, branching_edges=True)
    relaxed, exact = (Formulation(given).solve(relaxed=flag) for flag in (True, False))
    assert relaxed.bound <= exact.bound + 1e-9
    assert relaxed.assignment is None


def simple(**changes: object) -> Problem:
    """A block of 300 bytes with state that fits the server, and the device only with less rank."""
    lora = LoraLoad(
        forward_flops=0, backward_flops=0, parameter_bytes=5, optimiser_bytes=10, activation_bytes=0
    )
    graph = ModuleGraph(
        modules=(
            Module(name="in", forward_flops=1, parameter_bytes=10),
            Module(name="block", forward_flops=100, backward_flops=100, parameter_bytes=300, lora=lora),
            Module(name="out", forward_flops=1, parameter_bytes=10, trainable_bytes=10),
        ),
        edges=(
            Edge(source="in", target="block", num_elements=100),
            Edge(source="block", target="out", num_elements=100),
        ),
    )
    net = EdgeNetwork(
        nodes=(
            Node(name="d", kind="device", compute_flops_per_s=10, memory_bytes=400, energy_j_per_flop=0.01),
            Node(name="s", kind="server", compute_flops_per_s=1000, memory_bytes=1000),
        ),
        cells=(
            RadioCell(
                server="s", uplink_bandwidth_hz=500, downlink_bandwidth_hz=500, noise_psd_w_per_hz=1e-3
            ),
        ),
        radio_links=(RadioLink(device="d", server="s", gain=1.5, tx_power_w=1),),
    )
    fields: dict[str, object] = {
        "graph": graph,
        "network": net,
        "schedule": Schedule.equal(net),
        "choices": Choices(pins={"in": ("d",), "out": ("d",)}, ranks=(2, 4)),
    }
    return Problem(**(fields | changes))  # type: ignore[arg-type]


def plan_of(given: Problem) -> SplitPlan:
    return plan_split(
        given.graph,
        given.network,
        schedule=given.schedule,
        objective=given.objective,
        budgets=given.budgets,
        choices=given.choices,
    ).plan


def test_a_fast_server_is_worth_the_way_there() -> None:
    assert plan_of(simple()).node_of("block") == "s"


def test_a_slow_link_is_not() -> None:
    given = simple()
    slow = given.network.with_gains({"d": 0.01})
    assert plan_of(dataclasses.replace(given, network=slow)).node_of("block") == "d"


def test_ranks_rise_where_they_are_worth_their_memory() -> None:
    alone = Choices(pins=dict.fromkeys(("in", "block", "out"), ("d",)), ranks=(1, 2, 4, 8))
    worthless = simple(choices=alone)
    assert plan_of(worthless).lora_ranks == {"block": 1}
    dear = simple(choices=alone, objective=Objective(rank_value_s=1.0))
    # 10 + 20 + 300 bytes and 5 + 5 + 10 a unit of rank: 3 would fit into the 400
    assert plan_of(dear).lora_ranks == {"block": 2}


def test_precisions_are_coarse_unless_that_costs() -> None:
    choices = dataclasses.replace(simple().choices, precisions=("fp32", "bf16", "int8"))
    cheap = plan_of(simple(choices=choices))
    assert set(cheap.precisions.values()) == {"int8"}
    dear = Objective(precision_penalty_s={"int8": 100.0, "bf16": 100.0})
    assert set(plan_of(simple(choices=choices, objective=dear)).precisions.values()) == {"fp32"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": Budgets(latency_s=2.0)}, r"exceeds the latency budget by .* % \(.* s of 2 s\)"),
        ({"budgets": Budgets(node_energy_j={"d": 0.01})}, r"exceeds the energy of d by .* J of 0\.01 J"),
        (
            {"choices": Choices(pins=dict.fromkeys(("in", "block", "out"), ("d",)), ranks=(8,))},
            r"exceeds the memory of d by 22\.5 % \(0\.00049 MB of 0\.0004 MB\)",
        ),
    ],
)
def test_infeasible_says_what_binds_and_by_how_much(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InfeasiblePlan, match=message) as refused:
        plan_of(simple(**changes))
    assert len(refused.value.excess) == 1


def test_nodes_without_a_link_are_named_as_such() -> None:
    given = simple(choices=Choices(pins={"in": ("d",), "block": ("s",), "out": ("d",)}))
    silent = dataclasses.replace(given, network=given.network.with_gains({"d": 0.0}))
    with pytest.raises(InfeasiblePlan, match="no link with a rate"):
        plan_of(silent)


def test_planning_needs_no_torch() -> None:
    code = "import sys, airlam.split.fleet, airlam.split.network_spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0


def test_slips_are_named() -> None:
    with pytest.raises(SpecError, match="pins name 'x'"):
        simple(choices=Choices(pins={"x": ("d",)}))
    with pytest.raises(SpecError, match="in is pinned to 'x'"):
        simple(choices=Choices(pins={"in": ("x",)}))
    with pytest.raises(SpecError, match="no node may run in"):
        simple(choices=Choices(pins={"in": ()}))
    with pytest.raises(SpecError, match="the graph is no chain"):
        given = sized(1, 6, 1, branching_edges=True)
        plan_split(given.graph, given.network, method="chain")
    with pytest.raises(SpecError, match="ranks are"):
        Choices(ranks=(0,))


def test_edges_between_modules_pinned_together_leave_a_chain() -> None:
    given = simple()
    aside = Edge(source="in", target="out", num_elements=0, fixed_bytes=1000)
    graph = dataclasses.replace(given.graph, edges=(*given.graph.edges, aside))
    assert chain_edges(dataclasses.replace(given, graph=graph)) == given.graph.edges
    free = dataclasses.replace(given, graph=graph, choices=Choices(pins={"in": ("d",)}))
    assert chain_edges(free) is None


def test_a_chain_with_too_many_equals_goes_to_the_milp() -> None:
    given = sized(1, 14, 2, branching_edges=False)
    found = plan_split(given.graph, given.network, objective=given.objective, choices=given.choices)
    assert found.method == "milp"
    assert found.is_optimal
