"""A plan at work: any cut equals the whole LAM, only what should changes, bytes are shape times bits."""

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from airlam.errors import SpecError
from airlam.model.heads import PatchHead
from airlam.model.lam import LAM, build_lam
from airlam.model.storage import fingerprint
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec, ModelSpec
from airlam.split.cost import cost
from airlam.split.failures import NodeFailure
from airlam.split.messages import Header, Message, MessageError
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink
from airlam.split.node import SplitNode, nmse_loss
from airlam.split.pace import NetworkPace
from airlam.split.part import LamPart, owner_of
from airlam.split.plan import Schedule, SplitPlan
from airlam.split.profile import profile_lam
from airlam.split.radio_link import Air
from airlam.split.run import Session, chain_of, local_session, trainable_modules
from airlam.split.transport import Answer, InProcess, ask, ray_address
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
TOKENIZER = PatchTokenizer(SETTING, max_tokens=8)
HEAD = "head.channel_prediction"
NUM_SAMPLES, WIDTH = 6, 192
DEVICE = "device"  # in a cut: on every device


@functools.cache
def built(backbone: str = "small") -> LAM:
    spec = ModelSpec(backbone=backbone, tokenizer="patch", num_layers=2, lora_rank=2)
    lam = build_lam(spec, TOKENIZER, lambda width: PatchHead(TOKENIZER, width))
    torch.manual_seed(5)
    for parameter in lam.parameters():
        if parameter.requires_grad:  # a fresh adapter or head hides gradients
            parameter.data += 0.02 * torch.randn_like(parameter)
    return lam


def lam_of(backbone: str = "small", *, frozen_embedding: bool = False, dropout: bool = False) -> LAM:
    lam = copy.deepcopy(built(backbone))
    for module in lam.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    for name, parameter in lam.named_parameters():
        if frozen_embedding and owner_of(lam, name) == "embedding":
            parameter.requires_grad_(False)
    return lam


@functools.cache
def samples() -> TokenBatch:
    random = torch.Generator().manual_seed(0)
    history = torch.randn(NUM_SAMPLES, 4, 1, 4, 6, dtype=torch.complex64, generator=random)
    tokens = TOKENIZER.tokenise(history, torch.full((NUM_SAMPLES,), 0.1))
    mask = tokens.mask.clone()
    mask[::2, -1] = False  # some tokens are not real
    tokens = TokenBatch(features=tokens.features, mask=mask, context=tokens.context)
    return TOKENIZER.with_target(tokens, history[:, :2])


def plan_of(places: dict[str, str], num_devices: int, precision: str = "fp32") -> SplitPlan:
    """``places``: module -> server, or DEVICE."""
    devices = tuple(f"d{index}" for index in range(num_devices))
    chain = chain_of(built())
    return SplitPlan(
        replicas={name: devices if places.get(name, DEVICE) == DEVICE else (places[name],) for name in chain},
        precisions={edge: precision for edge in itertools.pairwise(chain)},  # type: ignore[misc]
    )


BACKBONE_AWAY = {"block.0": "server", "block.1": "server", "norm": "server"}


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def started(
    lam: LAM,
    plan: SplitPlan,
    optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = sgd,
    **options: bool,
) -> Session:
    session = local_session(lam, plan, optimiser, **options)
    for flow in session.routes:
        session.hold(flow, samples())
    return session


def batches(counts: list[int]) -> dict[str, torch.Tensor]:
    ends = torch.tensor(counts).cumsum(0).tolist()
    return {f"d{k}": torch.arange(end - n, end) for k, (n, end) in enumerate(zip(counts, ends, strict=True))}


def whole_gradients(lam: LAM, count: int) -> tuple[float, dict[str, torch.Tensor]]:
    tokens = samples().select(torch.arange(count))
    lam.train().zero_grad()
    loss = nmse_loss(lam, lam(tokens), tokens.context).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {name: p.grad for name, p in lam.named_parameters() if p.grad is not None}


def nodes_of(session: Session) -> dict[str, SplitNode]:
    assert isinstance(session.transport, InProcess)
    return session.transport.nodes


