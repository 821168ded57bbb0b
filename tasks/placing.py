"""Fine-tuned runs placed as services on a network's servers: what ``airlam place`` does.

Requests enter at the server whose cell a device is in; all that passes a device's own radio link is the same
wherever services run, so it is priced beside the placement and not searched over.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airlam.model.lam import LAM
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import future_shape, slot_shape
from airlam.serving.service_loads import ServiceLoads, service_loads
from airlam.specs import NetworkSpec, require
from airlam.split.graph import Module, ModuleGraph
from airlam.split.network import EdgeNetwork
from airlam.split.placement.report import placement_text, placement_values
from airlam.split.placement.services import RequestClass, ServiceProblem
from airlam.split.placement.solve import Placed, place
from airlam.split.placement.tables import Tables
from airlam.split.plan import Schedule
from airlam.tasks.drawn_network import drawn
from airlam.tasks.planning import profiled
from airlam.tasks.serving import served_lams

_COMPLEX_BYTES, _VARIANCE_BYTES = 8, 4  # of complex64 channels and a float32 noise variance
_GATE = "gate"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacingRequest:
    """What to place. folders: of runs of channel prediction, as ``serve`` takes them.

    rate_per_s: slots that each device sends to each run. num_devices: of the network, the first so many ask;
    None for all.
    """

    network: NetworkSpec
    folders: Sequence[Path]
    rate_per_s: float = 10.0
    min_replicas: int = 2
    num_devices: int | None = None

    def __post_init__(self) -> None:
        positive = 0 < self.rate_per_s < math.inf
        require(positive, f"the rate is {self.rate_per_s} requests a second; expected a positive number")
        largest = len(self.network.devices_by_name)
        known = self.num_devices is None or 1 <= self.num_devices <= largest
        require(known, f"num_devices is {self.num_devices}; the network has {largest}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacingResult:
    """radio_s: mean seconds that requests spend on the radio, up and down, by class and device."""

    problem: ServiceProblem
    placed: Placed
    radio_s: Mapping[str, Mapping[str, float]]

    def text(self) -> str:
        """For a terminal."""
        lines = [placement_text(self.problem, self.placed), "", "on the radio besides, up and down:"]
        for name, seconds in self.radio_s.items():
            worst = max(seconds, key=lambda device: seconds[device])
            mean_ms, worst_ms = 1e3 * statistics.mean(seconds.values()), 1e3 * seconds[worst]
            lines.append(f"{name}: mean {mean_ms:.3g} ms, most {worst_ms:.3g} ms ({worst})")
        return "\n".join(lines)

    def values(self) -> dict[str, Any]:
        """For JSON."""
        radio_s = {name: dict(seconds) for name, seconds in self.radio_s.items()}
        return {**placement_values(self.problem, self.placed), "radio_s": radio_s}


def place_runs(request: PlacingRequest) -> PlacingResult:
    """Profiles the runs' LAMs, merges what they share as the server does, and places it at mean gains.

    InfeasiblePlacement names the limits in the way; SpecError a radio link that does not carry the requests.
    """
    lams = served_lams(request.folders)
    payloads = {name: payload_bytes(lam) for name, lam in lams.items()}
    loads = lam_loads(lams)
    network = drawn(request.network).network
    asking = network.devices[: request.num_devices]
    classes = tuple(
        loads.request_class(
            task,
            home=home,
            arrival_per_s=request.rate_per_s * len(devices),
            deadline_s=math.inf,
            input_bytes=input_bytes,
            output_bytes=output_bytes,
        )
        for home, devices in _by_cell(network, asking).items()
        for task, (input_bytes, output_bytes) in payloads.items()
    )
    problem = ServiceProblem(
        graph=loads.graph,
        network=network.restricted_to(network.servers),
        classes=classes,
        min_replicas=request.min_replicas,
    )
    radio_s = _radio_s(network, asking, classes, request.rate_per_s)
    return PlacingResult(problem=problem, placed=place(problem), radio_s=radio_s)


def lam_loads(lams: Mapping[str, LAM]) -> ServiceLoads:
    """What LAMs take that are served together, for requests of one link; the LAMs are taken over."""
    profiles = lam_profiles(lams)
    return service_loads(LamServices(lams).graph, profiles)


def lam_profiles(lams: Mapping[str, LAM]) -> dict[str, ModuleGraph]:
    """What each LAM's modules take for a request of one link."""
    profiles = {}
    for name, lam in lams.items():
        graph = profiled(lam, lam.tokenizer.setting, "inference").for_batch(1)
        profiles[name] = graph.at_ranks({module.name: lam.spec.lora_rank for module in graph.modules})
    return profiles


def payload_bytes(lam: LAM) -> tuple[int, int]:
    """Of a session's request and its answer: one link's slot (its history is at the server), its future."""
    setting = lam.tokenizer.setting
    slot = math.prod(slot_shape(setting))
    return _COMPLEX_BYTES * slot + _VARIANCE_BYTES, _COMPLEX_BYTES * math.prod(future_shape(setting))


def _by_cell(network: EdgeNetwork, devices: Sequence[str]) -> dict[str, list[str]]:
    """Devices by the server of their cell."""
    found: dict[str, list[str]] = {}
    for device in devices:
        found.setdefault(network.radio_of[device].server, []).append(device)
    return found


def _radio_s(
    network: EdgeNetwork, asking: Sequence[str], classes: Sequence[RequestClass], rate_per_s: float
) -> dict[str, dict[str, float]]:
    """Seconds on the radio by class and device, equal shares of the band."""
    schedule = Schedule.equal(network, asking)
    found: dict[str, dict[str, float]] = {one.name: {} for one in classes}
    for home, devices in _by_cell(network, asking).items():
        own = [one for one in classes if one.home == home]
        for device in devices:
            seconds = _link_s(network, schedule, device, own, rate_per_s)
            for one, taken in zip(own, seconds, strict=True):
                found[one.name][device] = taken
    return found


def _link_s(
    network: EdgeNetwork,
    schedule: Schedule,
    device: str,
    classes: Sequence[RequestClass],
    rate_per_s: float,
) -> list[float]:
    """Seconds on one device's radio link, by class: priced as all is, with a service that takes no work."""
    server = network.radio_of[device].server
    problem = ServiceProblem(
        graph=ModuleGraph(modules=(Module(name=_GATE, forward_flops=0.0),), edges=()),
        network=network.restricted_to((device, server)),
        classes=tuple(
            dataclasses.replace(one, home=device, services=(_GATE,), loads=None, arrival_per_s=rate_per_s)
            for one in classes
        ),
        schedule=schedule,
    )
    tables = Tables(problem)
    priced = tables.price(np.array([[nodes[0] for nodes in tables.allowed]]))
    most = priced.link_load[0].max()
    require(
        priced.excess[0] == 0,
        f"requests fill {100 * most:.3g} % of the radio link of {device}; ask for fewer a second",
    )
    seconds: list[float] = priced.latency_s[0].tolist()
    return seconds
