"""Shards as Ray tasks, on this machine or on many.

The nodes need airlam and nothing else: a task gets the spec and a shard and returns the shard's arrays, which
the caller writes, so no disk is shared. Ray moves them by its own serialisation, which trusts the cluster.
"""

import os
import socket
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from airlam.datasets.fields import drop_bytes
from airlam.datasets.layout import software_versions
from airlam.datasets.machine import num_cores
from airlam.datasets.shards import Arrays, Shard, Tally, caller_bytes, draw_blocks, drawing_bytes, write_shard
from airlam.errors import AirlamError, DataError
from airlam.specs import DatasetSpec, parse_spec, spec_to_toml

LOCAL = "local"
ATTEMPTS = 3
RAY_BYTES = 600 * 2**20  # Ray's own processes on a machine
LEAST_STORE_BYTES = 128 * 2**20  # of objects; Ray takes no less than 75 MiB
KNOCK_S = 5.0
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def draw_with_ray(
    spec: DatasetSpec, tally: Tally, address: str, wanted: int | None, memory_budget_bytes: int
) -> None:
    """Draws the shards that the tally's file lacks as Ray tasks of one core each.

    address: ``local`` starts Ray on this machine and ends it afterwards; otherwise what ``ray.init`` takes,
    and a process that is connected already stays so. wanted: tasks at a time, None for one a core.
    memory_budget_bytes: of this machine, for the shards that come in and, where Ray is local, the tasks.
    A shard whose process dies is drawn again, ``ATTEMPTS`` times in all. DataError where Ray is absent or out
    of reach, where the cluster's software is not the caller's, and where a shard fails every time.
    """
    ray = _ray()
    room = _room(spec, address, memory_budget_bytes)
    most = min(room, wanted or room)
    with _connected(ray, address, spec, min(most, num_cores() if wanted is None else most)):
        cores = int(ray.cluster_resources().get("CPU", 1))
        task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_draw)
        _draw_all(ray, partial(task.remote, spec_to_toml(spec)), spec, tally, min(most, wanted or cores))


def _draw_all(ray: Any, submit: Any, spec: DatasetSpec, tally: Tally, most: int) -> None:
    """Keeps ``most`` tasks under way until every shard is written."""
    waiting = deque(sorted(tally.missing, key=lambda shard: -shard.num_drops))
    under_way: dict[Any, Shard] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < most:
                shard = waiting.popleft()
                under_way[submit(shard)] = shard
            (reference,), _ = ray.wait(list(under_way), num_returns=1)
            shard = under_way.pop(reference)
            blocks = _result(ray, reference, shard)
            tally.finish(shard, write_shard(spec, shard, blocks, tally.file, partial(tally.add, shard)))
    finally:  # where it ended early
        for reference in under_way:
            ray.cancel(reference, force=True)


def _draw(spec_toml: str, shard: Shard) -> tuple[dict[str, str], list[Arrays]]:
    """The task: a shard's blocks, and the versions of what drew them."""
    with warnings.catch_warnings():  # what the spec warns of was said where it was read
        warnings.simplefilter("ignore")
        spec = parse_spec(DatasetSpec, spec_toml, "the spec of the run")
    return software_versions(), list(draw_blocks(spec, shard))


def _result(ray: Any, reference: Any, shard: Shard) -> list[Arrays]:
    """A task's blocks; what it raised for the user to mend is raised here."""
    try:
        versions, blocks = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AirlamError | OSError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{shard} failed {ATTEMPTS} times on the Ray cluster ({reason}); where memory ran out, take "
            "fewer workers and run it again to go on"
        ) from None
    if versions != software_versions():
        raise DataError(
            f"the Ray cluster draws with {versions}, not with {software_versions()}; install the same there"
        )
    return list(blocks)


def _room(spec: DatasetSpec, address: str, budget: int) -> int:
    """Shards under way that fit the budget of this machine."""
    shard_bytes = spec.shard_drops * drop_bytes(spec)
    if address != LOCAL:
        return max(1, (budget - caller_bytes(spec)) // shard_bytes)
    task_bytes = drawing_bytes(spec) + 2 * shard_bytes  # it holds the shard, and so does Ray's store
    return max(1, (budget - caller_bytes(spec) - RAY_BYTES) // task_bytes)


@contextmanager
def _connected(ray: Any, address: str, spec: DatasetSpec, num_cpus: int) -> Iterator[None]:
    """Connects to Ray, or starts it on this machine; leaves what was there before."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "warning"}
    if address == LOCAL:
        shards_bytes = num_cpus * spec.shard_drops * drop_bytes(spec)
        options |= {
            "num_cpus": num_cpus,
            "object_store_memory": max(LEAST_STORE_BYTES, 3 * shards_bytes // 2),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        _knock(address)
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"no Ray cluster at {address!r} ({reason}); start one with ray start --head, or take local"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """OSError where nobody answers at HOST:PORT; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def _ray() -> Any:
    """The library; DataError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise DataError("Ray is not installed: pip install 'airlam[ray]'") from None
    return ray
