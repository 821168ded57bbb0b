"""The paths' posterior against dense Gaussian algebra, in double precision and with every mode kept."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import DopplerBasis, PathGrid, doppler_basis
from airlam.radio.prediction import path_posterior
from airlam.radio.prediction.path_posterior import PathModes, spectrum_scores
from airlam.specs import ArraySpec

BATCH, NUM_PATHS, NUM_SNAPSHOTS = 2, 3, 4
NUM_ATOMS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Some links in double precision: their atoms written out, priors, and a measurement.

    atoms: complex128 [batch, points, paths * 4]; field: complex128 [batch, points, snapshots, rank].
    """

    basis: DopplerBasis
    atoms: torch.Tensor
    spectrum: torch.Tensor
    spread: torch.Tensor
    noise: torch.Tensor
    field: torch.Tensor

    @property
    def gram(self) -> torch.Tensor:
        return self.atoms.mH @ self.atoms

    @property
    def projected(self) -> torch.Tensor:
        """A^H y: [batch, paths, 4, snapshots, rank]."""
        seen = self.atoms.mH @ self.field.flatten(2)
        return seen.view(len(seen), -1, NUM_ATOMS, *self.field.shape[2:])

    @property
    def energy(self) -> torch.Tensor:
        return self.field.abs().square().sum((1, 2, 3))

    def modes(self) -> PathModes:
        return PathModes.of(self.gram, self.spectrum, self.spread, self.noise, self.basis)

    def links(self, chosen: list[int]) -> "Problem":
        parts = {f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self) if f.name != "basis"}
        return Problem(basis=self.basis, **parts)


def problem(num_snapshots: int = NUM_SNAPSHOTS) -> Problem:
    """Paths at random positions, partly overlapping, seen in noise of about their own power."""
    generator = torch.Generator().manual_seed(0)
    frequencies = tuple(180e3 * index for index in range(4))
    setting = PredictionSetting(
        base_station=ArraySpec(num_rows=2, num_cols=3),
        num_user_antennas=1,
        history_frequencies_hz=frequencies,
        target_frequencies_hz=frequencies,
        slot_duration_s=0.5e-3,
        num_history=8,
        num_horizon=2,
        max_doppler_hz=200.0,
    )
    basis, grid = doppler_basis(setting), PathGrid.of(setting)
    waves = grid.history_waves(torch.rand(BATCH, NUM_PATHS, 3, generator=generator))
    identity = torch.eye(NUM_PATHS * NUM_ATOMS, dtype=torch.complex64).view(1, NUM_PATHS, NUM_ATOMS, -1)
    atoms = waves.synthesise(identity.expand(BATCH, -1, -1, -1)).to(torch.complex128)
    spread = torch.tensor([1.0, 0.3, 0.2, 0.1], dtype=torch.float64).expand(BATCH, NUM_PATHS, NUM_ATOMS)
    shape = (BATCH, grid.num_points, num_snapshots, basis.rank)
    return Problem(
        basis=basis,
        atoms=atoms,
        spectrum=torch.rand(BATCH, NUM_PATHS, basis.num_doppler, generator=generator).double() + 0.1,
        spread=spread,
        noise=torch.rand(BATCH, generator=generator).double() + 0.5,
        field=torch.randn(shape, dtype=torch.complex128, generator=generator),
    )


@pytest.fixture
def every_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_posterior, "MODE_FLOOR", 1e-15)


def dense_priors(case: Problem, link: int) -> torch.Tensor:
    """Covariance of each atom's coefficients over compressed time: [paths, 4, rank, rank]."""
    atoms = case.basis.atoms.to(torch.complex128)
    by_path = (case.spectrum[link].unsqueeze(1) * atoms) @ atoms.mH  # [paths, rank, rank]
    return case.spread[link][..., None, None] * by_path.unsqueeze(1)


def dense_covariance(case: Problem, link: int) -> torch.Tensor:
    """Covariance of one snapshot, (point, rank) by (point, rank), as the model says."""
    size = case.field.shape[1] * case.basis.rank
    covariance = case.noise[link] * torch.eye(size, dtype=torch.complex128)
    for index, prior in enumerate(dense_priors(case, link).flatten(0, 1)):
        atom = case.atoms[link][:, [index]]
        covariance = covariance + torch.kron(atom @ atom.mH, prior)
    return covariance


