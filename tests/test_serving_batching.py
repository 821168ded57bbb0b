"""Batches fill under load, the queue is bounded, deadlines hold, and one request's trouble is its own."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest
import torch

from airlam.serving.batching import Batcher, DeadlineMissed, Draining, QueueFull, Unpredictable
from airlam.serving.measurement import Measurement

LONG_S = 30.0


def request(value: float, num_links: int = 1) -> Measurement:
    history = torch.full((num_links, 1, 1, 1, 1), value, dtype=torch.complex64)
    return Measurement(lam="any", history=history, noise_variance=torch.ones(num_links))


class Worker:
    """Doubles what it is given, once its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[float]] = []

    def __call__(self, requests: Sequence[Measurement]) -> list[torch.Tensor]:
        self.started.set()
        assert self.gate.wait(10)
        values = [one.history.flatten()[0].real.item() for one in requests]
        self.batches.append(values)
        if -1.0 in values:
            raise torch.linalg.LinAlgError("singular")
        if -2.0 in values:
            raise KeyError("a bug")
        return [2 * one.history for one in requests]


def run(scenario: Callable[[Worker, Batcher], Awaitable[None]], max_queued_links: int = 8) -> Worker:
    worker = Worker()

    async def main() -> None:
        batcher = Batcher(worker, max_batch_links=4, max_queued_links=max_queued_links)
        try:
            await scenario(worker, batcher)
        finally:
            worker.gate.set()
            await batcher.drain()
            assert batcher.queued_links == 0

    asyncio.run(asyncio.wait_for(main(), 20))
    return worker


async def first_running(worker: Worker, batcher: Batcher) -> "asyncio.Task[torch.Tensor]":
    """A request that the worker has begun with and cannot end."""
    task = asyncio.create_task(batcher.submit(request(1.0), LONG_S))
    await asyncio.to_thread(worker.started.wait, 10)
    return task


def test_what_waits_while_a_batch_runs_is_the_next_batch() -> None:
    async def scenario(worker: Worker, batcher: Batcher) -> None:
        first = await first_running(worker, batcher)
        rest = [asyncio.create_task(batcher.submit(request(v), LONG_S)) for v in (2.0, 3.0, 4.0, 5.0, 6.0)]
        await asyncio.sleep(0)
        worker.gate.set()
        answers = await asyncio.gather(first, *rest)
        assert [answer.flatten()[0].real.item() for answer in answers] == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]

    assert run(scenario).batches == [[1.0], [2.0, 3.0, 4.0, 5.0], [6.0]]


def test_a_batch_is_no_larger_than_allowed_in_links() -> None:
    async def scenario(worker: Worker, batcher: Batcher) -> None:
        first = await first_running(worker, batcher)
        sizes = ((2.0, 3), (3.0, 2), (4.0, 2))
        rest = [asyncio.create_task(batcher.submit(request(v, n), LONG_S)) for v, n in sizes]
        await asyncio.sleep(0)
        worker.gate.set()
        assert [len(answer) for answer in await asyncio.gather(first, *rest)] == [1, 3, 2, 2]

    assert run(scenario).batches == [[1.0], [2.0], [3.0, 4.0]]


def test_a_full_queue_refuses_and_goes_on() -> None:
    async def scenario(worker: Worker, batcher: Batcher) -> None:
        first = await first_running(worker, batcher)
        held = [asyncio.create_task(batcher.submit(request(2.0, 4), LONG_S)) for _ in range(2)]
        await asyncio.sleep(0)
        assert batcher.queued_links == 8
        for _ in range(100):
            with pytest.raises(QueueFull) as refused:
                await batcher.submit(request(3.0), LONG_S)
        assert refused.value.retry_after_s >= 0 and batcher.queued_links == 8
        worker.gate.set()
        await asyncio.gather(first, *held)
        assert (await batcher.submit(request(3.0), LONG_S)).flatten()[0].real.item() == 6.0

    run(scenario)


def test_the_nearest_deadline_goes_first_and_a_missed_one_does_not_run() -> None:
    async def scenario(worker: Worker, batcher: Batcher) -> None:
        first = await first_running(worker, batcher)
        late = asyncio.create_task(batcher.submit(request(9.0), 0.01))
        patient = asyncio.create_task(batcher.submit(request(2.0, 4), LONG_S))
        urgent = asyncio.create_task(batcher.submit(request(3.0, 4), LONG_S / 2))
        await asyncio.sleep(0.05)
        worker.gate.set()
        with pytest.raises(DeadlineMissed):
            await late
        await asyncio.gather(first, patient, urgent)

    assert run(scenario, max_queued_links=16).batches == [[1.0], [3.0], [2.0]]


def test_numbers_that_cannot_be_predicted_from_fail_their_own_request() -> None:
    async def scenario(worker: Worker, batcher: Batcher) -> None:
        first = await first_running(worker, batcher)
        values = (2.0, -1.0, float("nan"), 3.0)
        rest = [asyncio.create_task(batcher.submit(request(value), LONG_S)) for value in values]
        await asyncio.sleep(0)
        worker.gate.set()
        await first
        good, singular, infinite, other = await asyncio.gather(*rest, return_exceptions=True)
        assert isinstance(good, torch.Tensor) and isinstance(other, torch.Tensor)
        assert isinstance(singular, Unpredictable) and isinstance(infinite, Unpredictable)

    run(scenario)


def test_an_error_of_the_program_reaches_whoever_waits_and_the_next_batch_runs() -> None:
    async def scenario(worker: Worker, batcher: Batcher) -> None:
        worker.gate.set()
        with pytest.raises(KeyError):
            await batcher.submit(request(-2.0), LONG_S)
        assert len(await batcher.submit(request(1.0), LONG_S)) == 1

    run(scenario)


def test_draining_answers_what_is_there_and_refuses_what_comes() -> None:
    async def scenario(worker: Worker, batcher: Batcher) -> None:
        first = await first_running(worker, batcher)
        second = asyncio.create_task(batcher.submit(request(2.0), LONG_S))
        await asyncio.sleep(0)
        end = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await batcher.submit(request(3.0), LONG_S)
        assert not end.done()
        worker.gate.set()
        assert [len(answer) for answer in await asyncio.gather(first, second)] == [1, 1]
        await end

    run(scenario)


def test_a_request_whose_sender_is_gone_does_not_run() -> None:
    async def scenario(worker: Worker, batcher: Batcher) -> None:
        first = await first_running(worker, batcher)
        gone = asyncio.create_task(batcher.submit(request(2.0), LONG_S))
        kept = asyncio.create_task(batcher.submit(request(3.0), LONG_S))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        worker.gate.set()
        await asyncio.gather(first, kept)

    assert run(scenario).batches == [[1.0], [3.0]]


def test_work_that_nobody_waits_for_any_more_leaves_the_worker_at_work() -> None:
    """Cancelled before its turn it does not run; batches behind it do."""
    done: list[str] = []

    async def scenario(worker: Worker, batcher: Batcher) -> None:
        first = await first_running(worker, batcher)
        between = asyncio.create_task(batcher.between_batches(lambda: done.append("ran")))
        await asyncio.sleep(0)
        between.cancel()
        await asyncio.sleep(0)
        worker.gate.set()
        await first
        await batcher.submit(request(2.0), LONG_S)

    assert run(scenario).batches == [[1.0], [2.0]] and not done
