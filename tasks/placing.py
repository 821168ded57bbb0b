"""Fine-tuned runs placed as services on a network's servers: what ``airlam place`` does.

Requests enter at the server whose cell a device is in; all that passes a device's own radio link is the same
wherever services run, so it is priced beside the placement and not searched over. Where channels are to be
predicted devices ask, by a slot each; precoders and beams are for the base station, which knows what they are
found from, so that nothing of them is on the radio.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airlam.serving.service_loads import service_loads
from airlam.specs import NetworkSpec, require
from airlam.split.graph import Module, ModuleGraph
from airlam.split.network import EdgeNetwork
from airlam.split.placement.report import placement_text, placement_values
from airlam.split.placement.services import RequestClass, ServiceProblem
from airlam.split.placement.solve import Placed, place
from airlam.split.placement.tables import Tables
from airlam.split.plan import Schedule
from airlam.tasks.drawn_network import drawn
from airlam.tasks.served_tasks import served_tasks

_GATE = "gate"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacingRequest:
    """What to place. folders: of runs, as ``serve`` takes them.

    rate_per_s: of each device to each run, slots of its channel or of its sweeps; precoders are found as
    often, for the run's ``link.num_users`` devices at once. num_devices: of the network, the first so many
    are there; None for all.
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
    """radio_s: mean seconds that requests spend on the radio, up and down, by class and device; of classes
    that devices ask for.
    """

    problem: ServiceProblem
    placed: Placed
    radio_s: Mapping[str, Mapping[str, float]]

    def text(self) -> str:
        """For a terminal."""
        lines = [placement_text(self.problem, self.placed)]
        if self.radio_s:
            lines += ["", "on the radio besides, up and down:"]
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
    graph, tasks = served_tasks(request.folders)
    loads = service_loads(graph, {name: task.profile for name, task in tasks.items()})
    network = drawn(request.network).network
    asking = network.devices[: request.num_devices]
    classes = {
        name: tuple(
            loads.request_class(
                name,
                home=home,
                arrival_per_s=request.rate_per_s * len(devices) / task.num_users,
                deadline_s=math.inf,
                input_bytes=task.input_bytes,
                output_bytes=task.output_bytes,
            )
            for home, devices in _by_cell(network, asking).items()
        )
        for name, task in tasks.items()
    }
    problem = ServiceProblem(
        graph=loads.graph,
        network=network.restricted_to(network.servers),
        classes=tuple(one for home in zip(*classes.values(), strict=True) for one in home),
        min_replicas=request.min_replicas,
    )
    on_radio = [one for name, own in classes.items() if tasks[name].is_on_radio for one in own]
    radio_s = _radio_s(network, asking, on_radio, request.rate_per_s)
    return PlacingResult(problem=problem, placed=place(problem), radio_s=radio_s)


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
