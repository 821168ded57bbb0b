"""Placement of services: priced as by ``cost``, equal to exhaustive search, clear about what cannot be."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping

import numpy as np
import pytest
from scipy.optimize import OptimizeResult

from airlam.errors import SpecError
from airlam.split import linear_program
from airlam.split.cost import cost
from airlam.split.fleet import OWN_DEVICE
from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink, WiredLink
from airlam.split.placement import solve
from airlam.split.placement.drawing import Drawing
from airlam.split.placement.exact import Formulation
from airlam.split.placement.report import placement_text, placement_values
from airlam.split.placement.search import Search, greedy, nearest
from airlam.split.placement.services import Placement, RequestClass, ServiceProblem
from airlam.split.placement.solve import InfeasiblePlacement, Method, place
from airlam.split.placement.tables import Tables
from airlam.split.timeline import Phase, timeline

TINY = Drawing(num_servers=(3, 3), num_tasks=(1, 1), num_classes=(2, 2), branches=False, load=(0.9, 1.3))
TINY_BRANCHED = dataclasses.replace(TINY, branches=True, num_classes=(1, 1))


def feasible(drawing: Drawing, seed: int) -> ServiceProblem:
    """The first draw from ``seed`` on that is not refused."""
    for number in itertools.count(seed):
        problem = drawing.draw(np.random.default_rng(number))
        if Formulation(Tables(problem)).solve(time_limit_s=10, gap=1e-2).status != "infeasible":
            return problem
    raise AssertionError


def chain_problem(**changes: object) -> ServiceProblem:
    """Two services on two servers that a wire joins; a device in the first one's cell."""
    graph = ModuleGraph(
        modules=(
            Module(name="a", forward_flops=2e9, parameter_bytes=100, working_bytes=10, output_bytes=1),
            Module(name="b", forward_flops=1e9, parameter_bytes=200),
        ),
        edges=(Edge(source="a", target="b", num_elements=250),),
    )
    network = EdgeNetwork(
        nodes=(
            Node(name="d", kind="device", compute_flops_per_s=1e10, energy_j_per_flop=1e-11),
            Node(name="s0", kind="server", compute_flops_per_s=1e11, energy_j_per_flop=1e-12),
            Node(name="s1", kind="server", compute_flops_per_s=2e11, energy_j_per_flop=1e-12),
        ),
        cells=(RadioCell(server="s0", uplink_bandwidth_hz=1e6, downlink_bandwidth_hz=2e6),),
        radio_links=(RadioLink(device="d", server="s0", gain=1e-9, latency_s=1e-3),),
        wired_links=(WiredLink(first="s0", second="s1", rate_bps=1e7, latency_s=2e-3),),
    )
    one = RequestClass(
        name="n", home="d", services=("a", "b"), arrival_per_s=5.0, input_bytes=1000, output_bytes=10
    )
    problem = ServiceProblem(graph=graph, network=network, classes=(one,), max_load=0.9)
    return dataclasses.replace(problem, **changes)  # type: ignore[arg-type]


def routed(*nodes: str) -> Placement:
    hosts = {"a": tuple({nodes[0], "s0", "s1"} - {""}), "b": ("s0", "s1")}
    return Placement(hosts=hosts, routes={"n": {"a": nodes[0], "b": nodes[1]}})


@pytest.mark.parametrize("nodes", list(itertools.product(("s0", "s1"), repeat=2)))
def test_without_load_a_request_takes_what_cost_says(nodes: tuple[str, str]) -> None:
    quiet = dataclasses.replace(chain_problem().classes[0], arrival_per_s=1e-9)
    problem = chain_problem(classes=(quiet,))
    tables, placement = Tables(problem), routed(*nodes)
    priced = tables.price(tables.nodes_of(placement)[None])
    graph, plan = problem.class_graph(quiet), placement.plan_of(quiet)
    expected = cost(graph, problem.network, plan, problem.shares, "inference")
    assert priced.latency_s[0, 0] == pytest.approx(expected.latency_s, rel=1e-9)
    assert expected.energy_j > 0


