"""Axes and atoms: plane waves, their derivatives, and the time basis."""

import math

import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.radio.paths import (
    COLUMN_SPREAD_WAVELENGTHS,
    DELAY_SPREAD_S,
    ROW_SPREAD_WAVELENGTHS,
    PathGrid,
    PathWaves,
    doppler_basis,
    step_deviations,
)
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


def fdd_setting() -> PredictionSetting:
    """History on 16 subcarriers, target on 16 others after a gap of eight."""
    both = setting(num_subcarriers=40).history_frequencies_hz
    return PredictionSetting(
        base_station=ArraySpec(num_cols=4, num_rows=3),
        num_user_antennas=1,
        history_frequencies_hz=both[:16],
        target_frequencies_hz=both[24:],
        slot_duration_s=0.5e-3,
        num_history=8,
        num_horizon=2,
        max_doppler_hz=100.0,
    )


def positions(batch: int, num_paths: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, num_paths, 3, dtype=torch.float64, generator=generator)


def dense(waves: PathWaves) -> torch.Tensor:
    """All atoms, written out from the three axes' waves: complex64 [batch, points, paths * 4]."""
    orders = ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0))  # of subcarriers, columns, rows
    atoms = [
        torch.einsum(
            "bnf,bnc,bnr->bnfcr", waves.subcarriers[:, :, f], waves.columns[:, :, c], waves.rows[:, :, r]
        ).flatten(2)
        for f, c, r in orders
    ]  # each [batch, paths, points]
    return torch.stack(atoms, dim=2).flatten(1, 2).mT


def test_links_inverts_snapshots() -> None:
    grid = PathGrid.of(setting())
    links = torch.randn(2, 5, 3, 24, 24, dtype=torch.complex64)
    snapshots = grid.snapshots(links)
    assert snapshots.shape == (2, grid.num_points, 6, 5)
    assert torch.equal(grid.links(snapshots), links)


def test_atoms_are_plane_waves_in_port_order() -> None:
    grid = PathGrid.of(setting())
    delay, horizontal, vertical = 0.21, 0.37, 0.83
    atom = grid.history_atoms(torch.tensor([[[delay, horizontal, vertical]]]))[0, :, 0].view(24, 4, 3)
    f, c, r = 7, 2, 1
    expected = torch.exp(torch.tensor(2j * math.pi * (-f * delay + c * horizontal + r * vertical)))
    assert torch.allclose(atom[f, c, r] * math.sqrt(24 * 12), expected, atol=1e-5)
    assert torch.allclose(atom.abs().square().sum(), torch.tensor(1.0), atol=1e-5)


def test_points_and_ports_are_the_written_out_atoms() -> None:
    waves = PathGrid.of(setting()).history_waves(positions(2, 3))
    atoms = dense(waves).unflatten(2, (3, 4))  # [batch, points, paths, 4]
    assert torch.allclose(waves.points(), atoms[..., 0], atol=1e-6)
    first = atoms.unflatten(1, (24, 12))[:, 0, :, :, :3] * math.sqrt(24)  # [batch, ports, paths, 3]
    assert torch.allclose(waves.ports, first.permute(0, 2, 3, 1), atol=1e-6)


def test_target_atoms_continue_history_atoms_across_a_gap() -> None:
    position = positions(1, 3)
    grid = PathGrid.of(fdd_setting())
    history = grid.history_atoms(position).view(1, 16, 12, 3)
    target = grid.target_atoms(position).view(1, 16, 12, 3)
    step = torch.exp(-2j * math.pi * 24 * position[..., 0])
    assert torch.allclose(target, (history * step[:, None, None]).to(target), atol=1e-6)


@pytest.mark.parametrize(("cols", "rows"), [(4, 3), (1, 8), (8, 1), (1, 1)])
def test_derivatives_are_orthonormal_to_their_point_and_absent_on_axes_of_one_step(
    cols: int, rows: int
) -> None:
    waves = PathGrid.of(setting(cols=cols, rows=rows)).history_waves(positions(2, 3))
    own = waves.gram().unflatten(1, (3, 4)).unflatten(3, (3, 4)).diagonal(dim1=1, dim2=3)
    expected = torch.diag(torch.tensor([1.0, float(cols > 1), float(rows > 1), 1.0]))
    assert torch.allclose(own, expected.unsqueeze(-1).expand_as(own).to(own), atol=1e-5)


