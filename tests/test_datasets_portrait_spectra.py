"""Spectra of links: closed forms, equality with plain periodograms, and the memory they take."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.portrait.spectra import (
    azimuth_spectrum,
    clarke_correlation,
    clarke_spectrum,
    delay_profile,
    doppler_spectrum,
    hold_error,
    unit_power,
)
from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.specs import ArraySpec

SLOT_S = 0.5e-3


def tones(doppler_hz: torch.Tensor, num_slots: int = 20) -> torch.Tensor:
    """One single-antenna, single-subcarrier link a Doppler shift: complex64 [n, num_slots, 1, 1, 1]."""
    phase = 2 * math.pi * doppler_hz[:, None] * torch.arange(num_slots) * SLOT_S
    return torch.polar(torch.ones_like(phase), phase)[:, :, None, None, None].to(torch.complex64)


def test_a_single_path_peaks_at_its_delay() -> None:
    frequencies_hz = torch.arange(64) * 120e3
    links = torch.exp(-2j * math.pi * frequencies_hz * 1.5e-6).to(torch.complex64)[None, None, None, None]
    delays_s, power = delay_profile(links, 120e3)
    assert abs(delays_s[power.argmax()] - 1.5e-6) <= np.diff(delays_s)[0] and power.max() == 1
    far = np.abs(delays_s - 1.5e-6) > 3 / (64 * 120e3)
    assert power[far].max() < 10**-3.1  # Hann's sidelobes


def test_the_delay_profile_wraps_at_one_over_the_spacing() -> None:
    delays_s, _ = delay_profile(torch.ones(1, 1, 1, 1, 50, dtype=torch.complex64), 100e3)
    assert delays_s[0] == pytest.approx(-1e-6) and np.ptp(delays_s) == pytest.approx(1e-5, rel=0.01)


def test_the_doppler_spectrum_has_unit_mean_and_peaks_at_the_shift() -> None:
    frequency_hz, density = doppler_spectrum(tones(torch.tensor([-300.0])), SLOT_S)
    assert frequency_hz[density.argmax()] == pytest.approx(-300, abs=np.diff(frequency_hz)[0])
    assert density.mean() == pytest.approx(1, rel=1e-5)


def test_clarkes_spectrum_is_the_mean_over_waves_from_all_sides() -> None:
    angles = 2 * math.pi * (torch.arange(4000) + 0.5) / 4000
    for top_hz in (0.0, 90.0, 700.0):  # the last aliases nowhere, nearly; 0 leaves the window's own line
        _, density = doppler_spectrum(tones(top_hz * torch.cos(angles)), SLOT_S)
        theory = clarke_spectrum(np.array([top_hz]), 20, SLOT_S)
        assert np.abs(density - theory).max() < 1e-4 * theory.max()


def test_clarkes_spectrum_is_averaged_over_links() -> None:
    both = clarke_spectrum(np.array([50.0, 200.0]), 12, SLOT_S)
    each = [clarke_spectrum(np.array([top_hz]), 12, SLOT_S) for top_hz in (50.0, 200.0)]
    assert both == pytest.approx(np.mean(each, axis=0))


@pytest.mark.parametrize("direction", ["uplink", "downlink"])
def test_azimuth_points_at_users_in_line_of_sight(direction: Any) -> None:
    spec = packaged_spec("uma_multiuser")
    channel = dataclasses.replace(spec.channel, los="los", direction=direction)
    array = ArraySpec(num_rows=2, num_cols=8)
    spec = dataclasses.replace(spec, channel=channel, base_station=array, num_users=1)
    batch = draw_drops(spec, 1, 40)
    errors = []
    for drop in range(40):
        angles_deg, power = azimuth_spectrum(unit_power(batch.links()[drop : drop + 1])[0], array)
        true_deg = math.degrees(math.atan2(batch.position_m[drop, 0, 1], batch.position_m[drop, 0, 0]))
        errors.append(abs(angles_deg[power.argmax()] - true_deg))
    assert np.median(errors) < 3  # an eighth of the beam of eight columns


def test_links_without_power_are_left_out() -> None:
    links = torch.randn(3, 2, 4, 1, 2, 5, dtype=torch.complex64)
    links[1, 0] = 0
    scaled, kept = unit_power(links * 1e-7)
    assert kept.tolist() == [[True, True], [False, True], [True, True]]
    assert torch.allclose(scaled.abs().square().mean(dim=(1, 2, 3, 4)), torch.ones(5))


def random_links(*shape: int) -> torch.Tensor:
    """White complex64 links of a shape."""
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))


def periodogram(links: torch.Tensor, dim: int, num_points: int) -> np.ndarray[Any, Any]:
    """Mean |sum_k w_k x_k exp(-j 2 pi k m / N)|^2 by a transform that is padded with zeros."""
    length = links.shape[dim]
    along = links.movedim(dim, -1).to(torch.complex128) * torch.from_numpy(np.hanning(length + 2)[1:-1])
    return torch.fft.fft(along, n=num_points).abs().square().flatten(0, -2).mean(dim=0).numpy()


@pytest.mark.parametrize("num_links", [1, 40])
def test_spectra_are_mean_periodograms(num_links: int) -> None:
    links = random_links(num_links, 12, 2, 3, 300)  # several blocks where there are many links
    delays_s, profile = delay_profile(links, 1e3)
    expected = np.roll(periodogram(links, -1, 1200)[-np.arange(1200)], 120)  # delays turn the other way
    assert np.allclose(profile, expected / expected.max(), atol=1e-6)
    assert delays_s[120] == 0
    _, density = doppler_spectrum(links, SLOT_S)
    window = np.hanning(14)[1:-1]
    expected = np.fft.fftshift(periodogram(links, 1, 128)) / (window**2).sum()
    assert np.allclose(density, expected, rtol=1e-5)


def test_azimuth_of_a_plane_wave_is_where_it_comes_from() -> None:
    array = ArraySpec(num_cols=8, num_rows=2, polarization="dual", polarization_type="cross")
    column = torch.arange(8).repeat_interleave(2)  # of (column, row)
    links = torch.polar(torch.ones(32), math.pi * math.sin(math.radians(30)) * column.repeat(2))
    angles_deg, power = azimuth_spectrum(links[None, None, None, :, None], array)
    assert abs(angles_deg[power.argmax()] - 30) < 1
    assert power.min() < 1e-3 and power.max() == 1  # nulls between the lobes


def test_the_error_of_holding_a_tone_is_in_closed_form() -> None:
    error = hold_error(tones(torch.tensor([100.0])), 10)
    lags = np.arange(1, 11)
    assert error == pytest.approx(2 - 2 * np.cos(2 * math.pi * 100 * SLOT_S * lags), rel=1e-4)
    assert len(hold_error(tones(torch.tensor([100.0]), num_slots=4), 10)) == 3


def test_holding_waves_from_all_sides_meets_clarke_and_counts_links_alike() -> None:
    angles = 2 * math.pi * (torch.arange(400) + 0.5) / 400
    slow, fast = (tones(top_hz * torch.cos(angles)) for top_hz in (20.0, 150.0))
    clarke = 2 - 2 * clarke_correlation(np.array([20.0, 150.0]), 11, SLOT_S)[1:]
    assert hold_error(torch.cat([slow, fast]), 10) == pytest.approx(clarke, rel=1e-3)


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor):
                self.num_bytes = max(self.num_bytes, each.numel() * each.element_size())
        return made


def test_no_spectrum_makes_a_tensor_much_larger_than_the_links() -> None:
    links = random_links(64, 2, 1, 64, 64)  # 4 MiB; two slots make 128 lines, 64 columns 1025 angles
    with LargestTensor() as largest:
        delay_profile(links, 1e3)
        doppler_spectrum(links, SLOT_S)
        hold_error(links, 10)
        azimuth_spectrum(links, ArraySpec(num_cols=64))
    assert largest.num_bytes <= links.numel() * links.element_size()
