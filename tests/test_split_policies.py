"""The online controller keeps its budgets, trades by V, looks at no later channel, and resumes to the bit."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest

from airlam.errors import DataError, SpecError
from airlam.split.bandwidth import equal_share_delay
from airlam.split.policies import (
    AllDevices,
    BestChannel,
    ControllerSpec,
    DriftPlusPenalty,
    EqualBandwidth,
    Policy,
    RandomDevices,
    RoundRobin,
)
from airlam.split.queues import Budgets, Queues
from airlam.split.rehearsal import RoundRecord, rehearse
from airlam.split.rounds import RoundState

NUM_DEVICES = 12
NAMES = tuple(f"device.{k}" for k in range(NUM_DEVICES))


def states(num_rounds: int, seed: int = 0) -> Iterator[RoundState]:
    """Rayleigh fading anew each round; mean SNRs, work and payloads of each device stay."""
    generator = np.random.default_rng(seed)
    mean_snr = 10 ** generator.uniform(-0.5, 2.5, NUM_DEVICES)
    fixed_delay_s = generator.uniform(0.1, 0.4, NUM_DEVICES)
    payload_bits = generator.uniform(5e5, 1e6, NUM_DEVICES)
    for index in range(num_rounds):
        yield RoundState(
            round_index=index,
            devices=NAMES,
            bandwidth_hz=1e7,
            fixed_delay_s=fixed_delay_s,
            payload_bits=payload_bits,
            full_band_snr=mean_snr * generator.exponential(size=NUM_DEVICES),
            data_weights=np.ones(NUM_DEVICES),
            tx_power_w=np.full(NUM_DEVICES, 0.2),
            fixed_energy_j=np.full(NUM_DEVICES, 0.01),
        )


def controller(num_rounds: int, delay_s: float = 0.4, **settings: object) -> DriftPlusPenalty:
    budgets = Budgets(delay_s=delay_s)
    return DriftPlusPenalty(ControllerSpec(budgets=budgets, num_rounds=num_rounds, **settings))  # type: ignore[arg-type]


def mean(records: list[RoundRecord], field: str) -> float:
    return float(np.mean([getattr(record, field) for record in records]))


@pytest.mark.parametrize("contraction", [1.0, 0.99])
@pytest.mark.parametrize("delay_s", [0.38, 0.5])
def test_the_mean_delay_keeps_its_budget(contraction: float, delay_s: float) -> None:
    """Within 2 %, and within what the backlog says, to rounding."""
    policy = controller(400, delay_s, contraction=contraction)
    records = list(rehearse(policy, states(400)))
    over = mean(records, "delay_s") / delay_s - 1
    assert over <= min(0.02, policy.queues.delay / 400 + 1e-9)
    assert mean(records, "missing_data_penalty") < 0.9


def test_a_larger_v_buys_participation_with_backlog() -> None:
    found = []
    for weight in (0.3, 3.0, 30.0):
        policy = controller(150, 0.38, learning_weight=weight)
        records = list(rehearse(policy, states(150)))
        found.append((mean(records, "missing_data_penalty"), -policy.queues.delay))
    assert found == sorted(found, reverse=True)
    assert found[0][0] > 1.2 * found[-1][0] and found[0][1] > -1.5 > found[-1][1]


def test_later_rounds_get_more_devices_where_they_weigh_more() -> None:
    records = list(rehearse(controller(200, 0.38, contraction=0.97), states(200)))
    counts = [len(record.devices) for record in records]
    assert np.mean(counts[:60]) < 0.6 * np.mean(counts[-60:])


def test_energy_budgets_are_kept_too() -> None:
    free = next(rehearse(AllDevices(), states(1)))
    assert free.devices == NAMES
    budget_j = 0.03
    budgets = Budgets(delay_s=1.0, energy_j=dict.fromkeys(NAMES[:6], budget_j))
    policy = DriftPlusPenalty(ControllerSpec(budgets=budgets, num_rounds=60, learning_weight=1.0))
    spent, unbound = np.zeros(NUM_DEVICES), np.zeros(NUM_DEVICES)
    for state in states(60):
        choice = policy.decide(state)
        energy = state.energy_j(choice)
        spent += energy
        unbound += state.energy_j(AllDevices().decide(state))
        policy.record(choice.delay_s, dict(zip(NAMES, energy.tolist(), strict=True)))
    assert (unbound[:6] / 60 > 1.2 * budget_j).any()  # else the budgets would bind nobody
    over = spent[:6] / 60 / budget_j - 1
    backlog = np.array([policy.queues.energy[name] for name in NAMES[:6]])
    assert (over <= backlog / 60 + 1e-9).all() and (over < 0.05).all()
    assert set(policy.queues.energy) == set(NAMES[:6])


def test_decisions_do_not_depend_on_later_rounds() -> None:
    """Two futures that part after round 20 are the same until then."""
    one, other = controller(100), controller(100)
    tail = [dataclasses.replace(s, full_band_snr=s.full_band_snr[::-1].copy()) for s in states(40)]
    mixed = [*list(states(40))[:20], *tail[20:]]
    first, second = list(rehearse(one, states(40))), list(rehearse(other, mixed))
    assert first[:20] == second[:20] and first[20:] != second[20:]


def test_deciding_changes_nothing() -> None:
    policy = controller(50)
    state = next(states(1))
    before = policy.memory()
    assert (policy.decide(state).shares == policy.decide(state).shares).all() and policy.memory() == before


POLICIES: dict[str, Policy] = {
    "all": AllDevices(),
    "random": RandomDevices(count=4, seed=3),
    "best": BestChannel(count=4),
    "robin": RoundRobin(count=5),
    "equal": EqualBandwidth(policy=controller(60)),
    "ours": controller(60),
}


def fresh(name: str) -> Policy:
    if name == "ours":
        return controller(60)
    return EqualBandwidth(policy=controller(60)) if name == "equal" else POLICIES[name]


@pytest.mark.parametrize("name", POLICIES)
def test_a_resumed_policy_decides_as_if_it_had_never_stopped(name: str) -> None:
    whole = list(rehearse(fresh(name), states(30)))
    first, second = fresh(name), fresh(name)
    rounds = list(states(30))
    begun = list(rehearse(first, rounds[:13]))
    second.recall(first.memory())
    assert begun + list(rehearse(second, rounds[13:])) == whole


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_stays_within_the_band(name: str) -> None:
    policy = fresh(name)
    for state in states(10):
        choice = policy.decide(state)
        assert 0 < choice.shares.sum() <= 1 + 1e-12 and (choice.shares[~choice.selected] == 0).all()
        policy.record(choice.delay_s, {})


def test_baselines_take_whom_they_say() -> None:
    state = next(states(1))
    assert AllDevices().decide(state).num_selected == NUM_DEVICES
    best = np.sort(state.full_band_snr)[-4:]
    assert set(state.full_band_snr[BestChannel(count=4).decide(state).selected]) == set(best)
    turns = [
        np.flatnonzero(RoundRobin(count=5).decide(dataclasses.replace(state, round_index=t)).selected)
        for t in range(12)
    ]
    assert np.bincount(np.concatenate(turns)).tolist() == [5] * NUM_DEVICES
    drawn = [
        RandomDevices(count=4, seed=1).decide(dataclasses.replace(state, round_index=t)).selected
        for t in range(300)
    ]
    share = np.mean(drawn, axis=0)
    assert all(d.sum() == 4 for d in drawn) and share == pytest.approx(np.full(NUM_DEVICES, 1 / 3), abs=0.1)
    assert BestChannel(count=99).decide(state).num_selected == NUM_DEVICES


def test_equal_bandwidth_takes_the_same_devices_more_slowly() -> None:
    state, ours = next(states(1)), controller(10)
    equal = EqualBandwidth(policy=controller(10)).decide(state)
    chosen = ours.decide(state)
    assert (equal.selected == chosen.selected).all() and equal.delay_s >= chosen.delay_s
    assert equal.delay_s == equal_share_delay(state.uplinks.take(equal.selected))[0]
    assert AllDevices(bandwidth="equal").decide(state).delay_s > AllDevices().decide(state).delay_s


def test_devices_in_outage_are_left_out_by_all() -> None:
    state = next(states(1))
    snr = state.full_band_snr.copy()
    snr[[0, 3]] = 0
    outage = dataclasses.replace(state, full_band_snr=snr)
    silence = dataclasses.replace(state, full_band_snr=0 * snr)
    for name in POLICIES:
        choice = fresh(name).decide(outage)
        assert not choice.selected[[0, 3]].any() and math.isfinite(choice.delay_s)
        nobody = fresh(name).decide(silence)
        assert nobody.num_selected == 0 and nobody.delay_s == 0


def test_queues_follow_their_recursion_and_survive_json() -> None:
    budgets = Budgets(delay_s=2.0, energy_j={"a": 0.5, "b": 1.0})
    queues = Queues().after(budgets, 5.0, {"a": 1.0})
    assert (queues.num_rounds, queues.delay, dict(queues.energy)) == (1, 1.5, {"a": 1.0, "b": 0.0})
    queues = queues.after(budgets, 1.0, {"a": 0.1, "b": 1.7, "stranger": 9.0})
    assert queues.delay == 1.0 and queues.energy == pytest.approx({"a": 0.2, "b": 0.7})
    assert Queues.from_json(queues.to_json()) == queues


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"num_rounds": 1, "delay": "x", "energy": {}}',
        '{"num_rounds":1,"delay":-1,"energy":{}}',
        '{"num_rounds":1,"delay":1,"energy":{"a":NaN}}',
    ],
)
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="start the schedule anew"):
        controller(5).recall(text)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SpecError, match="delay budget must be positive"):
        Budgets(delay_s=0.0)
    with pytest.raises(SpecError, match="energy budget of a"):
        Budgets(delay_s=1.0, energy_j={"a": 0.0})
    for settings, message in (
        ({"learning_weight": -1.0}, "learning_weight"),
        ({"contraction": 1.5}, "contraction is 1.5"),
        ({"longest_round_s": 0.0}, "longest_round_s"),
    ):
        with pytest.raises(SpecError, match=message):
            controller(5, **settings)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="num_rounds"):
        controller(0)
    with pytest.raises(SpecError, match="took -1"):
        controller(5).record(-1.0, {})
    with pytest.raises(SpecError, match="no device holds data"):
        dataclasses.replace(next(states(1)), data_weights=np.zeros(NUM_DEVICES))
    with pytest.raises(SpecError, match="tx_power_w"):
        dataclasses.replace(next(states(1)), tx_power_w=np.zeros(3))
