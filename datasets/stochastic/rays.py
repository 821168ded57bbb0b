"""The rays behind a drop: what a genie that knows all but their complex amplitudes would know."""

from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.datasets.stochastic.directions import Directions, directions
from airlam.datasets.stochastic.links import Links, links_of
from airlam.datasets.stochastic.raydraw import RayDraw
from airlam.datasets.stochastic.raysum import (
    SUB_CLUSTER_DELAYS,
    SUB_CLUSTERS,
    doppler_rate,
    doppler_terms,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySet:
    r"""One user's channel as a sum over rays with unknown Gaussian amplitudes.

    h[t, a, f] = sum_q g_q time_response[q, t] spatial_response[q, a] exp(-j 2 pi f delay_s[q]),
    g_q ~ CN(0, power_q), independent. TR 38.901 draws uniform phases rather than Gaussian amplitudes; the
    second moments agree. Each ray of the model gives two entries (the theta and phi field at the base
    station), or four where the user has two polarisations.

    delay_s: float64 [num_rays]. time_response: complex128 [num_rays, num_slots].
    spatial_response: complex128 [num_rays, num_user_ant * num_bs_ant], ordered as ``ChannelBatch.links``.
    power: float64 [num_rays].
    """

    delay_s: torch.Tensor
    time_response: torch.Tensor
    spatial_response: torch.Tensor
    power: torch.Tensor


def ray_sets(draw: RayDraw, times_s: torch.Tensor, direction: str) -> list[RaySet]:
    """One ``RaySet`` a drop, at the times of the slots; the draw must be of one user a drop."""
    links = links_of(draw)
    rx, tx = directions(links.rx, draw.wavelength_m), directions(links.tx, draw.wavelength_m)
    moving = rx if links.moving == "rx" else tx
    turning = doppler_terms(doppler_rate(moving, links.velocity), times_s)  # [b, slots, rays]
    user, base_station = (tx, rx) if direction == "uplink" else (rx, tx)
    spatial = torch.einsum(
        "biur,bjsr->bijrus", _port_responses(user), _port_responses(base_station)
    )  # [b, user component, bs component, rays, user_ant, bs_ant]
    weight = _component_powers(links)  # [b, 2, 2, rays]
    if user.theta.shape[1] == 1:
        field = torch.stack([user.theta[:, 0], user.phi[:, 0]], dim=1)[:, :, None]  # [b, 2, 1, rays]
        spatial, weight = _merge_user_components(spatial, weight, field)
    copies = spatial.shape[1] * spatial.shape[2]
    delay_s = _ray_delays_s(links).double().repeat(1, copies)  # [b, num_rays]
    time = turning.mT.to(torch.complex128).repeat(1, copies, 1)  # [b, num_rays, num_slots]
    flat_spatial = rearrange(spatial, "b i j r user bs -> b (i j r) (user bs)").to(torch.complex128)
    power = rearrange(weight, "b i j r -> b (i j r)").double()
    return [
        RaySet(delay_s=d, time_response=t, spatial_response=s, power=p)
        for d, t, s, p in zip(delay_s, time, flat_spatial, power, strict=True)
    ]


def _port_responses(end: Directions) -> torch.Tensor:
    """Response of each port to the theta and to the phi component: complex [b, 2, ports, rays]."""
    fields = torch.stack([end.theta, end.phi], dim=1)  # [b, 2, pols, rays]
    if end.columns is None:
        responses = fields.to(end.theta.dtype.to_complex())
    else:
        responses = (fields[:, :, :, None] * end.steering()[:, None, None]).flatten(
            2, 3
        )  # [b, 2, ports, rays]
    return responses if end.port is None else responses[:, :, end.port]


def _component_powers(links: Links) -> torch.Tensor:
    """E|.|^2 of the four phase-matrix entries times the ray's power, (7.5-28): [b, 2, 2, rays]."""
    same = links.amplitude.square()
    cross = same * links.cross.square()
    return torch.stack([torch.stack([same, cross], 1), torch.stack([cross, same], 1)], 1)


def _ray_delays_s(links: Links) -> torch.Tensor:
    """Each ray's delay, the sub-clusters' with their offsets: [b, rays]."""
    delay_s = links.delay_s[..., None].repeat(1, 1, links.rays_per_cluster)  # [b, clusters, rays]
    if not links.strongest.shape[1]:
        return delay_s.flatten(1)
    rows = torch.arange(len(delay_s))[:, None]
    for members, offset in zip(SUB_CLUSTERS, SUB_CLUSTER_DELAYS, strict=True):
        for member in members:
            delay_s[rows, links.strongest, member] += offset * links.sub_delay_s
    return delay_s.flatten(1)


def _merge_user_components(
    spatial: torch.Tensor, weight: torch.Tensor, field: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One user component instead of two, where all user ports share a ``field``, [b, 2, 1, rays].

    The two responses then differ by a scalar only, so one unknown of power w_theta f_theta^2 + w_phi f_phi^2
    times the response to a unit field spans the same channels with the same covariance.
    """
    strong = field.abs().argmax(dim=1, keepdim=True)  # [b, 1, 1, rays]
    scale = field.gather(1, strong)  # [b, 1, 1, rays]
    index = strong.expand(-1, 1, 2, -1)[..., None, None].expand(-1, 1, 2, -1, *spatial.shape[-2:])
    unit = spatial.gather(1, index) / scale[..., None, None]
    return unit, (weight * field.square()).sum(dim=1, keepdim=True)
