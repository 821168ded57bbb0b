r"""Placement as a mixed-integer linear program with tangents, its relaxation, and what makes it infeasible.

Variables: x[m, v] an instance of service m on node v; y[k, v] call k runs on v; z[l, a, b] leg l goes from a
to b; rho[q] the load of a queue (a node or a link), linear in y and z. A queue's stretch 1 / (1 - rho) is
convex, so tangents bound it from below; those at the loads of each solution are added until the program's
optimum is the true one's (outer approximation: Duran and Grossmann, 1986). By Little's law

    sum_n lambda_n T_n = sum_q rho_q / (1 - rho_q) + sum of latencies

where classes are chains: one convex term a queue. Where branches join it stays a bound for one path of each
class, and beside it stand

    tau[k, v] >= s_kv / (1 - lambda s_kv) y[k, v],   tau[k, v] >= s_kv stretch_v - M (1 - y[k, v])
    T_n >= F[last] + message,  F[k] >= F[before] + message + sum_v tau[k, v],  T_n >= sum_k tau[k, v] each v

A call's own load is in the stretch it meets, hence the first. Below all is in units of a typical time.
"""

import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from airlam.split.linear_program import INFEASIBLE, LinearProgram, Term
from airlam.split.placement.tables import Bools, Floats, Ints, Leg, Tables

