"""A session holds the last slots and no more, and sessions are bounded in number and time."""

import pytest
import torch

from airlam.radio.channel import PredictionSetting
from airlam.serving.sessions import Session, Sessions, SessionsFull, SlotRefused
from airlam.specs import ArraySpec

SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=1, num_cols=2),
    num_user_antennas=1,
    history_frequencies_hz=(0.0, 180e3, 360e3),
    target_frequencies_hz=(0.0, 180e3, 360e3),
    slot_duration_s=0.5e-3,
    num_history=4,
    num_horizon=1,
    max_doppler_hz=100.0,
)


def slot(value: float) -> torch.Tensor:
    return torch.full((1, 2, 3), value, dtype=torch.complex64)


def test_the_history_is_the_last_slots_in_order() -> None:
    session = Session("lam", SETTING)
    for number in range(3):
        session.append(slot(number), 0.1)
        assert not session.is_whole
    for number in range(3, 7):
        session.append(slot(number), 0.1 * number)
        assert session.is_whole and session.num_slots == 4
    measurement = session.measurement()
    assert measurement.lam == "lam" and measurement.history.shape == (1, 4, 1, 2, 3)
    assert measurement.history[0, :, 0, 0, 0].real.tolist() == [3.0, 4.0, 5.0, 6.0]
    torch.testing.assert_close(measurement.noise_variance, torch.tensor([0.45]))


def test_a_measurement_stays_as_it_was_when_slots_follow() -> None:
    session = Session("lam", SETTING)
    for number in range(4):
        session.append(slot(number), 0.1)
    history = session.measurement().history
    session.append(slot(9.0), 0.1)
    assert history[0, :, 0, 0, 0].real.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_gap_starts_the_history_anew_and_an_old_slot_is_refused() -> None:
    session = Session("lam", SETTING)
    for number in range(10, 14):
        session.append(slot(number), 0.1, number)
    for old in (13, 5):
        with pytest.raises(SlotRefused, match="13"):
            session.append(slot(0.0), 0.1, old)
    assert session.is_whole
    session.append(slot(15.0), 0.1, 15)
    assert session.num_slots == 1


def test_sessions_expire_by_their_last_use() -> None:
    now_s = [0.0]
    sessions = Sessions(max_sessions=2, idle_s=10.0, clock=lambda: now_s[0])
    first, second = sessions.open("a", SETTING), sessions.open("a", SETTING)
    assert first != second and len(sessions) == 2
    now_s[0] = 8.0
    assert sessions.get(first) is not None
    now_s[0] = 12.0
    assert sessions.get(second) is None and sessions.get(first) is not None
    now_s[0] = 30.0
    assert len(sessions) == 0 and sessions.get(first) is None


def test_no_more_sessions_than_allowed() -> None:
    sessions = Sessions(max_sessions=2, idle_s=10.0)
    names = [sessions.open("a", SETTING) for _ in range(2)]
    with pytest.raises(SessionsFull, match="2"):
        sessions.open("a", SETTING)
    assert sessions.close(names[0]) and not sessions.close(names[0])
    sessions.open("a", SETTING)
