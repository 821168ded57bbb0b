"""How long calls take beside each other, on one thread."""

import math
import time
from collections.abc import Callable, Mapping

import torch

_TURN_S = 0.003  # at least, of calls one after another: what is timed serves slot after slot


def best_times_ms(work: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Processor time of one thread a call, by name: milliseconds, the best of ``repeats`` turns.

    Methods take turns, since whatever else runs can only add to a time; a turn follows a call that fills
    caches.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            calls = {name: math.ceil(_TURN_S / _seconds_a_call(act, 1)) for name, act in work.items()}
            turns = [
                {name: _seconds_a_call(act, calls[name]) for name, act in work.items()}
                for _ in range(repeats)
            ]
    finally:
        torch.set_num_threads(threads)
    return {name: 1e3 * min(turn[name] for turn in turns) for name in work}


def _seconds_a_call(act: Callable[[], object], num_calls: int) -> float:
    """Processor time of this thread."""
    act()
    start = time.thread_time()
    for _ in range(num_calls):
        act()
    return (time.thread_time() - start) / num_calls
