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


def squared_magnitude(values: torch.Tensor) -> torch.Tensor:
    """|values|^2: complex [...] to float [...]; ``abs`` takes a root first, at several times the cost."""
    return (values * values.conj()).real


def power_of(w: torch.Tensor) -> torch.Tensor:
    """Total power of each precoder: complex [..., num_bs_ant, num_streams] to float [...]."""
    return squared_magnitude(w).sum(dim=(-2, -1))


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


def columns_of_power(w: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
    """Columns of the powers given; a column of zeros stays so, and passes no gradient.

    w: complex [..., num_bs_ant, num_streams]; powers: float [..., num_streams], none negative. Returns
    complex, as w. Differentiable in powers above 0.
    """
    found = squared_magnitude(w).sum(dim=-2)  # [..., num_streams]
    gain = (powers / torch.where(found > 0, found, 1.0)).sqrt()
    return w * gain.unsqueeze(-2)
