"""Search for the paths of a link: rounds of picking on a grid, fitting all of them off it, and exchange."""

import functools
import math
from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.radio.factors import cholesky, triangular_inverse
from airlam.radio.paths import AXIS_SIGNS, NUM_ATOMS, PathGrid, PathWaves

OVERSAMPLING = 1.5  # of the search grid, per axis; the polish covers the rest, and a finer grid gains nothing
SEARCH_SNAPSHOTS = 4  # principal snapshots that carry the search; all of them change the NMSE by under 1 %
NUM_EXCHANGES = 2  # a third one gains nothing
FITS_PER_ROUND = 2
CROWDED_CELLS = 0.2  # closer to a stronger path than this, a path is exchanged
UPDATE_POWER = 0.75  # of the ratio in the power's update; 1 is unsteady at 30 dB
MIN_POWER, MIN_PICKED_POWER = 1e-3, 0.1  # of a path's coefficient, over the noise's
JITTER = 3e-6  # of the diagonal, against float32's rounding
ROUNDING = 1e-6  # of an inverse with a diagonal of at most 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPaths:
    """Where the paths of some links lie, strongest first.

    position: float32 [batch, num_paths, 3], (delay, horizontal, vertical) in cycles per step, in [0, 1).
    mask: bool [batch, num_paths], false for paths that do not make the link likelier: none was left to find.
    """

    position: torch.Tensor
    mask: torch.Tensor


def find_paths(
    snapshots: torch.Tensor, grid: PathGrid, num_paths: int, noise_variance: torch.Tensor
) -> FoundPaths:
    r"""Finds paths in rounds: pick peaks of the residual, fit all paths, exchange the least worth.

    A path's coefficients are Gaussian with covariance p_n diag(spread), over the point and its derivatives
    (``PathGrid.spread``), alike in every snapshot; the noise is white. Peaks are those of sum_k |a^H r_k|^2
    on a grid, found one after another as in matching pursuit (Mallat, Zhang, 1993). A fit moves every path
    to where its derivative coefficients say that it lies and scales its power towards a larger marginal
    likelihood (the fixed point of Tipping, Sparse Bayesian learning, 2001), so that r is what the spread of
    the paths leaves open, too: no path is spent on the flanks of another. What a path is worth is what the
    log likelihood would lose without it. The rounds are a reconstruction, chosen on training drops.

    snapshots: complex64 [batch, points, num_snapshots], points ordered (subcarrier, column, row).
    noise_variance: float32 [batch], of one entry of the snapshots.
    """
    field = _whitened(_strongest(snapshots), noise_variance)  # [batch, points, k]
    search = _search_grid(grid.shape, field.device)
    paths, residual = _Paths.none(len(field), field.device), field
    rank = paths.power
    for num_kept, num_new in _rounds(min(num_paths, grid.num_points)):
        kept = rank.topk(num_kept, dim=1).indices  # [batch, num_kept]
        paths = paths.chosen(kept)
        if num_kept:
            residual = field - _Fit.of(field, paths, grid).field()
        paths = paths.joined(search.peaks(residual, num_new))
        for _ in range(FITS_PER_ROUND):
            fit = _Fit.of(field, paths, grid)
            paths = fit.improved()
        worth = fit.worth()
        rank = worth.masked_fill(fit.paths.crowded(grid), -torch.inf)
    order = torch.where(worth > 0, paths.power, -1).argsort(dim=1, descending=True, stable=True)
    return FoundPaths(
        position=paths.chosen(order).position.float().remainder(1.0),  # rounding may reach 1
        mask=(worth > 0).gather(1, order),
    )


def _rounds(num_paths: int) -> list[tuple[int, int]]:
    """Paths kept and picked in each round: half, the other half, then a third exchanged, more than once."""
    first, third = (num_paths + 1) // 2, num_paths // 3
    rounds = [(0, first), (first, num_paths - first), *[(num_paths - third, third)] * NUM_EXCHANGES]
    return [(kept, new) for kept, new in rounds if new]


