"""Per-coefficient Kalman filters with an autoregressive state."""

from dataclasses import dataclass

import torch

from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction import pooled
from airlam.radio.prediction.wiener import diagonal_means, noise_to_signal, toeplitz


@dataclass(frozen=True, slots=True, kw_only=True)
class KalmanJakes:
    r"""Per-coefficient Kalman filter whose state follows an autoregression fitted to Jakes' spectrum.

    The drop's Doppler spread is the one, out of ``num_speeds`` up to the setting's highest, under which
    the pooled history is likeliest for the correlation J_0(2 pi f_D k T) (Clarke 1968); the AR(``order``)
    solves its Yule-Walker equations (Baddour and Beaulieu, IEEE TWC 2005).
    """

    setting: PredictionSetting
    order: int = 8
    num_speeds: int = 24
    name: str = "kalman_jakes"

    def __post_init__(self) -> None:
        pooled.check_order(self.order, self.setting.num_history)

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        ratio = noise_to_signal(history, noise_variance)  # [b]
        candidates = self._correlations(history.device)  # [num_speeds, num_history]
        chosen = _likeliest(history, ratio, candidates)  # [b]
        return kalman_predict(history, candidates[chosen, : self.order + 1], ratio, self.setting.num_horizon)

    def _correlations(self, device: torch.device) -> torch.Tensor:
        top = max(self.setting.max_doppler_cycles_per_slot, 1e-6)
        doppler = top * torch.arange(1, self.num_speeds + 1, dtype=torch.float64, device=device)
        doppler = doppler / self.num_speeds  # [num_speeds], cycles a slot
        lag = torch.arange(self.setting.num_history, dtype=torch.float64, device=device)
        argument = 2 * torch.pi * doppler[:, None] * lag  # [num_speeds, num_history]
        correlation: torch.Tensor = torch.special.bessel_j0(argument)
        return correlation.to(torch.complex128)


@dataclass(frozen=True, slots=True, kw_only=True)
class KalmanAr:
    """Per-coefficient Kalman filter whose autoregression is fitted to the drop.

    The correlation is pooled over antennas and subcarriers, the noise variance taken off its lag 0;
    Yule-Walker gives the AR(``order``).
    """

    setting: PredictionSetting
    order: int = 8
    name: str = "kalman_ar"

    def __post_init__(self) -> None:
        pooled.check_order(self.order, self.setting.num_history)

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        ratio = noise_to_signal(history, noise_variance)  # [b]
        correlation = _drop_correlation(history, ratio)[:, : self.order + 1]  # [b, order + 1]
        return kalman_predict(history, correlation, ratio, self.setting.num_horizon)


