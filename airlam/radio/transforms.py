"""Unitary transforms between antenna-frequency and angle-delay, each with its exact inverse.

All of them keep shape and energy, so white noise stays white with the same variance.
"""

import torch
from einops import rearrange

from airlam.specs import ArraySpec


def to_delay(h_freq: torch.Tensor) -> torch.Tensor:
    r"""Subcarriers to delay taps: z_d = F^{-1/2} sum_f h_f exp(+2 pi i f d / F).

    h_freq: complex [..., num_subcarriers]. Returns complex, same shape, [..., num_taps].
    """
    h_delay: torch.Tensor = torch.fft.ifft(h_freq, dim=-1, norm="ortho")
    return h_delay


def from_delay(h_delay: torch.Tensor) -> torch.Tensor:
    """The inverse of ``to_delay``; complex [..., num_taps] to [..., num_subcarriers]."""
    h_freq: torch.Tensor = torch.fft.fft(h_delay, dim=-1, norm="ortho")
    return h_freq


def to_angle(h: torch.Tensor, array: ArraySpec) -> torch.Tensor:
    r"""Ports to beams: the two-dimensional unitary DFT over (column, row), for each polarisation.

    h: complex [..., num_ports, num_subcarriers], ports ordered (polarisation, column, row).
    Returns complex, same shape, with the ports replaced by (polarisation, horizontal beam, vertical beam).
    """
    return _grid(torch.fft.fft2(_ungrid(h, array), dim=(-3, -2), norm="ortho"))


def from_angle(h_angle: torch.Tensor, array: ArraySpec) -> torch.Tensor:
    """The inverse of ``to_angle``; shapes as there."""
    return _grid(torch.fft.ifft2(_ungrid(h_angle, array), dim=(-3, -2), norm="ortho"))


def to_delay_angle(h_freq: torch.Tensor, array: ArraySpec) -> torch.Tensor:
    """Both transforms: complex [..., num_ports, num_subcarriers] to [..., num_beams, num_taps]."""
    return to_angle(to_delay(h_freq), array)


def from_delay_angle(h_delay_angle: torch.Tensor, array: ArraySpec) -> torch.Tensor:
    """The inverse of ``to_delay_angle``."""
    return from_delay(from_angle(h_delay_angle, array))


def _ungrid(h: torch.Tensor, array: ArraySpec) -> torch.Tensor:
    pattern = "... (pol col row) f -> ... pol col row f"
    return rearrange(h, pattern, pol=array.num_polarizations, col=array.num_cols, row=array.num_rows)


def _grid(h: torch.Tensor) -> torch.Tensor:
    return rearrange(h, "... pol col row f -> ... (pol col row) f")
