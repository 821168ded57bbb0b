"""Random numbers that depend on what they are for, not on the order in which things happen."""

import zlib

import numpy as np


def stream_seed(seed: int, step: int, *names: str) -> int:
    """A seed of 63 bits for one purpose in one step of a run: the same on every machine and transport."""
    words = [zlib.crc32(name.encode()) for name in names]
    drawn = np.random.SeedSequence([seed, step, *words]).generate_state(1, np.uint64)[0]
    return int(drawn) >> 1
