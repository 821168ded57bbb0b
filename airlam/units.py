"""Conversions between dB and linear; everywhere else powers and ratios are linear."""

import typing
from typing import TypeVar

import numpy as np
import torch

SPEED_OF_LIGHT_M_PER_S = 299_792_458.0
KMH_PER_M_PER_S = 3.6

Real = TypeVar("Real", float, np.ndarray, torch.Tensor)


def db_to_linear(ratio_db: Real) -> Real:
    """10^(x/10): a power ratio in dB to linear; same kind and shape as given."""
    return typing.cast(Real, 10.0 ** (ratio_db / 10.0))


def linear_to_db(ratio: float) -> float:
    """10 log10(x): a positive linear power ratio to dB."""
    return float(10.0 * np.log10(ratio))
