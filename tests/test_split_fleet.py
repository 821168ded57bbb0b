"""Plans for many devices: as good for each as alone with its shares, and together within all memory."""

import dataclasses

import pytest

from airlam.errors import SpecError
from airlam.split.cost import cost
from airlam.split.fleet import OWN_DEVICE, Fleet, merged, plan_fleet
from airlam.split.graph import Edge, LoraLoad, Module, ModuleGraph
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink, WiredLink
from airlam.split.plan import Schedule, SplitPlan
from airlam.split.planner import InfeasiblePlan
from airlam.split.planner_problem import Budgets, Choices

DEVICES = ("slow0", "slow1", "fast", "far")
LORA = LoraLoad(forward_flops=1, backward_flops=2, parameter_bytes=5, optimiser_bytes=10, activation_bytes=1)


def network(*, server_memory: float = 1e4) -> EdgeNetwork:
    """Two slow devices and a fast one in the cell of s, one at t; s and t are wired."""
    speeds = dict(zip(DEVICES, (10.0, 10.0, 1e5, 10.0), strict=True))
    return EdgeNetwork(
        nodes=(
            *(
                Node(name=name, kind="device", compute_flops_per_s=flops, memory_bytes=2000)
                for name, flops in speeds.items()
            ),
            Node(name="s", kind="server", compute_flops_per_s=4000, memory_bytes=server_memory),
            Node(name="t", kind="server", compute_flops_per_s=4000, memory_bytes=server_memory),
        ),
        cells=tuple(
            RadioCell(
                server=name, uplink_bandwidth_hz=3e4, downlink_bandwidth_hz=3e4, noise_psd_w_per_hz=1e-6
            )
            for name in "st"
        ),
        radio_links=tuple(
            RadioLink(device=name, server="t" if name == "far" else "s", gain=1.0) for name in speeds
        ),
        wired_links=(WiredLink(first="s", second="t", rate_bps=100),),
    )


def graph() -> ModuleGraph:
    modules = (
        Module(name="in", forward_flops=1, parameter_bytes=10),
        Module(
            name="block",
            forward_flops=500,
            backward_flops=500,
            parameter_bytes=300,
            activation_bytes=200,
            lora=LORA,
        ),
        Module(name="out", forward_flops=1, backward_flops=1, parameter_bytes=10, trainable_bytes=10),
    )
    edges = tuple(Edge(source=a, target=b, num_elements=100) for a, b in (("in", "block"), ("block", "out")))
    return ModuleGraph(modules=modules, edges=edges)


def fleet(net: EdgeNetwork | None = None, **changes: object) -> Fleet:
    net = net or network()
    fields: dict[str, object] = {
        "graph": graph(),
        "network": net,
        "schedule": Schedule.equal(net),
        "choices": Choices(pins={"in": (OWN_DEVICE,), "out": (OWN_DEVICE,), "block": (OWN_DEVICE, "s", "t")}),
    }
    return Fleet(**(fields | changes))  # type: ignore[arg-type]


def test_each_device_gets_what_suits_it() -> None:
    found = plan_fleet(fleet())
    plan = found.plan
    assert plan.flow_names == ("slow0", "slow1", "fast", "far")
    assert plan.flow("slow0").node_of["block"] == "s"
    assert plan.flow("fast").node_of["block"] == "fast"
    assert plan.flow("far").node_of["block"] == "t"
    for device, alone in found.planned.items():
        assert alone.is_optimal
        assert found.cost.flows[device].latency_s == pytest.approx(alone.cost.latency_s, rel=1e-12)
    assert SplitPlan.from_dict(plan.to_dict()) == plan


def test_all_cut_alike() -> None:
    found = plan_fleet(fleet(same_cut=True))
    cuts = {
        tuple("own" if node == device else node for node in found.plan.flow(device).node_of.values())
        for device in DEVICES
    }
    assert len(cuts) == 1
    free = plan_fleet(fleet())
    assert sum(one.value for one in found.planned.values()) >= sum(one.value for one in free.planned.values())


def test_a_cut_that_some_cannot_take_is_refused_by_name() -> None:
    far = dataclasses.replace(network(), wired_links=())  # s and t cannot reach each other's devices
    small = tuple(dataclasses.replace(n, memory_bytes=100) if n.kind == "device" else n for n in far.nodes)
    with pytest.raises(InfeasiblePlan, match="no plan can carry its messages"):
        plan_fleet(fleet(dataclasses.replace(far, nodes=small), same_cut=True))


def test_servers_hold_what_all_devices_put_there() -> None:
    weights, activations = 300 + 8 * (5 + 5 + 10), 200 + 8 * 1
    for num_flows in (1, 2):
        room = weights + num_flows * activations + 50.0
        found = plan_fleet(fleet(network(server_memory=room)))
        assert found.cost.memory_bytes["s"] == weights + num_flows * activations
        assert found.cost.memory_bytes["t"] <= room
        users = [name for name in DEVICES if found.plan.flow(name).node_of["block"] == "s"]
        assert len(users) == num_flows


def test_what_no_device_can_hold_is_refused_by_name() -> None:
    tiny = network(server_memory=100)
    small = tuple(dataclasses.replace(n, memory_bytes=100) if n.kind == "device" else n for n in tiny.nodes)
    with pytest.raises(InfeasiblePlan, match=r"slow0: no plan is within all limits; .* memory of"):
        plan_fleet(fleet(dataclasses.replace(tiny, nodes=small)))


def test_some_devices_only() -> None:
    net = network()
    found = plan_fleet(fleet(net, schedule=Schedule.equal(net, ["slow1", "fast"])))
    assert found.plan.flow_names == ("slow1", "fast")
    single = plan_fleet(fleet(net, schedule=Schedule.equal(net, ["slow1"])))
    assert single.plan.node_of("in") == "slow1"
    priced = cost(graph(), net, single.plan, Schedule.equal(net, ["slow1"]))
    assert priced.latency_s == pytest.approx(single.planned["slow1"].cost.latency_s)


def test_merging_takes_the_least_rank_and_the_coarsest_precision() -> None:
    plans = {
        "d0": SplitPlan.single({"a": "d0", "b": "s"}, lora_ranks={"b": 8}, precisions={("a", "b"): "bf16"}),
        "d1": SplitPlan.single({"a": "d1", "b": "t"}, lora_ranks={"b": 4}, precisions={("a", "b"): "int8"}),
    }
    plan = merged(plans)
    assert plan.lora_ranks == {"b": 4}
    assert plan.precisions == {("a", "b"): "int8"}
    assert plan.routes == {"d0": {"b": "s"}, "d1": {"b": "t"}}
    assert plan.flow_names == ("d0", "d1")
    assert plan.flow("d1").node_of == {"a": "d1", "b": "t"}


def test_slips_are_named() -> None:
    with pytest.raises(SpecError, match="no module is pinned to 'device'"):
        fleet(choices=Choices())
    with pytest.raises(SpecError, match="no device takes part"):
        fleet(schedule=Schedule(allocations={}))
    with pytest.raises(SpecError, match="node_energy_j names 's'"):
        fleet(budgets=Budgets(node_energy_j={"s": 1.0}))
