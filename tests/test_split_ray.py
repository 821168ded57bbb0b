"""Nodes as Ray actors: the same result as in this process, and kill -9 of any of them costs one round."""

import gc
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from airlam.errors import DataError, SpecError
from airlam.model.heads import PatchHead
from airlam.model.lam import LAM, build_lam
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec, ModelSpec
from airlam.split import ray_transport
from airlam.split.failures import NodeFailure
from airlam.split.messages import Header, Message, MessageError
from airlam.split.plan import SplitPlan
from airlam.split.ray_transport import RayTransport
from airlam.split.recipes import lam_node, lam_recipes
from airlam.split.run import Session, chain_of, local_session
from airlam.split.transport import ask
from airlam.tokens.base import TokenBatch
from airlam.tokens.patch import PatchTokenizer

FREQUENCIES_HZ = tuple(180e3 * i for i in range(6))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=2, num_cols=2),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=4,
    num_horizon=2,
    max_doppler_hz=100.0,
)
OPTIONS = {"lr": 1e-2}
NOTICE_S = 5.0
# Ray does not wait for the processes that it starts
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
# not importorskip: Ray reads its settings when it is imported
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def lam() -> LAM:
    tokenizer = PatchTokenizer(SETTING)
    spec = ModelSpec(tokenizer="patch", num_layers=1, lora_rank=2)
    return build_lam(spec, tokenizer, lambda width: PatchHead(tokenizer, width))


def plan() -> SplitPlan:
    devices = ("d0", "d1")
    return SplitPlan(
        replicas={n: ("server",) if n.startswith(("block", "norm")) else devices for n in chain_of(lam())}
    )


def samples(model: LAM) -> TokenBatch:
    random = torch.Generator().manual_seed(0)
    history = torch.randn(4, 4, 1, 4, 6, dtype=torch.complex64, generator=random)
    tokens = model.tokenizer.tokenise(history, torch.full((4,), 0.1))
    return model.tokenizer.with_target(tokens, history[:, :2])


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **OPTIONS)  # type: ignore[arg-type]


BATCHES = {"d0": torch.tensor([0, 1, 2]), "d1": torch.tensor([3])}


def holding(session: Session, model: LAM) -> Session:
    for flow in session.routes:
        session.hold(flow, samples(model))
    return session


def test_a_cluster_out_of_reach_is_one_line() -> None:
    with pytest.raises(DataError, match=r"no Ray cluster at '127.0.0.1:9' .* ray start --head"):
        RayTransport("127.0.0.1:9", {})


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    model = lam()
    recipes = lam_recipes(model, SETTING, plan(), optimiser_options=OPTIONS)
    transport = RayTransport("local", recipes, answer_s=30.0)
    yield holding(Session(model, plan(), transport), model)
    transport.close()
    gc.collect()  # while warnings are those of this module


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As an actor has: sums are the same to the bit where they are taken in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@needs_ray
@pytest.mark.usefixtures("one_thread")
def test_actors_do_to_the_bit_what_this_process_does(session: Session) -> None:
    model = lam()
    local = holding(local_session(model, plan(), adamw), model)
    for step in range(3):
        rounds = [s.forward_backward(step, BATCHES) for s in (session, local)]
        assert rounds[0].losses == rounds[1].losses and rounds[0].gradient_norms == rounds[1].gradient_norms
        for each, found in zip((session, local), rounds, strict=True):
            each.apply(found)
    states = session.save(), local.save()
    for node, state in states[1].items():
        assert all(torch.equal(states[0][node][name], value) for name, value in state.items()), node
    assert session.air.traffic.sent == local.air.traffic.sent
    assert isinstance(session.transport, RayTransport) and session.transport.header_bytes > 0


@needs_ray
@pytest.mark.parametrize("victim", ["d1", "server"])
def test_a_killed_actor_is_noticed_and_comes_back(session: Session, victim: str) -> None:
    transport = session.transport
    assert isinstance(transport, RayTransport)
    saved = session.save()
    expected = session.forward_backward(10, BATCHES).losses
    session.abandon()
    os.kill(transport.process_id(victim), signal.SIGKILL)
    start = time.monotonic()
    found = session.forward_backward(10, BATCHES)
    assert time.monotonic() - start < NOTICE_S
    assert {failure.node for failure in found.failures.values()} == {victim}
    assert all(failure.kind == "lost" for failure in found.failures.values())
    assert set(found.flows) == (set() if victim == "server" else {"d0"})
    session.abandon([node for node in session.nodes if node != victim])
    session.revive(victim, saved[victim])
    assert session.forward_backward(10, BATCHES).losses == expected
    session.abandon()


