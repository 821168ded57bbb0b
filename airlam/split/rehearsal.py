"""A policy over a row of rounds whose states are known, as if each took exactly what was planned."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from airlam.split.policies import Policy
from airlam.split.rounds import RoundState
from airlam.split.selection import missing_data_penalty


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One round: who took part, the time it took, the energy of all devices, and (1 - W)^2 of missing
    data."""

    round_index: int
    devices: tuple[str, ...]
    delay_s: float
    energy_j: float
    missing_data_penalty: float


def rehearse(policy: Policy, states: Iterable[RoundState]) -> Iterator[RoundRecord]:
    """Decides and records round after round; a state is asked for only once its round begins."""
    for state in states:
        choice = policy.decide(state)
        spent = state.energy_j(choice)
        by_device = {name: float(joules) for name, joules in zip(state.devices, spent, strict=True)}
        policy.record(choice.delay_s, by_device)
        yield RoundRecord(
            round_index=state.round_index,
            devices=tuple(n for n, taken in zip(state.devices, choice.selected, strict=True) if taken),
            delay_s=choice.delay_s,
            energy_j=float(spent.sum()),
            missing_data_penalty=missing_data_penalty(state.data_weights, choice.selected),
        )
