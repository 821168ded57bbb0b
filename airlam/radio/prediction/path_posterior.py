r"""What noisy measurements say of paths whose spectra are given: the Gaussian posterior, in few unknowns.

The history in compressed time is y = A x + w, w white of variance s2. Path n has four atoms (its point and
three derivatives, ``airlam.radio.paths``), whose coefficients over compressed time are independent with
covariance rho_na B_n, B_n = D diag(gamma_n) D^H: rho the spread, gamma the Doppler spectrum, D the Doppler
dictionary. With B_n = U_n diag(w_n) U_n^H every coefficient is a sum of modes of variance rho_na w_nk, of
which only those that rise above ``MODE_FLOOR`` of the noise are kept. Over the modes the posterior has the
precision M = I + P^{1/2} G P^{1/2} / s2 with P the modes' variances and G their inner products, a Hadamard
product of the atoms' Gram matrix and the eigenvectors', so the measurement enters by A^H y alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from airlam.radio.factors import triangular_inverse
from airlam.radio.paths import NUM_ATOMS, DopplerBasis

MODE_FLOOR = 0.3  # of the noise: weaker modes move the estimate by less than they cost
ROUNDING = 3e-6  # of each mode's own precision, in single precision, where two paths nearly coincide
BAND_GROUP = 16  # columns of an inverse at a time, of which only products near the diagonal count
GROUP = 16  # links at a time: enough to fill the matrix products, small enough for the cache
CLEAR_NOISE, CLEAR_GROUP = 0.03, 4  # links of less noise keep hundreds of modes


def links_of_like_noise(noise_variance: torch.Tensor) -> Iterator[torch.Tensor]:
    """Indices of links that keep about as many modes: int64 [at most GROUP].

    noise_variance: float [batch], relative to the signal's power.
    """
    order = noise_variance.argsort(stable=True)
    num_clear = int((noise_variance < CLEAR_NOISE).sum())
    yield from torch.split(order[:num_clear], CLEAR_GROUP) if num_clear else ()
    yield from torch.split(order[num_clear:], GROUP) if num_clear < len(order) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PathModes:
    """The modes that are kept and the Cholesky factor of their posterior precision.

    lower: complex [batch, modes, modes]; sizes: how many of its rows each link has. vector: complex [batch,
    modes, rank], eigenvectors; amplitude: real [batch, modes], sqrt(rho w), zero where a link has fewer
    modes. index: int64 [batch, modes], the mode's place among paths * 4 * rank, rising. power: real [batch,
    paths, 4, rank], rho w of all, kept or not; kept: bool, alike. vectors: complex [batch, paths, rank,
    rank], eigenvectors as columns. noise_variance: real [batch].
    """

    lower: torch.Tensor
    sizes: tuple[int, ...]
    vector: torch.Tensor
    amplitude: torch.Tensor
    index: torch.Tensor
    power: torch.Tensor
    kept: torch.Tensor
    vectors: torch.Tensor
    noise_variance: torch.Tensor

    @property
    def num_paths(self) -> int:
        """Paths of a link."""
        return self.kept.shape[1]

    @property
    def atom(self) -> torch.Tensor:
        """Which atom a mode belongs to, path * 4 + atom: int64 [batch, modes]."""
        return self.index // self.kept.shape[3]

    @staticmethod
    def of(
        gram: torch.Tensor,
        spectrum: torch.Tensor,
        spread: torch.Tensor,
        noise_variance: torch.Tensor,
        basis: DopplerBasis,
        *,
        coarseness: float = 1.0,
    ) -> "PathModes":
        """gram: complex [batch, paths * 4, paths * 4]; spectrum: real [batch, paths, doppler], zero for a
        path that is not there; spread: real [batch, paths, 4]; noise_variance: real [batch]; coarseness: how
        many times ``MODE_FLOOR`` a mode must reach.
        """
        atoms = basis.atoms.to(gram)
        rank = basis.rank
        variance, vectors = torch.linalg.eigh((spectrum.unsqueeze(2) * atoms) @ atoms.mH)
        variance = variance.clamp_min(0)
        power = spread.unsqueeze(-1) * variance.unsqueeze(2)  # [batch, paths, 4, rank]
        above = (power > coarseness * MODE_FLOOR * noise_variance[:, None, None, None]).flatten(1)
        sizes = tuple(above.sum(1).clamp_min(1).tolist())
        index = (~above).argsort(dim=1, stable=True)[:, : max(sizes)]  # [batch, modes]
        amplitude = power.flatten(1).gather(1, index).sqrt() * above.gather(1, index)  # [batch, modes]
        atom = index // rank
        rows = torch.arange(len(gram), device=gram.device).unsqueeze(1)
        vector = vectors.mT[rows, atom // NUM_ATOMS, index % rank]  # [batch, modes, rank]
        whitened = vector * (amplitude * noise_variance.rsqrt().unsqueeze(1)).unsqueeze(2)
        precision = _taken(gram, atom).mul_(whitened.conj() @ whitened.mT)
        diagonal = precision.diagonal(dim1=1, dim2=2)
        single = spectrum.dtype == torch.float32
        diagonal.add_(1 + (ROUNDING * diagonal.real if single else 0))
        return PathModes(
            lower=_cholesky(precision, sizes),
            sizes=sizes,
            vector=vector,
            amplitude=amplitude,
            index=index,
            power=power,
            kept=above.view(power.shape),
            vectors=vectors,
            noise_variance=noise_variance,
        )

    def solve(self, projected: torch.Tensor) -> torch.Tensor:
        """Whitened posterior means of the modes: complex [batch, modes, snapshots].

        projected: complex [batch, paths, 4, snapshots, rank], A^H y.
        """
        return torch.cholesky_solve(self.whiten(projected), self.lower)

    def whiten(self, projected: torch.Tensor) -> torch.Tensor:
        """P^{1/2} (modes)^H y / s2: complex [batch, modes, snapshots]; shapes as in ``solve``."""
        rows = torch.arange(len(projected), device=projected.device).unsqueeze(1)
        seen = projected.flatten(1, 2)[rows, self.atom]  # [batch, modes, snapshots, rank]
        matched = (seen @ self.vector.conj().unsqueeze(-1)).squeeze(-1)  # [batch, modes, snapshots]
        return matched * (self.amplitude / self.noise_variance.unsqueeze(1)).unsqueeze(2)

    def coefficients(self, means: torch.Tensor) -> torch.Tensor:
        """Posterior mean of x: complex [batch, paths, 4, snapshots, rank], from the means of ``solve``."""
        return self._gather(means, self.amplitude)

    def weights(self, means: torch.Tensor) -> torch.Tensor:
        """A^H C^-1 y within the modes, C the covariance of y; shapes as in ``coefficients``.

        It is the prior's precision times the coefficients, so it loses no digits at high SNR.
        """
        return self._gather(means, torch.where(self.amplitude > 0, 1 / self.amplitude, 0))

    def _gather(self, means: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        terms = (means * factor.unsqueeze(2)).unsqueeze(3) * self.vector.unsqueeze(2)
        batch, _, num_snapshots, rank = terms.shape
        total = terms.new_zeros(batch, self.num_paths * NUM_ATOMS, num_snapshots, rank)
        total.scatter_add_(1, self.atom[:, :, None, None].expand_as(terms), terms)
        return total.view(batch, self.num_paths, NUM_ATOMS, num_snapshots, rank)

    def _covariance(self) -> torch.Tensor:
        """Of the whitened modes of each atom, side by side: complex [batch, paths, 4, rank, rank].

        Meaningless where a mode is not kept.
        """
        rank = self.kept.shape[3]
        band = _band(_inverse(self.lower, self.sizes), rank)  # [batch, modes, rank]
        mode = (self.kept.flatten(1).cumsum(1) - 1).clamp_min(0).view_as(self.kept)  # of each eigenvector
        ahead = mode.unsqueeze(-2) - mode.unsqueeze(-1)  # [batch, paths, 4, rank, rank]
        first = torch.minimum(mode.unsqueeze(-2), mode.unsqueeze(-1))
        place = first * rank + ahead.abs().clamp_max(rank - 1)
        found = band.flatten(1).gather(1, place.flatten(1)).view_as(place)
        return torch.where(ahead >= 0, found, found.conj())

    def log_likelihood(
        self, projected: torch.Tensor, means: torch.Tensor, energy: torch.Tensor
    ) -> torch.Tensor:
        """log p(y) but for a constant of the noise variance, real [batch]; energy: real [batch], |y|^2."""
        explained = (self.whiten(projected).conj() * means).real.sum((1, 2))
        log_determinant = 2 * self.lower.diagonal(dim1=1, dim2=2).real.log().sum(1)
        return explained - energy / self.noise_variance - means.shape[2] * log_determinant

    def information_alone(self) -> torch.Tensor:
        """(eigenvector and atom)^H C^-1 (eigenvector and atom) were each atom alone: real as ``power``.

        It costs nothing and errs where paths overlap.
        """
        return 1 / (self.power + self.noise_variance[:, None, None, None])

    def information(self) -> torch.Tensor:
        """The same with what the other paths explain: complex [batch, paths, 4, rank, rank].

        Eigenvectors without a mode count as if they stood alone.
        """
        both = self.kept.unsqueeze(-1) & self.kept.unsqueeze(-2)  # [batch, paths, 4, rank, rank]
        covariance = torch.where(both, self._covariance(), 0)
        scale = torch.where(self.kept, self.power.clamp_min(1e-30).rsqrt(), 0)
        unknown = torch.diag_embed(self.kept.to(covariance)) - covariance
        among_kept = unknown * (scale.unsqueeze(-1) * scale.unsqueeze(-2))
        alone = torch.where(self.kept, 0, self.information_alone())
        information: torch.Tensor = among_kept + torch.diag_embed(alone)
        return information


def _taken(gram: torch.Tensor, atom: torch.Tensor) -> torch.Tensor:
    """gram[b, atom_i, atom_j]: complex [batch, modes, modes].

    Two selections of whole rows, five times as fast as one by pairs of indices.
    """
    batch, num_atoms, _ = gram.shape
    index = (torch.arange(batch, device=gram.device).unsqueeze(1) * num_atoms + atom).flatten()
    columns = gram.mT.reshape(batch * num_atoms, -1).index_select(0, index)  # [batch * modes, atoms]
    rows = columns.view(batch, -1, num_atoms).mT.reshape(batch * num_atoms, -1)  # [batch * atoms, modes]
    return rows.index_select(0, index).view(*atom.shape, -1)


def _cholesky(precision: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Cholesky factors; a link's rows beyond its own are those of the identity, which costs nothing here.

    On a CPU a batch is one matrix after another anyway, and links differ by a factor of two in modes.
    """
    if precision.is_cuda:
        batched: torch.Tensor = torch.linalg.cholesky(precision)
        return batched
    lower = torch.diag_embed(torch.ones_like(precision[:, :, 0])).mT  # columns in a row, as LAPACK has them
    for each, matrix, size in zip(lower, precision, sizes, strict=True):
        each[:size, :size] = torch.linalg.cholesky(matrix[:size, :size])
    return lower


