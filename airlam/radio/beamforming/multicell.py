r"""WMMSE for many base stations and users of many antennas, each station under a power limit of its own.

User k is served by station b(k) and hears all of them: y_k = sum_j H_{b(j),k} W_j s_j + n_k, the streams s_j
having unit power. With J_k the covariance of interference and noise and V_k = H_{b(k),k} W_k,

    max_W sum_k a_k log2 det(I + V_k^H J_k^-1 V_k)  s.t.  sum_{k of b} ||W_k||^2 <= P_b for each station b.

Shi, Razaviyayn, Luo, He, IEEE Trans. Signal Process. 59 (2011), table I. A station's multiplier is the root
of its secular equation; it is 0, and power is left over, where more would cost the others more than it
brings.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange

from airlam.errors import SpecError
from airlam.radio.beamforming.secular import multiplier_for_power


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Base stations and the users that they serve.

    h: complex [..., num_bs, num_users, num_user_ant, num_bs_ant], from every station to every user.
    serving_index: int64 [num_users], each user's station. noise_variance: float, broadcasting to
    [..., num_users]; station_power: float, broadcasting to [..., num_bs]; both positive.
    """

    h: torch.Tensor
    serving_index: torch.Tensor
    noise_variance: torch.Tensor
    station_power: torch.Tensor

    def __post_init__(self) -> None:
        num_bs, num_users = self.h.shape[-4:-2]
        if self.serving_index.shape != (num_users,):
            raise SpecError(
                f"serving_index has shape {list(self.serving_index.shape)}, "
                f"expected one station a user: [{num_users}]"
            )
        if bool(((self.serving_index < 0) | (self.serving_index >= num_bs)).any()):
            raise SpecError(f"serving_index is {self.serving_index.tolist()}; stations are 0 to {num_bs - 1}")
        for name in ("noise_variance", "station_power"):
            value = getattr(self, name)
            if not bool((value > 0).all()):
                raise SpecError(f"{name} must be positive, got {float(value.min())}")

    @property
    def own(self) -> torch.Tensor:
        """From each user's station: complex [..., num_users, num_user_ant, num_bs_ant]."""
        users = torch.arange(self.h.shape[-3], device=self.h.device)
        return self.h[..., self.serving_index, users, :, :]

    @property
    def membership(self) -> torch.Tensor:
        """1 where a station serves a user: real [num_bs, num_users]."""
        stations = torch.arange(self.h.shape[-4], device=self.h.device)
        return (stations[:, None] == self.serving_index).to(self.h.real.dtype)


