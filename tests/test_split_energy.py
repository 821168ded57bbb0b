"""Priced shares are optimal, and the devices chosen with them equal exhaustive search."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airlam.errors import SpecError
from airlam.split import energy_selection
from airlam.split.bandwidth import Array, Uplinks, least_delay, upload_s
from airlam.split.energy import allocate_priced
from airlam.split.energy_selection import choose_devices_priced
from airlam.split.selection import choose_devices, missing_data_penalty


def draw(num_devices: int, seed: int) -> Uplinks:
    generator = np.random.default_rng([num_devices, seed])
    return Uplinks.of(
        fixed_delay_s=generator.uniform(0.05, 0.5, num_devices),
        payload_bits=generator.uniform(2e5, 2e6, num_devices),
        full_band_snr=10 ** generator.uniform(-1.0, 2.5, num_devices),
        bandwidth_hz=1e7,
    )


def all_sets(num_devices: int) -> np.ndarray:
    return (np.arange(1, 2**num_devices)[:, None] >> np.arange(num_devices) & 1).astype(bool)


def cost_of(uplinks: Uplinks, shares: Array, delay_price: float, prices: Array) -> float:
    """By definition."""
    seconds = upload_s(uplinks, shares)
    return float(delay_price * (uplinks.fixed_delay_s + seconds).max() + (prices * seconds).sum())


@given(
    num_devices=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    delay_price=st.floats(0.01, 100),
    scale=st.floats(0.0, 100),
)
@settings(max_examples=25, deadline=None)
def test_no_other_shares_are_better(num_devices: int, seed: int, delay_price: float, scale: float) -> None:
    """Convex, so that nothing nearby being better means nothing is."""
    uplinks = draw(num_devices, seed)
    generator = np.random.default_rng(seed)
    prices = scale * generator.exponential(size=num_devices)
    everyone = np.ones((1, num_devices), dtype=bool)
    found = allocate_priced(uplinks, everyone, delay_price=delay_price, upload_prices=prices)
    assert found.shares.sum() == pytest.approx(1)
    assert found.cost[0] == pytest.approx(cost_of(uplinks, found.shares[0], delay_price, prices), rel=1e-12)
    for step in (0.3, 1e-2, 1e-4):
        for _ in range(40):
            other = found.shares[0] * np.exp(step * generator.standard_normal(num_devices))
            other = other / other.sum()
            assert cost_of(uplinks, other, delay_price, prices) >= found.cost[0] * (1 - 1e-10)


def test_equals_clarabel() -> None:
    pytest.importorskip("cvxpy")
    from airlam.bench.schedule import ConvexProblem

    problem = ConvexProblem(6)
    for seed in range(3):
        uplinks = draw(6, seed)
        prices = np.random.default_rng(seed).exponential(size=6)
        found = allocate_priced(uplinks, np.ones((1, 6), dtype=bool), delay_price=1.0, upload_prices=prices)
        assert found.cost[0] == pytest.approx(problem.solve(uplinks, prices), rel=1e-6)
        assert least_delay(uplinks)[0] == pytest.approx(problem.solve(uplinks), rel=1e-6)


def test_without_energy_prices_all_are_done_together() -> None:
    uplinks = draw(5, 1)
    sets = all_sets(5)
    found = allocate_priced(uplinks, sets, delay_price=2.0, upload_prices=np.zeros(5))
    for row, selected in enumerate(sets):
        delay, shares = least_delay(uplinks.take(selected))
        assert found.delay_s[row] == pytest.approx(delay, rel=1e-9)
        assert found.shares[row][selected] == pytest.approx(shares, rel=1e-6)
        assert found.cost[row] == pytest.approx(2 * delay, rel=1e-9)


def test_a_dear_device_sends_for_less_time() -> None:
    uplinks, everyone = draw(3, 4), np.ones((1, 3), dtype=bool)
    spent = []
    for price in (0.0, 1.0, 10.0, 100.0):
        found = allocate_priced(uplinks, everyone, delay_price=1.0, upload_prices=np.array([0.0, 0.0, price]))
        spent.append(upload_s(uplinks, found.shares[0])[2])
    assert spent == sorted(spent, reverse=True) and spent[-1] < 0.8 * spent[0]


def test_idle_and_unreachable_devices() -> None:
    uplinks = Uplinks.of(
        fixed_delay_s=np.array([3.0, 0.1, 0.1]),
        payload_bits=np.array([0.0, 1e6, 1e6]),
        full_band_snr=np.array([0.0, 10.0, 0.0]),
        bandwidth_hz=1e7,
    )
    sets = np.array([[True, True, False], [True, False, False], [False, True, False]])
    found = allocate_priced(uplinks, sets, delay_price=1.0, upload_prices=np.array([1.0, 0.5, 0.0]))
    assert found.shares == pytest.approx(np.array([[0, 1, 0], [0, 0, 0], [0, 1, 0]]))
    alone_s = 0.1 / math.log2(11)
    assert found.cost == pytest.approx([3 + 0.5 * alone_s, 3, 0.1 + 1.5 * alone_s])
    chosen = choose_devices_priced(
        uplinks,
        np.ones(3),
        learning_price=1e3,
        delay_price=1.0,
        fixed_prices=np.zeros(3),
        upload_prices=np.ones(3),
    )
    assert chosen.choice.selected.tolist() == [True, True, False]


@pytest.mark.parametrize("seed", range(4))
def test_equals_exhaustive_search_and_so_does_the_climb(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(seed)
    uplinks, weights = draw(5, seed), generator.integers(1, 9, 5).astype(float)
    fixed, upload = 0.3 * generator.exponential(size=5), generator.exponential(size=5)
    prices = {"learning_price": 10 ** generator.uniform(0, 2), "delay_price": 10 ** generator.uniform(-1, 1)}
    objectives = []
    for selected in all_sets(5):
        priced = allocate_priced(
            uplinks.take(selected),
            np.ones((1, int(selected.sum())), dtype=bool),
            delay_price=prices["delay_price"],
            upload_prices=upload[selected],
        )
        penalty = prices["learning_price"] * missing_data_penalty(weights, selected)
        objectives.append(penalty + fixed[selected].sum() + float(priced.cost[0]))
    arguments = {"fixed_prices": fixed, "upload_prices": upload, **prices}
    found = choose_devices_priced(uplinks, weights, **arguments)
    assert found.objective == pytest.approx(min(objectives), rel=1e-9)
    monkeypatch.setattr(energy_selection, "MAX_DEVICES_EXACT", 0)
    climbed = choose_devices_priced(uplinks, weights, **arguments)
    assert found.objective * (1 - 1e-9) <= climbed.objective <= found.objective * 1.01


def test_without_prices_it_is_the_choice_by_delay_alone() -> None:
    for num_devices in (6, 12):
        uplinks, weights = draw(num_devices, 3), np.ones(num_devices)
        prices = {"learning_price": 10.0, "delay_price": 1.0}
        nothing = np.zeros(num_devices)
        priced = choose_devices_priced(
            uplinks, weights, fixed_prices=nothing, upload_prices=nothing, **prices
        )
        plain = choose_devices(uplinks, weights, **prices)
        assert priced.objective == pytest.approx(plain.objective, rel=1e-9)
        assert (priced.choice.selected == plain.choice.selected).all()


def test_limits_and_empty_rounds() -> None:
    uplinks, weights, ones = draw(6, 5), np.ones(6), np.ones(6)
    arguments = {"fixed_prices": ones, "upload_prices": ones, "delay_price": 1.0}
    free = choose_devices_priced(uplinks, weights, learning_price=100.0, **arguments).choice
    limited = choose_devices_priced(uplinks, weights, learning_price=100.0, longest_s=0.5, **arguments).choice
    assert limited.delay_s <= 0.5 < free.delay_s and 0 < limited.num_selected < free.num_selected
    nobody = choose_devices_priced(uplinks, weights, learning_price=0.1, allow_none=True, **arguments)
    assert nobody.choice.num_selected == 0 and nobody.objective == 0.1
    assert choose_devices_priced(uplinks, weights, learning_price=0.1, **arguments).choice.num_selected == 1
    deaf = Uplinks.of(fixed_delay_s=ones, payload_bits=ones, full_band_snr=0 * ones, bandwidth_hz=1.0)
    assert choose_devices_priced(deaf, weights, learning_price=1.0, **arguments).choice.num_selected == 0


def test_impossible_values_are_refused() -> None:
    uplinks, ones = draw(2, 0), np.ones(2)
    with pytest.raises(SpecError, match="delay_price is 0"):
        allocate_priced(uplinks, np.ones((1, 2), dtype=bool), delay_price=0.0, upload_prices=ones)
    with pytest.raises(SpecError, match="a set is empty"):
        allocate_priced(uplinks, np.zeros((1, 2), dtype=bool), delay_price=1.0, upload_prices=ones)
    with pytest.raises(SpecError, match="fixed_prices must be finite"):
        choose_devices_priced(
            uplinks, ones, learning_price=1.0, delay_price=1.0, fixed_prices=-ones, upload_prices=ones
        )
