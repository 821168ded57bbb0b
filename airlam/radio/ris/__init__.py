"""Reconfigurable intelligent surfaces: the channel their phases decide, and phases joint with a precoder.

Conventions are those of ``airlam.radio.beamforming``; a surface's reflection is complex [..., num_elements],
each entry of magnitude 1.
"""

from airlam.radio.ris.alternating import JointPrecoder, accelerated, alternating
from airlam.radio.ris.phases import (
    Minorant,
    Streams,
    discrete_sweep,
    element_slopes,
    majorised,
    sweep,
    weighted_rate,
)
from airlam.radio.ris.references import aligned_reflection, beam_aligned_reflection, strongest_reflection
from airlam.radio.ris.surface import SurfaceLinks, phase_levels, quantised, random_reflection, unit

__all__ = [
    "JointPrecoder",
    "Minorant",
    "Streams",
    "SurfaceLinks",
    "accelerated",
    "aligned_reflection",
    "alternating",
    "beam_aligned_reflection",
    "discrete_sweep",
    "element_slopes",
    "majorised",
    "phase_levels",
    "quantised",
    "random_reflection",
    "strongest_reflection",
    "sweep",
    "unit",
    "weighted_rate",
]
