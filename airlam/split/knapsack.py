"""The most data that fit into a band: devices of unequal weight, each with the share it needs."""

import math

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.int64]
Members = NDArray[np.intp]


def integer_weights(weights: NDArray[np.float64], resolution: int) -> Levels:
    """Weights as whole numbers that add up to about ``resolution`` at most, int64 [num_devices].

    Whole ones are divided by their greatest common divisor; where that is not possible or leaves too much,
    they are rounded to multiples of their sum / ``resolution``.
    """
    if (weights == np.round(weights)).all() and weights.max() < 2**53:
        whole = weights.astype(np.int64)
        whole //= np.gcd.reduce(whole)
        if whole.sum() <= resolution:
            return whole
    rounded: Levels = np.round(weights * (resolution / weights.sum())).astype(np.int64)
    return rounded


def knapsack_fill(levels: Levels, shares: NDArray[np.float64]) -> tuple[int, Members]:
    """maximise sum levels s.t. sum shares <= 1; of those, the set with the smallest sum of shares.

    Dynamic programming over levels, O(num_devices x sum of levels): after device k, ``least[v]`` is the least
    share with which devices up to k reach exactly v. Returns the level and the indices of the devices.
    """
    usable = np.flatnonzero((shares <= 1) & (levels > 0))
    total = int(levels[usable].sum())
    least = np.full(total + 1, math.inf)
    least[0] = 0.0
    taken = np.zeros((len(usable), total + 1), dtype=bool)
    reached = 0
    for row, device in enumerate(usable):
        level = int(levels[device])
        reached += level
        with_device = least[: reached - level + 1] + shares[device]
        taken[row, level : reached + 1] = with_device < least[level : reached + 1]
        np.minimum(least[level : reached + 1], with_device, out=least[level : reached + 1])
    best = int(np.flatnonzero(least <= 1)[-1])
    return best, usable[_backtrack(taken, levels[usable], best)]


def _backtrack(taken: NDArray[np.bool_], levels: Levels, level: int) -> Members:
    """Rows on the way to ``level``."""
    rows = []
    for row in range(len(levels) - 1, -1, -1):
        if taken[row, level]:
            rows.append(row)
            level -= int(levels[row])
    return np.array(rows[::-1], dtype=np.intp)


def greedy_fill(levels: Levels, shares: NDArray[np.float64]) -> tuple[int, Members]:
    """As ``knapsack_fill`` without its guarantee: by level per share, each where it still fits.

    O(num_devices log num_devices).
    """
    usable = np.flatnonzero((shares <= 1) & (levels > 0))
    with np.errstate(divide="ignore"):
        order = usable[np.argsort(-levels[usable] / shares[usable], kind="stable")]
    members, left = [], 1.0
    for device in order:
        if shares[device] <= left:
            members.append(int(device))
            left -= shares[device]
    return int(levels[members].sum()), np.array(members, dtype=np.intp)
