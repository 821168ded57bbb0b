"""One training step of a split LAM, against the same step of the LAM whole; and its bytes against theory.

Device: tokeniser, embedding, head. Server: blocks with LoRA (by peft) and the norm. Both sides train the same
weights on the same samples with AdamW, one thread each, in turns; ratios are medians over neighbouring steps.
Over Ray the same nodes are processes of this machine: ``actors_s`` is what they spend on messages,
``coding_s`` what all messages of a step take to bytes and back (half of it in the actors), ``calls_s`` what
is left, Ray's own. Bytes are counted where messages travel, and priced by the planner's ``cost`` from shapes.
"""

import copy
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec, ModelSpec
from airlam.split.cost import cost
from airlam.split.graph import PRECISION_BYTES, Precision
from airlam.split.messages import Message, decode, encode
from airlam.split.network import EdgeNetwork, Node, WiredLink
from airlam.split.node import nmse_loss
from airlam.split.plan import Schedule, SplitPlan
from airlam.split.profile import profile_lam
from airlam.split.ray_transport import RayTransport
from airlam.split.recipes import lam_recipes
from airlam.split.run import Session, chain_of, local_session
from airlam.split.transport import Answer, Transport
from airlam.tokens.base import TokenBatch

DEVICE, SERVER = "device", "server"
BATCH = 32
LEARNING_RATE = 1e-3
_FREQUENCIES_HZ = tuple(180e3 * index for index in range(48))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=4, num_cols=8),
    num_user_antennas=1,
    history_frequencies_hz=_FREQUENCIES_HZ,
    target_frequencies_hz=_FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=16,
    num_horizon=4,
    max_doppler_hz=222.0,
)
OnProgress = Callable[..., None]
Step = Callable[[int], None]


def run(quick: bool, on_progress: OnProgress) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine.

    ``inprocess.step_ratio``, ``ray.step_ratio``: split over uncut; Ray is left out of a quick run and where
    it is not installed. ``bytes_error``: bytes a step, counted minus priced, without sign, of all precisions.
    """
    lam = _lam(quick)
    samples = _samples(lam)
    repeats = 5 if quick else 31
    skipped: dict[str, str] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures, rows = _in_process(lam, samples, repeats, on_progress)
        on_progress("bytes", 0, 1)
        priced = [_bytes(lam, samples, precision) for precision in PRECISION_BYTES]
        figures["bytes_error"] = sum(abs(row["counted_bytes"] - row["priced_bytes"]) for row in priced)
        on_progress("ray", 0, 1)
        if quick:
            skipped["ray"] = "a quick run starts no cluster"
        elif importlib.util.find_spec("ray") is None:
            skipped["ray"] = "Ray is not installed: pip install 'airlam[ray]'"
        else:
            figures |= _over_ray(lam, samples, repeats, on_progress)
    finally:
        torch.set_num_threads(threads)
    settings = {
        "model": f"{lam.spec.backbone}, {lam.backbone.num_blocks} blocks, {lam.spec.tokenizer} tokens",
        "batch_and_tokens": list(samples.features.shape[:2]),
        "num_trainable": sum(p.numel() for p in lam.parameters() if p.requires_grad),
        "repeats": repeats,
        "skipped": skipped,
    }
    return {"settings": settings, "figures": figures, "rows": [*rows, *priced]}


def _in_process(
    lam: LAM, samples: TokenBatch, repeats: int, on_progress: OnProgress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both steps in this process."""
    split = _split_step(local_session(lam, plan_of(lam), _adamw), samples)
    pairs = _in_turns(_whole_step(lam, samples), split, repeats, on_progress)
    rows = [{"repeat": index, "uncut_s": uncut_s, "split_s": split_s} for index, (uncut_s, split_s) in pairs]
    return {
        "inprocess.step_ratio": statistics.median(row["split_s"] / row["uncut_s"] for row in rows),
        "inprocess.step_s": statistics.median(row["split_s"] for row in rows),
        "uncut.step_s": statistics.median(row["uncut_s"] for row in rows),
    }, rows


def _over_ray(lam: LAM, samples: TokenBatch, repeats: int, on_progress: OnProgress) -> dict[str, Any]:
    """The step with nodes as processes, and where its time goes (means, so that they add up)."""
    plan = plan_of(lam)
    recipes = lam_recipes(lam, SETTING, plan, optimiser_options={"lr": LEARNING_RATE})
    transport = RayTransport("local", recipes)
    try:
        split = _split_step(Session(lam, plan, transport), samples)
        split(0)
        before_s = sum(transport.busy_s().values())
        pairs = _in_turns(_whole_step(lam, samples), split, repeats, on_progress)
        actors_s = (sum(transport.busy_s().values()) - before_s) / (repeats + 1)
    finally:
        transport.close()
    recorded = _Recording(local_session(lam, plan, _adamw).transport)
    _split_step(Session(lam, plan, recorded), samples)(0)
    coding_s = statistics.median(_seconds(recorded.recode, repeat) for repeat in range(repeats))
    step_s = statistics.mean(split_s for _, (_, split_s) in pairs)
    return {
        "ray.step_ratio": statistics.median(split_s / uncut_s for _, (uncut_s, split_s) in pairs),
        "ray.step_s": step_s,
        "ray.actors_s": actors_s,
        "ray.coding_s": coding_s,
        "ray.calls_s": step_s - actors_s - coding_s / 2,
        "ray.calls_per_step": len(recorded.messages) // 2,
    }