def _inverse(lower: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Inverses of ``_cholesky``'s factors."""
    if lower.is_cuda:
        return triangular_inverse(lower)
    inverse = torch.diag_embed(torch.ones_like(lower[:, :, 0]))
    for each, matrix, size in zip(inverse, lower, sizes, strict=True):
        each[:size, :size] = triangular_inverse(matrix[None, :size, :size])[0]
    return inverse


def _band(inverse: torch.Tensor, width: int) -> torch.Tensor:
    """Entries (i, i + d) of inverse^H inverse, d below ``width``: complex [batch, modes, width].

    Products of overlapping groups of columns; those beyond the last count as zero.
    """
    num_modes = inverse.shape[1]
    num_groups = -(-num_modes // BAND_GROUP)
    padding = num_groups * BAND_GROUP + width - 1 - num_modes
    columns = nn.functional.pad(inverse, (0, padding))  # [batch, modes, groups * BAND_GROUP + width - 1]
    group = columns.unfold(2, BAND_GROUP + width - 1, BAND_GROUP)  # [batch, modes, groups, some]
    group = group.movedim(1, 3)  # [batch, groups, some, modes]
    product = group[:, :, :BAND_GROUP].conj() @ group.mT  # [batch, groups, BAND_GROUP, some]
    steps = torch.arange(width, device=inverse.device)
    place = torch.arange(BAND_GROUP, device=inverse.device).unsqueeze(1) + steps  # [BAND_GROUP, width]
    band = product.gather(3, place.expand(*product.shape[:2], -1, -1))
    return band.flatten(1, 2)[:, :num_modes]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumScores:
    """Power that the data put on each point of the Doppler grid, and what the model expects of it.

    found, expected: real [batch, paths, 4, doppler]: mean over snapshots of |D^H A^H C^-1 y|^2, and
    D^H (A^H C^-1 A) D. They agree at a stationary point of the marginal likelihood.
    """

    found: torch.Tensor
    expected: torch.Tensor


def spectrum_scores(
    modes: PathModes,
    gram: torch.Tensor,
    projected: torch.Tensor,
    means: torch.Tensor,
    basis: DopplerBasis,
    *,
    exact: bool,
) -> SpectrumScores:
    """Both scores, from the means of ``modes.solve(projected)``; gram as in ``PathModes.of``."""
    explained = gram @ modes.coefficients(means).flatten(3).flatten(1, 2)  # [batch, paths * 4, snap * rank]
    left = (projected - explained.view_as(projected)) / modes.noise_variance[:, None, None, None, None]
    outside = torch.where(modes.kept, 0, 1).unsqueeze(3) * (left @ modes.vectors.conj().unsqueeze(2))
    weights = modes.weights(means) + outside @ modes.vectors.mT.unsqueeze(2)
    found = (weights @ basis.atoms.to(weights).conj()).abs().square().mean(3)  # [batch, paths, 4, doppler]
    seen = (basis.atoms.to(weights).mH @ modes.vectors).unsqueeze(2)  # [batch, paths, 1, doppler, rank]
    if exact:
        expected = ((seen @ modes.information()) * seen.conj()).real.sum(-1)
    else:
        power = torch.view_as_real(seen).square().sum(-1)  # [batch, paths, 1, doppler, rank]
        expected = (power @ modes.information_alone().unsqueeze(-1)).squeeze(-1)
    return SpectrumScores(found=found, expected=expected)
