"""A link as a few paths: the axes they live on, their atoms, and the Doppler basis that compresses time.

A path is a cluster of rays: a point in (delay, horizontal angle, vertical angle) that every polarisation,
user antenna and slot shares, with a small spread about it. To first order the rays' plane waves span four
atoms: the point's, and its derivative by each coordinate. Doppler stays open, because a cluster is wide in
it. Positions are in cycles per step of the axis, each in [0, 1): delay times subcarrier spacing, and the
spatial frequencies along columns and rows of the array. Ports are ordered (polarisation, column, row).
``airlam.radio.path_search`` finds the paths.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting


@dataclass(frozen=True, slots=True, kw_only=True)
class DopplerBasis:
    """Compression of the history's slots and the Doppler dictionary seen through it.

    compression: complex64 [num_history, rank], orthonormal columns.
    atoms: complex64 [rank, num_doppler], compression^H exp(2j pi slot nu).
    future_atoms: complex64 [num_horizon, num_doppler], the same exponentials at the horizon.
    doppler_cycles_per_slot: float64 [num_doppler], the grid, rising evenly.
    """

    compression: torch.Tensor
    atoms: torch.Tensor
    future_atoms: torch.Tensor
    doppler_cycles_per_slot: torch.Tensor

    @property
    def rank(self) -> int:
        """Coefficients kept of each history."""
        return self.atoms.shape[0]

    @property
    def num_doppler(self) -> int:
        """Points of the Doppler grid."""
        return self.atoms.shape[1]

    @property
    def num_history(self) -> int:
        """Slots of history."""
        return self.compression.shape[0]


def doppler_basis(setting: PredictionSetting) -> DopplerBasis:
    """Top left singular vectors of exp(2j pi slot nu), |nu| <= W cycles per slot.

    A band of width 2W seen for T slots has about 2WT degrees of freedom (Slepian, Prolate spheroidal wave
    functions V, 1978); the rank is ceil(2WT) + 3, which leaves under 1e-4 of the power outside, and the grid
    has 4 ceil(2WT) + 1 points, two per resolution cell. W is at least 1/(8T), since a slower user cannot be
    told from a static one, and at most half a cycle, where Doppler aliases.
    """
    slots = torch.arange(setting.num_history + setting.num_horizon, dtype=torch.float64)
    half_width = min(max(setting.max_doppler_cycles_per_slot, 1 / (8 * setting.num_history)), 0.5)
    cells = math.ceil(2 * half_width * setting.num_history - 1e-9)
    doppler = torch.linspace(-half_width, half_width, 4 * cells + 1, dtype=torch.float64)
    exponentials = torch.exp(2j * math.pi * slots[:, None] * doppler)  # [slots, num_doppler]
    history = exponentials[: setting.num_history]
    rank = min(cells + 3, *history.shape)
    compression = torch.linalg.svd(history, full_matrices=False)[0][:, :rank]  # [num_history, rank]
    return DopplerBasis(
        compression=compression.to(torch.complex64),
        atoms=(compression.mH @ history).to(torch.complex64),
        future_atoms=exponentials[setting.num_history :].to(torch.complex64),
        doppler_cycles_per_slot=doppler,
    )


def subcarrier_indices(frequencies_hz: tuple[float, ...], spacing_hz: float, first_hz: float) -> torch.Tensor:
    """Frequencies as steps of the history's grid, counted from its first subcarrier: float32 [num]."""
    return (torch.tensor(frequencies_hz, dtype=torch.float64) - first_hz).div(spacing_hz).float()


NUM_ATOMS = 4  # the point, its derivatives by column, by row and by delay
# a cluster's spread: 2 degrees in azimuth (TR 38.901 table 7.5-6, UMa) and what UMa drops show in elevation
# and, strong clusters having sub-clusters, in delay
COLUMN_SPREAD_WAVELENGTHS = 0.028  # standard deviation of a ray's spatial frequency, cycles per wavelength
ROW_SPREAD_WAVELENGTHS = 0.022
DELAY_SPREAD_S = 3e-9
MAX_MOVE_CELLS = (0.25, 0.16, 0.16)  # at a time, in resolution cells of delay, columns and rows
_AXIS_ATOMS, AXIS_SIGNS = (3, 1, 2), (-1.0, 1.0, 1.0)  # the derivative by delay, column, row; its turn
_SUBCARRIER_ORDER, _COLUMN_ORDER, _ROW_ORDER = (0, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 0)  # of derivative


