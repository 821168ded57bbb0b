"""What the panels of a portrait read: evenly spread drops, and values that make sense."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError

Drops = NDArray[np.integer[Any]] | slice
ALL = slice(None)


def spread(total: int, wanted: int) -> NDArray[np.int64]:
    """At most ``wanted`` whole numbers below ``total``, evenly spaced and in order."""
    return np.linspace(0, total - 1, min(total, wanted)).round().astype(np.int64)


def read_values(dataset: ChannelDataset, split: str, name: str, drops: Drops = ALL) -> NDArray[np.float64]:
    """A field of some drops: float64 [drops, ...]; DataError where a value is not finite."""
    values: NDArray[np.float64] = dataset.field(split, name, drops).double().numpy()
    if not np.isfinite(values).all():
        raise DataError(f"{dataset.path}: {split} has NaN or infinity in {name}; generate it again")
    return values
