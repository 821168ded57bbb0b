"""An edge network: servers, groups of devices, wires, the radio cells, and how channels are drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from airlam.specs.channel import BOTTOM_HZ, RMA_TOP_HZ, TOP_HZ
from airlam.specs.reading import require, require_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """An edge server; with a base station unless ``has_cell`` is false."""

    name: str
    compute_flops_per_s: float  # sustained, not peak
    memory_bytes: float
    storage_bytes: float = 1e12
    energy_j_per_flop: float = 1e-11
    has_cell: bool = True

    def __post_init__(self) -> None:
        require_finite(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """``count`` devices of one kind: ``name.0``, ``name.1``, ...; a single one is called ``name``."""

    name: str
    compute_flops_per_s: float
    memory_bytes: float
    count: int = 1
    storage_bytes: float = 1e11
    energy_j_per_flop: float = 2e-11
    server: str = ""  # whose cell serves them; empty for the first server with a cell
    tx_power_dbm: float = 23.0
    path_gain_db: float | None = None  # without it, the scenario draws one for each
    latency_s: float = 0.0  # of a message over the radio, beside its transmission

    def __post_init__(self) -> None:
        require_finite(self)
        require(self.count >= 1, f"{self.name}: count must be at least 1, got {self.count}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its devices."""
        return (self.name,) if self.count == 1 else tuple(f"{self.name}.{i}" for i in range(self.count))


@dataclass(frozen=True, slots=True, kw_only=True)
class WireSpec:
    """A full-duplex wire between two nodes."""

    first: str
    second: str
    rate_bps: float
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSpec:
    """The band of each server's cell, uplink and downlink apart."""

    uplink_bandwidth_hz: float = 10e6
    downlink_bandwidth_hz: float = 10e6
    downlink_power_dbm: float = 43.0
    noise_psd_dbm_per_hz: float = -174.0
    noise_figure_db: float = 0.0  # of either receiver

    def __post_init__(self) -> None:
        require_finite(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioSpec:
    """Where devices stand around their server and how their channels fade.

    ``log_distance`` is 128.1 + 37.6 log10(d / km) dB with 8 dB of shadowing (3GPP TR 36.814, macro cell at 2
    GHz); the others are TR 38.901's models as Sionna draws them. Devices stand uniformly in area. Fading is
    flat and new in each round: ``rician`` on links with line of sight (K from TR 38.901), ``rayleigh`` on
    all others and in all of ``log_distance``.
    """

    model: Literal["uma", "umi", "rma", "log_distance"] = "uma"
    carrier_frequency_hz: float = 3.5e9
    min_radius_m: float = 35.0
    max_radius_m: float = 300.0
    shadow_fading: bool = True
    fading: Literal["rayleigh", "rician", "none"] = "rician"  # rayleigh: line of sight or not
    antenna_gain_db: float = 0.0  # of both ends together
    seed: int = 1

    def __post_init__(self) -> None:
        require_finite(self)
        require(
            0 < self.min_radius_m <= self.max_radius_m,
            f"radii are {self.min_radius_m} to {self.max_radius_m} m; expected 0 < min <= max",
        )
        top_hz = RMA_TOP_HZ if self.model == "rma" else TOP_HZ
        require(
            BOTTOM_HZ <= self.carrier_frequency_hz <= top_hz,
            f"carrier_frequency_hz is {self.carrier_frequency_hz:g}; "
            f"TR 38.901 covers {BOTTOM_HZ:g} to {top_hz:g} in {self.model}",
        )
        require(self.seed >= 0, f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """Servers, devices and what joins them; ``airlam plan NETWORK.toml`` reads one."""

    name: str
    servers: tuple[ServerSpec, ...]
    devices: tuple[DeviceSpec, ...]
    wires: tuple[WireSpec, ...] = ()
    cell: CellSpec = CellSpec()
    scenario: ScenarioSpec = ScenarioSpec()

    def __post_init__(self) -> None:
        require(len(self.servers) > 0, "servers is empty; give at least one [[servers]]")
        require(len(self.devices) > 0, "devices is empty; give at least one [[devices]]")
        names = [server.name for server in self.servers] + [n for d in self.devices for n in d.names]
        twice = {name for name in names if names.count(name) > 1}
        require(not twice, f"two nodes are called {min(twice, default='')!r}; names must differ")
        cells = [server.name for server in self.servers if server.has_cell]
        require(len(cells) > 0, "no server has a cell, so no device is reached; set has_cell for one")
        for device in self.devices:
            known = device.server in ("", *cells)
            require(
                known, f"{device.name}: server is {device.server!r}; servers with a cell: {', '.join(cells)}"
            )
        for wire in self.wires:
            for end in (wire.first, wire.second):
                require(end in names, f"a wire ends at {end!r}, which is no node; nodes: {', '.join(names)}")

    @property
    def devices_by_name(self) -> Mapping[str, DeviceSpec]:
        """Every device with its group's spec, in order."""
        return {name: device for device in self.devices for name in device.names}

    def server_of(self, device: str) -> str:
        """The server whose cell serves a device."""
        named = self.devices_by_name[device].server
        return named or next(server.name for server in self.servers if server.has_cell)
