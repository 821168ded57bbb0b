r"""Uplink pilots: what a base station receives of them, and the channels that it estimates.

Users send known sequences at once, y = sum_k h_k^T s_k + n, y [num_bs_ant, length]. Users of another cell
may send the same sequence (pilot contamination): no processing of one pilot tells them apart but through
their covariances. By reciprocity h_k is the downlink row of user k, as in ``airlam.radio.precoding``.
Covariances are those of rows, C = E h^H h, C[m, n] = E conj(h_m) h_n, as
``airlam.radio.beamforming.robust`` takes them.
"""

import math
from dataclasses import dataclass

import torch

from airlam.errors import DataError, SpecError


def orthogonal_sequences(num_sequences: int, length: int) -> torch.Tensor:
    """Rows of a DFT matrix, of unit modulus: complex64 [num_sequences, length], S S^H = length I."""
    if not 1 <= num_sequences <= length:
        raise SpecError(
            f"{num_sequences} orthogonal sequences need as many symbols at least, length is {length}"
        )
    phase = torch.outer(torch.arange(num_sequences), torch.arange(length)).double() / length  # in turns
    return torch.exp(-2j * math.pi * phase).to(torch.complex64)


def received_pilots(
    h: torch.Tensor, sequences: torch.Tensor, noise_variance: float, generator: torch.Generator
) -> torch.Tensor:
    """sum_k h_k^T s_k + n with white noise, users of other cells being further rows of h and sequences.

    h: complex [..., num_users, num_bs_ant]; sequences: complex [num_users, length]; noise_variance: E |n|^2
    of an antenna and symbol. Returns complex [..., num_bs_ant, length].
    """
    clean = h.mT @ sequences.to(h)  # [..., num_bs_ant, length]
    noise = torch.randn(clean.shape, dtype=h.dtype, device=h.device, generator=generator)
    return clean + math.sqrt(noise_variance) * noise


def least_squares(received: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
    """y s_k^H / ||s_k||^2: each user's channel and all that shares its pilot, in noise.

    Sequences of unit modulus leave noise of variance E |n|^2 / length.
    received: complex [..., num_bs_ant, length]; sequences: complex [num_users, length], orthogonal.
    Returns complex [..., num_users, num_bs_ant].
    """
    sequences = sequences.to(received)
    energy = sequences.abs().square().sum(-1)  # [num_users]
    despread = received @ sequences.mH / energy  # [..., num_bs_ant, num_users]
    return despread.mT


def reused_pilots(shape: tuple[int, ...], share: float, generator: torch.Generator) -> torch.Tensor:
    """Whose pilot is used in the other cell, too: round(share * num_users) users of each link, at random.

    shape: (..., num_users). Returns bool, that shape.
    """
    if not 0.0 <= share <= 1.0:
        raise SpecError(f"the share of reused pilots must be 0 to 1, got {share}")
    num_reused = round(share * shape[-1])
    rank = torch.rand(shape, generator=generator).argsort(-1).argsort(-1)  # a random permutation
    return rank < num_reused


def observe_contaminated(
    h: torch.Tensor,
    other: torch.Tensor,
    reused: torch.Tensor,
    noise_variance: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Least squares from orthogonal pilots, one symbol a user, some of them reused in the other cell.

    h, other: complex [..., num_users, num_bs_ant], to this cell's base station from its own users and from
    those of the other cell, user by user; reused: bool [..., num_users], whether the other cell's user k
    sends, on pilot k; noise_variance: of an antenna and symbol, so of the estimate noise_variance /
    num_users.
    Returns complex [..., num_users, num_bs_ant].
    """
    sequences = orthogonal_sequences(h.shape[-2], h.shape[-2])
    senders = torch.cat([h, other * reused[..., None]], dim=-2)  # [..., 2 num_users, num_bs_ant]
    received = received_pilots(senders, torch.cat([sequences, sequences]), noise_variance, generator)
    return least_squares(received, sequences)


def row_covariance(rows: torch.Tensor) -> torch.Tensor:
    """E h^H h over all leading axes: complex [..., num_bs_ant] to complex [num_bs_ant, num_bs_ant]."""
    flat = rows.reshape(-1, rows.shape[-1])  # [num_rows, num_bs_ant]
    if len(flat) == 0:
        raise DataError("no channels to take a covariance of; give at least one")
    return flat.mH @ flat / len(flat)


@dataclass(frozen=True, slots=True, kw_only=True)
class LmmseEstimator:
    r"""h = y (C + R + s2 I)^-1 C from a least-squares row y; R is 0 where the pilot is not reused.

    own, interfering: complex [num_bs_ant, num_bs_ant], ``row_covariance`` of training drops, or complex [...,
    num_users, num_bs_ant, num_bs_ant] where each user's is known. Kay, Fundamentals of Statistical Signal
    Processing: Estimation Theory (1993), sec. 12.5.
    """

    own: torch.Tensor
    interfering: torch.Tensor

    @staticmethod
    def fit(own: torch.Tensor, interfering: torch.Tensor) -> "LmmseEstimator":
        """Pools training channels of both kinds, complex [..., num_bs_ant] each."""
        return LmmseEstimator(own=row_covariance(own), interfering=row_covariance(interfering))

    def estimate(
        self, observed: torch.Tensor, reused: torch.Tensor, noise_variance: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The channels and the covariance of their error, E e^H e.

        observed: complex [..., num_users, num_bs_ant], from ``least_squares``; reused: bool [..., num_users];
        noise_variance: of the observation, positive.
        Returns complex [..., num_users, num_bs_ant] and complex [..., num_users, num_bs_ant, num_bs_ant].
        """
        if noise_variance <= 0:
            raise SpecError(f"noise_variance must be positive, got {noise_variance}")
        clean, mixed = (self._filter(share, noise_variance, observed) for share in (0, 1))
        estimates = [(observed[..., None, :] @ gain)[..., 0, :] for gain, _ in (clean, mixed)]
        estimate = torch.where(reused[..., None], estimates[1], estimates[0])  # [..., num_users, num_bs_ant]
        return estimate, torch.where(reused[..., None, None], mixed[1], clean[1])

    def _filter(
        self, share: int, noise_variance: float, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """G = (C + share R + s2 I)^-1 C and the error's C - C G, both of the covariances' shape."""
        own, interfering = (c.to(like.device, torch.complex128) for c in (self.own, self.interfering))
        identity = torch.eye(own.shape[-1], dtype=own.dtype, device=own.device)
        gain = torch.linalg.solve(own + share * interfering + noise_variance * identity, own)
        error = own - own @ gain
        return gain.to(like.dtype), (0.5 * (error + error.mH)).to(like.dtype)
