"""Axes, atoms and the greedy search: plane waves come back, wherever they lie."""

import math

import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.radio.path_search import extract_paths
from airlam.radio.paths import PathGrid, doppler_basis
from airlam.specs import ArraySpec

SPACING_HZ = 180e3


def setting(
    cols: int = 4, rows: int = 3, dual: bool = True, num_subcarriers: int = 24, max_doppler_hz: float = 226.0
) -> PredictionSetting:
    frequencies = tuple(SPACING_HZ * index for index in range(num_subcarriers))
    array = ArraySpec(
        num_rows=rows,
        num_cols=cols,
        polarization="dual" if dual else "single",
        polarization_type="cross" if dual else "V",
    )
    return PredictionSetting(
        base_station=array,
        num_user_antennas=1,
        history_frequencies_hz=frequencies,
        target_frequencies_hz=frequencies,
        slot_duration_s=0.5e-3,
        num_history=16,
        num_horizon=4,
        max_doppler_hz=max_doppler_hz,
    )


def test_doppler_basis_has_the_size_of_the_band() -> None:
    basis = doppler_basis(setting())  # 2WT = 3.6
    assert (basis.rank, basis.num_doppler, basis.num_history) == (7, 17, 16)
    assert basis.future_atoms.shape == (4, 17)


@pytest.mark.parametrize("max_doppler_hz", [0.0, 50.0, 226.0, 600.0, 5000.0])
def test_doppler_basis_keeps_every_exponential_of_the_band(max_doppler_hz: float) -> None:
    basis = doppler_basis(setting(max_doppler_hz=max_doppler_hz))
    gram = basis.compression.mH @ basis.compression
    assert torch.allclose(gram, torch.eye(basis.rank, dtype=gram.dtype), atol=1e-5)
    kept = basis.atoms.abs().square().sum(0) / 16  # share of each exponential's energy
    assert kept.min() > 1 - 1e-3


def test_links_inverts_snapshots() -> None:
    grid = PathGrid.of(setting())
    links = torch.randn(2, 5, 3, 24, 24, dtype=torch.complex64)
    assert torch.equal(grid.links(grid.snapshots(links)), links)


def test_atoms_are_plane_waves_in_port_order() -> None:
    grid = PathGrid.of(setting())
    delay, horizontal, vertical = 0.21, 0.37, 0.83
    atom = grid.history_atoms(torch.tensor([[[delay, horizontal, vertical]]]))[0, :, 0].view(24, 4, 3)
    f, c, r = 7, 2, 1
    expected = torch.exp(torch.tensor(2j * math.pi * (-f * delay + c * horizontal + r * vertical)))
    assert torch.allclose(atom[f, c, r] * math.sqrt(24 * 12), expected, atol=1e-5)
    assert torch.allclose(atom.abs().square().sum(), torch.tensor(1.0), atol=1e-5)


def test_target_atoms_continue_history_atoms_across_a_gap() -> None:
    both = setting(num_subcarriers=40).history_frequencies_hz
    fdd = PredictionSetting(
        base_station=ArraySpec(num_cols=2, num_rows=2),
        num_user_antennas=1,
        history_frequencies_hz=both[:16],
        target_frequencies_hz=both[24:],
        slot_duration_s=0.5e-3,
        num_history=8,
        num_horizon=2,
        max_doppler_hz=100.0,
    )
    position = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0))
    grid = PathGrid.of(fdd)
    history = grid.history_atoms(position).view(1, 16, 4, 3)
    target = grid.target_atoms(position).view(1, 16, 4, 3)
    step = torch.exp(-2j * math.pi * 24 * position[..., 0])
    assert torch.allclose(target, history * step[:, None, None], atol=1e-4)


def test_uneven_subcarriers_are_refused() -> None:
    uneven = PredictionSetting(
        base_station=ArraySpec(),
        num_user_antennas=1,
        history_frequencies_hz=(0.0, 1e3, 3e3),
        target_frequencies_hz=(0.0, 1e3, 3e3),
        slot_duration_s=1e-3,
        num_history=4,
        num_horizon=1,
        max_doppler_hz=10.0,
    )
    with pytest.raises(SpecError, match="evenly spaced"):
        PathGrid.of(uneven)


def distance(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Circular distance of every true path to the nearest found one, worst axis."""
    gap = (found[:, :, None] - true[:, None]).abs()
    return torch.minimum(gap, 1 - gap).amax(-1).amin(1)


def field_of(position: torch.Tensor, grid: PathGrid, num_snapshots: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (position.shape[0], position.shape[1], num_snapshots)
    weights = torch.randn(shape, dtype=torch.complex64, generator=generator)
    return grid.history_atoms(position) @ weights


@pytest.mark.parametrize(("cols", "rows"), [(4, 3), (1, 8), (8, 1), (1, 1), (8, 8)])
def test_one_path_is_found_on_and_off_the_grid(cols: int, rows: int) -> None:
    grid = PathGrid.of(setting(cols=cols, rows=rows))
    position = torch.rand(16, 1, 3, generator=torch.Generator().manual_seed(1))
    position[0] = torch.tensor([0.25, 0.5, 0.0])
    alive = torch.tensor([1.0, float(cols > 1), float(rows > 1)])  # an axis of one element has no frequency
    field = field_of(position * alive, grid, 4, seed=2)
    paths = extract_paths(field, grid, 1)
    assert distance(paths.position, position * alive).max() < 2e-3
    residual = field - paths.basis @ (paths.basis.mH @ field)
    assert residual.norm() < 0.01 * field.norm()


def test_separate_paths_are_all_found_strongest_first() -> None:
    grid = PathGrid.of(setting(cols=4, rows=4, num_subcarriers=32))
    position = torch.tensor([[[0.1, 0.1, 0.2], [0.45, 0.6, 0.7], [0.8, 0.3, 0.95]]])
    amplitudes = torch.tensor([1.0, 3.0, 2.0])
    weights = amplitudes[:, None] * torch.eye(3)
    field = (grid.history_atoms(position) @ weights.to(torch.complex64)).contiguous()
    paths = extract_paths(field, grid, 3)
    order = [1, 2, 0]
    assert distance(paths.position[:, [0]], position[:, order[:1]]).max() < 1e-2
    assert distance(paths.position, position).max() < 1e-2


def test_factors_multiply_to_the_atoms() -> None:
    grid = PathGrid.of(setting())
    noise = torch.randn(3, grid.num_points, 6, dtype=torch.complex64)
    paths = extract_paths(noise, grid, 8)
    gram = paths.basis.mH @ paths.basis
    assert paths.mask.all()
    assert torch.allclose(gram, torch.eye(8, dtype=gram.dtype).expand_as(gram), atol=1e-5)
    assert torch.allclose(paths.basis @ paths.factor, grid.history_atoms(paths.position), atol=1e-4)
    assert torch.equal(paths.factor, paths.factor.triu())


def test_atoms_inside_the_span_are_dropped() -> None:
    grid = PathGrid.of(setting(cols=1, rows=1, num_subcarriers=3))
    paths = extract_paths(torch.randn(4, 3, 5, dtype=torch.complex64), grid, 9)
    assert paths.position.shape == (4, 3, 3)  # no more atoms than points
    assert torch.equal(paths.mask, paths.basis.abs().sum(1) > 0)