@given(
    places=st.fixed_dictionaries(
        {
            name: st.sampled_from([DEVICE, "s0", "s1"])
            for name in ("embedding", "block.0", "block.1", "norm", HEAD)
        }
    ),
    counts=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    backbone=st.sampled_from(["small", "airlam", "mlp"]),
    frozen_embedding=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_cut_for_any_devices_is_the_whole_lam(
    places: dict[str, str], counts: list[int], backbone: str, frozen_embedding: bool
) -> None:
    """SGD at rate 1: what weights lose in a step is their gradient; shares are n_k / sum n."""
    lam = lam_of(backbone, frozen_embedding=frozen_embedding)
    loss, expected = whole_gradients(lam, sum(counts))
    session = started(lam, plan_of(places, len(counts)))
    found = session.forward_backward(0, batches(counts))
    assert found.loss == pytest.approx(loss, rel=1e-5) and not found.failures
    session.apply(found)
    got: dict[str, torch.Tensor] = {}
    for node, held in nodes_of(session).items():
        share = counts[int(node[1:])] / sum(counts) if node.startswith("d") else 1.0
        for name, parameter in held.part.trainable.items():
            lost = share * (lam.get_parameter(name) - parameter).detach()
            got[name] = got[name] + lost if name in got else lost
    assert got.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name] / largest, gradient / largest, rtol=1e-5, atol=1e-5)


def test_predictions_are_the_whole_lam_s() -> None:
    lam = lam_of()
    session = started(lam, plan_of(BACKBONE_AWAY, 2))
    found = session.predict(0, batches([2, 3]))
    with torch.no_grad():
        expected = lam.eval()(samples())["future"]
    torch.testing.assert_close(torch.cat([found["d0"]["future"], found["d1"]["future"]]), expected[:5])


@pytest.mark.parametrize("modules", [["embedding", HEAD], ["block.1"], ["norm"], ["tokenizer.csi"]])
def test_a_node_holds_its_own_weights_and_no_others(modules: list[str]) -> None:
    lam = lam_of()
    part = LamPart(lam, modules)
    own = {name for name, _ in lam.named_parameters() if owner_of(lam, name) in modules}
    num_bytes = sum(lam.get_parameter(name).nbytes for name in own)
    stored = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in part.lam.parameters()}
    stand_ins = sum(1 for name, _ in part.lam.named_parameters() if name not in own)
    assert num_bytes <= sum(stored.values()) <= num_bytes + 4 * stand_ins  # a stand-in is one number
    assert {name for name in part.tensors_of(modules) if name in dict(lam.named_parameters())} == own
    layers = [recorder._layer[0] for recorder in part.lam.backbone._entrance.recorders]
    assert all(bool(list(layer.parameters())) == (f"block.{i}" in modules) for i, layer in enumerate(layers))


def test_every_tensor_has_one_owner() -> None:
    lam = lam_of()
    owned = [name for module in lam.module_names for name in LamPart(lam, [module]).tensors_of([module])]
    assert sorted(owned) == sorted(lam.state_dict())


def test_only_lora_norms_embedding_and_heads_change() -> None:
    lam = lam_of()
    frozen = {name: p for name, p in lam.named_parameters() if not p.requires_grad}
    before = fingerprint(frozen)
    session = started(lam, plan_of(BACKBONE_AWAY, 2), adamw)
    for step in range(3):
        session.apply(session.forward_backward(step, batches([2, 2])))
    assert fingerprint(frozen) == before
    server = nodes_of(session)["server"].part
    held = {name: server.lam.get_parameter(name) for name in frozen if owner_of(lam, name) in BACKBONE_AWAY}
    assert fingerprint(held) == fingerprint({name: frozen[name] for name in held}) and held
    for node in nodes_of(session).values():
        for name, parameter in node.part.trainable.items():
            assert not torch.equal(parameter, lam.get_parameter(name)), name
    assert all("lora" in name or "LayerNorm" in name for name in server.trainable)


def test_it_learns_and_can_be_put_together_again() -> None:
    lam = lam_of()
    session = started(lam, plan_of(BACKBONE_AWAY, 1), adamw)
    losses = []
    for step in range(8):
        found = session.forward_backward(step, batches([6]))
        losses.append(found.loss)
        session.apply(found, max_gradient_norm=1.0, learning_rate=5e-3)
    assert losses[-1] < 0.5 * losses[0]
    session.copy_into(lam, "d0")
    assert whole_gradients(lam, 6)[0] == pytest.approx(
        session.forward_backward(9, batches([6])).loss, rel=1e-5
    )


