"""What a request of a served run takes, module by module: of LAMs, of precoders, of beam selection."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from airlam.datasets.store import ChannelDataset
from airlam.model.graph_precoder import GraphPrecoder
from airlam.model.lam import LAM
from airlam.model.lam_beams import LamBeams
from airlam.radio.channel import PredictionSetting
from airlam.serving.foresight import num_error_ports
from airlam.serving.lam_services import first_sweeps
from airlam.serving.measurement import future_shape
from airlam.serving.module_sharing import BEAM_HEAD, EMBEDDING, EXPERTS, HEAD
from airlam.serving.precoding import PRECODER
from airlam.specs import RunSpec
from airlam.split.flops import LiveBytes, flop_counter
from airlam.split.graph import Edge, Module, ModuleGraph
from airlam.tasks.planning import profiled

COMPLEX_BYTES = 8
Made = TypeVar("Made")


def lam_profile(lam: LAM) -> ModuleGraph:
    """What a LAM's modules take for a request of one link."""
    graph = profiled(lam, lam.tokenizer.setting, "inference").for_batch(1)
    return graph.at_ranks({module.name: lam.spec.lora_rank for module in graph.modules})


def beam_profile(own: LamBeams) -> ModuleGraph:
    """What the modules of a LAM of beam selection take for a request of one window."""
    (asked,) = first_sweeps({"": own.scales})
    lam, backbone = own.lam.eval(), own.lam.backbone
    weights: dict[str | None, list[nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        weights.setdefault(backbone.part_of(name), []).append(parameter)
    history = (asked.history.power, asked.history.position_m)
    with torch.no_grad():
        experts, (tokens, expected) = _measured(
            EXPERTS, partial(own.inputs, asked.history), own.stack.held(), history
        )
        features = [each for modality in tokens.values() for each in (modality.features, modality.mask)]
        around = (*lam.embedding.parameters(), *weights.get(None, ()))
        embedding, (embedded, mask) = _measured(EMBEDDING, partial(lam.embedding, tokens), around, features)
        hidden, calls = backbone.enter(embedded, mask)
        inner = []
        for index, call in enumerate(calls):
            name = f"block.{index}"
            run = partial(backbone.block, index, hidden, call)
            block, hidden = _measured(name, run, weights[name], (hidden, mask))
            inner.append(block)
        norm, hidden = _measured("norm", partial(backbone.norm, hidden), weights.get("norm", ()), (hidden,))
        choose = partial(lam.head, hidden[:, 0], expected)
        head, scores = _measured(BEAM_HEAD, choose, lam.head.parameters(), (hidden, expected))
    token_bytes = _bytes(features)
    hidden_bytes, mask_bytes, told_bytes = _bytes((hidden,)), _bytes((mask,)), _bytes((expected,))
    given = [token_bytes + told_bytes, *[hidden_bytes] * (2 + len(inner)), _bytes((scores,))]
    modules = tuple(
        dataclasses.replace(module, output_bytes=size)
        for module, size in zip((experts, embedding, *inner, norm, head), given, strict=True)
    )
    sent = [token_bytes, *[hidden_bytes + mask_bytes] * len(inner), hidden_bytes, hidden_bytes]
    edges = [
        Edge(source=source.name, target=target.name, num_elements=0, fixed_bytes=size)
        for (source, target), size in zip(itertools.pairwise(modules), sent, strict=True)
    ]
    aside = Edge(source=EXPERTS, target=BEAM_HEAD, num_elements=0, fixed_bytes=told_bytes)
    return ModuleGraph(modules=modules, edges=(*edges, aside))


def precoder_profile(
    precoder: GraphPrecoder, num_users: int, num_bs_ant: int, num_downlinks: int = 1, num_error_ports: int = 0
) -> ModuleGraph:
    """What a graph precoder takes for a request of some downlinks, with errors of that many ports or none."""
    random = torch.Generator().manual_seed(0)
    h = torch.randn(num_downlinks, num_users, num_bs_ant, dtype=torch.complex64, generator=random)
    errors = None
    if num_error_ports:
        one = torch.eye(num_bs_ant, dtype=torch.complex64)
        errors = 0.1 * one.expand(num_downlinks, num_users, num_bs_ant, num_bs_ant)
    noise_variance = torch.full((num_downlinks,), 0.1)
    run = partial(precoder.eval().precode, h, noise_variance, error_covariance=errors)
    with torch.no_grad():
        module, w = _measured(PRECODER, run, precoder.parameters(), (h,) if errors is None else (h, errors))
    return ModuleGraph(modules=(dataclasses.replace(module, output_bytes=_bytes((w,))),), edges=())


def joint_profile(
    lam: ModuleGraph, setting: PredictionSetting, precoder: GraphPrecoder, num_users: int
) -> ModuleGraph:
    """What a predictor and the precoder tuned with it take for a request of some users.

    lam: the predictor's profile for one link.
    """
    num_slots, _, num_bs_ant, num_subcarriers = future_shape(setting)
    ports = num_error_ports(setting)
    own = lam.for_batch(num_users)
    last = precoder_profile(precoder, num_users, num_bs_ant, num_slots * num_subcarriers, ports)
    told = num_users * num_slots * num_subcarriers * (num_bs_ant + ports**2)
    leads = Edge(source=HEAD, target=PRECODER, num_elements=0, fixed_bytes=COMPLEX_BYTES * told)
    return ModuleGraph(modules=(*own.modules, *last.modules), edges=(*own.edges, leads))


def antennas_of(spec: RunSpec) -> int:
    """Of the base station whose channels a run of beamforming was tuned on; DataError without the dataset."""
    with ChannelDataset.open(Path(spec.dataset)) as dataset:
        return dataset.spec.base_station.num_ports


def _measured(
    name: str,
    run: Callable[[], Made],
    weights: Iterable[torch.Tensor],
    taken: Iterable[torch.Tensor],
) -> tuple[Module, Made]:
    """The load of a module that has these weights and takes these tensors, and what it makes."""
    with flop_counter() as counter, LiveBytes() as live:
        made = run()
    held = list(weights)
    module = Module(
        name=name,
        forward_flops=counter.get_total_flops(),
        parameter_bytes=_bytes(held),
        trainable_bytes=_bytes(each for each in held if each.requires_grad),
        working_bytes=live.peak + _bytes(taken),
    )
    return module, made


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
