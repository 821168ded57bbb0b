r"""Path-EB: greedy paths, an empirical-Bayes Doppler spectrum for each, and the linear MMSE prediction.

The history in compressed time is Y = A X + W: atoms A of the paths (``airlam.radio.paths``), coefficients X
of each path, drawn for every polarisation and user antenna from a zero-mean Gaussian whose covariance
B_n = D diag(gamma_n) D^H mixes the Doppler dictionary D. The spectra gamma are found by maximising the
marginal likelihood with a multiplicative update (a tempered form of the fixed point of Tipping, Sparse
Bayesian learning, 2001); the future is then the conditional mean. What the paths leave is predicted bin by
bin in the delay-angle domain in the same way. The tempering, the starting spectra and the iteration counts
are reconstructions, chosen on training drops.
"""

from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.errors import DataError
from airlam.radio.channel import PredictionSetting
from airlam.radio.path_search import extract_paths
from airlam.radio.paths import PathGrid, doppler_basis
from airlam.radio.prediction.path_residual import predict_residual
from airlam.radio.prediction.path_spectra import (
    covariance_cholesky,
    dictionary_adjoint,
    likelihood_log_ratio,
    path_information,
    solve_covariance,
    starting_spectra,
)

DEFAULT_NUM_PATHS = 32
NUM_ITERATIONS = 4  # three lose 1 % at 10 dB and 4 % at 30 dB
UPDATE_POWER = 0.75  # of the ratio in the multiplicative update; 1 overshoots where paths overlap
CHUNK = 32  # links at a time: enough to fill the matrix products, small enough for the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class PathAnalysis:
    """What Path-EB knows of a batch of links; powers are relative to ``scale`` squared.

    scale: float32 [batch], amplitude that the history was divided by; noise_variance: float32 [batch], after.
    position: float32 [batch, paths, 3]; mask: bool [batch, paths]; factor: complex64 [batch, paths, paths],
    R of A = Q R; observation: complex64 [batch, snapshots, paths, rank], Q^H Y.
    coefficients: complex64 [batch, snapshots, paths, rank], ridge estimate of X; coefficient_variance:
    float32 [batch, paths], its noise. log_matched, log_spectrum, log_ratio: float32 [batch, paths, doppler],
    the matched-filter spectrum over noise, log gamma, and the last update's log ratio.
    residual_future: complex64 [batch, points, snapshots, horizon], prediction outside the paths' span (TDD),
    or zeros on the target's points (FDD).
    """

    scale: torch.Tensor
    noise_variance: torch.Tensor
    position: torch.Tensor
    mask: torch.Tensor
    factor: torch.Tensor
    observation: torch.Tensor
    coefficients: torch.Tensor
    coefficient_variance: torch.Tensor
    log_matched: torch.Tensor
    log_spectrum: torch.Tensor
    log_ratio: torch.Tensor
    residual_future: torch.Tensor

    @property
    def spectrum(self) -> torch.Tensor:
        """gamma, zero for dropped paths: float32 [batch, paths, doppler]."""
        return self.log_spectrum.exp() * self.mask.unsqueeze(-1)


