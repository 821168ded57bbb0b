"""What one flow gets of the network under a schedule: seconds and joules of its work and its messages.

The planner and the cost function price every module and every message here and nowhere else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from airlam.errors import SpecError
from airlam.split.network import EdgeNetwork, Hop, RadioLink, rate_bps
from airlam.split.plan import Allocation, Schedule


def work_s(flops: float, flops_per_s: float) -> float:
    """t = FLOPs / speed: of a node, of a share of one, or of what an instance has reserved."""
    if flops == 0:
        return 0.0
    return flops / flops_per_s if flops_per_s > 0 else math.inf


def broadcast_s(network: EdgeNetwork, server: str, payload_bytes: float) -> float:
    """One message to all devices of a server's cell that have a channel; 0 where there is nothing to send.

    It has the whole downlink band and all power, and the rate of the weakest, so that all receive it:
    8 bytes / (B log2(1 + p min_k g_k / (B N0))), and the longest latency of any.
    """
    cell = network.cell_of[server]
    reached = [link for link in network.radio_links if link.server == server and link.gain > 0]
    if not payload_bytes or not reached:
        return 0.0
    weakest = min(link.gain for link in reached)
    rate = rate_bps(cell.downlink_bandwidth_hz, cell.downlink_power_w, weakest, cell.noise_psd_w_per_hz)
    return max(link.latency_s for link in reached) + 8 * payload_bytes / rate


@dataclass(frozen=True, kw_only=True)
class Resources:
    """One flow's part of the network.

    compute_share: of each server; devices work for their own flow only.
    """

    network: EdgeNetwork
    schedule: Schedule
    compute_share: float = 1.0

    def compute_s(self, node: str, flops: float) -> float:
        """t = FLOPs / (share * speed)."""
        found = self.network.by_name[node]
        share = self.compute_share if found.kind == "server" else 1.0
        return work_s(flops, share * found.compute_flops_per_s)

    def compute_energy_j(self, node: str, flops: float) -> float:
        """E = FLOPs * joules a FLOP."""
        return flops * self.network.by_name[node].energy_j_per_flop

    def hop_rate_bps(self, hop: Hop) -> float:
        """Rate of one link: W log2(1 + p g / (W N0)) on the device's share W of the band, or the wire's.

        A device puts all its power into its share; the base station spreads its power over the whole band.
        """
        if not isinstance(hop.link, RadioLink):
            return hop.link.rate_bps
        cell, granted = self.network.cell_of[hop.link.server], self._granted(hop.link)
        if hop.kind == "uplink":
            band_hz, power_w = granted.uplink_share * cell.uplink_bandwidth_hz, granted.tx_power_w
        else:
            band_hz = granted.downlink_share * cell.downlink_bandwidth_hz
            power_w = granted.downlink_share * cell.downlink_power_w
        return rate_bps(band_hz, power_w, hop.link.gain, cell.noise_psd_w_per_hz)

    def hop_air_s(self, hop: Hop, payload_bytes: float) -> float:
        """Time for which the payload occupies a link; infinite where the link has no rate."""
        rate = self.hop_rate_bps(hop)
        if payload_bytes == 0:
            return 0.0
        return 8 * payload_bytes / rate if rate > 0 else math.inf

    def hop_s(self, hop: Hop, payload_bytes: float) -> float:
        """Time from the first bit sent to the last received: the link's latency and the transmission."""
        return hop.link.latency_s + self.hop_air_s(hop, payload_bytes)

    def hop_energy_j(self, hop: Hop, payload_bytes: float) -> float:
        """Radio energy of the sender: transmit power times air time; wires are counted as free."""
        if not isinstance(hop.link, RadioLink):
            return 0.0
        granted = self._granted(hop.link)
        if hop.kind == "uplink":
            power_w = granted.tx_power_w
        else:
            power_w = granted.downlink_share * self.network.cell_of[hop.link.server].downlink_power_w
        return power_w * self.hop_air_s(hop, payload_bytes) if power_w > 0 else 0.0

    def transfer_s(self, source: str, target: str, payload_bytes: float) -> float:
        """Over all links of the route, one after another (store and forward); 0 within a node."""
        return sum(self.hop_s(hop, payload_bytes) for hop in self.network.route(source, target))

    def transfer_energy_j(self, source: str, target: str, payload_bytes: float) -> Mapping[str, float]:
        """Radio energy of a message by the node that spends it."""
        spent: dict[str, float] = {}
        for hop in self.network.route(source, target):
            spent[hop.source] = spent.get(hop.source, 0.0) + self.hop_energy_j(hop, payload_bytes)
        return spent

    def _granted(self, link: RadioLink) -> Allocation:
        granted = self.schedule.allocations.get(link.device)
        if granted is None:
            raise SpecError(
                f"{link.device} takes no part in this schedule, so nothing goes over its radio link; it has "
                f"{', '.join(self.schedule.devices) or 'no device'}"
            )
        return granted
