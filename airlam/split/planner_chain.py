"""Exact plans of chains: dynamic programming over modules, with everything that a limit counts in its labels.

A label is a plan of the first modules with what it has used so far. Of labels that end on the same node,
those that are no better than another in anything are dropped; what is left at the end holds the optimum.
Nodes may be visited in any order, and again.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airlam.split.graph import Edge, Precision
from airlam.split.planner_problem import Assignment, Limit, Message, Option, Problem

MAX_LABELS = 1_000  # on one node after one module; beyond, the MILP is faster
_ROUNDING = 1e-12  # relative: sums of the same numbers in another order are the same
_Matrix = NDArray[np.float64]


class TooManyLabels(Exception):
    """The chain has too many plans of which none is worse than another; take another solver."""


def chain_edges(problem: Problem) -> tuple[Edge, ...] | None:
    """The edges that make the problem a chain, in order; None where it is none.

    An edge between modules that must run on one and the same node costs nothing and is left out.
    """
    order, by_key = problem.names, {edge.key: edge for edge in problem.graph.edges}
    steps = [by_key.get(pair) for pair in itertools.pairwise(order)]
    chain = tuple(edge for edge in steps if edge is not None and edge.num_elements)
    others = set(by_key) - {edge.key for edge in chain}
    if len(chain) < len(order) - 1 or any(not _stays(problem, *key) for key in others):
        return None
    return chain


def _stays(problem: Problem, source: str, target: str) -> bool:
    nodes = problem.nodes_for(source)
    return len(nodes) == 1 and nodes == problem.nodes_for(target)


@dataclass(frozen=True, slots=True)
class _Labels:
    """Plans that end on one node: what each has used [labels, columns], and where it came from.

    came_from: [labels, 3], the node before, the label there, the choice among ``choices``.
    """

    used: _Matrix
    came_from: NDArray[np.int64]
    choices: tuple[tuple[Option, Precision], ...]


class _Columns:
    """What labels count: the value to be minimised, then each limit that can bind.

    Working sets stand in columns of their own, since of them the largest counts.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.limits = tuple(key for key in problem.limits if _can_bind(problem, key))
        self.peaks = tuple(node for limit, node in self.limits if limit == "memory")
        self.num_sums = 1 + len(self.limits)
        self.budgets = np.array([problem.limits[key] for key in self.limits])
        self._memory = [1 + i for i, (limit, _) in enumerate(self.limits) if limit == "memory"]

    def of_option(self, option: Option) -> _Matrix:
        amounts: dict[tuple[Limit, str], float] = {
            ("latency", ""): option.forward_s + option.backward_s,
            ("energy", ""): option.energy_j,
            ("node energy", option.node): option.energy_j,
            ("memory", option.node): option.memory_bytes,
            ("storage", option.node): option.storage_bytes,
        }
        value = self._value(amounts["latency", ""], option.energy_j) - option.gain_s
        peaks = [option.working_bytes if node == option.node else 0.0 for node in self.peaks]
        return np.array([value, *(amounts.get(key, 0.0) for key in self.limits), *peaks])

    def of_message(self, message: Message) -> _Matrix:
        latency_s, energy_j = message.forward_s + message.backward_s, sum(message.energy_j.values())
        amounts: dict[tuple[Limit, str], float] = {("latency", ""): latency_s, ("energy", ""): energy_j}
        amounts |= {("node energy", node): joules for node, joules in message.energy_j.items()}
        value = self._value(latency_s, energy_j) + message.penalty_s
        return np.array([value, *(amounts.get(key, 0.0) for key in self.limits), *(0.0 for _ in self.peaks)])

    def _value(self, latency_s: float, energy_j: float) -> float:
        goal = self.problem.objective
        return goal.latency_weight * latency_s + goal.energy_s_per_j * energy_j

    def extend(self, used: _Matrix, added: _Matrix) -> _Matrix:
        """Labels after a step, [labels, columns]: sums grow by what is added, peaks to it."""
        sums = used[:, : self.num_sums] + added[: self.num_sums]
        return np.concatenate([sums, np.maximum(used[:, self.num_sums :], added[self.num_sums :])], axis=1)

    def within(self, used: _Matrix) -> NDArray[np.bool_]:
        """Which labels break no limit, [labels]."""
        counted = used[:, : self.num_sums].copy()
        counted[:, self._memory] += used[:, self.num_sums :]
        within: NDArray[np.bool_] = np.asarray((counted[:, 1:] <= self.budgets * (1 + 1e-9)).all(axis=1))
        return within


