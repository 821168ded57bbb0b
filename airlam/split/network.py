"""Devices, servers and the links between them, at one moment.

A device reaches its server over the radio cell of that server, whose band all its devices share; servers are
joined by wires. Fading changes ``gain``: ``EdgeNetwork.with_gains`` is the same network a moment later.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from airlam.errors import SpecError
from airlam.specs import require

THERMAL_NOISE_W_PER_HZ = 10 ** (-17.4) / 1000  # -174 dBm/Hz


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine that runs modules.

    compute_flops_per_s: the rate it sustains, not its peak. energy_j_per_flop: of its processor at that
    speed; ``energy_per_flop`` computes it from the usual kappa f^2 model. memory_bytes holds weights,
    training state and activations, storage_bytes weights at rest.
    """

    name: str
    kind: Literal["device", "server"]
    compute_flops_per_s: float
    memory_bytes: float = math.inf
    storage_bytes: float = math.inf
    energy_j_per_flop: float = 0.0

    def __post_init__(self) -> None:
        require(bool(self.name), "a node has no name")
        for key in ("compute_flops_per_s", "memory_bytes", "storage_bytes"):
            require(getattr(self, key) > 0, f"{self.name}: {key} must be positive, got {getattr(self, key)}")
        require(
            self.energy_j_per_flop >= 0,
            f"{self.name}: energy_j_per_flop must not be negative, got {self.energy_j_per_flop}",
        )


def energy_per_flop(switched_capacitance: float, clock_hz: float, flops_per_cycle: float) -> float:
    """kappa f^2 / (FLOPs a cycle): joules a FLOP of a processor at clock f.

    E = kappa f^2 cycles, the dynamic power model of CMOS (Burd and Brodersen, 1996).
    switched_capacitance: kappa in J s^2 a cycle, about 1e-28 for small processors.
    """
    return switched_capacitance * clock_hz**2 / flops_per_cycle


