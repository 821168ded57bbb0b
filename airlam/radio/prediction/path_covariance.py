r"""How a prediction from paths may be wrong, antenna by antenna: the posterior covariance of the future.

The future is a sum over the paths' atoms of coefficients z (``airlam.radio.prediction.path_posterior``).
Given the history they have covariance diag(v) + L M^-1 L^H: v is what the history's coefficients, were they
known, would leave open, M the posterior precision of the modes and L what each mode adds to its atom's
future. On one subcarrier the atoms turn this into a covariance over the array. Errors lie along the angles of
paths whose Doppler is uncertain, so few eigenvalues are large; the diagonal alone (``PathEb.variance``) tells
a precoder next to nothing.
"""

from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.radio.paths import DopplerBasis, PathGrid, PathWaves
from airlam.radio.prediction.path_posterior import PathModes, links_of_like_noise


@dataclass(frozen=True, slots=True, kw_only=True)
class PathBeliefs:
    """What is believed of the paths of some links; powers relative to ``scale`` squared.

    position: float64 [batch, paths, 3]; spectrum: float32 [batch, paths, doppler], zero for a path that is
    not there; spread: float32 [batch, paths, 4]; noise_variance, scale: float32 [batch].
    """

    position: torch.Tensor
    spectrum: torch.Tensor
    spread: torch.Tensor
    noise_variance: torch.Tensor
    scale: torch.Tensor

    def __len__(self) -> int:
        return len(self.position)

    def taken(self, links: torch.Tensor) -> "PathBeliefs":
        """Of the links at int64 [n]."""
        return PathBeliefs(
            position=self.position[links],
            spectrum=self.spectrum[links],
            spread=self.spread[links],
            noise_variance=self.noise_variance[links],
            scale=self.scale[links],
        )


def port_covariance(
    beliefs: PathBeliefs, grid: PathGrid, basis: DopplerBasis, subcarriers: torch.Tensor
) -> torch.Tensor:
    """E e_m conj(e_n) of the conditional mean's error e over the ports of one polarisation.

    subcarriers: int64 [f], of the target's. Returns complex64 [batch, horizon, f, columns * rows, columns *
    rows]; polarisations and user antennas have the same, and errors of their own.
    """
    groups = list(links_of_like_noise(beliefs.noise_variance))
    parts = [_of_group(beliefs.taken(links), grid, basis, subcarriers) for links in groups]
    return torch.cat(parts)[torch.cat(groups).argsort()]


def _of_group(
    beliefs: PathBeliefs, grid: PathGrid, basis: DopplerBasis, subcarriers: torch.Tensor
) -> torch.Tensor:
    found = _coefficient_covariance(beliefs, grid, basis)  # [batch, horizon, atoms, atoms]
    atoms = _port_atoms(grid.target_waves(beliefs.position), subcarriers)  # [batch, f, ports, atoms]
    # not atoms @ found: many small products take four times as long as one of all subcarriers
    left = torch.einsum("bfpa, bhac -> bhfpc", atoms, found)
    ports: torch.Tensor = left @ atoms.mH.unsqueeze(1)  # [batch, horizon, f, ports, ports]
    return ports * beliefs.scale.square()[:, None, None, None, None]


def _port_atoms(waves: PathWaves, subcarriers: torch.Tensor) -> torch.Tensor:
    """All atoms over the ports, on some subcarriers: complex64 [batch, f, ports, paths * 4]."""
    along = waves.subcarriers[..., subcarriers]  # [batch, paths, 2, f]
    point = torch.einsum("bnf,bnap->bfpna", along[:, :, 0], waves.ports)
    late = torch.einsum("bnf,bnp->bfpn", along[:, :, 1], waves.ports[:, :, 0]).unsqueeze(-1)
    return torch.cat([point, late], dim=-1).flatten(3)


def _coefficient_covariance(beliefs: PathBeliefs, grid: PathGrid, basis: DopplerBasis) -> torch.Tensor:
    """Of the atoms' future coefficients: complex64 [batch, horizon, paths * 4, paths * 4]."""
    gram = grid.history_waves(beliefs.position).gram()
    modes = PathModes.of(gram, beliefs.spectrum, beliefs.spread, beliefs.noise_variance, basis)
    ahead = _ahead(beliefs, modes, basis)  # [batch, horizon, paths * 4 * rank]
    by_atom = rearrange(ahead.abs().square(), "b h (a r) -> b h a r", r=basis.rank)
    power = beliefs.spread * beliefs.spectrum.sum(-1, keepdim=True)  # [batch, paths, 4]
    innovation = (power.flatten(1).unsqueeze(1) - by_atom.sum(-1)).clamp_min(0)  # [batch, horizon, paths * 4]
    found = torch.diag_embed(innovation).to(gram.dtype)
    place = modes.atom.unsqueeze(1)  # [batch, 1, modes]
    there = modes.amplitude > 0  # [batch, modes]
    for step in range(ahead.shape[1]):
        added = ahead[:, step].gather(1, modes.index) * there  # [batch, modes]
        loading = gram.new_zeros(len(gram), gram.shape[1], added.shape[1])
        loading.scatter_(1, place, added.unsqueeze(1))  # [batch, paths * 4, modes]
        left = torch.linalg.solve_triangular(modes.lower, loading.mH, upper=False)
        found[:, step] += left.mH @ left
    return found


def _ahead(beliefs: PathBeliefs, modes: PathModes, basis: DopplerBasis) -> torch.Tensor:
    """What a whitened eigenvector adds to its atom's future: complex [batch, horizon, paths * 4 * rank].

    sqrt(rho) b^H u / sqrt(w), of kept modes; zero for others.
    """
    seen = basis.atoms.to(modes.vectors).mH @ modes.vectors  # [batch, paths, doppler, rank]
    cross = (beliefs.spectrum.unsqueeze(2) * basis.future_atoms.to(seen)) @ seen
    scale = torch.where(modes.kept, beliefs.spread.unsqueeze(-1) / modes.power.clamp_min(1e-30).sqrt(), 0)
    return rearrange(cross.unsqueeze(2) * scale.unsqueeze(3), "b n a h r -> b h (n a r)")
