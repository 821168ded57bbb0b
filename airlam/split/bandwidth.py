"""How much band a device needs to be done in time, and how fast a given set of devices can be done.

Device k works for a fixed time t_k and sends q_k bits over its share b_k of a cell's band of B Hz, at R_k =
b_k B log2(1 + s_k / b_k) bit/s: its power p_k goes into its share only, s_k = p_k g_k / (B N0) is its SNR
were the whole band its own. With x = s_k / b_k, the SNR in the share, it is done at

    tau_k = t_k + d_k x / ln(1 + x),        d_k = q_k ln2 / (B s_k),

where d_k is the time that sending takes with endless band. All of the following comes from this.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airlam.specs import require

Array = NDArray[np.float64]

FAINTEST_SNR = 1e-9  # on the whole band; below, nothing comes through, and shares would lose their digits
_SMALLEST = 1e-300  # stands for a load of zero, whose logarithm would not be finite
_NEAR = 0.01  # to a full band: one Halley step then does for the next time
_CLOSE = 3e-7  # to a full band
_ROUNDING = 1e-15  # relative, of delays
_MAX_STEPS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplinks:
    """What decides when the devices of one cell are done; float64 [num_devices] each.

    fixed_delay_s: t, work and everything else that does not depend on the uplink's share. full_band_snr: s,
    linear, of the device alone on the whole band; 0 below ``FAINTEST_SNR``. wideband_upload_s: d, 0 where
    nothing is to send and infinite where something is and nothing comes through.
    """

    fixed_delay_s: Array
    full_band_snr: Array
    wideband_upload_s: Array

    @classmethod
    def of(
        cls, *, fixed_delay_s: Array, payload_bits: Array, full_band_snr: Array, bandwidth_hz: float
    ) -> "Uplinks":
        """From payloads in bits and the band in Hz; SpecError where a value is negative or not finite."""
        require(0 < bandwidth_hz < math.inf, f"bandwidth_hz must be positive and finite, got {bandwidth_hz}")
        columns = {
            "fixed_delay_s": fixed_delay_s,
            "payload_bits": payload_bits,
            "full_band_snr": full_band_snr,
        }
        delay, payload, snr = (_checked(name, values) for name, values in columns.items())
        sizes = {name: values.shape for name, values in columns.items()}
        require(
            delay.shape == payload.shape == snr.shape, f"shapes differ: {sizes}; expected one entry a device"
        )
        snr = np.where(snr < FAINTEST_SNR, 0.0, snr)
        with np.errstate(divide="ignore", invalid="ignore"):
            upload = np.where(payload > 0, payload * math.log(2) / (bandwidth_hz * snr), 0.0)
        return cls(fixed_delay_s=delay, full_band_snr=snr, wideband_upload_s=upload)

    def __len__(self) -> int:
        return len(self.fixed_delay_s)

    def take(self, index: NDArray[Any]) -> "Uplinks":
        """Some devices, by index or mask."""
        return Uplinks(
            fixed_delay_s=self.fixed_delay_s[index],
            full_band_snr=self.full_band_snr[index],
            wideband_upload_s=self.wideband_upload_s[index],
        )

    @property
    def reachable(self) -> NDArray[np.bool_]:
        """Devices that can be done at all."""
        return np.isfinite(self.wideband_upload_s)


def _checked(name: str, values: Array) -> Array:
    found = np.asarray(values, dtype=np.float64)
    require(found.ndim == 1, f"{name} has shape {found.shape}; expected one entry a device")
    bad = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    at = int(bad[0]) if len(bad) else 0
    require(
        not len(bad), f"{name} of device {at} is {found[at] if len(bad) else 0}; expected finite and >= 0"
    )
    return found


def nats_per_symbol(load: Array) -> Array:
    """The z > 0 with z / (e^z - 1) = load, for loads in (0, 1); float64 of any shape.

    z = ln(1 + x) for the SNR x at which ln(1 + x) / x is the load, and -W_{-1}(-load e^-load) - load with the
    lower branch of Lambert's W. scipy's W loses half its digits where the branches meet (load -> 1, which is
    low SNR), so this solves ln((e^z - 1) / z) = -ln(load), smooth everywhere, by two of Halley's steps from a
    start that is right to 3 %: relative error 1e-14, and eps / z at small z.
    """
    level = -np.log(load)
    return _halley_step(_halley_step(_first_guess(level), level), level)


def _first_guess(level: Array) -> Array:
    """Of the z with ln((e^z - 1) / z) = level, right to 3 % and at both ends."""
    return level + np.log1p(level + level * level / (6 + 6 * level))


def _halley_step(z: Array, level: Array) -> Array:
    """Towards ln((e^z - 1) / z) = level; the error's third power."""
    rest = -np.expm1(-z)
    per_rest, per_z = 1 / rest, 1 / z
    error = z + np.log(rest * per_z) - level
    slope = per_rest - per_z
    bend = per_z * per_z - (1 - rest) * per_rest * per_rest
    return z - error * slope / (slope * slope - 0.5 * error * bend)


