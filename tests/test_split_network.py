"""Edge networks: what does not fit is named, routes are shortest, rates have their closed forms."""

import math

import pytest

from airlam.errors import SpecError
from airlam.specs import CellSpec, DeviceSpec, NetworkSpec, ServerSpec, WireSpec, parse_spec, spec_to_toml
from airlam.split.network import (
    EdgeNetwork,
    Node,
    RadioCell,
    RadioLink,
    WiredLink,
    energy_per_flop,
    rate_bps,
)
from airlam.split.network_spec import edge_network
from airlam.split.plan import Allocation, Schedule
from airlam.split.resources import Resources, broadcast_s


def node(name: str, kind: str = "device", flops: float = 10.0) -> Node:
    return Node(name=name, kind=kind, compute_flops_per_s=flops, energy_j_per_flop=0.1)  # type: ignore[arg-type]


def network() -> EdgeNetwork:
    """Two devices at s0, a row of servers s0 - s1 - s2."""
    return EdgeNetwork(
        nodes=(node("a"), node("b"), node("s0", "server"), node("s1", "server"), node("s2", "server")),
        cells=(
            RadioCell(
                server="s0",
                uplink_bandwidth_hz=1000,
                downlink_bandwidth_hz=2000,
                downlink_power_w=4,
                noise_psd_w_per_hz=1e-3,
            ),
        ),
        radio_links=(
            RadioLink(device="a", server="s0", gain=3, tx_power_w=1, latency_s=0.01),
            RadioLink(device="b", server="s0", gain=0.5, tx_power_w=2),
        ),
        wired_links=(
            WiredLink(first="s0", second="s1", rate_bps=800, latency_s=0.5),
            WiredLink(first="s1", second="s2", rate_bps=1600),
        ),
    )


def resources(share: float = 0.5, *, compute_share: float = 1.0) -> Resources:
    granted = Allocation(uplink_share=share, downlink_share=share, tx_power_w=1)
    return Resources(
        network=network(), schedule=Schedule(allocations={"a": granted}), compute_share=compute_share
    )


def test_rate_is_shannons() -> None:
    assert rate_bps(1000, 1, 3, 1e-3) == pytest.approx(1000 * math.log2(4))
    assert rate_bps(0, 1, 3, 1e-3) == 0
    assert rate_bps(1000, 1, 0, 1e-3) == 0
    wide = rate_bps(1e12, 1, 3, 1e-3)  # the wideband limit p g / (N0 ln 2)
    assert wide == pytest.approx(3 / (1e-3 * math.log(2)), rel=1e-6)


def test_a_device_puts_its_power_into_its_share() -> None:
    up, down = network().route("a", "s0")[0], network().route("s0", "a")[0]
    assert resources().hop_rate_bps(up) == pytest.approx(500 * math.log2(1 + 3 / (500 * 1e-3)))
    assert resources().hop_rate_bps(down) == pytest.approx(1000 * math.log2(1 + 4 * 3 / (2000 * 1e-3)))


def test_times_and_energies_of_a_message() -> None:
    given = resources(1.0)
    up_rate = 1000 * math.log2(4)
    assert given.transfer_s("a", "s0", 125) == pytest.approx(0.01 + 1000 / up_rate)
    assert given.transfer_s("a", "s2", 125) == pytest.approx(
        0.01 + 1000 / up_rate + 0.5 + 1000 / 800 + 1000 / 1600
    )
    assert given.transfer_s("s1", "s1", 125) == 0
    assert given.transfer_energy_j("a", "s1", 125) == {"a": pytest.approx(1000 / up_rate), "s0": 0}
    down_rate = 2000 * math.log2(1 + 4 * 3 / 2)
    assert given.transfer_energy_j("s1", "a", 125) == {"s1": 0, "s0": pytest.approx(4 * 1000 / down_rate)}


def test_a_broadcast_waits_for_the_weakest_that_can_be_reached() -> None:
    rate = 2000 * math.log2(1 + 4 * 0.5 / (2000 * 1e-3))  # of b, on the whole band with all power
    assert broadcast_s(network(), "s0", 100) == pytest.approx(0.01 + 800 / rate)  # a's latency is the longer
    alone = network().with_gains({"b": 0.0})
    assert broadcast_s(alone, "s0", 100) == pytest.approx(0.01 + 800 / (2000 * math.log2(1 + 4 * 3 / 2)))
    assert broadcast_s(network(), "s0", 0) == 0
    assert broadcast_s(network().with_gains({"a": 0.0, "b": 0.0}), "s0", 100) == 0


def test_no_band_no_rate() -> None:
    assert resources(0.0).transfer_s("a", "s0", 1) == math.inf
    assert resources(0.0).transfer_s("a", "s0", 0) == 0.01
    with pytest.raises(SpecError, match="b takes no part in this schedule"):
        resources().transfer_s("b", "s0", 1)


def test_work_takes_flops_over_speed() -> None:
    assert resources(compute_share=0.25).compute_s("s0", 30) == pytest.approx(12)
    assert resources(compute_share=0.25).compute_s("a", 30) == pytest.approx(3)
    assert resources(compute_share=0.0).compute_s("s0", 30) == math.inf
    assert resources().compute_energy_j("a", 30) == pytest.approx(3)


def test_energy_of_a_flop() -> None:
    assert energy_per_flop(1e-28, 1e9, 4) == pytest.approx(1e-28 * 1e18 / 4)


