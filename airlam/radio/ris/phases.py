r"""Phases for a given precoder: each step raises the weighted sum rate, or leaves it.

With streams C = G W at the elements, stream j reaches user k as a_kj = (D W)_kj + sum_n r_n s_kn c_nj. The
weighted sum rate of a has, at the receivers and weights of WMMSE, the quadratic minorant

    -f(r) = 2 Re sum_k conj(eta_k) a_kk - sum_k load_k sum_j |a_kj|^2,   eta_k = urgency_k a_kk / t_k

that touches it (Shi et al. 2011; in the form of fractional programming Guo, Liang, Chen, Larsson, IEEE Trans.
Wireless Commun. 19 (2020)). ``sweep`` minimises f exactly over one element after another, in closed form;
``majorised`` moves all elements at once below an upper bound of f (Pan et al., IEEE J. Sel. Areas Commun. 38
(2020)). ``discrete_sweep`` looks at the rate itself for every level of an element.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange

from airlam.radio.beamforming.power import squared_magnitude
from airlam.radio.beamforming.wmmse import urgency_and_load
from airlam.radio.ris.surface import SurfaceLinks, unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """What a precoder sends, as the phases see it, over a noise of variance 1.

    fixed: complex [..., num_users, num_users], D W. at_elements: complex [..., num_elements, num_users], G W.
    surface_users: complex [..., num_users, num_elements].
    """

    fixed: torch.Tensor
    at_elements: torch.Tensor
    surface_users: torch.Tensor

    @staticmethod
    def of(links: SurfaceLinks, w: torch.Tensor) -> "Streams":
        """w: complex [..., num_bs_ant, num_users]; links over a noise of variance 1."""
        return Streams(
            fixed=links.direct @ w,
            at_elements=links.base_surface @ w,
            surface_users=links.surface_users,
        )

    def received(self, reflection: torch.Tensor) -> torch.Tensor:
        """a: complex [..., num_users, num_streams]; reflection: complex [..., num_elements]."""
        return self.fixed + (self.surface_users * reflection.unsqueeze(-2)) @ self.at_elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Minorant:
    """f of the module's text about a point. load: float [..., num_users]; target: complex, as load: eta."""

    load: torch.Tensor
    target: torch.Tensor

    @staticmethod
    def at(received: torch.Tensor, weights: torch.Tensor | None = None) -> "Minorant":
        """Where the rate of ``received`` (complex [..., num_users, num_streams]) touches it.

        weights: float [..., num_users], of the users' rates; 1 where not given.
        """
        power = squared_magnitude(received)
        own = power.diagonal(dim1=-2, dim2=-1)  # [..., num_users]
        rest = (power - torch.diag_embed(own)).sum(-1) + 1.0
        urgency, load = urgency_and_load(own, rest, weights)
        target = received.diagonal(dim1=-2, dim2=-1) * (urgency / (own + rest))
        return Minorant(load=load, target=target)

    def value(self, received: torch.Tensor) -> torch.Tensor:
        """f, which is minimised: float [...]."""
        power = squared_magnitude(received).sum(-1)
        own = received.diagonal(dim1=-2, dim2=-1)
        found: torch.Tensor = (self.load * power - 2 * (self.target.conj() * own).real).sum(-1)
        return found

    def slope(self, received: torch.Tensor) -> torch.Tensor:
        """df / d conj(a): complex [..., num_users, num_streams]."""
        return self.load.unsqueeze(-1) * received - torch.diag_embed(self.target)


def element_slopes(
    surface_users: torch.Tensor, at_elements: torch.Tensor, slope: torch.Tensor
) -> torch.Tensor:
    """df / d conj(r) from df / d conj(a): complex [..., num_elements]; the first two as in ``Streams``."""
    heard = surface_users.mH @ slope  # [..., num_elements, num_streams]
    return (heard * at_elements.conj()).sum(-1)


def _slopes(streams: Streams, minorant: Minorant, received: torch.Tensor) -> torch.Tensor:
    return element_slopes(streams.surface_users, streams.at_elements, minorant.slope(received))