@dataclass(frozen=True, slots=True, kw_only=True)
class RadioCell:
    """The band that a server's devices share, uplink and downlink apart (FDD, or fixed shares of TDD)."""

    server: str
    uplink_bandwidth_hz: float
    downlink_bandwidth_hz: float
    downlink_power_w: float = 10.0  # of the whole band; spread evenly over it
    noise_psd_w_per_hz: float = THERMAL_NOISE_W_PER_HZ

    def __post_init__(self) -> None:
        for key in ("uplink_bandwidth_hz", "downlink_bandwidth_hz", "downlink_power_w", "noise_psd_w_per_hz"):
            require(
                getattr(self, key) > 0,
                f"cell of {self.server}: {key} must be positive, got {getattr(self, key)}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RadioLink:
    """A device's link to its serving cell.

    gain: power gain |h|^2 of the channel, antennas and fading included, the same in both directions.
    tx_power_w: the most that the device transmits. latency_s: once a message, on top of its transmission.
    """

    device: str
    server: str
    gain: float
    tx_power_w: float = 0.2
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        require(self.gain >= 0, f"link of {self.device}: gain must not be negative, got {self.gain}")
        require(
            self.tx_power_w > 0, f"link of {self.device}: tx_power_w must be positive, got {self.tx_power_w}"
        )
        require(self.latency_s >= 0, f"link of {self.device}: latency_s is {self.latency_s}; expected >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class WiredLink:
    """A full-duplex wire between two nodes; each direction has the whole rate."""

    first: str
    second: str
    rate_bps: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        where = f"wire {self.first} - {self.second}"
        require(self.rate_bps > 0, f"{where}: rate_bps must be positive, got {self.rate_bps}")
        require(self.latency_s >= 0, f"{where}: latency_s is {self.latency_s}; expected >= 0")


Link = RadioLink | WiredLink


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One link of a route, in the direction in which it is passed."""

    source: str
    target: str
    link: Link

    @property
    def kind(self) -> Literal["uplink", "downlink", "wire"]:
        """Uplink: device to server over the radio."""
        if isinstance(self.link, WiredLink):
            return "wire"
        return "uplink" if self.source == self.link.device else "downlink"


@dataclass(frozen=True, kw_only=True)
class EdgeNetwork:
    """Nodes and links at one moment; SpecError names what does not fit together."""

    nodes: tuple[Node, ...]
    cells: tuple[RadioCell, ...] = ()
    radio_links: tuple[RadioLink, ...] = ()
    wired_links: tuple[WiredLink, ...] = ()

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        require(bool(names), "the network has no node")
        twice = {name for name in names if names.count(name) > 1}
        require(not twice, f"node {min(twice, default='')!r} stands twice in the network; names must differ")
        for cell in self.cells:
            self._require_node(cell.server, "server", "a radio cell")
        for link in self.radio_links:
            self._require_node(link.device, "device", "a radio link")
            known = any(cell.server == link.server for cell in self.cells)
            require(known, f"device {link.device} is linked to {link.server!r}, which has no radio cell")
        served = [link.device for link in self.radio_links]
        twice = {name for name in served if served.count(name) > 1}
        require(not twice, f"device {min(twice, default='')!r} has two radio links; it has one serving cell")
        for wire in self.wired_links:
            for end in (wire.first, wire.second):
                require(end in names, f"wire {wire.first} - {wire.second}: no node {end!r} in the network")

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices, in the network's order."""
        return tuple(node.name for node in self.nodes if node.kind == "device")

    @cached_property
    def servers(self) -> tuple[str, ...]:
        """Names of the servers, in the network's order."""
        return tuple(node.name for node in self.nodes if node.kind == "server")

    @cached_property
    def cell_of(self) -> Mapping[str, RadioCell]:
        """Radio cells by their server."""
        return {cell.server: cell for cell in self.cells}

    @cached_property
    def radio_of(self) -> Mapping[str, RadioLink]:
        """Radio links by their device."""
        return {link.device: link for link in self.radio_links}

    def with_gains(self, gains: Mapping[str, float]) -> "EdgeNetwork":
        """The network with other channel gains (power, linear) for the devices named."""
        links = tuple(
            dataclasses.replace(link, gain=gains.get(link.device, link.gain)) for link in self.radio_links
        )
        return dataclasses.replace(self, radio_links=links)

    def restricted_to(self, names: tuple[str, ...]) -> "EdgeNetwork":
        """The named nodes and the links between them."""
        kept = set(names)
        return EdgeNetwork(
            nodes=tuple(node for node in self.nodes if node.name in kept),
            cells=tuple(cell for cell in self.cells if cell.server in kept),
            radio_links=tuple(r for r in self.radio_links if {r.device, r.server} <= kept),
            wired_links=tuple(w for w in self.wired_links if {w.first, w.second} <= kept),
        )

    def route(self, source: str, target: str) -> tuple[Hop, ...]:
        """The links from one node to another: fewest hops, of equals the one declared first.

        Empty where both are one node; SpecError where no way leads there.
        """
        route = self._routes_from(source).get(target)
        if route is not None:
            return route
        for name in (source, target):
            require(name in self.by_name, f"no node {name!r} in the network")
        raise SpecError(f"no link leads from {source} to {target}; add a wire or a radio link")

    def _routes_from(self, source: str) -> Mapping[str, tuple[Hop, ...]]:
        if source not in self._routes:
            self._routes[source] = self._search(source)
        return self._routes[source]

    @cached_property
    def _routes(self) -> dict[str, dict[str, tuple[Hop, ...]]]:
        return {}

    def _search(self, source: str) -> dict[str, tuple[Hop, ...]]:
        """Breadth-first from ``source``."""
        routes: dict[str, tuple[Hop, ...]] = {source: ()} if source in self.by_name else {}
        waiting = deque(routes)
        while waiting:
            here = waiting.popleft()
            for hop in self._hops.get(here, ()):
                if hop.target not in routes:
                    routes[hop.target] = (*routes[here], hop)
                    waiting.append(hop.target)
        return routes

    @cached_property
    def _hops(self) -> dict[str, list[Hop]]:
        """Links by the node they leave, both directions of each."""
        hops: dict[str, list[Hop]] = {}
        ends: list[tuple[Link, str, str]] = [(link, link.device, link.server) for link in self.radio_links]
        ends += [(link, link.first, link.second) for link in self.wired_links]
        for link, first, second in ends:
            hops.setdefault(first, []).append(Hop(source=first, target=second, link=link))
            hops.setdefault(second, []).append(Hop(source=second, target=first, link=link))
        return hops

    def _require_node(self, name: str, kind: str, what: str) -> None:
        require(name in self.by_name, f"{what} names {name!r}, which is no node of the network")
        found = self.by_name[name].kind
        require(found == kind, f"{what} names {name!r} as {kind}; it is a {found}")


def rate_bps(bandwidth_hz: float, tx_power_w: float, gain: float, noise_psd_w_per_hz: float) -> float:
    """R = W log2(1 + p g / (W N0)): Shannon rate of power p on a band W, bit/s; 0 where W is 0."""
    if bandwidth_hz <= 0:
        return 0.0
    snr = tx_power_w * gain / (bandwidth_hz * noise_psd_w_per_hz)
    return bandwidth_hz * math.log1p(snr) / math.log(2)