@pytest.mark.parametrize(
    ("precision", "bits", "scale_bits"), [("fp32", 32, 0), ("bf16", 16, 0), ("int8", 8, 32)]
)
def test_counters_are_shape_times_bits(precision: str, bits: int, scale_bits: int) -> None:
    session = started(lam_of(), plan_of(BACKBONE_AWAY, 2, precision))
    session.forward_backward(0, batches([4, 2]))
    num_tokens = samples().features.shape[1]
    for device, count in (("d0", 4), ("d1", 2)):
        values, scales = count * num_tokens * WIDTH * bits, count * num_tokens * scale_bits
        for ways in ((device, "server"), ("server", device)):
            sent = {name: n for (*way, name), n in session.air.traffic.sent.items() if tuple(way) == ways}
            mask = {"mask": 8 * count * num_tokens} if ways[0] == device else {}
            rounded = {"hidden": values, "gradient": values}
            rounded |= {"hidden.scale": scales, "gradient.scale": scales} if scales else {}
            assert sent == rounded | mask
    assert session.air.traffic.num_messages == 8
    assert not session.air.traffic.bits(sender="d0", receiver="d1")


@pytest.mark.parametrize("frozen_embedding", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_round_lasts_and_weighs_what_it_is_priced_at(frozen_embedding: bool, precision: str) -> None:
    lam = lam_of(frozen_embedding=frozen_embedding)
    graph = profile_lam(lam, samples())
    ranks = {module.name: 2 for module in graph.modules if module.lora is not None}
    plan = replace(plan_of(BACKBONE_AWAY, 2, precision), lora_ranks=ranks)
    network = EdgeNetwork(
        nodes=(
            Node(name="d0", kind="device", compute_flops_per_s=1e9),
            Node(name="d1", kind="device", compute_flops_per_s=2e9),
            Node(name="server", kind="server", compute_flops_per_s=1e11),
        ),
        cells=(RadioCell(server="server", uplink_bandwidth_hz=1e6, downlink_bandwidth_hz=3e6),),
        radio_links=tuple(
            RadioLink(device=name, server="server", gain=gain, latency_s=1e-3)
            for name, gain in (("d0", 1e-9), ("d1", 1e-11))
        ),
    )
    schedule = Schedule.equal(network)
    air = Air(pace=NetworkPace(graph=graph, network=network, plan=plan, schedule=schedule))
    session = local_session(lam, plan, sgd, air=air, keeps_frozen=False)
    for flow in session.routes:
        session.hold(flow, samples())
    everything = torch.arange(NUM_SAMPLES)
    found = session.forward_backward(0, {"d0": everything, "d1": everything})
    priced = cost(graph, network, plan, schedule)
    assert found.duration_s == pytest.approx(priced.latency_s, rel=1e-9)
    for flow, seconds in air.clock.seconds.items():
        assert seconds == pytest.approx(priced.flows[flow].latency_s, rel=1e-9)
    for way, num_bytes in priced.link_bytes.items():
        assert air.traffic.bits(sender=way[0], receiver=way[1]) == 8 * num_bytes


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rounded_gradients_are_close(precision: str) -> None:
    lam = lam_of()
    exact, rounded = (started(lam, plan_of(BACKBONE_AWAY, 1, p)) for p in ("fp32", precision))
    norms = [s.forward_backward(0, batches([6])).gradient_norms["d0"]["server"] for s in (exact, rounded)]
    assert norms[1] == pytest.approx(norms[0], rel=0.02) and norms[0] != norms[1]


class Recording(InProcess):
    """Remembers what each node was sent."""

    def submit(self, node: str, message: Message) -> int:
        self.__dict__.setdefault("seen", []).append((node, message))
        return super().submit(node, message)


def recording(lam: LAM, plan: SplitPlan) -> tuple[Session, Recording]:
    names = {node for nodes in plan.replicas.values() for node in nodes}
    transport = Recording(
        sorted(names), lambda name: SplitNode(name, LamPart(lam, plan.modules_on(name)), nmse_loss, sgd)
    )
    session = Session(lam, plan, transport)
    for flow in session.routes:
        session.hold(flow, samples())
    return session, transport


def test_each_device_is_sent_its_own_tensors_only() -> None:
    """With others in the round a device gets, to the bit, what it gets alone, and nothing else."""
    lam, plan = lam_of(), plan_of(BACKBONE_AWAY, 3)
    heard = []
    for flows in (["d0", "d1", "d2"], ["d1"]):
        session, transport = recording(lam, plan)
        session.forward_backward(0, {flow: batches([2, 2, 2])[flow] for flow in flows})
        heard.append([message for node, message in transport.seen if node == "d1"])
    crowd, alone = heard
    assert [message.header for message in crowd] == [message.header for message in alone]
    assert all(message.header.flow == "d1" for message in crowd)
    for got, expected in zip(crowd, alone, strict=True):
        assert got.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(got.tensors[name], value) for name, value in expected.tensors.items())


