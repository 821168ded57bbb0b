"""Good plans of large graphs: greedy starts, then iterated local search; anytime, and nothing is proven.

A move puts a run of consecutive modules on one node, or changes one module's rank or one edge's precision. An
assignment is better if it exceeds the limits by less, and among equals in that if its value is lower.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from airlam.split.graph import Precision
from airlam.split.planner_problem import Assignment, Option, Problem

_MAX_STARTS = 6  # of the greedy ones, the best are improved
_NUM_KICKS, _KICKED_MODULES = 10, 4
_MIN_GAIN = 1e-12  # relative; below, a move changes rounding only
_Score = tuple[float, float]


def solve_search(
    problem: Problem,
    generator: np.random.Generator,
    *,
    time_limit_s: float = 10.0,
    leaning: Mapping[str, str] | None = None,
) -> Assignment | None:
    """The best assignment found, which may break limits; None where no start can carry its messages.

    leaning: module -> node of a relaxation, as one more start.
    """
    stop = time.monotonic() + time_limit_s
    starts = sorted(_scored(problem, _starts(problem, leaning or {})), key=lambda row: row[0])
    best: tuple[_Score, Assignment] | None = None
    for score, assignment in starts[:_MAX_STARTS]:
        improved = _improve(problem, score, assignment, generator, stop)
        if best is None or improved[0] < best[0]:
            best = improved
        if time.monotonic() > stop:
            break
    return None if best is None else _kicked_on(problem, best, generator, stop)


def _kicked_on(
    problem: Problem, best: tuple[_Score, Assignment], generator: np.random.Generator, stop: float
) -> Assignment:
    """Iterated local search: some modules put anywhere, improved again, kept if that is better."""
    for _ in range(_NUM_KICKS):
        if time.monotonic() > stop:
            break
        options = dict(best[1].options)
        for name in generator.choice(problem.names, size=min(_KICKED_MODULES, len(options)), replace=False):
            choices = problem.options[str(name)]
            options[str(name)] = choices[generator.integers(len(choices))]
        kicked = Assignment(options, best[1].precisions)
        worth = score(problem, kicked)
        if worth is not None:
            best = min(best, _improve(problem, worth, kicked, generator, stop), key=lambda row: row[0])
    return best[1]


def score(problem: Problem, assignment: Assignment) -> _Score | None:
    """Sum of relative excesses over the limits, then value; None where a message cannot be sent."""
    totals = problem.totals(assignment)
    return None if totals is None else (sum(problem.excess(totals).values()), totals.value)


def _scored(problem: Problem, starts: Iterator[Assignment]) -> list[tuple[_Score, Assignment]]:
    found = []
    for assignment in starts:
        worth = score(problem, assignment)
        if worth is not None:
            found.append((worth, assignment))
    return found


def _starts(problem: Problem, leaning: Mapping[str, str]) -> Iterator[Assignment]:
    """What a relaxation leans to; every node alone; every cut of the order between two nodes."""
    yield _placed(problem, leaning)
    nodes, names = tuple(problem.network.by_name), problem.names
    used = [node for node in nodes if any(node in problem.nodes_for(name) for name in names)]
    for node in used:
        yield _placed(problem, dict.fromkeys(names, node))
    for first, second in itertools.permutations(used[:_MAX_STARTS], 2):
        for cut in range(1, len(names)):
            yield _placed(problem, {n: first if i < cut else second for i, n in enumerate(names)})


def _placed(problem: Problem, wanted: Mapping[str, str]) -> Assignment:
    """Modules where wanted, or where they are cheapest if they may not run there; lowest rank."""
    options = {}
    for name, choices in problem.options.items():
        there = [option for option in choices if option.node == wanted.get(name)]
        options[name] = min(there or choices, key=lambda option: (option.rank, option.forward_s))
    return Assignment(options, {})


def _improve(
    problem: Problem, start: _Score, assignment: Assignment, generator: np.random.Generator, stop: float
) -> tuple[_Score, Assignment]:
    """Moves in random order, each taken if it helps, until none does."""
    best, moves = start, list(_moves(problem))
    helped = True
    while helped and time.monotonic() < stop:
        helped = False
        for index in generator.permutation(len(moves)):
            candidate = moves[index](assignment)
            worth = score(problem, candidate) if candidate != assignment else None
            if worth is not None and _better(worth, best):
                best, assignment, helped = worth, candidate, True
            if time.monotonic() > stop:
                break
    return best, assignment


def _better(one: _Score, other: _Score) -> bool:
    margin = _MIN_GAIN * (1 + abs(other[1]))
    return one[0] < other[0] - _MIN_GAIN or (one[0] <= other[0] + _MIN_GAIN and one[1] < other[1] - margin)


_Move = Callable[[Assignment], Assignment]


def _moves(problem: Problem) -> Iterator[_Move]:
    names, choices = problem.names, problem.choices
    lengths = {1, 2, 3, *(2**k for k in range(2, len(names).bit_length())), len(names)}
    for length in (n for n in sorted(lengths) if n <= len(names)):
        for first in range(len(names) - length + 1):
            for node in problem.network.by_name:
                yield partial(_with_run, problem, names[first : first + length], node)
    if len(choices.ranks) > 1:
        adapted = tuple(name for name in names if problem.graph.by_name[name].lora is not None)
        for group in (adapted, *((name,) for name in adapted)):
            yield from (partial(_with_rank, problem, group, rank) for rank in choices.ranks)
    if len(choices.precisions) > 1:
        keys = [edge.key for edge in problem.graph.edges if edge.num_elements]
        yield from (partial(_with_precision, key, p) for key in keys for p in choices.precisions)


def _with_run(problem: Problem, names: tuple[str, ...], node: str, assignment: Assignment) -> Assignment:
    options = dict(assignment.options)
    for name in names:
        options[name] = _option(problem, name, node, options[name].rank) or options[name]
    return Assignment(options, assignment.precisions)


def _with_rank(problem: Problem, names: tuple[str, ...], rank: int, assignment: Assignment) -> Assignment:
    options = dict(assignment.options)
    for name in names:
        options[name] = _option(problem, name, options[name].node, rank) or options[name]
    return Assignment(options, assignment.precisions)


def _with_precision(key: tuple[str, str], precision: Precision, assignment: Assignment) -> Assignment:
    return Assignment(assignment.options, {**assignment.precisions, key: precision})


def _option(problem: Problem, name: str, node: str, rank: int) -> Option | None:
    found = (option for option in problem.options[name] if (option.node, option.rank) == (node, rank))
    return next(found, None)
