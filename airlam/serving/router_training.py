"""A router trained against an adversary that chooses who asks more: robust policy search in the simulator.

Wang et al. (2505.00321, on microservices) name robust adversarial reinforcement learning for routing and give
no formula. Reconstructed here: the router's policy is ``QueueWeights``; the adversary adds requests within a
budget on the sum of all rates' changes, whose worst points have one class ask for all of it; both answer each
other in turns. Weights are searched by an evolution strategy (Hansen, 1604.00772, the mean's update alone),
since what is gained, the share of requests on time, has no gradient.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airlam.serving.simulator import Answered, Scenario, simulate, steady
from airlam.specs import require
from airlam.split.placement.routing import QueueWeights, Router, ShortestDelayRouter
from airlam.split.placement.services import Placement
from airlam.split.placement.tables import Tables

Floats = NDArray[np.float64]
MakeRouter = Callable[[Tables, Placement], Router]
Arrivals = tuple[float, ...]
_NUM_WEIGHTS = 7
_SHRINKING = 0.93  # of the search's spread, a generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A network and where its services are; who asks how much is to vary."""

    tables: Tables
    placement: Placement

    def answered(self, router: MakeRouter, scenario: Scenario) -> Answered:
        """What comes of it."""
        return simulate(self.tables, lambda now, sight: router(now, self.placement), scenario)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterTraining:
    """budget: of the adversary, over the sum of all rates; 0: there is none. num_pairs: of weights that are
    tried in a generation, on either side of the mean.
    """

    budget: float = 0.2
    num_requests: int = 250
    num_generations: int = 20
    num_pairs: int = 5
    spread: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.budget >= 0 and self.spread > 0 and min(self.num_pairs, self.num_requests) > 0,
            f"the training is {self}; expected a budget of at least 0 and the others above",
        )


def routed_by(weights: QueueWeights) -> MakeRouter:
    """Routers with these weights."""
    return lambda tables, placement: ShortestDelayRouter(tables, placement, weights)


def surges(tables: Tables, budget: float) -> list[Arrivals]:
    """The rates of all classes, as they are and with one of them asking for all of the adversary's budget."""
    rate = tables.rate
    added = budget * rate.sum() * np.eye(len(rate))
    return [tuple(rates.tolist()) for rates in np.concatenate([rate[None], rate + added])]


def worst_arrivals(
    served: Served, router: MakeRouter, scenario: Scenario, budget: float
) -> tuple[Arrivals, float]:
    """Of ``surges`` the one with the smallest share of requests on time under a router, and this share."""
    found = [
        (served.answered(router, replace(scenario, arrival_per_s=rates)).on_time_rate, rates)
        for rates in surges(served.tables, budget)
    ]
    rate, rates = min(found, key=lambda each: each[0])
    return rates, rate


def train_router(
    networks: Sequence[Served],
    training: RouterTraining,
    on_progress: Callable[[int, int, float], None] = lambda generation, of, on_time: None,
) -> QueueWeights:
    """The weights of a router that serves these networks well whatever the adversary does.

    In each generation the adversary answers the mean weights on every network; then pairs of weights about
    the mean are ranked by their share of requests on time under what it chose, and the mean moves to the
    better half. SpecError without networks.
    """
    require(len(networks) > 0, "there is no network to learn from; give at least one")
    rng = np.random.default_rng(training.seed)
    mean, spread, count = np.zeros(_NUM_WEIGHTS), training.spread, 2 * training.num_pairs
    shares = np.maximum(0.0, math.log(count / 2 + 0.5) - np.log(np.arange(1, count + 1)))
    for generation in range(training.num_generations):
        scenarios = [
            steady(each.tables, training.num_requests, seed)
            for each, seed in zip(networks, rng.integers(2**31, size=len(networks)).tolist(), strict=True)
        ]
        if training.budget:
            router = routed_by(_weights(mean))
            scenarios = [
                replace(now, arrival_per_s=worst_arrivals(each, router, now, training.budget)[0])
                for each, now in zip(networks, scenarios, strict=True)
            ]
        steps = rng.standard_normal((training.num_pairs, _NUM_WEIGHTS))
        steps = np.concatenate([steps, -steps])
        gained = np.array(
            [on_time(networks, scenarios, routed_by(_weights(mean + spread * step))).mean() for step in steps]
        )
        mean = mean + spread * (shares / shares.sum()) @ steps[np.argsort(-gained, kind="stable")]
        spread *= _SHRINKING
        on_progress(generation + 1, training.num_generations, float(gained.mean()))
    return _weights(mean)


def on_time(networks: Sequence[Served], scenarios: Sequence[Scenario], router: MakeRouter) -> Floats:
    """The share of each network's requests that are answered on time: [num_networks]."""
    found = [each.answered(router, now).on_time_rate for each, now in zip(networks, scenarios, strict=True)]
    return np.array(found)


def _weights(point: Floats) -> QueueWeights:
    """The weights at a point of the search; at zero those of fair queues."""
    node, node_power, link, link_power, now, after = np.exp(np.delete(point, 4)).tolist()
    return QueueWeights(
        node=node,
        node_power=node_power,
        link=link,
        link_power=link_power,
        load=float(point[4]),
        now=min(now, 1.0),
        after=after,
    )