def sweep(
    streams: Streams, reflection: torch.Tensor, weights: torch.Tensor | None = None, *, num_sweeps: int = 1
) -> torch.Tensor:
    r"""Minimises f over r_0, then r_1, ... then r_(N-1), ``num_sweeps`` times: complex [..., num_elements].

    f = r^H A r - 2 Re(r^H v) + const, so the best r_n has the phase of v_n - sum_{m != n} A_nm r_m. All drops
    go through an element together; rows of A and the remainder v - A r have the drops last.
    """
    received = streams.received(reflection)
    minorant = Minorant.at(received, weights)
    remainder = -_slopes(streams, minorant, received)  # v - A r, [..., num_elements]
    loaded = streams.surface_users * minorant.load.sqrt().unsqueeze(-1)
    rows = (loaded.mH @ loaded) * (streams.at_elements @ streams.at_elements.mH).mT  # A
    rows = rearrange(rows, "... n m -> n m (...)").contiguous()
    rest = rearrange(remainder, "... n -> n (...)").contiguous()
    r = rearrange(reflection, "... n -> n (...)").clone(memory_format=torch.contiguous_format)
    curvature = rows.diagonal().mT.real.contiguous()  # [num_elements, drops]
    for _ in range(num_sweeps):
        for n in range(len(r)):
            best = unit(torch.addcmul(rest[n], curvature[n], r[n]), r[n])
            rest.addcmul_(rows[:, n], r[n] - best)
            r[n] = best
    return r.mT.reshape(reflection.shape)


def majorised(
    streams: Streams,
    reflection: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    share: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """All elements at once, r <- phase of (share lambda r - df / d conj(r)), lambda above A's eigenvalues.

    With a share of 1 the rate never falls; a smaller one (a number, or float [...]) steps further and may.
    Other arguments and what is returned as in ``sweep``.
    """
    received = streams.received(reflection)
    minorant = Minorant.at(received, weights)
    bound = (share * _largest_curvature(streams, minorant)).unsqueeze(-1)  # [..., 1]
    return unit(bound * reflection - _slopes(streams, minorant, received), reflection)


def _largest_curvature(streams: Streams, minorant: Minorant) -> torch.Tensor:
    """No less than any eigenvalue of A, a product by entries of two positive semidefinite matrices.

    Schur: at most the largest eigenvalue of one, which its Frobenius norm is no less than, times the largest
    diagonal entry of the other. Float [...].
    """
    loaded = streams.surface_users * minorant.load.sqrt().unsqueeze(-1)  # [..., num_users, num_elements]
    users: torch.Tensor = torch.linalg.matrix_norm(loaded @ loaded.mH)
    sent: torch.Tensor = squared_magnitude(streams.at_elements).sum(-1).amax(-1)
    return users * sent


def discrete_sweep(
    streams: Streams, reflection: torch.Tensor, levels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """One element after another takes the level of the highest weighted sum rate, all else as it is.

    reflection: complex [..., num_elements], of ``levels`` (complex [num_levels]). Returns complex, likewise.
    """
    received = streams.received(reflection)
    found = reflection.clone()
    for n in range(reflection.shape[-1]):
        path = einsum(
            streams.surface_users[..., n], streams.at_elements[..., n, :], "... k, ... j -> ... k j"
        )
        without = received - found[..., n, None, None] * path
        tried = without.unsqueeze(-3) + levels[:, None, None] * path.unsqueeze(-3)  # [..., levels, k, j]
        rates = weighted_rate(tried, None if weights is None else weights.unsqueeze(-2))  # [..., levels]
        best = levels[rates.argmax(-1)]
        found[..., n] = best
        received = without + best[..., None, None] * path
    return found


def weighted_rate(received: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """sum_k weight_k log2(1 + SINR_k), bit/s/Hz, over a noise of variance 1: float [...].

    received: complex [..., num_users, num_streams]; weights: float [..., num_users].
    """
    power = squared_magnitude(received)
    own = power.diagonal(dim1=-2, dim2=-1)
    rest = (power - torch.diag_embed(own)).sum(-1) + 1.0
    rates = torch.log2(1 + own / rest)
    found: torch.Tensor = (rates if weights is None else weights * rates).sum(-1)
    return found
