"""Conversions between dB and linear; everywhere else powers and ratios are linear."""

import math

SPEED_OF_LIGHT_M_PER_S = 299_792_458.0
KMH_PER_M_PER_S = 3.6


def db_to_linear(ratio_db: float) -> float:
    """10^(x/10): a power ratio in dB to linear."""
    return float(10.0 ** (ratio_db / 10.0))


def linear_to_db(ratio: float) -> float:
    """10 log10(x): a positive linear power ratio to dB."""
    return 10.0 * math.log10(ratio)