def _drop_correlation(history: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """Lag correlation of each drop's signal, noise taken off lag 0 and made positive: complex128 [b, t].

    Each lag is the mean over its pairs of slots. That estimate is unbiased, but its Toeplitz matrix need not
    be positive definite; what its smallest eigenvalue lacks is added to lag 0.
    """
    gram = pooled.temporal_gram(history.flatten(2))  # [b, t, t]
    lagged = diagonal_means(gram)  # [b, t]
    signal = lagged[:, :1].real / (1.0 + ratio[:, None])  # [b, 1]
    signal = signal.clamp_min(torch.finfo(signal.dtype).tiny)
    correlation = torch.cat([torch.ones_like(lagged[:, :1]), lagged[:, 1:] / signal], dim=1)  # [b, t]
    smallest = torch.linalg.eigvalsh(toeplitz(correlation))[:, :1]  # [b, 1]
    lag_zero = 1.0 + (1e-6 - smallest).clamp_min(0.0)  # enough on lag 0 to make it positive definite
    return torch.cat([torch.ones_like(lagged[:, :1]), correlation[:, 1:] / lag_zero], dim=1)


def _likeliest(history: torch.Tensor, ratio: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Index of the candidate correlation under which each history is likeliest; int64 [b].

    Gaussian likelihood of the pooled coefficients: -log det C - tr(C^{-1} S), C = R + ratio I, S the
    sample covariance at the same power. candidates: complex128 [num_candidates, num_history].
    """
    num_history = candidates.shape[-1]
    gram = pooled.temporal_gram(history.flatten(2))  # [b, t, t]
    power = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1).clamp_min(torch.finfo(torch.float64).tiny)
    bounded = ratio.clamp(1e-4, 1e4)[:, None, None, None]  # [b, 1, 1, 1]
    eye = torch.eye(num_history, dtype=gram.dtype, device=gram.device)
    covariance = (toeplitz(candidates) + bounded * eye) / (1.0 + bounded)  # [b, candidates, t, t]
    sample = (gram / power[:, None, None])[:, None]  # [b, 1, t, t]
    fit = torch.linalg.solve(covariance, sample).diagonal(dim1=-2, dim2=-1).real.sum(-1)
    cost: torch.Tensor = torch.linalg.slogdet(covariance)[1] + fit  # [b, candidates]
    return cost.argmin(dim=1)


LOADING = 1e-5  # a band-limited spectrum makes Yule-Walker singular (Baddour and Beaulieu, sec. III)


def yule_walker(correlation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """AR coefficients and innovation variance of a unit-power process with given correlation.

    correlation: complex128 [batch, order + 1]. Returns coefficients complex128 [batch, order], newest
    slot first, and variance float64 [batch], at least 1e-9.
    """
    order = correlation.shape[-1] - 1
    matrix = toeplitz(correlation[:, :order])  # [batch, order, order]
    eye = torch.eye(order, dtype=matrix.dtype, device=matrix.device)
    coefficients = torch.linalg.solve(matrix + LOADING * eye, correlation[:, 1:])  # [batch, order]
    variance = 1.0 - (coefficients.conj() * correlation[:, 1:]).sum(-1).real  # [batch]
    return coefficients, variance.clamp_min(1e-9)


def kalman_predict(
    history: torch.Tensor, correlation: torch.Tensor, ratio: torch.Tensor, num_horizon: int
) -> torch.Tensor:
    """Kalman filter over the history in companion form, then open-loop steps.

    All coefficients of a drop share one correlation and noise ratio, hence one sequence of gains; the state
    is per coefficient. history: complex64 [b, num_history, u, p, f]; correlation: complex128
    [b, order + 1]; ratio: float64 [b]. Returns complex64 [b, num_horizon, u, p, f].
    """
    order = correlation.shape[-1] - 1
    coefficients, innovation = yule_walker(correlation)
    transition = _companion(coefficients)  # [b, order, order]
    covariance = toeplitz(correlation[:, :order]).mT  # of the state, newest slot first; stationary prior
    state = history.new_zeros(len(history), order, history[0, 0].numel())
    noise = ratio.clamp(1e-9, 1e9)
    for measured in history.flatten(2).unbind(1):  # [b, coefficients]
        gain = covariance[:, :, 0] / (covariance[:, 0, 0].real + noise)[:, None]  # [b, order]
        surprise = measured - state[:, 0]  # [b, coefficients]
        state = state + gain.to(state.dtype)[:, :, None] * surprise[:, None]
        covariance = covariance - gain[:, :, None] * covariance[:, None, 0]
        state = transition.to(state.dtype) @ state  # prior of the next slot
        covariance = transition @ covariance @ transition.mH
        covariance = 0.5 * (covariance + covariance.mH)  # rounding would let it drift from Hermitian
        covariance[:, 0, 0] += innovation
    steps = [state[:, 0]]
    for _ in range(num_horizon - 1):
        state = transition.to(state.dtype) @ state
        steps.append(state[:, 0])
    return torch.stack(steps, dim=1).reshape(len(history), num_horizon, *history.shape[2:])


def _companion(coefficients: torch.Tensor) -> torch.Tensor:
    """Moves a newest-first state one slot on: complex [b, order] to [b, order, order]."""
    batch, order = coefficients.shape
    shift = torch.eye(order - 1, order, dtype=coefficients.dtype, device=coefficients.device)
    return torch.cat([coefficients[:, None], shift.expand(batch, -1, -1)], dim=1)
