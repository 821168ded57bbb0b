"""What an array makes of the directions of its rays: element fields and array phases."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from sionna.phy.channel.tr38901 import PanelArray

Rows = TypeVar("Rows", bound="LinkRows")


class LinkRows:
    """A dataclass whose tensors share their first axis, the links."""

    def __getitem__(self: Rows, links: slice) -> Rows:
        changed: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor | LinkRows):
                changed[field.name] = value[links]
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, kw_only=True)
class End(LinkRows):
    """One end of the links and the directions of rays there.

    orientation: [links, 3], rad, bearing, downtilt and slant. zenith, azimuth: [links, rays], rad, global.
    """

    array: PanelArray
    orientation: torch.Tensor
    zenith: torch.Tensor
    azimuth: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Directions(LinkRows):
    """What an end sees of its rays.

    unit: [links, 3, rays], global. theta, phi: [links, polarisations, rays], an element's field.
    columns, rows: complex [links, columns, rays] and [links, rows, rays], array phases exp(j 2 pi r d /
    wavelength); None for a single element. port: each port's number in (polarisation, column, row) order;
    None where that is the order.
    """

    unit: torch.Tensor
    theta: torch.Tensor
    phi: torch.Tensor
    columns: torch.Tensor | None
    rows: torch.Tensor | None
    port: tuple[int, ...] | None

    def steering(self) -> torch.Tensor:
        """Array phases of each place of an element: complex [links, columns * rows, rays]."""
        assert self.columns is not None and self.rows is not None
        return (self.columns[:, :, None] * self.rows[:, None]).flatten(1, 2)


def directions(end: End, wavelength_m: torch.Tensor) -> Directions:
    """Fields, (7.3-4) and (7.1-11), and array phases of every ray; arrays lie in their local y-z plane."""
    sin_z, cos_z, sin_a, cos_a = end.zenith.sin(), end.zenith.cos(), end.azimuth.sin(), end.azimuth.cos()
    unit = (sin_z * cos_a, sin_z * sin_a, cos_z)  # each [links, rays]
    axes = rotation(end.orientation)[..., None]  # [links, global, local, 1]
    local = tuple(dot(unit, axes[:, :, j]) for j in range(3))  # each [links, rays]
    up = axes[:, :, 2]  # [links, 3, 1]
    real = sin_z * up[:, 2] - cos_z * (cos_a * up[:, 0] + sin_a * up[:, 1])
    imag = sin_a * up[:, 0] - cos_a * up[:, 1]
    theta, phi = _element_fields(end.array, local, real, imag)
    columns, rows, port = _steering(end.array, local, wavelength_m)
    return Directions(
        unit=torch.stack(unit, dim=1), theta=theta, phi=phi, columns=columns, rows=rows, port=port
    )


def dot(unit: tuple[torch.Tensor, ...], axis: torch.Tensor) -> torch.Tensor:
    """Product of vectors, three of [links, rays], with one a link, [links, 3, 1]: [links, rays]."""
    x, y, z = unit
    return x * axis[:, 0] + y * axis[:, 1] + z * axis[:, 2]


def rotation(orientation: torch.Tensor) -> torch.Tensor:
    """Local to global coordinates, (7.1-4): [links, 3] of bearing, downtilt and slant to [links, 3, 3]."""
    (sin_a, sin_b, sin_c), (cos_a, cos_b, cos_c) = orientation.sin().unbind(1), orientation.cos().unbind(1)
    rows = [
        [cos_a * cos_b, cos_a * sin_b * sin_c - sin_a * cos_c, cos_a * sin_b * cos_c + sin_a * sin_c],
        [sin_a * cos_b, sin_a * sin_b * sin_c + cos_a * cos_c, sin_a * sin_b * cos_c - cos_a * sin_c],
        [-sin_b, cos_b * sin_c, cos_b * cos_c],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _element_fields(
    array: PanelArray, local: tuple[torch.Tensor, ...], real: torch.Tensor, imag: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Global theta and phi components of each polarisation: [links, polarisations, rays].

    The pattern's amplitude a at slant angle s becomes a cos(psi + s), a sin(psi + s); psi, (7.1-15), is the
    angle of ``real`` + j ``imag``, which is as long as the local direction's distance from the local z axis.
    """
    across = torch.hypot(real, imag)  # [links, rays]
    zenith, azimuth = torch.atan2(across, local[2]), torch.atan2(local[1], local[0])
    elements = [array.ant_pol1] if array.polarization == "single" else [array.ant_pol1, array.ant_pol2]
    slants = [element.slant_angle for element in elements]
    along, beside = elements[0].field(zenith, azimuth)  # amplitude times cosine and sine of the slant
    amplitude = along * slants[0].cos() + beside * slants[0].sin()
    scale = amplitude / across.clamp_min(torch.finfo(across.dtype).tiny)
    cos_psi = torch.where(across == 0, amplitude, scale * real)  # on the axis psi is 0
    sin_psi = scale * imag
    theta = torch.stack([cos_psi * s.cos() - sin_psi * s.sin() for s in slants], dim=1)
    phi = torch.stack([sin_psi * s.cos() + cos_psi * s.sin() for s in slants], dim=1)
    return theta, phi


def _steering(
    array: PanelArray, local: tuple[torch.Tensor, ...], wavelength_m: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None, tuple[int, ...] | None]:
    """Array phases of columns and of rows, and the ports' order, as ``Directions`` has them."""
    if not bool(array.ant_pos.any()):
        return None, None, None
    columns, column = _distinct(array.ant_pos[:, 1])
    rows, row = _distinct(array.ant_pos[:, 2])
    by_column = phasor(local[1][:, None] * (2 * math.pi / wavelength_m * columns)[:, None])
    by_row = phasor(local[2][:, None] * (2 * math.pi / wavelength_m * rows)[:, None])
    polarization = torch.zeros_like(column)
    if array.polarization == "dual":
        polarization[array.ant_ind_pol2] = 1
    port = (polarization * len(columns) + column) * len(rows) + row
    order = tuple(port.tolist())
    return by_column, by_row, None if order == tuple(range(len(order))) else order


def _distinct(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct values in their order of appearance, and each value's place among them."""
    found = list(dict.fromkeys(values.tolist()))
    index = torch.tensor([found.index(value) for value in values.tolist()], device=values.device)
    return values.new_tensor(found), index


def phasor(phase: torch.Tensor) -> torch.Tensor:
    """exp(j phase); torch.polar and the complex exponential are many times slower on a CPU."""
    return torch.complex(phase.cos(), phase.sin())
