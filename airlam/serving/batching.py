"""Requests become batches: what waits while a batch runs is the next one.

No request waits for company: alone it runs at once, under load batches fill themselves. The queue is bounded
in what its requests count as their size, which is links where channels are predicted; the nearest deadline
goes first, and what has missed its deadline is told so and does not run.
"""

import asyncio
import functools
import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

import torch

_log = logging.getLogger(__name__)
_SMOOTHING = 0.1  # of the seconds that a link takes, as the queue's pace is estimated
_PAUSE_SHARE = 0.03  # of a batch's duration, before the next one starts with room to spare


class Asked(Protocol):
    """A request as the queue sees it."""

    @property
    def name(self) -> str:
        """Of whom it asks."""
        ...

    @property
    def size(self) -> int:
        """What it takes of a batch and of the queue."""
        ...


Request = TypeVar("Request", bound=Asked)


class NotServed(Exception):
    """A request that got no answer; the message is for whoever sent it."""


class QueueFull(NotServed):
    """More waits than may; retry_after_s is when the queue should have emptied."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s:.2g} s")
        self.retry_after_s = retry_after_s


class DeadlineMissed(NotServed):
    """The deadline passed before the request could run."""


class Draining(NotServed):
    """The server is about to end."""


class Unpredictable(NotServed):
    """Nothing finite comes of these numbers."""


Answer = torch.Tensor | Unpredictable


@dataclass(order=True, slots=True)
class _Waiting(Generic[Request]):
    """A request in the queue: the nearest deadline first, then the first come."""

    deadline_s: float
    number: int
    request: Request = field(compare=False)
    answer: "asyncio.Future[torch.Tensor]" = field(compare=False)


class Batcher(Generic[Request]):
    """One queue before one worker thread; all but the models runs in one event loop."""

    def __init__(
        self,
        predict: Callable[[Sequence[Request]], list[torch.Tensor]],
        *,
        max_batch_links: int,
        max_queued_links: int,
        on_batch: Callable[[int, float], None] = lambda links, duration_s: None,
    ) -> None:
        """predict: answers the requests of a batch, in the worker thread. on_batch: told the links (or what
        else sizes count) of each batch and the seconds that it took, there too.
        """
        self._predict, self._on_batch = predict, on_batch
        self._max_batch, self._max_queued = max_batch_links, max_queued_links
        self._heap: list[_Waiting[Request]] = []
        self._count = 0
        self._s_per_link = self._last_s = 0.0
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._worker = threading.Thread(target=_work, args=(self._jobs,), name="airlam-predict", daemon=True)
        self.queued_links = 0
        self.draining = False

    async def submit(self, request: Request, deadline_s: float) -> torch.Tensor:
        """The answer, within ``deadline_s`` seconds of now; NotServed where there is none."""
        (answer,) = self._enqueue([request], deadline_s)
        return await answer

    async def submit_all(self, requests: Sequence[Request], deadline_s: float) -> list[torch.Tensor]:
        """All answers or none; side by side in the queue, so in one batch where they fit it."""
        return await asyncio.gather(*self._enqueue(requests, deadline_s))

    def _enqueue(
        self, requests: Sequence[Request], deadline_s: float
    ) -> list["asyncio.Future[torch.Tensor]"]:
        num_links = sum(request.size for request in requests)
        if self.draining:
            raise Draining("the server is about to end; ask another one")
        if self.queued_links + num_links > self._max_queued:
            raise QueueFull(self.queued_links * self._s_per_link)
        loop = asyncio.get_running_loop()
        limit_s, answers = loop.time() + deadline_s, []
        for request in requests:
            self._count += 1
            answers.append(loop.create_future())
            heapq.heappush(self._heap, _Waiting(limit_s, self._count, request, answers[-1]))
        self.queued_links += num_links
        if not self._busy:
            self._run_next(loop)
        return answers

    async def between_batches(self, work: Callable[[], None]) -> None:
        """Has the worker do something else once, before or after a batch."""
        done: Future[None] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():  # who wanted it is gone
                return
            try:
                work()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        self._do(run)
        await asyncio.wrap_future(done)

    async def drain(self) -> None:
        """Refuses what comes, answers what is there, and ends the worker."""
        self.draining = True
        await self._idle.wait()
        if self._worker.is_alive():
            self._jobs.put(None)
            self._worker.join()

    def _run_next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has the worker run the next batch, if there is one."""
        batch = self._take(loop.time())
        self._busy = bool(batch)
        if batch:
            self._idle.clear()
            self._do(functools.partial(self._run, batch, loop))
        else:
            self._idle.set()

    def _do(self, job: Callable[[], None]) -> None:
        """Has the worker do it after what it has to do already."""
        self._jobs.put(job)
        if not self._worker.is_alive():
            self._worker.start()

    def _run(self, batch: list[_Waiting[Request]], loop: asyncio.AbstractEventLoop) -> None:
        """Answers a batch; runs in the worker thread.

        Telling the loop comes last, so that it need not wait for the interpreter's lock.
        """
        answers: list[Answer] | Exception
        try:
            answers = self._answers([waiting.request for waiting in batch])
        except Exception as error:  # of the program, not of the numbers: whoever waits is to know
            answers = error
        loop.call_soon_threadsafe(self._hand_out, batch, answers, loop)

    def _take(self, now_s: float) -> list[_Waiting[Request]]:
        """The next batch; empty where nothing waits."""
        batch: list[_Waiting[Request]] = []
        room = self._max_batch
        while self._heap and self._heap[0].request.size <= room:
            waiting = heapq.heappop(self._heap)
            self.queued_links -= waiting.request.size
            if waiting.answer.cancelled():  # whoever asked is gone
                continue
            if waiting.deadline_s < now_s:
                waiting.answer.set_exception(DeadlineMissed("the deadline passed while the request waited"))
                continue
            batch.append(waiting)
            room -= waiting.request.size
        return batch

    def _answers(self, requests: list[Request]) -> list[Answer]:
        """What each request of a batch is answered; runs in the worker thread."""
        started_s = time.perf_counter()
        found = self._answered(requests)
        self._last_s, num_links = time.perf_counter() - started_s, sum(each.size for each in requests)
        self._s_per_link += _SMOOTHING * (self._last_s / num_links - self._s_per_link)
        self._on_batch(num_links, self._last_s)
        return found

    def _answered(self, requests: Sequence[Request]) -> list[Answer]:
        """Numbers that nothing comes of fail their own request only."""
        try:
            return [_finite(found) for found in self._predict(requests)]
        except (RuntimeError, ValueError) as error:  # torch's of a matrix it cannot factor; our own DataError
            if len(requests) > 1:
                return [answer for one in requests for answer in self._answered([one])]
            _log.warning("no answer to a request to %s: %s", requests[0].name, error)
            return [Unpredictable("nothing comes of these numbers; check their scale")]

    def _hand_out(
        self,
        batch: list[_Waiting[Request]],
        answers: list[Answer] | Exception,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        for index, waiting in enumerate(batch):
            answer = answers if isinstance(answers, Exception) else answers[index]
            if waiting.answer.cancelled():
                continue
            if isinstance(answer, BaseException):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
        if len(batch) > 1 and self.queued_links < self._max_batch and not self.draining:
            # those who were just answered may ask again: without a pause they would miss this batch together,
            # and batches of many and of few would alternate
            loop.call_later(_PAUSE_SHARE * self._last_s, self._run_next, loop)
        else:
            self._run_next(loop)


def _work(jobs: "SimpleQueue[Callable[[], None] | None]") -> None:
    """What the worker thread does: one job after another, until None."""
    while (job := jobs.get()) is not None:
        job()
        del job  # with its batch, which would be kept until there is another one


def _finite(found: torch.Tensor) -> Answer:
    parts = torch.view_as_real(found) if found.is_complex() else found
    if torch.isfinite(parts.sum()):
        return found
    return Unpredictable("nothing finite comes of these numbers; check their scale")
