"""Codebooks are the standard's, in our port order, and the choice from them is the best one."""

import math

import pytest
import torch

from airlam.errors import SpecError
from airlam.radio.beamforming import (
    beams_of,
    best_codeword,
    best_type1_codeword,
    dft_codebook,
    type1_codebook,
)
from airlam.radio.beamforming.codebooks import received_power, type1_oversampling
from airlam.radio.transforms import to_angle
from airlam.specs import ArraySpec


def panel(rows: int, cols: int, *, dual: bool = True) -> ArraySpec:
    if dual:
        return ArraySpec(num_rows=rows, num_cols=cols, polarization="dual", polarization_type="cross")
    return ArraySpec(num_rows=rows, num_cols=cols)


def random_channel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "array", [panel(1, 4, dual=False), panel(2, 3, dual=False), panel(2, 4), panel(4, 1)]
)
def test_critically_sampled_dft_beams_are_a_basis(array: ArraySpec) -> None:
    codebook = dft_codebook(array)
    assert codebook.shape == (array.num_ports, array.num_ports) and codebook.dtype == torch.complex64
    torch.testing.assert_close(
        codebook @ codebook.mH, torch.eye(array.num_ports, dtype=torch.complex64), rtol=0, atol=1e-6
    )


def test_dft_beams_are_those_of_the_angle_transform() -> None:
    array = panel(2, 4)
    h = random_channel(5, array.num_ports)
    # a beam received is a beam sent, conjugated
    arrived = h @ dft_codebook(array).mH
    torch.testing.assert_close(arrived, to_angle(h[..., None], array)[..., 0], rtol=0, atol=1e-5)


def test_oversampling_refines_the_same_grid() -> None:
    array = panel(2, 4, dual=False)
    fine, coarse = dft_codebook(array, (4, 2)), dft_codebook(array)
    assert fine.shape == (16 * 4, 8)
    torch.testing.assert_close(fine.reshape(16, 4, 8)[::4, ::2].reshape(8, 8), coarse)


@pytest.mark.parametrize(
    ("rows", "cols", "oversampling"),
    [(1, 1, (1, 1)), (1, 2, (4, 1)), (2, 2, (4, 4)), (1, 8, (4, 1)), (2, 8, (4, 4)), (4, 4, (4, 4))],
)
def test_type1_codewords_are_the_formula_of_the_standard(
    rows: int, cols: int, oversampling: tuple[int, int]
) -> None:
    array = panel(rows, cols)
    assert type1_oversampling(array) == oversampling
    num_l, num_m = oversampling[0] * cols, oversampling[1] * rows
    codebook = type1_codebook(array)
    assert codebook.shape == (num_l, num_m, 4, 2 * rows * cols)
    for index_l, index_m, index_n in [(0, 0, 0), (num_l - 1, num_m // 2, 3), (num_l // 3, num_m - 1, 1)]:
        word = [
            (1j**index_n if pol else 1.0)
            * complex(
                math.cos(2 * math.pi * (index_l * col / num_l + index_m * row / num_m)),
                math.sin(2 * math.pi * (index_l * col / num_l + index_m * row / num_m)),
            )
            / math.sqrt(2 * rows * cols)
            for pol in range(2)
            for col in range(cols)
            for row in range(rows)
        ]
        expected = torch.tensor(word, dtype=torch.complex64)
        torch.testing.assert_close(codebook[index_l, index_m, index_n], expected, rtol=0, atol=1e-6)


def test_type1_words_are_of_norm_one_and_constant_modulus() -> None:
    codebook = type1_codebook(panel(2, 4))
    torch.testing.assert_close(codebook.abs(), torch.full(codebook.shape, 0.25))


def test_the_best_codeword_is_found_where_it_was_hidden() -> None:
    array = panel(2, 4)
    codebook = type1_codebook(array).reshape(-1, 16)
    for hidden in (0, 17, 200, len(codebook) - 1):
        h = 3.0 * codebook[hidden].conj().expand(2, 6, 16)  # flat in frequency
        assert (best_codeword(h, codebook) == hidden).all()
        torch.testing.assert_close(received_power(h, codebook)[..., hidden], torch.full((2, 6), 9.0))


def test_the_best_codeword_is_wideband() -> None:
    codebook = dft_codebook(panel(1, 4, dual=False))
    h = torch.stack([3.0 * codebook[0].conj(), 2.5 * codebook[1].conj(), 2.5 * codebook[1].conj()])  # [3, 4]
    assert best_codeword(h, codebook) == 1


def test_subband_phases_are_the_best_of_all_choices() -> None:
    array = panel(1, 2)
    codebook = type1_codebook(array)  # [8, 1, 4, 4]
    h = random_channel(5, 3, array.num_ports)
    beam, phase = best_type1_codeword(h, codebook)
    power = received_power(h, codebook.reshape(-1, 4)).reshape(5, 3, 8, 4)
    of_beams = power.amax(-1).sum(1)  # [5, 8]: phases are free on each subcarrier
    torch.testing.assert_close(beam, of_beams.argmax(-1))
    found = torch.stack([power[i, torch.arange(3), beam[i], phase[i]].sum() for i in range(5)])
    torch.testing.assert_close(found, of_beams.amax(-1))
    narrow, one_phase = best_type1_codeword(h[:, :1], codebook)
    torch.testing.assert_close(4 * narrow + one_phase[:, 0], best_codeword(h[:, :1], codebook.reshape(-1, 4)))


def test_beams_have_the_power_and_the_codewords() -> None:
    codebook = dft_codebook(panel(2, 2))
    w = beams_of(torch.tensor([[1, 4, 7], [0, 0, 2]]), codebook, 6.0)
    assert w.shape == (2, 8, 3)
    torch.testing.assert_close(w[0, :, 1], math.sqrt(2) * codebook[4])
    torch.testing.assert_close(w.abs().square().sum((-2, -1)), torch.full((2,), 6.0))


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(SpecError, match="for dual-polarised arrays"):
        type1_codebook(panel(2, 2, dual=False))
    with pytest.raises(SpecError, match="oversampling must be at least 1"):
        dft_codebook(panel(2, 2), (0, 1))
