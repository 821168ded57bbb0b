"""A process that draws shards for another: ``airlam.datasets.workers`` runs it as a program.

Standard input: a line of JSON with the spec (TOML) and the unfinished file, then one a shard. Standard
output: ``num_drops`` after each block, ``sha256`` after each shard, or an ``error`` and the end. The process
ends when its input does, in the middle of a shard too, and so with whoever started it, killed or not.
"""

import json
import os
import queue
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from airlam.datasets.shards import Shard, draw_blocks, write_shard
from airlam.datasets.unfinished import UnfinishedFile
from airlam.errors import AirlamError
from airlam.specs import DatasetSpec, parse_spec

Orders = queue.SimpleQueue[dict[str, Any]]


class _Answers:
    """Standard output, which is for answers alone: what libraries print goes to the log."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(self, **message: Any) -> None:
        """One line."""
        self._stream.write(json.dumps(message) + "\n")


def main() -> None:
    """Draws what it is told until its input ends."""
    orders: Orders = queue.SimpleQueue()
    answers = _Answers()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    try:
        _draw(orders, answers)
    except AirlamError as error:
        answers.say(error=type(error).__name__, text=str(error))
    except BrokenPipeError:  # nobody is left to hear of it
        pass
    except OSError as error:
        file = None if error.filename is None else str(error.filename)
        answers.say(error="OSError", errno=error.errno, text=error.strerror or str(error), file=file)


def _listen(orders: Orders) -> None:
    """Takes orders while the main thread draws; ends the process with the input."""
    try:
        for line in sys.stdin.buffer:
            orders.put(json.loads(line))
    finally:  # also where a line was cut off
        os._exit(0)


def _draw(orders: Orders, answers: _Answers) -> None:
    first = orders.get()
    with warnings.catch_warnings():  # what the spec warns of was said where it was read
        warnings.simplefilter("ignore")
        spec = parse_spec(DatasetSpec, first["spec"], "the spec of the run")
    with UnfinishedFile.open(Path(first["path"]), spec) as file:
        while True:
            shard = Shard(**orders.get())
            blocks = draw_blocks(spec, shard)
            sha256 = write_shard(
                spec, shard, blocks, file, lambda num_drops: answers.say(num_drops=num_drops)
            )
            answers.say(sha256=sha256)


if __name__ == "__main__":
    main()
