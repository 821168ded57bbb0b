"""The replayed runtime follows the batcher's rules, and theory where batches hold one link."""

import numpy as np
import pytest

from airlam.errors import SpecError
from airlam.serving.simulator_runtime import RuntimeTimes, calibrate, replayed_s

TIMES = RuntimeTimes(batch_s={1: 1.0, 4: 2.5}, max_batch_links=4, overhead_s=0.1, pause_share=0.2)


def test_what_waits_is_the_next_batch() -> None:
    found = replayed_s([0.0, 0.2, 0.4, 0.6, 10.0], TIMES)
    # one alone until 1 s, then the three that wait, 2 s between the two sizes measured
    np.testing.assert_allclose(found, [1.1, 2.9, 2.7, 2.5, 1.1])


def test_after_a_batch_of_several_there_is_a_pause_unless_the_next_is_full() -> None:
    arrivals = [0.0, 0.0, 1.4]
    first = TIMES.seconds(2)  # 1.5 s, then 0.3 s of pause
    np.testing.assert_allclose(replayed_s(arrivals, TIMES), [1.6, 1.6, first + 0.3 + 1.0 - 1.4 + 0.1])
    full = [0.0, 0.0, *[1.0] * 4]
    np.testing.assert_allclose(replayed_s(full, TIMES)[2:], first + 2.5 - 1.0 + 0.1)


def test_single_links_are_an_md1_queue() -> None:
    times = RuntimeTimes(batch_s={1: 0.01}, max_batch_links=1)
    arrival_s = np.random.default_rng(0).exponential(1 / 60.0, 60_000).cumsum()
    expected = 0.01 * (1 + 0.6 / 2 / 0.4)  # Pollaczek and Khinchine
    assert replayed_s(arrival_s.tolist(), times).mean() == pytest.approx(expected, rel=0.03)


def test_calibration_states_relative_errors() -> None:
    arrival_s = np.random.default_rng(2).exponential(1 / 2.0, 500).cumsum().tolist()
    measured_s = replayed_s(arrival_s, TIMES)
    found = calibrate(arrival_s, measured_s, TIMES)
    assert found.errors == pytest.approx((0.0, 0.0, 0.0))
    slower = calibrate(arrival_s, 1.25 * measured_s, TIMES)
    assert slower.errors == pytest.approx((-0.2, -0.2, -0.2))


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(SpecError, match="no batch"):
        RuntimeTimes(batch_s={}, max_batch_links=1)
    with pytest.raises(SpecError, match="a latency for each"):
        calibrate([0.0], np.zeros(2), TIMES)
