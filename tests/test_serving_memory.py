"""What a batch frees is there for the next one, whichever thread runs it."""

import platform
import subprocess
import sys

import pytest

ROUNDS = """
import resource, threading
from airlam.serving.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    blocks = [b"1" * (3 << 20) for _ in range(12)]  # 36 MiB at once, and freed
    del blocks
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

def rounds():
    for _ in range(3):
        found = faults()
    print(found)

def everywhere():
    rounds()
    thread = threading.Thread(target=rounds)
    thread.start()
    thread.join()

everywhere()
keep_freed_memory()
everywhere()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library keeps memory its own way")
def test_freed_memory_takes_no_page_faults() -> None:
    ran = subprocess.run([sys.executable, "-P", "-c", ROUNDS], capture_output=True, text=True, check=True)
    *before, main, worker = map(int, ran.stdout.split())
    assert max(main, worker) < min(before) / 4  # huge pages leave few to begin with
