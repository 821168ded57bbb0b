r"""What noisy measurements say of paths whose spectra are given: the Gaussian posterior, in few unknowns.

The history in compressed time is y = A x + w, w white of variance s2. Path n has four atoms (its point and
three derivatives, ``airlam.radio.paths``), whose coefficients over compressed time are independent with
covariance rho_na B_n, B_n = D diag(gamma_n) D^H: rho the spread, gamma the Doppler spectrum, D the Doppler
dictionary. With B_n = U_n diag(w_n) U_n^H every coefficient is a sum of modes of variance rho_na w_nk, of
which only those that rise above ``MODE_FLOOR`` of the noise are kept. Over the modes the posterior has the
precision M = I + P^{1/2} G P^{1/2} / s2 with P the modes' variances and G their inner products, a Hadamard
product of the atoms' Gram matrix and the eigenvectors', so the measurement enters by A^H y alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from airlam.radio.paths import NUM_ATOMS, DopplerBasis

MODE_FLOOR = 0.3  # of the noise: weaker modes move the estimate by less than they cost
ROUNDING = 3e-6  # of each mode's own precision, in single precision, where two paths nearly coincide
SMALLEST_HALVED = 128  # rows of a triangular matrix whose inverse is worth cutting in two
GROUP = 8  # links at a time: enough to fill the matrix products, small enough for the cache
CLEAR_NOISE, CLEAR_GROUP = 0.03, 2  # links of less noise keep hundreds of modes, one very unlike the next


def links_of_like_noise(noise_variance: torch.Tensor) -> Iterator[torch.Tensor]:
    """Indices of links that keep about as many modes, so that little is padded: int64 [at most GROUP].

    noise_variance: float [batch], relative to the signal's power.
    """
    order = noise_variance.argsort(stable=True)
    num_clear = int((noise_variance < CLEAR_NOISE).sum())
    yield from torch.split(order[:num_clear], CLEAR_GROUP) if num_clear else ()
    yield from torch.split(order[num_clear:], GROUP) if num_clear < len(order) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PathModes:
    """The modes that are kept and the Cholesky factor of their posterior precision.

    lower: complex [batch, modes, modes]. vector: complex [batch, modes, rank], eigenvectors; amplitude: real
    [batch, modes], sqrt(rho w), zero where a link has fewer modes. index: int64 [batch, modes], the mode's
    place among paths * 4 * rank. power: real [batch, paths, 4, rank], rho w of all, kept or not; kept: bool,
    alike. vectors: complex [batch, paths, rank, rank], eigenvectors as columns. noise_variance: real [batch].
    """

    lower: torch.Tensor
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
        strongest, index = power.flatten(1).topk(max(1, int(above.sum(1).max())), dim=1)
        amplitude = strongest.sqrt() * above.gather(1, index)  # [batch, modes]
        atom = index // rank
        rows = torch.arange(len(gram), device=gram.device).unsqueeze(1)
        vector = vectors.mT[rows, atom // NUM_ATOMS, index % rank]  # [batch, modes, rank]
        whitened = vector * (amplitude * noise_variance.rsqrt().unsqueeze(1)).unsqueeze(2)
        precision = _taken(gram, atom).mul_(whitened.conj() @ whitened.mT)
        diagonal = precision.diagonal(dim1=1, dim2=2)
        single = spectrum.dtype == torch.float32
        diagonal.add_(1 + (ROUNDING * diagonal.real if single else 0))
        return PathModes(
            lower=torch.linalg.cholesky(precision),
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

    def log_likelihood(
        self, projected: torch.Tensor, means: torch.Tensor, energy: torch.Tensor
    ) -> torch.Tensor:
        """log p(y) but for a constant of the noise variance, real [batch]; energy: real [batch], |y|^2."""
        explained = (self.whiten(projected).conj() * means).real.sum((1, 2))
        log_determinant = 2 * self.lower.diagonal(dim1=1, dim2=2).real.log().sum(1)
        return explained - energy / self.noise_variance - means.shape[2] * log_determinant

    def information(self, *, exact: bool) -> torch.Tensor:
        """(eigenvector and atom)^H C^-1 (eigenvector and atom): complex [batch, paths, 4, rank, rank].

        exact: with what the other paths explain; otherwise each atom as if it stood alone, which costs
        nothing and errs where paths overlap. Eigenvectors without a mode count as if they stood alone.
        """
        alone = 1 / (self.power + self.noise_variance[:, None, None, None])
        if not exact:
            return torch.diag_embed(alone).to(self.lower)
        batch, num_modes = self.amplitude.shape
        rank = self.kept.shape[3]
        places = self.lower.new_zeros(batch * self.kept[0].numel(), num_modes)
        row = torch.arange(batch, device=places.device).unsqueeze(1) * self.kept[0].numel() + self.index
        places.index_copy_(0, row.flatten(), _triangular_inverse(self.lower).mT.flatten(0, 1))
        columns = places.view(batch, -1, rank, num_modes)  # [batch, paths * 4, rank, modes]
        covariance = (columns.conj() @ columns.mT).view(*self.kept.shape, rank)  # of the whitened modes
        scale = torch.where(self.kept, self.power.clamp_min(1e-30).rsqrt(), 0)
        unknown = torch.diag_embed(self.kept.to(covariance)) - covariance
        among_kept = unknown * (scale.unsqueeze(-1) * scale.unsqueeze(-2))
        information: torch.Tensor = among_kept + torch.diag_embed(torch.where(self.kept, 0, alone))
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


def _triangular_inverse(lower: torch.Tensor) -> torch.Tensor:
    """Inverse of lower triangular matrices [batch, n, n], by halves: no arithmetic on the zeros above."""
    size = lower.shape[1]
    if size <= SMALLEST_HALVED:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        inverse: torch.Tensor = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
        return inverse
    half = size // 2
    first, last = _triangular_inverse(lower[:, :half, :half]), _triangular_inverse(lower[:, half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[:, :half, :half], inverse[:, half:, half:] = first, last
    inverse[:, half:, :half] = -(last @ (lower[:, half:, :half] @ first))
    return inverse


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
    expected = ((seen @ modes.information(exact=exact)) * seen.conj()).real.sum(-1)
    return SpectrumScores(found=found, expected=expected)
