"""The per-round solver equals exhaustive search, whose every set is priced by another method."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airlam.errors import SpecError
from airlam.split.bandwidth import Array, Uplinks, least_delay, needed_shares, upload_s
from airlam.split.knapsack import greedy_fill, integer_weights, knapsack_fill
from airlam.split.selection import choose_devices, missing_data_penalty


def draw(num_devices: int, seed: int) -> Uplinks:
    generator = np.random.default_rng([num_devices, seed])
    return Uplinks.of(
        fixed_delay_s=generator.uniform(0.05, 0.5, num_devices),
        payload_bits=generator.uniform(2e5, 2e6, num_devices),
        full_band_snr=10 ** generator.uniform(-1.5, 2.5, num_devices),
        bandwidth_hz=1e7,
    )


def delay_by_bisection(uplinks: Uplinks) -> float:
    """Halves the interval in which the shares needed add up to 1; shares by halving too."""
    fixed = uplinks.fixed_delay_s
    low, high = float((fixed + upload_s(uplinks, 1.0)).max()), 1e3
    for _ in range(60):
        delay = (low + high) / 2
        small, large = np.full(len(uplinks), 1e-9), np.ones(len(uplinks))
        for _ in range(60):
            share = (small + large) / 2
            late = fixed + upload_s(uplinks, share) > delay
            small, large = np.where(late, share, small), np.where(late, large, share)
        low, high = (delay, high) if large.sum() > 1 else (low, delay)
    return high


def exhaustive(uplinks: Uplinks, weights: Array, learning_price: float, delay_price: float) -> float:
    """The best objective over all sets that are not empty."""
    count = len(uplinks)
    best = math.inf
    for size in range(1, count + 1):
        for members in itertools.combinations(range(count), size):
            selected = np.isin(np.arange(count), members)
            delay = delay_by_bisection(uplinks.take(selected))
            penalty = learning_price * (weights[~selected].sum() / weights.sum()) ** 2
            best = min(best, penalty + delay_price * delay)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_equals_exhaustive_search(seed: int) -> None:
    """Sets of every size, weights equal and unequal."""
    generator = np.random.default_rng(seed)
    uplinks = draw(4, seed)
    weights = np.ones(4) if seed % 2 else generator.integers(1, 40, 4) * 25.0
    prices = {"learning_price": 10 ** generator.uniform(-1, 2), "delay_price": 10 ** generator.uniform(-1, 1)}
    found = choose_devices(uplinks, weights, **prices)
    assert found.objective == pytest.approx(exhaustive(uplinks, weights, *prices.values()), rel=1e-9)


def fast_exhaustive(uplinks: Uplinks, weights: Array, learning_price: float, delay_price: float) -> float:
    """As ``exhaustive`` with the product's own delays, for more and larger cases."""
    count = len(uplinks)
    objectives = []
    for number in range(1, 2**count):
        selected = (number >> np.arange(count) & 1).astype(bool)
        penalty = learning_price * missing_data_penalty(weights, selected)
        objectives.append(penalty + delay_price * least_delay(uplinks.take(selected))[0])
    return min(objectives)


