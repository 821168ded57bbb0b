"""What is placed is what is served: its names, its work, its bytes, and its latency."""

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping

import pytest

from airlam.errors import SpecError
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.serving.lam_services import LamServices
from airlam.serving.service_graph import ServiceGraph, TaskModules, merge
from airlam.serving.service_loads import ServiceLoads, service_loads
from airlam.specs import ArraySpec, ModelSpec
from airlam.split.cost import cost
from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.network import EdgeNetwork, Node, WiredLink
from airlam.split.placement.baselines import monolithic
from airlam.split.placement.services import Placement, ServiceProblem
from airlam.split.placement.solve import place
from airlam.split.placement.tables import Tables
from airlam.split.plan import Schedule, SplitPlan
from airlam.tasks.planning import profiled

FREQUENCIES_HZ = tuple(180e3 * i for i in range(8))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=1, num_cols=4),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=6,
    num_horizon=2,
    max_doppler_hz=200.0,
)
SMALL = ModelSpec(num_layers=2, num_paths=5, lora_rank=3)
MODELS = {
    "a": SMALL,
    "b": dataclasses.replace(SMALL, lora_rank=2),
    "more": dataclasses.replace(SMALL, num_paths=7),
}

# Wang et al., 2505.00321, Fig. 3: what a sketch needs first is shared by both
FIGURE_3 = {
    "image": TaskModules.chain(
        {"sketch": "s", "projection": "m", "image_backbone": "i", "image_decoder": "j"}
    ),
    "video": TaskModules(
        identity_of={
            "sketch": "s",
            "projection": "m",
            "text": "t",
            "video_backbone": "v",
            "video_decoder": "w",
        },
        edges=(
            ("sketch", "projection"),
            ("projection", "video_backbone"),
            ("text", "video_backbone"),
            ("video_backbone", "video_decoder"),
        ),
    ),
}


def network(memory_bytes: float = math.inf) -> EdgeNetwork:
    nodes = tuple(
        Node(name=name, kind="server", compute_flops_per_s=speed, memory_bytes=memory_bytes)
        for name, speed in (("near", 2e9), ("far", 3e9))
    )
    wire = WiredLink(first="near", second="far", rate_bps=1e8, latency_s=1e-3)
    return EdgeNetwork(nodes=nodes, wired_links=(wire,))


def drawn_profile(modules: TaskModules) -> ModuleGraph:
    """A task's profile in which every module weighs and works the same."""
    return ModuleGraph(
        modules=tuple(
            Module(name=name, forward_flops=1e6, parameter_bytes=90, working_bytes=10)
            for name in modules.identity_of
        ),
        edges=tuple(Edge(source=a, target=b, num_elements=100) for a, b in modules.edges),
    )


@functools.cache
def lams() -> Mapping[str, LAM]:
    return {name: lam_for(spec, SETTING, 1).eval() for name, spec in MODELS.items()}


@functools.cache
def profiles() -> Mapping[str, ModuleGraph]:
    found = {}
    for name, lam in lams().items():
        graph = profiled(lam, SETTING, "inference").for_batch(1)
        found[name] = graph.at_ranks({module.name: lam.spec.lora_rank for module in graph.modules})
    return found


def served(*names: str) -> tuple[LamServices, ServiceLoads]:
    services = LamServices({name: copy.deepcopy(lams()[name]) for name in names})
    return services, service_loads(services.graph, {name: profiles()[name] for name in names})


def problem_of(loads: ServiceLoads, **changes: object) -> ServiceProblem:
    classes = tuple(
        loads.request_class(
            task, home="near", arrival_per_s=2.0, deadline_s=0.1, input_bytes=2000, output_bytes=500
        )
        for task in loads.flows
    )
    problem = ServiceProblem(graph=loads.graph, network=network(), classes=classes)
    return dataclasses.replace(problem, **changes)  # type: ignore[arg-type]


def test_nine_modules_of_two_tasks_are_seven_instances_where_nine_have_no_room() -> None:
    loads = service_loads(merge(FIGURE_3), {task: drawn_profile(own) for task, own in FIGURE_3.items()})
    crowded = problem_of(loads, network=network(memory_bytes=400.0), min_replicas=1, instance_s=1.0)
    hosts = place(crowded).placement.hosts
    assert sum(len(nodes) for nodes in hosts.values()) == 7  # of 100 bytes, eight have room
    _, fitted = monolithic(Tables(crowded))
    assert not fitted
    roomy = Tables(problem_of(loads, network=network(memory_bytes=500.0), min_replicas=1))
    assert monolithic(roomy)[1] and len(roomy.calls) == 9


