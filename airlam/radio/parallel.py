"""Groups of links side by side, one thread each: small matrices do not fill several cores one at a time."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_all_cores(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``function`` of every item, in order, on as many threads as torch has.

    Each call has torch to itself on one thread, so what comes out does not depend on how many there are. One
    item alone gets all of torch's threads. The caller's gradient and inference modes hold inside.
    """
    listed = list(items)
    num_threads = torch.get_num_threads()
    with_gradient, inferring = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    if num_threads == 1 or len(listed) < 2:
        return [function(item) for item in listed]

    def call(item: Item) -> Result:
        with torch.inference_mode(inferring), torch.set_grad_enabled(with_gradient):
            return function(item)

    try:
        with ThreadPoolExecutor(
            min(num_threads, len(listed)), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(call, listed))
    finally:
        torch.set_num_threads(num_threads)  # MKL's count is the process', not the thread's
