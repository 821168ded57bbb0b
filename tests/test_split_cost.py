"""Costs by hand: split training and inference on round numbers, and averaging at a round's end."""

import dataclasses
import math

import pytest

from airlam.errors import SpecError
from airlam.split.cost import cost
from airlam.split.exchange import exchange_cost
from airlam.split.graph import Edge, LoraLoad, Module, ModuleGraph
from airlam.split.ledger import Cost
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink, WiredLink
from airlam.split.plan import Allocation, Schedule, SplitPlan

# At SNR 3 on the whole band a hertz carries 2 bit/s, so 500 Hz carry 125 byte/s.
DEVICES = ("k0", "k1")


def network() -> EdgeNetwork:
    """Two devices of 10 FLOP/s, a server of 100 FLOP/s; uplink 125 byte/s, downlink 250 byte/s when alone."""
    return EdgeNetwork(
        nodes=(
            *(
                Node(
                    name=name, kind="device", compute_flops_per_s=10, energy_j_per_flop=0.5, memory_bytes=1e4
                )
                for name in DEVICES
            ),
            Node(name="s", kind="server", compute_flops_per_s=100, energy_j_per_flop=0.1),
            Node(name="far", kind="server", compute_flops_per_s=1000),
        ),
        cells=(
            RadioCell(
                server="s",
                uplink_bandwidth_hz=500,
                downlink_bandwidth_hz=1000,
                downlink_power_w=2,
                noise_psd_w_per_hz=1e-3,
            ),
        ),
        radio_links=tuple(RadioLink(device=name, server="s", gain=1.5, tx_power_w=1) for name in DEVICES),
        wired_links=(WiredLink(first="s", second="far", rate_bps=8000, latency_s=0.25),),
    )


def alone(device: str = "k0") -> Schedule:
    return Schedule(
        allocations={device: Allocation(uplink_share=1, downlink_share=1, tx_power_w=1, compute_share=0.5)}
    )


def graph(*, frozen_embedding: bool = False) -> ModuleGraph:
    """embedding -> block -> head, 125 bytes an edge as fp32 (30 floats and 5 fixed bytes)."""
    embedding = Module(
        name="embedding",
        forward_flops=20,
        backward_flops=0 if frozen_embedding else 40,
        parameter_bytes=100,
        trainable_bytes=0 if frozen_embedding else 100,
        optimiser_bytes=0 if frozen_embedding else 200,
        activation_bytes=7,
        working_bytes=11,
    )
    block = Module(
        name="block",
        forward_flops=200,
        backward_flops=300,
        parameter_bytes=1000,
        activation_bytes=70,
        working_bytes=90,
        lora=LoraLoad(
            forward_flops=10, backward_flops=20, parameter_bytes=5, optimiser_bytes=10, activation_bytes=3
        ),
    )
    head = Module(
        name="head",
        forward_flops=10,
        backward_flops=30,
        parameter_bytes=50,
        trainable_bytes=50,
        optimiser_bytes=100,
        activation_bytes=9,
        working_bytes=13,
    )
    edges = tuple(
        Edge(source=a, target=b, num_elements=30, num_rows=3, fixed_bytes=5)
        for a, b in (("embedding", "block"), ("block", "head"))
    )
    return ModuleGraph(modules=(embedding, block, head), edges=edges)


PLAN = SplitPlan.single({"embedding": "k0", "block": "s", "head": "k0"}, lora_ranks={"block": 2})


def steps(found: Cost, flow: str = "k0") -> list[tuple[str, str, str, float]]:
    return [(s.phase, s.kind, s.what, pytest.approx(s.duration_s)) for s in found.flows[flow].critical_path]


def test_a_split_training_step() -> None:
    found = cost(graph(), network(), PLAN, alone())
    up, down = 125, 250  # bytes a second: 500 Hz at SNR 3, 1000 Hz at SNR 3
    assert steps(found) == [
        ("forward", "compute", "embedding", 2.0),
        ("forward", "uplink", "embedding -> block", 125 / up),
        ("forward", "compute", "block", 2.2),  # (200 + 2 * 10) / 100
        ("forward", "downlink", "block -> head", 125 / down),
        ("forward", "compute", "head", 1.0),
        ("backward", "compute", "head", 3.0),
        ("backward", "uplink", "block -> head", 120 / up),  # the Jacobian; no fixed bytes
        ("backward", "compute", "block", 3.4),  # (300 + 2 * 20) / 100
        ("backward", "downlink", "embedding -> block", 120 / down),
        ("backward", "compute", "embedding", 4.0),
    ]
    assert found.latency_s == pytest.approx(2 + 1 + 2.2 + 0.5 + 1 + 3 + 0.96 + 3.4 + 0.48 + 4)
    assert found.link_bytes == {("k0", "s"): 245, ("s", "k0"): 245}
    assert found.compute_energy_j == {"k0": pytest.approx(0.5 * 100), "s": pytest.approx(0.1 * 560)}
    assert found.radio_energy_j == {"k0": pytest.approx(1 + 0.96), "s": pytest.approx(2 * (0.5 + 0.48))}
    assert found.energy_j == pytest.approx(50 + 56 + 1.96 + 1.96)
    assert found.node_energy_j("k0") == pytest.approx(51.96)
    assert found.memory_bytes["k0"] == (100 + 100 + 200 + 7) + (50 + 50 + 100 + 9)
    assert found.memory_bytes["s"] == 1010 + 10 + 20 + 76
    assert found.memory_bytes["far"] == found.memory_bytes["k1"] == 0
    assert found.storage_bytes["s"] == 1010


