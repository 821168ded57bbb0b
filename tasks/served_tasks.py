"""What requests of served runs take of machines and links, for whoever places their services."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from airlam.model.graph_precoder import GraphPrecoder
from airlam.model.lam import LAM
from airlam.model.lam_beams import LamBeams
from airlam.serving.joint_services import with_precoders
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import future_shape, slot_shape
from airlam.serving.reading import DEFAULT_TOP
from airlam.serving.service_graph import ServiceGraph
from airlam.specs import RunSpec
from airlam.split.graph import ModuleGraph
from airlam.tasks.beamforming_run import run_precoders
from airlam.tasks.service_profiles import (
    COMPLEX_BYTES,
    antennas_of,
    beam_profile,
    joint_profile,
    lam_profile,
    precoder_profile,
)
from airlam.tasks.serving import predicting_lams, read_runs, served_beams

_FLOAT_BYTES, _BEAM_BYTES = 4, 12  # of float32, as a noise variance is; of a beam's number and its share


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTask:
    """What one request of a served run takes and sends. num_users: whom it serves.

    is_on_radio: whether devices send it and have the answer, by their own radio links.
    """

    profile: ModuleGraph
    input_bytes: int
    output_bytes: int
    num_users: int = 1
    is_on_radio: bool = False


def served_tasks(folders: Sequence[Path]) -> tuple[ServiceGraph, dict[str, ServedTask]]:
    """The services of some runs as the server merges them, and each run's requests.

    DataError where a run of beamforming on known channels lacks its dataset, which tells its antennas.
    """
    found = read_runs(folders)
    specs = {spec.name: spec for spec in found.values()}
    lams, beams = predicting_lams(folders), served_beams(folders)
    precoding = [folder for folder, spec in found.items() if spec.task == "beamforming"]
    tasks = {name: predicting_task(lam) for name, lam in lams.items()}
    tasks |= {name: beam_task(own) for name, own in beams.items()}
    for name, precoder in run_precoders(precoding).items():
        if name in tasks:
            tasks[name] = _joint_task(lams[name], tasks[name], precoder, specs[name].link.num_users)
        else:
            tasks[name] = _precoding_task(precoder, specs[name])
    graph = ServiceGraph(services=(), edges=(), flows={})
    if lams or beams:
        graph = LamServices(lams, beams=beams).graph
    return with_precoders(graph, {found[f].name: found[f].downlink.csi for f in precoding}), tasks


def predicting_task(lam: LAM) -> ServedTask:
    """A session's request and its answer: one link's slot (its history is at the server), its future."""
    setting = lam.tokenizer.setting
    return ServedTask(
        profile=lam_profile(lam),
        input_bytes=COMPLEX_BYTES * math.prod(slot_shape(setting)) + _FLOAT_BYTES,
        output_bytes=COMPLEX_BYTES * math.prod(future_shape(setting)),
        is_on_radio=True,
    )


def beam_task(own: LamBeams) -> ServedTask:
    """A window of sweeps and positions, and the beams to sweep first."""
    scales = own.scales
    return ServedTask(
        profile=beam_profile(own),
        input_bytes=_FLOAT_BYTES * scales.num_past * (scales.num_beams + 3),
        output_bytes=_BEAM_BYTES * scales.num_ahead * min(DEFAULT_TOP, scales.num_beams),
    )


def _precoding_task(precoder: GraphPrecoder, spec: RunSpec) -> ServedTask:
    """A downlink as known, with its errors where pilots tell of it, and its precoder."""
    num_users, num_bs_ant = spec.link.num_users, antennas_of(spec)
    ports = num_bs_ant if spec.downlink.csi == "pilots" else 0
    return ServedTask(
        profile=precoder_profile(precoder, num_users, num_bs_ant, num_error_ports=ports),
        input_bytes=COMPLEX_BYTES * num_users * (num_bs_ant + ports**2) + _FLOAT_BYTES,
        output_bytes=COMPLEX_BYTES * num_users * num_bs_ant,
        num_users=num_users,
    )


def _joint_task(lam: LAM, alone: ServedTask, precoder: GraphPrecoder, num_users: int) -> ServedTask:
    """The slots of all users, whose histories sessions keep, and a precoder a slot ahead and subcarrier."""
    setting = lam.tokenizer.setting
    num_slots, _, num_bs_ant, num_subcarriers = future_shape(setting)
    return ServedTask(
        profile=joint_profile(alone.profile, setting, precoder, num_users),
        input_bytes=num_users * alone.input_bytes,
        output_bytes=COMPLEX_BYTES * num_slots * num_subcarriers * num_bs_ant * num_users,
        num_users=num_users,
    )
