"""A round's state and the cost function agree: a schedule takes as long, and spends as much, as planned."""

import dataclasses

import numpy as np
import pytest

from airlam.errors import SpecError
from airlam.split.cost import cost
from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink
from airlam.split.plan import SplitPlan
from airlam.split.policies import AllDevices, BestChannel, ControllerSpec, DriftPlusPenalty
from airlam.split.queues import Budgets
from airlam.split.rounds import round_state

DEVICES = ("a", "b", "c")


def graph() -> ModuleGraph:
    """Embedding and head on devices, blocks on the server: up, down, up."""
    modules = (
        Module(name="embedding", forward_flops=2e9),
        Module(
            name="blocks", forward_flops=5e10, backward_flops=1e11, parameter_bytes=100, trainable_bytes=10
        ),
        Module(name="head", forward_flops=1e9, backward_flops=2e9, parameter_bytes=10, trainable_bytes=10),
    )
    edges = (
        Edge(source="embedding", target="blocks", num_elements=60_000),
        Edge(source="blocks", target="head", num_elements=20_000),
    )
    return ModuleGraph(modules=modules, edges=edges)


def network() -> EdgeNetwork:
    gains = {"a": 1e-11, "b": 3e-12, "c": 2e-13}
    devices = [
        Node(name=n, kind="device", compute_flops_per_s=s, energy_j_per_flop=1e-11)
        for n, s in zip(DEVICES, (2e10, 5e10, 1e10), strict=True)
    ]
    return EdgeNetwork(
        nodes=(*devices, Node(name="edge", kind="server", compute_flops_per_s=1e13)),
        cells=(RadioCell(server="edge", uplink_bandwidth_hz=1e7, downlink_bandwidth_hz=2e7),),
        radio_links=tuple(
            RadioLink(device=n, server="edge", gain=g, tx_power_w=0.1, latency_s=0.003)
            for n, g in gains.items()
        ),
    )


PLAN = SplitPlan(replicas={"embedding": DEVICES, "blocks": ("edge",), "head": DEVICES})


@pytest.mark.parametrize("policy", [AllDevices(), BestChannel(count=2), AllDevices(bandwidth="equal")])
def test_the_cost_of_a_schedule_is_the_choices_delay_and_energy(policy: AllDevices) -> None:
    state = round_state(graph(), network(), PLAN, round_index=0)
    choice = policy.decide(state)
    schedule = state.schedule(choice)
    schedule.check(network())
    priced = cost(graph(), network(), PLAN, schedule)
    assert set(priced.flows) == {n for n, taken in zip(DEVICES, choice.selected, strict=True) if taken}
    assert priced.latency_s == pytest.approx(choice.delay_s, rel=1e-9)
    energy = [priced.node_energy_j(device) for device in DEVICES]
    assert state.energy_j(choice) == pytest.approx(energy, rel=1e-9)
    if policy == AllDevices():
        latencies = [flow.latency_s for flow in priced.flows.values()]
        assert latencies == pytest.approx([choice.delay_s] * 3, rel=1e-9)  # done together


def test_payloads_weights_and_steps() -> None:
    one = round_state(graph(), network(), PLAN, round_index=4, data_weights={"a": 10.0, "c": 30.0})
    assert one.payload_bits.tolist() == [8 * 4 * (60_000 + 20_000)] * 3
    assert one.data_weights.tolist() == [10.0, 0.0, 30.0] and one.round_index == 4
    many = round_state(graph(), network(), PLAN, round_index=0, num_steps=5)
    for name in ("fixed_delay_s", "payload_bits", "fixed_energy_j"):
        assert getattr(many, name) == pytest.approx(5 * getattr(one, name))
    noise_w = 1e7 * network().cell_of["edge"].noise_psd_w_per_hz
    assert one.full_band_snr == pytest.approx(0.1 * np.array([1e-11, 3e-12, 2e-13]) / noise_w)
    served = round_state(graph(), network(), PLAN, round_index=0, mode="inference")
    assert served.payload_bits.tolist() == [8 * 4 * 60_000] * 3


def test_a_device_without_channel_is_left_out() -> None:
    faded = network().with_gains({"b": 0.0})
    state = round_state(graph(), faded, PLAN, round_index=0)
    policy = DriftPlusPenalty(ControllerSpec(budgets=Budgets(delay_s=1.0), num_rounds=10))
    choice = policy.decide(state)
    assert choice.selected.tolist() == [True, False, True]
    assert cost(graph(), faded, PLAN, state.schedule(choice)).latency_s == pytest.approx(choice.delay_s)


def test_devices_must_share_one_cell() -> None:
    found = network()
    wired = dataclasses.replace(found, radio_links=found.radio_links[:2])
    with pytest.raises(SpecError, match="c has no radio link"):
        round_state(graph(), wired, PLAN, round_index=0)
    far = Node(name="far", kind="server", compute_flops_per_s=1e12)
    cell = RadioCell(server="far", uplink_bandwidth_hz=1e6, downlink_bandwidth_hz=1e6)
    moved = dataclasses.replace(found.radio_links[2], server="far")
    two = dataclasses.replace(
        found,
        nodes=(*found.nodes, far),
        cells=(*found.cells, cell),
        radio_links=(*found.radio_links[:2], moved),
    )
    with pytest.raises(SpecError, match="cells of edge, far"):
        round_state(graph(), two, PLAN, round_index=0)
