"""Doppler spectra of paths: their start, the likelihood's update, and the covariance that they make."""

from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.radio.paths import DopplerBasis

START_POWER = 1.7  # of the matched-filter spectrum in the starting spectrum
RIDGE = 1e-2  # on unit-norm atoms, for the starting coefficients only
PATH_BLOCK = 8  # paths whitened together


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingSpectra:
    """Ridge coefficients of each path and the spectra that they suggest; fields as in ``PathAnalysis``."""

    coefficients: torch.Tensor
    variance: torch.Tensor
    log_matched: torch.Tensor
    log_spectrum: torch.Tensor


def starting_spectra(
    factor: torch.Tensor, observation: torch.Tensor, noise_variance: torch.Tensor, basis: DopplerBasis
) -> StartingSpectra:
    """The power of each path's ridge estimate, spread over Doppler as its matched-filter spectrum^1.7."""
    identity = torch.eye(factor.shape[-1], device=factor.device)
    gram = factor.mH @ factor + RIDGE * identity  # [batch, paths, paths]
    lower = torch.linalg.cholesky(gram)
    projected = factor.mH.unsqueeze(1) @ observation  # [batch, snapshots, paths, rank]
    coefficients = torch.cholesky_solve(projected, lower.unsqueeze(1))
    gain = torch.cholesky_inverse(lower).diagonal(dim1=-2, dim2=-1).real  # [batch, paths]
    variance = gain * noise_variance.unsqueeze(-1)  # [batch, paths]
    energy = coefficients.abs().square().mean(1).sum(-1)  # [batch, paths]
    power = (energy - basis.rank * variance).clamp_min(0) / basis.num_history + 0.02 * variance
    atoms = basis.atoms.to(factor.device)
    matched = (coefficients @ atoms.conj()).abs().square().mean(1)  # [batch, paths, doppler]
    log_matched = torch.log(matched / (variance.unsqueeze(-1) * atoms.abs().square().sum(0)) + 0.5)
    log_spectrum = power.unsqueeze(-1).log() + (START_POWER * log_matched).log_softmax(-1)
    return StartingSpectra(
        coefficients=coefficients, variance=variance, log_matched=log_matched, log_spectrum=log_spectrum
    )


def covariance_cholesky(
    factor: torch.Tensor, spectrum: torch.Tensor, noise_variance: torch.Tensor, basis: DopplerBasis
) -> torch.Tensor:
    """Lower Cholesky factor of C = sum_n (R_n R_n^H) (x) (D diag(gamma_n) D^H) + s2 I.

    factor: complex [batch, paths, paths]; spectrum: real [batch, paths, doppler]; noise_variance: [batch].
    The noise is raised to a few rounding errors of the largest variance, below which C has no factor.
    Returns complex [batch, paths * rank, paths * rank], index path-major.
    """
    atoms = basis.atoms.to(device=factor.device, dtype=factor.dtype)
    num_paths, rank = factor.shape[-1], basis.rank
    path_covariance = ((spectrum.unsqueeze(2) * atoms) @ atoms.mH).flatten(2)  # [batch, paths, rank * rank]
    outer = (factor.unsqueeze(2) * factor.conj().unsqueeze(1)).flatten(1, 2)  # [batch, paths * paths, paths]
    covariance = rearrange(
        outer @ path_covariance, "b (n m) (r s) -> b (n r) (m s)", n=num_paths, r=rank
    ).contiguous()
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)  # [batch, paths * rank]
    rounding = 8 * torch.finfo(spectrum.dtype).eps * diagonal.real.detach().amax(-1)  # [batch]
    diagonal.add_(torch.maximum(noise_variance, rounding).unsqueeze(-1))
    lower: torch.Tensor = torch.linalg.cholesky(covariance)
    return lower


def solve_covariance(lower: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
    """C^-1 y for every snapshot: complex [batch, snapshots, paths, rank]."""
    columns = observation.flatten(2).mT  # [batch, paths * rank, snapshots]
    return torch.cholesky_solve(columns, lower).mT.reshape(observation.shape)


def dictionary_adjoint(factor: torch.Tensor, solved: torch.Tensor, basis: DopplerBasis) -> torch.Tensor:
    """A^H z: complex [batch, snapshots, paths, doppler]; its adjoint is ``dictionary_apply``."""
    atoms = basis.atoms.to(device=factor.device, dtype=factor.dtype)
    return factor.mH.unsqueeze(1) @ (solved @ atoms.conj())


def dictionary_apply(factor: torch.Tensor, weights: torch.Tensor, basis: DopplerBasis) -> torch.Tensor:
    """A w: complex [batch, snapshots, paths, rank] from [batch, snapshots, paths, doppler]."""
    atoms = basis.atoms.to(device=factor.device, dtype=factor.dtype)
    return factor.unsqueeze(1) @ (weights @ atoms.mT)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathInformation:
    """What the data say of each path, R_n its column of R.

    covariance: complex [batch, paths, rank, rank], (R_n (x) I)^H C^-1 (R_n (x) I).
    score: complex [batch, paths, rank, snapshots], (R_n (x) I)^H C^-1 y.
    """

    covariance: torch.Tensor
    score: torch.Tensor


def path_information(
    factor: torch.Tensor,
    spectrum: torch.Tensor,
    observation: torch.Tensor,
    noise_variance: torch.Tensor,
    basis: DopplerBasis,
) -> PathInformation:
    """Both by triangular solves with C's Cholesky factor L; no inverse, so single precision holds at 30 dB.

    With the paths in reverse, R is lower triangular, and so is L^-1 (R (x) I): a block of its columns needs
    only the rows from its own downwards, which halves the work.
    """
    factor, spectrum, observation = factor.flip(1, 2), spectrum.flip(1), observation.flip(2)
    lower = covariance_cholesky(factor, spectrum, noise_variance, basis)
    num_paths, rank = observation.shape[2:]
    identity = torch.eye(rank, dtype=factor.dtype, device=factor.device)
    data = torch.linalg.solve_triangular(lower, observation.flatten(2).mT, upper=False)
    covariances, scores = [], []
    for first in range(0, num_paths, PATH_BLOCK):
        columns = torch.kron(factor[:, first:, first : first + PATH_BLOCK], identity)
        rows = slice(first * rank, None)
        whitened = torch.linalg.solve_triangular(lower[:, rows, rows], columns, upper=False)
        paths = rearrange(whitened, "b rows (n r) -> b n rows r", r=rank)
        covariances.append(paths.mH @ paths)  # [batch, block, rank, rank]
        scores.append(paths.mH @ data[:, rows].unsqueeze(1))  # [batch, block, rank, snapshots]
    return PathInformation(covariance=torch.cat(covariances, 1).flip(1), score=torch.cat(scores, 1).flip(1))


def likelihood_log_ratio(
    factor: torch.Tensor,
    spectrum: torch.Tensor,
    observation: torch.Tensor,
    noise_variance: torch.Tensor,
    basis: DopplerBasis,
) -> torch.Tensor:
    """log of mean_p |A^H C^-1 y_p|^2 over diag(A^H C^-1 A): float32 [batch, paths, doppler].

    It is zero where the spectrum is a stationary point of the marginal likelihood.
    """
    information = path_information(factor, spectrum, observation, noise_variance, basis)
    atoms = basis.atoms.to(factor.device)
    expected = (atoms.conj() * (information.covariance @ atoms)).real.sum(2)  # [batch, paths, doppler]
    found = (atoms.mH @ information.score).abs().square().mean(-1)  # [batch, paths, doppler]
    return torch.log((found + 1e-12) / expected.clamp_min(1e-12)).clamp(-12, 6)