def dense_weights(case: Problem, link: int) -> torch.Tensor:
    """A^H C^-1 y: [paths * 4, snapshots, rank]."""
    columns = case.field[link].transpose(1, 2).flatten(0, 1)  # [points * rank, snapshots]
    solved = torch.linalg.solve(dense_covariance(case, link), columns)
    by_point = solved.view(-1, case.basis.rank, columns.shape[1])  # [points, rank, snapshots]
    return torch.einsum("pa,prs->asr", case.atoms[link].conj(), by_point)


@pytest.mark.usefixtures("every_mode")
def test_weights_and_coefficients_are_those_of_the_dense_posterior() -> None:
    case = problem()
    modes = case.modes()
    means = modes.solve(case.projected)
    for link in range(BATCH):
        weights = dense_weights(case, link).unflatten(0, (NUM_PATHS, NUM_ATOMS))
        coefficients = torch.einsum("narq,nasq->nasr", dense_priors(case, link), weights)
        assert torch.allclose(modes.weights(means)[link], weights, atol=1e-7)
        assert torch.allclose(modes.coefficients(means)[link], coefficients, atol=1e-9)


@pytest.mark.usefixtures("every_mode")
def test_factor_holds_the_posterior_covariance_of_the_modes() -> None:
    case = problem()
    modes = case.modes()
    covariance = torch.cholesky_inverse(modes.lower)  # [batch, modes, modes], whitened
    for link in range(BATCH):
        patterns = torch.stack(
            [
                torch.kron(case.atoms[link][:, int(atom)], vector * amplitude)
                for atom, vector, amplitude in zip(
                    modes.atom[link], modes.vector[link], modes.amplitude[link], strict=True
                )
            ],
            dim=1,
        )  # [points * rank, modes]
        explained = patterns.mH @ torch.linalg.solve(dense_covariance(case, link), patterns)
        assert torch.allclose(covariance[link], torch.eye(len(explained)) - explained, atol=1e-9)


@pytest.mark.usefixtures("every_mode")
@pytest.mark.parametrize("exact", [True, False])
def test_information_is_dense_and_of_one_path_alone_where_not_exact(exact: bool) -> None:
    case = problem()
    modes = case.modes()
    found = modes.information() if exact else torch.diag_embed(modes.information_alone())
    for link in range(BATCH):
        for path in range(NUM_PATHS):
            spectrum = case.spectrum.clone()
            if not exact:
                spectrum[:, [other for other in range(NUM_PATHS) if other != path]] = 0
            covariance = dense_covariance(dataclasses.replace(case, spectrum=spectrum), link)
            for atom in range(NUM_ATOMS):
                column = case.atoms[link][:, [path * NUM_ATOMS + atom]]
                seen = torch.kron(column, modes.vectors[link, path].contiguous())  # [points * rank, rank]
                expected = seen.mH @ torch.linalg.solve(covariance, seen)
                assert torch.allclose(found[link, path, atom].to(expected), expected, atol=1e-6)


@pytest.mark.usefixtures("every_mode")
def test_log_likelihood_differs_between_spectra_as_the_dense_one() -> None:
    def dense(case: Problem, link: int) -> torch.Tensor:
        columns = case.field[link].transpose(1, 2).flatten(0, 1)  # [points * rank, snapshots]
        covariance = dense_covariance(case, link)
        fit = (columns.conj() * torch.linalg.solve(covariance, columns)).real.sum()
        return -fit - columns.shape[1] * torch.linalg.slogdet(covariance)[1]

    def short(case: Problem) -> torch.Tensor:
        modes = case.modes()
        return modes.log_likelihood(case.projected, modes.solve(case.projected), case.energy)

    one = problem()
    other = dataclasses.replace(one, spectrum=one.spectrum.flip(2) * 0.3, spread=one.spread * 0.8)
    difference = short(one) - short(other)
    for link in range(BATCH):
        assert torch.allclose(difference[link], dense(one, link) - dense(other, link))


