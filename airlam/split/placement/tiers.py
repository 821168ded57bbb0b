r"""Two tiers of services: heavy ones placed once by an integer program, light ones at every slot.

Reconstructed, after Zhu et al. (2601.19563), of which the abstract and a table of parameters are known. An
instance reserves resources of its node and with them a speed, which is the same wherever it stands: fixed for
core services, a gamma process for light ones. Work and messages are priced by ``airlam.split.resources`` as
everywhere, an instance in the place of a node. Requests that come to one instance as a Poisson process wait
longer than d with a probability of at most

    P(wait > d) <= exp(-s d),   s > 0 where lambda (E exp(s T) - 1) = s   (Kingman's bound),

T the time that a request's work takes. Where a gamma process moves in small steps, s is theta EC(theta) of
its effective capacity EC at the theta where the capacity is lambda (exp(theta work) - 1) / theta: the
probabilistic guarantee that the light tier is sized by.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammainc

from airlam.errors import SpecError
from airlam.specs import require
from airlam.split.network import EdgeNetwork
from airlam.split.plan import Schedule
from airlam.split.resources import Resources, work_s

Floats = NDArray[np.float64]
RESOURCES = ("cpu", "ram", "gpu", "vram")
_QUANTILES = 4001
SPREAD_LOAD = 0.7  # of an instance, at most, on average


class NoRoom(SpecError):
    """No node has the resources for another instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierService:
    """needs: of an instance, in the order of RESOURCES. work_flops: of a request. speed_flops_per_s: mean.

    shape_per_s: of the gamma process's increments, 0 for a fixed speed; their scale follows from the mean.
    deploy_cost: once an instance; maintain_cost: an instance and slot.
    """

    name: str
    is_core: bool
    needs: tuple[float, float, float, float]
    work_flops: float
    output_bytes: float
    speed_flops_per_s: float
    shape_per_s: float = 0.0
    deploy_cost: float = 0.0
    maintain_cost: float = 0.0

    @property
    def work_s(self) -> float:
        """Mean time of a request's work, alone."""
        return work_s(self.work_flops, self.speed_flops_per_s)

    def delay_s(self, arrival_per_s: float, epsilon: float) -> float:
        """The wait that is exceeded with probability epsilon at most at one instance, and the mean work.

        Infinite where the instance cannot keep up.
        """
        times_s = work_quantiles_s(self)
        mean_s = float(times_s.mean())
        if arrival_per_s * mean_s >= 1:
            return math.inf
        arrival_per_s = max(arrival_per_s, 1e-6 / mean_s)

        def excess(s: float) -> float:
            return float(arrival_per_s * np.expm1(s * times_s).mean() - s)

        low, high = 1e-6 / mean_s, 1e-3 / mean_s
        if excess(low) >= 0:  # so near to overload that rounding hides the root
            return math.inf
        while excess(high) < 0:
            low, high = high, 2 * high
        return math.log(1 / epsilon) / float(brentq(excess, low, high)) + mean_s

    def mean_delay_s(self, arrival_per_s: float) -> float:
        """In an M/M/1 queue of the mean speed: what looks at averages only."""
        load = arrival_per_s * self.work_s
        return self.work_s / (1 - load) if load < 1 else math.inf


@lru_cache(maxsize=1024)
def work_quantiles_s(service: TierService) -> Floats:
    """Times that a request's work takes, at even quantiles.

    A gamma process passes ``work`` after T with P(T > d) = P(Gamma(shape d) < work / scale).
    """
    if service.shape_per_s == 0:
        return np.full(_QUANTILES, service.work_s)
    scale = service.speed_flops_per_s / service.shape_per_s
    longest_s = service.work_s + 40 / service.shape_per_s + 8 * (service.work_s / service.shape_per_s) ** 0.5
    grid_s = longest_s * np.linspace(0, 1, _QUANTILES) ** 2
    later = gammainc(service.shape_per_s * grid_s[1:], service.work_flops / scale)  # falls from 1 to 0
    level = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    found: Floats = np.interp(level, 1 - np.concatenate([[1.0], later]), grid_s)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TierTask:
    """Requests of one kind: a chain of services.

    home: where its users are at first. input_bytes: of a request. access_shape: of the Nakagami access rate,
    access_rate_bps: the root of its mean square.
    """

    name: str
    services: tuple[str, ...]
    home: str
    arrival_per_s: float
    deadline_s: float
    input_bytes: float
    access_shape: float
    access_rate_bps: float

    def late_share(self, spent_s: float) -> float:
        """P(access > deadline - spent): requests that are late if all but their access takes ``spent_s``.

        A Nakagami rate is the root of a gamma variable, so for the time left, d - t,
        P = P(Gamma(shape m) < m (bits / (rate (d - t)))^2).
        """
        left_s = self.deadline_s - spent_s
        if left_s <= 0:
            return 1.0
        needed = 8 * self.input_bytes / (self.access_rate_bps * left_s)
        return float(gammainc(self.access_shape, self.access_shape * needed**2))