@pytest.mark.parametrize("seed", range(4))
def test_under_load_each_wait_is_stretched_by_its_queue(seed: int) -> None:
    """The same recursion as ``timeline``, its durations divided by 1 - load."""
    problem = Drawing().draw(np.random.default_rng(seed))
    tables = Tables(problem)
    at = greedy(tables)
    priced = tables.price(at[None])
    loads = dict(zip(tables.nodes, priced.node_load[0], strict=True))
    links = {(h.source, h.target): load for h, load in zip(tables.hops, priced.link_load[0], strict=True)}
    placement = tables.placement(at, tables.used(at[None])[0])
    for n, one in enumerate(problem.classes):
        node_of = placement.plan_of(one).flow(one.home).node_of
        expected = stretched_latency_s(tables, problem.class_graph(one), node_of, loads, links)
        assert priced.latency_s[0, n] == pytest.approx(expected, rel=1e-9)


def stretched_latency_s(
    tables: Tables,
    graph: ModuleGraph,
    node_of: Mapping[str, str],
    loads: Mapping[str, float],
    links: Mapping[tuple[str, str], float],
) -> float:
    def work_s(name: str, phase: Phase) -> float:
        seconds = tables.resources.compute_s(node_of[name], graph.by_name[name].forward_flops)
        return seconds / (1 - min(loads[node_of[name]], 0.999))

    def message_s(edge: Edge, phase: Phase) -> float:
        total = 0.0
        for hop in tables.problem.network.route(node_of[edge.source], node_of[edge.target]):
            air_s = tables.resources.hop_air_s(hop, edge.forward_bytes())
            total += hop.link.latency_s + air_s / (1 - min(links[hop.source, hop.target], 0.999))
        return total

    return timeline(graph, "inference", node_of, work_s, message_s).latency_s


def test_the_value_of_chains_is_the_number_of_requests_in_all_queues() -> None:
    """Little's law: sum of rate times latency = sum of load / (1 - load) and the fixed latencies."""
    problem = chain_problem()
    tables = Tables(problem)
    priced = tables.price(tables.nodes_of(routed("s0", "s1"))[None])
    loads = np.concatenate([priced.node_load[0], priced.link_load[0]])
    fixed_s = 1e-3 + 2e-3 + 2e-3 + 1e-3  # up, wire there, wire back, down
    expected = (loads / (1 - loads)).sum() + 5.0 * fixed_s
    assert 5.0 * priced.value_s[0] == pytest.approx(expected)


def brute_force(problem: ServiceProblem) -> float:
    """Of every assignment of calls and every set of instances that holds it; infinite where none fits."""
    tables = Tables(problem)
    every = np.array(list(itertools.product(*tables.allowed)))
    priced = tables.price(every)
    for index in np.lexsort((priced.value_s, priced.excess)):
        if priced.excess[index] > 0:
            break
        if _has_room(tables, tables.used(every[index][None])[0]):
            return float(priced.value_s[index])
    return math.inf


def _has_room(tables: Tables, used: np.ndarray) -> bool:
    """Whether any choice of further instances gives every service its replicas."""
    choices = []
    for m in range(len(tables.services)):
        nodes = np.flatnonzero(tables.may_host[m] & ~used[m])
        missing = max(int(tables.wanted[m] - used[m].sum()), 0)
        choices.append(list(itertools.combinations(nodes, missing)))
    for added in itertools.product(*choices):
        held = used.copy()
        for m, nodes in enumerate(added):
            held[m, list(nodes)] = True
        if (tables.instance_bytes @ held <= tables.memory * (1 + 1e-9)).all():
            return True
    return False


@pytest.mark.parametrize("drawing", [TINY, TINY_BRANCHED], ids=["chains", "branches"])
@pytest.mark.parametrize("seed", range(4))
def test_the_program_finds_what_exhaustive_search_finds(drawing: Drawing, seed: int) -> None:
    problem = drawing.draw(np.random.default_rng(seed))
    expected = brute_force(problem)
    if math.isinf(expected):
        with pytest.raises(InfeasiblePlacement):
            place(problem, method="exact")
        return
    found = place(problem, method="exact")
    assert found.value_s == pytest.approx(expected, rel=1e-5)
    assert found.bound_s <= expected * (1 + 1e-9) and found.gap < 1e-5
    assert_within_limits(problem, found.placement)


