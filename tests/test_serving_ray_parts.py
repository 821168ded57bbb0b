"""What is served over many machines, without Ray: cuts, recipes, retries and plans."""

import copy
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from airlam.errors import DataError, SpecError
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.path_eb import PathEb
from airlam.serving.batching import DeadlineMissed
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement
from airlam.serving.ray_deployments import Deployments
from airlam.serving.ray_fleet import Fleet
from airlam.serving.ray_messages import FUTURE, HIDDEN, PHASES, TOKENS, inputs_of, outputs_of
from airlam.serving.ray_nodes import cluster_nodes
from airlam.serving.ray_planning import plan_cluster
from airlam.serving.ray_recipes import lams_of, recipe_of
from airlam.serving.ray_replica import Phases
from airlam.serving.ray_services import RemoteLams, SharedOut, shared_out
from airlam.serving.ray_stages import condensed, units_of
from airlam.serving.service_loads import ServiceLoads, service_loads
from airlam.specs import ArraySpec, ModelSpec
from airlam.split.messages import decode, encode
from airlam.split.network import EdgeNetwork, Node, WiredLink
from airlam.tasks.service_profiles import lam_profile

FREQUENCIES_HZ = tuple(180e3 * i for i in range(4))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=1, num_cols=2),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=4,
    num_horizon=2,
    max_doppler_hz=200.0,
)
FAR = replace(SETTING, num_horizon=3)
SPEC = ModelSpec(num_layers=2, num_paths=3, lora_rank=2)


def tuned(seed: int, setting: PredictionSetting = SETTING, num_layers: int = 2) -> LAM:
    lam = lam_for(replace(SPEC, num_layers=num_layers), setting, 1).eval()
    random = torch.Generator().manual_seed(seed)
    for parameter in lam.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    return lam


@pytest.fixture(scope="module")
def lams() -> dict[str, LAM]:
    return {"a": tuned(1), "b": tuned(2), "far": tuned(3, FAR, num_layers=1)}


@pytest.fixture(scope="module")
def whole(lams: dict[str, LAM]) -> LamServices:
    return LamServices(copy.deepcopy(lams))


@pytest.fixture(scope="module")
def phases(lams: dict[str, LAM]) -> Phases:
    return Phases(recipe_of(lams))


def asked() -> list[Measurement]:
    random = torch.Generator().manual_seed(3)

    def drawn(lam: str, links: int) -> Measurement:
        history = torch.randn(links, 4, 1, 2, 4, dtype=torch.complex64, generator=random)
        return Measurement(lam=lam, history=history, noise_variance=torch.full((links,), 0.1))

    first = drawn("a", 2)
    return [first, replace(first, lam="far"), drawn("b", 1), drawn("a", 3), replace(first, lam="b")]


class Lost(Exception):
    """As of a process that died."""


@dataclass
class Handle:
    """What Ray Serve gives, with ``Phases`` of this process behind it."""

    phases: Phases
    lock: threading.Lock
    num_calls: int = 0
    is_dead: bool = False
    asked: tuple[str, ...] = ()

    @property
    def run(self) -> Any:
        def answer(data: bytes) -> bytes:
            self.num_calls += 1
            if self.is_dead:
                raise Lost
            with self.lock:
                message = decode(data)
                self.asked += ("+".join(message.header.modules),)
                return encode(self.phases.handle(message))

        return Method(answer)

    @property
    def process_id(self) -> Any:
        def answer() -> int:
            if self.is_dead:
                raise Lost
            return 1

        return Method(answer)


@dataclass
class Method:
    function: Callable[..., Any]

    def remote(self, *arguments: Any) -> Any:
        return Later(lambda: self.function(*arguments))


@dataclass
class Later:
    function: Callable[[], Any]

    def result(self, timeout_s: float | None = None) -> Any:
        return self.function()


def handles(phases: Phases, *nodes: str) -> dict[str, Handle]:
    lock = threading.Lock()
    return {node: Handle(phases, lock) for node in nodes}


def remote(
    whole: LamServices,
    on: dict[str, Handle],
    hosts: tuple[tuple[str, ...], ...],
    on_close: Callable[[], None] = lambda: None,
    **options: float,
) -> RemoteLams:
    fleet = Fleet(on, (Lost,), **options)
    return RemoteLams(fleet, dict.fromkeys(whole.settings, hosts), whole.graph, whole.settings, 0, on_close)


CUTS = {
    "one node": ((("n1",),) * 3, ["tokens+hidden+future"]),
    "three nodes": ((("n1",), ("n2",), ("n3",)), ["tokens", "hidden", "future"]),
    "there and back": ((("n1",), ("n2",), ("n1",)), ["tokens", "hidden", "future"]),
    "head apart": ((("n1",), ("n1",), ("n2",)), ["tokens+hidden", "future"]),
    "tokens apart": ((("n1",), ("n2",), ("n2",)), ["tokens", "hidden+future"]),
}


