"""Memory that batches free is kept for the next ones."""

_LARGEST_BLOCK_BYTES = 2**25 - 2**13  # that the thresholds follow, its own header left out


def keep_freed_memory() -> None:
    """Has glibc keep what a batch frees for the next one, instead of asking the kernel for it each time.

    Its thresholds follow the largest block that has been freed, up to 32 MiB (mallopt(3)); without, a lone
    request takes hundreds of page faults, which cost a millisecond or two, and a batch in the worker thread
    tens of thousands. Elsewhere this does nothing.
    """
    block = bytearray(_LARGEST_BLOCK_BYTES)
    del block
