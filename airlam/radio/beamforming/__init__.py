"""Precoders of a loaded downlink, what bounds them, and beams out of codebooks.

Conventions are those of ``airlam.radio.precoding``, whose maximum ratio, zero forcing and regularised zero
forcing are the start of all this: h complex [..., num_users, num_bs_ant], row k user k's downlink response,
not conjugated; w complex [..., num_bs_ant, num_users].
"""

from airlam.radio.beamforming.codebooks import (
    beams_of,
    best_codeword,
    best_type1_codeword,
    dft_codebook,
    type1_codebook,
)
from airlam.radio.beamforming.dirty_paper import SumCapacity, dirty_paper_bound, sum_capacity
from airlam.radio.beamforming.ergodic import ergodic_wmmse, sample_channels
from airlam.radio.beamforming.hybrid import HybridPrecoder, hybrid_by_matching_pursuit, with_digital_wmmse
from airlam.radio.beamforming.multicell import Cells, multicell_rates_bit_per_s_per_hz, multicell_wmmse
from airlam.radio.beamforming.per_antenna import per_antenna_wmmse, scale_to_antenna_power
from airlam.radio.beamforming.power import scale_to_total_power
from airlam.radio.beamforming.robust import (
    SureChannels,
    assured_rates_bit_per_s_per_hz,
    robust_regularized_zero_forcing,
    robust_wmmse,
    sure_channels,
)
from airlam.radio.beamforming.structure import optimal_structure, received_powers, structure_parameters
from airlam.radio.beamforming.wmmse import wmmse

__all__ = [
    "Cells",
    "HybridPrecoder",
    "SumCapacity",
    "SureChannels",
    "assured_rates_bit_per_s_per_hz",
    "beams_of",
    "best_codeword",
    "best_type1_codeword",
    "dft_codebook",
    "dirty_paper_bound",
    "ergodic_wmmse",
    "hybrid_by_matching_pursuit",
    "multicell_rates_bit_per_s_per_hz",
    "multicell_wmmse",
    "optimal_structure",
    "per_antenna_wmmse",
    "received_powers",
    "robust_regularized_zero_forcing",
    "robust_wmmse",
    "sample_channels",
    "scale_to_antenna_power",
    "scale_to_total_power",
    "structure_parameters",
    "sum_capacity",
    "sure_channels",
    "type1_codebook",
    "with_digital_wmmse",
    "wmmse",
]
