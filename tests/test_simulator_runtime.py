"""The replayed runtime follows the batcher's rules, and theory where batches hold one link."""

import dataclasses

import numpy as np
import pytest

from airlam.errors import SpecError
from airlam.serving.simulator_runtime import RuntimeTimes, calibrate, replayed_s

TIMES = RuntimeTimes(batch_s={1: 1.0, 4: 2.5}, max_batch_links=4, hand_over_s=0.1, pause_share=0.2)


def test_what_waits_is_the_next_batch() -> None:
    found = replayed_s([0.0, 0.2, 0.4, 0.6, 10.0], TIMES)
    # one alone until 1.1 s, then the three that wait, 2 s between the two sizes measured
    np.testing.assert_allclose(found, [1.1, 3.0, 2.8, 2.6, 1.1])


def test_the_next_batch_waits_until_answers_are_handed_out_and_takes_what_came_meanwhile() -> None:
    np.testing.assert_allclose(replayed_s([0.0, 0.5, 1.05], TIMES), [1.1, 2.7 - 0.5, 2.7 - 1.05])
    # one after another, forever: each takes its batch and its way
    times = RuntimeTimes(batch_s={1: 0.01}, max_batch_links=1, hand_over_s=0.002)
    np.testing.assert_allclose(replayed_s([0.0] * 50, times), 0.012 * np.arange(1, 51))


def test_after_a_batch_of_several_there_is_a_pause_unless_the_next_is_full() -> None:
    arrivals = [0.0, 0.0, 1.4]
    first = TIMES.seconds(2) + 0.1  # 1.6 s, then 0.3 s of pause
    np.testing.assert_allclose(replayed_s(arrivals, TIMES), [1.6, 1.6, first + 0.3 + 1.1 - 1.4])
    late = dataclasses.replace(TIMES, timer_s=0.05)
    np.testing.assert_allclose(replayed_s(arrivals, late), [1.6, 1.6, first + 0.35 + 1.1 - 1.4])
    full = [0.0, 0.0, *[1.0] * 4]
    np.testing.assert_allclose(replayed_s(full, late)[2:], first + 2.6 - 1.0)


def test_single_links_are_an_md1_queue() -> None:
    times = RuntimeTimes(batch_s={1: 0.01}, max_batch_links=1)
    arrival_s = np.random.default_rng(0).exponential(1 / 60.0, 60_000).cumsum()
    expected = 0.01 * (1 + 0.6 / 2 / 0.4)  # Pollaczek and Khinchine
    assert replayed_s(arrival_s.tolist(), times).mean() == pytest.approx(expected, rel=0.03)


def test_near_its_limit_a_queue_multiplies_what_batches_take_longer() -> None:
    # single links, Poisson arrivals at 0.85: 5 % more a batch is nearly half as much again a request
    arrival_s = np.random.default_rng(1).exponential(1 / 85.0, 100_000).cumsum().tolist()
    mean_s = [
        replayed_s(arrival_s, RuntimeTimes(batch_s={1: batch_s}, max_batch_links=1)).mean()
        for batch_s in (0.01, 0.0105)
    ]
    closed_s = [batch_s * (1 + load / 2 / (1 - load)) for batch_s, load in ((0.01, 0.85), (0.0105, 0.8925))]
    assert mean_s[1] / mean_s[0] == pytest.approx(closed_s[1] / closed_s[0], rel=0.05)
    assert closed_s[1] / closed_s[0] > 1.4


def test_calibration_states_relative_errors() -> None:
    arrival_s = np.random.default_rng(2).exponential(1 / 2.0, 500).cumsum().tolist()
    simulated_s = replayed_s(arrival_s, TIMES)
    assert calibrate(simulated_s, simulated_s).errors == pytest.approx((0.0, 0.0, 0.0))
    assert calibrate(simulated_s, 1.25 * simulated_s).errors == pytest.approx((-0.2, -0.2, -0.2))


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(SpecError, match="no batch"):
        RuntimeTimes(batch_s={}, max_batch_links=1)
    with pytest.raises(SpecError, match="a latency for each"):
        calibrate(np.zeros(1), np.zeros(2))
