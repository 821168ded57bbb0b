"""Which device tunes which block of one model: the round lasts as long as its slowest device.

After LoLa (2407.09873), in which devices tune different blocks and a deeper block costs more, since gradients
travel further back. Its algorithms CRUNCH and JBBA are not known here beyond the abstract; what follows is a
reconstruction that reaches the same optima. Depth 0 is the block nearest to the loss.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from airlam.errors import SpecError
from airlam.specs import require
from airlam.split.bandwidth import Array, Uplinks, least_delay, needed_shares, upload_s

_BEYOND_THE_BAND = 1e6  # a share that stands for: cannot be done in time
_PROGRESS = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAllocation:
    """device_of: int64 [num_blocks], by depth. shares: float64 [num_blocks] of the band, of those devices."""

    device_of: NDArray[np.int64]
    shares: Array
    delay_s: float


def match_blocks(delay_s: Array) -> tuple[NDArray[np.int64], float]:
    """minimise the largest delay over assignments of each block to a device of its own.

    delay_s: [num_devices, num_blocks], not falling with depth; infinite where a device cannot. Returns the
    devices by depth, int64 [num_blocks], and the largest delay in seconds.

    Within a time tau device k can do depths 0 .. D_k - 1, a prefix. Prefixes are nested, so Hall's condition
    comes down to num_blocks counts: at least num_blocks - j devices with D_k > j, for every depth j. The
    least tau that meets it is one of the entries. SpecError where not even endless time suffices.
    """
    num_devices, num_blocks = delay_s.shape
    with np.errstate(invalid="ignore"):
        falling = np.flatnonzero((np.diff(delay_s, axis=1) < 0).any(axis=1))
    at = int(falling[0]) if len(falling) else 0
    require(not len(falling), f"delays of device {at} fall with depth: {delay_s[at]}; expected them not to")
    times = np.unique(delay_s[np.isfinite(delay_s)])
    low, high = 0, len(times)
    while low < high:
        middle = (low + high) // 2
        if _lacking(delay_s, times[middle]) is None:
            high = middle
        else:
            low = middle + 1
    if low == len(times):
        depth = _lacking(delay_s, np.finfo(np.float64).max)
        able = int(np.isfinite(delay_s[:, depth]).sum()) if num_devices else 0
        raise SpecError(
            f"{num_blocks - (depth or 0)} devices must be able to tune depth {depth} or deeper; {able} are"
        )
    return _deepest_first(delay_s, times[low]), float(times[low])


def _lacking(delay_s: Array, tau: float) -> int | None:
    """The first depth for which too few devices are fast enough; None where all have enough."""
    num_blocks = delay_s.shape[1]
    able = (delay_s <= tau).sum(axis=0)
    short = np.flatnonzero(able < num_blocks - np.arange(num_blocks))
    return int(short[0]) if len(short) else None


def _deepest_first(delay_s: Array, tau: float) -> NDArray[np.int64]:
    """Each depth, deepest first, to the fastest device at it among those left; any in time would do."""
    num_blocks = delay_s.shape[1]
    device_of = np.empty(num_blocks, dtype=np.int64)
    left = np.where(delay_s <= tau, delay_s, math.inf)
    for depth in range(num_blocks - 1, -1, -1):
        device_of[depth] = np.argmin(left[:, depth])
        left[device_of[depth]] = math.inf
    return device_of


def allocate_blocks(
    *, fixed_delay_s: Array, payload_bits: Array, full_band_snr: Array, bandwidth_hz: float
) -> BlockAllocation:
    """minimise the largest delay over assignments of blocks to devices and shares of the band together.

    fixed_delay_s, payload_bits: [num_devices, num_blocks]; full_band_snr: [num_devices], linear.

    Starts from the best assignment at equal shares and alternates: the least delay of the assignment
    (``least_delay``), then the assignment that needs least of the band to be done by then (Hungarian method).
    Each turn is faster than the one before; when the cheapest assignment needs the whole band, none is done
    sooner, so the end is the joint optimum. The delay must not fall with depth at equal shares.
    """
    num_devices, num_blocks = fixed_delay_s.shape
    pairs = Uplinks.of(
        fixed_delay_s=fixed_delay_s.ravel(),
        payload_bits=payload_bits.ravel(),
        full_band_snr=np.repeat(full_band_snr, num_blocks),
        bandwidth_hz=bandwidth_hz,
    )
    equal = (pairs.fixed_delay_s + upload_s(pairs, 1.0 / num_blocks)).reshape(num_devices, num_blocks)
    device_of, _ = match_blocks(equal)
    depths = np.arange(num_blocks)
    while True:
        chosen = device_of * num_blocks + depths
        delay, shares = least_delay(pairs.take(chosen))
        needed = np.minimum(needed_shares(pairs, delay), _BEYOND_THE_BAND).reshape(num_devices, num_blocks)
        devices, blocks = linear_sum_assignment(needed)
        following = devices[np.argsort(blocks)]
        if needed[following, depths].sum() >= 1 - _PROGRESS or (following == device_of).all():
            return BlockAllocation(device_of=device_of, shares=shares, delay_s=delay)
        device_of = following
