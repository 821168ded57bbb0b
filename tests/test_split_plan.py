"""Split plans: which copy a flow takes, what is cut, and the way to JSON and back."""

import json

import pytest

from airlam.errors import SpecError
from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.plan import Allocation, SplitPlan

GRAPH = ModuleGraph(
    modules=tuple(Module(name=name, forward_flops=1) for name in "abc"),
    edges=(Edge(source="a", target="b", num_elements=1), Edge(source="b", target="c", num_elements=1)),
)
FLEET = SplitPlan(
    replicas={"a": ("d0", "d1", "d2"), "b": ("s", "d2"), "c": ("s", "t")},
    lora_ranks={"b": 4},
    precisions={("a", "b"): "int8"},
    routes={"d0": {"c": "s"}, "d1": {"c": "t"}, "d2": {"c": "t"}},
)


def test_each_device_takes_its_own_copy_else_the_servers() -> None:
    assert FLEET.flow_names == ("d0", "d1", "d2")
    assert FLEET.flow("d0").node_of == {"a": "d0", "b": "s", "c": "s"}
    assert FLEET.flow("d1").node_of == {"a": "d1", "b": "s", "c": "t"}
    assert FLEET.flow("d2").node_of == {"a": "d2", "b": "d2", "c": "t"}
    assert FLEET.flow("d2").nodes == ("d2", "t")


def test_cuts_and_what_nodes_hold() -> None:
    assert FLEET.cut_edges(GRAPH, "d0") == (("a", "b"),)
    assert FLEET.cut_edges(GRAPH, "d2") == (("b", "c"),)
    assert FLEET.modules_on("s") == ("b", "c")
    assert FLEET.precision_of("a", "b") == "int8"
    assert FLEET.precision_of("b", "c") == "fp32"
    assert (FLEET.rank_of("b"), FLEET.rank_of("a")) == (4, 0)


def test_some_of_the_flows() -> None:
    first = FLEET.restricted_to(["d0"])
    assert first.replicas == {"a": ("d0",), "b": ("s",), "c": ("s",)}
    assert first.flow("d0") == FLEET.flow("d0")
    two = FLEET.restricted_to(["d0", "d2"])
    assert two.flow_names == ("d0", "d2")
    assert two.flow("d2") == FLEET.flow("d2")
    with pytest.raises(SpecError, match="no flow"):
        FLEET.restricted_to(["s"])


def test_plans_survive_json() -> None:
    assert SplitPlan.from_dict(json.loads(json.dumps(FLEET.to_dict()))) == FLEET
    single = SplitPlan.single({"a": "d", "b": "s"})
    assert SplitPlan.from_dict(json.loads(json.dumps(single.to_dict()))) == single
    assert single.flow_names == ("d",)
    assert single.node_of("b") == "s"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"replicas": {"a": ()}}, "a runs nowhere"),
        ({"replicas": {"a": ("d", "d")}}, "twice on one node"),
        ({"replicas": {"a": ("d",)}, "lora_ranks": {"a": 0}}, "LoRA rank of a is 0"),
        ({"replicas": {"a": ("d",)}, "precisions": {("a", "b"): "fp8"}}, "precision of a -> b is 'fp8'"),
        ({"replicas": {"a": ("d",)}, "routes": {"d": {"a": "s"}}}, "which does not hold it"),
    ],
)
def test_impossible_plans_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SplitPlan(**fields)  # type: ignore[arg-type]


def test_copies_on_more_nodes_than_there_are_devices() -> None:
    plan = SplitPlan(
        replicas={"a": ("d0", "d1"), "b": ("s", "d0", "t")}, routes={"d1": {"b": "t"}}, flows=("d0", "d1")
    )
    assert plan.flow_names == ("d0", "d1")
    assert plan.flow("d0").node_of == {"a": "d0", "b": "d0"}
    assert plan.flow("d1").node_of == {"a": "d1", "b": "t"}


def test_an_ambiguous_copy_is_named() -> None:
    plan = SplitPlan(replicas={"a": ("d0", "d1", "d2"), "b": ("s", "t")})
    with pytest.raises(SpecError, match="module b is on s, t"):
        plan.flow("d0")
    with pytest.raises(SpecError, match="no module 'x'"):
        plan.node_of("x", "d0")


def test_shares_are_shares() -> None:
    with pytest.raises(SpecError, match=r"uplink_share is 1\.5; expected 0 to 1"):
        Allocation(uplink_share=1.5, downlink_share=0, tx_power_w=1)
