"""Calls to processes on several nodes: to the shortest queue, and elsewhere where a process dies."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airlam.serving.batching import DeadlineMissed

_SMOOTHING = 0.2  # of the seconds that a link takes
_PAUSE_S = 0.02  # before a node is asked again after all have failed
_KNOCK_S = 2.0  # for a node that has failed to show that it is back
_FORGET_S = 5.0  # after which a node that has not been asked is worth a try, however slow it was
_LATE_S = 2.0  # at the least, before another node is asked
_LATE = 10.0  # times what an answer should take
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Queue:
    """What is known of a node. s_per_link: 0 until it has answered, so that each is tried; told_s: when."""

    handle: Any
    links: int = 0
    s_per_link: float = 0.0
    told_s: float = 0.0
    is_up: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)


class Fleet:
    """Processes by node, all behind one ``call``; may be called from several threads.

    handles: Ray Serve's, by node; each has ``run``, bytes to bytes, and ``process_id``. failures: what they
    raise where a process or a node is lost. answer_s: how long a call may take before it counts as lost;
    less where others could answer. retry_s: how long they are tried.
    """

    def __init__(
        self,
        handles: Mapping[str, Any],
        failures: tuple[type[Exception], ...],
        *,
        answer_s: float = 10.0,
        retry_s: float = 60.0,
    ) -> None:
        self._queues = {node: _Queue(handle) for node, handle in handles.items()}
        self._failures, self._answer_s, self._retry_s = failures, answer_s, retry_s
        self._closed = threading.Event()

    def call(
        self, nodes: Sequence[str], num_links: int, request: Callable[[str], bytes]
    ) -> tuple[str, bytes]:
        """Who of ``nodes`` answered, and what; the first of those with equal queues is asked.

        request: what a node is sent. DeadlineMissed where none answers in ``retry_s``.
        """
        limit_s = time.monotonic() + self._retry_s
        failed: set[str] = set()
        while True:
            node = self._shortest([node for node in nodes if node not in failed], num_links)
            try:
                return node, self._asked(node, num_links, request(node), len(nodes) > 1)
            except self._failures as error:
                _log.warning("%s lost a request (%s), which is tried again", node, type(error).__name__)
                self._suspect(node)
            if time.monotonic() > limit_s:
                raise DeadlineMissed(f"no replica answered within {self._retry_s:g} s")
            failed.add(node)
            if failed.issuperset(nodes):
                failed.clear()
                time.sleep(_PAUSE_S)

    def process_ids(self) -> dict[str, int]:
        """Of one process on each node."""
        return {node: queue.handle.process_id.remote().result() for node, queue in self._queues.items()}

    def is_up(self, node: str) -> bool:
        """Whether a node has answered since it last failed to."""
        return self._queues[node].is_up

    def close(self) -> None:
        """Nobody waits any more for nodes to come back."""
        self._closed.set()

    def _shortest(self, nodes: Sequence[str], num_links: int) -> str:
        """Where an answer is expected first, of those that are up, if any is."""

        def wait_s(node: str) -> float:
            queue = self._queues[node]
            is_old = time.monotonic() - queue.told_s > _FORGET_S and not queue.links
            return 0.0 if is_old else (queue.links + num_links) * queue.s_per_link

        return min([node for node in nodes if self._queues[node].is_up] or nodes, key=wait_s)

    def _asked(self, node: str, num_links: int, data: bytes, has_others: bool) -> bytes:
        """A node's answer. Ray Serve keeps what it has no replica for: a lost node may just be silent."""
        queue, started_s = self._queues[node], time.perf_counter()
        late_s = max(_LATE_S, _LATE * (queue.links + num_links) * queue.s_per_link)
        with queue.lock:
            queue.links += num_links
        try:
            answer_s = min(late_s, self._answer_s) if has_others else self._answer_s
            found: bytes = _awaited(queue.handle.run.remote(data), answer_s)
        finally:
            with queue.lock:
                queue.links -= num_links
        taken_s = (time.perf_counter() - started_s) / num_links
        with queue.lock:
            queue.s_per_link += (_SMOOTHING if queue.s_per_link else 1.0) * (taken_s - queue.s_per_link)
            queue.told_s = time.monotonic()
        return found

    def _suspect(self, node: str) -> None:
        """Leaves a node out until it answers again, where there are others."""
        queue = self._queues[node]
        with queue.lock:
            begins = queue.is_up and len(self._queues) > 1
            queue.is_up = queue.is_up and not begins
        if begins:
            threading.Thread(target=self._await, args=(node,), name="airlam-await", daemon=True).start()

    def _await(self, node: str) -> None:
        queue, started_s = self._queues[node], time.monotonic()
        while not self._closed.wait(_PAUSE_S):
            try:
                _awaited(queue.handle.process_id.remote(), _KNOCK_S)
            except self._failures:
                continue
            queue.is_up = True
            _log.warning("%s answers again, %.1f s later", node, time.monotonic() - started_s)
            return


def _awaited(response: Any, timeout_s: float) -> Any:
    """What came; TimeoutError where nothing did, and then nobody is to work on it any more."""
    try:
        return response.result(timeout_s=timeout_s)
    except TimeoutError:
        response.cancel()
        raise
