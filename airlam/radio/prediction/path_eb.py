r"""Path-EB: paths with a spread, an empirical-Bayes Doppler spectrum for each, and the conditional mean.

The history is a sum of paths (``airlam.radio.paths``) whose coefficients are zero-mean Gaussian processes,
independent from snapshot to snapshot; a path's Doppler spectrum gamma is its own, its spread in delay and
angle the same for all (``PathGrid.spread``). Two steps alternate:

- the spectra climb the marginal likelihood by a multiplicative update, a tempered form of the fixed point of
  Tipping (Sparse Bayesian learning, 2001);
- every path moves to where its derivative atoms say that it lies: to first order a path that is off by e
  has derivative coefficients 2j pi e times the point's.

A link whose likelihood falls goes back to its best state and takes a shorter step. The future is then the
conditional mean, with the variance that goes with it. The spread, the tempering, the starting spectra and
the iteration counts are reconstructions, chosen on training drops.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from einops import rearrange

from airlam.errors import DataError
from airlam.radio.channel import PredictionSetting
from airlam.radio.inference import without_autograd
from airlam.radio.parallel import on_all_cores
from airlam.radio.path_search import find_paths
from airlam.radio.paths import NUM_ATOMS, PathGrid, PathWaves, doppler_basis
from airlam.radio.prediction import path_fit
from airlam.radio.prediction.path_posterior import PathModes, links_of_like_noise

DEFAULT_NUM_PATHS = 32  # what 24 leave out at 30 dB doubles the mean error
NUM_ITERATIONS = 5
SEARCH_GROUP = 32  # links at a time; whose matrices are all of one size
MODEL_ERROR = (
    7e-4  # of the signal's power; less lets single links fail from 30 dB on, more costs without noise
)


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathAnalysis:
    """What Path-EB knows of a batch of links; powers are relative to ``scale`` squared.

    scale: float32 [batch], amplitude that the history was divided by; noise_variance: float32 [batch], after.
    position: float64 [batch, paths, 3]; mask: bool [batch, paths], false for paths that were not there.
    gram: complex64 [batch, paths * 4, paths * 4]; projected: complex64 [batch, paths, 4, snapshots, rank].
    spread: float32 [batch, paths, 4]. log_matched, log_spectrum, log_ratio: float32 [batch, paths, doppler],
    the matched-filter spectrum over noise, log gamma, and the last log ratio; log_spread_ratio: float32
    [batch, paths, 4]; coefficient_variance: float32 [batch, paths], noise of a least-squares fit.
    """

    scale: torch.Tensor
    noise_variance: torch.Tensor
    position: torch.Tensor
    mask: torch.Tensor
    gram: torch.Tensor
    projected: torch.Tensor
    spread: torch.Tensor
    log_matched: torch.Tensor
    log_spectrum: torch.Tensor
    log_ratio: torch.Tensor
    log_spread_ratio: torch.Tensor
    coefficient_variance: torch.Tensor

    @property
    def spectrum(self) -> torch.Tensor:
        """gamma, zero for paths that are not there: float32 [batch, paths, doppler]."""
        return self.log_spectrum.exp() * self.mask.unsqueeze(-1)


class PathEb:
    """The strongest classical predictor of the suite; see the module."""

    name = "path_eb"

    def __init__(
        self,
        setting: PredictionSetting,
        num_paths: int = DEFAULT_NUM_PATHS,
        num_iterations: int = NUM_ITERATIONS,
        num_exact: int = NUM_ITERATIONS,
    ) -> None:
        """num_exact: of the last iterations, those that count what other paths explain; the others are
        faster and err where paths overlap.
        """
        self.setting = setting
        self.grid = PathGrid.of(setting)
        self.basis = doppler_basis(setting)
        self.num_paths = min(num_paths, self.grid.num_points)
        self.num_iterations = num_iterations
        self.num_exact = num_exact

    @without_autograd
    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """The conditional mean of the future; shapes as in ``Predictor.predict``."""
        back, means = self._by_group(self.mean, history, noise_variance)
        return torch.cat(means)[back]

    def predict_with_variance(
        self, history: torch.Tensor, noise_variance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The future and the variance of each of its coefficients under the fitted model.

        Both of shape [batch, num_horizon, num_user_ant, num_bs_ant, num_target_subcarriers], complex64 and
        float32. Positions and spectra count as known, so the variance is too small where few slots decide.
        """
        back, parts = self._by_group(lambda a: (self.mean(a), self.variance(a)), history, noise_variance)
        means, variances = zip(*parts, strict=True)
        return torch.cat(means)[back], torch.cat(variances)[back]

    def analyse(self, history: torch.Tensor, noise_variance: torch.Tensor) -> PathAnalysis:
        """Paths and spectra of a batch of histories; shapes as in ``predict``."""
        back, parts = self._by_group(lambda analysis: analysis, history, noise_variance)
        joined = {
            field.name: torch.cat([getattr(part, field.name) for part in parts])[back]
            for field in fields(PathAnalysis)
        }
        return PathAnalysis(**joined)

    def _by_group(
        self, use: Callable[[PathAnalysis], Result], history: torch.Tensor, noise_variance: torch.Tensor
    ) -> tuple[torch.Tensor, list[Result]]:
        """What ``use`` makes of each group's analysis, and the order that undoes the grouping."""
        history, noise_variance, scale = normalise(history, noise_variance)

        def analysed(group: torch.Tensor) -> list[tuple[torch.Tensor, Result]]:
            measurement, position = self._search(history[group], noise_variance[group])
            return [
                (group[few], use(self._fit(measurement.taken(few), position[few], scale[group[few]])))
                for few in links_of_like_noise(measurement.noise_variance)
            ]

        groups = torch.split(noise_variance.argsort(stable=True), SEARCH_GROUP)
        parts = [part for group in on_all_cores(analysed, groups) for part in group]
        return torch.cat([links for links, _ in parts]).argsort(), [result for _, result in parts]

    def _search(
        self, history: torch.Tensor, noise_variance: torch.Tensor
    ) -> tuple[path_fit.Measurement, torch.Tensor]:
        """What is to be fitted, and positions, float64 [batch, paths, 3]; takes what ``normalise`` gives."""
        field = self.compress(history).flatten(2)  # [batch, points, snapshots * rank]
        found = find_paths(field, self.grid, self.num_paths, noise_variance)
        measurement = path_fit.Measurement(
            field=field, noise_variance=noise_variance, mask=found.mask, grid=self.grid, basis=self.basis
        )
        return measurement, found.position.double()

    def _fit(
        self, measurement: path_fit.Measurement, position: torch.Tensor, scale: torch.Tensor
    ) -> PathAnalysis:
        start = path_fit.start(measurement, *measurement.project(position))
        state = path_fit.fit(measurement, position, start.log_spectrum, self.num_iterations, self.num_exact)
        return PathAnalysis(
            scale=scale,
            noise_variance=measurement.noise_variance,
            position=state.position,
            mask=measurement.mask,
            gram=state.gram,
            projected=state.projected,
            spread=measurement.spread,
            log_matched=start.log_matched,
            log_spectrum=state.log_spectrum,
            log_ratio=state.log_ratio,
            log_spread_ratio=state.log_spread_ratio,
            coefficient_variance=start.variance,
        )

    def compress(self, history: torch.Tensor) -> torch.Tensor:
        """History in compressed time, complex64 [batch, points, snapshots, rank]."""
        compression = self.basis.compression.to(history.device)
        return self.grid.snapshots(torch.einsum("btuaf,tr->bruaf", history, compression.conj()))

    def modes(self, analysis: PathAnalysis) -> PathModes:
        """The posterior under the fitted spectra."""
        return PathModes.of(
            analysis.gram, analysis.spectrum, analysis.spread, analysis.noise_variance, self.basis
        )

    def mean(self, analysis: PathAnalysis) -> torch.Tensor:
        """The conditional mean of the future; shapes as in ``predict``."""
        modes = self.modes(analysis)
        weights = modes.weights(modes.solve(analysis.projected))  # [batch, paths, 4, snapshots, rank]
        coefficients = future_coefficients(
            weights, analysis.spectrum, analysis.spread, self.basis.atoms, self.basis.future_atoms
        )
        return synthesise(coefficients, analysis.position, analysis.scale, self.grid)

    def variance(self, analysis: PathAnalysis) -> torch.Tensor:
        """Variance of every future coefficient, float32, of the prediction's shape.

        A coefficient is sum_na a_na z_na over the target's atoms. Given the history's coefficients x_na, z_na
        has mean b^H B^+ x_na and variance rho_na (gamma sum - b^H B^+ b), with b the covariance of x and z;
        the posterior covariance of the modes adds what the history leaves open of x.
        """
        modes = self.modes(analysis)
        waves = self.grid.target_waves(analysis.position)
        atoms = _written_out(waves)  # [batch, points, paths * 4]
        ahead = self._ahead(analysis, modes)  # [batch, horizon, paths * 4 * rank], of every eigenvector
        power = (
            analysis.spread.unsqueeze(-1) * analysis.spectrum.sum(-1, keepdim=True).unsqueeze(2)
        ).flatten(1)
        by_atom = rearrange(ahead.abs().square(), "b h (a r) -> b h a r", r=self.basis.rank)
        explained = by_atom.sum(-1)  # [batch, horizon, paths * 4]
        innovation = (power.unsqueeze(1) - explained).clamp_min(0)
        variance = atoms.abs().square() @ innovation.mT  # [batch, points, horizon]
        rows = torch.arange(len(atoms), device=atoms.device).unsqueeze(1)
        by_mode = atoms.mT[rows, modes.atom].mT  # [batch, points, modes]
        for step in range(ahead.shape[1]):
            loading = by_mode * ahead[:, step].gather(1, modes.index).unsqueeze(1)
            left = torch.linalg.solve_triangular(modes.lower, loading.mH, upper=False)
            variance[:, :, step] += torch.view_as_real(left).square().sum((1, 3))
        num_snapshots = analysis.projected.shape[3]
        snapshots = variance.unsqueeze(2).expand(-1, -1, num_snapshots, -1)
        return self.grid.links(snapshots * analysis.scale.square()[:, None, None, None])

    def _ahead(self, analysis: PathAnalysis, modes: PathModes) -> torch.Tensor:
        """What a whitened eigenvector adds to its atom's future: complex [batch, horizon, paths * 4 * rank].

        sqrt(rho) b^H u / sqrt(w), of kept modes; zero for others.
        """
        basis = self.basis
        cross = (analysis.spectrum.unsqueeze(2) * basis.future_atoms.to(analysis.gram)) @ (
            basis.atoms.to(analysis.gram).mH @ modes.vectors
        )  # [batch, paths, horizon, rank]
        scale = torch.where(
            modes.kept, analysis.spread.unsqueeze(-1) / modes.power.clamp_min(1e-30).sqrt(), 0
        )
        loading = cross.unsqueeze(2) * scale.unsqueeze(3)  # [batch, paths, 4, horizon, rank]
        return rearrange(loading, "b n a h r -> b h (n a r)")


