"""Recursive linear prediction: per antenna, shared by a drop, of reduced rank, and per delay-angle tap."""

from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction import pooled
from airlam.radio.prediction.wiener import signal_share
from airlam.radio.transforms import from_delay_angle, to_delay_angle


@dataclass(frozen=True, slots=True, kw_only=True)
class PerAntennaAr:
    """An autoregressive filter for each pair of antennas, shared by its subcarriers.

    Forward-backward covariance method (Kay, Modern Spectral Estimation, 1988, sec. 7.5) with a
    share of the known noise energy taken off the diagonal of the normal equations: all of it is unbiased
    but may leave the system ill-conditioned.
    """

    setting: PredictionSetting
    order: int
    ridge: float
    compensation: float  # share of the noise energy that is taken off, 0..1
    name: str = "per_antenna_ar"

    def __post_init__(self) -> None:
        pooled.check_order(self.order, self.setting.num_history)

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        x = rearrange(history, "b t u p f -> b u p t f")
        gram = pooled.forward_backward(pooled.temporal_gram(x))  # [b, u, p, t, t]
        matrix, rhs = pooled.normal_equations(gram, self.order, step=1)
        num_equations = x.shape[-1] * (self.setting.num_history - self.order)
        noise_energy = self.compensation * num_equations * noise_variance[:, None, None]  # [b, 1, 1]
        matrix = pooled.compensate_noise(matrix, noise_energy)
        weights = pooled.recursive_weights(
            pooled.ridge_solve(matrix, rhs, self.ridge), self.setting.num_history, self.setting.num_horizon
        )  # [b, u, p, horizon, t]
        return rearrange(pooled.apply(weights, x), "b u p t f -> b t u p f")


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorProny:
    """One linear-prediction filter shared by all coefficients of a drop, fed its own output.

    Paths that share a Doppler shift share a recursion in every antenna and subcarrier, so the vector of
    all coefficients gives many equations for few unknowns (vector Prony: Yin, Wang, Liu, Cottatellucci,
    "Addressing the curse of mobility in massive MIMO with Prony-based angular-delay domain channel
    predictions", IEEE JSAC 2020).
    """

    setting: PredictionSetting
    order: int
    ridge: float
    name: str = "vector_prony"

    def __post_init__(self) -> None:
        pooled.check_order(self.order, self.setting.num_history)

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``; the ridge stands in for the noise."""
        x = rearrange(history, "b t u p f -> b t (u p f)")
        gram = pooled.forward_backward(pooled.temporal_gram(x))  # [b, t, t]
        filters = pooled.ridge_solve(*pooled.normal_equations(gram, self.order, step=1), self.ridge)
        weights = pooled.recursive_weights(filters, self.setting.num_history, self.setting.num_horizon)
        return _spread(pooled.apply(weights, x), history)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedRankAr:
    """Delay-angle shrinkage, then one autoregressive filter of reduced rank for the drop.

    Each delay-angle bin is scaled by its estimated share of signal, (P - noise) / P with P its power over
    the history; the filter is solved in the strongest eigenvectors of its covariance only.
    """

    setting: PredictionSetting
    order: int = 12
    rank: int = 6
    name: str = "reduced_rank_ar"

    def __post_init__(self) -> None:
        pooled.check_order(self.order, self.setting.num_history)

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        bins = to_delay_angle(history, self.setting.base_station)  # [b, t, u, beams, taps]
        power = bins.abs().square().mean(dim=1, keepdim=True)  # [b, 1, u, beams, taps]
        bins = bins * signal_share(power, noise_variance[:, None, None, None, None])
        x = rearrange(bins, "b t u p f -> b t (u p f)")
        matrix, rhs = pooled.normal_equations(pooled.temporal_gram(x), self.order, step=1)
        filters = pooled.truncated_solve(matrix, rhs, self.rank)  # [b, order]
        weights = pooled.recursive_weights(filters, self.setting.num_history, self.setting.num_horizon)
        return from_delay_angle(_spread(pooled.apply(weights, x), history), self.setting.base_station)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pad:
    """Prony in the angular-delay domain: a filter of its own for each strong delay-angle tap.

    Yin et al. (as in ``VectorProny``), algorithm 2: transform to angle and delay, keep the fewest taps
    that hold ``kept_energy`` of the history, predict each by its own recursion, transform back. Two
    additions keep it stable in noise: forward-backward equations and a ridge, relative to the tap's power.
    """

    setting: PredictionSetting
    order: int
    ridge: float
    kept_energy: float
    name: str = "pad"

    def __post_init__(self) -> None:
        pooled.check_order(self.order, self.setting.num_history)

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``; the kept share of energy and the ridge stand in for the noise."""
        bins = to_delay_angle(history, self.setting.base_station)  # [b, t, u, beams, taps]
        kept = strong_taps(bins.abs().square().sum(dim=1), self.kept_energy)  # [b, u, beams, taps]
        future = torch.zeros_like(bins[:, :1]).repeat(1, self.setting.num_horizon, 1, 1, 1)
        taps = rearrange(bins, "b t u p f -> b u p f t")[kept]  # [num_kept, t]
        rows = rearrange(future, "b t u p f -> b u p f t")  # a view: writing to it fills ``future``
        rows[kept] = self._predict_taps(taps)
        return from_delay_angle(future, self.setting.base_station)

    def _predict_taps(self, taps: torch.Tensor) -> torch.Tensor:
        """complex64 [num_taps, num_history] to [num_taps, num_horizon], each by its own filter."""
        forward = taps.to(torch.complex128).unfold(-1, self.order + 1, 1)  # [num_taps, windows, order + 1]
        windows = torch.cat([forward, forward.conj().flip(-1)], dim=1)  # both directions of time
        past, wanted = windows[..., :-1], windows[..., -1:]
        rhs = (past.mH @ wanted)[..., 0]  # [num_taps, order]
        filters = pooled.ridge_solve(past.mH @ past, rhs, self.ridge).to(taps.dtype)
        return pooled.iterate(filters, taps[..., None], self.setting.num_horizon)[..., 0]


def strong_taps(energy: torch.Tensor, kept_energy: float) -> torch.Tensor:
    """The fewest entries that hold a share of each drop's energy.

    energy: float [batch, ...]. Returns bool of the same shape.
    """
    flat = energy.flatten(1)  # [batch, num_taps]
    ordered, index = flat.sort(dim=1, descending=True)
    before = ordered.cumsum(dim=1) - ordered  # energy of the stronger ones
    kept = before < kept_energy * flat.sum(dim=1, keepdim=True)  # [batch, num_taps], by strength
    return torch.zeros_like(kept).scatter(1, index, kept).reshape(energy.shape)


def _spread(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[b, t, u p f] back to the five axes of ``like``."""
    _, _, u, p, f = like.shape
    return rearrange(x, "b t (u p f) -> b t u p f", u=u, p=p, f=f)