def test_a_frozen_embedding_is_sent_once() -> None:
    lam = lam_of(frozen_embedding=True)
    kept, again = (started(lam, plan_of(BACKBONE_AWAY, 2), keeps_frozen=keeps) for keeps in (True, False))
    up = []
    for step, ids in enumerate([[0, 1, 2], [2, 1, 3], [3, 0, 1]]):
        batch = {"d0": torch.tensor(ids), "d1": torch.tensor([4, 5])}
        first, second = (session.forward_backward(step, batch) for session in (kept, again))
        assert first.losses == pytest.approx(second.losses, rel=1e-6)
        for session, found in ((kept, first), (again, second)):
            session.apply(found, learning_rate=1e-3)
        up.append(kept.air.traffic.bits(sender="d0", names=["hidden", "mask"]))
    row = samples().features.shape[1] * (WIDTH * 32 + 8)
    assert up == [3 * row, 4 * row, 4 * row]
    assert not kept.air.traffic.bits(sender="server", names=["gradient"])
    assert nodes_of(kept)["server"].cache.num_bytes == 6 * row / 8


def test_a_trained_embedding_is_sent_every_time() -> None:
    session = started(lam_of(), plan_of(BACKBONE_AWAY, 1))
    for step in range(2):
        session.apply(session.forward_backward(step, batches([3])))
    assert (
        session.air.traffic.bits(sender="d0", names=["hidden"])
        == 2 * 3 * samples().features.shape[1] * WIDTH * 32
    )


def test_shared_heads_are_averaged_and_counted() -> None:
    """With every device, SGD and averaged copies the split round is one step of centralised training."""
    lam = lam_of()
    _, expected = whole_gradients(lam, 6)
    session = started(lam, plan_of(BACKBONE_AWAY, 2))
    session.apply(session.forward_backward(0, batches([4, 2])), learning_rate=0.1)
    session.share(0, {"d0": 4 / 6, "d1": 2 / 6}, ["embedding", HEAD], "server")
    for device in ("d0", "d1"):
        trained = lam_of()
        session.copy_into(trained, device)
        for name, gradient in expected.items():
            change = (trained.get_parameter(name) - lam.get_parameter(name)).detach()
            torch.testing.assert_close(change, -0.1 * gradient, rtol=1e-3, atol=1e-6)
    own = sum(p.numel() * 32 for p in nodes_of(session)["d0"].part.trainable.values())
    weights = {key: n for key, n in session.air.traffic.sent.items() if key[2].startswith("weights/")}
    assert sum(weights.values()) == 4 * own


class Poisoned(SplitNode):
    """Sends something else than the gradient it found."""

    poison: Callable[[torch.Tensor], torch.Tensor]

    def handle(self, message: Message) -> Message:
        answer = super().handle(message)
        if "gradient" in answer.tensors:
            answer.tensors["gradient"] = type(self).poison(answer.tensors["gradient"])
        return answer


POISONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN": lambda gradient: gradient * float("nan"),
    "infinite": lambda gradient: gradient / 0,
    r"expected \(2": lambda gradient: gradient[:1],
    r"is \(2, 6, 1\)": lambda gradient: gradient[..., :1],
    "torch.int64": lambda gradient: gradient.long(),
}