Limit = Literal["memory", "storage", "compute", "link"]
_GRID = (0.0, 0.2, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95)  # loads with a tangent from the start
_MAX_ROUNDS = 12
_SLACK = 1e-7  # of limits, relative: below it HiGHS's tolerance is to blame


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What was found. at: nodes of the calls, held: instances; None in a relaxation and where there are none.

    bound: in s, no placement is worth less; minus infinity where nothing is known. excess: relative, by limit
    and place; of an elastic program only.
    """

    status: Literal["optimal", "stopped", "infeasible"]
    at: Ints | None
    held: Bools | None
    value_s: float
    bound_s: float
    excess: dict[tuple[Limit, str], float]


@dataclass(slots=True)
class _Queue:
    """A node or link: its load as a sum, and the columns that tangents bound."""

    load: list[Term]
    limit: Limit
    name: str
    own: list[Term]  # of the load, what one path of each class brings
    delay: int = -1  # column: >= own / (1 - own)
    stretch: int = -1  # column: >= 1 / (1 - load)


class Formulation:
    """The program of a problem; ``elastic``: of the least sum of relative excesses over the limits."""

    def __init__(self, tables: Tables, *, elastic: bool = False) -> None:
        self.tables, self.elastic, self.program = tables, elastic, LinearProgram()
        self.z_of: dict[tuple[Limit, str], int] = {}
        self.unit_s = float(np.mean([row[np.isfinite(row)].min() for row in tables.work_s])) or 1.0
        self._place()
        self._carry()
        self._host()
        self._load()
        if not elastic:
            self._value()
            for load in (load for load in _GRID if load <= tables.problem.max_load):
                self._tangents(np.full(len(self.queues), load), np.full(len(self.queues), load))

    @property
    def num_columns(self) -> int:
        """Size of the program."""
        return len(self.program.cost)

    def _place(self) -> None:
        tables, program = self.tables, self.program
        worth = 0.0 if self.elastic else tables.problem.instance_s / self.unit_s
        self.x: dict[tuple[int, int], int] = {}
        self.y: list[dict[int, int]] = []
        for m, v in zip(*np.nonzero(tables.may_host), strict=True):
            self.x[int(m), int(v)] = program.variable(cost=worth, upper=1.0, integer=True)
        for k, nodes in enumerate(tables.allowed):
            self.y.append({int(v): program.variable(upper=1.0, integer=True) for v in nodes})
            program.require([(column, 1.0) for column in self.y[k].values()], lower=1.0, upper=1.0)
            for v, column in self.y[k].items():
                key = (int(tables.call_service[k]), v)
                if key not in self.x:  # the class's own device
                    self.x[key] = program.variable(cost=worth, upper=1.0, integer=True)
                program.require([(self.x[key], 1.0), (column, -1.0)], lower=0.0)

    def _carry(self) -> None:
        """Ways of each leg: columns of their own between two calls, else those of the one call."""
        count = len(self.tables.nodes)
        self.ways: list[dict[tuple[int, int], int]] = []
        for leg in self.tables.legs:
            if min(leg.source, leg.target) < 0:
                home, call = int(self.tables.home[leg.class_index]), max(leg.source, leg.target)
                ends = ((home, v) if leg.source < 0 else (v, home) for v in self.y[call])
                self.ways.append(dict(zip(ends, self.y[call].values(), strict=True)))
                continue
            reached = self.tables.reaches
            self.ways.append(
                {
                    (a, b): self.program.variable(upper=1.0)
                    for a in self.y[leg.source]
                    for b in self.y[leg.target]
                    if reached[a * count + b]
                }
            )
            for call, position in ((leg.source, 0), (leg.target, 1)):
                for v, column in self.y[call].items():
                    passing = [(way, 1.0) for ends, way in self.ways[-1].items() if ends[position] == v]
                    self.program.require([*passing, (column, -1.0)], lower=0.0, upper=0.0)

    def _host(self) -> None:
        tables = self.tables
        for m in range(len(tables.services)):
            shared = [(self.x[m, int(v)], 1.0) for v in np.flatnonzero(tables.may_host[m])]
            self.program.require(shared, lower=float(tables.wanted[m]))
        sizes: tuple[tuple[Limit, Floats, Floats], ...] = (
            ("memory", tables.memory, tables.instance_bytes),
            ("storage", tables.storage, tables.weight_bytes),
        )
        for limit, capacity, needed in sizes:
            for v, name in enumerate(tables.nodes):
                held = [(column, needed[m]) for (m, node), column in self.x.items() if node == v]
                if math.isfinite(capacity[v]) and held:
                    self._within(held, float(capacity[v]), limit, name)

    def _within(self, terms: list[Term], most: float, limit: Limit, name: str) -> None:
        scaled = [(column, amount / most) for column, amount in terms]
        if self.elastic:
            self.z_of[limit, name] = self.program.variable(cost=1.0)
            scaled.append((self.z_of[limit, name], -1.0))
        self.program.require(scaled, upper=1.0)

    def _load(self) -> None:
        """Loads of nodes and links, each at most ``max_load``."""
        tables, path = self.tables, self._one_path()
        nodes = {v: _Queue(load=[], limit="compute", name=n, own=[]) for v, n in enumerate(tables.nodes)}
        links = {
            h: _Queue(load=[], limit="link", name=f"{hop.source} -> {hop.target}", own=[])
            for h, hop in enumerate(tables.hops)
        }
        for k, columns in enumerate(self.y):
            for v, column in columns.items():
                load = tables.rate[tables.call_class[k]] * tables.work_s[k, v]
                nodes[v].load.append((column, load))
                nodes[v].own += [(column, load)] if k in path[0] else []
        for index, leg in enumerate(tables.legs):
            for ends, column in self.ways[index].items():
                for h in np.flatnonzero(self._passed(ends)):
                    load = tables.rate[leg.class_index] * leg.payload_bytes * tables.byte_s[h]
                    links[int(h)].load.append((column, load))
                    links[int(h)].own += [(column, load)] if index in path[1] else []
        self.links = {h: queue for h, queue in links.items() if queue.load}
        self.nodes = {v: queue for v, queue in nodes.items() if queue.load}
        self.queues = [*self.nodes.values(), *self.links.values()]
        for queue in self.queues:
            self._within(queue.load, tables.problem.max_load, queue.limit, queue.name)

    def _passed(self, ends: tuple[int, int]) -> Floats:
        """Links on a way: [num_links], 1 or 0."""
        row: Floats = self.tables.way[ends[0] * len(self.tables.nodes) + ends[1]]
        return row

    def _one_path(self) -> tuple[set[int], set[int]]:
        """Calls and legs on one path of each class, that of the most calls: all of a chain's."""
        tables = self.tables
        best: dict[int, tuple[int, list[int], list[int]]] = {}
        ends: dict[int, tuple[int, list[int], list[int]]] = {}

        def longest(target: int, class_index: int) -> tuple[int, list[int], list[int]]:
            found = []
            for index, leg in enumerate(tables.legs):
                if leg.target == target and leg.class_index == class_index:
                    length, calls, legs = ends.get(leg.source, (0, [], []))
                    found.append((length, calls, [*legs, index]))
            return max(found, key=lambda one: one[0])

        for k, n in enumerate(tables.call_class):
            length, calls, legs = longest(k, int(n))
            ends[k] = length + 1, [*calls, k], legs
        for n in range(len(tables.graphs)):
            best[n] = longest(-1, n)
        return (
            {k for _, calls, _ in best.values() for k in calls},
            {index for _, _, legs in best.values() for index in legs},
        )

    def _value(self) -> None:
        """The objective: delays of all queues where classes are chains, else each class's longest path."""
        tables, program = self.tables, self.program
        total = tables.rate.sum()
        serial = tables.is_serial
        for queue in self.queues:
            queue.delay = program.variable(cost=1 / (total * self.unit_s) if serial else 0.0)
        latency = self._path_latencies()
        if serial:
            for column, seconds in latency:
                program.cost[column] += seconds / (total * self.unit_s)
            return
        for queue in self.queues:
            queue.stretch = program.variable()
        times = self._class_times()
        for n, column in enumerate(times):
            program.cost[column] += tables.rate[n] / total
        flow = [(column, tables.rate[n] * self.unit_s) for n, column in enumerate(times)]
        delays = [(queue.delay, -1.0) for queue in self.queues]
        waits = [(column, -seconds) for column, seconds in latency]
        program.require([*flow, *delays, *waits], lower=0.0)

    def _path_latencies(self) -> list[Term]:
        """lambda times the fixed latency of each way of the legs on the one path."""
        tables, (_, legs) = self.tables, self._one_path()
        return [
            (column, tables.rate[leg.class_index] * self._latency_s(ends))
            for index, leg in enumerate(tables.legs)
            if index in legs
            for ends, column in self.ways[index].items()
        ]

    def _latency_s(self, ends: tuple[int, int]) -> float:
        return float(self.tables.way_latency_s[ends[0] * len(self.tables.nodes) + ends[1]])

    def _class_times(self) -> list[int]:
        """Columns of T_n, with the rows that bound them."""
        tables, program = self.tables, self.program
        spent = [self._spent(k) for k in range(len(self.y))]
        sent = [self._sent(index, leg) for index, leg in enumerate(tables.legs)]
        ends = [program.variable() for _ in self.y]
        times = [program.variable() for _ in tables.graphs]
        for index, leg in enumerate(tables.legs):
            end = ends[leg.target] if leg.target >= 0 else times[leg.class_index]
            before = [(ends[leg.source], -1.0)] if leg.source >= 0 else []
            work = [(column, -1.0) for column in spent[leg.target].values()] if leg.target >= 0 else []
            program.require([(end, 1.0), *before, *work, (sent[index], -1.0)], lower=0.0)
        for n, column in enumerate(times):
            if not tables.graphs[n].is_chain:
                own = np.flatnonzero(tables.call_class == n)
                for v in self.nodes:
                    busy = [(spent[k][v], -1.0) for k in own if v in spent[k]]
                    program.require([(column, 1.0), *busy], lower=0.0)
        return times

    def _spent(self, k: int) -> dict[int, int]:
        """tau[k, v] by node."""
        tables, top = self.tables, self.tables.problem.max_load
        rate, found = tables.rate[tables.call_class[k]], {}
        for v, column in self.y[k].items():
            work_s = tables.work_s[k, v]
            alone = work_s / (1 - min(rate * work_s, top))
            found[v] = self._stretched(column, alone, [(self.nodes[v], work_s)], 0.0)
        return found

    def _sent(self, index: int, leg: Leg) -> int:
        """The column of a leg's time."""
        tables, top = self.tables, self.tables.problem.max_load
        time_of = self.program.variable()
        parts: list[Term] = [(time_of, 1.0)]
        for ends, column in self.ways[index].items():
            passed = [int(h) for h in np.flatnonzero(self._passed(ends))]
            air_s = {h: leg.payload_bytes * tables.byte_s[h] for h in passed}
            rate = tables.rate[leg.class_index]
            alone = sum(seconds / (1 - min(rate * seconds, top)) for seconds in air_s.values())
            queues = [(self.links[h], seconds) for h, seconds in air_s.items() if seconds > 0]
            fixed = self._latency_s(ends)
            parts.append((self._stretched(column, alone + fixed, queues, fixed), -1.0))
        self.program.require(parts, lower=0.0)
        return time_of

    def _stretched(self, chosen: int, alone: float, queues: list[tuple[_Queue, float]], fixed: float) -> int:
        """A column that, where ``chosen`` is 1, is at least ``fixed`` and the stretched seconds of queues."""
        column = self.program.variable()
        self.program.require([(column, self.unit_s), (chosen, -alone)], lower=0.0)
        most = sum(seconds for _, seconds in queues) / (1 - self.tables.problem.max_load)
        if queues:
            stretched = [(queue.stretch, -seconds) for queue, seconds in queues]
            # fixed + sum - (fixed + most) (1 - chosen): below 0 where not chosen
            rows = [(column, self.unit_s), *stretched, (chosen, -(fixed + most))]
            self.program.require(rows, lower=-most)
        return column

    def _tangents(self, loads: Floats, own: Floats) -> None:
        """f(r) >= f(r0) + (r - r0) / (1 - r0)^2, for r / (1 - r) of own loads and 1 / (1 - r) of all."""
        for queue, load, mine in zip(self.queues, loads, own, strict=True):
            slope = 1 / (1 - mine) ** 2
            terms = [(column, -slope * amount) for column, amount in queue.own]
            self.program.require([(queue.delay, 1.0), *terms], lower=mine / (1 - mine) - slope * mine)
            if queue.stretch >= 0:
                slope = 1 / (1 - load) ** 2
                terms = [(column, -slope * amount) for column, amount in queue.load]
                self.program.require([(queue.stretch, 1.0), *terms], lower=1 / (1 - load) - slope * load)

    def solve(self, *, relaxed: bool = False, time_limit_s: float = 30.0, gap: float = 1e-6) -> Solution:
        """The optimum or the best found in time; ``relaxed`` drops integrality and gives a bound only.

        gap: relative, between bound and value, at which a placement is called optimal.
        """
        stop_s, bound_s = time.monotonic() + time_limit_s, -math.inf
        best: tuple[float, Ints, Bools] | None = None
        status: Literal["optimal", "stopped", "infeasible"] = "stopped"
        for _ in range(_MAX_ROUNDS):
            left_s = stop_s - time.monotonic()
            if left_s <= 0:
                break
            result = self.program.solve(relaxed=relaxed, time_limit_s=left_s, gap=gap / 4)
            if result.status == INFEASIBLE:
                return Solution(
                    status="infeasible", at=None, held=None, value_s=math.inf, bound_s=math.inf, excess={}
                )
            dual = result.fun if result.status == 0 else getattr(result, "mip_dual_bound", None)
            before_s, bound_s = bound_s, max(bound_s, dual * self.unit_s if dual is not None else -math.inf)
            if result.x is None or self.elastic:
                return self._elastic(result) if self.elastic else self._closed("stopped", best, bound_s)
            if not relaxed:
                found = self._read(result.x)
                best = found if best is None or found[0] < best[0] else best
                if best[0] <= bound_s * (1 + gap):
                    status = "optimal"
                    break
            elif result.status == 0 and bound_s <= before_s * (1 + 1e-4):
                status = "optimal"
                break
            sums = [[sum(result.x[c] * a for c, a in t) for t in (q.load, q.own)] for q in self.queues]
            loads = np.minimum(np.array(sums), self.tables.problem.max_load)  # [num_queues, 2]
            self._tangents(loads[:, 0], loads[:, 1])
        return self._closed(status, best, bound_s)

    def _closed(
        self,
        status: Literal["optimal", "stopped", "infeasible"],
        best: tuple[float, Ints, Bools] | None,
        bound_s: float,
    ) -> Solution:
        value_s, at, held = best if best is not None else (math.inf, None, None)
        return Solution(
            status=status, at=at, held=held, value_s=value_s, bound_s=min(bound_s, value_s), excess={}
        )

    def _read(self, values: Floats) -> tuple[float, Ints, Bools]:
        """True value, nodes of the calls, instances; those that no one needs are left out."""
        tables = self.tables
        at = np.array([max(nodes, key=lambda v, n=nodes: values[n[v]]) for nodes in self.y])  # type: ignore[misc]
        held = np.zeros((len(tables.services), len(tables.nodes)), dtype=bool)
        for (m, v), column in self.x.items():
            held[m, v] = values[column] > 0.5
        used = tables.used(at[None])[0]
        for m, v in zip(*np.nonzero(held & ~used), strict=True):
            if (held[m] & tables.may_host[m]).sum() > tables.wanted[m] or not tables.may_host[m, v]:
                held[m, v] = False
        return float(tables.price(at[None]).value_s[0]), at, held

    def _elastic(self, result: "object") -> Solution:
        values = getattr(result, "x", None)
        excess = {} if values is None else {key: float(values[c]) for key, c in self.z_of.items()}
        return Solution(
            status="optimal" if getattr(result, "status", None) == 0 else "stopped",
            at=None,
            held=None,
            value_s=math.inf,
            bound_s=-math.inf,
            excess={key: over for key, over in excess.items() if over > _SLACK},
        )
