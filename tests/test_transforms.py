"""Delay and angle transforms: unitary, inverted exactly, and a plane wave lands in one bin."""

import pytest
import torch

from airlam.radio.transforms import from_delay_angle, to_angle, to_delay, to_delay_angle
from airlam.specs import ArraySpec

ARRAYS = [
    ArraySpec(num_rows=2, num_cols=3, polarization="dual", polarization_type="cross"),
    ArraySpec(num_rows=4, num_cols=1),
    ArraySpec(),
]


@pytest.mark.parametrize("array", ARRAYS)
def test_unitary_and_inverse(array: ArraySpec) -> None:
    h = torch.randn(2, 3, array.num_ports, 5, dtype=torch.complex128)
    z = to_delay_angle(h, array)
    assert z.shape == h.shape
    torch.testing.assert_close(z.abs().square().sum(), h.abs().square().sum())
    torch.testing.assert_close(from_delay_angle(z, array), h)


def test_a_delayed_ray_lands_in_its_tap() -> None:
    f = torch.arange(16)
    z = to_delay(torch.exp(-2j * torch.pi * f * 3 / 16))
    expected = torch.zeros(16, dtype=z.dtype)
    expected[3] = 4.0  # sqrt(16)
    torch.testing.assert_close(z, expected, atol=1e-4, rtol=0)


def test_a_plane_wave_lands_in_its_beam_of_each_polarisation() -> None:
    array = ArraySpec(num_rows=2, num_cols=4, polarization="dual", polarization_type="VH")
    col, row = torch.meshgrid(torch.arange(4), torch.arange(2), indexing="ij")
    wave = torch.exp(2j * torch.pi * (col * 1 / 4 + row * 1 / 2)).flatten()
    ports = torch.cat([wave, 0.5 * wave])[:, None]
    beams = to_angle(ports, array)[:, 0].reshape(2, 4, 2)
    expected = torch.zeros(2, 4, 2, dtype=beams.dtype)
    expected[:, 1, 1] = torch.tensor([8**0.5, 0.5 * 8**0.5])
    torch.testing.assert_close(beams, expected, atol=1e-5, rtol=0)
