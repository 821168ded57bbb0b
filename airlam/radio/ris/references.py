"""Phases in closed form or nearly so: of one user, of strong channels, of beams made without the surface."""

import torch

from airlam.errors import SpecError
from airlam.radio.beamforming.power import Scalar, per_link
from airlam.radio.precoding import regularized_zero_forcing
from airlam.radio.ris.surface import SurfaceLinks, unit

_STEPS = 10


def aligned_reflection(links: SurfaceLinks) -> torch.Tensor:
    r"""The best phases of one user and one base station antenna: every path in phase with the direct one.

    r_n = exp(i (arg d - arg(s_n g_n))), which gives |h| = |d| + sum_n |s_n g_n|. Wu, Zhang, IEEE Trans.
    Wireless Commun. 18 (2019). SpecError where there are more. Returns complex [..., num_elements].
    """
    if links.direct.shape[-2:] != (1, 1):
        raise SpecError(
            f"links are of {links.direct.shape[-2]} users and {links.direct.shape[-1]} antennas; phases are "
            "aligned for one of each, so take alternating"
        )
    paths = links.surface_users[..., 0, :] * links.base_surface[..., 0]  # [..., num_elements]
    return unit(links.direct[..., 0, :] * paths.conj())


def strongest_reflection(links: SurfaceLinks, *, num_steps: int = _STEPS) -> torch.Tensor:
    r"""Phases that raise the total gain ||H(r)||^2, by power iterations that keep to the unit circle.

    r_n <- phase of (S^H H(r) G^H)_nn, from the direct link's own, S^H D G^H. The gain is a convex function of
    r, which is no less than its tangent, so a step never lowers it. For one user and one antenna the first
    step is ``aligned_reflection``. Returns complex [..., num_elements].
    """
    reflection = _towards(links, links.direct)
    for _ in range(num_steps):
        reflection = _towards(links, links.effective(reflection), reflection)
    return reflection


def beam_aligned_reflection(
    links: SurfaceLinks, noise_variance: Scalar, total_power: float = 1.0
) -> torch.Tensor:
    r"""Phases with which the surface adds to what each user hears of its own beam.

    Beams w_k are of regularised zero forcing without the surface, whose d_k w_k is above 0, and r_n has the
    phase of sum_k conj(s_kn g_n w_k) / ||s_k||: interference is left to where it was. From here alternating
    optimisation starts higher than from strong channels or random phases. A reconstruction. Returns complex
    [..., num_elements].
    """
    noise = per_link(noise_variance, links.direct, "noise_variance")
    streams = links.base_surface @ regularized_zero_forcing(links.direct, noise, total_power)
    norm = torch.linalg.vector_norm(links.surface_users, dim=-1, keepdim=True)  # [..., num_users, 1]
    heard = links.surface_users / torch.where(norm > 0, norm, 1.0)
    return unit((heard.mT * streams).sum(-1).conj())


def _towards(links: SurfaceLinks, h: torch.Tensor, otherwise: torch.Tensor | None = None) -> torch.Tensor:
    heard = links.surface_users.mH @ h  # [..., num_elements, num_bs_ant]
    return unit((heard * links.base_surface.conj()).sum(-1), otherwise)
