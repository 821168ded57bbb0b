"""Denoise a drop with the population's covariances, then fit its own filters by least squares."""

from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction import pooled
from airlam.radio.prediction.base import TrainingLinks


@dataclass(frozen=True, slots=True, kw_only=True)
class KroneckerDenoiser:
    r"""LMMSE denoiser whose covariance is (frequency) x (antennas), pooled over training links.

    In the product of the two eigenbases the signal's variances are lambda = power * mu_a nu_f, mu and nu the
    eigenvalues scaled to mean 1, power the drop's own. Each coefficient is scaled by
    lambda / (lambda + noise). With a finite ``prior_slots`` the drop's measured powers join in: lambda is
    then (prior_slots * lambda + num_history * measured) / (prior_slots + num_history).

    antenna_basis: complex64 [num_user_ant * num_bs_ant] squared, antenna_power: float32, one each;
    frequency_basis: complex64 [num_subcarriers, num_subcarriers], frequency_power: float32 [num_subcarriers].
    """

    antenna_basis: torch.Tensor
    antenna_power: torch.Tensor
    frequency_basis: torch.Tensor
    frequency_power: torch.Tensor
    prior_slots: float | None = None  # None: the population's powers only

    @staticmethod
    def fit(training: TrainingLinks, prior_slots: float | None = None) -> "KroneckerDenoiser":
        """Covariances of the histories, every link at unit power."""
        power = training.history.abs().square().flatten(1).mean(1).clamp_min(1e-30)
        unit = training.history * power.rsqrt()[:, None, None, None, None]
        by_antenna = rearrange(unit, "n t u p f -> (u p) (n t f)")
        by_frequency = rearrange(unit, "n t u p f -> f (n t u p)")
        antenna_power, antenna_basis = _eigen(by_antenna @ by_antenna.mH)
        frequency_power, frequency_basis = _eigen(by_frequency @ by_frequency.mH)
        return KroneckerDenoiser(
            antenna_basis=antenna_basis,
            antenna_power=antenna_power,
            frequency_basis=frequency_basis,
            frequency_power=frequency_power,
            prior_slots=prior_slots,
        )

    def denoise(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """The conditional mean of the history's clean channel; shapes as in ``Predictor.predict``."""
        num_user_ant = history.shape[2]
        antenna_basis = self.antenna_basis.to(history.device)
        frequency_basis = self.frequency_basis.to(history.device)
        x = rearrange(history, "b t u p f -> b t (u p) f")
        z = antenna_basis.mH @ x @ frequency_basis.conj()  # [b, t, antenna modes, frequency modes]
        z = z * self._gains(z, noise_variance)
        x = antenna_basis @ z @ frequency_basis.mT  # [b, t, antennas, f]
        return rearrange(x, "b t (u p) f -> b t u p f", u=num_user_ant)

    def _gains(self, z: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """lambda / (lambda + noise): float32 [b, 1, antenna modes, frequency modes]."""
        noise = noise_variance[:, None, None]  # [b, 1, 1]
        measured = z.abs().square().mean(dim=1) - noise  # [b, antenna modes, frequency modes]
        power = measured.mean(dim=(1, 2), keepdim=True).clamp_min(0.0)  # [b, 1, 1]
        shape = self.antenna_power[:, None] * self.frequency_power  # [antenna modes, frequency modes]
        variance = power * shape.to(z.device)  # [b, antenna modes, frequency modes]
        if self.prior_slots is not None:
            share = z.shape[1] / (z.shape[1] + self.prior_slots)
            variance = ((1 - share) * variance + share * measured).clamp_min(0.0)
        return (variance / (variance + noise).clamp_min(torch.finfo(noise.dtype).tiny))[:, None]


def _eigen(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues scaled to mean 1 (float32) and eigenvectors (complex64) of a Hermitian matrix."""
    values, vectors = torch.linalg.eigh(covariance.to(torch.complex128))
    values = values.clamp_min(0.0)
    return (values / values.mean()).float(), vectors.to(torch.complex64)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseLs:
    """Kronecker denoiser, then per drop one ridge least-squares filter for each step of the horizon.

    The filters are shared by all antennas and subcarriers of the drop, and fitted to its denoised history
    alone.
    """

    setting: PredictionSetting
    denoiser: KroneckerDenoiser
    order: int = 8
    ridge: float = 1e-3
    name: str = "denoise_ls"

    def __post_init__(self) -> None:
        pooled.check_order(self.order, self.setting.num_history)

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        clean = self.denoiser.denoise(history, noise_variance)
        x = clean.flatten(2)  # [b, t, u p f]
        gram = pooled.temporal_gram(x)  # [b, t, t]
        weights = pooled.direct_weights(gram, self.order, self.ridge, self.setting.num_horizon)
        return pooled.apply(weights, x).reshape(len(x), -1, *history.shape[2:])
