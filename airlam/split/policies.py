"""Who takes part in a round, with which bandwidth: the online controller, and what it is measured against.

A policy sees the state of the round at hand and what earlier rounds took, never a later channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from airlam.specs import require
from airlam.split.bandwidth import equal_share_delay
from airlam.split.convergence import round_weight
from airlam.split.energy_selection import choose_devices_priced
from airlam.split.queues import Budgets, Queues
from airlam.split.rounds import RoundState
from airlam.split.selection import Choice, choose_devices, fastest_choice

_LEAST_BACKLOG = 1e-3  # of the delay queue beside energy queues, so that time always has a price
Bandwidth = Literal["optimal", "equal"]


class Policy(Protocol):
    """Decides round by round. ``decide`` changes nothing; ``record`` tells what the round really took."""

    def decide(self, state: RoundState) -> Choice:
        """Who takes part; nobody where no device can be reached."""
        ...

    def record(self, delay_s: float, energy_j: Mapping[str, float]) -> None:
        """After a round: its delay, and the energy of each device that spent any."""
        ...

    @property
    def backlog(self) -> float:
        """Of the delay queue, in budgets of a round; 0 where there is none."""
        ...

    def memory(self) -> str:
        """What ``recall`` needs to go on as if nothing had stopped; text for a checkpoint."""
        ...

    def recall(self, memory: str) -> None:
        """Takes up a saved memory; DataError where it is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSpec:
    """Settings of ``DriftPlusPenalty``.

    num_rounds: T, of the whole training. learning_weight: V, without unit since queues are counted in
    budgets; a larger one buys participation with backlog, which grows in proportion. By default T / 100:
    the backlog at the end is about V where no device is much slower than the budget, so that the mean
    delay exceeds it by about 1 %. contraction: rho of the convergence bound, which gives later rounds
    more weight; 1 weighs all the same. longest_round_s: of any one round, by default four times the
    budget: with an empty queue time is free, and one device in a deep fade would take what hundreds of
    rounds have to make up for. allow_none: whether a round may be left out. method: of
    ``choose_devices``, for unequal data without energy budgets.
    """

    budgets: Budgets
    num_rounds: int
    learning_weight: float | None = None
    contraction: float = 1.0
    longest_round_s: float | None = None
    allow_none: bool = False
    method: Literal["exact", "greedy"] = "exact"

    def __post_init__(self) -> None:
        require(self.num_rounds >= 1, f"num_rounds must be at least 1, got {self.num_rounds}")
        weight = self.learning_weight
        require(weight is None or weight >= 0, f"learning_weight must not be negative, got {weight}")
        longest = self.longest_round_s
        require(longest is None or longest > 0, f"longest_round_s must be positive, got {longest}")
        require(0 < self.contraction <= 1, f"contraction is {self.contraction}; expected above 0, at most 1")

    @property
    def longest_s(self) -> float:
        """Of a round."""
        return 4 * self.budgets.delay_s if self.longest_round_s is None else self.longest_round_s

    def learning_price(self, round_index: int) -> float:
        """V w_t; rounds beyond the planned last weigh as the last."""
        weight = self.num_rounds / 100 if self.learning_weight is None else self.learning_weight
        last = self.num_rounds - 1
        return weight * round_weight(self.contraction, min(round_index, last), self.num_rounds)


class DriftPlusPenalty:
    """Lyapunov's drift-plus-penalty: each round the best trade of participation against backlogs.

        minimise  V w_t (1 - W(S))^2 + Q tau / tau_budget + sum_k Z_k E_k / E_budget_k

    with the virtual queues Q and Z of ``queues``, over devices S and their shares; Neely, Stochastic
    Network Optimization (2010), ch. 4. The mean of (1 - W)^2 is within O(1 / V) of the best that the
    budgets allow, at a backlog of O(V). The objective is reconstructed, after P3.
    """

    def __init__(self, spec: ControllerSpec) -> None:
        self.spec = spec
        self.queues = Queues()

    def decide(self, state: RoundState) -> Choice:
        """The optimum of the round at hand; see ``choose_devices`` and ``choose_devices_priced``."""
        spec, budgets = self.spec, self.spec.budgets
        learning_price = spec.learning_price(state.round_index)
        if not budgets.energy_j:
            found = choose_devices(
                state.uplinks,
                state.data_weights,
                learning_price=learning_price,
                delay_price=self.queues.delay / budgets.delay_s,
                longest_s=spec.longest_s,
                allow_none=spec.allow_none,
                method=spec.method,
            )
            return found.choice
        prices = self._energy_prices(state.devices)
        priced = choose_devices_priced(
            state.uplinks,
            state.data_weights,
            learning_price=learning_price,
            delay_price=max(self.queues.delay, _LEAST_BACKLOG) / budgets.delay_s,
            fixed_prices=prices * state.fixed_energy_j,
            upload_prices=prices * state.tx_power_w,
            longest_s=spec.longest_s,
            allow_none=spec.allow_none,
        )
        return priced.choice

    def record(self, delay_s: float, energy_j: Mapping[str, float]) -> None:
        """Moves the queues on."""
        self.queues = self.queues.after(self.spec.budgets, delay_s, energy_j)

    @property
    def backlog(self) -> float:
        """Q."""
        return self.queues.delay

    def memory(self) -> str:
        """The queues, as JSON."""
        return self.queues.to_json()

    def recall(self, memory: str) -> None:
        """Goes on from saved queues."""
        self.queues = Queues.from_json(memory)

    def _energy_prices(self, devices: tuple[str, ...]) -> NDArray[np.float64]:
        """Z_k / E_budget_k, of a joule."""
        energy, budgets = self.queues.energy, self.spec.budgets.energy_j
        return np.array([energy[d] / budgets[d] if d in energy else 0.0 for d in devices])