@pytest.mark.parametrize("reason", POISONS)
def test_a_device_that_lies_is_named_and_the_others_go_on(reason: str) -> None:
    lam, plan = lam_of(), plan_of(BACKBONE_AWAY, 2)
    session = started(lam, plan)
    liar = type("Liar", (Poisoned,), {"poison": staticmethod(POISONS[reason])})
    nodes_of(session)["d1"] = liar("d1", LamPart(lam, plan.modules_on("d1")), nmse_loss, sgd)
    session.hold("d1", samples())
    found = session.forward_backward(0, batches([2, 2]))
    assert found.flows == ("d0",) and found.failures["d1"].kind == "rejected"
    assert found.failures["d1"].node == "d1"
    with pytest.raises(NodeFailure, match=reason):
        raise found.failures["d1"]
    alone = started(lam, plan)
    alone.apply(alone.forward_backward(0, {"d0": batches([2, 2])["d0"]}))
    session.apply(found)
    for name, parameter in nodes_of(alone)["server"].part.trainable.items():
        assert torch.equal(nodes_of(session)["server"].part.trainable[name], parameter)


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (lambda w: w * float("nan"), "NaN"),
        (lambda w: w[:1], r"expected \("),
        (lambda w: w.double(), "torch.float64"),
    ],
)
def test_weights_that_lie_are_not_averaged(
    poison: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    class Liar(SplitNode):
        def handle(self, message: Message) -> Message:
            answer = super().handle(message)
            if message.header.operation == "weights":
                name = min(answer.tensors)
                answer.tensors[name] = poison(answer.tensors[name])
            return answer

    lam, plan = lam_of(), plan_of(BACKBONE_AWAY, 2)
    session = started(lam, plan)
    nodes_of(session)["d1"] = Liar("d1", LamPart(lam, plan.modules_on("d1")), nmse_loss, sgd)
    session.apply(session.forward_backward(0, {"d0": torch.tensor([0])}))
    before = session.save(["d0"])["d0"]
    with pytest.raises(NodeFailure, match=reason) as refused:
        session.share(0, {"d0": 0.5, "d1": 0.5}, ["embedding", HEAD], "server")
    assert (refused.value.node, refused.value.kind) == ("d1", "rejected")
    after = session.save(["d0"])["d0"]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_gradients_of_a_round_left_out_are_gone_in_the_next() -> None:
    """A device that was excluded hears nothing of it, and must not add its old gradients later."""
    lam, plan = lam_of(), plan_of(BACKBONE_AWAY, 2)
    session = started(lam, plan)
    session.apply(session.forward_backward(0, batches([2, 2])), exclude=["d1"])
    node = nodes_of(session)["d1"]
    old = node._gradients["d1"]
    old.by_parameter.update({p: torch.full_like(p, torch.nan) for p in node.parameters})
    session.predict(1, {"d1": torch.tensor([0])})
    late = Header(operation="step", step=1, flows=("d1",))
    with pytest.raises(MessageError, match="has no gradients of d1 in step 1"):
        ask(session.transport, "d1", Message(header=late, tensors={"weights": torch.ones(1).double()}))
    found = session.forward_backward(1, batches([2, 2]))
    assert node._gradients["d1"] is not old and found.gradient_norms["d1"]["d1"] > 0


def test_what_nobody_asked_for_is_refused() -> None:
    class Talkative(SplitNode):
        def handle(self, message: Message) -> Message:
            answer = super().handle(message)
            answer.tensors["context.target"] = torch.zeros(1)
            return answer

    lam, plan = lam_of(), plan_of(BACKBONE_AWAY, 2)
    session = started(lam, plan)
    nodes_of(session)["d1"] = Talkative("d1", LamPart(lam, plan.modules_on("d1")), nmse_loss, sgd)
    session.hold("d1", samples())
    found = session.forward_backward(0, batches([2, 2]))
    assert found.flows == ("d0",) and "it sent 'context.target', unasked" in str(found.failures["d1"])


def test_a_loss_that_is_no_number_is_a_failure() -> None:
    def lost(lam: LAM, output: dict[str, torch.Tensor], context: dict[str, torch.Tensor]) -> torch.Tensor:
        return nmse_loss(lam, output, context) * float("nan")

    session = local_session(lam_of(), plan_of({}, 1), sgd, loss=lost)
    session.hold("d0", samples())
    found = session.forward_backward(0, batches([2]))
    assert found.failures["d0"].kind == "rejected" and "loss is nan" in str(found.failures["d0"])
    assert found.loss != found.loss


def test_a_caller_may_leave_a_flow_out_or_give_the_round_up() -> None:
    lam, plan = lam_of(), plan_of(BACKBONE_AWAY, 2)
    session = started(lam, plan)
    before = session.save(["server"])["server"]
    found = session.forward_backward(0, batches([2, 2]))
    assert set(found.gradient_norms["d1"]) == {"d1", "server"}
    session.abandon()
    with pytest.raises(MessageError, match="has no gradients of d0"):
        session.apply(found)
    session.apply(session.forward_backward(1, batches([2, 2])), exclude=["d1"])
    alone = started(lam, plan)
    alone.apply(alone.forward_backward(1, {"d0": batches([2, 2])["d0"]}))
    one, other = (s.save(["server"])["server"] for s in (session, alone))
    assert all(torch.equal(one[name], other[name]) for name in before) and not torch.equal(*_any(before, one))


def _any(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    name = next(name for name in first if "lora_A" in name)
    return first[name], second[name]


class Losing(InProcess):
    """Loses a node for a while."""

    lost: str | None = None

    def next_answer(self) -> tuple[int, Answer]:
        ticket, node, _ = self._waiting[0]
        if node == self.lost:
            self._waiting.popleft()
            return ticket, NodeFailure(node=node, kind="lost", reason="its process has ended")
        return super().next_answer()

    def restart(self, node: str) -> None:
        super().restart(node)
        self.lost = None


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_lost_server_is_revived_in_its_last_state(precision: str) -> None:
    """What follows is, to the bit, what would have followed without the loss: dropout, moments, residuals."""
    lam = lam_of(frozen_embedding=True, dropout=True)
    plan = plan_of(BACKBONE_AWAY, 2, precision)
    undisturbed = started(lam, plan, adamw)
    transport = Losing(
        nodes_of(undisturbed),
        lambda name: SplitNode(name, LamPart(lam, plan.modules_on(name)), nmse_loss, adamw),
    )
    session = Session(lam, plan, transport)
    for flow in session.routes:
        session.hold(flow, samples())
    expected = []
    for step in range(4):
        found = undisturbed.forward_backward(step, batches([3, 2]))
        undisturbed.apply(found)
        expected.append(found.losses)
    for step in range(4):
        saved = session.save()
        if step == 2:
            transport.lost = "server"
            failed = session.forward_backward(step, batches([3, 2]))
            assert not failed.flows and {f.node for f in failed.failures.values()} == {"server"}
            session.revive("server", saved["server"])
        found = session.forward_backward(step, batches([3, 2]))
        session.apply(found)
        assert found.losses == expected[step]


def test_messages_out_of_place_are_refused() -> None:
    session = started(lam_of(), plan_of(BACKBONE_AWAY, 1))
    with pytest.raises(MessageError, match="within 0 to 5"):
        session.forward_backward(0, {"d0": torch.tensor([6])})
    session, transport = recording(lam_of(), plan_of(BACKBONE_AWAY, 1))
    session.forward_backward(0, batches([2]))
    backward = next(m for node, m in transport.seen if m.header.operation == "backward" and node == "server")
    with pytest.raises(MessageError, match=r"has no forward of block\.0, block\.1, norm for d0 in step 0"):
        ask(transport, "server", backward)  # a replay
    with pytest.raises(MessageError, match="knows no operation 'dance'"):
        ask(transport, "server", Message(header=Header(operation="dance")))
    for modules, reason in (((), "a stage without modules"), (("embedding",), "does not hold embedding")):
        with pytest.raises(MessageError, match=reason):
            ask(transport, "server", Message(header=Header(operation="forward", modules=modules)))
    hidden = {"hidden": torch.zeros(2, 3, WIDTH), "mask": torch.tensor([[True] * 3, [False] * 3])}
    forward = Header(operation="forward", flow="d0", modules=("block.0", "block.1", "norm"))
    with pytest.raises(MessageError, match="a sample's mask has no real token"):
        ask(transport, "server", Message(header=forward, tensors=hidden))
    with pytest.raises(MessageError, match=r"features is \(6, .*; expected \(any, any, "):
        short = {"features": samples().features[..., :1].contiguous(), "mask": samples().mask}
        ask(transport, "d0", Message(header=Header(operation="hold"), tensors=short))


def test_transports_by_name() -> None:
    names = ("inprocess", "ray", "ray:10.0.0.1:6379")
    assert [ray_address(name) for name in names] == [None, "local", "10.0.0.1:6379"]
    for wrong in ("ray:", "grpc", "inprocess:1"):
        with pytest.raises(SpecError, match=f"transport is '{wrong}'; expected inprocess, ray or"):
            ray_address(wrong)


def test_plans_that_cannot_run_are_refused() -> None:
    lam = lam_of()
    with pytest.raises(SpecError, match="no head for task 'beams'"):
        chain_of(lam, "beams")
    with pytest.raises(SpecError, match="the plan has no module 'norm'"):
        local_session(
            lam,
            SplitPlan.single({"tokenizer.csi": "a", "embedding": "a", "block.0": "a", "block.1": "a"}),
            sgd,
        )
    with pytest.raises(SpecError, match=r"no module 'block\.7'"):
        LamPart(lam, ["block.7"])
    assert trainable_modules(lam) == {"embedding", "block.0", "block.1", HEAD}
