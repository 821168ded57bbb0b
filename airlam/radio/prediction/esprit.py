"""Delay-angle sparse extrapolation: a drop's delays by ESPRIT, each predicted in time, put on any band.

Clusters of rays share a delay, so a drop has a couple of dozen delays in all its antennas and slots, and
one estimate of them serves every snapshot. The same few complex exponentials continue into another band.
"""

from dataclasses import dataclass
from itertools import product

import torch
from einops import rearrange

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.radio.prediction import pooled
from airlam.radio.prediction.base import TrainingLinks
from airlam.radio.prediction.selection import BySnr, best_by_snr, fractional_orders
from airlam.radio.prediction.wiener import signal_share
from airlam.radio.transforms import from_angle, to_angle

MIN_SUBCARRIERS = 4
NUMERICAL_FLOOR = 3e-8  # of the largest eigenvalue: above the rounding noise of half-precision recordings


def can_tell_delays(setting: PredictionSetting) -> bool:
    """Whether the history has subcarriers enough for subbands."""
    return len(setting.history_frequencies_hz) >= MIN_SUBCARRIERS


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayEsprit:
    r"""Delays by ESPRIT, amplitudes by LMMSE, their future by least squares, then any band's channel.

    1. Covariance over subbands (``subband`` of the history's subcarriers), all slots and antennas as
       snapshots, forward-backward; the signal space holds the eigenvalues above (1 + ``margin``) noise.
    2. Its shift invariance gives the delays (Roy and Kailath, IEEE Trans. ASSP 1989).
    3. Path powers by expectation maximisation; amplitudes c_q(t, antenna) as their conditional mean, and
       each path's beams scaled by their estimated share of signal.
    4. For each delay one ridge least-squares filter of ``order`` per step, shared by the beams. The drop's
       pooled equations join in with weight ``pooling``: two delays found too close have large amplitudes
       that cancel, which filters of their own would undo.
    5. The channel at subcarrier k of the target is sum_q c_q exp(i k w_q), w_q the path's phase step.
    """

    setting: PredictionSetting
    order: int
    ridge: float
    margin: float = 0.5
    subband: float = 0.8
    pooling: float = 0.3
    num_power_updates: int = 4
    name: str = "delay_esprit"

    def __post_init__(self) -> None:
        pooled.check_order(self.order, self.setting.num_history)
        if not can_tell_delays(self.setting):
            raise SpecError(
                f"{len(self.setting.history_frequencies_hz)} history subcarriers are too few to tell delays "
                f"apart; use at least {MIN_SUBCARRIERS}"
            )

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        x = rearrange(history, "b t u p f -> b (t u p) f").to(torch.complex128)
        spaces = self._signal_spaces(x, noise_variance.to(torch.float64))
        futures = [
            self._predict_drop(drop, float(noise), space, history.shape[2:4])
            for drop, noise, space in zip(x, noise_variance, spaces, strict=True)
        ]
        return torch.stack(futures).to(history.dtype)  # [b, horizon, u, p, f]

    def _signal_spaces(self, x: torch.Tensor, noise_variance: torch.Tensor) -> list[torch.Tensor]:
        """Basis of each drop's delays in a subband: complex128 [size, num_delays], one a drop."""
        num_subcarriers = x.shape[-1]
        size = min(max(3, round(self.subband * num_subcarriers)), num_subcarriers - 1)  # >= 1 delay
        subbands = x.unfold(-1, size, 1)  # [b, snapshots, positions, size]
        subbands = rearrange(subbands, "b n j l -> b l (n j)")
        covariance = pooled.forward_backward(subbands @ subbands.mH)  # [b, size, size]
        values, vectors = torch.linalg.eigh(covariance)
        floor = (1 + self.margin) * noise_variance * subbands.shape[-1]  # [b]
        floor = torch.maximum(floor, NUMERICAL_FLOOR * values[:, -1])
        num_delays = (values > floor[:, None]).sum(dim=1).clamp(1, size - 1)  # [b]
        return [basis[:, -int(q) :] for basis, q in zip(vectors, num_delays, strict=True)]

    def _predict_drop(
        self, x: torch.Tensor, noise_variance: float, space: torch.Tensor, antennas: torch.Size
    ) -> torch.Tensor:
        """complex128 [t u p, f] of one drop to [horizon, u, p, target f]."""
        rotation = torch.linalg.lstsq(space[:-1], space[1:]).solution  # [num_delays, num_delays]
        phase_step = torch.linalg.eigvals(rotation).angle()  # [num_delays], a subcarrier
        past, future = (self._responses(f, phase_step) for f in self._positions(x.device))
        to_amplitude = _amplitude_filter(x, past, noise_variance, self.num_power_updates)  # [num_delays, f]
        noise = noise_variance * to_amplitude.abs().square().sum(dim=1)  # [num_delays]
        paths = rearrange(to_amplitude @ x.mT, "q (t a) -> t a q", t=self.setting.num_history)
        paths = paths.reshape(len(paths), *antennas, -1)  # [t, u, p, num_delays]
        ahead = self._predict_paths(paths, noise)  # [horizon, u, p, num_delays]
        return torch.einsum("fq,tupq->tupf", future, ahead)

    def _predict_paths(self, paths: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """complex128 [t, u, p, num_delays] to [horizon, u, p, num_delays].

        noise: float64 [num_delays], noise variance of the amplitudes.
        """
        beams = to_angle(paths, self.setting.base_station)  # [t, u, beams, num_delays]
        beams = beams * signal_share(beams.abs().square().mean(dim=0), noise)
        x = rearrange(beams, "t u p q -> q t (u p)")
        gram = pooled.forward_backward(pooled.temporal_gram(x))  # [num_delays, t, t]
        energy = gram.diagonal(dim1=-2, dim2=-1).real.sum(-1)[:, None, None]  # [num_delays, 1, 1]
        shared = gram.sum(0) / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)  # [t, t]
        gram = gram + self.pooling * energy * shared
        weights = pooled.direct_weights(gram, self.order, self.ridge, self.setting.num_horizon)
        ahead = rearrange(pooled.apply(weights, x), "q t (u p) -> t u p q", u=paths.shape[1])
        return from_angle(ahead, self.setting.base_station)

    def _positions(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """History and target frequencies in subcarriers from the history's middle."""
        history = torch.tensor(self.setting.history_frequencies_hz, dtype=torch.float64, device=device)
        target = torch.tensor(self.setting.target_frequencies_hz, dtype=torch.float64, device=device)
        spacing, middle = history[1] - history[0], history.mean()
        return (history - middle) / spacing, (target - middle) / spacing

    @staticmethod
    def _responses(position: torch.Tensor, phase_step: torch.Tensor) -> torch.Tensor:
        """exp(i position phase_step): complex128 [num_positions, num_delays]."""
        angle = position[:, None] * phase_step
        return torch.polar(torch.ones_like(angle), angle)


def _amplitude_filter(
    x: torch.Tensor, responses: torch.Tensor, noise_variance: float, num_updates: int
) -> torch.Tensor:
    """LMMSE filter from subcarriers to path amplitudes, path powers by expectation maximisation.

    x: complex128 [num_snapshots, f]; responses: complex128 [f, num_delays]. Returns [num_delays, f].
    """
    num_subcarriers, num_delays = responses.shape
    sample = x.mT @ x.conj() / len(x)  # [f, f]
    mean_power = float(sample.diagonal().real.mean())
    noise = max(noise_variance, 1e-6 * mean_power, torch.finfo(torch.float64).tiny)
    power = torch.full((num_delays,), mean_power / num_delays, dtype=torch.float64, device=x.device)
    eye = torch.eye(num_subcarriers, dtype=x.dtype, device=x.device)
    for _ in range(num_updates):
        filter_ = _lmmse(responses, power, noise * eye)
        explained = (filter_ @ sample @ filter_.mH).diagonal().real  # [num_delays]
        unexplained = power - (filter_ @ (responses * power)).diagonal().real  # [num_delays]
        power = (explained + unexplained).clamp_min(0.0)
    return _lmmse(responses, power, noise * eye)


def _lmmse(responses: torch.Tensor, power: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """P A^H (A P A^H + noise)^{-1}: complex [num_delays, f]."""
    scaled = responses * power  # [f, num_delays]
    solved: torch.Tensor = torch.linalg.solve(scaled @ responses.mH + noise, scaled)  # [f, num_delays]
    return solved.mH


def delay_esprit(setting: PredictionSetting, training: TrainingLinks) -> BySnr:
    """Tunes order, margin over the noise, subband and pooling for each SNR."""
    orders = fractional_orders(setting, 8, 12)
    candidates = [
        DelayEsprit(setting=setting, order=order, ridge=1e-4, margin=margin, subband=subband, pooling=pooling)
        for order, margin, subband, pooling in product(orders, (0.1, 0.5), (0.7, 0.85), (0.05, 0.5))
    ]
    return BySnr(name="delay_esprit", predictors=best_by_snr(candidates, training))
