"""Hybrid precoders use beams of the list, meet the power, and near the digital one as chains are added."""

import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.beamforming import (
    dft_codebook,
    hybrid_by_matching_pursuit,
    type1_codebook,
    with_digital_wmmse,
    wmmse,
)
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.specs import ArraySpec

NOISE = 0.1
PANEL = ArraySpec(num_rows=2, num_cols=4, polarization="dual", polarization_type="cross")


def random_channel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def test_beams_of_the_list_and_the_power_of_the_digital_one() -> None:
    codebook = type1_codebook(PANEL).flatten(0, 2)
    digital = regularized_zero_forcing(random_channel(5, 4, 16), NOISE, 3.0)
    hybrid = hybrid_by_matching_pursuit(digital, codebook, 6)
    assert hybrid.analog.shape == (5, 16, 6) and hybrid.digital.shape == (5, 6, 4)
    match = (codebook.conj() @ hybrid.analog).abs().amax(-2)  # [5, 6]
    torch.testing.assert_close(match, torch.ones(5, 6))
    torch.testing.assert_close(hybrid.analog.abs(), torch.full((5, 16, 6), 0.25))
    torch.testing.assert_close(hybrid.matrix.abs().square().sum((-2, -1)), torch.full((5,), 3.0))


def test_a_precoder_made_of_beams_is_found_exactly() -> None:
    codebook = dft_codebook(PANEL)
    chosen = torch.tensor([2, 7, 11])
    w = codebook[chosen].mT @ random_channel(3, 2)  # [16, 2]
    hybrid = hybrid_by_matching_pursuit(w, codebook, 3)
    torch.testing.assert_close(hybrid.matrix, w, rtol=1e-4, atol=1e-5)
    picked = (codebook.conj() @ hybrid.analog).abs().argmax(0)
    assert set(picked.tolist()) == set(chosen.tolist())


def test_a_beam_is_taken_once() -> None:
    codebook = type1_codebook(PANEL).flatten(0, 2)
    w = codebook[40][:, None] * torch.ones(1, 2, dtype=torch.complex64)  # nothing is left after one beam
    hybrid = hybrid_by_matching_pursuit(w, codebook, 3)
    overlap = (hybrid.analog.mH @ hybrid.analog).abs()
    assert (overlap - torch.diag(overlap.diagonal())).max() < 0.999
    torch.testing.assert_close(hybrid.matrix, w, rtol=1e-3, atol=1e-4)


def test_more_chains_come_nearer_until_nothing_is_missing() -> None:
    codebook = dft_codebook(PANEL)
    w = regularized_zero_forcing(random_channel(20, 4, 16), NOISE)
    errors = []
    for num_chains in (2, 4, 8, 12, 16):
        found = hybrid_by_matching_pursuit(w, codebook, num_chains)
        least_squares = found.analog @ torch.linalg.lstsq(found.analog, w).solution
        errors.append((w - least_squares).abs().square().sum((-2, -1)))
    assert (torch.stack(errors).diff(dim=0) <= 1e-6).all()
    torch.testing.assert_close(found.matrix, w, rtol=0, atol=1e-5)


def test_tuning_the_digital_part_gains_rate_and_keeps_the_power() -> None:
    h = random_channel(50, 4, 16)
    codebook = type1_codebook(PANEL).flatten(0, 2)
    digital = wmmse(h, NOISE, num_iterations=50)
    hybrid = hybrid_by_matching_pursuit(digital, codebook, 6)
    tuned = with_digital_wmmse(hybrid, h, NOISE, num_iterations=50)
    torch.testing.assert_close(tuned.analog, hybrid.analog)
    torch.testing.assert_close(tuned.matrix.abs().square().sum((-2, -1)), torch.ones(50), rtol=1e-5, atol=0)
    before, after, bound = (
        sum_rate_bit_per_s_per_hz(h, w, NOISE) for w in (hybrid.matrix, tuned.matrix, digital)
    )
    assert (after >= before - 1e-4).all()
    assert before.mean() < after.mean() < bound.mean()


def test_impossible_numbers_of_chains_are_refused() -> None:
    w = random_channel(16, 4)
    for num_chains in (0, 17):
        with pytest.raises(
            SpecError, match=f"num_chains is {num_chains}; 16 beams of 16 antennas allow 1 to 16"
        ):
            hybrid_by_matching_pursuit(w, dft_codebook(PANEL), num_chains)