@pytest.mark.parametrize(("atom", "axis", "sign"), [(1, 1, 1), (2, 2, 1), (3, 0, -1)])
@pytest.mark.parametrize("target", [False, True])
def test_derivatives_are_finite_differences_of_the_point(
    atom: int, axis: int, sign: int, target: bool
) -> None:
    """A wave that lies e further turns by 2j pi e times a step: the middle's turn and the derivative atom."""
    grid = PathGrid.of(fdd_setting())
    position, step = positions(2, 3), 1e-4
    offset = step * torch.eye(3, dtype=torch.float64)[axis]

    def atoms(where: torch.Tensor) -> torch.Tensor:
        return dense(grid.target_waves(where) if target else grid.history_waves(where)).unflatten(2, (3, 4))

    def point(where: torch.Tensor) -> torch.Tensor:
        return atoms(where)[..., 0].to(torch.complex128)

    slope = (point(position + offset) - point(position - offset)) / (2 * step)
    middle, deviation = (grid.shape[axis] - 1) / 2, step_deviations(grid.shape)[axis]
    derivative = slope / (sign * 2j * math.pi) - middle * point(position)
    assert (derivative - deviation * atoms(position)[..., atom]).norm() < 1e-3 * derivative.norm()


@pytest.mark.parametrize("target", [False, True])
def test_gram_is_the_dense_product(target: bool) -> None:
    grid = PathGrid.of(fdd_setting())
    waves = (grid.target_waves if target else grid.history_waves)(positions(2, 5))
    atoms = dense(waves)
    assert torch.allclose(waves.gram(), atoms.mH @ atoms, atol=1e-4)


@pytest.mark.parametrize("target", [False, True])
def test_project_and_synthesise_are_adjoint_and_dense_products(target: bool) -> None:
    grid = PathGrid.of(fdd_setting())
    waves = (grid.target_waves if target else grid.history_waves)(positions(2, 5))
    generator = torch.Generator().manual_seed(1)
    field = torch.randn(2, 16 * 12, 6, dtype=torch.complex64, generator=generator)
    coefficients = torch.randn(2, 5, 4, 6, dtype=torch.complex64, generator=generator)
    seen, sent = waves.project(field), waves.synthesise(coefficients)
    atoms = dense(waves)
    assert torch.allclose(seen.flatten(1, 2), atoms.mH @ field, atol=1e-4)
    assert torch.allclose(sent, atoms @ coefficients.flatten(1, 2), atol=1e-4)
    assert torch.allclose((sent.conj() * field).sum(), (coefficients.conj() * seen).sum(), rtol=1e-4)


def test_spread_is_the_power_of_small_offsets() -> None:
    """Rays about a point put on each derivative atom, on average, what ``spread`` says."""
    grid = PathGrid.of(setting(num_subcarriers=12))
    wavelengths = (COLUMN_SPREAD_WAVELENGTHS, ROW_SPREAD_WAVELENGTHS)
    cycles = torch.tensor([DELAY_SPREAD_S * SPACING_HZ, *(0.5 * w for w in wavelengths)])
    offsets = torch.randn(1, 4000, 3, generator=torch.Generator().manual_seed(2)) * cycles
    point = torch.tensor([[[0.3, 0.6, 0.2]]], dtype=torch.float64)
    rays = grid.history_atoms(grid.moved(point, offsets))  # [1, points, rays]
    power = grid.history_waves(point).project(rays)[0, 0].abs().square().mean(-1)  # [4]
    assert torch.allclose(power / power[0], grid.spread, rtol=0.1)


def test_spread_is_zero_on_axes_of_one_step_and_bounded_on_long_ones() -> None:
    assert PathGrid.of(setting(cols=1, rows=1, num_subcarriers=24)).spread[1:3].tolist() == [0, 0]
    assert PathGrid.of(setting(num_subcarriers=1)).spread[3] == 0
    assert PathGrid.of(setting(cols=64)).spread[1:].max() < 1


def test_moved_positions_stay_on_the_circle() -> None:
    grid = PathGrid.of(setting())
    position = torch.tensor([[[0.95, 0.05, 0.5]]])
    moved = grid.moved(position, torch.tensor([0.1, -0.1, 0.0]))
    assert torch.allclose(moved, torch.tensor([[[0.05, 0.95, 0.5]]], dtype=torch.float64), atol=1e-6)


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