@needs_ray
def test_an_actor_killed_at_work_is_noticed(session: Session) -> None:
    """Mid-round: its message is under way, or its answer is, when it dies."""
    transport = session.transport
    assert isinstance(transport, RayTransport)
    saved, process_id = session.save(["server"]), transport.process_id("server")
    header = Header(operation="forward", flow="d0", step=20, modules=("block.0", "norm"))
    hidden = {"hidden": torch.randn(256, 64, 192), "mask": torch.ones(256, 64, dtype=torch.bool)}
    ticket = transport.submit("server", Message(header=header, tensors=hidden))
    time.sleep(0.05)
    os.kill(process_id, signal.SIGKILL)
    start = time.monotonic()
    found, answer = transport.next_answer()
    assert time.monotonic() - start < NOTICE_S and found == ticket
    assert not isinstance(answer, Message) and "server is lost" in str(answer)
    session.revive("server", saved["server"])


@needs_ray
def test_a_slow_actor_is_late_and_its_answer_is_dropped(session: Session) -> None:
    transport = session.transport
    assert isinstance(transport, RayTransport)
    transport.answer_s = 0.0
    found = session.forward_backward(30, BATCHES)
    assert {failure.kind for failure in found.failures.values()} == {"late"} and not found.flows
    transport.answer_s = 30.0
    session.abandon()
    assert set(session.forward_backward(31, BATCHES).flows) == {"d0", "d1"}
    session.abandon()


@needs_ray
def test_a_node_that_cannot_be_built_is_said_at_once(session: Session) -> None:
    recipes = lam_recipes(lam(), SETTING, plan())
    wrong = {"d0": replace(recipes["d0"], arguments={**recipes["d0"].arguments, "modules": ["block.9"]})}
    with pytest.raises(SpecError, match=r"no module 'block\.9'"):
        RayTransport("local", wrong)
    assert set(session.forward_backward(40, BATCHES).flows) == {"d0", "d1"}  # the cluster was not its own
    session.abandon()


@needs_ray
def test_a_node_without_a_place_is_late(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_transport, "BUILD_S", 1.0)
    recipes = {"d0": lam_recipes(lam(), SETTING, plan())["d0"]}
    with pytest.raises(NodeFailure, match=r"d0 is late: .* has the cluster {'edge': 1}"):
        RayTransport("local", recipes, resources={"d0": {"edge": 1}})


@needs_ray
def test_what_an_actor_rejects_comes_back_as_its_error(session: Session) -> None:
    with pytest.raises(MessageError, match="server knows no operation 'dance'"):
        ask(session.transport, "server", Message(header=Header(operation="dance")))
    with pytest.raises(DataError, match="what server is sent lacks"):
        ask(session.transport, "server", Message(header=Header(operation="assign")))
    with pytest.raises(SpecError, match="no node 'd9'"):
        session.transport.submit("d9", Message(header=Header(operation="drop")))


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install 'airlam\[ray\]'"):
        RayTransport("local", {})


def test_a_recipe_builds_the_node_that_a_session_would_have() -> None:
    """Without Ray: shapes and what trains come from plain values, weights from the message."""
    model = lam()
    local = local_session(model, plan(), adamw)
    for name, recipe in lam_recipes(model, SETTING, plan(), optimiser_options=OPTIONS).items():
        node = lam_node(name=name, **recipe.arguments)
        assert node.part.tensors_of(node.part.modules).keys() == recipe.weights.keys()
        node.handle(Message(header=Header(operation="assign"), tensors=recipe.weights))
        expected = ask(local.transport, name, Message(header=Header(operation="weights"))).tensors
        got = node.handle(Message(header=Header(operation="weights"))).tensors
        assert got.keys() == expected.keys() and all(torch.equal(got[n], v) for n, v in expected.items())
        assert node.part.trainable.keys() == {n for n in got if model.get_parameter(n).requires_grad}