def _whitened(fields: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
    """Fields over the noise's deviation, the noise at least 1e-7 of the power: [batch, points, k]."""
    power = torch.view_as_real(fields).square().mean((1, 2, 3))  # [batch]
    deviation = torch.maximum(noise_variance, 1e-7 * power).clamp_min(torch.finfo(power.dtype).tiny).sqrt()
    return (fields / deviation.view(-1, 1, 1)).mT.contiguous()  # [batch, points, k]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paths:
    """position: float64 [batch, paths, 3]; power: float32 [batch, paths], of the noise's."""

    position: torch.Tensor
    power: torch.Tensor

    @staticmethod
    def none(batch: int, device: torch.device) -> "_Paths":
        position = torch.zeros(batch, 0, 3, dtype=torch.float64, device=device)
        return _Paths(position=position, power=torch.zeros(batch, 0, device=device))

    def chosen(self, index: torch.Tensor) -> "_Paths":
        """The paths of these indices, int64 [batch, chosen]."""
        position = self.position.gather(1, index.unsqueeze(2).expand(-1, -1, 3))  # [batch, chosen, 3]
        return _Paths(position=position, power=self.power.gather(1, index))

    def crowded(self, grid: PathGrid) -> torch.Tensor:
        """Whether a stronger path lies so near that the two mostly cancel: bool [batch, paths]."""
        gap = (self.position.unsqueeze(2) - self.position.unsqueeze(1)).abs()  # [batch, paths, paths, 3]
        cells = torch.minimum(gap, 1 - gap) * gap.new_tensor(grid.shape)
        near = cells.square().sum(3) < CROWDED_CELLS**2
        return (near & (self.power.unsqueeze(1) > self.power.unsqueeze(2))).any(2)

    def joined(self, other: "_Paths") -> "_Paths":
        return _Paths(
            position=torch.cat([self.position, other.position], dim=1),
            power=torch.cat([self.power, other.power], dim=1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """The posterior of the paths' coefficients, x = D z with D = sqrt(prior power).

    deviation: float32 [batch, paths * 4], the diagonal of D. lower: complex64 [batch, paths * 4, paths * 4],
    Cholesky factor of the inverse covariance of z, I + D A^H A D; diagonal: float32 [batch, paths * 4], its
    diagonal. white: complex64 [batch, paths * 4, k], the mean of z.
    """

    paths: _Paths
    grid: PathGrid
    waves: PathWaves
    deviation: torch.Tensor
    lower: torch.Tensor
    diagonal: torch.Tensor
    white: torch.Tensor

    @staticmethod
    def of(field: torch.Tensor, paths: _Paths, grid: PathGrid) -> "_Fit":
        waves = grid.history_waves(paths.position)
        spread = grid.spread.to(field.device)
        deviation = (paths.power.unsqueeze(2) * spread).sqrt().flatten(1)  # [batch, paths * 4]
        information = waves.gram() * (deviation.unsqueeze(1) * deviation.unsqueeze(2))
        diagonal = information.diagonal(dim1=1, dim2=2)
        diagonal.add_(1 + JITTER * diagonal.real)
        lower = cholesky(information)
        seen = waves.project(field).flatten(1, 2) * deviation.unsqueeze(2)  # [batch, paths * 4, k]
        return _Fit(
            paths=paths,
            grid=grid,
            waves=waves,
            deviation=deviation,
            lower=lower,
            diagonal=diagonal.real,
            white=torch.cholesky_solve(seen, lower),
        )

    @property
    def coefficients(self) -> torch.Tensor:
        """complex64 [batch, paths, 4, k]."""
        return _by_path(self.white * self.deviation.unsqueeze(2))

    def field(self) -> torch.Tensor:
        """What the paths make of the field: complex64 [batch, points, k]."""
        return self.waves.synthesise(self.coefficients)

    def worth(self) -> torch.Tensor:
        """Log likelihood that each path adds: float32 [batch, paths].

        With V_n the covariance of its z_n, losing the path adds z_n^H V_n^-1 z_n to the quadratic form and
        log det V_n to the log determinant, in every snapshot.
        """
        columns = rearrange(triangular_inverse(self.lower), "b k (n a) -> b n a k", a=NUM_ATOMS)
        blocks = columns.conj() @ columns.mT  # [batch, paths, 4, 4]
        rounding = ROUNDING * torch.eye(NUM_ATOMS, device=blocks.device)
        lower = torch.linalg.cholesky(blocks + rounding)
        white = _by_path(self.white)  # [batch, paths, 4, k]
        left = torch.linalg.solve_triangular(lower, white, upper=False)
        log_determinant: torch.Tensor = 2 * lower.diagonal(dim1=2, dim2=3).real.log().sum(2)  # [batch, paths]
        return _energy(left) + self.white.shape[2] * log_determinant

    def improved(self) -> _Paths:
        """Every path moved, its power scaled by what z has to what it would have were the path alone."""
        expected = (1 - 1 / self.diagonal).view(*self.paths.power.shape, NUM_ATOMS).sum(2)  # [batch, paths]
        found = _energy(_by_path(self.white)) / self.white.shape[2]  # [batch, paths]
        ratio = (found / expected.clamp_min(1e-9)).pow(UPDATE_POWER).clamp(1e-4, 1e3)
        return _Paths(
            position=self.grid.moved(self.paths.position, self.grid.offsets(self.coefficients)),
            power=(self.paths.power * ratio).clamp_min(MIN_POWER),
        )


def _by_path(atoms: torch.Tensor) -> torch.Tensor:
    """[batch, paths * 4, k] to [batch, paths, 4, k]; einops takes as long as the arithmetic on one link."""
    batch, num_atoms, num_snapshots = atoms.shape
    return atoms.reshape(batch, num_atoms // NUM_ATOMS, NUM_ATOMS, num_snapshots)


def _energy(coefficients: torch.Tensor) -> torch.Tensor:
    """Of each path, [batch, paths], of coefficients [batch, paths, atoms, k]."""
    return torch.view_as_real(coefficients).square().sum((2, 3, 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class _SearchGrid:
    """A grid of positions on which peaks are found.

    shape: of the history; sizes, size: of this grid along the axes, size as int64 [3]. place: float32 [grid
    points, 3], the index of each along every axis; beside: int64 [grid points, 7], the neighbours below along
    each axis, the point itself, and those above. axis, norm, turn: [sum of the history's sizes], its axes end
    to end: which axis, 1 / sqrt(steps), radians per cycle of position. parabola: float32 [7, 6], from values
    at ``beside`` to slopes and bends at the point.
    """

    shape: tuple[int, int, int]
    sizes: tuple[int, int, int]
    size: torch.Tensor
    place: torch.Tensor
    beside: torch.Tensor
    axis: torch.Tensor
    norm: torch.Tensor
    turn: torch.Tensor
    parabola: torch.Tensor

    @staticmethod
    def of(shape: tuple[int, int, int], device: torch.device) -> "_SearchGrid":
        sizes = search_shape(shape)
        size = torch.tensor(sizes, device=device)
        length = torch.tensor(shape, device=device)
        turns = [
            2 * math.pi * sign * torch.arange(n, dtype=torch.float64, device=device)
            for sign, n in zip(AXIS_SIGNS, shape, strict=True)
        ]
        stride = torch.tensor([sizes[1] * sizes[2], sizes[2], 1], device=device)
        index = torch.arange(math.prod(sizes), device=device).unsqueeze(1)  # [grid points, 1]
        place = index // stride % size  # [grid points, 3]
        below, above = (index + ((place + step) % size - place) * stride for step in (-1, 1))
        return _SearchGrid(
            shape=shape,
            sizes=sizes,
            size=size,
            place=place.float(),
            beside=torch.cat([below, index, above], dim=1),
            axis=torch.arange(3, device=device).repeat_interleave(length),
            norm=(length**-0.5).repeat_interleave(length),
            turn=torch.cat(turns).float(),
            parabola=_parabola(device),
        )

    def peaks(self, residual: torch.Tensor, num_peaks: int) -> _Paths:
        """Matching pursuit on the grid alone; residual: complex64 [batch, points, k]."""
        correlation = _grid_response(residual.mT, self.shape)  # [batch, k, grid points]
        found = [self._peak(correlation) for _ in range(num_peaks)]
        position = torch.stack([position for position, _ in found], dim=1)  # [batch, num_peaks, 3]
        weight = torch.cat([weight for _, weight in found], dim=2)  # [batch, k, num_peaks]
        power = torch.view_as_real(weight).square().sum(3).mean(1)  # [batch, num_peaks]
        return _Paths(position=position.double().remainder(1.0), power=power.clamp_min(MIN_PICKED_POWER))

    def _peak(self, correlation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Position [batch, 3] and weights [batch, k, 1] of the strongest peak, which is taken out in place.

        A parabola through the log energies beside the strongest point says how far off the grid it lies.
        """
        parts = torch.view_as_real(correlation).square().sum(1)  # [batch, grid points, 2]
        energy = parts[..., 0] + parts[..., 1]  # [batch, grid points]
        strongest = energy.argmax(1)  # [batch]
        beside = self.beside.index_select(0, strongest)  # [batch, 7]
        level = energy.gather(1, beside).clamp_min_(1e-30).log_()
        slope, bend = torch.split(level @ self.parabola, 3, dim=1)  # [batch, 3] each
        offset = (slope / bend.clamp_min(1e-6)).clamp(-0.5, 0.5)
        position = (self.place.index_select(0, strongest) + offset) / self.size
        response = self._response(position).unsqueeze(1)  # [batch, 1, grid points]
        index = strongest.view(-1, 1, 1)  # [batch, 1, 1]
        weight = correlation.gather(2, index.expand(-1, correlation.shape[1], 1)) / response.gather(2, index)
        correlation.addcmul_(weight, response, value=-1)
        return position, weight

    def _response(self, position: torch.Tensor) -> torch.Tensor:
        """Inner products of every grid atom (unscaled) with a unit-norm atom: [batch, grid points]."""
        phase = position.index_select(1, self.axis) * self.turn  # [batch, sum of the history's sizes]
        waves = torch.polar(self.norm.expand_as(phase), phase)
        f, c, r = torch.split(waves, list(self.shape), dim=1)  # [batch, steps] each
        f = torch.fft.ifft(f, n=self.sizes[0], norm="forward")  # [batch, delays], which turn the other way
        c, r = torch.fft.fft(c, n=self.sizes[1]), torch.fft.fft(r, n=self.sizes[2])  # [batch, grid] each
        ports = (c.unsqueeze(2) * r.unsqueeze(1)).flatten(1)  # [batch, horizontal * vertical]
        found: torch.Tensor = f.unsqueeze(2) * ports.unsqueeze(1)  # [batch, delays, horizontal * vertical]
        return found.flatten(1)  # [batch, grid points]


def _parabola(device: torch.device) -> torch.Tensor:
    """Central differences, the second one downwards, along three axes: see ``_SearchGrid.parabola``."""
    axes, row = torch.eye(3, device=device), torch.ones(1, 3, device=device)
    slope = torch.cat([-axes, 0 * row, axes]) / 2  # [7, 3]
    bend = torch.cat([-axes, 2 * row, -axes])  # [7, 3]
    return torch.cat([slope, bend], dim=1)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _search_grid(shape: tuple[int, int, int], device: torch.device) -> _SearchGrid:
    """The grid, which every search of a setting asks for."""
    return _SearchGrid.of(shape, device)


def search_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Points of the search grid along delay, columns and rows, of a history of this shape."""
    sizes = [math.ceil(OVERSAMPLING * size) if size > 1 else 1 for size in shape]
    return (sizes[0], sizes[1], sizes[2])


def _strongest(snapshots: torch.Tensor) -> torch.Tensor:
    """The strongest combinations of the snapshots: [batch, k, points]."""
    vectors: torch.Tensor = torch.linalg.eigh(snapshots.mH @ snapshots)[1]
    return (vectors[:, :, -SEARCH_SNAPSHOTS:].mT @ snapshots.mT).contiguous()  # [batch, k, points]


def _grid_response(fields: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Inner products of every grid atom (unscaled) with each field: [batch, k, grid points]."""
    cube: torch.Tensor = fields.reshape(*fields.shape[:2], *shape)  # [batch, k, f, c, r]
    num_delays, num_horizontal, num_vertical = search_shape(shape)
    cube = torch.fft.fft2(cube, s=(num_horizontal, num_vertical))  # [batch, k, f, gh, gv]
    cube = torch.fft.ifft(cube, n=num_delays, dim=2, norm="forward")  # [batch, k, gf, gh, gv]
    return cube.flatten(2)  # [batch, k, grid points]