def assert_within_limits(problem: ServiceProblem, placement: Placement) -> None:
    tables = Tables(problem)
    held, at = tables.held_of(placement), tables.nodes_of(placement)
    priced = tables.price(at[None])
    assert (tables.used(at[None])[0] <= held).all()
    assert ((held & tables.may_host).sum(axis=1) >= tables.wanted).all()
    assert (tables.instance_bytes @ held <= tables.memory * (1 + 1e-6)).all()
    assert max(priced.node_load.max(), priced.link_load.max(initial=0)) <= problem.max_load * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_search_is_near_the_optimum_and_above_the_relaxations_bound(seed: int) -> None:
    problem = feasible(dataclasses.replace(Drawing(), num_classes=(2, 2)), seed)
    exact = place(problem, method="exact", time_limit_s=10)
    found = place(problem, method="search", seed=seed, time_limit_s=10)
    assert exact.bound_s <= found.value_s <= 1.05 * exact.value_s
    assert 0 < found.bound_s <= exact.value_s * (1 + 1e-6)
    assert_within_limits(problem, found.placement)
    assert found == place(problem, method="search", seed=seed, time_limit_s=10)


def test_improving_never_makes_worse() -> None:
    tables = Tables(Drawing().draw(np.random.default_rng(5)))
    search = Search(tables, np.random.default_rng(0), time_limit_s=20)
    for start in (greedy(tables), nearest(tables)):
        before = search.score(start)
        after, at = search.improve(start)
        assert after <= before and after == search.score(at)


def num_instances(placement: Placement) -> int:
    return sum(len(nodes) for nodes in placement.hosts.values())


def test_every_service_has_two_replicas_on_different_nodes() -> None:
    found = place(chain_problem())
    assert {len(set(nodes)) for nodes in found.placement.hosts.values()} == {2}
    alone = place(chain_problem(min_replicas=1, instance_s=1e-3))
    assert num_instances(alone.placement) == 2


def short_of_memory() -> EdgeNetwork:
    """Of the chain problem, with 155 bytes on the second server."""
    network = chain_problem().network
    nodes = tuple(dataclasses.replace(n, memory_bytes=155.0) if n.name == "s1" else n for n in network.nodes)
    return dataclasses.replace(network, nodes=nodes)


def test_what_is_in_the_way_is_named_with_its_measure() -> None:
    """Both servers must hold 110 + 200 bytes, and one has room for 155 only: twice as much is needed."""
    problem = chain_problem(network=short_of_memory())
    for method in ("exact", "search"):
        with pytest.raises(InfeasiblePlacement, match="memory of s1 by 100 %") as refused:
            place(problem, method=method)  # type: ignore[arg-type]
        assert refused.value.excess == {("memory", "s1"): pytest.approx(1.0, rel=1e-6)}
    assert place(dataclasses.replace(problem, min_replicas=1)).placement.routes["n"]["b"] == "s0"


def test_too_many_requests_are_told_by_the_load() -> None:
    busy = dataclasses.replace(chain_problem().classes[0], arrival_per_s=200.0)
    with pytest.raises(InfeasiblePlacement, match="the load allowed on") as refused:
        place(chain_problem(classes=(busy,)), method="exact")
    # 3e9 FLOPs a request, 3e11 FLOP/s: 200 requests need two times what there is
    compute = [over for (limit, _), over in refused.value.excess.items() if limit == "compute"]
    assert sum(compute) > 0


def test_a_device_works_for_its_own_requests_and_is_no_replica() -> None:
    one = dataclasses.replace(chain_problem().classes[0], arrival_per_s=2.0)
    other = dataclasses.replace(one, name="m", home="s1")
    problem = chain_problem(pins={"a": (OWN_DEVICE,)}, classes=(one, other))
    found = place(problem, method="exact")
    assert found.placement.routes["n"]["a"] == "d" and found.placement.routes["m"]["a"] == "s1"
    assert set(found.placement.hosts["a"]) == {"d", "s1"}
    searched = place(problem, method="search")
    assert searched.value_s == pytest.approx(found.value_s, rel=1e-6)


