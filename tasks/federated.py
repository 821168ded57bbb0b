"""A run with a ``[network]``: its devices fine-tune the LAM together, round by round on a virtual clock.

Beside what every run's folder holds there are ``rounds.jsonl`` (one line a round: who ran, who did not and
why, delay, bytes, energy, loss, NMSE) and ``rounds.csv``, the same as a table.
"""

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from airlam.model.lam import LAM, count_parameters
from airlam.model.storage import assign_tensors, trainable_tensors
from airlam.results import POOLED_NMSE
from airlam.specs import FederatedSpec, NetworkSpec, RunSpec, require
from airlam.split.graph import ModuleGraph
from airlam.split.messages import Tensors
from airlam.split.node import Loss, nmse_loss
from airlam.split.profile import profile_lam
from airlam.tasks.channel_prediction import (
    LinkSource,
    NoisyViews,
    Progress,
    tokenise_views,
)
from airlam.tasks.device_data import device_samples, divide_links
from airlam.tasks.drawn_network import Drawn, drawn
from airlam.tasks.validation_rate import rate_evaluation
from airlam.tokens.base import TokenBatch
from airlam.training.federated.layout import layout_of, prepare
from airlam.training.federated.report import TABLE_FILE, RoundReport, write_table
from airlam.training.federated.run import Evaluate, FederatedResult, train_together
from airlam.training.federated.scheduling import policy_of
from airlam.training.federated.setup import Setup
from airlam.training.federated.state import typical_round
from airlam.training.loop import METRICS_FILE
from airlam.training.metrics import MetricsLog, TrainingSummary, peak_memory_bytes

VALIDATION_SAMPLES = 256
_PROFILED_SAMPLES = 4  # loads are proportional to the batch
_EVALUATED_AT_ONCE = 128
_FLOOR = 1e-5  # of the logarithm, as in prediction_loss


def prediction_loss(lam: LAM, output: Tensors, context: Tensors) -> torch.Tensor:
    """``airlam.tasks.channel_prediction.prediction_loss`` where the head is; float32 [batch]."""
    nmse = nmse_loss(lam, output, context)
    return torch.log(nmse + _FLOOR) + 0.5 * nmse / context["reference_nmse"]


def setup_of(
    spec: RunSpec,
    lam: LAM,
    samples: Mapping[str, TokenBatch],
    found: Drawn,
    federated: FederatedSpec,
    ray_address: str | None = None,
    loss: Loss = prediction_loss,
) -> Setup:
    """Everything that takes part in a run; freezes in ``lam`` what the run freezes."""
    assert spec.network is not None
    prepare(lam, federated)
    largest = max(samples.values(), key=lambda tokens: tokens.features.shape[1])
    graph = profile_of(lam, largest).for_batch(spec.training.batch_size)
    layout = layout_of(federated, lam, graph, list(samples), _server_of(spec.network))
    counts = {device: len(tokens) for device, tokens in samples.items()}
    typical = typical_round(graph, found.network, layout, counts, federated.steps_per_round)
    num_rounds = spec.training.num_steps // federated.steps_per_round
    return Setup(
        lam=lam,
        layout=layout,
        graph=graph,
        network=found.network,
        gains=found.gains,
        samples=samples,
        policy=policy_of(federated, typical, num_rounds, spec.training.seed),
        loss=loss,
        federated=federated,
        training=spec.training,
        ray_address=ray_address,
    )


def profile_of(lam: LAM, tokens: TokenBatch) -> ModuleGraph:
    """The LAM's graph, from a few samples; tokens count as made, as they are made once."""
    return profile_lam(lam, tokens.select(torch.arange(min(len(tokens), _PROFILED_SAMPLES))))


def nmse_evaluation(tokens: TokenBatch) -> Evaluate:
    """Error energy over target energy of all of these links together, whatever LAM is given."""

    def evaluate(lam: LAM) -> float:
        error = energy = 0.0
        with torch.no_grad():
            for place in torch.split(torch.arange(len(tokens)), _EVALUATED_AT_ONCE):
                part = tokens.select(place)
                found = lam.head().squared_error(lam(part), part.context)
                error, energy = error + float(found[0].sum()), energy + float(found[1].sum())
        return error / energy

    return evaluate


def tune_together(
    spec: RunSpec,
    lam: LAM,
    sources: Mapping[str, LinkSource],
    folder: Path,
    place: Path,
    on_progress: Progress,
    identity: str,
    ray_address: str | None = None,
) -> tuple[TrainingSummary, dict[str, Any]]:
    """Fine-tunes ``lam`` in place with the run's network; the summary of any run, and what is ours.

    sources: ``train``, which is divided among the devices, and ``validation``. ``folder`` keeps checkpoints
    and rounds, ``place`` the tokens. ray_address: see ``Setup``.
    """
    assert spec.network is not None
    federated, seed = spec.federated or FederatedSpec(), spec.training.seed
    devices = devices_of(spec.network)
    samples = device_samples(
        lam,
        divide_links(sources["train"], devices, federated.partition, seed),
        spec.prediction,
        num_samples=spec.training.num_samples,
        seed=seed,
        folder=place / "train",
        on_progress=on_progress,
    )
    views = NoisyViews(
        source=sources["validation"],
        spec=spec.prediction,
        num_samples=VALIDATION_SAMPLES,
        seed=2 * seed + 1,
        augment=False,
    )
    validation = tokenise_views(
        lam.tokenizer, views, place / "validation", "tokenising validation", on_progress
    )
    # what a run freezes is frozen in its own copy: the LAM that is saved keeps what it calls frozen
    setup = setup_of(spec, copy.deepcopy(lam), samples, drawn(spec.network), federated, ray_address)
    evaluate = nmse_evaluation(validation.tokens)
    rate = rate_evaluation(views, validation.tokens, spec.link.num_users)
    return run_rounds(setup, evaluate, lam, folder, on_progress, identity, rate=rate)


