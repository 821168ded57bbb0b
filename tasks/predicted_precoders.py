"""Precoders on predicted channels, told how far these may be wrong or not, and the rates they give."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange

from airlam.model.graph_precoder import GraphPrecoder
from airlam.model.predictive_precoder import whole_array
from airlam.radio.beamforming import robust_regularized_zero_forcing
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz

if TYPE_CHECKING:
    from airlam.tasks.link_level import Precode  # Sionna loads in seconds

_GROUPS_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionError:
    """How far predictions of some groups' channels may be wrong, users at unit mean power.

    ports: complex64 [num_groups, num_users, num_horizon, num_subcarriers, m, m], E e_m conj(e_n) over the
    ports of one polarisation; levels: what it is multiplied by, float32 [num_horizon].
    """

    ports: torch.Tensor
    levels: torch.Tensor
    num_polarizations: int

    def covariance(self, groups: slice, count: int) -> torch.Tensor:
        """Of the first ``count`` of some groups, as precoders take it: complex64 [count, num_horizon,
        num_subcarriers, num_users, num_bs_ant, num_bs_ant].
        """
        scaled = self.ports[groups][:count].conj() * self.levels[:, None, None, None]
        whole = whole_array(scaled, self.num_polarizations)
        return rearrange(whole, "g k t f n m -> g t f k n m")


def zero_forcing(believed: torch.Tensor, noise_variance: float, groups: slice) -> torch.Tensor:
    """A ``Precode``: what is believed is taken for the truth."""
    return regularized_zero_forcing(believed, noise_variance)


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustZeroForcing:
    """A ``Precode`` that is told of errors."""

    error: PredictionError

    def __call__(self, believed: torch.Tensor, noise_variance: float, groups: slice) -> torch.Tensor:
        """See ``Precode``."""
        covariance = self.error.covariance(groups, len(believed))
        return robust_regularized_zero_forcing(believed, covariance, noise_variance)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedPrecoder:
    """A ``Precode`` of the graph precoder, told of errors where there are any."""

    graph: GraphPrecoder
    error: PredictionError | None = None

    def __call__(self, believed: torch.Tensor, noise_variance: float, groups: slice) -> torch.Tensor:
        """See ``Precode``."""
        flat = believed.flatten(end_dim=2)  # [downlinks, num_users, num_bs_ant]
        covariance = None
        if self.error is not None:
            covariance = self.error.covariance(groups, len(believed)).flatten(end_dim=2)
        with torch.no_grad():
            noise = torch.full((len(flat),), noise_variance)
            w = self.graph.precode(flat, noise, error_covariance=covariance)
        return w.view(
            *believed.shape[:3], *w.shape[1:]
        )  # [groups, num_horizon, num_subcarriers, num_bs_ant, users]


def group_rates(
    h: torch.Tensor,
    estimates: Mapping[str, torch.Tensor],
    precoders: Mapping[str, "Precode"],
    noise_variance: float,
) -> dict[str, torch.Tensor]:
    """Sum rate of each group by method, mean over the horizon and subcarriers: float64 [num_groups].

    h and estimates: complex64 [num_groups, num_users, num_horizon, num_bs_ant, num_subcarriers].
    """
    found: dict[str, list[torch.Tensor]] = {name: [] for name in precoders}
    for start in range(0, len(h), _GROUPS_AT_ONCE):
        groups = slice(start, start + _GROUPS_AT_ONCE)
        true = _per_subcarrier(h[groups])
        for name, precode in precoders.items():
            w = precode(_per_subcarrier(estimates[name][groups]), noise_variance, groups)
            rate = sum_rate_bit_per_s_per_hz(true, w, noise_variance)  # [groups, t, f]
            found[name].append(rate.double().mean(dim=(1, 2)))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _per_subcarrier(links: torch.Tensor) -> torch.Tensor:
    """[num_groups, num_users, t, m, f] to [num_groups, t, f, num_users, m]."""
    return rearrange(links, "g k t m f -> g t f k m")
