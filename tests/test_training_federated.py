"""Devices train together: equal to training in one place, whoever fails, and however often it is stopped."""

import copy
import dataclasses
import functools
import gc
import importlib.util
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from airlam.errors import DataError, SpecError
from airlam.model.heads import PatchHead
from airlam.model.lam import LAM, build_lam
from airlam.model.storage import trainable_tensors
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec, FaultSpec, FederatedSpec, ModelSpec, TrainingSpec
from airlam.split.failures import NodeFailure
from airlam.split.messages import Message
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink
from airlam.split.node import nmse_loss
from airlam.split.policies import AllDevices, Policy
from airlam.split.profile import profile_lam
from airlam.split.ray_transport import RayTransport
from airlam.split.transport import Answer, Transport
from airlam.tokens.base import TokenBatch
from airlam.tokens.patch import PatchTokenizer
from airlam.training.federated import centralised, engine, nodes
from airlam.training.federated.centralised import train_centrally
from airlam.training.federated.engine import Federation
from airlam.training.federated.layout import layout_of, prepare
from airlam.training.federated.report import accuracy_curve, first_at, read_rounds, write_table
from airlam.training.federated.run import FederatedResult, train_together
from airlam.training.federated.scheduling import policy_of
from airlam.training.federated.setup import Setup
from airlam.training.federated.state import typical_round

# not importorskip: Ray reads its settings when it is imported
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
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
TOKENIZER = PatchTokenizer(SETTING)
DEVICES = ("d0", "d1", "d2", "d3")
SAMPLES, BATCH, RANK = 10, 4, 4
TRAINING = TrainingSpec(
    num_steps=6,
    batch_size=BATCH,
    learning_rate=1e-2,
    validation_every_steps=2,
    checkpoint_every_steps=1,
    patience=100,
)
ALL = FederatedSpec(policy="all", deadline_factor=1.5)


@functools.cache
def built(tuning: str) -> LAM:
    spec = ModelSpec(tokenizer="patch", num_layers=1, lora_rank=RANK, tuning=tuning)  # type: ignore[arg-type]
    lam = build_lam(spec, TOKENIZER, lambda width: PatchHead(TOKENIZER, width))
    torch.manual_seed(5)
    for name, parameter in lam.named_parameters():
        if parameter.requires_grad and "lora_B" not in name:  # a fresh head lets no gradient through
            parameter.data += 0.02 * torch.randn_like(parameter)
    return lam


@functools.cache
def tokens(seed: int) -> TokenBatch:
    random = torch.Generator().manual_seed(seed)
    history = torch.randn(SAMPLES, 4, 1, 4, 6, dtype=torch.complex64, generator=random)
    found = TOKENIZER.tokenise(history, torch.full((SAMPLES,), 0.1))
    return TOKENIZER.with_target(found, history[:, :2])


def network() -> EdgeNetwork:
    return EdgeNetwork(
        nodes=(
            *(Node(name=d, kind="device", compute_flops_per_s=1e9 * (k + 1)) for k, d in enumerate(DEVICES)),
            Node(name="server", kind="server", compute_flops_per_s=1e12),
        ),
        cells=(RadioCell(server="server", uplink_bandwidth_hz=1e7, downlink_bandwidth_hz=1e7),),
        radio_links=tuple(
            RadioLink(device=d, server="server", gain=1e-10 / (k + 1), latency_s=1e-3)
            for k, d in enumerate(DEVICES)
        ),
    )


def gains(round_index: int) -> dict[str, float]:
    return {d: 1e-10 / (1 + (k + round_index) % 4) for k, d in enumerate(DEVICES)}


def setup_of(
    federated: FederatedSpec,
    training: TrainingSpec = TRAINING,
    policy: Policy | None = None,
    dropout: bool = False,
) -> Setup:
    lam = copy.deepcopy(built("full" if federated.method == "fedavg" else "lora"))
    for module in lam.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    prepare(lam, federated)
    graph = profile_lam(lam, tokens(0).select(torch.arange(BATCH)))
    layout = layout_of(federated, lam, graph, DEVICES, "server")
    counts = dict.fromkeys(DEVICES, SAMPLES)
    typical = typical_round(graph, network(), layout, counts, federated.steps_per_round)
    return Setup(
        lam=lam,
        layout=layout,
        graph=graph,
        network=network(),
        gains=gains,
        samples={device: tokens(k) for k, device in enumerate(DEVICES)},
        policy=policy or policy_of(federated, typical, training.num_steps, seed=1),
        loss=nmse_loss,
        federated=federated,
        training=training,
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As an actor has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def evaluate(lam: LAM) -> float:
    with torch.no_grad():
        return nmse_loss(lam, lam(tokens(9)), tokens(9).context).mean().item()


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """To rounding: embeddings that are sent anew are computed in a batch of another size."""
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in one
    )


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def model_of(federation: Federation) -> LAM:
    return next(iter(federation.models().values()))


