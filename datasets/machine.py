"""What this machine lends the process: cores and memory, in a container the container's."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def num_cores() -> int:
    """Cores that the process may use at once, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _limits("cpu.max")  # microseconds of work in each period, and the period
    return max(1, min(allowed, quota[0] // quota[1] if len(quota) == 2 else allowed))


def memory_bytes() -> int:
    """Memory that the process may take if it were alone."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([installed, *_limits("memory.max")])


def _limits(name: str) -> list[int]:
    """The numbers in a file of the control group; none where there is no limit or no control group."""
    try:
        words = (CGROUP / name).read_text().split()
    except OSError:
        return []
    return [int(word) for word in words] if all(word.isdigit() for word in words) else []
