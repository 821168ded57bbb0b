"""The simulated air: counters, virtual clock against the planner's cost, noise, losses, sums over the air."""

import math

import pytest
import torch

from airlam.errors import SpecError
from airlam.split.cost import cost
from airlam.split.failures import NodeFailure
from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.split.messages import Tensors
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink, WiredLink
from airlam.split.pace import NetworkPace
from airlam.split.payload import pack, unpack
from airlam.split.plan import Schedule, SplitPlan
from airlam.split.radio_link import EVERYONE, Air, LinkEffects, over_the_air_sum

LOSSY = {("d0", "s"): LinkEffects(loss_probability=0.3)}


def carried(air: Air, tensors: Tensors, step: int = 0, flow: str = "d0") -> Tensors:
    return air.carry(tensors, flow=flow, step=step, sender="d0", receiver="s")


def test_an_ideal_link_changes_nothing_and_counts_everything() -> None:
    air, sent = Air(), {"hidden": torch.randn(2, 3), "mask": torch.ones(2, dtype=torch.bool)}
    assert carried(air, sent) is sent
    assert air.traffic.bits() == 6 * 32 + 2 * 8 and air.traffic.num_messages == 1
    assert air.clock.now_s == 0
    assert air.carry(sent, flow="d0", step=0, sender="d0", receiver="d0") is sent  # stays at its node
    assert air.traffic.num_messages == 1


def test_a_broadcast_is_counted_once_and_takes_everybody_as_long() -> None:
    air = Air()
    air.clock.advance("d1", 1.0)
    air.broadcast({"weights": torch.ones(5)}, sender="s", flows=["d0", "d1"], seconds=0.25)
    assert air.traffic.sent == {("s", EVERYONE, "weights"): 5 * 32} and air.traffic.num_messages == 1
    assert air.clock.seconds == {"d0": 0.25, "d1": 1.25}


