"""Temporal LMMSE filter of a population, and the correlations that such filters are made of."""

from dataclasses import dataclass

import torch

from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction import pooled
from airlam.radio.prediction.base import TrainingLinks


def signal_share(power: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
    """(P - noise) / P, at least 0: the empirical Wiener gain of a power measured in noise."""
    return (power - noise_variance).clamp_min(0.0) / power.clamp_min(torch.finfo(power.dtype).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationWiener:
    r"""The temporal LMMSE filter of the training population: w = R_fp (R_pp + (noise / power) I)^{-1}.

    correlation: complex128 [num_history + num_horizon], E x_{t+k} conj(x_t) / E |x_t|^2 pooled over the
    training links at unit power each, at all speeds that they hold. A drop's power is its mean power less
    the noise variance.
    """

    setting: PredictionSetting
    correlation: torch.Tensor
    name: str = "population_wiener"

    @staticmethod
    def fit(setting: PredictionSetting, training: TrainingLinks) -> "PopulationWiener":
        """Pools the correlation over training links."""
        series = torch.cat([training.history, training.future], dim=1)
        return PopulationWiener(setting=setting, correlation=temporal_correlation(series))

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        ratio = noise_to_signal(history, noise_variance)  # [b]
        weights = lmmse_weights(self.correlation.to(history.device), ratio, self.setting.num_history)
        return torch.einsum("blt,btupf->blupf", weights.to(history.dtype), history)


def temporal_correlation(series: torch.Tensor) -> torch.Tensor:
    """Lag correlation pooled over links of unit power; lag 0 is 1.

    series: complex [num_links, num_slots, ...]. Returns complex128 [num_slots].
    """
    gram = pooled.temporal_gram(series.flatten(2))  # [num_links, t, t]
    power = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)[:, None, None]
    return diagonal_means((gram / power.clamp_min(torch.finfo(power.dtype).tiny)).mean(0))


def diagonal_means(gram: torch.Tensor) -> torch.Tensor:
    """Mean of each lower diagonal: complex [..., t, t] to [..., t], lag 0 first."""
    lags = range(gram.shape[-1])
    return torch.stack([gram.diagonal(-k, dim1=-2, dim2=-1).mean(-1) for k in lags], dim=-1)


def toeplitz(correlation: torch.Tensor) -> torch.Tensor:
    """Hermitian R_ts = r_{t-s}, with r_{-k} = conj(r_k): complex [..., t] to [..., t, t]."""
    index = torch.arange(correlation.shape[-1], device=correlation.device)
    lag = index[:, None] - index  # [t, t]
    values = correlation[..., lag.abs()]  # [..., t, t]
    return torch.where(lag >= 0, values, values.conj())


def lmmse_weights(correlation: torch.Tensor, ratio: torch.Tensor, num_history: int) -> torch.Tensor:
    """LMMSE weights of every later slot on the first ``num_history``, in white noise.

    correlation: complex128 [..., num_slots]; ratio: float [batch], noise variance over signal power, any
    value from 0 up. Returns complex128 [batch, num_slots - num_history, num_history].
    """
    covariance = toeplitz(correlation)  # [..., num_slots, num_slots]
    past = covariance[..., :num_history, :num_history]
    cross = covariance[..., num_history:, :num_history]
    gain = 1.0 / (1.0 + ratio.to(torch.float64))[:, None, None]  # [batch, 1, 1]; both sides are scaled by it
    eye = torch.eye(num_history, dtype=past.dtype, device=past.device)
    loaded = gain * past + (1.0 - gain + 1e-9) * eye  # [batch, num_history, num_history]
    solved: torch.Tensor = torch.linalg.solve(loaded, (gain * cross).mH)
    return solved.mH  # [batch, num_slots - num_history, num_history]


def noise_to_signal(history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
    """Noise variance over estimated signal power, float64 [batch]; at most 1000, where only noise is left.

    history: complex [batch, num_history, ...]; noise_variance: float [batch].
    """
    total = history.abs().square().flatten(1).mean(1).to(torch.float64)  # [batch]
    noise = noise_variance.to(torch.float64)
    return noise / (total - noise).clamp_min(1e-3 * noise).clamp_min(torch.finfo(torch.float64).tiny)
