r"""What a reconfigurable intelligent surface does to a downlink: a channel that its phases decide.

N elements reflect what the base station sends, each with a phase of its own and without loss, so user k's
channel is

    h_k(r) = d_k + sum_n s_kn r_n g_n,   |r_n| = 1,

d_k from the base station directly, g_n from it to element n, s_kn from there to the user. Huang, Zappone,
Alexandropoulos, Debbah, Yuen, IEEE Trans. Wireless Commun. 18 (2019). Reflections between elements, their
losses and their frequency response are left out, as in that model.
"""

import math
from dataclasses import dataclass

import torch

from airlam.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceLinks:
    """Three links, rows not conjugated: what a receiver hears of each transmitter.

    direct: complex [..., num_users, num_bs_ant]. surface_users: complex [..., num_users, num_elements].
    base_surface: complex [..., num_elements, num_bs_ant]. SpecError where their sizes do not meet.
    """

    direct: torch.Tensor
    surface_users: torch.Tensor
    base_surface: torch.Tensor

    def __post_init__(self) -> None:
        users, elements = self.surface_users.shape[-2:]
        wanted = (*self.surface_users.shape[:-2], users, self.direct.shape[-1])
        if self.direct.shape != wanted or self.base_surface.shape[-2:] != (elements, wanted[-1]):
            raise SpecError(
                f"direct {tuple(self.direct.shape)}, surface_users {tuple(self.surface_users.shape)} and "
                f"base_surface {tuple(self.base_surface.shape)} do not meet; expected [..., users, "
                "antennas], [..., users, elements] and [..., elements, antennas]"
            )

    @property
    def num_elements(self) -> int:
        """Of the surface."""
        return self.surface_users.shape[-1]

    def effective(self, reflection: torch.Tensor) -> torch.Tensor:
        """H(r) = D + S diag(r) G; reflection r: complex [..., num_elements].

        Returns complex [..., num_users, num_bs_ant].
        """
        return self.direct + (self.surface_users * reflection.unsqueeze(-2)) @ self.base_surface

    def scaled(self, gain: float | torch.Tensor) -> "SurfaceLinks":
        """The same with every h_k(r) times ``gain``: a number, or float [..., 1, 1]."""
        return SurfaceLinks(
            direct=self.direct * gain,
            surface_users=self.surface_users * gain,
            base_surface=self.base_surface,
        )

    def to(self, target: torch.dtype | torch.device) -> "SurfaceLinks":
        """In another complex dtype, or on another device."""
        return SurfaceLinks(
            direct=self.direct.to(target),
            surface_users=self.surface_users.to(target),
            base_surface=self.base_surface.to(target),
        )


def unit(values: torch.Tensor, otherwise: torch.Tensor | None = None) -> torch.Tensor:
    """values / |values|: complex [...]; where that is 0 / 0, ``otherwise``, or 1 where that is not given."""
    found = values.sgn()
    return torch.where(found == 0, 1.0 if otherwise is None else otherwise, found)


def random_reflection(links: SurfaceLinks, generator: torch.Generator) -> torch.Tensor:
    """Phases uniform on the circle: complex [..., num_elements]."""
    real = links.surface_users.real
    shape = (*real.shape[:-2], real.shape[-1])
    phase = 2 * math.pi * torch.rand(shape, generator=generator, dtype=real.dtype)
    return torch.polar(torch.ones_like(phase), phase).to(real.device)


def phase_levels(num_bits: int, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
    """The 2^num_bits values exp(2 pi i l / 2^num_bits) that a switched element has: complex [num_levels]."""
    if num_bits < 1:
        raise SpecError(f"num_bits must be at least 1, got {num_bits}; None means phases of any value")
    num_levels = 2**num_bits
    phase = 2 * math.pi * torch.arange(num_levels, dtype=torch.float64) / num_levels
    return torch.polar(torch.ones_like(phase), phase).to(dtype)


def quantised(reflection: torch.Tensor, num_bits: int) -> torch.Tensor:
    """The nearest of ``phase_levels`` for each element: complex, as ``reflection``."""
    if num_bits < 1:
        raise SpecError(f"num_bits must be at least 1, got {num_bits}; None means phases of any value")
    step = 2 * math.pi / 2**num_bits
    phase = (reflection.angle() / step).round() * step
    return torch.polar(torch.ones_like(phase), phase)