def test_services_are_those_of_the_server() -> None:
    services, loads = served("a", "b", "more")
    assert set(loads.graph.by_name) == {service.name for service in services.graph.services}
    assert set(services.graph.edges) <= {edge.key for edge in loads.graph.edges}
    for task, flow in loads.flows.items():
        assert set(flow.by_name) == set(services.graph.flows[task].values())
        profile = profiles()[task]
        assert sum(m.forward_flops for m in flow.modules) == sum(m.forward_flops for m in profile.modules)


def test_a_second_lam_takes_the_bytes_that_it_adds_to_the_server() -> None:
    """The server has what enters the backbone once; embeddings that run apart each need it."""
    (alone, alone_loads), (both, both_loads) = served("a"), served("a", "b")
    embedding = profiles()["b"].by_name["embedding"]
    entrance = embedding.parameter_bytes - embedding.trainable_bytes
    placed = [sum(m.parameter_bytes for m in one.graph.modules) for one in (alone_loads, both_loads)]
    assert placed[1] - placed[0] - entrance == both.num_bytes - alone.num_bytes > 0
    apart = sum(m.parameter_bytes for name in "ab" for m in profiles()[name].modules)
    assert placed[1] < 0.7 * apart


def test_a_placed_request_takes_what_cost_says_of_the_lam_itself() -> None:
    _, loads = served("a", "more")
    problem = problem_of(loads)
    hosts = {service: ("near", "far") for service in loads.graph.order}
    for one in problem.classes:
        task = one.name.partition(" from ")[0]
        at = {
            name: "far" if name.startswith(("block", "norm")) else "near" for name in profiles()[task].order
        }
        renamed = {
            m.name: at[n.name]
            for m, n in zip(loads.flows[task].modules, profiles()[task].modules, strict=True)
        }
        placement = Placement(hosts=hosts, routes={one.name: renamed})
        plan = SplitPlan.single(at)
        expected = cost(profiles()[task], network(), plan, Schedule(allocations={}), "inference")
        graph, routed = problem.class_graph(one), placement.plan_of(one)
        unloaded = cost(graph, problem.network, routed, problem.shares, "inference")
        assert unloaded.latency_s == pytest.approx(expected.latency_s, rel=1e-12)
        rare = dataclasses.replace(one, arrival_per_s=1e-9)
        tables = Tables(dataclasses.replace(problem, classes=(rare,)))
        priced = tables.price(tables.nodes_of(placement)[None])
        assert priced.latency_s[0, 0] == pytest.approx(expected.latency_s, rel=1e-6)


def test_each_class_is_priced_by_its_own_tokens() -> None:
    _, loads = served("a", "more")
    tables = Tables(problem_of(loads))
    work_s = {call: seconds for call, seconds in zip(tables.calls, tables.work_s[:, 0], strict=True)}
    assert work_s[1, "block.0"] > 1.2 * work_s[0, "block.0"]
    assert (
        loads.graph.by_name["block.0"].forward_flops == loads.flows["more"].by_name["block.0"].forward_flops
    )


def test_what_does_not_fit_together_is_refused() -> None:
    graph: ServiceGraph = merge(FIGURE_3)
    given = {task: drawn_profile(own) for task, own in FIGURE_3.items()}
    with pytest.raises(SpecError, match="no profile of task 'video'"):
        service_loads(graph, {"image": given["image"]})
    with pytest.raises(SpecError, match="differ in"):
        service_loads(graph, given | {"video": given["image"]})
    with pytest.raises(SpecError, match="for_batch"):
        service_loads(graph, given | {"image": given["image"].for_batch(2)})
    services, loads = served("a")
    unranked = profiled(lams()["a"], SETTING, "inference").for_batch(1)
    with pytest.raises(SpecError, match="at_ranks"):
        service_loads(services.graph, {"a": unranked})
    with pytest.raises(SpecError, match="no task 'z'"):
        loads.request_class(
            "z", home="near", arrival_per_s=1.0, deadline_s=1.0, input_bytes=1, output_bytes=1
        )
    one = problem_of(loads).classes[0]
    with pytest.raises(SpecError, match="leave out"):
        dataclasses.replace(one, services=("elsewhere",))
