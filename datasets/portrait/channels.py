"""How a dataset's channels spread over delay, Doppler and azimuth: panels of its portrait."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from airlam.datasets.card import MAX_LAG, delay_spread_s
from airlam.datasets.portrait.sample import spread
from airlam.datasets.portrait.spectra import (
    HANN_WIDTH,
    azimuth_spectrum,
    clarke_correlation,
    clarke_spectrum,
    delay_profile,
    doppler_grid_hz,
    doppler_spectrum,
    hold_error,
)
from airlam.panels import Curve, CurvePanel, Panel
from airlam.specs import DatasetSpec
from airlam.units import SPEED_OF_LIGHT_M_PER_S

MAX_SLOTS, MAX_SUBCARRIERS = 8, 16  # of the sample that enter a spectrum over the other axis
FLOOR_DB = -45.0  # of the delay profile, below which there is nothing to see
DOPPLER_FLOOR_DB = -40.0
AZIMUTH_FLOOR_DB = -30.0


def channel_panels(
    links: torch.Tensor, speed_m_per_s: NDArray[np.float64], spec: DatasetSpec
) -> list[Panel | str]:
    """All that the channels themselves show, or why not.

    links: as ``unit_power`` returns them, of the uplink band. speed_m_per_s: float64 [num_links].
    """
    return [
        _delay_panel(links, spec),
        *_doppler_panels(links, speed_m_per_s, spec),
        _azimuth_panel(links, spec),
    ]


def _delay_panel(links: torch.Tensor, spec: DatasetSpec) -> Panel | str:
    """Power over delay, as far as it stands out of the floor."""
    grid = spec.grid
    if grid.num_uplink_subcarriers == 1:
        return "No delay profile: a single subcarrier tells no delays apart."
    delays_s, power = delay_profile(_thin(links, 1, MAX_SLOTS), grid.subcarrier_spacing_hz)
    power_db = _decibels(power)
    seen = np.flatnonzero(power_db > FLOOR_DB)
    shown = slice(max(0, seen[0] - 2), seen[-1] + 3)
    bandwidth_hz = grid.num_uplink_subcarriers * grid.subcarrier_spacing_hz
    spread_s = float(delay_spread_s(links[:, None], grid.subcarrier_spacing_hz).mean())
    note = (
        f"RMS delay spread {spread_s * 1e9:.3g} ns, resolution {HANN_WIDTH:g}/B = "
        f"{HANN_WIDTH / bandwidth_hz * 1e9:.3g} ns"
    )
    curve = Curve(label="measured", x=delays_s[shown] * 1e6, y=power_db[shown])
    return CurvePanel(
        title="Power delay profile",
        x_label="delay, µs",
        y_label="power, dB",
        curves=(curve,),
        note=note,
        bottom=FLOOR_DB,
    )


def _doppler_panels(
    links: torch.Tensor, speed_m_per_s: NDArray[np.float64], spec: DatasetSpec
) -> list[Panel | str]:
    """Power over Doppler, and the error of holding the channel, each with Clarke's; speeds: [num_links]."""
    if spec.grid.num_slots == 1:
        return ["No Doppler spectrum: a single slot shows no motion."]
    tops_hz = speed_m_per_s * spec.channel.carrier_frequency_hz / SPEED_OF_LIGHT_M_PER_S
    return [_doppler_panel(links, tops_hz, spec), _hold_panel(links, tops_hz, spec)]


def _doppler_panel(links: torch.Tensor, tops_hz: NDArray[np.float64], spec: DatasetSpec) -> CurvePanel:
    """As far as either curve stands out of the floor; tops_hz: [num_links]."""
    grid = spec.grid
    frequency_hz = doppler_grid_hz(grid.num_slots, grid.slot_duration_s)
    _, measured = doppler_spectrum(_thin(links, -1, MAX_SUBCARRIERS), grid.slot_duration_s)
    clarke = clarke_spectrum(tops_hz, grid.num_slots, grid.slot_duration_s)
    seen = _decibels(np.maximum(measured, clarke)) > DOPPLER_FLOOR_DB
    shown = np.abs(frequency_hz) <= np.abs(frequency_hz[seen]).max()
    return CurvePanel(
        title="Doppler spectrum",
        x_label="Doppler shift, Hz",
        y_label="density, dB (white: 0 dB)",
        curves=(
            Curve(label="measured", x=frequency_hz[shown], y=_decibels(measured)[shown]),
            Curve(label="Clarke, theory", x=frequency_hz[shown], y=_decibels(clarke)[shown], look="theory"),
        ),
        note=f"top shift {spec.max_doppler_hz:.3g} Hz, resolution {HANN_WIDTH:g}/T = "
        f"{HANN_WIDTH / (grid.num_slots * grid.slot_duration_s):.3g} Hz",
        bottom=DOPPLER_FLOOR_DB,
    )


def _hold_panel(links: torch.Tensor, tops_hz: NDArray[np.float64], spec: DatasetSpec) -> CurvePanel:
    """The error against Clarke's, and the RMS Doppler that each one's first lag stands for."""
    slot_s = spec.grid.slot_duration_s
    measured = hold_error(links, MAX_LAG)  # [num_lags]
    clarke = 2 - 2 * clarke_correlation(tops_hz, len(measured) + 1, slot_s)[1:]  # [num_lags]
    lags_ms = np.arange(1, len(measured) + 1) * slot_s * 1e3
    rms_hz = [math.sqrt(each[0]) / (2 * math.pi * slot_s) for each in (measured, clarke)]
    return CurvePanel(
        title="Error of holding the channel",
        x_label="age of the channel, ms",
        y_label="NMSE",
        curves=(
            Curve(label="measured", x=lags_ms, y=measured),
            Curve(label="Clarke, theory", x=lags_ms, y=clarke, look="theory"),
        ),
        note=f"RMS Doppler {rms_hz[0]:.3g} Hz, Clarke {rms_hz[1]:.3g} Hz",
        log=bool(measured.min() > 0 and clarke.min() > 0),
    )


def _azimuth_panel(links: torch.Tensor, spec: DatasetSpec) -> Panel | str:
    if spec.base_station.num_cols == 1:
        return ""
    few = _thin(_thin(links, -1, MAX_SUBCARRIERS // 2), 1, MAX_SLOTS // 2)
    angles_deg, power = azimuth_spectrum(few, spec.base_station)
    columns = spec.base_station.num_cols
    return CurvePanel(
        title="Azimuth at the base station",
        x_label="azimuth from the boresight, degrees",
        y_label="power, dB",
        curves=(Curve(label="measured", x=angles_deg, y=_decibels(power)),),
        note=f"{columns} columns, {spec.base_station.spacing_wavelengths:g} wavelengths apart",
        bottom=max(AZIMUTH_FLOOR_DB, float(_decibels(power).min()) - 3.0),
    )


def _thin(links: torch.Tensor, dim: int, wanted: int) -> torch.Tensor:
    """At most ``wanted`` evenly spread entries along an axis."""
    return links.index_select(dim, torch.from_numpy(spread(links.shape[dim], wanted)))


def _decibels(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """10 log10, with what is nothing at -100 dB."""
    level: NDArray[np.float64] = 10 * np.log10(power.clip(min=1e-10))
    return level