@pytest.mark.parametrize("cut", CUTS)
def test_any_cut_gives_to_the_bit_what_one_process_gives(
    cut: str, whole: LamServices, phases: Phases
) -> None:
    hosts, expected = CUTS[cut]
    on = handles(phases, "n1", "n2", "n3")
    found = remote(whole, on, hosts).predict(asked())
    for future, own in zip(found, whole.predict(asked()), strict=True):
        assert torch.equal(future, own)
    assert sorted(part for handle in on.values() for part in handle.asked) == sorted(expected)


def test_lams_of_different_nodes_share_one_batch_of_requests(whole: LamServices, phases: Phases) -> None:
    on = handles(phases, "n1", "n2")
    hosts = {"a": (("n1",),) * 3, "b": (("n1",),) * 3, "far": (("n2",),) * 3}
    lams = RemoteLams(Fleet(on, (Lost,)), hosts, whole.graph, whole.settings, 0, lambda: None)
    for future, own in zip(lams.predict(asked()), whole.predict(asked()), strict=True):
        torch.testing.assert_close(future, own, rtol=1e-4, atol=1e-6)
    assert [handle.num_calls for handle in on.values()] == [1, 1]


def test_path_eb_runs_where_tokens_are_made(whole: LamServices, phases: Phases) -> None:
    request, on = asked()[1], handles(phases, "n1", "n2")
    found = remote(whole, on, (("n2",), ("n1",), ("n1",))).path_eb("far")
    expected = PathEb(FAR).predict(request.history, request.noise_variance)
    torch.testing.assert_close(found.predict(request.history, request.noise_variance), expected)
    assert on["n2"].asked == ("classical",)


def test_services_are_timed_wherever_they_run(whole: LamServices, phases: Phases) -> None:
    told: list[tuple[str, int, float]] = []
    lams = remote(whole, handles(phases, "n1", "n2"), (("n1",), ("n2",), ("n1",)))
    lams._observe = lambda *ran: told.append(ran)
    lams.predict(asked()[:1])
    assert {service for service, _, _ in told} == set(whole.graph.flows["a"].values())


def test_a_recipe_makes_the_same_lams_and_has_common_weights_once(lams: dict[str, LAM]) -> None:
    recipe = recipe_of(lams)
    for name, lam in lams_of(recipe).items():
        assert lam.spec == lams[name].spec and lam.tokenizer.setting == lams[name].tokenizer.setting
        for key, value in lams[name].state_dict().items():
            assert torch.equal(lam.state_dict()[key], value)
    alone = [len(recipe_of({name: lam}).weights) for name, lam in lams.items()]
    assert len(recipe.weights) < 0.7 * sum(alone)


def test_what_a_phase_takes_an_earlier_one_gives() -> None:
    for start in range(3):
        for end in range(start + 1, 4):
            before, own = PHASES[:start], PHASES[start:end]
            assert set(inputs_of(own)) <= {name for phase in before for name in outputs_of((phase,))}
    assert outputs_of((TOKENS, HIDDEN)) == (HIDDEN, "context.")
    assert outputs_of((HIDDEN, FUTURE)) == (FUTURE,)


def test_a_lost_request_is_answered_elsewhere(whole: LamServices, phases: Phases) -> None:
    on = handles(phases, "n1", "n2")
    lams = remote(whole, on, (("n1", "n2"),) * 3)
    (expected,) = whole.predict(asked()[:1])
    on["n1"].is_dead = True
    for _ in range(5):
        assert torch.equal(lams.predict(asked()[:1])[0], expected)
    assert on["n1"].num_calls == 1 and on["n2"].num_calls == 5  # left out once it has failed
    on["n1"].is_dead = False
    queue = lams._fleet._queues["n1"]
    assert wait_until(lambda: queue.is_up)
    queue.s_per_link = 0.0
    lams.predict(asked()[:1])
    assert on["n1"].num_calls == 2


def wait_until(condition: Callable[[], bool]) -> bool:
    pause = threading.Event()
    return any(condition() or pause.wait(0.01) for _ in range(1000))


def test_without_any_replica_a_request_is_told_so(whole: LamServices, phases: Phases) -> None:
    on = handles(phases, "n1")
    on["n1"].is_dead = True
    with pytest.raises(DeadlineMissed, match="no replica answered"):
        remote(whole, on, (("n1",),) * 3, retry_s=0.1).predict(asked()[:1])
    assert on["n1"].num_calls > 2


def test_numbers_that_nothing_comes_of_are_the_requests_fault(whole: LamServices, phases: Phases) -> None:
    (request,) = asked()[:1]
    bad = replace(request, history=request.history[:, :2])  # too short
    with pytest.raises(DataError):
        remote(whole, handles(phases, "n1"), (("n1",),) * 3).predict([bad])


def test_the_shortest_queue_is_asked() -> None:
    fleet = Fleet({"fast": None, "slow": None}, ())
    fast, slow = fleet._queues.values()
    fast.s_per_link, slow.s_per_link = 0.01, 0.02
    assert fleet._shortest(["slow", "fast"], 1) == "slow"  # long not asked
    fast.told_s = slow.told_s = time.monotonic()
    assert fleet._shortest(["slow", "fast"], 1) == "fast"
    fast.links = 3
    assert fleet._shortest(["slow", "fast"], 1) == "slow"
    slow.is_up = False
    assert fleet._shortest(["slow", "fast"], 1) == "fast" and fleet._shortest(["slow"], 1) == "slow"


