"""Bandwidth for given sets of devices where time and each device's energy have a price.

For one set of devices, with y_k the time it sends for and the names of ``bandwidth``:

    minimise  Q tau + sum_k a_k y_k   over b, tau
    s.t.      t_k + y_k <= tau,   y_k = upload_k(b_k),   sum_k b_k <= 1

a_k = (energy price of device k) x (its transmit power). Convex in y. With a price lambda of the band and
beta_k = -db_k/dy_k, a device is either done exactly at tau, or earlier because its energy is worth more,
a_k = lambda beta_k. Two monotone equations remain: for a given lambda the devices done at tau pay for time,
sum_k max(lambda beta_k(tau) - a_k, 0) = Q, which gives tau; and lambda fills the band, sum_k b_k = 1.
Both are solved for many sets at once.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import elementwise

from airlam.specs import require
from airlam.split.bandwidth import Array, Uplinks, nats_per_symbol, upload_s

_ROUNDING = {"xrtol": 1e-13, "xatol": 1e-13, "fatol": 0.0, "frtol": 0.0}
_HIGH_SNR_NATS = 1.85  # z - 1 + e^-z >= 1 from here on, which bounds beta by s d / y^2
_LOG_LIMIT = 700.0
_LOG_FAINTEST = 46.0  # z = 1e-10: a share beyond any band


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedAllocation:
    """For each set: shares float64 [num_sets, num_devices], 0 outside; seconds and cost float64 [num_sets].

    cost: Q tau + sum_k a_k y_k, as above.
    """

    shares: Array
    delay_s: Array
    cost: Array


def allocate_priced(
    uplinks: Uplinks, sets: NDArray[np.bool_], *, delay_price: float, upload_prices: Array
) -> PricedAllocation:
    """The best shares for each set, to about 1e-11 of the cost.

    sets: bool [num_sets, num_devices], none empty, of devices that can be reached. delay_price: Q > 0, of a
    second of the round. upload_prices: a >= 0, float64 [num_devices], of a second of each device's sending.
    """
    require(0 < delay_price < math.inf, f"delay_price is {delay_price}; expected positive and finite")
    require(bool(sets.any(axis=1).all()), "a set is empty; each needs a device")
    problem = _Problem(uplinks=uplinks, sets=sets, delay_price=delay_price, upload_prices=upload_prices)
    low, high = problem.log_band_price_bounds()
    index = np.arange(len(sets))
    dear = problem.log_band_used(low, index) > 0  # else there is band to spare at the lowest price
    log_price = low.copy()
    if dear.any():
        found = elementwise.find_root(
            problem.log_band_used, (low[dear], high[dear]), args=(index[dear],), tolerances=_ROUNDING
        )
        log_price[dear] = found.x
    return problem.allocation(log_price, index)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    uplinks: Uplinks
    sets: NDArray[np.bool_]
    delay_price: float
    upload_prices: Array

    def log_band_price_bounds(self) -> tuple[Array, Array]:
        """Log of prices of the whole band between which the optimal one lies.

        lambda = sum_k (a_k + nu_k) eta_k y_k with sum nu = Q, where the elasticity eta = 1 - (1 - e^-z) / z
        is at most 1 and least over the whole band, and a device with nothing to send may take all of Q: so
        lambda is at most the cost of equal shares.
        """
        sets, prices = self.sets, self.upload_prices
        sends = self.uplinks.wideband_upload_s > 0
        nats = np.log1p(self.uplinks.full_band_snr)
        with np.errstate(divide="ignore", invalid="ignore"):
            elasticity = np.where(sends, 1 + np.expm1(-nats) / nats, 1.0)
            alone = upload_s(self.uplinks, 1.0)
            equal = upload_s(self.uplinks, 1.0 / sets.sum(axis=1, keepdims=True))
        least = np.where(sets & sends, elasticity, 1.0).min(axis=1)
        shortest = np.where(sets, alone, math.inf).min(axis=1)  # 0 where one has nothing to send
        last = np.where(sets, self.uplinks.fixed_delay_s + equal, 0.0).max(axis=1)
        with np.errstate(invalid="ignore"):  # 0 * inf of devices outside the sets
            low = least * (np.where(sets, prices * alone, 0.0).sum(axis=1) + self.delay_price * shortest)
            high = np.where(sets, prices * equal, 0.0).sum(axis=1) + self.delay_price * last
        return np.log(np.maximum(low, 1e-300)) - 1, np.log(np.maximum(high, 1e-300)) + 1

    def log_band_used(self, log_price: Array, index: NDArray[np.intp]) -> Array:
        """log sum_k b_k at a price of the band, float64 [len(index)]; falls with the price."""
        used = self._shares(np.exp(log_price), index).sum(axis=1)
        return _bounded_log(used)

    def allocation(self, log_price: Array, index: NDArray[np.intp]) -> PricedAllocation:
        """Shares at these prices, scaled into the band, and what they cost."""
        shares = self._shares(np.exp(log_price), index)
        shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
        with np.errstate(divide="ignore"):
            seconds = np.where(self.sets, upload_s(self.uplinks, shares), 0.0)
        delay = np.where(self.sets, self.uplinks.fixed_delay_s + seconds, 0.0).max(axis=1)
        cost = self.delay_price * delay + (self.upload_prices * seconds).sum(axis=1)
        return PricedAllocation(shares=shares, delay_s=delay, cost=cost)

    def _shares(self, band_price: Array, index: NDArray[np.intp]) -> Array:
        """Best shares at a price of the band, [len(index), num_devices]."""
        delay = self._delay(band_price, index)
        due, _ = self._due(delay, index)
        free = self._free(band_price)
        sends = self.sets[index] & (self.uplinks.wideband_upload_s > 0)
        nats = np.where(sends, np.minimum(due, free), 1.0)
        return np.where(sends, self.uplinks.full_band_snr / np.expm1(nats), 0.0)

    def _delay(self, band_price: Array, index: NDArray[np.intp]) -> Array:
        """tau at a price of the band: where time is paid for, or what devices with nothing to send take."""
        sets, up = self.sets[index], self.uplinks
        count = sets.sum(axis=1, keepdims=True)
        start = np.where(sets, up.fixed_delay_s + up.wideband_upload_s, 0.0).max(axis=1)
        ample = np.expm1(_HIGH_SNR_NATS) / _HIGH_SNR_NATS * up.wideband_upload_s
        with np.errstate(invalid="ignore"):  # as above
            paid = np.sqrt(
                count * band_price[:, None] * up.full_band_snr * up.wideband_upload_s / self.delay_price
            )
        end = np.where(sets, up.fixed_delay_s + ample + paid, 0.0).max(axis=1)
        low = start * (1 + 1e-12)
        needed = self._log_paid(low, index, band_price) > 0
        delay: Array = low.copy()
        if needed.any():
            found = elementwise.find_root(
                self._log_paid,
                (low[needed], 2 * end[needed]),
                args=(index[needed], band_price[needed]),
                tolerances=_ROUNDING,
            )
            delay[needed] = found.x
        return delay

    def _log_paid(self, delay: Array, index: NDArray[np.intp], band_price: Array) -> Array:
        """log of sum_k max(lambda beta_k - a_k, 0) / Q; falls with the delay."""
        _, beta = self._due(delay, index)
        gains = np.maximum(band_price[:, None] * beta - self.upload_prices, 0.0)
        paid = np.where(self.sets[index], gains, 0.0).sum(axis=1) / self.delay_price
        return _bounded_log(paid)

    def _due(self, delay: Array, index: NDArray[np.intp]) -> tuple[Array, Array]:
        """z and beta of devices done at the delay, [len(index), num_devices]; beta 0 with nothing to send."""
        up = self.uplinks
        slack = delay[:, None] - up.fixed_delay_s
        sends = self.sets[index] & (up.wideband_upload_s > 0) & (slack > up.wideband_upload_s)
        with np.errstate(divide="ignore", invalid="ignore"):
            nats = nats_per_symbol(np.where(sends, up.wideband_upload_s / slack, 0.5))
            beta = up.full_band_snr * up.wideband_upload_s / (slack * slack * (nats + np.expm1(-nats)))
        return nats, np.where(sends, beta, 0.0)

    def _free(self, band_price: Array) -> Array:
        """z at which a_k = lambda beta_k, [len(band_price), num_devices]; 700 where energy is free.

        z^2 / ((e^z - 1)^2 (z - 1 + e^-z)) = a d / (lambda s), by Newton's method on logarithms.
        """
        up = self.uplinks
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.log(self.upload_prices * up.wideband_upload_s / up.full_band_snr)
        known = np.isfinite(level)
        goal = np.where(known, level, 0.0) - np.log(band_price)[:, None]
        goal = np.minimum(goal, _LOG_FAINTEST)
        above, below = np.maximum(goal, 0.0), np.maximum(-goal, 0.0)
        nats = below / 2 + np.log1p(below / 2) + math.sqrt(2) * np.exp(-above / 2)  # right at both ends
        for _ in range(8):
            rest = -np.expm1(-nats)
            bent = nats - rest
            value = 2 * np.log(nats / rest) - 2 * nats - np.log(bent)
            slope = 2 / nats - 2 / rest - rest / bent  # in z; d(rest)/dz = e^-z
            nats = nats * np.exp(np.clip((goal - value) / (slope * nats), -1.0, 1.0))
        return np.where(known, np.minimum(nats, _LOG_LIMIT), _LOG_LIMIT)


def _bounded_log(values: Array) -> Array:
    """log, finite for 0 and infinity, as root finding needs it."""
    finite: Array = np.log(np.clip(values, 1e-300, 1e300))
    return finite
