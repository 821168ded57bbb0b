"""Which devices take part in a round: the exact solution of the per-round problem without energy.

    minimise  learning_price (1 - W(S))^2 + delay_price tau(S)   over sets S of devices

W(S) is the share of all data that S holds (m / K where all hold the same) and tau(S) the least time in
which all of S are done (``bandwidth.least_delay``). This is the Lyapunov drift-plus-penalty problem of one
round with learning_price = V w_t and delay_price = Q(t); reconstructed, after P3 (Wang et al., Federated
Fine-Tuning for Pre-Trained Foundation Models Over Wireless Networks, 2024), whose own equations are not
known here.

For a given time the shares that devices need are numbers, and the most data that fit into the band are a
sum of the smallest shares (equal weights) or a knapsack (unequal ones). How much fits grows with the time,
so sets are searched from much data to little, and a time is skipped where even as much data as fit into it
could not make up for it. Ends with the optimum, after about 4 sqrt(K) looks at a time for K devices instead
of K bisections.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from airlam.specs import require
from airlam.split.bandwidth import Array, Uplinks, equal_share_delay, least_delay, needed_shares, upload_s
from airlam.split.knapsack import greedy_fill, integer_weights, knapsack_fill

Mask = NDArray[np.bool_]
Fill = Callable[[Array], tuple[int, NDArray[np.intp]]]  # shares -> most data that fit, by whom
_COARSE_LOOKS = 12
_DIGITS = 1e-13


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who takes part, with which share of the band, and when the last of them is done.

    selected: bool [num_devices]. shares: float64 [num_devices], 0 for the others; they add up to at most 1.
    delay_s: 0 where nobody takes part.
    """

    selected: Mask
    shares: Array
    delay_s: float

    @property
    def num_selected(self) -> int:
        """How many take part."""
        return int(self.selected.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """A choice, and what was minimised at it."""

    choice: Choice
    objective: float


def missing_data_penalty(weights: Array, selected: Mask) -> float:
    """(1 - W(S))^2: the term of the convergence bound that the choice of devices decides, 0 to 1.

    weights: float64 [num_devices], numbers of samples or anything in proportion to them.
    """
    return float((weights[~selected].sum() / weights.sum()) ** 2)


def choose_devices(
    uplinks: Uplinks,
    weights: Array,
    *,
    learning_price: float,
    delay_price: float,
    longest_s: float = math.inf,
    allow_none: bool = False,
    method: Literal["exact", "greedy"] = "exact",
    resolution: int = 1000,
) -> Optimum:
    """The best set of devices with its shares.

    learning_price, delay_price: of the penalty and of a second, >= 0. Where time is free, the most data
    win; of sets that are as good, the faster. longest_s: sets that take longer are left out, but for the
    fastest device where all do. allow_none: an empty round (penalty 1, no time) may win; without it one is
    chosen only where no device can be reached.

    Exact for weights in proportion to whole numbers that add up to at most ``resolution``; others are
    rounded to multiples of 1 / ``resolution`` of all data while searching (and at least 10 K of them),
    which costs at most 4 learning_price K / ``resolution``. method "greedy" fills the band by data per
    share instead of solving the knapsack; of unequal weights only.
    """
    _check(uplinks, weights, learning_price, delay_price)
    levels, fill = _levels_and_fill(weights, method, resolution)
    reachable = np.flatnonzero(uplinks.reachable)
    search = _Search(
        uplinks=uplinks.take(reachable),
        penalty=learning_price * (1 - np.arange(levels.sum() + 1) / levels.sum()) ** 2,
        delay_price=delay_price,
        levels=levels[reachable],
        fill=partial(fill, levels[reachable]),
        longest_s=longest_s,
    )
    members = reachable[search.best()] if len(reachable) else reachable
    found = _optimum(uplinks, weights, members, learning_price, delay_price)
    nobody = _optimum(uplinks, weights, members[:0], learning_price, delay_price)
    return nobody if allow_none and nobody.objective <= found.objective else found


def _check(uplinks: Uplinks, weights: Array, learning_price: float, delay_price: float) -> None:
    require(
        weights.shape == (len(uplinks),), f"weights have shape {weights.shape}; expected ({len(uplinks)},)"
    )
    sound = bool(np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0)
    require(sound, "weights must be finite and not negative, and at least one positive")
    for name, price in (("learning_price", learning_price), ("delay_price", delay_price)):
        require(0 <= price < math.inf, f"{name} is {price}; expected finite and >= 0")


def _levels_and_fill(
    weights: Array, method: str, resolution: int
) -> tuple[NDArray[np.int64], Callable[[NDArray[np.int64], Array], tuple[int, NDArray[np.intp]]]]:
    """Weights as whole numbers, and what fills a band with them."""
    if (weights == weights[0]).all():
        return np.ones(len(weights), dtype=np.int64), _smallest_fill
    return integer_weights(
        weights, max(resolution, 10 * len(weights))
    ), greedy_fill if method == "greedy" else knapsack_fill


def _smallest_fill(levels: NDArray[np.int64], shares: Array) -> tuple[int, NDArray[np.intp]]:
    """Equal weights: as many of the smallest shares as fit."""
    order = np.argsort(shares)
    count = int(np.searchsorted(np.cumsum(shares[order]), 1.0, side="right"))
    return count, order[:count]


def _optimum(
    uplinks: Uplinks, weights: Array, members: NDArray[np.intp], learning_price: float, delay_price: float
) -> Optimum:
    """These devices, at their true objective."""
    choice = fastest_choice(uplinks, members)
    objective = learning_price * missing_data_penalty(weights, choice.selected) + delay_price * choice.delay_s
    return Optimum(choice=choice, objective=objective)


def fastest_choice(uplinks: Uplinks, members: NDArray[np.intp]) -> Choice:
    """These devices with the shares with which they are done first."""
    selected, shares = np.zeros(len(uplinks), dtype=bool), np.zeros(len(uplinks))
    selected[members] = True
    delay, shares[members] = least_delay(uplinks.take(members))
    return Choice(selected=selected, shares=shares, delay_s=delay)


@dataclass(slots=True, kw_only=True)
class _Search:
    """Over devices that can all be reached.

    levels: data in whole numbers, int64 [num_devices]. penalty: by the level of a set, from 0 to that of all
    devices, those that cannot be reached included.
    """

    uplinks: Uplinks
    penalty: Array
    delay_price: float
    levels: NDArray[np.int64]
    fill: Fill
    longest_s: float

    def best(self) -> NDArray[np.intp]:
        """Members of the best set that is not empty."""
        if self.delay_price == 0:
            return self._with_free_time()
        first = self._fastest()
        delay, _ = least_delay(self.uplinks.take(first))
        best, bound = first, float(self.penalty[self.levels[first].sum()]) + self.delay_price * delay
        best, bound = self._better(best, bound, self._coarse(delay, bound))
        return self._descend(best, bound, delay)

    def _with_free_time(self) -> NDArray[np.intp]:
        """The smallest penalty; of sets that reach it the fastest."""
        _, members = self._fill_at(self._last_s())
        if self.penalty[0] == 0 or not len(members):
            return self._fastest()
        return self._settle(members)[0]

    def _fastest(self) -> NDArray[np.intp]:
        """The device that is done first on the whole band."""
        return np.array([np.argmin(self.uplinks.fixed_delay_s + upload_s(self.uplinks, 1.0))])

    def _last_s(self) -> float:
        """A time in which all devices are done together, or the longest that may be."""
        return min(equal_share_delay(self.uplinks)[0], self.longest_s)

    def _fill_at(self, delay_s: float) -> tuple[int, NDArray[np.intp]]:
        """The most data that can be done by then, and who holds them."""
        return self.fill(needed_shares(self.uplinks, delay_s))

    def _coarse(self, first_s: float, bound: float) -> NDArray[np.intp]:
        """A set close to the best: what fills the band at the time that a few looks suggest."""

        def objective(delay: float) -> float:
            return float(self.penalty[self._fill_at(delay)[0]]) + self.delay_price * delay

        last_s = max(first_s, min(self._time_left(bound, int(self.levels.sum())), self._last_s()))
        found = minimize_scalar(
            objective, bounds=(first_s, last_s), method="bounded", options={"maxiter": _COARSE_LOOKS}
        )
        return self._fill_at(float(found.x))[1]

    def _time_left(self, bound: float, level: int) -> float:
        """By when a set of this much data must be done to be better than ``bound``."""
        return (bound - float(self.penalty[level])) / self.delay_price

    def _descend(self, best: NDArray[np.intp], bound: float, first_s: float) -> NDArray[np.intp]:
        """From the most data to none; what cannot be done in the time left is not looked at."""
        level = int(self.levels.sum())
        delay = self._last_s()
        while level > 0:
            delay = min(delay, self._time_left(bound, level))
            if delay < first_s:
                break
            found, members = self._fill_at(delay)
            if found >= level:
                best, bound = self._better(best, bound, members)
                level -= 1
            else:
                level = found
        return best

    def _better(
        self, best: NDArray[np.intp], bound: float, members: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], float]:
        """The better of the best so far and the fastest set with as much data as ``members``."""
        if not len(members):
            return best, bound
        members, delay = self._settle(members)
        objective = float(self.penalty[self.levels[members].sum()]) + self.delay_price * delay
        return (members, objective) if objective < bound else (best, bound)

    def _settle(self, members: NDArray[np.intp]) -> tuple[NDArray[np.intp], float]:
        """The fastest set with as much data: the time of one set shows a faster set, until none is."""
        goal = int(self.levels[members].sum())
        delay, _ = least_delay(self.uplinks.take(members))
        while True:
            level, others = self._fill_at(delay)
            if level < goal:
                break
            following, _ = least_delay(self.uplinks.take(others))
            if following >= delay * (1 - _DIGITS):
                break
            members, delay = others, following
        return members, delay
