"""Powers of a precoder: per-link scalars, and the total met exactly."""

import torch

from airlam.errors import SpecError

Scalar = torch.Tensor | float  # one number for all links, or float [...] with one of each link


def per_link(value: Scalar, h: torch.Tensor, what: str) -> torch.Tensor:
    """``value`` as a real tensor that broadcasts over the links of ``h`` [..., rows, columns]: float [...].

    SpecError unless all of it is positive; ``what`` names it there.
    """
    scalar = torch.as_tensor(value, dtype=h.real.dtype, device=h.device)
    if not bool((scalar > 0).all()):
        raise SpecError(f"{what} must be positive, got {float(scalar.min())}")
    return scalar


def power_of(w: torch.Tensor) -> torch.Tensor:
    """Total power of each precoder: complex [..., num_bs_ant, num_streams] to float [...]."""
    return w.abs().square().sum(dim=(-2, -1))


def scale_to_total_power(w: torch.Tensor, total_power: Scalar) -> torch.Tensor:
    """The same precoder with all of the power; a precoder of zeros stays so.

    w: complex [..., num_bs_ant, num_streams]; total_power: positive, a number or float [...].
    Returns complex, same shape.
    """
    power = power_of(w)  # [...]
    silent = power <= 0
    gain = per_link(total_power, w, "total_power") / torch.where(silent, 1.0, power)  # [...]
    scaled: torch.Tensor = w * torch.where(silent, 0.0, gain).sqrt()[..., None, None]
    return scaled


def unit_columns(w: torch.Tensor) -> torch.Tensor:
    """Columns of norm 1; a column of zeros stays so, and passes no gradient.

    w: complex [..., num_bs_ant, num_streams]. Returns complex, same shape.
    """
    norm = torch.linalg.vector_norm(w, dim=-2, keepdim=True)  # [..., 1, num_streams]
    return w / torch.where(norm > 0, norm, 1.0)
