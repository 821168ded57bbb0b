"""The rays behind a drop: what a genie that knows all but their complex amplitudes would know."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange

if TYPE_CHECKING:
    from airlam.datasets.raysum import RayRecord


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


def ray_sets(record: "RayRecord", direction: str) -> list[RaySet]:
    """One ``RaySet`` a drop from a generator's record; the record must be of one user a drop."""
    uplink = direction == "uplink"
    user_field = record.tx_field if uplink else record.rx_field  # [user_pols, batch, 1, 1, clusters, rays, 2]
    bs_field = record.rx_field if uplink else record.tx_field
    user_index = record.tx_polarization_index if uplink else record.rx_polarization_index
    bs_index = record.rx_polarization_index if uplink else record.tx_polarization_index
    pattern = "b 1 1 n m bs user -> b n m user bs" if uplink else "b 1 1 n m user bs -> b n m user bs"
    offsets = rearrange(record.offsets, pattern)  # [batch, clusters, rays, user_ant, bs_ant]
    user_field = rearrange(user_field, "p b 1 1 n m c -> b n m p c")[
        :, :, :, user_index
    ]  # [b, n, m, user_ant, 2]
    bs_field = rearrange(bs_field, "p b 1 1 n m c -> b n m p c")[:, :, :, bs_index]  # [b, n, m, bs_ant, 2]
    spatial = torch.einsum(
        "bnmui,bnmsj,bnmus->bijnmus", user_field, bs_field, offsets.real
    ) + 1j * torch.einsum(
        "bnmui,bnmsj,bnmus->bijnmus", user_field, bs_field, offsets.imag
    )  # [b, user component, bs component, clusters, rays, user_ant, bs_ant]
    weight = _component_powers(record)  # [b, 2, 2, clusters, rays]
    if bool((user_index == 0).all()):
        spatial, weight = _merge_user_components(spatial, weight, user_field[..., 0, :])
    copies = spatial.shape[1] * spatial.shape[2]
    delay_s = record.delay_s[:, 0, 0].flatten(1).double().repeat(1, copies)  # [b, num_rays]
    time = (
        record.doppler[:, 0, 0].flatten(1, 2).to(torch.complex128).repeat(1, copies, 1)
    )  # [b, num_rays, num_slots]
    flat_spatial = rearrange(spatial, "b i j n m user bs -> b (i j n m) (user bs)").to(torch.complex128)
    power = rearrange(weight, "b i j n m -> b (i j n m)").double()
    return [
        RaySet(delay_s=d, time_response=t, spatial_response=s, power=p)
        for d, t, s, p in zip(delay_s, time, flat_spatial, power, strict=True)
    ]


def _component_powers(record: "RayRecord") -> torch.Tensor:
    """E|.|^2 of the four phase-matrix entries times the ray's power, (7.5-22): [b, 2, 2, clusters, rays]."""
    power = (record.rays.powers / record.rays.aoa.shape[-1])[:, 0, 0, :, None]  # [batch, clusters, 1]
    cross = power / record.rays.xpr[:, 0, 0]  # [batch, clusters, rays]
    same = power.expand_as(cross)
    return torch.stack([torch.stack([same, cross], 1), torch.stack([cross, same], 1)], 1)


def _merge_user_components(
    spatial: torch.Tensor, weight: torch.Tensor, user_field: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One user component instead of two, where all user ports share a field (a_theta, a_phi).

    The two responses then differ by a scalar only, so one unknown of power w_theta a_theta^2 + w_phi a_phi^2
    times the response to a unit field spans the same channels with the same covariance.
    """
    field = rearrange(user_field, "b n m c -> b c 1 n m")  # [b, 2, 1, clusters, rays]
    strong = field.abs().argmax(dim=1, keepdim=True)  # [b, 1, 1, clusters, rays]
    scale = field.gather(1, strong)  # [b, 1, 1, clusters, rays]
    index = strong.expand(-1, 1, 2, -1, -1)[..., None, None].expand(-1, 1, 2, -1, -1, *spatial.shape[-2:])
    unit = spatial.gather(1, index) / scale[..., None, None]
    return unit, (weight * field.square()).sum(dim=1, keepdim=True)
