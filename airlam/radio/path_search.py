"""Greedy search for the paths of a link, on and off a grid of delays and angles."""

import math
from dataclasses import dataclass

import torch

from airlam.radio.paths import PathGrid

OVERSAMPLING = 1.5  # of the search grid, per axis; the polish covers the rest, and a finer grid gains nothing
SEARCH_SNAPSHOTS = 6  # principal snapshots that carry the search; all of them change the NMSE by under 1 %
POLISH_STEPS = 3
MIN_NOVELTY = 0.05  # an atom with less of its norm outside the span of the earlier ones is dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedPaths:
    """What the greedy search found, strongest first.

    position: float32 [batch, num_paths, 3], (delay, horizontal, vertical) in cycles per step, in [0, 1).
    mask: bool [batch, num_paths], false where an atom repeats the earlier ones and was dropped.
    basis: complex64 [batch, points, num_paths], orthonormal columns Q (zero where dropped).
    factor: complex64 [batch, num_paths, num_paths], R = Q^H A, upper triangular.
    """

    position: torch.Tensor
    mask: torch.Tensor
    basis: torch.Tensor
    factor: torch.Tensor


def extract_paths(snapshots: torch.Tensor, grid: PathGrid, num_paths: int) -> ExtractedPaths:
    r"""Greedy path search: simultaneous orthogonal matching pursuit with an off-grid polish.

    Each round picks the peak of sum_k |a(theta)^H r_k|^2 on a grid, moves it off the grid by Newton steps,
    and projects its atom out of the residuals r_k (Tropp, Gilbert, Strauss, Algorithms for simultaneous
    sparse approximation, 2006; the polish after Mamandipoor et al., Newtonized orthogonal matching pursuit,
    2016). The grid correlation is updated by one atom's response rather than computed anew.

    snapshots: complex64 [batch, points, num_snapshots], points ordered (subcarrier, column, row).
    """
    residual = _principal(snapshots)  # [batch, k, points]
    batch, _, points = residual.shape
    num_paths = min(num_paths, points)
    axes = _SearchAxes.of(grid, residual.device)
    correlation = _grid_response(residual, grid)  # [batch, k, grid points]
    basis = residual.new_zeros(batch, num_paths, points)
    frequencies, masks = [], []
    for index in range(num_paths):
        frequency = _polish(_peak(correlation, axes), residual, axes)  # [batch, 3]
        direction, novel = _orthogonalise(axes.atom(frequency), basis[:, :index])
        weight = residual @ direction.mH  # [batch, k, 1]
        residual.addcmul_(weight, direction, value=-1)
        correlation.addcmul_(weight, _grid_response(direction, grid), value=-1)
        basis[:, index : index + 1] = direction
        frequencies.append(frequency)
        masks.append(novel)
    position = (torch.stack(frequencies, dim=1) * axes.signs).remainder(1.0)  # [batch, num_paths, 3]
    return ExtractedPaths(
        position=position,
        mask=torch.stack(masks, dim=1),  # [batch, num_paths]
        basis=basis.mT,  # [batch, points, num_paths]
        factor=(basis.conj() @ grid.history_atoms(position)).triu(),  # [batch, num_paths, num_paths]
    )