def test_a_frozen_embedding_gets_no_gradient() -> None:
    found = cost(graph(frozen_embedding=True), network(), PLAN, alone())
    assert steps(found)[-1][:3] == ("backward", "compute", "block")
    assert found.link_bytes == {("k0", "s"): 245, ("s", "k0"): 125}


def test_kept_embeddings_are_not_sent_again() -> None:
    later = graph(frozen_embedding=True).restricted_to(["block", "head"])
    found = cost(later, network(), PLAN, alone())
    assert found.link_bytes == {("s", "k0"): 125, ("k0", "s"): 120}
    assert found.flows["k0"].critical_path[0].what == "block"


def test_inference_is_the_forward_half() -> None:
    found = cost(graph(), network(), PLAN, alone(), "inference")
    training = cost(graph(), network(), PLAN, alone())
    forward = [s for s in training.flows["k0"].critical_path if s.phase == "forward"]
    assert list(found.flows["k0"].critical_path) == forward
    assert found.memory_bytes["k0"] == 100 + 50 + 13  # weights, and the larger working set
    assert found.memory_bytes["s"] == 1010 + 90


def test_precision_changes_bytes_only() -> None:
    coarse = dataclasses.replace(PLAN, precisions={("embedding", "block"): "int8", ("block", "head"): "bf16"})
    found = cost(graph(), network(), coarse, alone())
    int8, bf16 = 30 + 3 * 4, 60
    assert found.link_bytes == {("k0", "s"): int8 + 5 + bf16, ("s", "k0"): bf16 + 5 + int8}
    assert found.compute_energy_j == cost(graph(), network(), PLAN, alone()).compute_energy_j


def test_all_on_one_node_sends_nothing() -> None:
    on_device = SplitPlan.single(dict.fromkeys(("embedding", "block", "head"), "k0"), lora_ranks={"block": 2})
    found = cost(graph(), network(), on_device, alone())
    assert found.link_bytes == {}
    assert found.latency_s == pytest.approx((20 + 220 + 10 + 40 + 340 + 30) / 10)


def test_store_and_forward_over_a_wire() -> None:
    plan = SplitPlan.single({"embedding": "k0", "block": "far", "head": "k0"}, lora_ranks={"block": 2})
    found = cost(graph(), network(), plan, alone(), "inference")
    assert [s.kind for s in found.flows["k0"].critical_path] == [
        *("compute", "uplink", "wire", "compute", "wire", "downlink", "compute")
    ]
    assert found.flows["k0"].spent_s("wire") == pytest.approx(2 * (0.25 + 0.125))
    assert found.link_bytes[("s", "far")] == 125


def fleet_plan() -> SplitPlan:
    return SplitPlan(
        replicas={"embedding": DEVICES, "block": ("s",), "head": DEVICES}, lora_ranks={"block": 2}
    )


def test_copies_give_each_device_a_flow_with_its_share() -> None:
    both = Schedule.equal(network())
    found = cost(graph(), network(), fleet_plan(), both)
    assert set(found.flows) == set(DEVICES)
    own = SplitPlan.single({"embedding": "k0", "block": "s", "head": "k0"}, lora_ranks={"block": 2})
    halved = dataclasses.replace(network().by_name["s"], compute_flops_per_s=50)
    nodes = tuple(halved if n.name == "s" else n for n in network().nodes)
    single = cost(graph(), dataclasses.replace(network(), nodes=nodes), own, both)
    assert found.flows["k0"] == single.flows["k0"]
    assert found.memory_bytes["s"] == 1010 + 10 + 20 + 2 * 76  # weights once, activations for each
    assert found.energy_j == pytest.approx(2 * single.energy_j)
    assert found.link_bytes[("k1", "s")] == single.link_bytes[("k0", "s")]