@pytest.mark.parametrize("method", ["split", "federated_lora"])
def test_rounds_of_all_devices_by_plain_descent_are_training_in_one_place(
    monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    """Means of gradients at the server, or of weights after one step, head included."""

    def descent(parameters: list[torch.nn.Parameter], **_options: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters)

    for module in (nodes, centralised):
        monkeypatch.setattr(module, "adamw", descent)
    for module in (engine, centralised):
        monkeypatch.setattr(module, "MAX_GRADIENT_NORM", 1e9)
    setup = setup_of(dataclasses.replace(ALL, method=method), dataclasses.replace(TRAINING, num_steps=2))
    federation = Federation(setup)
    federation.run_round(), federation.run_round()
    seen: list[dict[str, torch.Tensor]] = []

    def keep(lam: LAM) -> float:
        seen.append({name: p.detach().clone() for name, p in lam.named_parameters()})
        return 1.0

    assert same(trainable_tensors(train_centrally(setup, keep).lam), trainable_tensors(setup.lam))
    found = dict(model_of(federation).named_parameters())
    for name, expected in seen[-1].items():
        if setup.lam.get_parameter(name).requires_grad:
            moved = expected - seen[0][name]
            torch.testing.assert_close(found[name].detach() - seen[0][name], moved, rtol=1e-3, atol=1e-6)
            assert moved.any() or "lora_" in name


def test_only_what_trains_changes_and_the_start_is_left_as_it_was() -> None:
    setup = setup_of(ALL)
    before = {name: p.detach().clone() for name, p in setup.lam.named_parameters()}
    federation = Federation(setup)
    federation.run_round()
    federation.run_round()
    found = dict(model_of(federation).named_parameters())
    assert same(before, {name: p.detach() for name, p in setup.lam.named_parameters()})
    changed = {name for name, p in found.items() if not torch.equal(p, before[name])}
    assert changed and all(setup.lam.get_parameter(name).requires_grad for name in changed)
    assert not any(name.startswith("embedding") for name in changed)


@pytest.mark.parametrize("method", ["federated_lora", "fedavg"])
def test_without_a_split_the_mean_of_the_devices_weights_is_what_all_go_on_from(method: Any) -> None:
    federation = Federation(setup_of(dataclasses.replace(ALL, method=method)))
    federation.run_round()
    own = federation.session.save()
    for name, mean in federation.weights.value.items():
        copies = [own[device][f"weights/{name}"] for device in DEVICES]
        torch.testing.assert_close(mean, torch.stack(copies).mean(0))
    report = federation.run_round()
    once = sum(v.nbytes for v in federation.weights.value.values())  # to all of them
    assert report.downlink_bytes == once and report.uplink_bytes == len(DEVICES) * once


def test_local_devices_send_nothing_and_differ() -> None:
    federation = Federation(setup_of(dataclasses.replace(ALL, method="local")))
    report = federation.run_round()
    assert report.uplink_bytes == report.downlink_bytes == 0
    models = [trainable_tensors(lam) for lam in federation.models().values()]
    assert len(models) == 4 and not same(models[0], models[1])


def test_personal_heads_stay_on_their_devices() -> None:
    federation = Federation(setup_of(dataclasses.replace(ALL, head="personal")))
    federation.run_round()
    models = list(federation.models().values())
    heads = [lam.get_parameter("heads.channel_prediction.shared_filter") for lam in models]
    assert len(models) == 4 and not torch.equal(heads[0], heads[1])
    for name, parameter in models[0].named_parameters():
        if "lora_" in name:
            assert torch.equal(parameter, models[1].get_parameter(name))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_bytes_and_delay_are_those_that_were_planned(precision: Any) -> None:
    federation = Federation(setup_of(dataclasses.replace(ALL, precision=precision)))
    reports = [federation.run_round() for _ in range(4)]
    for report in reports:
        assert report.delay_s == pytest.approx(report.planned_s, rel=0.02)  # sample numbers travel too
    graph, edge = federation.setup.graph, federation.setup.graph.edges[-2]
    shared = sum(value.nbytes for value in federation.weights.value.values())
    gradient = edge.backward_bytes(precision)
    kept = {d: federation.session.kept_rows(d) or frozenset() for d in DEVICES}
    rows = sum(len(ids) for ids in kept.values())
    embedding = graph.outgoing["embedding"][0]
    numbers = 4 * 4 * BATCH * 9  # which samples, and whether they are fresh
    mine = rows * embedding.forward_bytes(precision) / BATCH + 4 * 4 * (gradient + shared) + numbers
    assert sum(report.uplink_bytes for report in reports) == mine


@pytest.mark.parametrize("kind", ["lost", "nan", "shape", "huge", "slow"])
@pytest.mark.parametrize("method", ["split", "federated_lora"])
def test_a_device_that_fails_is_left_out_while_it_does(kind: Any, method: Any) -> None:
    fault = FaultSpec(device="d2", kind=kind, first_round=1, last_round=2, factor=1e4)
    federation = Federation(setup_of(dataclasses.replace(ALL, method=method, faults=(fault,))))
    reports = [federation.run_round() for _ in range(4)]
    for report in reports:
        expected = ("d0", "d1", "d3") if report.round_index in (1, 2) else DEVICES
        assert report.ran == expected, report.status
    words = {"lost": "lost", "nan": "NaN", "shape": "expected", "huge": "the median", "slow": "late"}
    assert words[kind] in reports[1].status["d2"]
    waited = kind in ("lost", "slow")
    assert reports[1].delay_s == pytest.approx((1.5 if waited else 1.0) * reports[1].planned_s, rel=0.05)
    assert all(bool(v.isfinite().all()) for v in trainable_tensors(model_of(federation)).values())
    assert math.isfinite(evaluate(model_of(federation).eval()))


def test_what_liars_send_changes_nothing() -> None:
    """The same as if they had been away: of the others' updates, nothing is missing."""

    def trained(kind: str) -> dict[str, torch.Tensor]:
        faults = tuple(FaultSpec(device="d1", kind=kind) for _ in range(1))  # type: ignore[arg-type]
        federation = Federation(setup_of(dataclasses.replace(ALL, faults=faults)))
        for _ in range(3):
            assert federation.run_round().ran == ("d0", "d2", "d3")
        return trainable_tensors(model_of(federation))

    expected = trained("lost")
    assert same(expected, trained("nan")) and same(expected, trained("huge"))


def test_without_a_quorum_nothing_is_updated_and_time_passes() -> None:
    faults = tuple(FaultSpec(device=d, kind="lost") for d in DEVICES[:3])
    setup = setup_of(dataclasses.replace(ALL, faults=faults))
    federation = Federation(setup)
    report = federation.run_round()
    assert report.ran == () and report.loss is None and report.delay_s > 0
    assert "only 1 of 4" in report.status["d3"]
    assert same(trainable_tensors(model_of(federation)), trainable_tensors(setup.lam))


class Failing:
    """A transport in which a node is lost over one of its messages, and answers none until restarted."""

    def __init__(self, inner: Transport, node: str, count: int) -> None:
        self.inner, self.width, self.node, self.left = inner, inner.width, node, count
        self.tickets: dict[int, str] = {}
        self.dead = False

    def submit(self, node: str, message: Message) -> int:
        ticket = self.inner.submit(node, message)
        self.tickets[ticket] = node
        return ticket

    def next_answer(self) -> tuple[int, Answer]:
        ticket, answer = self.inner.next_answer()
        self.left -= self.tickets[ticket] == self.node
        self.dead |= self.left == 0
        if self.dead and self.tickets[ticket] == self.node:
            return ticket, NodeFailure(node=self.node, kind="lost", reason="it was killed")
        return ticket, answer

    def restart(self, node: str) -> None:
        self.inner.restart(node)
        self.dead &= node != self.node

    def close(self) -> None:
        self.inner.close()


def messages_of_a_round(node: str) -> int:
    federation = Federation(setup_of(ALL))
    federation.run_round()
    counting = Failing(federation.transport.inner, node, 2**31)
    federation.transport.inner = counting
    federation.run_round()
    return 2**31 - counting.left


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_a_lost_server_costs_no_more_than_the_round_in_flight(share: float) -> None:
    """It dies over the first message of the second round, over the last, and between."""
    expected = Federation(setup_of(ALL))
    reports = [expected.run_round() for _ in range(3)]
    federation = Federation(setup_of(ALL))
    federation.run_round()
    count = max(1, round(share * messages_of_a_round("server")))
    federation.transport.inner = Failing(federation.transport.inner, "server", count)
    found = [federation.run_round() for _ in range(2)]
    assert federation.transport.inner.left <= 0  # type: ignore[attr-defined]
    losses = [[report.loss for report in some] for some in (found, reports[1:])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert close(trainable_tensors(model_of(federation)), trainable_tensors(model_of(expected)))


def test_a_device_lost_at_any_message_stops_nobody() -> None:
    """Its part of the round is left out, or the round is done again with it; the next one has it back."""
    for count in range(1, messages_of_a_round("d1") + 1):
        federation = Federation(setup_of(ALL))
        federation.run_round()
        federation.transport.inner = Failing(federation.transport.inner, "d1", count)
        reports = [federation.run_round() for _ in range(2)]
        assert set(reports[0].ran) | {"d1"} == set(DEVICES) and reports[1].ran == DEVICES
        assert federation.transport.inner.left <= 0 and not federation.lost  # type: ignore[attr-defined]
        assert reports[0].delay_s < 3 * reports[1].delay_s


def test_a_server_that_never_comes_back_ends_the_run() -> None:
    fault = FaultSpec(device="server", kind="lost", first_round=1)
    federation = Federation(setup_of(dataclasses.replace(ALL, faults=(fault,))))
    federation.run_round()
    with pytest.raises(NodeFailure, match="server is lost"):
        federation.run_round()


class Killing(Failing):
    """Kills an actor as it is sent a message."""

    def submit(self, node: str, message: Message) -> int:
        assert isinstance(self.inner, RayTransport)
        if node == self.node:
            self.left -= 1
            if self.left == 0:
                os.kill(self.inner.process_id(node), signal.SIGKILL)
        return self.inner.submit(node, message)

    def next_answer(self) -> tuple[int, Answer]:
        return self.inner.next_answer()


@needs_ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray does not wait for the processes that it starts
@pytest.mark.usefixtures("one_thread")
def test_actors_killed_mid_round_cost_no_more_than_that_round() -> None:
    """Over Ray: each round is the one that this process would have done, but for a device killed in it."""
    local = Federation(setup_of(ALL, dropout=True))
    federation = Federation(dataclasses.replace(local.setup, ray_address="local"))
    transport = federation.transport.inner
    try:
        assert federation.run_round() == local.run_round()
        federation.transport.inner = Killing(transport, "server", 3)
        assert federation.run_round().loss == pytest.approx(local.run_round().loss, rel=1e-5)
        assert close(trainable_tensors(model_of(federation)), trainable_tensors(model_of(local)))
        federation.transport.inner = Killing(transport, "d1", 2)
        assert set(federation.run_round().ran) == set(DEVICES) - {"d1"}
        assert federation.run_round().ran == DEVICES
    finally:
        federation.close()
        assert not sys.modules["ray"].is_initialized()
        gc.collect()  # while warnings are those of this test


class Stop(Exception):
    """Ends a run between two rounds."""


@pytest.mark.parametrize(
    "federated",
    [
        FederatedSpec(
            policy="drift_plus_penalty",
            devices_per_round=2,
            precision="int8",
            faults=(FaultSpec(device="d1", kind="lost", first_round=2, last_round=3),),
        ),
        FederatedSpec(policy="random", method="federated_lora", devices_per_round=3, ranks=(4, 2)),
        FederatedSpec(policy="round_robin", devices_per_round=2, clip_norm=0.1, steps_per_round=2),
    ],
    ids=["split", "ranks", "private"],
)
def test_stopped_and_started_again_it_ends_the_same(federated: FederatedSpec, tmp_path: Path) -> None:
    if federated.clip_norm is not None:
        pytest.importorskip("dp_accounting")
    whole = train_together(setup_of(federated), evaluate)

    def stop(report: Any) -> None:
        if report.round_index == 1:
            raise Stop

    with pytest.raises(Stop):
        train_together(setup_of(federated), evaluate, folder=tmp_path, on_round=stop)
    again = train_together(setup_of(federated), evaluate, folder=tmp_path)
    assert again.reports == whole.reports and again.curve == whole.curve
    assert same(trainable_tensors(again.lam), trainable_tensors(whole.lam))
    assert read_rounds(tmp_path) == list(whole.reports)
    changed = dataclasses.replace(federated, quorum=0.25)
    with pytest.raises(DataError, match="quorum"):
        train_together(setup_of(changed), evaluate, folder=tmp_path)


def test_training_lowers_the_error_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    training = dataclasses.replace(TRAINING, num_steps=20)
    result: FederatedResult = train_together(setup_of(ALL, training), evaluate)
    assert result.best_nmse < 0.95 * result.first_nmse
    assert evaluate(result.lam) == pytest.approx(result.best_nmse)
    curve = accuracy_curve(result.reports, result.first_nmse)
    found = first_at(curve, result.best_nmse)
    assert found is not None and found.num_rounds == result.best_round
    assert first_at(curve, 0.0) is None
    write_table(result.reports, tmp_path / "rounds.csv")
    assert len((tmp_path / "rounds.csv").read_text().splitlines()) == 21


def test_training_stops_where_validation_no_longer_gains() -> None:
    training = dataclasses.replace(TRAINING, num_steps=20, learning_rate=1e-9, patience=1)
    grown = iter(range(1, 100))
    result = train_together(setup_of(ALL, training), lambda lam: float(next(grown)))
    assert result.stop_reason == "early" and len(result.reports) == 2 and result.best_round == 0


def test_devices_of_smaller_rank_train_and_send_their_rows_only() -> None:
    spec = dataclasses.replace(ALL, method="federated_lora", ranks=(4, 1))
    federation = Federation(setup_of(spec))
    report = federation.run_round()
    own = federation.session.save()
    downs = [name for name in own["d1"] if name.startswith("weights/") and "lora_A" in name]
    for name in downs:
        assert not own["d1"][name][1:].any() and own["d0"][name][1:].any()
    equal = Federation(setup_of(dataclasses.replace(ALL, method="federated_lora")))
    assert report.uplink_bytes < equal.run_round().uplink_bytes
    assert report.product_gap is not None and report.product_gap > 0


def test_of_one_factor_the_mean_of_products_is_the_product_of_means() -> None:
    spec = dataclasses.replace(ALL, method="federated_lora", one_factor=True)
    federation = Federation(setup_of(spec))
    federation.run_round()
    own, merged = federation.session.save(), federation.weights.value
    ups = [name for name in merged if "lora_B" in name]
    assert ups and not [name for name in merged if "lora_A" in name]
    for name in ups:
        down = federation.setup.lam.get_parameter(name.replace("lora_B", "lora_A"))
        products = torch.stack([own[device][f"weights/{name}"] @ down for device in DEVICES]).mean(0)
        torch.testing.assert_close(merged[name] @ down, products, rtol=1e-4, atol=1e-7)
    with pytest.raises(SpecError, match="one_factor is of LoRA; the model's tuning is 'full'"):
        setup_of(dataclasses.replace(spec, method="fedavg"))


def test_equal_ranks_are_plain_averaging() -> None:
    one = Federation(setup_of(dataclasses.replace(ALL, method="federated_lora", ranks=(RANK,))))
    other = Federation(setup_of(dataclasses.replace(ALL, method="federated_lora")))
    for federation in (one, other):
        federation.run_round()
        federation.run_round()
    for name, value in one.weights.value.items():
        torch.testing.assert_close(value, other.weights.value[name])


def test_private_gradients_are_clipped_noised_and_counted() -> None:
    pytest.importorskip("dp_accounting")
    private = dataclasses.replace(ALL, clip_norm=1e-3, noise_multiplier=2.0)
    federation = Federation(setup_of(private))
    first, second = federation.run_round(), federation.run_round()
    assert first.epsilon is not None and second.epsilon is not None
    assert 0 < first.epsilon < second.epsilon
    open_ = Federation(setup_of(ALL))
    open_.run_round(), open_.run_round()
    assert not same(trainable_tensors(model_of(federation)), trainable_tensors(model_of(open_)))


def test_a_policy_is_told_what_rounds_really_took() -> None:
    told: list[float] = []

    class Listening(AllDevices):
        def record(self, delay_s: float, energy_j: Any) -> None:
            told.append(delay_s)

    federation = Federation(setup_of(ALL, policy=Listening()))
    assert [federation.run_round().delay_s for _ in range(2)] == told


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(SpecError, match="tunes by 'full'"):
        prepare(copy.deepcopy(built("lora")), FederatedSpec(method="fedavg"))
    with pytest.raises(SpecError, match="the network has 4 devices"):
        setup_of(FederatedSpec(policy="random", devices_per_round=5))
    with pytest.raises(SpecError, match="no multiple"):
        train_together(setup_of(dataclasses.replace(ALL, steps_per_round=4)), evaluate)
    with pytest.raises(SpecError, match="ranks differ in federated_lora only"):
        FederatedSpec(ranks=(2, 4))
    with pytest.raises(SpecError, match="clip_norm"):
        FederatedSpec(method="fedavg", clip_norm=1.0)