class _Memoryless:
    """A policy that goes by the state of the round alone."""

    def record(self, delay_s: float, energy_j: Mapping[str, float]) -> None:
        """Nothing to remember."""

    @property
    def backlog(self) -> float:
        """None."""
        return 0.0

    def memory(self) -> str:
        """Empty."""
        return ""

    def recall(self, memory: str) -> None:
        """Nothing to take up."""


@dataclass(frozen=True, kw_only=True)
class AllDevices(_Memoryless):
    """Every device that can be reached."""

    bandwidth: Bandwidth = "optimal"

    def decide(self, state: RoundState) -> Choice:
        """All, done together or with equal shares."""
        return _shared_out(state, _reachable(state), self.bandwidth)


@dataclass(frozen=True, kw_only=True)
class RandomDevices(_Memoryless):
    """``count`` devices drawn anew each round, from the seed and the round's index only."""

    count: int
    seed: int = 0
    bandwidth: Bandwidth = "equal"

    def decide(self, state: RoundState) -> Choice:
        """Uniformly among those that can be reached."""
        generator = np.random.default_rng([self.seed, state.round_index])
        members = generator.permutation(_reachable(state))[: self.count]
        return _shared_out(state, members, self.bandwidth)


@dataclass(frozen=True, kw_only=True)
class BestChannel(_Memoryless):
    """The ``count`` devices with the highest SNR at the moment."""

    count: int
    bandwidth: Bandwidth = "equal"

    def decide(self, state: RoundState) -> Choice:
        """Equal SNRs in the order of the devices."""
        reachable = _reachable(state)
        order = np.argsort(-state.full_band_snr[reachable], kind="stable")
        return _shared_out(state, reachable[order][: self.count], self.bandwidth)


@dataclass(frozen=True, kw_only=True)
class RoundRobin(_Memoryless):
    """The next ``count`` devices each round, in a circle."""

    count: int
    bandwidth: Bandwidth = "equal"

    def decide(self, state: RoundState) -> Choice:
        """Those whose turn it is and who can be reached."""
        num_devices = len(state.devices)
        turn = (state.round_index * self.count + np.arange(min(self.count, num_devices))) % num_devices
        return _shared_out(state, turn[state.uplinks.reachable[turn]], self.bandwidth)


@dataclass(frozen=True, kw_only=True)
class EqualBandwidth:
    """Another policy's devices with equal shares; that policy is told what the rounds then take."""

    policy: Policy

    def decide(self, state: RoundState) -> Choice:
        """The same devices."""
        return _shared_out(state, np.flatnonzero(self.policy.decide(state).selected), "equal")

    def record(self, delay_s: float, energy_j: Mapping[str, float]) -> None:
        """Tells the policy."""
        self.policy.record(delay_s, energy_j)

    @property
    def backlog(self) -> float:
        """The policy's."""
        return self.policy.backlog

    def memory(self) -> str:
        """The policy's."""
        return self.policy.memory()

    def recall(self, memory: str) -> None:
        """To the policy."""
        self.policy.recall(memory)


def _reachable(state: RoundState) -> NDArray[np.intp]:
    return np.flatnonzero(state.uplinks.reachable)


def _shared_out(state: RoundState, members: NDArray[np.intp], bandwidth: Bandwidth) -> Choice:
    """The choice of these devices."""
    if bandwidth == "optimal":
        return fastest_choice(state.uplinks, members)
    selected, shares = np.zeros(len(state.devices), dtype=bool), np.zeros(len(state.devices))
    selected[members] = True
    delay, shares[members] = equal_share_delay(state.uplinks.take(members))
    return Choice(selected=selected, shares=shares, delay_s=delay)