def search_shape(grid: PathGrid) -> tuple[int, int, int]:
    """Points of the search grid along delay, columns and rows."""
    sizes = [math.ceil(OVERSAMPLING * size) if size > 1 else 1 for size in grid.shape]
    return (sizes[0], sizes[1], sizes[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class _SearchAxes:
    """Tables of the three axes laid end to end, so that one call serves all of them.

    The search works in signed frequencies: exp(2j pi frequency step) on every axis, delay's sign turned.
    signs, limit: float32 [3]; the polish stays within the limit. axis: int64 [subcarriers + cols + rows];
    steps: float32, from the middle of each axis, where the score's axes nearly decouple; slopes: complex64
    [3, subcarriers + cols + rows], orders 0 to 2 of the derivative by the frequency of conj(exp).
    """

    shape: tuple[int, int, int]
    search_shape: tuple[int, int, int]
    signs: torch.Tensor
    limit: torch.Tensor
    axis: torch.Tensor
    steps: torch.Tensor
    slopes: torch.Tensor

    @staticmethod
    def of(grid: PathGrid, device: torch.device) -> "_SearchAxes":
        sizes = search_shape(grid)
        steps = torch.cat([torch.arange(n, device=device) - (n - 1) / 2 for n in grid.shape])
        slope = -2j * math.pi * steps
        lengths = torch.tensor(grid.shape, device=device)
        return _SearchAxes(
            shape=grid.shape,
            search_shape=sizes,
            signs=torch.tensor([-1.0, 1.0, 1.0], device=device),
            limit=torch.tensor([0.5 / n if n > 1 else 0.0 for n in sizes], device=device),
            axis=torch.arange(3, device=device).repeat_interleave(lengths),
            steps=steps,
            slopes=torch.stack([torch.ones_like(slope), slope, slope.square()]),
        )

    def waves(self, frequency: torch.Tensor) -> torch.Tensor:
        """exp(2j pi frequency step) of the three axes: complex64 [batch, subcarriers + cols + rows]."""
        phase = 2 * math.pi * frequency[:, self.axis] * self.steps
        return torch.polar(torch.ones_like(phase), phase)

    def atom(self, frequency: torch.Tensor) -> torch.Tensor:
        """Unit-norm atom, up to its phase: complex64 [batch, 1, points]."""
        f, c, r = torch.split(self.waves(frequency), list(self.shape), dim=1)
        ports = (c.unsqueeze(2) * r.unsqueeze(1)).flatten(1)  # [batch, c * r]
        points = (f.unsqueeze(2) * ports.unsqueeze(1)).flatten(1)  # [batch, points]
        norm: float = math.prod(self.shape) ** 0.5
        return points.unsqueeze(1) / norm  # [batch, 1, points]


def _principal(snapshots: torch.Tensor) -> torch.Tensor:
    """The strongest combinations of the snapshots: [batch, k, points]."""
    vectors: torch.Tensor = torch.linalg.eigh(snapshots.mH @ snapshots)[1]
    return (vectors[:, :, -SEARCH_SNAPSHOTS:].mT @ snapshots.mT).contiguous()  # [batch, k, points]


def _grid_response(fields: torch.Tensor, grid: PathGrid) -> torch.Tensor:
    """Inner products of every grid atom (unscaled) with each field: [batch, k, grid points]."""
    cube: torch.Tensor = fields.reshape(*fields.shape[:2], *grid.shape)  # [batch, k, f, c, r]
    num_delays, num_horizontal, num_vertical = search_shape(grid)
    cube = torch.fft.fft2(cube, s=(num_horizontal, num_vertical))  # [batch, k, f, gh, gv]
    cube = torch.fft.ifft(cube, n=num_delays, dim=2, norm="forward")  # [batch, k, gf, gh, gv]
    return cube.flatten(2)  # [batch, k, grid points]


def _peak(correlation: torch.Tensor, axes: _SearchAxes) -> torch.Tensor:
    """Signed frequencies of the grid point with the most energy: [batch, 3]."""
    energy = torch.view_as_real(correlation).square().sum(1)  # [batch, grid points, 2]
    index = torch.unravel_index((energy[..., 0] + energy[..., 1]).argmax(1), axes.search_shape)
    position = torch.stack([i / n for i, n in zip(index, axes.search_shape, strict=True)], dim=-1)
    return position * axes.signs


def _polish(frequency: torch.Tensor, residual: torch.Tensor, axes: _SearchAxes) -> torch.Tensor:
    """Newton steps on the score, each axis kept within half a grid cell of where it was."""
    cube = residual.view(*residual.shape[:2], axes.shape[0], -1)  # [batch, k, f, c * r]
    lowest, highest = frequency - axes.limit, frequency + axes.limit
    for _ in range(POLISH_STEPS):
        step = _newton_step(_moments(frequency, cube, axes))  # [batch, 3]
        frequency = (frequency + step).clamp(lowest, highest)
    return frequency


def _moments(frequency: torch.Tensor, cube: torch.Tensor, axes: _SearchAxes) -> torch.Tensor:
    """Derivatives of conj(atom) . field, orders 0 to 2 by each frequency: [batch, k, 3, 3, 3]."""
    weights = axes.waves(frequency).conj().unsqueeze(1) * axes.slopes  # [batch, 3, f + c + r]
    f, c, r = torch.split(weights.unsqueeze(1), list(axes.shape), dim=3)
    moments: torch.Tensor = f @ cube  # [batch, k, 3, c * r]
    moments = moments.view(*moments.shape[:3], *axes.shape[1:])  # [batch, k, 3, c, r]
    return c.unsqueeze(1) @ (moments @ r.unsqueeze(1).mT)  # [batch, k, 3, 3, 3]


def _newton_step(moments: torch.Tensor) -> torch.Tensor:
    """Ascent step for sum_k |c_k|^2, each frequency by itself, from the derivatives of c: [batch, 3]."""
    flat = moments.flatten(2)  # [batch, k, 27], the orders by delay, columns and rows as base-3 digits
    value = flat[:, :, :1].conj()  # [batch, k, 1]
    first = flat[:, :, [9, 3, 1]]  # [batch, k, 3]
    gradient = (first * value).real.sum(1)  # [batch, 3]
    bend = (flat[:, :, [18, 6, 2]] * value).real.sum(1)  # [batch, 3]
    curvature = bend + torch.view_as_real(first).square().sum((1, 3))  # [batch, 3]
    return gradient / curvature.abs().clamp_min(torch.finfo(curvature.dtype).tiny)


def _orthogonalise(atom: torch.Tensor, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The atom's unit direction outside the basis' rows, [batch, 1, points], and whether there is one.

    The latter is bool [batch]; without, the direction is zero.
    """
    direction = atom
    for _ in range(2):  # once more, for the digits that the first pass cancelled
        overlap = basis @ direction.mH  # [batch, num, 1], conjugate of the coefficients
        direction = direction - overlap.mH @ basis
    norm = torch.linalg.vector_norm(torch.view_as_real(direction), dim=(2, 3)).view(-1, 1, 1)
    novel = norm > MIN_NOVELTY
    return torch.where(novel, direction / norm.clamp_min(MIN_NOVELTY), 0), novel.flatten()
