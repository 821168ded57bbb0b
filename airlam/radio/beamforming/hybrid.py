r"""Fewer transmit chains than antennas: an analog part that only turns phases, a digital part behind it.

W = F B: F [num_bs_ant, num_chains] has columns out of a list of beams, B [num_chains, num_users] is free.
"""

from dataclasses import dataclass

import torch

from airlam.errors import SpecError
from airlam.radio.beamforming.power import Scalar, power_of, scale_to_total_power
from airlam.radio.beamforming.wmmse import wmmse


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridPrecoder:
    """analog: complex [..., num_bs_ant, num_chains]; digital: complex [..., num_chains, num_users]."""

    analog: torch.Tensor
    digital: torch.Tensor

    @property
    def matrix(self) -> torch.Tensor:
        """What both do: complex [..., num_bs_ant, num_users]."""
        return self.analog @ self.digital


def hybrid_by_matching_pursuit(w: torch.Tensor, codebook: torch.Tensor, num_chains: int) -> HybridPrecoder:
    """The hybrid precoder nearest to a digital one, beam by beam, with the power of the digital one.

    Orthogonal matching pursuit: the beam that holds most of what is left of all streams, then least squares
    over the beams so far. El Ayach et al., IEEE Trans. Wireless Commun. 13 (2014), algorithm 1.

    w: complex [..., num_bs_ant, num_users]; codebook: complex [num_codewords, num_bs_ant], norm 1 and, for
    phase shifters, constant modulus (DFT beams of one polarisation, Type-I codewords).
    """
    if not 1 <= num_chains <= min(codebook.shape):
        raise SpecError(
            f"num_chains is {num_chains}; {codebook.shape[0]} beams of {codebook.shape[1]} antennas allow "
            f"1 to {min(codebook.shape)}"
        )
    beams = codebook.to(w)  # [num_codewords, num_bs_ant]
    analog = w[..., :, :0]  # [..., num_bs_ant, 0]
    residual = w
    for _ in range(num_chains):
        content = (beams.conj() @ residual).abs().square().sum(-1)  # [..., num_codewords]
        if analog.shape[-1]:
            taken = (beams.conj() @ analog).abs() > 1.0 - 1e-4  # [..., num_codewords, chains so far]
            content = content.masked_fill(taken.any(-1), -1.0)
        chosen = beams[content.argmax(-1)]  # [..., num_bs_ant]
        analog = torch.cat([analog, chosen[..., None]], dim=-1)
        digital = torch.linalg.lstsq(analog, w).solution  # [..., chains so far, num_users]
        residual = w - analog @ digital
    gain = (power_of(w) / power_of(analog @ digital).clamp_min(torch.finfo(w.real.dtype).tiny)).sqrt()
    return HybridPrecoder(analog=analog, digital=digital * gain[..., None, None])


def with_digital_wmmse(
    hybrid: HybridPrecoder,
    h: torch.Tensor,
    noise_variance: Scalar,
    total_power: Scalar = 1.0,
    *,
    num_iterations: int,
) -> HybridPrecoder:
    """The same analog part, its digital part tuned to the channel by WMMSE from where it is.

    With F = Q R, Q of orthonormal columns, WMMSE runs on the channel H Q, where powers are those at the
    antennas. h: complex [..., num_users, num_bs_ant]; noise_variance, total_power: positive, a number or
    float [...].
    """
    basis, triangle = torch.linalg.qr(hybrid.analog)  # [..., num_bs_ant, c], [..., c, c] of c chains
    start = scale_to_total_power(triangle @ hybrid.digital, 1.0)  # [..., num_chains, num_users]
    tuned = wmmse(h @ basis, noise_variance, total_power, num_iterations=num_iterations, start=start)
    digital = torch.linalg.solve_triangular(triangle, tuned, upper=True)
    return HybridPrecoder(analog=hybrid.analog, digital=digital)