@given(
    num_devices=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    learning_price=st.floats(0.01, 1e4),
    delay_price=st.floats(0.01, 100),
    equal=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_best_of_all_sets(
    num_devices: int, seed: int, learning_price: float, delay_price: float, equal: bool
) -> None:
    uplinks = draw(num_devices, seed)
    weights = np.random.default_rng(seed).integers(1, 100, num_devices).astype(float)
    weights = np.ones(num_devices) if equal else weights
    prices = {"learning_price": learning_price, "delay_price": delay_price}
    found = choose_devices(uplinks, weights, **prices)
    assert found.objective == pytest.approx(fast_exhaustive(uplinks, weights, **prices), rel=1e-9)
    choice = found.choice
    assert choice.shares.sum() <= 1 + 1e-12 and (choice.shares[~choice.selected] == 0).all()
    done = (uplinks.fixed_delay_s + upload_s(uplinks, choice.shares + ~choice.selected))[choice.selected]
    assert done == pytest.approx(np.full(choice.num_selected, choice.delay_s), rel=1e-9)


@pytest.mark.parametrize("num_devices", [100, 400])
def test_many_devices_equal_a_scan_of_every_number(num_devices: int) -> None:
    """The search leaves numbers out; a scan with a bisection for each number finds nothing better."""
    uplinks = draw(num_devices, 3)
    objectives = []
    for count in range(1, num_devices + 1, 1 if num_devices <= 100 else 13):
        low, high = 0.0, 1e4
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            fits = np.sort(needed_shares(uplinks, middle))[:count].sum() <= 1
            low, high = (low, middle) if fits else (middle, high)
        objectives.append(5.0 * (1 - count / num_devices) ** 2 + 0.5 * high)
    found = choose_devices(uplinks, np.ones(num_devices), learning_price=5.0, delay_price=0.5)
    assert found.objective <= min(objectives) * (1 + 1e-8)
    if num_devices <= 100:
        assert found.objective == pytest.approx(min(objectives), rel=1e-8)


def test_free_time_takes_all_and_free_learning_the_fastest() -> None:
    uplinks = draw(6, 1)
    weights = np.ones(6)
    everyone = choose_devices(uplinks, weights, learning_price=1.0, delay_price=0.0)
    assert everyone.choice.num_selected == 6 and everyone.objective == 0
    alone = choose_devices(uplinks, weights, learning_price=0.0, delay_price=1.0).choice
    fastest = int(np.argmin(uplinks.fixed_delay_s + upload_s(uplinks, 1.0)))
    assert np.flatnonzero(alone.selected).tolist() == [fastest]
    assert alone.shares[fastest] == pytest.approx(1)


def test_no_set_may_take_longer_than_the_longest() -> None:
    uplinks, weights = draw(8, 2), np.ones(8)
    free = choose_devices(uplinks, weights, learning_price=1.0, delay_price=0.0)
    for longest in (0.3, 0.6, 0.9):
        for price in (0.0, 1e-6):
            found = choose_devices(
                uplinks, weights, learning_price=1.0, delay_price=price, longest_s=longest
            ).choice
            assert found.delay_s <= longest < free.choice.delay_s
            sizes = [
                sum(number >> k & 1 for k in range(8))
                for number in range(1, 256)
                if least_delay(uplinks.take((number >> np.arange(8) & 1).astype(bool)))[0] <= longest
            ]
            assert found.num_selected == max(sizes)
    hurried = choose_devices(uplinks, weights, learning_price=1.0, delay_price=0.1, longest_s=1e-6)
    assert hurried.choice.num_selected == 1


def test_an_empty_round_only_where_it_is_allowed_or_nobody_can_be_reached() -> None:
    uplinks, weights = draw(4, 1), np.ones(4)
    prices = {"learning_price": 0.01, "delay_price": 100.0}
    assert choose_devices(uplinks, weights, **prices).choice.num_selected == 1
    nobody = choose_devices(uplinks, weights, allow_none=True, **prices)
    assert nobody.choice.num_selected == 0 and nobody.objective == 0.01 and nobody.choice.delay_s == 0
    deaf = Uplinks.of(
        fixed_delay_s=np.ones(2), payload_bits=np.ones(2), full_band_snr=np.zeros(2), bandwidth_hz=1.0
    )
    assert choose_devices(deaf, np.ones(2), **prices).choice.num_selected == 0


def test_unreachable_devices_are_left_out_and_idle_ones_come_free() -> None:
    uplinks = Uplinks.of(
        fixed_delay_s=np.array([0.1, 0.1, 0.1]),
        payload_bits=np.array([1e6, 1e6, 0.0]),
        full_band_snr=np.array([0.0, 10.0, 0.0]),
        bandwidth_hz=1e7,
    )
    found = choose_devices(uplinks, np.ones(3), learning_price=100.0, delay_price=1.0)
    assert found.choice.selected.tolist() == [False, True, True]
    assert found.objective == pytest.approx(100 / 9 + found.choice.delay_s)


def test_rounded_weights_cost_no_more_than_stated() -> None:
    uplinks = draw(8, 5)
    weights = np.random.default_rng(5).uniform(0.1, 1.0, 8)
    prices = {"learning_price": 3.0, "delay_price": 1.0}
    best = fast_exhaustive(uplinks, weights, **prices)
    for resolution in (100, 1000):
        found = choose_devices(uplinks, weights, resolution=resolution, **prices).objective
        assert best * (1 - 1e-12) <= found <= best + 4 * 3.0 * 8 / resolution


def test_greedy_is_sound_and_seldom_worse() -> None:
    worse = 0
    for seed in range(20):
        uplinks = draw(12, seed)
        weights = np.random.default_rng(seed).integers(1, 30, 12).astype(float)
        prices = {"learning_price": 20.0, "delay_price": 1.0}
        exact = choose_devices(uplinks, weights, **prices).objective
        greedy = choose_devices(uplinks, weights, method="greedy", **prices).objective
        assert exact * (1 - 1e-12) <= greedy <= exact * 1.2
        worse += greedy > exact * (1 + 1e-9)
    assert worse <= 10


@given(seed=st.integers(0, 10**6), count=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_the_knapsack_equals_brute_force(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    levels = generator.integers(0, 9, count)
    shares = np.where(generator.random(count) < 0.2, math.inf, generator.uniform(0.01, 1.2, count))
    level, members = knapsack_fill(levels, shares)
    sets = [[k for k in range(count) if n >> k & 1] for n in range(2**count)]
    fitting = [s for s in sets if shares[s].sum() <= 1]
    assert level == max(levels[s].sum() for s in fitting) == levels[members].sum()
    cheapest = min(shares[s].sum() for s in fitting if levels[s].sum() == level)
    assert shares[members].sum() == pytest.approx(cheapest)
    assert greedy_fill(levels, shares)[0] <= level


def test_weights_become_whole_numbers() -> None:
    assert integer_weights(np.array([500.0, 1500.0, 1000.0]), 1000).tolist() == [1, 3, 2]
    assert integer_weights(np.array([0.25, 0.75]), 100).tolist() == [25, 75]
    assert integer_weights(np.array([7001.0, 2999.0]), 100).tolist() == [70, 30]


def test_impossible_prices_and_weights_are_refused() -> None:
    uplinks = draw(2, 0)
    with pytest.raises(SpecError, match="weights have shape"):
        choose_devices(uplinks, np.ones(3), learning_price=1.0, delay_price=1.0)
    with pytest.raises(SpecError, match="at least one positive"):
        choose_devices(uplinks, np.zeros(2), learning_price=1.0, delay_price=1.0)
    with pytest.raises(SpecError, match="learning_price is nan"):
        choose_devices(uplinks, np.ones(2), learning_price=math.nan, delay_price=1.0)
    with pytest.raises(SpecError, match="delay_price is -1"):
        choose_devices(uplinks, np.ones(2), learning_price=1.0, delay_price=-1.0)