def devices_of(network: NetworkSpec) -> tuple[str, ...]:
    """SpecError where they are in several cells."""
    devices = tuple(network.devices_by_name)
    require(
        len({network.server_of(device) for device in devices}) == 1,
        f"the devices of {network.name} are in several cells; fine-tune one cell at a time",
    )
    return devices


def run_rounds(
    setup: Setup,
    evaluate: Evaluate,
    lam: LAM,
    folder: Path,
    on_progress: Progress,
    identity: str,
    *,
    rate: Evaluate | None = None,
    measure: str = POOLED_NMSE,
) -> tuple[TrainingSummary, dict[str, Any]]:
    """All rounds of a run: the best weights into ``lam``, files into ``folder``; what its summary says.

    rate: see ``train_together``. measure: what ``evaluate`` gives, less being better, for people.
    """
    began = time.monotonic()
    result = train_together(
        setup,
        evaluate,
        rate=rate,
        folder=folder,
        on_round=lambda report: on_progress(
            "rounds", report.round_index + 1, setup.num_rounds, describe_round(report, measure)
        ),
        identity=identity,
    )
    best, own = trainable_tensors(result.lam), trainable_tensors(lam)
    assign_tensors({name: own[name] for name in best}, best, "the best weights")
    write_table(result.reports, folder / TABLE_FILE)
    _write_metrics(result, setup, folder)
    return _summary(setup, result, time.monotonic() - began), _own_summary(setup, result, measure)


def describe_round(report: RoundReport, measure: str = POOLED_NMSE) -> str:
    """One round for the progress line."""
    loss = "" if report.loss is None else f", loss {report.loss:.3f}"
    nmse = "" if report.nmse is None else f", {measure} {report.nmse:.4g}"
    left_out = [name for name in report.shares if name not in report.ran]
    failed = f", {len(left_out)} failed" if left_out else ""
    return f"{len(report.ran)} devices{failed}, {report.now_s:.3g} s of virtual time{loss}{nmse}"


def _server_of(network: NetworkSpec) -> str:
    return network.server_of(next(iter(network.devices_by_name)))


def _write_metrics(result: FederatedResult, setup: Setup, folder: Path) -> None:
    """What ``airlam evaluate`` draws of a training: the loss of each round that had one."""
    log = MetricsLog(folder / METRICS_FILE, 1)
    for report in result.reports:
        if report.loss is not None:
            step = (report.round_index + 1) * setup.federated.steps_per_round
            log.write(step=step, loss=report.loss, seconds=report.now_s)
    log.close()


def _summary(setup: Setup, result: FederatedResult, seconds: float) -> TrainingSummary:
    counts, reports = count_parameters(setup.lam), result.reports
    loaded = setup.graph.at_ranks(setup.layout.plan.lora_ranks)
    flops = sum(module.forward_flops + module.backward_flops for module in loaded.modules)
    steps = setup.federated.steps_per_round
    used = sum(len(report.ran) for report in reports) * steps
    losses = [report.loss for report in reports if report.loss is not None]
    return TrainingSummary(
        num_parameters=counts.total,
        num_trainable=counts.trainable,
        trainable_share=counts.trainable_share,
        flops_per_sample=flops / setup.graph.batch_size,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(torch.device("cpu")),
        num_steps=len(reports) * steps,
        num_samples_seen=used * setup.training.batch_size,
        final_loss=losses[-1] if losses else None,
        best_step=result.best_round * steps,
        best_validation_loss=result.best_nmse,
        stop_reason=result.stop_reason,
        device="cpu",
        precision="float32",
    )


def _own_summary(setup: Setup, result: FederatedResult, measure: str) -> dict[str, Any]:
    """What a run of a network has beside; ``best_validation_loss`` is of the measure there."""
    reports = result.reports
    return {
        "federated": {
            "measure": measure,
            "method": setup.federated.method,
            "policy": setup.federated.policy,
            "num_devices": len(setup.samples),
            "virtual_seconds": reports[-1].now_s,
            "uplink_bytes": sum(report.uplink_bytes for report in reports),
            "downlink_bytes": sum(report.downlink_bytes for report in reports),
            "energy_j": sum(report.energy_j for report in reports),
            "epsilon": reports[-1].epsilon,
            "curve": [asdict(point) for point in result.curve],
        }
    }
