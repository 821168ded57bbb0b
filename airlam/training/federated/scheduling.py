"""The policy that a spec asks for, with the budget that follows where none is given."""

import numpy as np

from airlam.specs import FederatedSpec, require
from airlam.split.bandwidth import least_delay
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
from airlam.split.queues import Budgets
from airlam.split.rounds import RoundState


def policy_of(spec: FederatedSpec, typical: RoundState, num_rounds: int, seed: int) -> Policy:
    """The policy of a run of so many rounds. typical: a round at mean gains, for ``default_delay_s``."""
    count = spec.devices_per_round
    largest = len(typical.devices)
    require(
        count <= largest or spec.policy in ("all", "drift_plus_penalty"),
        f"devices_per_round is {count}; the network has {largest} devices",
    )
    if spec.policy == "all":
        return AllDevices(bandwidth=spec.bandwidth)
    if spec.policy == "random":
        return RandomDevices(count=count, seed=seed, bandwidth=spec.bandwidth)
    if spec.policy == "best_channel":
        return BestChannel(count=count, bandwidth=spec.bandwidth)
    if spec.policy == "round_robin":
        return RoundRobin(count=count, bandwidth=spec.bandwidth)
    delay_s = spec.delay_budget_s or default_delay_s(typical, count)
    energy = {} if spec.energy_budget_j is None else dict.fromkeys(typical.devices, spec.energy_budget_j)
    budgets = Budgets(delay_s=delay_s, energy_j=energy)
    controller = DriftPlusPenalty(
        ControllerSpec(budgets=budgets, num_rounds=num_rounds, learning_weight=spec.learning_weight)
    )
    return EqualBandwidth(policy=controller) if spec.bandwidth == "equal" else controller


def default_delay_s(typical: RoundState, count: int) -> float:
    """What ``count`` devices take together at mean gains: those that would be done first by themselves."""
    alone = [least_delay(typical.uplinks.take(np.array([k])))[0] for k in range(len(typical.devices))]
    chosen = np.argsort(alone, kind="stable")[:count]
    return least_delay(typical.uplinks.take(chosen))[0]