def _in_turns(
    first: Step, second: Step, repeats: int, on_progress: OnProgress
) -> list[tuple[int, tuple[float, float]]]:
    """Seconds of both by repeat; one more pair warms up, and who goes first alternates."""
    pairs = []
    for repeat in range(repeats + 1):
        on_progress("steps", repeat, repeats)
        order = (first, second) if repeat % 2 else (second, first)
        seconds = {step: _seconds(step, 1 + repeat) for step in order}
        pairs.append((repeat, (seconds[first], seconds[second])))
    return pairs[1:]


def _bytes(lam: LAM, samples: TokenBatch, precision: Precision) -> dict[str, Any]:
    """Bytes of one step between the two nodes, both ways: counted by a round, and priced from the graph."""
    plan = plan_of(lam, precision)
    session = local_session(lam, plan, _adamw)
    _split_step(session, samples)(0)
    network = EdgeNetwork(
        nodes=(
            Node(name=DEVICE, kind="device", compute_flops_per_s=1e9),
            Node(name=SERVER, kind="server", compute_flops_per_s=1e12),
        ),
        wired_links=(WiredLink(first=DEVICE, second=SERVER, rate_bps=1e9),),
    )
    graph = profile_lam(lam, samples)
    ranks = {module.name: lam.spec.lora_rank for module in graph.modules if module.lora is not None}
    priced = cost(graph, network, _with_ranks(plan, ranks), Schedule.equal(network))
    return {
        "precision": precision,
        "counted_bytes": session.air.traffic.payload_bytes,
        "priced_bytes": sum(priced.link_bytes.values()),
    }


class _Recording:
    """A transport that remembers what passed through another."""

    def __init__(self, inner: Transport) -> None:
        self.inner, self.width = inner, inner.width
        self.messages: list[Message] = []

    def submit(self, node: str, message: Message) -> int:
        """Sends on; the samples, which travel once, are not remembered."""
        if message.header.operation != "hold":
            self.messages.append(message)
        return self.inner.submit(node, message)

    def next_answer(self) -> tuple[int, Answer]:
        """The inner transport's."""
        ticket, answer = self.inner.next_answer()
        if isinstance(answer, Message) and answer.header.operation != "hold":
            self.messages.append(answer)
        return ticket, answer

    def restart(self, node: str) -> None:
        """The inner transport's."""
        self.inner.restart(node)

    def close(self) -> None:
        """The inner transport's."""
        self.inner.close()

    def recode(self, _: int) -> None:
        """Every message to bytes and back."""
        for message in self.messages:
            decode(encode(message))


def plan_of(lam: LAM, precision: Precision = "fp32") -> SplitPlan:
    """Embedding and head on the device, the backbone on the server."""
    chain = chain_of(lam)
    own = {name: DEVICE for name in chain if name.startswith(("tokenizer", "embedding", "head"))}
    node_of = {name: own.get(name, SERVER) for name in chain}
    cuts = {("embedding", "block.0"): precision, ("norm", chain[-1]): precision}
    return SplitPlan.single(node_of, precisions=cuts)


def _with_ranks(plan: SplitPlan, ranks: dict[str, int]) -> SplitPlan:
    return SplitPlan(replicas=plan.replicas, lora_ranks=ranks, precisions=plan.precisions)


def _whole_step(lam: LAM, samples: TokenBatch) -> Step:
    whole = copy.deepcopy(lam)
    parameters = [p for p in whole.parameters() if p.requires_grad]
    optimiser = _adamw(parameters)

    def step(_: int) -> None:
        whole.train()
        tokens = samples.select(torch.arange(len(samples)))
        loss = nmse_loss(whole, whole(tokens), tokens.context).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        loss.item()

    return step


def _split_step(session: Session, samples: TokenBatch) -> Step:
    flow = next(iter(session.routes))
    session.hold(flow, samples)
    everything = {flow: torch.arange(len(samples))}

    def step(number: int) -> None:
        session.apply(session.forward_backward(number, everything))

    return step


def _seconds(step: Step, number: int) -> float:
    start = time.perf_counter()
    step(number)
    return time.perf_counter() - start


def _adamw(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE)


def _lam(quick: bool) -> LAM:
    spec = ModelSpec(tokenizer="patch", num_layers=1) if quick else ModelSpec()
    return lam_for(spec, SETTING, seed=0)


def _samples(lam: LAM) -> TokenBatch:
    """Tokens of channels with one drawn path each in noise: a step takes as long whatever they hold."""
    random = torch.Generator().manual_seed(0)
    num_slots = SETTING.num_history + SETTING.num_horizon
    links = torch.randn(BATCH, 1, 1, 32, 48, dtype=torch.complex64, generator=random)
    turns = (
        0.1 * torch.rand(BATCH, 1, 1, 1, 1, generator=random) * torch.arange(num_slots)[:, None, None, None]
    )
    links = links * torch.polar(torch.ones(1), 2 * torch.pi * turns)  # [batch, slots, 1, ports, subcarriers]
    history, future = links[:, : SETTING.num_history], links[:, SETTING.num_history :]
    tokens = lam.tokenizer.tokenise(history, torch.full((BATCH,), 0.01))
    return lam.tokenizer.with_target(tokens, future)
