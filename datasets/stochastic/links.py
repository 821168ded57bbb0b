"""A draw's links in one row, ready to be summed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.datasets.stochastic.directions import End, LinkRows
from airlam.datasets.stochastic.raydraw import RayDraw

Flatten = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Links(LinkRows):
    """Links with their rays, cluster by cluster, ``rays_per_cluster`` each.

    phases: [links, 4, rays]. amplitude: [links, rays], with everything that scales a ray. cross: [links,
    rays], 1 / sqrt(cross-polarisation ratio). velocity: [links, 3], of the moving end, rad/s of phase.
    delay_s: [links, clusters]. strongest: int64 [links, 2], the clusters that are split; sub_delay_s: [links,
    1], their cluster delay spread; no columns where none are split. los_rx, los_tx: one ray, the line of
    sight. los_amplitude: complex [links], 0 without line of sight.
    """

    rx: End
    tx: End
    moving: str  # rx or tx
    rays_per_cluster: int
    phases: torch.Tensor
    amplitude: torch.Tensor
    cross: torch.Tensor
    velocity: torch.Tensor
    delay_s: torch.Tensor
    strongest: torch.Tensor
    sub_delay_s: torch.Tensor
    los_rx: End
    los_tx: End
    los_amplitude: torch.Tensor

    def __len__(self) -> int:
        return len(self.amplitude)

    @property
    def num_rays(self) -> int:
        """Of a link."""
        return self.amplitude.shape[1]


def links_of(draw: RayDraw) -> Links:
    """The draw's links: batch, then transmitters, then receivers."""
    rays, topology = draw.rays, draw.topology
    leading = draw.gain.shape  # batch, num_tx, num_rx

    def flat(values: torch.Tensor) -> torch.Tensor:
        return values.expand(*leading, *values.shape[3:]).flatten(0, 2)  # [links, ...]

    def flat_rays(values: torch.Tensor) -> torch.Tensor:
        return flat(values).flatten(1)  # [links, rays]

    rx_orientation = flat(topology.rx_orientations[:, None])
    tx_orientation = flat(topology.tx_orientations[:, :, None])
    velocity = topology.velocities
    velocity = velocity[:, None] if topology.moving_end == "rx" else velocity[:, :, None]
    diffuse, specular = _amplitudes(draw, flat)
    strongest, sub_delay_s = _split_clusters(draw, flat)
    return Links(
        rx=End(
            array=draw.rx_array,
            orientation=rx_orientation,
            zenith=flat_rays(rays.zoa),
            azimuth=flat_rays(rays.aoa),
        ),
        tx=End(
            array=draw.tx_array,
            orientation=tx_orientation,
            zenith=flat_rays(rays.zod),
            azimuth=flat_rays(rays.aod),
        ),
        moving=topology.moving_end,
        rays_per_cluster=rays.aoa.shape[-1],
        phases=rearrange(flat(draw.phases), "l n m q -> l q (n m)").contiguous(),
        amplitude=diffuse,
        cross=(1 / flat_rays(rays.xpr)).sqrt(),
        velocity=flat(velocity) * (2 * math.pi / draw.wavelength_m),
        delay_s=flat(rays.delays),
        strongest=strongest,
        sub_delay_s=sub_delay_s,
        los_rx=End(
            array=draw.rx_array,
            orientation=rx_orientation,
            zenith=flat(topology.los_zoa)[:, None],
            azimuth=flat(topology.los_aoa)[:, None],
        ),
        los_tx=End(
            array=draw.tx_array,
            orientation=tx_orientation,
            zenith=flat(topology.los_zod)[:, None],
            azimuth=flat(topology.los_aod)[:, None],
        ),
        los_amplitude=specular,
    )


def _amplitudes(draw: RayDraw, flat: Flatten) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each ray, [links, rays], and of the line of sight, complex [links]: (7.5-30) and what scales it."""
    rays = draw.rays
    k_factor, los, gain = flat(draw.k_factor), flat(draw.topology.los), flat(draw.gain)
    scale = torch.where(los, (1 / (k_factor + 1)).sqrt(), torch.ones_like(k_factor)) * gain  # [links]
    diffuse = (flat(rays.powers) / rays.aoa.shape[-1]).sqrt() * scale[:, None]  # [links, clusters]
    diffuse = diffuse.repeat_interleave(rays.aoa.shape[-1], dim=1)  # [links, rays]
    if rays.blockage_loss_db is not None and not rays.blockage_loss_applied_to_powers:
        diffuse = diffuse * 10 ** (-flat(rays.blockage_loss_db).flatten(1) / 20)
    specular = torch.where(los, (k_factor / (k_factor + 1)).sqrt(), torch.zeros_like(k_factor)) * gain
    if rays.los_blockage_loss_db is not None:
        specular = specular * 10 ** (-flat(rays.los_blockage_loss_db) / 20)
    # the product's order is Sionna's: thousands of cycles in single precision would differ otherwise
    turn = -2 * math.pi * flat(draw.topology.distance_3d) / draw.wavelength_m
    return diffuse, torch.complex(specular * turn.cos(), specular * turn.sin())


def _split_clusters(draw: RayDraw, flat: Flatten) -> tuple[torch.Tensor, torch.Tensor]:
    """The two strongest clusters, which have sub-clusters, and the cluster delay spread."""
    if draw.cluster_delay_spread_s is None:
        none = draw.gain.new_zeros(draw.gain.numel(), 0)
        return none.long(), none
    strongest = draw.rays.strongest_cluster_indices
    if strongest is None:
        strongest = draw.rays.powers.argsort(dim=-1, descending=True)[..., :2]
    return flat(strongest), flat(draw.cluster_delay_spread_s)[:, None]