def _can_bind(problem: Problem, key: tuple[Limit, str]) -> bool:
    """False where even all modules together cannot break a node's memory or storage."""
    limit, node = key
    if limit not in ("memory", "storage"):
        return True
    there = [[o for o in options if o.node == node] for options in problem.options.values()]
    if limit == "storage":
        return sum(max((o.storage_bytes for o in some), default=0.0) for some in there) > problem.limits[key]
    most = sum(max((o.memory_bytes for o in some), default=0.0) for some in there)
    return most + max((o.working_bytes for some in there for o in some), default=0.0) > problem.limits[key]


def solve_chain(problem: Problem, edges: tuple[Edge, ...]) -> Assignment | None:
    """The best assignment of a chain, None where none is within all limits.

    edges: of ``chain_edges``. Raises TooManyLabels where the search would be long.
    """
    columns = _Columns(problem)
    width = columns.num_sums + len(columns.peaks)
    start = _Labels(np.zeros((1, width)), np.full((1, 3), -1), ())
    stages: list[dict[str, _Labels]] = [{"": start}]
    for name, edge in zip(problem.names, (None, *edges), strict=True):
        stages.append(_next_stage(problem, columns, stages[-1], name, edge))
    ends = [(labels.used[:, 0].min(), node) for node, labels in stages[-1].items()]
    return _traced(problem, stages, min(ends)[1]) if ends else None


def _next_stage(
    problem: Problem, columns: _Columns, before: dict[str, _Labels], name: str, edge: Edge | None
) -> dict[str, _Labels]:
    stage = {}
    for node in problem.nodes_for(name):
        choices: list[tuple[Option, Precision]] = []
        used, came_from = [], []
        for option in (o for o in problem.options[name] if o.node == node):
            own = columns.of_option(option)
            for index, (source, labels) in enumerate(before.items()):
                for precision, message in _messages(problem, edge, source, node):
                    after = columns.extend(columns.extend(labels.used, columns.of_message(message)), own)
                    kept = np.flatnonzero(columns.within(after))
                    used.append(after[kept])
                    origin = np.stack(np.broadcast_arrays(index, kept, len(choices)), axis=1)
                    came_from.append(origin)  # [kept, 3]
                    choices.append((option, precision))
        if used and sum(map(len, used)):
            stage[node] = _best(_Labels(np.concatenate(used), np.concatenate(came_from), tuple(choices)))
    return stage


def _messages(problem: Problem, edge: Edge | None, source: str, node: str) -> list[tuple[Precision, Message]]:
    """The ways to carry an edge to a node, finest precision first; none at all is needed within a node."""
    if edge is None:
        return [("fp32", Message(forward_s=0.0, backward_s=0.0, energy_j={}, penalty_s=0.0))]
    precisions = problem.precisions_of(edge) if source != node else problem.choices.precisions[:1]
    priced = [(precision, problem.message(edge, source, node, precision)) for precision in precisions]
    return [(precision, message) for precision, message in priced if message is not None]


def _best(labels: _Labels) -> _Labels:
    """Without the labels that another one equals or beats in every column."""
    order = np.argsort(labels.used[:, 0], kind="stable")
    slack = _ROUNDING * np.abs(labels.used).max(axis=0)
    kept: list[int] = []
    front = np.empty((0, labels.used.shape[1]))
    for index in order:
        if not (front <= labels.used[index] + slack).all(axis=1).any():
            kept.append(int(index))
            front = labels.used[kept]
        if len(kept) > MAX_LABELS:
            raise TooManyLabels
    return _Labels(labels.used[kept], labels.came_from[kept], labels.choices)


def _traced(problem: Problem, stages: list[dict[str, _Labels]], node: str) -> Assignment:
    """Back from the best label on ``node`` to the first module."""
    options: dict[str, Option] = {}
    precisions: dict[tuple[str, str], Precision] = {}
    label = int(stages[-1][node].used[:, 0].argmin())
    for index in range(len(problem.names), 0, -1):
        labels = stages[index][node]
        before, previous, choice = labels.came_from[label]
        option, precision = labels.choices[choice]
        options[option.module] = option
        if index > 1:
            precisions[problem.names[index - 2], option.module] = precision
        node, label = list(stages[index - 1])[before], int(previous)
    return Assignment({name: options[name] for name in problem.names}, precisions)
