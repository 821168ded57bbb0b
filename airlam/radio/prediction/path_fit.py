"""Fits positions and Doppler spectra of a link's paths to the marginal likelihood, both at once.

``airlam.radio.prediction.path_eb`` says what is fitted and why.
"""

import dataclasses
from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.radio.paths import DopplerBasis, PathGrid
from airlam.radio.prediction.path_posterior import PathModes, spectrum_scores

UPDATE_POWER = 0.75  # of the ratio in the multiplicative update; 1 is faster at first and unsteady at 30 dB
COARSENESS = 3.0  # in the first half of the iterations, whose spectra are rough
FIRST_STEP, LONGEST_STEP = 1.6, 2.5  # over-relaxed: four iterations do what eight of step 1 do
STEP_GROWTH, STEP_CUT = 1.3, 0.4  # after an iteration that raised the likelihood, and after one that did not
START_POWER = 3.0  # of the matched-filter spectrum in the starting spectrum
RIDGE = 1e-2  # on unit-norm atoms, for the starting coefficients only


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Histories in compressed time, and the model that they are fitted with.

    field: complex64 [batch, points, snapshots * rank]; noise_variance: float32 [batch]; mask: bool [batch,
    paths].
    """

    field: torch.Tensor
    noise_variance: torch.Tensor
    mask: torch.Tensor
    grid: PathGrid
    basis: DopplerBasis

    @property
    def spread(self) -> torch.Tensor:
        """Prior power of a path's atoms: float32 [batch, paths, 4]."""
        return self.grid.spread.to(self.field.device).expand(*self.mask.shape, -1)

    @property
    def energy(self) -> torch.Tensor:
        """|y|^2: float32 [batch]."""
        return torch.view_as_real(self.field).square().sum((1, 2, 3))

    def taken(self, links: torch.Tensor) -> "Measurement":
        """The same of some links, int64 [links]."""
        return dataclasses.replace(
            self, field=self.field[links], noise_variance=self.noise_variance[links], mask=self.mask[links]
        )

    def project(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The atoms' Gram matrix and A^H y: shapes as in ``PathState``."""
        waves = self.grid.history_waves(position)
        projected = waves.project(self.field)
        return waves.gram(), rearrange(projected, "b n a (s r) -> b n a s r", r=self.basis.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathState:
    """Paths and spectra, how likely they are, and where the likelihood would have them go.

    log_likelihood: float32 [batch]. position, move: float64 [batch, paths, 3]. gram: complex64 [batch,
    paths * 4, paths * 4]; projected: complex64 [batch, paths, 4, snapshots, rank], A^H y. log_spectrum,
    log_ratio: float32 [batch, paths, doppler], log gamma, and log of what the data put on it over what the
    model expects. log_spread_ratio: float32 [batch, paths, 4], the same of each atom, all Doppler together,
    zero for atoms without a spread.
    """

    log_likelihood: torch.Tensor
    position: torch.Tensor
    move: torch.Tensor
    gram: torch.Tensor
    projected: torch.Tensor
    log_spectrum: torch.Tensor
    log_ratio: torch.Tensor
    log_spread_ratio: torch.Tensor

    def where(self, chosen: torch.Tensor, other: "PathState") -> "PathState":
        """This state for links where ``chosen`` (bool [batch]), the other elsewhere."""
        parts = {}
        for field in dataclasses.fields(self):
            mine = getattr(self, field.name)
            picked = chosen.view(-1, *[1] * (mine.dim() - 1))
            parts[field.name] = torch.where(picked, mine, getattr(other, field.name))
        return PathState(**parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Least-squares coefficients of the points, and the spectra that they suggest.

    variance: float32 [batch, paths], noise of a coefficient. log_matched, log_spectrum: float32 [batch,
    paths, doppler], the matched-filter spectrum over noise and log gamma.
    """

    variance: torch.Tensor
    log_matched: torch.Tensor
    log_spectrum: torch.Tensor


def start(measurement: Measurement, gram: torch.Tensor, projected: torch.Tensor) -> Start:
    """The power of each path's ridge estimate, spread over Doppler as its matched-filter spectrum^3."""
    basis = measurement.basis
    points = gram[:, ::4, ::4]  # [batch, paths, paths]
    ridge = RIDGE * torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    lower = torch.linalg.cholesky(points + ridge)
    seen = projected[:, :, 0]  # [batch, paths, snapshots, rank]
    coefficients = torch.cholesky_solve(seen.flatten(2), lower).view_as(seen)
    gain = torch.cholesky_inverse(lower).diagonal(dim1=1, dim2=2).real  # [batch, paths]
    variance = gain * measurement.noise_variance.unsqueeze(1)
    energy = coefficients.abs().square().mean(2).sum(-1)  # [batch, paths]
    power = (energy - basis.rank * variance).clamp_min(0) / basis.num_history + 0.02 * variance
    atoms = basis.atoms.to(seen)
    matched = (coefficients @ atoms.conj()).abs().square().mean(2)  # [batch, paths, doppler]
    log_matched = torch.log(matched / (variance.unsqueeze(-1) * atoms.abs().square().sum(0)) + 0.5)
    log_spectrum = power.unsqueeze(-1).log() + (START_POWER * log_matched).log_softmax(-1)
    return Start(variance=variance, log_matched=log_matched, log_spectrum=log_spectrum)


def evaluate(
    measurement: Measurement,
    position: torch.Tensor,
    log_spectrum: torch.Tensor,
    *,
    exact: bool,
    coarseness: float = 1.0,
) -> PathState:
    """The state at these positions and spectra; exact, coarseness: of ``PathModes.information``, ``of``."""
    gram, projected = measurement.project(position)
    spectrum = log_spectrum.exp() * measurement.mask.unsqueeze(-1)
    spread = measurement.spread
    modes = PathModes.of(
        gram, spectrum, spread, measurement.noise_variance, measurement.basis, coarseness=coarseness
    )
    means = modes.solve(projected)
    scores = spectrum_scores(modes, gram, projected, means, measurement.basis, exact=exact)
    found, expected = (spread.unsqueeze(-1) * s for s in (scores.found, scores.expected))
    by_atom = spectrum.unsqueeze(2)  # [batch, paths, 1, doppler]
    return PathState(
        log_likelihood=modes.log_likelihood(projected, means, measurement.energy),
        position=position,
        move=measurement.grid.offsets(modes.coefficients(means).flatten(3)),
        gram=gram,
        projected=projected,
        log_spectrum=log_spectrum,
        log_ratio=_log_ratio(found.sum(2), expected.sum(2)),
        log_spread_ratio=_log_ratio((by_atom * scores.found).sum(-1), (by_atom * scores.expected).sum(-1))
        * (spread > 0),
    )


def fit(
    measurement: Measurement,
    position: torch.Tensor,
    log_spectrum: torch.Tensor,
    num_iterations: int,
    num_exact: int,
) -> PathState:
    """Climbs for ``num_iterations`` evaluations, the first half coarse, the last ``num_exact`` exact.

    A link that an iteration did not improve goes back to its best state and on with a shorter step; what a
    finer iteration explains on top counts for it. The state returned is the best, its spectra one update
    further.
    """
    num_coarse = num_iterations // 2
    best = evaluate(
        measurement,
        position,
        log_spectrum,
        exact=num_exact >= num_iterations,
        coarseness=COARSENESS if num_coarse else 1.0,
    )
    step = torch.full_like(best.log_likelihood, FIRST_STEP)
    for index in range(1, num_iterations):
        stretch = step.view(-1, 1, 1)
        state = evaluate(
            measurement,
            measurement.grid.moved(best.position, best.move * stretch),
            best.log_spectrum + UPDATE_POWER * stretch * best.log_ratio,
            exact=index >= num_iterations - num_exact,
            coarseness=COARSENESS if index < num_coarse else 1.0,
        )
        better = state.log_likelihood > best.log_likelihood
        best = state.where(better, best)
        step = torch.where(better, (step * STEP_GROWTH).clamp_max(LONGEST_STEP), step * STEP_CUT)
    log_spectrum = best.log_spectrum + UPDATE_POWER * step.view(-1, 1, 1) * best.log_ratio
    return dataclasses.replace(best, log_spectrum=log_spectrum)


def _log_ratio(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return torch.log((found + 1e-12) / expected.clamp_min(1e-12)).clamp(-12, 6)