@dataclass(frozen=True, slots=True, kw_only=True)
class PathWaves:
    """The atoms of some paths as products of waves along the three axes; order 1 is the derivative.

    subcarriers: complex64 [batch, paths, 2, subcarriers]; columns, rows: complex64 [batch, paths, 2, size].
    """

    subcarriers: torch.Tensor
    columns: torch.Tensor
    rows: torch.Tensor

    @property
    def ports(self) -> torch.Tensor:
        """Point, column derivative and row derivative over the array: [batch, paths, 3, columns * rows]."""
        by_column, by_row = (_index(order[:3], self.rows.device) for order in (_COLUMN_ORDER, _ROW_ORDER))
        columns = self.columns.index_select(2, by_column).unsqueeze(-1)  # [batch, paths, 3, columns, 1]
        rows = self.rows.index_select(2, by_row).unsqueeze(-2)  # [batch, paths, 3, 1, rows]
        return (columns * rows).flatten(-2)

    def points(self) -> torch.Tensor:
        """The points' atoms, written out: complex64 [batch, points, paths]."""
        waves = self.subcarriers[:, :, 0].unsqueeze(3) * self.ports[:, :, :1]  # [batch, paths, f, c * r]
        return waves.flatten(2).mT  # [batch, points, paths]

    def gram(self) -> torch.Tensor:
        """A^H A of all atoms, paths outside, atoms inside: complex64 [batch, paths * 4, paths * 4]."""
        product: torch.Tensor | None = None
        for waves, orders in (
            (self.subcarriers, _SUBCARRIER_ORDER),
            (self.columns, _COLUMN_ORDER),
            (self.rows, _ROW_ORDER),
        ):
            flat = waves.flatten(1, 2)  # [batch, paths * 2, size]
            num_paths = waves.shape[1]
            axis = (flat.conj() @ flat.mT).view(-1, num_paths, 2, num_paths, 2)
            order = _index(orders, flat.device)
            spread = axis.index_select(2, order).index_select(4, order)  # [batch, paths, 4, paths, 4]
            product = spread if product is None else product.mul_(spread)
        assert product is not None
        return product.flatten(3, 4).flatten(1, 2)

    def project(self, field: torch.Tensor) -> torch.Tensor:
        """A^H y: complex64 [batch, paths, 4, columns of y].

        field: complex64 [batch, points, columns of y], points ordered (subcarrier, column, row).
        """
        batch, num_paths, _, num_subcarriers = self.subcarriers.shape
        ports = self.ports.conj()
        cube = field.reshape(batch, num_subcarriers, -1)
        along = (self.subcarriers.flatten(1, 2).conj() @ cube).view(batch, num_paths, 2, ports.shape[-1], -1)
        return torch.cat([ports @ along[:, :, 0], ports[:, :, :1] @ along[:, :, 1]], dim=2)

    def synthesise(self, coefficients: torch.Tensor) -> torch.Tensor:
        """A x, the adjoint of ``project``: complex64 [batch, paths, 4, k] to [batch, points, k]."""
        ports = self.ports.mT  # [batch, paths, columns * rows, 3]
        fields = torch.stack(
            [ports @ coefficients[:, :, :3], ports[..., :1] @ coefficients[:, :, 3:]], dim=2
        )  # [batch, paths, 2, columns * rows, columns of y]
        flat = fields.flatten(3).flatten(1, 2)  # [batch, paths * 2, ports * columns of y]
        cube = self.subcarriers.flatten(1, 2).mT @ flat  # [batch, subcarriers, ports * columns of y]
        return cube.reshape(len(cube), -1, coefficients.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class PathGrid:
    """Axes on which paths live: history subcarriers, array columns and rows, and the target subcarriers.

    target_steps: float32 [num_target_subcarriers], target frequencies in steps of the history's grid.
    """

    num_subcarriers: int
    num_cols: int
    num_rows: int
    num_polarizations: int
    target_steps: torch.Tensor
    subcarrier_spacing_hz: float = 1.0
    antenna_spacing_wavelengths: float = 0.5

    @staticmethod
    def of(setting: PredictionSetting) -> "PathGrid":
        """The axes of a setting; SpecError unless the history's subcarriers are evenly spaced."""
        frequencies = setting.history_frequencies_hz
        spacing_hz = frequencies[1] - frequencies[0] if len(frequencies) > 1 else 1.0
        steps = subcarrier_indices(frequencies, spacing_hz, frequencies[0])
        if spacing_hz <= 0 or (steps - torch.arange(len(steps))).abs().max() > 1e-3:
            raise SpecError(
                f"history_frequencies_hz step by {spacing_hz:g} Hz at first but not throughout; "
                "paths need an evenly spaced, rising grid: predict from one band"
            )
        return PathGrid(
            num_subcarriers=len(frequencies),
            num_cols=setting.base_station.num_cols,
            num_rows=setting.base_station.num_rows,
            num_polarizations=setting.base_station.num_polarizations,
            target_steps=subcarrier_indices(setting.target_frequencies_hz, spacing_hz, frequencies[0]),
            subcarrier_spacing_hz=spacing_hz,
            antenna_spacing_wavelengths=setting.base_station.spacing_wavelengths,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(subcarriers, columns, rows) of the history."""
        return (self.num_subcarriers, self.num_cols, self.num_rows)

    @property
    def num_points(self) -> int:
        """Subcarriers of the history times columns times rows."""
        return math.prod(self.shape)

    @property
    def spread(self) -> torch.Tensor:
        """Prior power of a path's atoms relative to the point's: float32 [4], zero along axes of one step.

        A ray at offset e from the point adds 2j pi e times the derivative atom's norm, so the power is
        (2 pi deviation of e)^2 times the variance of the steps.
        """
        return _spread(self.shape, self.subcarrier_spacing_hz, self.antenna_spacing_wavelengths)

    def history_waves(self, position: torch.Tensor) -> PathWaves:
        """Unit-norm atoms on the history's subcarriers. position: float [batch, paths, 3]."""
        return _history_axes(self.shape, position.device).waves(position)

    def target_waves(self, position: torch.Tensor) -> PathWaves:
        """The same paths on the target's subcarriers, scaled alike."""
        steps = self.target_steps.to(position.device, torch.float64)
        return _Axes.of(self.shape, steps).waves(position)

    def history_atoms(self, position: torch.Tensor) -> torch.Tensor:
        """The points' atoms, written out: complex64 [batch, points, paths]."""
        return self.history_waves(position).points()

    def target_atoms(self, position: torch.Tensor) -> torch.Tensor:
        """The same on the target's subcarriers."""
        return self.target_waves(position).points()

    def offsets(self, coefficients: torch.Tensor) -> torch.Tensor:
        """How far each path lies from where its atoms stand: float64 [batch, paths, 3], cycles per step.

        A path that lies e further has derivative coefficients 2j pi e (deviation of the steps) times the
        point's, a later one turning the other way along frequency; e is the least-squares fit of that, within
        ``MAX_MOVE_CELLS``. coefficients: complex [batch, paths, 4, snapshots].
        """
        point = coefficients[:, :, :1]  # [batch, paths, 1, snapshots]
        energy = torch.view_as_real(point).square().sum((2, 3, 4)).clamp_min(1e-20)  # [batch, paths]
        atoms = coefficients.index_select(
            2, _index(_AXIS_ATOMS, point.device)
        )  # [batch, paths, 3, snapshots]
        slope = (point.conj() * atoms).imag.sum(3)  # [batch, paths, 3]
        per_slope, limit = (each.to(slope) for each in _move_factors(self.shape, slope.device))
        offset = slope * per_slope / energy.unsqueeze(2)
        return offset.clamp(-limit, limit).double()

    def moved(self, position: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Positions moved by ``offset``, each coordinate kept in [0, 1); float64 [batch, paths, 3]."""
        return (position.double() + offset).remainder(1.0)

    def snapshots(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Links to the points where atoms live: [batch, subcarriers * cols * rows, snapshots, steps].

        coefficients: [batch, steps, user_ant, port, subcarriers]; steps are slots or compressed coefficients.
        A snapshot is one (user antenna, polarisation).
        """
        return rearrange(
            coefficients,
            "b t u (p c r) f -> b (f c r) (u p) t",
            p=self.num_polarizations,
            c=self.num_cols,
            r=self.num_rows,
        )

    def links(self, snapshots: torch.Tensor) -> torch.Tensor:
        """Inverse of ``snapshots``, on any number of subcarriers."""
        return rearrange(
            snapshots,
            "b (f c r) (u p) t -> b t u (p c r) f",
            p=self.num_polarizations,
            c=self.num_cols,
            r=self.num_rows,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """Waves along subcarriers, columns and rows, end to end: exp(j position turn) amplitude.

    sizes: of the axes; axis: int64 [sum of sizes], which coordinate; turn: float64, radians per cycle;
    amplitude: float64, 1 / sqrt(steps of the axis); slope: float64, (step - middle) / deviation, which makes
    the derivative: on an axis of the history the two are orthonormal.
    """

    sizes: list[int]
    axis: torch.Tensor
    turn: torch.Tensor
    amplitude: torch.Tensor
    slope: torch.Tensor

    def waves(self, position: torch.Tensor) -> PathWaves:
        """The atoms of paths at ``position``, float [batch, paths, 3]."""
        coordinate = position.double().index_select(-1, self.axis)  # [batch, paths, sum of sizes]
        phase = coordinate * self.turn  # float32 phases would cost 60 dB
        wave = torch.polar(self.amplitude.expand(phase.shape), phase)  # [batch, paths, sum of sizes]
        both = torch.stack([wave, wave * self.slope], dim=-2).to(torch.complex64)
        subcarriers, columns, rows = torch.split(both, self.sizes, dim=-1)
        return PathWaves(subcarriers=subcarriers, columns=columns, rows=rows)

    @staticmethod
    def of(shape: tuple[int, int, int], subcarriers: torch.Tensor) -> "_Axes":
        """subcarriers: float64 [num], in steps of the history's grid; columns and rows follow from shape."""
        device = subcarriers.device
        steps = [subcarriers, *(torch.arange(n, dtype=torch.float64, device=device) for n in shape[1:])]
        sizes = torch.tensor([len(each) for each in steps], device=device)

        def along(values: Iterable[float]) -> torch.Tensor:
            return torch.tensor(list(values), dtype=torch.float64, device=device).repeat_interleave(sizes)

        every = torch.cat(steps)
        middle = along((n - 1) / 2 for n in shape)
        return _Axes(
            sizes=sizes.tolist(),
            axis=torch.arange(3, device=device).repeat_interleave(sizes),
            turn=2 * math.pi * along(AXIS_SIGNS) * every,
            amplitude=along(n**-0.5 for n in shape),
            slope=(every - middle) / along(step_deviations(shape)),
        )


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _index(order: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A constant choice of indices: making the tensor takes longer than choosing, on one link."""
    return torch.tensor(order, device=device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _spread(
    shape: tuple[int, int, int], subcarrier_spacing_hz: float, antenna_spacing_wavelengths: float
) -> torch.Tensor:
    """See ``PathGrid.spread``."""
    cycles = (
        COLUMN_SPREAD_WAVELENGTHS * antenna_spacing_wavelengths,
        ROW_SPREAD_WAVELENGTHS * antenna_spacing_wavelengths,
        DELAY_SPREAD_S * subcarrier_spacing_hz,
    )
    subcarriers, columns, rows = ((n * n - 1) / 12 for n in shape)
    ratios = [(2 * math.pi * c) ** 2 * v for c, v in zip(cycles, (columns, rows, subcarriers), strict=True)]
    return torch.tensor([1.0, *(min(ratio, 0.3) for ratio in ratios)])


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _history_axes(shape: tuple[int, int, int], device: torch.device) -> _Axes:
    """The axes of a history, which every evaluation asks for."""
    return _Axes.of(shape, torch.arange(shape[0], dtype=torch.float64, device=device))


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _move_factors(shape: tuple[int, int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cycles per step for a slope of the point's energy, signed, and the longest move: float32 [3] each."""
    per_slope = [s / (2 * math.pi * d) for s, d in zip(AXIS_SIGNS, step_deviations(shape), strict=True)]
    limit = [c / n if n > 1 else 0.0 for c, n in zip(MAX_MOVE_CELLS, shape, strict=True)]
    return torch.tensor(per_slope, device=device), torch.tensor(limit, device=device)


def step_deviations(shape: tuple[int, int, int]) -> tuple[float, float, float]:
    """Standard deviation of the steps along each axis: sqrt((n^2 - 1) / 12), or 1 for one step."""
    subcarriers, columns, rows = (math.sqrt((n * n - 1) / 12) if n > 1 else 1.0 for n in shape)
    return subcarriers, columns, rows
