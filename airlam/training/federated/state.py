"""What a policy is told about a round: the core's prices, for the steps and the weights that will travel."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from airlam.split.graph import ModuleGraph
from airlam.split.network import EdgeNetwork
from airlam.split.part import EMBEDDING, TOKENIZER
from airlam.split.plan import Schedule
from airlam.split.resources import Resources, broadcast_s
from airlam.split.rounds import RoundState, round_state
from airlam.training.federated.layout import Layout

SAMPLE_NUMBER_BYTES = 9  # its index, and whether its embedding comes along


@dataclass(frozen=True, kw_only=True)
class RoundLoad:
    """What devices have to do in a round, by device.

    num_samples: that they hold. num_steps: of each. upload_bytes: of weights, once a round. broadcast_bytes:
    of the shared weights to all of them at its start. fresh_rows: embeddings that are still to be sent, where
    the server keeps them; empty where all are sent in each step.
    """

    num_samples: Mapping[str, int]
    num_steps: int
    upload_bytes: Mapping[str, int]
    broadcast_bytes: int
    fresh_rows: Mapping[str, int]


def price_round(
    graph: ModuleGraph, network: EdgeNetwork, layout: Layout, load: RoundLoad, round_index: int
) -> RoundState:
    """The state of a round: ``round_state`` of its steps, and what else goes up and down in it."""
    plan = layout.plan
    state = round_state(
        _without_first_stage(graph) if load.fresh_rows else graph,
        network,
        plan,
        round_index=round_index,
        data_weights={device: float(count) for device, count in load.num_samples.items()},
        num_steps=load.num_steps,
    )
    resources = Resources(network=network, schedule=Schedule.equal(network, plan.flow_names))
    extras = [_extra(graph, resources, layout, load, device) for device in state.devices]
    reachable = state.full_band_snr > 0
    start_s = broadcast_s(network, layout.server, load.broadcast_bytes)
    return replace(
        state,
        fixed_delay_s=state.fixed_delay_s + np.where(reachable, [start_s + e.fixed_s for e in extras], 0.0),
        payload_bits=state.payload_bits + np.array([8.0 * e.up_bytes for e in extras]),
        fixed_energy_j=state.fixed_energy_j + np.array([e.energy_j for e in extras]),
    )


def typical_round(
    graph: ModuleGraph, network: EdgeNetwork, layout: Layout, num_samples: Mapping[str, int], num_steps: int
) -> RoundState:
    """A round in the middle of a run, on these channels: weights travel both ways, embeddings are kept."""
    loaded = graph.at_ranks(layout.plan.lora_ranks)
    size = sum(loaded.by_name[module].trainable_bytes for module in layout.shared)
    keeps = layout.is_split and not graph.by_name[EMBEDDING].trains
    load = RoundLoad(
        num_samples=num_samples,
        num_steps=num_steps,
        upload_bytes=dict.fromkeys(num_samples, size),
        broadcast_bytes=size,
        fresh_rows=dict.fromkeys(num_samples, 0) if keeps else {},
    )
    return price_round(graph, network, layout, load, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extra:
    """What a device's round takes beside its steps; fixed_s: all of it but the transmission up."""

    fixed_s: float
    up_bytes: int
    energy_j: float


def _extra(graph: ModuleGraph, resources: Resources, layout: Layout, load: RoundLoad, device: str) -> _Extra:
    up = load.upload_bytes[device]
    latency_s = resources.network.radio_of[device].latency_s
    fixed_s = latency_s if up else 0.0
    fresh, energy_j = load.fresh_rows.get(device, 0), 0.0
    if load.fresh_rows:  # which samples a step is about
        fixed_s += load.num_steps * latency_s
        up += load.num_steps * graph.batch_size * SAMPLE_NUMBER_BYTES
    if fresh:
        flops = graph.by_name[EMBEDDING].forward_flops
        fixed_s += resources.compute_s(device, flops)
        energy_j = resources.compute_energy_j(device, flops)
        edge = graph.outgoing[EMBEDDING][0]
        row_bytes = edge.forward_bytes(layout.plan.precision_of(*edge.key)) / graph.batch_size
        up += round(fresh * row_bytes)
    return _Extra(fixed_s=fixed_s, up_bytes=up, energy_j=energy_j)


def _without_first_stage(graph: ModuleGraph) -> ModuleGraph:
    """What a step costs where tokens and embeddings are made and sent once."""
    return graph.restricted_to(name for name in graph.order if name not in (TOKENIZER, EMBEDDING))
