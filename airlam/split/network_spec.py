"""An ``EdgeNetwork`` from its spec and the channels of one moment."""

from collections.abc import Mapping

from airlam.errors import SpecError
from airlam.specs import CellSpec, NetworkSpec
from airlam.split.network import EdgeNetwork, Node, RadioCell, RadioLink, WiredLink
from airlam.units import db_to_linear


def edge_network(spec: NetworkSpec, gains: Mapping[str, float] | None = None) -> EdgeNetwork:
    """The network that a spec describes.

    gains: power gains |h|^2, linear, of devices by name, as ``airlam.datasets.edge_scenario`` draws them; a
    device not among them has the spec's ``path_gain_db``, and SpecError is raised where that is missing too.
    """
    gains = gains or {}
    devices = spec.devices_by_name
    servers = [
        Node(
            name=server.name,
            kind="server",
            compute_flops_per_s=server.compute_flops_per_s,
            memory_bytes=server.memory_bytes,
            storage_bytes=server.storage_bytes,
            energy_j_per_flop=server.energy_j_per_flop,
        )
        for server in spec.servers
    ]
    return EdgeNetwork(
        nodes=(
            *(
                Node(
                    name=name,
                    kind="device",
                    compute_flops_per_s=device.compute_flops_per_s,
                    memory_bytes=device.memory_bytes,
                    storage_bytes=device.storage_bytes,
                    energy_j_per_flop=device.energy_j_per_flop,
                )
                for name, device in devices.items()
            ),
            *servers,
        ),
        cells=tuple(_cell(server.name, spec.cell) for server in spec.servers if server.has_cell),
        radio_links=tuple(
            RadioLink(
                device=name,
                server=spec.server_of(name),
                gain=gains[name] if name in gains else _fixed_gain(name, device.path_gain_db),
                tx_power_w=db_to_linear(device.tx_power_dbm - 30),
                latency_s=device.latency_s,
            )
            for name, device in devices.items()
        ),
        wired_links=tuple(
            WiredLink(first=w.first, second=w.second, rate_bps=w.rate_bps, latency_s=w.latency_s)
            for w in spec.wires
        ),
    )


def _cell(server: str, cell: CellSpec) -> RadioCell:
    return RadioCell(
        server=server,
        uplink_bandwidth_hz=cell.uplink_bandwidth_hz,
        downlink_bandwidth_hz=cell.downlink_bandwidth_hz,
        downlink_power_w=db_to_linear(cell.downlink_power_dbm - 30),
        noise_psd_w_per_hz=db_to_linear(cell.noise_psd_dbm_per_hz + cell.noise_figure_db - 30),
    )


def _fixed_gain(name: str, path_gain_db: float | None) -> float:
    if path_gain_db is None:
        raise SpecError(f"device {name} has no path_gain_db; give it one, or draw the scenario's gains")
    return db_to_linear(path_gain_db)