@dataclass(frozen=True, kw_only=True)
class TierProblem:
    """Nodes and wires between them, the nodes' resources (in the order of RESOURCES), services, tasks.

    way_s: from node to node, what a message takes besides its bytes; byte_s: a byte. [num_nodes, num_nodes]
    """

    network: EdgeNetwork
    capacity: Mapping[str, tuple[float, float, float, float]]
    services: tuple[TierService, ...]
    tasks: tuple[TierTask, ...]
    slot_s: float = 0.1
    way_s: Floats = field(init=False)
    byte_s: Floats = field(init=False)

    def __post_init__(self) -> None:
        by_name = {one.name for one in self.services}
        for task in self.tasks:
            for name in task.services:
                require(name in by_name, f"task {task.name} passes {name!r}, which is no service")
            require(task.home in self.network.by_name, f"task {task.name} is at home on {task.home!r}")
        resources = Resources(network=self.network, schedule=Schedule(allocations={}))
        names = tuple(self.network.by_name)
        way_s, with_a_byte_s = (
            np.array([[resources.transfer_s(a, b, size) for b in names] for a in names])
            for size in (0.0, 1.0)
        )
        object.__setattr__(self, "way_s", way_s)
        object.__setattr__(self, "byte_s", with_a_byte_s - way_s)

    def message_s(self, size_bytes: float) -> Floats:
        """What a message takes from node to node, whoever else sends: [num_nodes, num_nodes]."""
        return self.way_s + size_bytes * self.byte_s

    @cached_property
    def by_name(self) -> Mapping[str, TierService]:
        """Services by name."""
        return {one.name: one for one in self.services}

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Names."""
        return tuple(self.network.by_name)

    def arrivals_per_s(self, service: str) -> float:
        """Of all tasks that pass a service."""
        return sum(task.arrival_per_s for task in self.tasks if service in task.services)

    def sent_bytes(self, task: TierTask, index: int) -> float:
        """What goes into the service at an index of a task's chain."""
        return task.input_bytes if index == 0 else self.by_name[task.services[index - 1]].output_bytes


class Stock:
    """Instances by service and node, and what they leave of each node's resources."""

    def __init__(self, problem: TierProblem) -> None:
        self.problem = problem
        self.count: dict[str, list[int]] = {one.name: [0] * len(problem.nodes) for one in problem.services}
        self.left: Floats = np.array([problem.capacity[name] for name in problem.nodes])

    def fits(self, service: str, node: int) -> bool:
        """Whether one more instance does."""
        return bool((self.left[node] >= self.problem.by_name[service].needs).all())

    def add(self, service: str, node: int, change: int = 1) -> None:
        """Instances more, or fewer."""
        self.count[service][node] += change
        self.left[node] -= change * np.array(self.problem.by_name[service].needs)

    def hosts(self, service: str) -> list[int]:
        """Nodes with an instance."""
        return [v for v, count in enumerate(self.count[service]) if count]

    @property
    def deploy_cost(self) -> float:
        """Of all light instances, once."""
        return sum(
            one.deploy_cost * sum(self.count[one.name]) for one in self.problem.services if not one.is_core
        )

    @property
    def maintain_cost(self) -> float:
        """Of all light instances in a slot."""
        return sum(
            one.maintain_cost * sum(self.count[one.name]) for one in self.problem.services if not one.is_core
        )


def wanted_instances(problem: TierProblem, service: str) -> int:
    """As many as keep each at ``SPREAD_LOAD`` at most on average, and two at least."""
    load = problem.arrivals_per_s(service) * problem.by_name[service].work_s
    return max(2, math.ceil(load / SPREAD_LOAD))