@pytest.mark.usefixtures("every_mode")
def test_scores_are_the_gradient_of_the_marginal_likelihood() -> None:
    case = problem()
    spectrum = case.spectrum.clone().requires_grad_()
    spread = case.spread.clone().requires_grad_()
    tracked = dataclasses.replace(case, spectrum=spectrum, spread=spread)
    total = torch.zeros((), dtype=torch.float64)
    for link in range(BATCH):
        columns = case.field[link].transpose(1, 2).flatten(0, 1)
        lower = torch.linalg.cholesky(dense_covariance(tracked, link))
        fit = (columns.conj() * torch.cholesky_solve(columns, lower)).real.sum()
        log_determinant = 2 * lower.diagonal().real.log().sum()
        total = total - fit / NUM_SNAPSHOTS - log_determinant
    by_spectrum, by_spread = torch.autograd.grad(total, (spectrum, spread))
    modes = case.modes()
    means = modes.solve(case.projected)
    scores = spectrum_scores(modes, case.gram, case.projected, means, case.basis, exact=True)
    surplus = scores.found - scores.expected  # [batch, paths, 4, doppler]
    assert torch.allclose((case.spread.unsqueeze(-1) * surplus).sum(2), by_spectrum, atol=1e-6)
    assert torch.allclose((case.spectrum.unsqueeze(2) * surplus).sum(3), by_spread, atol=1e-6)


@pytest.mark.usefixtures("every_mode")
def test_scores_find_on_average_what_the_model_expects() -> None:
    num_snapshots = 3000
    case = problem(num_snapshots)
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, num_snapshots, case.field[0, :, 0].numel())
    draws = torch.randn(shape, dtype=torch.complex128, generator=generator)
    lower = torch.stack([torch.linalg.cholesky(dense_covariance(case, link)) for link in range(BATCH)])
    field = (draws @ lower.mT).unflatten(2, (-1, case.basis.rank)).transpose(1, 2)
    case = dataclasses.replace(case, field=field)
    modes = case.modes()
    means = modes.solve(case.projected)
    scores = spectrum_scores(modes, case.gram, case.projected, means, case.basis, exact=True)
    assert torch.allclose(scores.found, scores.expected, rtol=0.15)


def test_modes_below_the_floor_hardly_turn_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    def log_ratio(case: Problem) -> torch.Tensor:
        modes = case.modes()
        means = modes.solve(case.projected)
        scores = spectrum_scores(modes, case.gram, case.projected, means, case.basis, exact=True)
        found, expected = ((case.spread.unsqueeze(-1) * s).sum(2) for s in (scores.found, scores.expected))
        return (found / expected).log()

    few = log_ratio(problem())
    monkeypatch.setattr(path_posterior, "MODE_FLOOR", 1e-15)
    every = log_ratio(problem())
    assert every.abs().mean() > 1 and (few - every).abs().max() < 0.3


def test_modes_below_the_floor_matter_little(monkeypatch: pytest.MonkeyPatch) -> None:
    case = problem()
    few = case.modes()
    short = few.coefficients(few.solve(case.projected))
    monkeypatch.setattr(path_posterior, "MODE_FLOOR", 1e-15)
    every = case.modes()
    full = every.coefficients(every.solve(case.projected))
    assert few.kept.sum() < every.kept.sum()
    assert (short - full).norm() < 0.1 * full.norm()


def test_links_with_fewer_modes_are_what_they_are_alone() -> None:
    case = problem()
    scale = torch.tensor([0.05, 1.0], dtype=torch.float64)
    case = dataclasses.replace(case, spectrum=case.spectrum * scale[:, None, None])
    together = case.modes()
    counts = together.kept.flatten(1).sum(1)
    assert 0 < counts[0] < counts[1] == together.amplitude.shape[1]
    alone = case.links([0])
    modes = alone.modes()
    means, means_alone = together.solve(case.projected), modes.solve(alone.projected)
    likelihood = together.log_likelihood(case.projected, means, case.energy)
    assert torch.allclose(likelihood[:1], modes.log_likelihood(alone.projected, means_alone, alone.energy))
    for exact in (True, False):
        whole = spectrum_scores(together, case.gram, case.projected, means, case.basis, exact=exact)
        part = spectrum_scores(modes, alone.gram, alone.projected, means_alone, alone.basis, exact=exact)
        assert torch.allclose(whole.found[:1], part.found)
        assert torch.allclose(whole.expected[:1], part.expected)


def test_a_link_without_paths_has_a_posterior() -> None:
    case = problem()
    modes = dataclasses.replace(case, spectrum=torch.zeros_like(case.spectrum)).modes()
    means = modes.solve(case.projected)
    assert (modes.coefficients(means) == 0).all()
    assert torch.allclose(modes.log_likelihood(case.projected, means, case.energy), -case.energy / case.noise)
