"""When each module of a flow is done: the one recursion behind every latency, for cost and planner."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from airlam.split.graph import Edge, ModuleGraph

Mode = Literal["training", "inference"]
Phase = Literal["forward", "backward"]
Event = tuple[str, Phase]  # a module's work in one phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Ends of all work, in seconds from the start of the flow.

    waited_for: what each event waited for last, over the edge given (None: within its own module); events
    that waited for nothing are not in it. busy_s: work by node.
    """

    ends_s: Mapping[Event, float]
    waited_for: Mapping[Event, tuple[Event, Edge | None]]
    busy_s: Mapping[str, float]

    @property
    def latency_s(self) -> float:
        """The longest path, or the busiest node's work where that is more."""
        return max((*self.ends_s.values(), *self.busy_s.values()), default=0.0)

    def critical_path(self) -> list[tuple[Edge | None, Event]]:
        """The events on the longest path in order, each with the edge over which it was waited for."""
        event: Event | None = max(self.ends_s, key=lambda one: self.ends_s[one], default=None)
        path: list[tuple[Edge | None, Event]] = []
        while event is not None:
            before, edge = self.waited_for.get(event, (None, None))
            path.append((edge, event))
            event = before
        return path[::-1]


def timeline(
    graph: ModuleGraph,
    mode: Mode,
    node_of: Mapping[str, str],
    work_s: Callable[[str, Phase], float],
    message_s: Callable[[Edge, Phase], float],
) -> Timeline:
    """Forward, a module starts once all it takes has come; backward, once all its gradients have.

        F[m] = max over edges (s, m) of (F[s] + message) + work
        B[m] = max(F[m], max over edges (m, t) with a gradient of (B[t] + message)) + work

    B for modules that gradients reach, and in training only. node_of: the node of each module. work_s,
    message_s: of each module and edge in each phase.
    """
    ends_s: dict[Event, float] = {}
    waited_for: dict[Event, tuple[Event, Edge | None]] = {}
    busy_s: dict[str, float] = {}

    def enter(name: str, phase: Phase, causes: list[tuple[Event, Edge | None]]) -> None:
        start_s = 0.0
        for cause in causes:
            before, edge = cause
            arrival_s = ends_s[before] + (0.0 if edge is None else message_s(edge, phase))
            if (name, phase) not in waited_for or arrival_s > start_s:
                start_s, waited_for[name, phase] = arrival_s, cause
        duration_s = work_s(name, phase)
        ends_s[name, phase] = start_s + duration_s
        busy_s[node_of[name]] = busy_s.get(node_of[name], 0.0) + duration_s

    for name in graph.order:
        enter(name, "forward", [((edge.source, "forward"), edge) for edge in graph.incoming[name]])
    if mode == "training":
        for name in reversed(graph.order):
            if name in graph.gradient_modules:
                back = [edge for edge in graph.outgoing[name] if edge.key in graph.gradient_edges]
                causes: list[tuple[Event, Edge | None]] = [((edge.target, "backward"), edge) for edge in back]
                enter(name, "backward", [((name, "forward"), None), *causes])
    return Timeline(ends_s=ends_s, waited_for=waited_for, busy_s=busy_s)
