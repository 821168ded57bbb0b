r"""Beams out of a finite list: DFT beams, the 5G Type-I single-panel codebook, and how to pick from them.

Ports are ordered (polarisation, column, row) as ``ArraySpec`` orders them. TS 38.214 numbers them likewise,
its first dimension (N1) being our columns and its second (N2) our rows. A codeword is a column w of norm 1,
to be sent as it is: user k receives h_k w.
"""

import math

import torch
from einops import rearrange

from airlam.errors import SpecError
from airlam.radio.precoding import equal_stream_power
from airlam.specs import ArraySpec

_NUM_PHASES = 4  # co-phasing of the second polarisation: 1, j, -1, -j


def dft_codebook(array: ArraySpec, oversampling: tuple[int, int] = (1, 1)) -> torch.Tensor:
    r"""Beams of one polarisation, over (column, row): w = a(l / (O1 N1)) x a(m / (O2 N2)) / sqrt(N1 N2).

    a(f)_n = exp(2 pi j f n). On a dual-polarised array each beam stands twice, once on each polarisation,
    the other one silent; without oversampling they are an orthonormal basis then, too.
    Returns complex64 [num_codewords, num_ports], polarisation slowest, then l, then m.
    """
    beams = _grid_of_beams(array, oversampling)  # [l m, column row]
    polarizations = torch.eye(array.num_polarizations)
    codebook = torch.einsum("pq,cn->pcqn", polarizations.to(beams.dtype), beams)
    return rearrange(codebook, "p c q n -> (p c) (q n)").to(torch.complex64)


def type1_oversampling(array: ArraySpec) -> tuple[int, int]:
    """(O1, O2) of TS 38.214, table 5.2.2.2.1-2: 4 along a dimension of more than one antenna, else 1."""
    return (4 if array.num_cols > 1 else 1), (4 if array.num_rows > 1 else 1)


def type1_codebook(array: ArraySpec) -> torch.Tensor:
    r"""Rank 1 of the Type-I single-panel codebook: w_lmn = [v_lm; phi_n v_lm] / sqrt(P), phi_n = j^n.

    v_lm = [u_m; exp(2 pi j l / (O1 N1)) u_m; ...], u_m = [1; exp(2 pi j m / (O2 N2)); ...]: TS 38.214,
    table 5.2.2.2.1-5 (codebookMode 1). Panels that table 5.2.2.2.1-2 does not list follow the same rule.

    Returns complex64 [N1 O1, N2 O2, 4, num_ports]: the first two axes are i_1,1 and i_1,2, the third is i_2.
    """
    if array.num_polarizations != 2:
        raise SpecError("a Type-I codebook is for dual-polarised arrays; take dft_codebook for a single one")
    oversampling = type1_oversampling(array)
    beams = _grid_of_beams(array, oversampling)  # [l m, column row]
    phases = torch.exp(0.5j * math.pi * torch.arange(_NUM_PHASES, dtype=torch.float64))  # [4]
    second = phases[:, None] * beams[:, None]  # [l m, 4, column row]
    first = beams[:, None].expand_as(second)
    words = torch.cat([first, second], dim=-1) / math.sqrt(2)  # [l m, 4, num_ports]
    num_l = oversampling[0] * array.num_cols
    return rearrange(words, "(l m) n p -> l m n p", l=num_l).to(torch.complex64)


def best_codeword(h: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The codeword of the most received power, summed over subcarriers: the wideband choice.

    h: complex [..., num_subcarriers, num_bs_ant]; codebook: complex [num_codewords, num_bs_ant].
    Returns int64 [...].
    """
    return received_power(h, codebook).sum(-2).argmax(-1)


def best_type1_codeword(h: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One beam (i_1) for the band and the co-phasing (i_2) of each subcarrier, of the most power in sum.

    h: complex [..., num_subcarriers, num_bs_ant]; codebook: ``type1_codebook``'s. With one subcarrier it is
    the wideband choice. Returns the beam as int64 [...], counted over (l, m), and int64 [...,
    num_subcarriers].
    """
    num_phases = codebook.shape[2]
    words = rearrange(codebook, "l m n p -> (l m n) p")
    power = rearrange(received_power(h, words), "... f (b n) -> ... f b n", n=num_phases)
    best, phase = power.max(-1)  # [..., num_subcarriers, l m]
    beam = best.sum(-2).argmax(-1)  # [...]
    chosen = phase.take_along_dim(beam[..., None, None], dim=-1)  # [..., num_subcarriers, 1]
    return beam, chosen[..., 0]


def received_power(h: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """|h w|^2 of each codeword: complex [..., num_bs_ant] to float [..., num_codewords]."""
    return (h @ codebook.to(h).mT).abs().square()


def beams_of(index: torch.Tensor, codebook: torch.Tensor, total_power: float = 1.0) -> torch.Tensor:
    """The precoder that sends each user its codeword, with equal powers.

    index: int64 [..., num_users]; codebook: complex [num_codewords, num_bs_ant].
    Returns complex [..., num_bs_ant, num_users]. Regularised zero forcing on what the users fed back is
    ``regularized_zero_forcing(codebook[index].conj(), ...)`` instead.
    """
    return equal_stream_power(codebook[index].mT, total_power)


def _grid_of_beams(array: ArraySpec, oversampling: tuple[int, int]) -> torch.Tensor:
    """Beams of norm 1 over one polarisation, rows fastest: complex128 [l m, column row]."""
    if min(oversampling) < 1:
        raise SpecError(f"oversampling must be at least 1, got {oversampling}")
    columns = _steering(array.num_cols, oversampling[0])  # [l, column]
    rows = _steering(array.num_rows, oversampling[1])  # [m, row]
    return rearrange(torch.einsum("lc,mr->lmcr", columns, rows), "l m c r -> (l m) (c r)")


def _steering(num_antennas: int, oversampling: int) -> torch.Tensor:
    """exp(2 pi j l n / (O N)) / sqrt(N): complex128 [O N, N]."""
    num_beams = oversampling * num_antennas
    turns = torch.outer(torch.arange(num_beams), torch.arange(num_antennas)).double() / num_beams  # [O N, N]
    return torch.exp(2j * math.pi * turns) / math.sqrt(num_antennas)
