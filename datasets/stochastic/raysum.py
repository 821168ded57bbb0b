"""TR 38.901 path coefficients by matrix products: same draws and same values as Sionna's generator, faster.

Sionna (2.2) forms every ray's antenna-by-time coefficient before it sums the rays of a cluster. Here the sum
is one matrix product a cluster, and the polarisations are evaluated once instead of once an antenna.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from sionna.phy.channel.tr38901 import Rays, Topology
from sionna.phy.channel.tr38901.channel_coefficients import ChannelCoefficientsGenerator


@dataclass(frozen=True, slots=True, kw_only=True)
class RayRecord:
    """What the last call of a ``RaySumGenerator`` was made of, in Sionna's [batch, num_tx, num_rx, ...] axes.

    delay_s: float32 [..., clusters, rays], with the sub-cluster offsets of the two strongest clusters.
    doppler: complex64 [..., clusters, rays, num_slots].
    offsets: complex64 [..., clusters, rays, rx_ant, tx_ant], phases from the elements' places.
    rx_field, tx_field: float32 [num_pols, ..., clusters, rays, 2], theta and phi in the global frame.
    rx_polarization_index, tx_polarization_index: int64 [num_ant].
    """

    rays: Rays
    delay_s: torch.Tensor
    doppler: torch.Tensor
    offsets: torch.Tensor
    rx_field: torch.Tensor
    tx_field: torch.Tensor
    rx_polarization_index: torch.Tensor
    tx_polarization_index: torch.Tensor


class RaySumGenerator(ChannelCoefficientsGenerator):  # type: ignore[misc]
    """Steps 10 and 11 of TR 38.901, 7.5, without blockage; takes the place of Sionna's own generator."""

    keeps_record = False
    record: RayRecord | None = None

    def _step_11_nlos(
        self, phi: torch.Tensor, topology: Topology, rays: Rays, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Per ray, (7.5-28) in two factors: antennas [..., rays, rx_ant * tx_ant], time [..., rays, T]."""
        angles = (rays.aoa, rays.aod, rays.zoa, rays.zod)
        rx_field = self._fields(
            self._rx_array, topology.rx_orientations[:, None, :, None, None], rays.zoa, rays.aoa
        )
        tx_field = self._fields(
            self._tx_array, topology.tx_orientations[:, :, None, None, None], rays.zod, rays.aod
        )
        phase = self._step_11_phase_matrix(phi, rays)  # [..., clusters, rays, 2, 2]
        fields = torch.einsum(
            "p...i,...ij,q...j->...pq", rx_field.to(phase.dtype), phase, tx_field.to(phase.dtype)
        )
        rx_index = _polarization_index(self._rx_array)
        tx_index = _polarization_index(self._tx_array)
        fields = fields[..., rx_index[:, None], tx_index[None, :]]  # [..., clusters, rays, rx_ant, tx_ant]
        offsets = self._step_11_array_offsets(topology, *angles)  # [..., clusters, rays, rx_ant, tx_ant]
        doppler = self._step_11_doppler_matrix(topology, *angles, t)  # [..., clusters, rays, num_slots]
        amplitude = (rays.powers / rays.aoa.shape[-1]).sqrt()[..., None, None, None]
        if self.keeps_record:
            self.record = RayRecord(
                rays=rays,
                delay_s=rays.delays[..., None].expand_as(rays.aoa),
                doppler=doppler,
                offsets=offsets,
                rx_field=rx_field,
                tx_field=tx_field,
                rx_polarization_index=rx_index,
                tx_polarization_index=tx_index,
            )
        return rearrange(fields * offsets * amplitude, "... rx tx -> ... (rx tx)"), doppler

    def _step_11_reduce_nlos(
        self, h_full: tuple[torch.Tensor, torch.Tensor], rays: Rays, c_ds: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums each path's rays, (7.5-27); paths come in order of delay, as Sionna gives them."""
        antennas, doppler = h_full
        cluster, offset_index = self._path_layout(
            rays
        )  # both [..., num_paths]; -1: all rays, else a sub-cluster
        delay_s = rays.delays.gather(-1, cluster)  # [..., num_paths]
        if c_ds is not None:
            delay_s = delay_s + self._sub_cl_delay_offsets[offset_index.clamp_min(0)] * c_ds[..., None]
        order = delay_s.argsort(dim=-1)
        cluster, offset_index = cluster.gather(-1, order), offset_index.gather(-1, order)
        members = self._ray_members(rays.aoa.shape[-1])[offset_index]  # [..., num_paths, rays]
        antennas = (
            _take_clusters(antennas, cluster) * members[..., None]
        )  # [..., num_paths, rays, rx_ant * tx_ant]
        summed = antennas.transpose(-1, -2) @ _take_clusters(
            doppler, cluster
        )  # [..., num_paths, rx_ant * tx_ant, T]
        if self.record is not None:
            self.record = self._with_offsets(self.record, c_ds)
        num_rx_ant = self._rx_array.num_ant
        return rearrange(summed, "... (rx tx) t -> ... rx tx t", rx=num_rx_ant), delay_s.gather(-1, order)

    def _fields(
        self, array: Any, orientation: torch.Tensor, zenith: torch.Tensor, azimuth: torch.Tensor
    ) -> torch.Tensor:
        """Element fields of each polarisation in the global frame, (7.1-11): [num_pols, ..., rays, 2]."""
        local = self._gcs_to_lcs(orientation, zenith, azimuth)
        elements = [array.ant_pol1] if array.polarization == "single" else [array.ant_pol1, array.ant_pol2]
        fields = [torch.stack(element.field(*local), dim=-1) for element in elements]
        return torch.stack([self._l2g_response(f, orientation, zenith, azimuth).squeeze(-1) for f in fields])

    def _path_layout(self, rays: Rays) -> tuple[torch.Tensor, torch.Tensor]:
        """Each path's cluster and sub-cluster (-1: the whole): the two strongest clusters have three each."""
        powers = rays.powers
        if not self._subclustering:
            whole = torch.arange(powers.shape[-1]).expand(powers.shape)
            return whole, torch.full_like(whole, -1)
        strongest = self._strongest(rays)
        rest = powers.scatter(-1, strongest, -torch.inf).argsort(dim=-1, descending=True)[..., :-2]
        cluster = torch.cat([strongest.repeat_interleave(3, dim=-1), rest], dim=-1)  # [..., num_clusters + 4]
        sub = torch.tensor([0, 1, 2, 0, 1, 2] + [-1] * rest.shape[-1])
        return cluster, sub.expand(cluster.shape)

    def _strongest(self, rays: Rays) -> torch.Tensor:
        """Indices of the two strongest clusters, [..., 2]; Sionna fixes them before blockage where it can."""
        strongest: torch.Tensor | None = rays.strongest_cluster_indices
        if strongest is not None:
            return strongest
        powers: torch.Tensor = rays.powers
        return powers.argsort(dim=-1, descending=True)[..., :2]

    def _ray_members(self, num_rays: int) -> torch.Tensor:
        """Which rays make up sub-clusters 0 to 2 (Table 7.5-5) and a whole cluster: float32 [4, rays]."""
        members = torch.zeros(4, num_rays)
        for row, rays in enumerate((self._sub_cl_1_ind, self._sub_cl_2_ind, self._sub_cl_3_ind)):
            members[row, rays[rays < num_rays]] = 1.0
        members[3] = 1.0
        return members

    def _with_offsets(self, record: RayRecord, c_ds: torch.Tensor | None) -> RayRecord:
        """The record with the sub-cluster delays of the two strongest clusters added ray by ray."""
        if c_ds is None or not self._subclustering:
            return record
        per_ray = self._sub_cl_delay_offsets @ self._ray_members(record.rays.aoa.shape[-1])[:3]  # [rays]
        split = torch.zeros_like(record.rays.powers).scatter(-1, self._strongest(record.rays), 1.0)
        delay_s = record.delay_s + split[..., None] * per_ray * c_ds[..., None, None]
        return dataclasses.replace(record, delay_s=delay_s)


def _polarization_index(array: Any) -> torch.Tensor:
    """Which polarisation each port has: int64 [num_ant]."""
    index = torch.zeros(array.num_ant, dtype=torch.int64)
    if array.polarization == "dual":
        index[array.ant_ind_pol2] = 1
    return index


def _take_clusters(values: torch.Tensor, cluster: torch.Tensor) -> torch.Tensor:
    """Rows of ``values`` [..., clusters, rays, n] for each path's cluster [..., num_paths]."""
    index = cluster[..., None, None].expand(*cluster.shape, *values.shape[-2:])
    return values.gather(-3, index)  # [..., num_paths, rays, n]
