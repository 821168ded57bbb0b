"""The path search: paths come back wherever they lie, and none is found where none is left."""

import pytest
import torch

from airlam.radio.path_search import find_paths
from airlam.radio.paths import PathGrid


def grid_of(cols: int = 4, rows: int = 3, num_subcarriers: int = 24) -> PathGrid:
    return PathGrid(
        num_subcarriers=num_subcarriers,
        num_cols=cols,
        num_rows=rows,
        num_polarizations=1,
        target_steps=torch.arange(num_subcarriers, dtype=torch.float32),
        subcarrier_spacing_hz=180e3,
    )


def distance(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Circular distance of every true path to the nearest found one, worst axis."""
    gap = (found[:, :, None] - true[:, None]).abs()
    return torch.minimum(gap, 1 - gap).amax(-1).amin(1)


def complex_normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def field_of(position: torch.Tensor, grid: PathGrid, num_snapshots: int, snr_db: float) -> torch.Tensor:
    """Paths of unit power with noise of ``snr_db`` below a path's matched filter."""
    weights = complex_normal(*position.shape[:2], num_snapshots, seed=2)
    noise = complex_normal(len(position), grid.num_points, num_snapshots, seed=3)
    return grid.history_atoms(position) @ weights + 10 ** (-snr_db / 20) * noise


def variance(batch: int, snr_db: float) -> torch.Tensor:
    return torch.full((batch,), 10 ** (-snr_db / 10))


@pytest.mark.parametrize(
    ("cols", "rows", "num_subcarriers"), [(4, 3, 24), (1, 8, 24), (8, 1, 24), (1, 1, 300), (8, 8, 1)]
)
def test_one_path_is_found_on_and_off_the_grid(cols: int, rows: int, num_subcarriers: int) -> None:
    grid = grid_of(cols, rows, num_subcarriers)
    position = torch.rand(16, 1, 3, generator=torch.Generator().manual_seed(1))
    position[0] = torch.tensor([0.25, 0.5, 0.0])
    alive = torch.tensor([float(size > 1) for size in grid.shape])  # an axis of one step has no frequency
    paths = find_paths(field_of(position * alive, grid, 4, 60.0), grid, 1, variance(16, 60.0))
    assert distance(paths.position, position * alive).max() < 2e-3
    assert paths.mask.all()


def test_separate_paths_are_all_found_strongest_first() -> None:
    grid = grid_of(4, 4, 32)
    position = torch.tensor([[[0.1, 0.1, 0.2], [0.45, 0.6, 0.7], [0.8, 0.3, 0.95]]])
    weights = torch.diag(torch.tensor([1.0, 3.0, 2.0])).to(torch.complex64)
    paths = find_paths(grid.history_atoms(position) @ weights, grid, 3, torch.tensor([1e-4]))
    assert distance(paths.position, position).max() < 2e-3
    assert distance(paths.position[:, :1], position[:, 1:2]).max() < 2e-3
    assert distance(paths.position[:, 2:], position[:, :1]).max() < 2e-3


def test_two_paths_half_a_resolution_cell_apart_are_told_apart() -> None:
    grid = grid_of(4, 4, 32)
    position = torch.tensor([[[0.3, 0.4, 0.2], [0.3 + 0.5 / 32, 0.4 + 0.5 / 4, 0.2]]])
    paths = find_paths(field_of(position, grid, 6, 40.0), grid, 4, variance(1, 40.0))
    assert (distance(paths.position, position) * 32).max() < 0.1


def test_noise_alone_holds_hardly_any_paths() -> None:
    grid = grid_of(4, 4, 48)
    noise = complex_normal(8, grid.num_points, 8, seed=5)
    assert find_paths(noise, grid, 12, torch.full((8,), 400.0)).mask.sum() == 0
    assert find_paths(
        field_of(torch.full((1, 1, 3), 0.4), grid, 8, 30.0), grid, 1, variance(1, 30.0)
    ).mask.all()


def test_positions_do_not_depend_on_scale_batch_or_run() -> None:
    grid = grid_of()
    field = field_of(torch.rand(3, 5, 3, generator=torch.Generator().manual_seed(4)), grid, 6, 30.0)
    paths = find_paths(field, grid, 8, variance(3, 30.0))
    again = find_paths(field, grid, 8, variance(3, 30.0))
    assert torch.equal(paths.position, again.position)
    scaled = find_paths(1e-4 * field, grid, 8, 1e-8 * variance(3, 30.0))
    alone = find_paths(field[1:2], grid, 8, variance(1, 30.0))
    strongest = paths.position[:, :3]
    assert distance(scaled.position, strongest).max() < 1e-3
    assert distance(alone.position, strongest[1:2]).max() < 1e-3


def test_silence_and_few_points_are_no_accident() -> None:
    grid = grid_of(1, 1, 3)
    paths = find_paths(torch.zeros(2, 3, 4, dtype=torch.complex64), grid, 9, torch.zeros(2))
    assert paths.position.shape == (2, 3, 3)  # no more paths than points
    assert not paths.mask.any()
    loud = find_paths(complex_normal(2, 3, 1, seed=6), grid, 9, torch.zeros(2))
    assert torch.isfinite(loud.position).all()
    assert ((loud.position >= 0) & (loud.position < 1)).all()
