"""A spec's network with its channels: at their mean, and of each round."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airlam.specs import NetworkSpec
from airlam.split.network import EdgeNetwork
from airlam.split.network_spec import edge_network

if TYPE_CHECKING:
    from airlam.datasets.edge_scenario import EdgeScenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """network: at mean gains. gains: round index -> power gains |h|^2 of the devices by name."""

    network: EdgeNetwork
    gains: Callable[[int], Mapping[str, float]]


def drawn(spec: NetworkSpec) -> Drawn:
    """Sionna is loaded only where a device has no gain of its own, or to fade."""

    @functools.cache
    def scenario() -> "EdgeScenario":
        from airlam.datasets.edge_scenario import draw_scenario

        return draw_scenario(spec)

    if any(device.path_gain_db is None for device in spec.devices):
        network = edge_network(spec, scenario().mean_gains())
    else:
        network = edge_network(spec)
    if spec.scenario.fading == "none":
        constant = {link.device: link.gain for link in network.radio_links}
        return Drawn(network=network, gains=lambda round_index: constant)
    return Drawn(network=network, gains=lambda round_index: scenario().gains(round_index))
