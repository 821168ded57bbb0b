"""What a scheduler may know when a round starts, and what it decides, as a Schedule for the network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from airlam.errors import SpecError
from airlam.specs import require
from airlam.split.bandwidth import Array, Uplinks, upload_s
from airlam.split.cost import cost
from airlam.split.graph import ModuleGraph
from airlam.split.ledger import Cost
from airlam.split.network import EdgeNetwork, RadioCell, RadioLink
from airlam.split.plan import Allocation, Schedule, SplitPlan
from airlam.split.selection import Choice
from airlam.split.timeline import Mode


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """The devices of one cell at the start of a round; float64 [num_devices] where nothing else is said.

    round_index: 0 for the first. devices: their names. fixed_delay_s: all that a device's round takes but its
    uplink: its own work, the server's for it, the downlink, latencies. payload_bits: over the uplink.
    full_band_snr: linear, of the device alone on the whole band at full power. data_weights: samples held, or
    anything in proportion. tx_power_w: while sending. fixed_energy_j: of the device's own work.
    """

    round_index: int
    devices: tuple[str, ...]
    bandwidth_hz: float
    fixed_delay_s: Array
    payload_bits: Array
    full_band_snr: Array
    data_weights: Array
    tx_power_w: Array
    fixed_energy_j: Array

    def __post_init__(self) -> None:
        require(self.round_index >= 0, f"round_index must not be negative, got {self.round_index}")
        require(bool(self.devices), "a round needs a device")
        for name in ("data_weights", "tx_power_w", "fixed_energy_j"):
            values = getattr(self, name)
            sound = values.shape == (len(self.devices),) and bool(np.isfinite(values).all())
            require(sound and bool((values >= 0).all()), f"{name} is {values}; expected one >= 0 a device")
        require(self.data_weights.sum() > 0, "no device holds data; a round needs one that does")
        require(
            len(self.uplinks) == len(self.devices),
            f"{len(self.uplinks)} delays for {len(self.devices)} devices; expected one a device",
        )

    @cached_property
    def uplinks(self) -> Uplinks:
        """Delays against shares."""
        return Uplinks.of(
            fixed_delay_s=self.fixed_delay_s,
            payload_bits=self.payload_bits,
            full_band_snr=self.full_band_snr,
            bandwidth_hz=self.bandwidth_hz,
        )

    def energy_j(self, choice: Choice) -> Array:
        """By device, its work and its power while it sends; float64 [num_devices], 0 for others."""
        with np.errstate(divide="ignore"):
            sending = np.where(choice.selected, upload_s(self.uplinks, choice.shares), 0.0)
        return np.where(choice.selected, self.fixed_energy_j + self.tx_power_w * sending, 0.0)

    def schedule(self, choice: Choice) -> Schedule:
        """The choice by name, with the fixed shares of ``round_state``: 1 / K of downlink and servers."""
        share = 1.0 / len(self.devices)
        return Schedule(
            allocations={
                self.devices[k]: Allocation(
                    uplink_share=float(choice.shares[k]),
                    downlink_share=share,
                    tx_power_w=float(self.tx_power_w[k]),
                    compute_share=share,
                )
                for k in np.flatnonzero(choice.selected)
            }
        )


def round_state(
    graph: ModuleGraph,
    network: EdgeNetwork,
    plan: SplitPlan,
    *,
    round_index: int,
    data_weights: Mapping[str, float] | None = None,
    num_steps: int = 1,
    mode: Mode = "training",
) -> RoundState:
    """The state of a round in which each device of the plan takes ``num_steps`` steps.

    Delays, payloads and energies are ``cost``'s for the same plan: with the choice's ``schedule`` it gives
    the choice's delay back, exactly for chains; where branches of a graph overtake each other as shares
    change, by the path that is longest at equal shares. Downlink and servers are shared equally by all K
    devices, taking part or not, so that one device's time does not depend on who else does. data_weights:
    by device; without them all are equal. SpecError where the devices are not all in one radio cell.
    """
    devices = plan.flow_names
    cell = _only_cell(network, devices)
    everyone = Schedule.equal(network, devices)
    priced = cost(graph, network, plan, everyone, mode)
    weights = data_weights if data_weights is not None else dict.fromkeys(devices, 1.0)
    rows = [_row(network, cell, device, priced, num_steps) for device in devices]
    columns = np.array(rows, dtype=np.float64).T
    return RoundState(
        round_index=round_index,
        devices=devices,
        bandwidth_hz=cell.uplink_bandwidth_hz,
        fixed_delay_s=columns[0],
        payload_bits=columns[1],
        full_band_snr=columns[2],
        data_weights=np.array([weights.get(device, 0.0) for device in devices], dtype=np.float64),
        tx_power_w=columns[3],
        fixed_energy_j=columns[4],
    )


def _row(
    network: EdgeNetwork, cell: RadioCell, device: str, priced: Cost, num_steps: int
) -> tuple[float, float, float, float, float]:
    """Fixed delay in s, payload in bits, SNR on the whole band, power in W, energy of its work in J."""
    link, flow = network.radio_of[device], priced.flows[device]
    energy_j = num_steps * priced.compute_energy_j.get(device, 0.0)
    if not math.isfinite(flow.latency_s):  # no channel: something to send that nothing comes through of
        return 0.0, 1.0, 0.0, link.tx_power_w, energy_j
    messages = [step for step in flow.critical_path if step.kind == "uplink"]
    sending_s = sum(step.duration_s - link.latency_s for step in messages)
    noise_w = cell.uplink_bandwidth_hz * cell.noise_psd_w_per_hz
    return (
        num_steps * (flow.latency_s - sending_s),
        8.0 * num_steps * sum(step.payload_bytes for step in messages),
        link.tx_power_w * link.gain / noise_w,
        link.tx_power_w,
        energy_j,
    )


def _only_cell(network: EdgeNetwork, devices: tuple[str, ...]) -> RadioCell:
    """The cell whose band all the devices share."""
    links: list[RadioLink | None] = [network.radio_of.get(device) for device in devices]
    unlinked = [device for device, link in zip(devices, links, strict=True) if link is None]
    require(not unlinked, f"{', '.join(unlinked)} has no radio link; a schedule shares out a radio band")
    cells = {link.server for link in links if link is not None}
    if len(cells) != 1:
        raise SpecError(
            f"devices are in the cells of {', '.join(sorted(cells))}; schedule one cell at a time"
        )
    return network.cell_of[cells.pop()]
