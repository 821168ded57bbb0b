"""The fit of positions and spectra: it climbs, brings displaced paths back, and knows which way is which."""

import dataclasses
import math

import pytest
import torch

from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import MAX_MOVE_CELLS, PathGrid, doppler_basis
from airlam.radio.prediction import path_fit
from airlam.radio.prediction.path_fit import Measurement, PathState
from airlam.specs import ArraySpec

NUM_ITERATIONS = 8
AXES = {"delay": 0, "column": 1, "row": 2}


def setting(cols: int = 4, rows: int = 4) -> PredictionSetting:
    frequencies = tuple(180e3 * index for index in range(16))
    return PredictionSetting(
        base_station=ArraySpec(num_rows=rows, num_cols=cols, polarization="dual", polarization_type="cross"),
        num_user_antennas=1,
        history_frequencies_hz=frequencies,
        target_frequencies_hz=frequencies,
        slot_duration_s=0.5e-3,
        num_history=12,
        num_horizon=3,
        max_doppler_hz=200.0,
    )


def measure(position: torch.Tensor, noise: float, seed: int, link: PredictionSetting) -> Measurement:
    """Paths at these positions, each with a random Doppler process, at unit power per coefficient."""
    generator = torch.Generator().manual_seed(seed)
    grid, basis = PathGrid.of(link), doppler_basis(link)
    batch, num_paths = position.shape[:2]
    shape = (batch, num_paths, 2, basis.num_doppler)
    weights = torch.randn(shape, dtype=torch.complex64, generator=generator)
    coefficients = weights @ basis.atoms.mT / basis.num_doppler**0.5  # [batch, paths, snapshots, rank]
    field = grid.history_atoms(position) @ coefficients.flatten(2) * math.sqrt(grid.num_points / num_paths)
    noisy = field + noise**0.5 * torch.randn(field.shape, dtype=field.dtype, generator=generator)
    return Measurement(
        field=noisy,
        noise_variance=torch.full((batch,), noise),
        mask=torch.ones(batch, num_paths, dtype=torch.bool),
        grid=grid,
        basis=basis,
    )


def fit(measurement: Measurement, position: torch.Tensor, num_iterations: int, num_exact: int) -> PathState:
    start = path_fit.start(measurement, *measurement.project(position))
    return path_fit.fit(measurement, position, start.log_spectrum, num_iterations, num_exact)


def positions(batch: int, num_paths: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, num_paths, 3, dtype=torch.float64, generator=generator)


def gap_cells(state: PathState, true: torch.Tensor, grid: PathGrid) -> torch.Tensor:
    """Distance to the true positions in resolution cells: [batch, paths, 3]."""
    distance = (state.position - true).abs()
    return torch.minimum(distance, 1 - distance) * torch.tensor(grid.shape)


@pytest.mark.parametrize(("noise", "num_paths"), [(1.0, 4), (1e-3, 10)])
def test_the_likelihood_never_falls(noise: float, num_paths: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_fit, "COARSENESS", 1.0)  # coarse and fine likelihoods do not compare
    true = positions(8, num_paths)
    measurement = measure(true, noise, 1, setting())
    off = measurement.grid.moved(true, 0.02 * torch.ones(3))
    states = [fit(measurement, off, n, n) for n in range(1, 6)]
    likelihood = torch.stack([state.log_likelihood for state in states])  # [iterations, batch]
    assert (likelihood.diff(dim=0) >= 0).all()  # ten paths overlap: some links would fall if they went on
    assert (likelihood[-1] > likelihood[0] + 10).all()


def test_links_that_fall_go_back_and_the_others_go_on() -> None:
    measurement = measure(positions(2, 3), 0.1, 2, setting())
    first = fit(measurement, positions(2, 3), 1, 1)
    second = fit(measurement, positions(2, 3) + 0.01, 1, 1)
    mixed = first.where(torch.tensor([True, False]), second)
    for field in dataclasses.fields(PathState):
        mine, other = getattr(first, field.name), getattr(second, field.name)
        assert torch.equal(getattr(mixed, field.name), torch.stack([mine[0], other[1]]))


def test_spectra_go_where_the_doppler_is() -> None:
    """One exponential: the spectrum's centre of gravity finds its Doppler shift."""
    measurement = measure(positions(4, 1), 1e-2, 3, setting())
    basis, grid = measurement.basis, measurement.grid
    index = torch.tensor([2, 5, 8, 11])
    shift = basis.atoms.mT[index][:, None, None, :]  # [batch, 1, 1, rank]
    atoms = grid.history_atoms(positions(4, 1)) * math.sqrt(grid.num_points)
    clean = (atoms @ shift.expand(-1, 1, 2, -1).flatten(2)).contiguous()
    state = fit(dataclasses.replace(measurement, field=clean), positions(4, 1), NUM_ITERATIONS, 8)
    share = state.log_spectrum[:, 0].softmax(-1)  # [batch, doppler]
    centre = share @ torch.arange(basis.num_doppler, dtype=share.dtype)
    assert (centre - index).abs().max() < 0.5


@pytest.mark.parametrize("num_exact", [0, NUM_ITERATIONS])
def test_a_displaced_path_comes_back(num_exact: int) -> None:
    true = positions(8, 1)
    measurement = measure(true, 1e-2, 4, setting())
    cells = torch.tensor([0.25, -0.2, 0.2]) / torch.tensor(measurement.grid.shape)
    state = fit(measurement, measurement.grid.moved(true, cells), NUM_ITERATIONS, num_exact)
    assert gap_cells(state, true, measurement.grid).max() < 0.01


@pytest.mark.parametrize("axis", AXES.values(), ids=AXES.keys())
@pytest.mark.parametrize("cells", [0.05, -0.05])
def test_a_path_moves_towards_where_it_lies(axis: int, cells: float) -> None:
    true = positions(8, 1)
    measurement = measure(true, 1e-3, 5, setting())
    offset = torch.zeros(3, dtype=torch.float64)
    offset[axis] = cells / measurement.grid.shape[axis]
    state = fit(measurement, measurement.grid.moved(true, offset), 1, 1)
    assert torch.allclose(state.move, -offset.expand_as(state.move), atol=2e-3 * 0.25, rtol=0.2)


def test_a_move_is_bounded_and_none_along_an_axis_of_one_step() -> None:
    true = positions(8, 3)
    measurement = measure(true, 1e-3, 6, setting(cols=1))
    state = fit(measurement, measurement.grid.moved(true, 0.02 * torch.ones(3)), 1, 1)
    bound = torch.tensor(MAX_MOVE_CELLS) / torch.tensor(measurement.grid.shape)
    assert (state.move.abs() <= bound * 1.001).all()
    assert (state.move[..., 1] == 0).all() and (state.move[..., [0, 2]] != 0).all()


def test_masked_paths_have_no_part_in_the_fit() -> None:
    true = positions(4, 2)
    measurement = measure(true[:, :1], 1e-2, 7, setting())
    both = dataclasses.replace(measurement, mask=torch.tensor([True, False]).expand(4, -1))
    alone = fit(measurement, true[:, :1], 4, 4)
    beside = fit(both, true, 4, 4)
    assert torch.allclose(beside.log_likelihood, alone.log_likelihood, rtol=1e-4)
    assert torch.allclose(beside.position[:, :1], alone.position, atol=1e-3)