def test_shares_have_alike_numbers_of_links_and_keep_measurements_whole() -> None:
    requests = asked()
    shares = shared_out(requests, 2)
    assert sorted(index for share in shares for index in share) == list(range(5))
    assert any({0, 1, 4} <= set(share) for share in shares)
    assert len(shared_out(requests, 9)) == 3 and shared_out(requests, 1) == [[3, 0, 1, 4, 2]]


def test_shared_out_answers_are_in_order_until_they_are_closed(whole: LamServices, phases: Phases) -> None:
    ended: list[int] = []
    lams = remote(whole, handles(phases, "n1", "n2"), (("n1", "n2"),) * 3, lambda: ended.append(1))
    services = SharedOut(lams, 3)
    for future, own in zip(services.predict(asked()), whole.predict(asked()), strict=True):
        torch.testing.assert_close(future, own, rtol=1e-4, atol=1e-6)
    assert not ended
    services.close()
    assert ended == [1]
    with pytest.raises(RuntimeError, match="after shutdown"):
        services.warm()


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install 'airlam\[ray\]'"):
        Deployments("local")


def test_nodes_are_called_after_what_they_alone_lend() -> None:
    assert [node.name for node in cluster_nodes(ray_of({"edge": 1.0}, {"cloud": 1.0}))] == ["cloud", "edge"]
    alike = ray_of({"gpu_box": 1.0, "node:10.0.0.1": 1.0}, {"gpu_box": 1.0, "node:10.0.0.2": 1.0})
    assert [node.name for node in cluster_nodes(alike)] == ["node:10.0.0.2", "node:10.0.0.1"]
    with pytest.raises(SpecError, match=r"two nodes of the cluster have one address, node:10\.0\.0\.1"):
        cluster_nodes(ray_of({"node:10.0.0.1": 1.0}, {"node:10.0.0.1": 1.0}))


def ray_of(*resources: dict[str, float]) -> Any:
    """What Ray says of nodes that lend these; this process is on the last of them, one more is dead."""
    nodes = [{"Alive": True, "NodeID": i, "Resources": {"CPU": 2.0, **r}} for i, r in enumerate(resources)]
    dead = {"Alive": False, "NodeID": "dead", "Resources": {"lost": 1.0}}
    context = types.SimpleNamespace(get_node_id=lambda: len(nodes) - 1)
    return types.SimpleNamespace(nodes=lambda: [*nodes, dead], get_runtime_context=lambda: context)


@pytest.fixture(scope="module")
def loads(lams: dict[str, LAM], whole: LamServices) -> ServiceLoads:
    return service_loads(whole.graph, {name: lam_profile(copy.deepcopy(lam)) for name, lam in lams.items()})


def test_units_are_tokenisers_backbones_and_heads(whole: LamServices, loads: ServiceLoads) -> None:
    unit_of = units_of(whole.graph)
    assert len(set(unit_of.values())) == 1 + 2 + 3  # tokeniser, backbones (of two draws), heads
    units = condensed(loads, unit_of)
    for flow, own in (
        (units.graph, loads.graph),
        *zip(units.flows.values(), loads.flows.values(), strict=True),
    ):
        for key in ("forward_flops", "parameter_bytes"):
            assert sum(getattr(m, key) for m in flow.modules) == sum(getattr(m, key) for m in own.modules)
    assert len(units.flows["a"].edges) == 3  # the context goes from tokeniser to head


def network(*speeds: float, memory_bytes: float = 1e9) -> EdgeNetwork:
    nodes = tuple(
        Node(name=f"n{i}", kind="server", compute_flops_per_s=speed, memory_bytes=memory_bytes)
        for i, speed in enumerate(speeds)
    )
    wires = tuple(WiredLink(first="n0", second=node.name, rate_bps=1e9, latency_s=1e-3) for node in nodes[1:])
    return EdgeNetwork(nodes=nodes, wired_links=wires)


def test_a_plan_has_two_nodes_for_all_and_no_hop_without_need(
    whole: LamServices, loads: ServiceLoads
) -> None:
    alike = plan_cluster(whole.graph, loads, whole.settings, network(1e10, 1e10, 1e10), "n0")
    assert all(len(nodes) == 2 for nodes in alike.placed.placement.hosts.values())
    assert all(nodes[0] == "n0" for hosts in alike.hosts.values() for nodes in hosts)
    assert all(service.nodes[0] == "n0" for service in alike.graph.services)
    alone = plan_cluster(whole.graph, loads, whole.settings, network(1e10), "n0")
    assert alone.hosts == dict.fromkeys(whole.settings, (("n0",),) * 3) and alone.nodes == ("n0",)
    slow = plan_cluster(whole.graph, loads, whole.settings, network(1e7, 1e12), "n0")
    assert all(nodes[0] == "n1" for hosts in slow.hosts.values() for nodes in hosts)
