"""Which devices take part in a round where each device's energy has a price beside time.

    minimise  learning_price (1 - W(S))^2 + delay_price tau + sum_{k in S} energy_price_k E_k   over S and
    shares E_k = fixed_energy_k + power_k upload_k(b_k)

The energy version of ``selection`` with a virtual queue per device; reconstructed, after P3. Energy makes
devices unlike each other in more than one way, so that no order of them is right: every set is tried where
few devices can be reached, and beyond that a set is improved by adding, dropping and exchanging devices
until nothing helps.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airlam.specs import require
from airlam.split.bandwidth import Array, Uplinks, upload_s
from airlam.split.energy import allocate_priced
from airlam.split.selection import Choice, Mask, Optimum, choose_devices

MAX_DEVICES_EXACT = 10  # all their sets take about 0.1 s
_MAX_DEVICES_EXCHANGED = 32  # a set of them has up to 256 exchanges
_PROGRESS = 1e-12


def choose_devices_priced(
    uplinks: Uplinks,
    weights: Array,
    *,
    learning_price: float,
    delay_price: float,
    fixed_prices: Array,
    upload_prices: Array,
    longest_s: float = math.inf,
    allow_none: bool = False,
) -> Optimum:
    """The best set of devices with its shares.

    fixed_prices: energy_price_k fixed_energy_k, of taking part; upload_prices: energy_price_k power_k, of a
    second of sending; both >= 0, float64 [num_devices]. delay_price must be positive: devices whose energy
    has no price would else send for ever. Exact where at most ``MAX_DEVICES_EXACT`` devices can be reached;
    beyond, no single addition, removal or (up to 32 devices) exchange improves what is returned, and a
    better set may exist. longest_s: sets that take longer at their best shares are left
    out, unless all do.
    """
    for name, prices in (("fixed_prices", fixed_prices), ("upload_prices", upload_prices)):
        sound = prices.shape == (len(uplinks),) and bool(np.isfinite(prices).all() and (prices >= 0).all())
        require(sound, f"{name} must be finite and not negative, one a device; got {prices}")
    start = choose_devices(
        uplinks, weights, learning_price=learning_price, delay_price=delay_price, longest_s=longest_s
    )
    problem = _PricedSets(
        uplinks=uplinks,
        weights=weights,
        learning_price=learning_price,
        delay_price=delay_price,
        fixed_prices=fixed_prices,
        upload_prices=upload_prices,
        longest_s=longest_s,
    )
    if not start.choice.num_selected:
        return start
    reachable = np.flatnonzero(uplinks.reachable)
    exact = len(reachable) <= MAX_DEVICES_EXACT
    found = problem.best_of_all(reachable) if exact else problem.climb(start.choice.selected)
    return problem.nobody() if allow_none and learning_price <= found.objective else found


@dataclass(frozen=True, slots=True, kw_only=True)
class _PricedSets:
    uplinks: Uplinks
    weights: Array
    learning_price: float
    delay_price: float
    fixed_prices: Array
    upload_prices: Array
    longest_s: float

    def nobody(self) -> Optimum:
        """The empty round."""
        count = len(self.uplinks)
        choice = Choice(selected=np.zeros(count, dtype=bool), shares=np.zeros(count), delay_s=0.0)
        return Optimum(choice=choice, objective=self.learning_price)

    def best_of(self, sets: Mask) -> Optimum:
        """The best of some sets, bool [num_sets, num_devices], each with its best shares."""
        found = allocate_priced(
            self.uplinks, sets, delay_price=self.delay_price, upload_prices=self.upload_prices
        )
        missing = np.where(sets, 0.0, self.weights).sum(axis=1) / self.weights.sum()
        objective = self.learning_price * missing**2 + (sets * self.fixed_prices).sum(axis=1) + found.cost
        if (found.delay_s <= self.longest_s).any():
            objective = np.where(found.delay_s <= self.longest_s, objective, math.inf)
        best = int(np.argmin(objective))
        choice = Choice(selected=sets[best], shares=found.shares[best], delay_s=float(found.delay_s[best]))
        return Optimum(choice=choice, objective=float(objective[best]))

    def best_of_all(self, reachable: NDArray[np.intp]) -> Optimum:
        """Over every set of these devices that is not empty."""
        numbers = np.arange(1, 2 ** len(reachable))[:, None]
        sets = np.zeros((len(numbers), len(self.uplinks)), dtype=bool)
        sets[:, reachable] = numbers >> np.arange(len(reachable)) & 1
        return self.best_of(sets)

    def climb(self, selected: Mask) -> Optimum:
        """From a set, or the cheapest devices, to the best neighbour, until no neighbour is better."""
        best, objective = self.best_of(np.vstack([selected[None], self._cheapest_first()])), math.inf
        while best.objective < objective * (1 - _PROGRESS):
            objective = best.objective
            nearby = self.best_of(self._neighbours(best.choice.selected))
            best = min(best, nearby, key=lambda found: found.objective)
        return best

    def _cheapest_first(self) -> Mask:
        """The 1, 2, ... devices that would cost least on an equal share; bool [num_sets, num_devices]."""
        reachable = np.flatnonzero(self.uplinks.reachable)
        sending = upload_s(self.uplinks, 1.0 / len(reachable))
        ready = self.uplinks.fixed_delay_s + sending
        with np.errstate(invalid="ignore"):
            cost = (
                self.fixed_prices + self.upload_prices * sending + self.delay_price * ready / len(reachable)
            )
        order = reachable[np.argsort(cost[reachable])]
        sets = np.zeros((len(order), len(self.uplinks)), dtype=bool)
        sets[:, order] = np.tri(len(order), dtype=bool)
        return sets

    def _neighbours(self, selected: Mask) -> Mask:
        """One device more, one less, or one for another; bool [num_sets, num_devices]."""
        inside = np.flatnonzero(selected)
        outside = np.flatnonzero(~selected & self.uplinks.reachable)
        changes: list[tuple[np.intp, ...]] = [(device,) for device in outside]
        if len(inside) > 1:
            changes += [(device,) for device in inside]
        if len(inside) + len(outside) <= _MAX_DEVICES_EXCHANGED:
            changes += [(one, other) for one in inside for other in outside]
        sets = np.repeat(selected[None], len(changes), axis=0)
        for row, change in enumerate(changes):
            sets[row, list(change)] ^= True
        return sets