def upload_s(uplinks: Uplinks, share: Array | float) -> Array:
    """Seconds to send everything over a share of the band in (0, 1]: d x / ln(1 + x), x = s / share.

    share: broadcasts against [num_devices]. 0 where nothing is to send, infinite where nothing comes through.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = uplinks.full_band_snr / share
        seconds = uplinks.wideband_upload_s * snr / np.log1p(snr)
    seconds = np.where(uplinks.wideband_upload_s > 0, seconds, 0.0)
    return np.where(uplinks.reachable, seconds, math.inf)


def needed_shares(uplinks: Uplinks, delay_s: float) -> Array:
    """The share that each device needs to be done by ``delay_s``: s / x with ln(1 + x) / x = d / (delay - t).

    Returns float64 [num_devices]; 0 where nothing is to send, infinite where no band would do
    (delay <= t + d), and above 1 where the whole band would not.
    """
    snr, floor = uplinks.full_band_snr, uplinks.wideband_upload_s
    slack = delay_s - uplinks.fixed_delay_s
    in_time = slack > floor
    with np.errstate(divide="ignore", invalid="ignore"):
        load = np.where(in_time, np.maximum(floor / slack, _SMALLEST), 0.5)
        share = np.where(in_time, snr / np.expm1(nats_per_symbol(load)), math.inf)
    idle = (floor == 0) & (slack >= 0)
    return np.where(idle, 0.0, share) if idle.any() else share


def least_delay(uplinks: Uplinks) -> tuple[float, Array]:
    """The least time in which all the devices given are done, and their shares, float64 [num_devices].

        minimise tau  over b, tau   s.t.   t_k + upload_k(b_k) <= tau,   sum_k b_k <= 1

    The shares needed for tau fall with tau, so tau is where they add up to 1 (all devices are done together),
    or the largest t_k of a device with nothing to send. Newton's method on 1 / sum, nearly a straight line,
    from below. Infinite, with shares of 0, where a device cannot be reached; 0 for no devices.
    """
    shares = np.zeros(len(uplinks))
    floor = uplinks.wideband_upload_s
    if not len(uplinks):
        return 0.0, shares
    if np.isinf(floor.max()):
        return math.inf, shares
    if floor.min() > 0:
        return _least_delay_sending(uplinks, 0.0)
    sends = floor > 0
    idle_s = float(uplinks.fixed_delay_s[~sends].max())
    if not sends.any():
        return idle_s, shares
    delay, shares[sends] = _least_delay_sending(uplinks.take(sends), idle_s)
    return delay, shares


def _least_delay_sending(uplinks: Uplinks, earliest_s: float) -> tuple[float, Array]:
    """``least_delay`` of devices that all have something to send, not before ``earliest_s``."""
    fixed, snr, floor = uplinks.fixed_delay_s, uplinks.full_band_snr, uplinks.wideband_upload_s
    alone = fixed + floor * snr / np.log1p(snr)  # each with the whole band
    low = max(float(alone.max()), earliest_s)
    delay, total, z = low, math.inf, np.empty(0)
    for _ in range(_MAX_STEPS):
        slack = delay - fixed
        level = np.log(slack / floor)
        if not z.size:
            z = _first_guess(level)
        if abs(total - 1) > _NEAR:
            z = _halley_step(z, level)
        z = _halley_step(z, level)
        ratio = np.expm1(z)  # SNR in the share
        rest, share = ratio / (1 + ratio), snr / ratio
        slope = -snr * floor / (slack * slack * (z - rest))  # of the share, per second
        total = float(share.sum())
        if delay == low and total <= 1:
            break
        step = (total * total - total) / -float(slope.sum())
        change = slope * step
        if abs(total - 1) <= _CLOSE and bool((np.abs(change) <= _CLOSE * share).all()):
            share = share + change  # what is left of the error is its square
            break
        if abs(step) <= _ROUNDING * delay:
            break
        if delay + step <= low:
            step = (low - delay) / 2
        z = z + step / (slack * (1 / rest - 1 / z))  # along the tangent
        delay += step
    share = share / max(1.0, float(share.sum()))
    upload = floor * snr / (share * np.log1p(snr / share))
    return max(float((fixed + upload).max()), earliest_s), share


def equal_share_delay(uplinks: Uplinks) -> tuple[float, Array]:
    """When the last device is done where all have the same share, and the shares."""
    count = len(uplinks)
    share = np.full(count, 1.0 / max(count, 1))
    if not count:
        return 0.0, share
    return float((uplinks.fixed_delay_s + upload_s(uplinks, 1.0 / count)).max()), share