def test_sketch_and_video_need_seven_instances() -> None:
    """Wang et al., 2505.00321, Fig. 3: four and five modules of which two are shared."""
    image = ("sketch_precoder", "projection", "image_backbone", "image_decoder")
    video = ("sketch_precoder", "projection", "text_encoder", "video_backbone", "video_decoder")
    names = tuple(dict.fromkeys((*image, *video)))
    joins = [*itertools.pairwise(image), ("projection", "video_backbone")]
    joins += [("text_encoder", "video_backbone"), ("video_backbone", "video_decoder")]
    graph = ModuleGraph(
        modules=tuple(Module(name=name, forward_flops=1e9, parameter_bytes=10) for name in names),
        edges=tuple(Edge(source=a, target=b, num_elements=100) for a, b in joins),
    )
    network = chain_problem().network
    classes = (
        RequestClass(name="image", home="d", services=image, arrival_per_s=1.0),
        RequestClass(name="video", home="d", services=video, arrival_per_s=1.0),
    )
    problem = ServiceProblem(graph=graph, network=network, classes=classes, min_replicas=1, instance_s=1e-3)
    found = place(problem, method="exact")
    assert num_instances(found.placement) == 7 and len(image) + len(video) == 9
    assert num_instances(place(dataclasses.replace(problem, min_replicas=2)).placement) == 14
    with pytest.raises(SpecError, match="cycle"):
        back = Edge(source="image_decoder", target="sketch_precoder", num_elements=1)
        ModuleGraph(modules=graph.modules, edges=(*graph.edges, back))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"services": ("a", "a")}, "twice"),
        ({"services": ()}, "no service"),
        ({"arrival_per_s": 0.0}, "arrival_per_s"),
        ({"home": "x"}, "'x'"),
        ({"services": ("c",)}, "'c'"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        one = dataclasses.replace(chain_problem().classes[0], **changes)  # type: ignore[arg-type]
        chain_problem(classes=(one,))


def test_a_class_that_reaches_no_node_is_told() -> None:
    network = chain_problem().network.with_gains({"d": 0.0})
    with pytest.raises(SpecError, match="n reaches no node from d"):
        place(chain_problem(network=network))


def test_what_highs_prints_does_not_reach_the_commands_standard_output() -> None:
    code = (
        "import ctypes; from airlam import cli\n"
        "cli._status = lambda: ctypes.CDLL(None).puts(b'noise') and print('{}') or 0\n"
        "cli.main()\n"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "{}\n" and "noise" in run.stderr


def test_what_others_print_while_a_program_is_solved_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    milp = linear_program.milp

    def milp_beside_others(*arguments: object, **options: object) -> object:
        os.write(1, b"a request")  # as another thread of a server does
        return milp(*arguments, **options)

    monkeypatch.setattr(linear_program, "milp", milp_beside_others)
    place(chain_problem(), method="exact")
    assert "a request" in capfd.readouterr().out


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Programs that take all the time they are given and find nothing; the limits they were given."""
    given: list[float] = []

    def milp(*_: object, options: Mapping[str, float], **__: object) -> OptimizeResult:
        given.append(options["time_limit"])
        time.sleep(options["time_limit"])
        return OptimizeResult(status=1, x=None, fun=None, mip_dual_bound=None, message="time limit reached")

    monkeypatch.setattr(linear_program, "milp", milp)
    return given


@pytest.mark.parametrize("method", ["auto", "search"])
def test_one_time_limit_is_that_of_all_together(method: Method, slow: list[float]) -> None:
    began_s = time.monotonic()
    found = place(chain_problem(), method=method, time_limit_s=0.5)
    assert time.monotonic() - began_s < 5 and 0 < sum(slow) < 0.5
    assert found.method == "search" and math.isinf(found.gap)
    slow.clear()
    with pytest.raises(InfeasiblePlacement, match="give it more time"):
        place(chain_problem(network=short_of_memory()), method=method, time_limit_s=0.5)
    assert time.monotonic() - began_s < 10 and sum(slow) <= 0.5


def test_the_exact_method_never_searches(slow: list[float]) -> None:
    with pytest.raises(SpecError, match="the program found no placement in time"):
        place(chain_problem(), method="exact", time_limit_s=0.1)
    assert len(slow) == 1


def test_without_a_bound_no_program_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = place(chain_problem(), method="exact")
    monkeypatch.setattr(solve, "Formulation", None)
    found = place(chain_problem(), method="search", with_bound=False)
    assert found.value_s == pytest.approx(expected.value_s)


def test_where_no_bound_is_known_values_and_text_say_so() -> None:
    problem = chain_problem()
    found = place(problem, method="search", with_bound=False)
    assert placement_values(problem, found)["gap"] is None
    json.dumps(placement_values(problem, found), allow_nan=False)
    assert "no bound is known" in placement_text(problem, found)
    bounded = place(problem, method="search")
    assert placement_values(problem, bounded)["gap"] == bounded.gap < 0.01


def test_what_takes_no_time_is_proven_optimal() -> None:
    graph = ModuleGraph(modules=(Module(name="a", forward_flops=0.0),), edges=())
    one = RequestClass(name="n", home="s0", services=("a",), arrival_per_s=1.0)
    found = place(chain_problem(graph=graph, classes=(one,)))
    assert found.value_s == 0 and found.gap == 0
