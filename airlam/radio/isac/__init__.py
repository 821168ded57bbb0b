"""Integrated sensing and communication: precoders that serve users and illuminate targets.

Conventions are those of ``airlam.radio.beamforming``; targets are complex [..., num_targets, num_bs_ant],
rows like those of users' channels, and illumination is float [..., num_targets]. The problem, and what is
derived of its solution, stand in ``illumination``.
"""

from airlam.radio.isac.beam import full_power_beam, illuminating_beam, largest_illumination
from airlam.radio.isac.illumination import (
    array_response,
    beam_share,
    illuminate,
    illumination_of,
    with_beam,
    with_sensing_stream,
)
from airlam.radio.isac.wmmse import sensing_wmmse

__all__ = [
    "array_response",
    "beam_share",
    "full_power_beam",
    "illuminate",
    "illuminating_beam",
    "illumination_of",
    "largest_illumination",
    "sensing_wmmse",
    "with_beam",
    "with_sensing_stream",
]