def future_coefficients(
    weights: torch.Tensor,
    spectrum: torch.Tensor,
    spread: torch.Tensor,
    atoms: torch.Tensor,
    future_atoms: torch.Tensor,
) -> torch.Tensor:
    """Conditional mean of the paths' coefficients: complex [batch, paths, 4, snapshots, horizon].

    weights: complex [batch, paths, 4, snapshots, rank], A^H C^-1 y; spectrum: real [batch, paths, doppler];
    spread: real [batch, paths, 4]; atoms, future_atoms: of ``DopplerBasis``.
    """
    prior = spread.unsqueeze(-1) * spectrum.unsqueeze(2)  # [batch, paths, 4, doppler]
    seen = weights @ atoms.to(weights).conj()  # [batch, paths, 4, snapshots, doppler]
    return (prior.unsqueeze(3) * seen) @ future_atoms.to(weights).mT


def synthesise(
    coefficients: torch.Tensor, position: torch.Tensor, scale: torch.Tensor, grid: PathGrid
) -> torch.Tensor:
    """Sum of paths on the target's subcarriers, at the link's own scale; coefficients as above."""
    future = grid.target_waves(position).synthesise(coefficients.flatten(3))
    field = rearrange(future, "b p (s h) -> b p s h", s=coefficients.shape[3])
    return grid.links(field * scale[:, None, None, None])


