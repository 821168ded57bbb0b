"""FDD by joint statistics: the LMMSE estimate whose uplink-downlink covariance was pooled over pairs."""

from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction.base import TrainingLinks
from airlam.radio.prediction.wiener import noise_to_signal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeCovariance:
    """Second moments along one axis, past with past and future with past, in the past's eigenbasis.

    basis: complex64 [num_past, num_past]; power: float32 [num_past], eigenvalues of mean 1; mapping:
    complex64 [num_future, num_past], the future's cross-covariance with each eigenvector's coefficient.
    """

    basis: torch.Tensor
    power: torch.Tensor
    mapping: torch.Tensor

    @staticmethod
    def from_moments(past: torch.Tensor, cross: torch.Tensor) -> "ModeCovariance":
        """past: Hermitian [num_past, num_past]; cross: [num_future, num_past], at the same scale."""
        scale = past.diagonal().real.mean()
        values, vectors = torch.linalg.eigh(past.to(torch.complex128) / scale)
        return ModeCovariance(
            basis=vectors.to(torch.complex64),
            power=values.clamp_min(0.0).float(),
            mapping=(cross.to(torch.complex128) / scale @ vectors).to(torch.complex64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CovarianceMapping:
    r"""Kronecker LMMSE of the downlink's future from the uplink's past.

    The joint covariance is modelled as (time) x (antennas) x (frequency), each pooled over training pairs of
    uplink history and downlink future at unit power. In the product of the past's eigenbases the estimate is
    M z / (lambda + noise / power), lambda the product of eigenvalues and M the product of the mappings.
    """

    setting: PredictionSetting
    time: ModeCovariance
    antenna: ModeCovariance
    frequency: ModeCovariance
    name: str = "covariance_mapping"

    @staticmethod
    def fit(setting: PredictionSetting, training: TrainingLinks) -> "CovarianceMapping":
        """Pools the three covariances over pairs."""
        past, future = _at_unit_power(training)  # [n, t, antennas, f], [n, horizon, antennas, target f]
        time = rearrange(past, "n t a f -> t (n a f)")
        antenna = rearrange(past, "n t a f -> a (n t f)")
        frequency = rearrange(past, "n t a f -> f (n t a)")
        time_cross, frequency_cross = _separable_cross(past, future)
        antenna_moment = antenna @ antenna.mH / antenna.shape[1]
        return CovarianceMapping(
            setting=setting,
            time=ModeCovariance.from_moments(time @ time.mH / time.shape[1], time_cross),
            antenna=ModeCovariance.from_moments(antenna_moment, antenna_moment),
            frequency=ModeCovariance.from_moments(
                frequency @ frequency.mH / frequency.shape[1], frequency_cross
            ),
        )

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        modes = (self.time, self.antenna, self.frequency)
        bases = [mode.basis.to(history.device) for mode in modes]
        mappings = [mode.mapping.to(history.device) for mode in modes]
        power = torch.einsum("t,a,f->taf", *(mode.power.to(history.device) for mode in modes))
        ratio = noise_to_signal(history, noise_variance).float()[:, None, None, None]  # [b, 1, 1, 1]
        x = rearrange(history, "b t u p f -> b t (u p) f")
        z = torch.einsum("btaf,ti,aj,fk->bijk", x, *(basis.conj() for basis in bases))  # modes
        z = z / (power + ratio.clamp_min(1e-5))
        y = torch.einsum("bijk,li,aj,gk->blag", z, *mappings)  # [b, horizon, antennas, target f]
        return rearrange(y, "b t (u p) f -> b t u p f", u=history.shape[2])


def _at_unit_power(training: TrainingLinks) -> tuple[torch.Tensor, torch.Tensor]:
    """Histories of unit mean power and futures at the same scale, antennas on one axis."""
    power = training.history.abs().square().flatten(1).mean(1)
    scale = power.clamp_min(torch.finfo(power.dtype).tiny).rsqrt()[:, None, None, None]
    return training.history.flatten(2, 3) * scale, training.future.flatten(2, 3) * scale


def _separable_cross(
    past: torch.Tensor, future: torch.Tensor, num_rounds: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """The product of a time and a frequency matrix nearest to the cross-covariance.

    Found by alternating least squares, the mean over antennas taken.

    past: complex [n, t, antennas, f]; future: complex [n, horizon, antennas, target f].
    Returns complex [horizon, t] and [target f, f].
    """
    count = past.shape[0] * past.shape[2]
    nearest = torch.zeros(future.shape[1], past.shape[1], dtype=past.dtype, device=past.device)
    nearest[:, -1] = 1.0  # to begin with, the last slot alone stands for the past
    time = nearest
    for _ in range(num_rounds):
        led = torch.einsum("lt,ntaf->nlaf", time, past)
        frequency = torch.einsum("nlag,nlaf->gf", future, led.conj())
        frequency = frequency / (count * time.abs().square().sum())
        mapped = torch.einsum("gf,ntaf->ntag", frequency, past)
        time = torch.einsum("nlag,ntag->lt", future, mapped.conj())
        time = time / (count * frequency.abs().square().sum())
    return time, frequency