def test_routes_take_the_fewest_links() -> None:
    assert [hop.kind for hop in network().route("a", "s2")] == ["uplink", "wire", "wire"]
    assert [hop.kind for hop in network().route("s2", "b")] == ["wire", "wire", "downlink"]
    assert [hop.target for hop in network().route("a", "b")] == ["s0", "b"]
    assert network().route("a", "a") == ()
    with pytest.raises(SpecError, match="no link leads from a to s2"):
        network().restricted_to(("a", "s0", "s2")).route("a", "s2")
    with pytest.raises(SpecError, match="no node 'x'"):
        network().route("a", "x")


def test_gains_change_and_nothing_else() -> None:
    faded = network().with_gains({"a": 7.0})
    assert faded.radio_of["a"].gain == 7
    assert faded.radio_of["b"] == network().radio_of["b"]
    assert faded.nodes == network().nodes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": (node("a"), node("a"))}, "'a' stands twice"),
        ({"nodes": ()}, "no node"),
        ({"nodes": (node("a"), node("b"))}, "names 's0', which is no node"),
        ({"cells": ()}, "which has no radio cell"),
        ({"radio_links": (RadioLink(device="s0", server="s0", gain=1),)}, "it is a server"),
        ({"radio_links": (RadioLink(device="a", server="s0", gain=1),) * 2}, "two radio links"),
        ({"wired_links": (WiredLink(first="s0", second="x", rate_bps=1),)}, "no node 'x'"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, object], message: str) -> None:
    fields = {name: getattr(network(), name) for name in ("nodes", "cells", "radio_links", "wired_links")}
    with pytest.raises(SpecError, match=message):
        EdgeNetwork(**(fields | changes))


def test_equal_schedules_share_cells_and_servers() -> None:
    everyone = Schedule.equal(network())
    assert everyone.devices == ("a", "b")
    assert everyone.allocations["b"] == Allocation(
        uplink_share=0.5, downlink_share=0.5, tx_power_w=2, compute_share=0.5
    )
    everyone.check(network())
    assert Schedule.equal(network(), ["a"]).allocations["a"].uplink_share == 1


def test_schedules_stay_within_the_cell() -> None:
    granted = Allocation(uplink_share=0.7, downlink_share=0.1, tx_power_w=1)
    with pytest.raises(SpecError, match=r"uplink shares of cell s0 add up to 1\.4"):
        Schedule(allocations={"a": granted, "b": granted}).check(network())
    strong = Allocation(uplink_share=0.7, downlink_share=0.1, tx_power_w=3)
    with pytest.raises(SpecError, match="a is to send with 3 W; it can 1 W"):
        Schedule(allocations={"a": strong}).check(network())


SPEC = NetworkSpec(
    name="tiny",
    servers=(
        ServerSpec(name="edge", compute_flops_per_s=1e12, memory_bytes=1e9),
        ServerSpec(name="far", compute_flops_per_s=1e13, memory_bytes=1e10, has_cell=False),
    ),
    devices=(
        DeviceSpec(name="phone", compute_flops_per_s=1e10, memory_bytes=1e9, count=2, path_gain_db=-100),
        DeviceSpec(name="car", compute_flops_per_s=1e11, memory_bytes=1e9),
    ),
    wires=(WireSpec(first="edge", second="far", rate_bps=1e9),),
    cell=CellSpec(noise_psd_dbm_per_hz=-170, noise_figure_db=5, downlink_power_dbm=40),
)


def test_specs_become_networks() -> None:
    found = edge_network(SPEC, {"car": 1e-9})
    assert found.devices == ("phone.0", "phone.1", "car")
    assert found.servers == ("edge", "far")
    assert found.radio_of["phone.1"].gain == pytest.approx(1e-10)
    assert found.radio_of["car"].gain == 1e-9
    assert found.radio_of["car"].tx_power_w == pytest.approx(10**-0.7)
    assert found.cell_of["edge"].noise_psd_w_per_hz == pytest.approx(10**-19.5)
    assert found.cell_of["edge"].downlink_power_w == pytest.approx(10)
    assert set(found.cell_of) == {"edge"}


def test_a_device_without_gain_is_named() -> None:
    with pytest.raises(SpecError, match="device car has no path_gain_db"):
        edge_network(SPEC)


def test_specs_survive_toml() -> None:
    assert parse_spec(NetworkSpec, spec_to_toml(SPEC)) == SPEC


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("servers = []", "servers is empty"),
        ('wires = [{ first = "edge", second = "x", rate_bps = 1.0 }]', "a wire ends at 'x'"),
        ('scenario = { model = "uma", fading = "raylei" }', "did you mean 'rayleigh'"),
        ("scenario = { min_radius_m = 10.0, max_radius_m = 5.0 }", "expected 0 < min <= max"),
        ('scenario = { model = "rma", carrier_frequency_hz = 60e9 }', "covers 5e.08 to 3e.10 in rma"),
        ("cell = { uplink_bandwith_hz = 1.0 }", "did you mean 'uplink_bandwidth_hz'"),
    ],
)
def test_slips_in_toml_are_named(changes: str, message: str) -> None:
    servers = '[{ name = "edge", compute_flops_per_s = 1.0, memory_bytes = 1.0 }]'
    devices = '[{ name = "phone", compute_flops_per_s = 1.0, memory_bytes = 1.0 }]'
    lines = {"name": '"n"', "servers": servers, "devices": devices}
    key, _, value = changes.partition(" = ")
    text = "\n".join(f"{k} = {v}" for k, v in (lines | {key: value}).items())
    with pytest.raises(SpecError, match=message):
        parse_spec(NetworkSpec, text)


def test_names_differ() -> None:
    twice = DeviceSpec(name="edge", compute_flops_per_s=1, memory_bytes=1)
    with pytest.raises(SpecError, match="two nodes are called 'edge'"):
        NetworkSpec(name="n", servers=SPEC.servers, devices=(twice,))
