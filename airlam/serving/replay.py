"""A dataset's users replayed to a server at a given rate, and how long they waited.

The load is open: requests leave when they are due, whether earlier ones have come back or not, so a server
that falls behind shows in the latencies, which are counted from the time at which a request was due.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from airlam.serving.client import Client, RequestRefused, ServerLost

Send = Callable[[Client, int], object]
"""Sends the request of a number by a client; RequestRefused or ServerLost where it fails."""
_QUANTILES = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What a replay met. latencies_s: of the requests that were answered. failures: count by reason."""

    duration_s: float
    latencies_s: tuple[float, ...]
    failures: dict[str, int]

    @property
    def num_requests(self) -> int:
        """All that were sent."""
        return len(self.latencies_s) + sum(self.failures.values())

    @property
    def answered_per_s(self) -> float:
        """Answers over the time from the first request to the last answer."""
        return len(self.latencies_s) / self.duration_s

    def quantile_ms(self, share: float) -> float:
        """The latency that ``share`` of the answered requests did not exceed; NaN where none was answered."""
        return float(np.quantile(self.latencies_s, share)) * 1e3 if self.latencies_s else float("nan")

    def lines(self) -> list[str]:
        """The report for a terminal."""
        quantiles = ", ".join(f"p{100 * q:g} {self.quantile_ms(q):.1f} ms" for q in _QUANTILES)
        pace = f"{self.duration_s:.1f} s, {self.answered_per_s:.1f} answers a second"
        first = f"{self.num_requests} requests in {pace}"
        failed = [f"{count} failed: {reason}" for reason, count in sorted(self.failures.items())]
        return [first, f"latency {quantiles}", *(failed or ["none failed"])]


def replay(
    url: str, send: Send, *, rate_per_s: float, duration_s: float, num_connections: int = 32
) -> ReplayReport:
    """Sends requests 0, 1, ... at a constant rate over some connections, and waits for the last answer."""
    num_requests = max(1, round(rate_per_s * duration_s))
    due: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
    latencies: list[list[float]] = [[] for _ in range(num_connections)]
    failures: list[list[str]] = [[] for _ in range(num_connections)]
    senders = [
        threading.Thread(target=_send_due, args=(url, send, due, latencies[index], failures[index]))
        for index in range(num_connections)
    ]
    started_s = time.perf_counter()
    for sender in senders:
        sender.start()
    for number in range(num_requests):
        at_s = started_s + number / rate_per_s
        time.sleep(max(0.0, at_s - time.perf_counter()))
        due.put((number, at_s))
    for _ in senders:
        due.put(None)
    for sender in senders:
        sender.join()
    return ReplayReport(
        duration_s=time.perf_counter() - started_s,
        latencies_s=tuple(latency for own in latencies for latency in own),
        failures=_counted([reason for own in failures for reason in own]),
    )


def _send_due(
    url: str,
    send: Send,
    due: "queue.SimpleQueue[tuple[int, float] | None]",
    latencies: list[float],
    failures: list[str],
) -> None:
    """One connection's thread: sends what is due until there is no more."""
    with Client(url) as client:
        while (item := due.get()) is not None:
            number, at_s = item
            try:
                send(client, number)
            except RequestRefused as error:
                failures.append(f"HTTP {error.status}")
            except ServerLost:
                failures.append("no answer")
            else:
                latencies.append(time.perf_counter() - at_s)


def _counted(reasons: Sequence[str]) -> dict[str, int]:
    return {reason: reasons.count(reason) for reason in set(reasons)}