def multicell_wmmse(
    cells: Cells,
    *,
    num_iterations: int,
    start: Literal["mrt"] | torch.Tensor = "mrt",
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The precoders after ``num_iterations``; their weighted sum rate never falls with their number.

    start: "mrt" for ``matched_filters``, or precoders, complex [..., num_users, num_bs_ant, num_streams],
    within the power. weights a: float, broadcasting to [..., num_users], none negative; 1 where not given.
    Returns complex [..., num_users, num_bs_ant, num_streams], within each station's power.
    """
    if num_iterations < 0:
        raise SpecError(f"num_iterations must not be negative, got {num_iterations}")
    w = matched_filters(cells) if isinstance(start, str) else start
    small, basis = _compressed(cells)
    user_basis = basis[..., cells.serving_index, :, :]  # [..., num_users, num_bs_ant, num_dims]
    w = user_basis.mH @ w  # [..., num_users, num_dims, num_streams]
    for _ in range(num_iterations):
        w = _step(small, w, weights)
    return user_basis @ w


def matched_filters(cells: Cells) -> torch.Tensor:
    """W_k = c_b H_k^H of the user's own station, one stream an antenna; c_b meets the station's power.

    Returns complex [..., num_users, num_bs_ant, num_user_ant].
    """
    w = cells.own.mH  # [..., num_users, num_bs_ant, num_user_ant]
    of_users = w.abs().square().sum(dim=(-2, -1))  # [..., num_users]
    of_stations = of_users @ cells.membership.mT  # [..., num_bs]
    tiny = torch.finfo(of_stations.dtype).tiny
    gain = (cells.station_power / of_stations.clamp_min(tiny)).sqrt()  # [..., num_bs]
    matched: torch.Tensor = w * gain[..., cells.serving_index, None, None]
    return matched


def multicell_rates_bit_per_s_per_hz(cells: Cells, w: torch.Tensor) -> torch.Tensor:
    """log2 det(I + V_k^H J_k^-1 V_k) of each user: complex [..., num_users, num_bs_ant, num_streams] to float
    [..., num_users].
    """
    _, weight = _receivers_and_weights(cells, w)
    rates: torch.Tensor = 2.0 * torch.linalg.cholesky(weight).diagonal(dim1=-2, dim2=-1).real.log2().sum(-1)
    return rates


def _compressed(cells: Cells) -> tuple[Cells, torch.Tensor]:
    """The same cells in the span of each station's channels, and its basis.

    No precoder gains by leaving that span, whose dimension may be far below the number of antennas.
    The basis is complex [..., num_bs, num_bs_ant, num_dims].
    """
    stacked = rearrange(cells.h, "... b k r n -> ... b n (k r)").conj()  # [..., num_bs, num_bs_ant, k r]
    basis = torch.linalg.qr(stacked).Q  # [..., num_bs, num_bs_ant, num_dims]
    small = Cells(
        h=cells.h @ basis[..., None, :, :],  # [..., num_bs, num_users, num_user_ant, num_dims]
        serving_index=cells.serving_index,
        noise_variance=cells.noise_variance,
        station_power=cells.station_power,
    )
    return small, basis


def _receivers_and_weights(cells: Cells, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """MMSE receivers U_k = (J_k + V_k V_k^H)^-1 V_k and E_k^-1 = I + V_k^H J_k^-1 V_k, E_k their error.

    Returns complex [..., num_users, num_user_ant, num_streams], [..., num_users, num_streams, num_streams].
    """
    # received[j, k]: user j's streams at user k
    received = cells.h[..., cells.serving_index, :, :, :] @ w[..., None, :, :]  # [..., j, k, num_user_ant, s]
    powers = received @ received.mH  # [..., j, k, num_user_ant, num_user_ant]
    num_users, num_streams = w.shape[-3], w.shape[-1]
    users = torch.arange(num_users, device=w.device)
    own = received[..., users, users, :, :]  # [..., num_users, num_user_ant, num_streams]
    others = ~torch.eye(num_users, dtype=torch.bool, device=w.device)[..., None, None]  # [j, k, 1, 1]
    noise = cells.noise_variance[..., None, None] * torch.eye(own.shape[-2], dtype=w.dtype, device=w.device)
    interference = (powers * others).sum(-4) + noise  # [..., num_users, num_user_ant, num_user_ant]
    receiver = torch.linalg.solve(interference + own @ own.mH, own)
    identity = torch.eye(num_streams, dtype=w.dtype, device=w.device)
    weight = identity + own.mH @ torch.linalg.solve(interference, own)  # [..., num_users, s, s]
    return receiver, weight


def _step(cells: Cells, w: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Receivers, weights, then W_k = (A_b + mu_b I)^-1 H_bk^H U_k E_k^-1 with its own station b.

    A_b = sum_j T_j E_j^-1 T_j^H, T_j = H_bj^H U_j, over all users j, each E_j^-1 times the user's weight.
    """
    receiver, weight = _receivers_and_weights(cells, w)
    if weights is not None:
        weight = weight * weights[..., None, None]
    towards = cells.h.mH @ receiver[..., None, :, :, :]  # [..., num_bs, num_users, num_bs_ant, num_streams]
    quadratic = (towards @ weight[..., None, :, :, :] @ towards.mH).sum(-3)  # [..., num_bs, n, n]
    linear = cells.own.mH @ receiver @ weight  # [..., num_users, num_bs_ant, num_streams]
    eigenvalues, vectors = torch.linalg.eigh(quadratic)  # [..., num_bs, n], [..., num_bs, n, n]
    user_vectors = vectors[..., cells.serving_index, :, :]  # [..., num_users, n, n]
    rotated = user_vectors.mH @ linear  # [..., num_users, n, num_streams]
    content = cells.membership @ rotated.abs().square().sum(-1)  # [..., num_bs, n]
    inverse = multiplier_for_power(eigenvalues, content, cells.station_power)  # [..., num_bs, n]
    stepped: torch.Tensor = user_vectors @ (inverse[..., cells.serving_index, :, None] * rotated)
    return stepped