def _written_out(waves: PathWaves) -> torch.Tensor:
    """All atoms as columns: complex64 [batch, points, paths * 4]."""
    batch, num_paths = waves.subcarriers.shape[:2]
    identity = torch.eye(num_paths * NUM_ATOMS, dtype=torch.complex64, device=waves.rows.device)
    return waves.synthesise(identity.view(1, num_paths, NUM_ATOMS, -1).expand(batch, -1, -1, -1))


def normalise(
    history: torch.Tensor, noise_variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """History at unit signal power, its noise variance, and the amplitude taken out, float32 [batch].

    The signal's power is the history's less the noise's, at least a twentieth of the history's. What paths do
    not explain counts as noise, ``MODEL_ERROR`` of the signal. NaN or infinity raises DataError.
    """
    power = history.abs().square().mean((1, 2, 3, 4))  # [batch]
    if not torch.isfinite(power).all():
        bad = int((~torch.isfinite(power)).nonzero()[0])
        raise DataError(f"history of link {bad} holds NaN or infinity; drop that link or generate it anew")
    signal = torch.maximum(power - noise_variance, power / 20)
    scale = torch.where(signal > 0, signal, 1).sqrt()
    relative_noise = noise_variance / scale.square() + MODEL_ERROR
    return history / scale[:, None, None, None, None], relative_noise, scale
