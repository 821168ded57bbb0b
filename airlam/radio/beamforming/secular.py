"""The multiplier of a power constraint, where the precoder is a regularised solution of a linear system."""

import torch

_MAX_STEPS = 50  # 4 to 8 are needed


def multiplier_for_power(
    eigenvalues: torch.Tensor, content: torch.Tensor, power_limit: torch.Tensor
) -> torch.Tensor:
    r"""1 / (mu + lambda_l) with the least mu >= 0 such that sum_l content_l / (mu + lambda_l)^2 <= the limit.

    Newton's method on 1 / sqrt(power), which is concave and nearly straight in mu: from 0 it climbs to the
    root and never passes it. More, Sorensen, SIAM J. Sci. Stat. Comput. 4 (1983), sec. 3. Eigenvalues below
    rounding, whose content is only rounding too, are left out.

    eigenvalues, content: float [..., n], none negative but by rounding, eigenvalues ascending; power_limit:
    float [...]. Returns float [..., n]; the power is at most the limit, to rounding.
    """
    floor = eigenvalues[..., -1:] * eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps  # [..., 1]
    known = eigenvalues > floor  # [..., n]
    values = torch.where(known, eigenvalues, 1.0)
    content = torch.where(known, content, 0.0)
    limit = power_limit[..., None]  # [..., 1]
    multiplier = torch.zeros_like(floor)
    for _ in range(_MAX_STEPS):
        inverse = 1.0 / (values + multiplier)  # [..., n]
        power = (content * inverse.square()).sum(-1, keepdim=True)  # [..., 1]
        excess = power / limit  # [..., 1]
        if bool((excess <= 1.0 + 1e2 * torch.finfo(excess.dtype).eps).all()):
            break
        slope = (content * inverse**3).sum(-1, keepdim=True).clamp_min(torch.finfo(excess.dtype).tiny)
        multiplier = multiplier + (excess.sqrt() - 1.0).clamp_min(0.0) * power / slope
    exact = excess.clamp_min(1.0).rsqrt()  # takes away what rounding leaves
    return torch.where(known, inverse * exact, 0.0)
