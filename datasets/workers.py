"""Shards over processes of this machine: each draws on one thread and writes its drops to their places.

A worker runs ``airlam.datasets.worker``: orders go to its standard input as lines of JSON, and so its answers
come back, so nothing is pickled and the caller's main module is not run again, as multiprocessing would.

What a killed worker leaves is written over: the next one draws the same bytes to the same places.
"""

import dataclasses
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from airlam.datasets.shards import Shard, Tally
from airlam.errors import DataError, SpecError
from airlam.specs import DatasetSpec, spec_to_toml

PROGRAM = (sys.executable, "-P", "-m", "airlam.datasets.worker")
ATTEMPTS = 3
READ_BYTES = 2**16
FAREWELL_S = 10.0  # from the end of a worker's answers to its own
ERRORS = {"SpecError": SpecError, "DataError": DataError}
# the libraries that would start threads of their own, and keep them busy waiting
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Message = dict[str, Any]

logger = logging.getLogger(__name__)


def draw_with_workers(spec: DatasetSpec, tally: Tally, count: int) -> None:
    """Draws the shards that the tally's file lacks, by ``count`` processes, the longest shards first.

    A shard whose worker is lost is drawn again, ``ATTEMPTS`` times in all; then DataError names it. What a
    worker raises for the user to mend, this raises; all workers are gone when it returns or raises.
    """
    with _Crew(spec, tally) as crew:
        crew.draw(sorted(tally.missing, key=lambda shard: -shard.num_drops), count)


class _Worker:
    """A process and the shard that it draws."""

    def __init__(self, first_order: Message) -> None:
        self.process = subprocess.Popen(
            PROGRAM,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | ONE_THREAD,
            process_group=0,  # Ctrl-C is for the caller alone, who then ends its workers
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._orders, self.answers = self.process.stdin, self.process.stdout
        self._heard = b""
        self.shard: Shard | None = None
        self._send(first_order)

    def start(self, shard: Shard) -> None:
        """Orders a shard."""
        self.shard = shard
        self._send(dataclasses.asdict(shard))

    def dismiss(self) -> None:
        """There is nothing left to draw: the worker ends by itself."""
        self.shard = None
        self._orders.close()

    def hear(self) -> list[Message] | None:
        """What it has said since; None where it has ended."""
        read = os.read(self.answers.fileno(), READ_BYTES)
        *lines, self._heard = (self._heard + read).split(b"\n")
        return [json.loads(line) for line in lines] if read else None

    def end(self, patience_s: float = 0.0) -> int:
        """Its exit status, negative for a signal; where it does not end by itself, it is killed."""
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
        with self.process:  # closes the pipes
            return self.process.wait()

    def _send(self, order: Message) -> None:
        try:
            self._orders.write(json.dumps(order).encode() + b"\n")
        except BrokenPipeError:  # it was lost just now; the end of its answers tells
            pass


class _Crew:
    """The workers of one run and the shards they share."""

    def __init__(self, spec: DatasetSpec, tally: Tally) -> None:
        self._first_order = {"spec": spec_to_toml(spec), "path": str(tally.file.path)}
        self._tally = tally
        self._selector = selectors.DefaultSelector()
        self._waiting: deque[Shard] = deque()
        self._losses: Counter[Shard] = Counter()

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers():
            self._end(worker)
        self._selector.close()

    def draw(self, shards: Iterable[Shard], count: int) -> None:
        """Until every shard is drawn."""
        self._waiting.extend(shards)
        while True:
            while self._waiting and len(self._workers()) < count:
                self._hire()
            if not self._workers():
                return
            for key, _ in self._selector.select():
                self._listen(key.data)

    def _workers(self) -> list[_Worker]:
        return [key.data for key in self._selector.get_map().values()]

    def _hire(self) -> None:
        worker = _Worker(self._first_order)
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)
        worker.start(self._waiting.popleft())

    def _end(self, worker: _Worker, patience_s: float = 0.0) -> int:
        self._selector.unregister(worker.answers)
        return worker.end(patience_s)

    def _listen(self, worker: _Worker) -> None:
        messages = worker.hear()
        if messages is None:
            self._mourn(worker)
        for message in messages or ():
            self._take(worker, message)

    def _take(self, worker: _Worker, message: Message) -> None:
        """A block, a shard or an error from a worker."""
        if "error" in message:
            raise _error(message)
        assert worker.shard is not None
        if "num_drops" in message:
            self._tally.add(worker.shard, message["num_drops"])
            return
        shard = worker.shard
        if self._waiting:
            worker.start(self._waiting.popleft())
        else:
            worker.dismiss()
        self._tally.finish(shard, message["sha256"])  # while the worker draws the next

    def _mourn(self, worker: _Worker) -> None:
        """A worker has ended: dismissed, or lost with a shard that another must draw."""
        shard, status = worker.shard, self._end(worker, FAREWELL_S)
        if shard is None:
            return
        if status >= 0:  # Python's own end; it has shown the traceback
            raise RuntimeError(f"the process that drew {shard} ended with status {status}; see above for why")
        how = signal.Signals(-status).name
        self._losses[shard] += 1
        if self._losses[shard] == ATTEMPTS:
            raise DataError(
                f"{shard} lost its process {ATTEMPTS} times, at last by {how}; where memory ran out, take "
                "fewer workers and run it again to go on"
            )
        logger.warning("%s lost its process by %s and is drawn again", shard, how)
        self._tally.restart(shard)
        self._waiting.appendleft(shard)


def _error(message: Message) -> Exception:
    """What a worker raised."""
    if message["error"] in ERRORS:
        return ERRORS[message["error"]](message["text"])
    return OSError(message["errno"], message["text"], message["file"])
