"""Good placements of any size: a greedy start, then iterated local search; anytime, and nothing is proven.

A move puts one call, or the calls of a service, of a class or at both ends of a message, on one node; small
problems also try every pair of single moves, exchanges among them. A candidate is better if it exceeds the
limits by less, and among equals in that if its value is lower.
"""

import time
from dataclasses import dataclass

import numpy as np

from airlam.split.placement.tables import Bools, Floats, Ints, Tables

_CHUNK = 256  # candidates priced at once
_MAX_PAIRS = 4_000
_NUM_SPREAD = 6
_KICK_SHARE = 0.3  # of calls that a kick moves
_MIN_GAIN = 1e-9  # relative
_Score = tuple[float, float]  # excess, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What runs now, held [num_services, num_nodes]; what a byte of weights brought to a node is worth."""

    held: Bools
    move_s_per_byte: float = 0.0


class Search:
    """Local search over the nodes of all calls, within a time limit.

    running: new instances beside these add the price of their weights to the value.
    """

    def __init__(
        self,
        tables: Tables,
        generator: np.random.Generator,
        *,
        time_limit_s: float = 5.0,
        running: Running | None = None,
    ) -> None:
        self.tables, self.generator, self.running = tables, generator, running
        self._stop_s = time.monotonic() + time_limit_s

    @property
    def is_over(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() > self._stop_s

    def best_from(self, starts: list[Ints], num_kicks: int) -> tuple[_Score, Ints]:
        """The best found from any start, kicked on; its excess is 0 where it is within all limits."""
        best: tuple[_Score, Ints] | None = None
        for start in starts:
            found = self.improve(start)
            best = found if best is None or found[0] < best[0] else best
        assert best is not None
        for _ in range(num_kicks):
            if self.is_over:
                break
            found = self.improve(self._kicked(best[1]))
            best = found if _better(found[0], best[0]) else best
        return best

    def improve(self, at: Ints) -> tuple[_Score, Ints]:
        """Moves in chunks of random order, the best of each taken if it helps, until none does."""
        score = self.score(at)
        while not self.is_over:
            before = score
            for chunk in self._chunks(at):
                if not self.is_over:
                    score, at = self._step(score, at, chunk)
            if score == before and not self.is_over:
                score, at = self._pairs(score, at)
            if score == before:
                break
        return score, at

    def repaired(self, at: Ints) -> tuple[_Score, Ints]:
        """Moves that lower what is exceeded until nothing is, kicked where they get stuck; no more."""
        score = self.score(at)
        while score[0] > 0 and not self.is_over:
            before = score
            for chunk in self._chunks(at):
                if score[0] > 0:
                    score, at = self._step(score, at, chunk)
            if score == before:
                score, at = self._pairs(score, at)
            if score == before and score[0] > 0:
                at = self._kicked(at)
                score = self.score(at)
        return score, at

    def score(self, at: Ints) -> _Score:
        """Excess and value of one candidate; without room for its replicas the excess is a unit more."""
        priced = self.tables.price(at[None])
        held = self.hosts(at)
        excess, value_s = float(priced.excess[0]), float(priced.value_s[0])
        if held is None:
            return max(excess, 1.0), value_s + self._moving_s(self.tables.used(at[None])).item()
        return excess, value_s + self._moving_s(held[None]).item()

    def hosts(self, at: Ints) -> Bools | None:
        """The instances that ``Tables.hosts`` gives, where possible those that run now."""
        return self.tables.hosts(at, None if self.running is None else self.running.held)

    def _moving_s(self, held: Bools) -> Floats:
        """What new instances are worth, of held [num_candidates, num_services, num_nodes]."""
        if self.running is None or self.running.move_s_per_byte == 0:
            return np.zeros(len(held))
        moved = (held & ~self.running.held).sum(axis=2) @ self.tables.weight_bytes  # [num_candidates]
        price: Floats = self.running.move_s_per_byte * moved
        return price

    def _step(self, score: _Score, at: Ints, candidates: Ints) -> tuple[_Score, Ints]:
        """The best of the candidates that is better than ``at``, or ``at``."""
        priced = self.tables.price(candidates)
        values_s = priced.value_s
        if self.running is not None:
            values_s = values_s + self._moving_s(self.tables.used(candidates))
        for index in np.lexsort((values_s, priced.excess)):
            found = (float(priced.excess[index]), float(values_s[index]))
            if not _better(found, score):
                break
            found = self.score(candidates[index])
            if _better(found, score):
                return found, candidates[index]
        return score, at

    def _chunks(self, at: Ints) -> list[Ints]:
        """Every simple move from ``at``, in random order."""
        moves = [(np.array([k]), v) for k, nodes in enumerate(self.tables.allowed) for v in nodes]
        groups = [*self._groups(self.tables.call_service), *self._groups(self.tables.call_class)]
        groups += [
            np.array([leg.source, leg.target]) for leg in self.tables.legs if leg.source >= 0 <= leg.target
        ]
        moves += [(group, v) for group in groups for v in self._common(group)]
        order = self.generator.permutation(len(moves))
        candidates = np.repeat(at[None], len(moves), axis=0)
        for row, index in enumerate(order):
            calls, node = moves[index]
            candidates[row, calls] = node
        return [candidates[i : i + _CHUNK] for i in range(0, len(moves), _CHUNK)]

    def _groups(self, labels: Ints) -> list[Ints]:
        found = (np.flatnonzero(labels == label) for label in np.unique(labels))
        return [group for group in found if len(group) > 1]

    def _common(self, calls: Ints) -> Ints:
        nodes = self.tables.allowed[calls[0]]
        for k in calls[1:]:
            nodes = np.intersect1d(nodes, self.tables.allowed[k])
        common: Ints = nodes
        return common

    def _pairs(self, score: _Score, at: Ints) -> tuple[_Score, Ints]:
        """Every pair of single moves at once, where these are few."""
        singles = [(k, v) for k, nodes in enumerate(self.tables.allowed) for v in nodes if v != at[k]]
        pairs = [(a, b) for i, a in enumerate(singles) for b in singles[i + 1 :] if a[0] != b[0]]
        if not pairs or len(pairs) > _MAX_PAIRS:
            return score, at
        candidates = np.repeat(at[None], len(pairs), axis=0)
        for row, moves in enumerate(pairs):
            for call, node in moves:
                candidates[row, call] = node
        return self._step(score, at, candidates)

    def _kicked(self, at: Ints) -> Ints:
        """Some calls put anywhere."""
        kicked = at.copy()
        count = max(2, round(_KICK_SHARE * len(at)))
        for k in self.generator.choice(len(at), size=min(count, len(at)), replace=False):
            kicked[k] = self.generator.choice(self.tables.allowed[k])
        return kicked


def greedy(tables: Tables) -> Ints:
    """Call after call, each on the node where the objective of all so far is lowest within the limits.

    Calls not placed yet are taken to be at their home's nearest node; the busiest classes come first.
    """
    at = nearest(tables)
    for k in np.argsort(-tables.rate[tables.call_class], kind="stable"):
        candidates = np.repeat(at[None], len(tables.allowed[k]), axis=0)
        candidates[:, k] = tables.allowed[k]
        priced = tables.price(candidates)
        at = candidates[np.lexsort((priced.value_s, priced.excess))[0]]
    return at


def nearest(tables: Tables) -> Ints:
    """Each call where its work and a message of its class from home are done first."""
    size = np.array([max(one.input_bytes, one.output_bytes) for one in tables.problem.classes])
    at = []
    for k, nodes in enumerate(tables.allowed):
        n = tables.call_class[k]
        ways = tables.home[n] * len(tables.nodes) + nodes
        there_s: Floats = tables.way_latency_s[ways] + size[n] * (tables.way[ways] @ tables.byte_s)
        at.append(nodes[np.argmin(there_s + tables.work_s[k, nodes])])
    return np.array(at)


def starts(tables: Tables, generator: np.random.Generator) -> list[Ints]:
    """Where a search begins: greedy, nearest, and some anywhere, since kicks alone stay in one valley."""
    return [greedy(tables), nearest(tables), *(spread(tables, generator) for _ in range(_NUM_SPREAD))]


def spread(tables: Tables, generator: np.random.Generator) -> Ints:
    """Every call anywhere that it may run."""
    return np.array([generator.choice(nodes) for nodes in tables.allowed])


def _better(one: _Score, other: _Score) -> bool:
    margin = _MIN_GAIN * (1e-12 + abs(other[1]))
    return one[0] < other[0] - 1e-12 or (one[0] <= other[0] and one[1] < other[1] - margin)
