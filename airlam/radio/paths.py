"""A link as a few paths: the axes they live on, their atoms, and the Doppler basis that compresses time.

A path is a point in (delay, horizontal angle, vertical angle) that every polarisation, user antenna and slot
shares; its Doppler spectrum stays open, because a cluster of rays is nearly a point in delay and angle but
spread in Doppler. Positions are in cycles per step of the axis, each in [0, 1): delay times subcarrier
spacing, and the spatial frequencies along columns and rows of the array. Ports are ordered (polarisation,
column, row). ``airlam.radio.path_search`` finds the paths.
"""

import math
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
    """

    compression: torch.Tensor
    atoms: torch.Tensor
    future_atoms: torch.Tensor

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
    )


def subcarrier_indices(frequencies_hz: tuple[float, ...], spacing_hz: float, first_hz: float) -> torch.Tensor:
    """Frequencies as steps of the history's grid, counted from its first subcarrier: float32 [num]."""
    return (torch.tensor(frequencies_hz, dtype=torch.float64) - first_hz).div(spacing_hz).float()


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
    def num_target_points(self) -> int:
        """Subcarriers of the target times columns times rows."""
        return len(self.target_steps) * self.num_cols * self.num_rows

    def history_atoms(self, position: torch.Tensor) -> torch.Tensor:
        """Unit-norm atoms on the history's subcarriers: [batch, subcarriers * cols * rows, paths]."""
        return self._atoms(position, torch.arange(float(self.num_subcarriers)))

    def target_atoms(self, position: torch.Tensor) -> torch.Tensor:
        """The same paths on the target's subcarriers, scaled alike: [batch, targets * cols * rows, paths]."""
        return self._atoms(position, self.target_steps)

    def _atoms(self, position: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """position: float32 [batch, paths, 3]; steps: float32 [subcarriers]."""
        delay, horizontal, vertical = position.unbind(-1)
        f = _exponential(-delay, steps.to(position.device), self.num_subcarriers)
        c = _exponential(horizontal, torch.arange(self.num_cols, device=position.device), self.num_cols)
        r = _exponential(vertical, torch.arange(self.num_rows, device=position.device), self.num_rows)
        ports = rearrange(c.unsqueeze(-1) * r.unsqueeze(-2), "b n c r -> b n (c r)")
        return rearrange(f.unsqueeze(-1) * ports.unsqueeze(-2), "b n f p -> b (f p) n")

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


def _exponential(frequency: torch.Tensor, steps: torch.Tensor, norm_steps: int) -> torch.Tensor:
    """exp(2j pi frequency step) / sqrt(norm_steps): [..., steps]."""
    phase = 2 * math.pi * frequency.unsqueeze(-1) * steps
    return torch.polar(torch.full_like(phase, norm_steps**-0.5), phase)