class PathEb:
    """The strongest classical predictor of the suite; see the module."""

    name = "path_eb"

    def __init__(
        self,
        setting: PredictionSetting,
        num_paths: int = DEFAULT_NUM_PATHS,
        num_iterations: int = NUM_ITERATIONS,
    ) -> None:
        self.setting = setting
        self.grid = PathGrid.of(setting)
        self.basis = doppler_basis(setting)
        self.num_paths = min(num_paths, self.grid.num_points)
        self.num_iterations = num_iterations

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """The conditional mean of the future; shapes as in ``Predictor.predict``."""
        chunks = zip(torch.split(history, CHUNK), torch.split(noise_variance, CHUNK), strict=True)
        return torch.cat([self._predict_chunk(h, n) for h, n in chunks])

    def _predict_chunk(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        analysis = self.analyse(history, noise_variance)
        return self.synthesise(self.future_coefficients(analysis), analysis)

    def analyse(self, history: torch.Tensor, noise_variance: torch.Tensor) -> PathAnalysis:
        """Paths, spectra and residual prediction of a batch of histories; shapes as in ``predict``."""
        history, noise_variance, scale = normalise(history, noise_variance)
        snapshots = self.compress(history)  # [batch, points, snapshots, rank]
        paths = extract_paths(snapshots.flatten(2), self.grid, self.num_paths)
        inside = paths.basis.mH @ snapshots.flatten(2)  # [batch, paths, snapshots * rank]
        outside = (snapshots.flatten(2) - paths.basis @ inside).view_as(snapshots)
        observation = rearrange(inside, "b n (s r) -> b s n r", r=self.basis.rank).contiguous()
        start = starting_spectra(paths.factor, observation, noise_variance, self.basis)
        log_spectrum, log_ratio = start.log_spectrum, torch.zeros_like(start.log_spectrum)
        for _ in range(self.num_iterations):
            spectrum = log_spectrum.exp() * paths.mask.unsqueeze(-1)
            log_ratio = likelihood_log_ratio(paths.factor, spectrum, observation, noise_variance, self.basis)
            log_spectrum = log_spectrum + UPDATE_POWER * log_ratio
        return PathAnalysis(
            scale=scale,
            noise_variance=noise_variance,
            position=paths.position,
            mask=paths.mask,
            factor=paths.factor,
            observation=observation,
            coefficients=start.coefficients,
            coefficient_variance=start.variance,
            log_matched=start.log_matched,
            log_spectrum=log_spectrum,
            log_ratio=log_ratio,
            residual_future=self._residual_future(outside, noise_variance),
        )

    def compress(self, history: torch.Tensor) -> torch.Tensor:
        """History in compressed time, complex64 [batch, points, snapshots, rank]."""
        compression = self.basis.compression.to(history.device)
        return self.grid.snapshots(torch.einsum("btuaf,tr->bruaf", history, compression.conj()))

    def _residual_future(self, outside: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """Bins of one band say nothing about another: zeros for FDD."""
        if self.setting.is_fdd:
            batch, _, num_snapshots, _ = outside.shape
            return outside.new_zeros(
                batch, self.grid.num_target_points, num_snapshots, self.setting.num_horizon
            )
        return predict_residual(outside, noise_variance, self.grid.shape, self.basis)

    def future_coefficients(self, analysis: PathAnalysis) -> torch.Tensor:
        """Posterior mean of each path's coefficient: complex64 [batch, snapshots, paths, horizon]."""
        spectrum = analysis.spectrum
        lower = covariance_cholesky(analysis.factor, spectrum, analysis.noise_variance, self.basis)
        weights = dictionary_adjoint(
            analysis.factor, solve_covariance(lower, analysis.observation), self.basis
        )  # [batch, snapshots, paths, doppler]
        future_atoms = self.basis.future_atoms.to(weights.device)
        return (spectrum.unsqueeze(1) * weights) @ future_atoms.mT  # [batch, snapshots, paths, horizon]

    def future_variance(self, analysis: PathAnalysis) -> torch.Tensor:
        """Posterior variance of each path's coefficient: float32 [batch, paths, horizon].

        Under the fitted spectra, diag(F G F^H - F G (A^H C^-1 A) G F^H) with G = diag(gamma), F the future
        atoms and A the path's dictionary; in double precision, because the terms cancel.
        """
        spectrum = analysis.spectrum.double()
        information = path_information(
            analysis.factor.to(torch.complex128),
            spectrum,
            analysis.observation.to(torch.complex128),
            analysis.noise_variance.double(),
            self.basis,
        ).covariance  # [batch, paths, rank, rank]
        atoms = self.basis.atoms.to(information)
        future = self.basis.future_atoms.to(information)
        cross = (spectrum.unsqueeze(2) * future) @ atoms.mH  # [batch, paths, horizon, rank]
        prior = (spectrum.unsqueeze(2) * future.abs().square()).sum(-1)  # [batch, paths, horizon]
        explained = ((cross @ information) * cross.conj()).real.sum(-1)
        return (prior - explained).clamp_min(0).float()

    def synthesise(self, coefficients: torch.Tensor, analysis: PathAnalysis) -> torch.Tensor:
        """The future from path coefficients [batch, snapshots, paths, horizon]; shapes as in ``predict``."""
        return synthesise(
            coefficients, analysis.position, analysis.residual_future, analysis.scale, self.grid
        )


def synthesise(
    coefficients: torch.Tensor,
    position: torch.Tensor,
    residual_future: torch.Tensor,
    scale: torch.Tensor,
    grid: PathGrid,
) -> torch.Tensor:
    """Sum of paths on the target's subcarriers plus the residual's prediction, at the link's own scale."""
    flat = rearrange(coefficients, "b s n h -> b n (s h)")
    future = (grid.target_atoms(position) @ flat).view_as(residual_future) + residual_future
    return grid.links(future * scale[:, None, None, None])


def normalise(
    history: torch.Tensor, noise_variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """History at unit signal power, its noise variance, and the amplitude taken out, float32 [batch].

    The signal's power is the history's less the noise's, at least a twentieth of the history's. The noise is
    at least 1e-7, about what single precision adds by itself. NaN or infinity raises DataError.
    """
    power = history.abs().square().mean((1, 2, 3, 4))  # [batch]
    if not torch.isfinite(power).all():
        bad = int((~torch.isfinite(power)).nonzero()[0])
        raise DataError(f"history of link {bad} holds NaN or infinity; drop that link or generate it anew")
    signal = torch.maximum(power - noise_variance, power / 20)
    scale = torch.where(signal > 0, signal, 1).sqrt()
    relative_noise = (noise_variance / scale.square()).clamp_min(1e-7)
    return history / scale[:, None, None, None, None], relative_noise, scale