def test_noise_has_its_snr() -> None:
    air = Air({("d0", "s"): LinkEffects(snr_db=10.0)})
    sent = {"hidden": 3 * torch.randn(100, 400), "context.scale": torch.ones(4)}
    got = carried(air, sent)
    noise = got["hidden"] - sent["hidden"]
    ratio = sent["hidden"].square().mean() / noise.square().mean()
    assert ratio.item() == pytest.approx(10.0, rel=0.03)
    assert torch.equal(got["context.scale"], sent["context.scale"])
    with pytest.raises(SpecError, match="int8 payloads are sent as bits"):
        carried(air, pack("hidden", torch.randn(2, 2), "int8"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_erased_rows_arrive_as_zeros(precision: str) -> None:
    air = Air({("d0", "s"): LinkEffects(loss_probability=0.25, on_loss="erase")})
    value = torch.randn(40, 100, 3)
    packed = pack("hidden", value, precision)  # type: ignore[arg-type]
    got, sent = (unpack(tensors, "hidden") for tensors in (carried(air, packed), packed))
    lost = (got == 0).all(-1)
    assert lost.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(got[~lost], sent[~lost])


def test_losses_are_repeated_and_take_their_time() -> None:
    """Attempts are geometric: 1 / (1 - p) on average."""
    air, num = Air(LOSSY, pace=Slow()), 2000
    for step in range(num):
        assert carried(air, {"hidden": torch.ones(1)}, step)["hidden"].item() == 1
    assert air.traffic.bits() == 32 * num
    attempts = 1 + air.traffic.repeated["d0", "s", "hidden"] / (32 * num)
    assert attempts == pytest.approx(1 / 0.7, rel=0.03)
    assert air.clock.now_s == pytest.approx(attempts * num)


def test_a_link_that_stays_down_is_a_failure_of_its_sender() -> None:
    air = Air({("d0", "s"): LinkEffects(loss_probability=0.999999, max_attempts=3)}, pace=Slow())
    with pytest.raises(NodeFailure, match="d0 is lost: nothing came through to s in 3 attempts"):
        carried(air, {"hidden": torch.ones(1)})
    assert air.clock.now_s == 3


def test_what_happens_does_not_depend_on_the_order_of_flows() -> None:
    effects = {("d0", "s"): LinkEffects(snr_db=0.0)}
    sent = {"hidden": torch.ones(5)}
    first, second = Air(effects), Air(effects)
    one = {flow: carried(first, sent, flow=flow)["hidden"] for flow in ("d0", "d1")}
    other = {flow: carried(second, sent, flow=flow)["hidden"] for flow in ("d1", "d0")}
    assert all(torch.equal(one[flow], other[flow]) for flow in one)
    assert not torch.equal(one["d0"], one["d1"])
    assert not torch.equal(carried(first, sent, step=1)["hidden"], one["d0"])
    assert not torch.equal(carried(Air(effects, seed=1), sent)["hidden"], one["d0"])


def test_impossible_effects_are_refused() -> None:
    with pytest.raises(SpecError, match=r"loss_probability is 1; expected \[0, 1\)"):
        LinkEffects(loss_probability=1)
    with pytest.raises(SpecError, match="max_attempts must be at least 1"):
        LinkEffects(max_attempts=0)


class Slow:
    """A second a message, nothing for work."""

    def message_s(self, flow: str, sender: str, receiver: str, payload_bytes: float) -> float:
        return 1.0

    def work_s(self, flow: str, node: str, modules: object, phase: object) -> float:
        return 0.0


def test_flows_run_beside_each_other_and_rounds_wait_for_the_slowest() -> None:
    air = Air(pace=Slow())
    for flow, count in (("d0", 1), ("d1", 3)):
        for step in range(count):
            carried(air, {"hidden": torch.ones(1)}, step, flow)
    assert air.clock.now_s == 3
    air.clock.start_together(["d0", "d1"])
    carried(air, {"hidden": torch.ones(1)}, 5, "d0")
    assert air.clock.now_s == 4


def trained(name: str, flops: float) -> Module:
    return Module(
        name=name, forward_flops=flops, backward_flops=2 * flops, parameter_bytes=4, trainable_bytes=4
    )


def test_the_virtual_clock_is_the_planner_s_cost() -> None:
    """The messages and the work of a chain, entered one by one, take what the chain is priced at."""
    graph = ModuleGraph(
        modules=(
            trained("embedding", 2e6),
            trained("block.0", 8e7),
            trained("head", 1e6),
        ),
        edges=(
            Edge(source="embedding", target="block.0", num_elements=6000, num_rows=60, fixed_bytes=60),
            Edge(source="block.0", target="head", num_elements=6000, num_rows=60),
        ),
    )
    network = EdgeNetwork(
        nodes=(
            Node(name="d0", kind="device", compute_flops_per_s=1e9),
            Node(name="cell", kind="server", compute_flops_per_s=1e10),
            Node(name="s", kind="server", compute_flops_per_s=1e11),
        ),
        cells=(RadioCell(server="cell", uplink_bandwidth_hz=1e6, downlink_bandwidth_hz=2e6),),
        radio_links=(RadioLink(device="d0", server="cell", gain=1e-10, latency_s=2e-3),),
        wired_links=(WiredLink(first="cell", second="s", rate_bps=1e8, latency_s=1e-3),),
    )
    plan = SplitPlan.single(
        {"embedding": "d0", "block.0": "s", "head": "d0"}, precisions={("embedding", "block.0"): "int8"}
    )
    schedule = Schedule.equal(network)
    air = Air(pace=NetworkPace(graph=graph, network=network, plan=plan, schedule=schedule))
    hidden = torch.randn(1, 60, 100)
    up = pack("hidden", hidden, "int8") | {"mask": torch.ones(1, 60, dtype=torch.bool)}
    ways = [("d0", "s", up), ("s", "d0", {"hidden": hidden})]
    back = [("d0", "s", {"gradient": hidden}), ("s", "d0", pack("gradient", hidden, "int8"))]
    for sender, receiver, tensors in (*ways, *back):
        air.carry(tensors, flow="d0", step=0, sender=sender, receiver=receiver)
    for name in ("embedding", "block.0", "head"):
        air.work([name], flow="d0", node=plan.node_of(name), phase="forward")
        air.work([name], flow="d0", node=plan.node_of(name), phase="backward")
    priced = cost(graph, network, plan, schedule, "training")
    assert air.clock.now_s == pytest.approx(priced.latency_s, rel=1e-12) and math.isfinite(air.clock.now_s)
    assert air.traffic.payload_bytes == priced.link_bytes["d0", "cell"] + priced.link_bytes["cell", "d0"]


def test_sums_over_the_air() -> None:
    """Exact without noise; else the mean square error is s2 / (2 eta); nobody sends more than its power."""
    random = torch.Generator().manual_seed(3)
    values = torch.randn(4, 50_000, generator=random) * torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None]
    gains = torch.randn(4, dtype=torch.complex64, generator=random)
    exact = over_the_air_sum(values, gains, power=0.7, noise_variance=0.0, generator=random)
    torch.testing.assert_close(exact, values.sum(0))
    noisy = over_the_air_sum(values, gains, power=0.7, noise_variance=0.1, generator=random)
    energy = values.square().mean(1)
    eta = (0.7 * gains.abs().square() / energy).min()
    assert (noisy - exact).square().mean().item() == pytest.approx(0.1 / (2 * eta.item()), rel=0.02)
    sent_power = eta / gains.abs().square() * energy
    assert (sent_power <= 0.7 * (1 + 1e-6)).all()
    with pytest.raises(SpecError, match=r"gains are \(3,\) for 4 devices"):
        over_the_air_sum(values, gains[:3], power=1.0, noise_variance=0.0, generator=random)