def test_those_left_out_cost_nothing_but_memory() -> None:
    found = cost(graph(), network(), fleet_plan(), alone("k1"))
    assert set(found.flows) == {"k1"}
    assert found.node_energy_j("k0") == 0
    assert found.memory_bytes["k0"] == (100 + 100 + 200) + (50 + 50 + 100)  # no activations
    nobody = cost(graph(), network(), fleet_plan(), Schedule(allocations={}))
    assert (nobody.latency_s, nobody.energy_j, nobody.flows) == (0, 0, {})


def test_the_only_flow_must_take_part() -> None:
    with pytest.raises(SpecError, match="the schedule leaves a device out"):
        cost(graph(), network(), PLAN, alone("k1"))


def test_a_silent_link_takes_for_ever() -> None:
    found = cost(graph(), network().with_gains({"k0": 0.0}), PLAN, alone())
    assert found.latency_s == math.inf


def branches() -> ModuleGraph:
    """Two sensors' encoders, 100 and 60 FLOPs, meet in a head; only the head and the first encoder train."""
    return ModuleGraph(
        modules=(
            Module(name="a", forward_flops=100, backward_flops=50, parameter_bytes=4, trainable_bytes=4),
            Module(name="b", forward_flops=60),
            Module(name="head", forward_flops=10, backward_flops=20, parameter_bytes=4, trainable_bytes=4),
        ),
        edges=(
            Edge(source="a", target="head", num_elements=25),
            Edge(source="b", target="head", num_elements=25),
        ),
    )


def test_the_longest_branch_counts() -> None:
    apart = SplitPlan.single({"a": "k0", "b": "k1", "head": "s"})
    half = Allocation(uplink_share=0.5, downlink_share=0.5, tx_power_w=1)
    found = cost(branches(), network(), apart, Schedule(allocations={"k0": half, "k1": half}))
    up = 100 / (250 * math.log2(1 + 1.5 / 0.25) / 8)
    down = 100 / (500 * math.log2(1 + 1.5 / 0.5) / 8)
    assert found.latency_s == pytest.approx(10 + up + 0.1 + 0.2 + down + 5)
    assert found.link_bytes == {("k0", "s"): 100, ("k1", "s"): 100, ("s", "k0"): 100}


def test_one_node_cannot_do_two_branches_at_once() -> None:
    together = SplitPlan.single({"a": "k0", "b": "k0", "head": "s"})
    found = cost(branches(), network(), together, alone(), "inference")
    assert sum(s.duration_s for s in found.flows["k0"].critical_path) == pytest.approx(10 + 0.8 + 0.1)
    assert found.latency_s == pytest.approx(16)  # 160 FLOPs at 10 FLOP/s


def test_averaging_sends_what_trains_up_and_down() -> None:
    found = exchange_cost(
        graph(), network(), fleet_plan(), Schedule.equal(network()), aggregator="s", modules=["embedding"]
    )
    up = 250 * math.log2(1 + 1.5 / 0.25) / 8
    down = 125
    assert found.flows["k0"].latency_s == pytest.approx(100 / up + 100 / down)
    assert found.link_bytes == {(a, b): 100 for k in DEVICES for a, b in ((k, "s"), ("s", k))}


def test_averaging_leaves_personal_and_single_modules_alone() -> None:
    everyone = Schedule.equal(network())
    found = exchange_cost(graph(), network(), fleet_plan(), everyone, aggregator="s", modules=["block"])
    assert found.link_bytes == {}
    assert found.latency_s == 0


def test_a_server_has_no_more_than_itself_to_share() -> None:
    greedy = Allocation(uplink_share=0.5, downlink_share=0.5, tx_power_w=1, compute_share=0.6)
    with pytest.raises(SpecError, match=r"compute shares of s add up to 1\.2; at most 1"):
        cost(graph(), network(), fleet_plan(), Schedule(allocations=dict.fromkeys(DEVICES, greedy)))
    elsewhere = SplitPlan(
        replicas=dict.fromkeys(("embedding", "block", "head"), DEVICES), lora_ranks={"block": 2}
    )
    cost(graph(), network(), elsewhere, Schedule(allocations=dict.fromkeys(DEVICES, greedy)))


def test_plans_must_match_graph_and_network() -> None:
    with pytest.raises(SpecError, match="the plan has no module 'head'"):
        cost(
            graph(),
            network(),
            SplitPlan.single({"embedding": "k0", "block": "s"}, lora_ranks={"block": 2}),
            alone(),
        )
    nowhere = SplitPlan.single({"embedding": "k0", "block": "x", "head": "k0"}, lora_ranks={"block": 2})
    with pytest.raises(SpecError, match="puts block on 'x'"):
        cost(graph(), network(), nowhere, alone())
    with pytest.raises(SpecError, match="no LoRA rank for block"):
        cost(graph(), network(), dataclasses.replace(PLAN, lora_ranks={}), alone())
