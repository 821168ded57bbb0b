"""Shards as Ray tasks, on this machine or on many.

The nodes need airlam and nothing else: a task gets the spec and a shard and returns the shard's arrays, which
the caller writes, so no disk is shared; for the same reason a scene of the user's own is drawn on this
machine alone. Ray moves the arrays by its own serialisation, which trusts the cluster.
"""

import platform
import warnings
from collections import deque
from functools import partial
from typing import Any

import torch

from airlam.datasets.fields import drop_bytes
from airlam.datasets.layout import software_versions
from airlam.datasets.machine import num_cores
from airlam.datasets.scene_files import own_scene, scene_digest
from airlam.datasets.shards import Arrays, Shard, Tally, caller_bytes, draw_blocks, drawing_bytes, write_shard
from airlam.errors import AirlamError, DataError, SpecError
from airlam.ray_cluster import LEAST_STORE_BYTES, LOCAL, connected, first_line
from airlam.specs import DatasetSpec, parse_spec, spec_to_toml

ATTEMPTS = 3
RAY_BYTES = 600 * 2**20  # Ray's own processes on a machine
SETTINGS = {"RAY_task_oom_retries": str(ATTEMPTS - 1)}  # read when the caller connects, on a far cluster too


def draw_with_ray(
    spec: DatasetSpec, tally: Tally, address: str, wanted: int | None, memory_budget_bytes: int
) -> None:
    """Draws the shards that the tally's file lacks as Ray tasks of one core each.

    address: ``local`` starts Ray on this machine and ends it afterwards; otherwise what ``ray.init`` takes,
    and a process that is connected already stays so. wanted: tasks at a time, None for one a core.
    memory_budget_bytes: of this machine, for the shards that come in and, where Ray is local, the tasks.
    Each task asks for its memory, too, so a machine draws no more shards at a time than fit it. A shard whose
    process dies is drawn again, ``ATTEMPTS`` times at most. So is one that Ray's memory monitor ends, unless
    the caller had connected to Ray before or has set ``RAY_task_oom_retries``; Ray's own is without end.

    SpecError for a scene of the user's own on a cluster, which does not have its files. DataError where Ray
    is absent or out of reach, where no machine of the cluster has the memory, where its software, processors
    or scene are not the caller's, and where a shard fails every time.
    """
    if spec.site is not None and own_scene(spec.site.scene) is not None and address != LOCAL:
        raise SpecError(
            f"scene {spec.site.scene!r} is a file, which other machines lack; draw it on this one, with "
            "workers or a local Ray"
        )
    room = _room(spec, address, memory_budget_bytes)
    most = min(room, wanted or room)
    local = _local_options(spec, min(most, num_cores() if wanted is None else most))
    with connected(address, settings=SETTINGS, **local) as ray:
        _require_memory(ray, spec)
        cores = int(ray.cluster_resources().get("CPU", 1))
        task = ray.remote(num_cpus=1, memory=_task_bytes(spec), max_retries=ATTEMPTS - 1)(_draw)
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
            blocks = _result(ray, reference, spec, shard)
            tally.finish(shard, write_shard(spec, shard, blocks, tally.file, partial(tally.add, shard)))
    finally:  # where it ended early
        for reference in under_way:
            ray.cancel(reference, force=True)


def _draw(spec_toml: str, shard: Shard) -> tuple[dict[str, str], list[Arrays]]:
    """The task: a shard's blocks, and what they were drawn with."""
    with warnings.catch_warnings():  # what the spec warns of was said where it was read
        warnings.simplefilter("ignore")
        spec = parse_spec(DatasetSpec, spec_toml, "the spec of the run")
    return _made_with(spec), list(draw_blocks(spec, shard))


def _made_with(spec: DatasetSpec) -> dict[str, str]:
    """What decides a shard's bytes beside the spec: software, kind of processor, a scene's files."""
    kind = f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
    found = software_versions() | {"processor": kind}
    return found if spec.site is None else found | {"scene": scene_digest(spec.site.scene)[:16]}


def _result(ray: Any, reference: Any, spec: DatasetSpec, shard: Shard) -> list[Arrays]:
    """A task's blocks; what it raised for the user to mend is raised here."""
    try:
        theirs, blocks = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AirlamError | OSError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise DataError(
            f"{shard} failed up to {ATTEMPTS} times on the Ray cluster ({first_line(error)}); where memory "
            "ran out, take fewer workers and run it again to go on"
        ) from None
    _require_same(theirs, _made_with(spec))
    return list(blocks)


def _require_same(theirs: dict[str, str], ours: dict[str, str]) -> None:
    """DataError that names what differs."""
    other = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    if other:
        differences = ", ".join(
            f"{name} {theirs.get(name) or 'none'} instead of {ours.get(name) or 'none'}" for name in other
        )
        raise DataError(
            f"the Ray cluster would draw other bytes: {differences}; take machines with the same software "
            "and the same kind of processor"
        )


def _room(spec: DatasetSpec, address: str, budget: int) -> int:
    """Shards under way that fit the budget of this machine."""
    shard_bytes = spec.shard_drops * drop_bytes(spec)
    if address != LOCAL:
        return max(1, (budget - caller_bytes(spec)) // shard_bytes)
    each_bytes = _task_bytes(spec) + shard_bytes  # Ray's store holds the shard, too
    return max(1, (budget - caller_bytes(spec) - RAY_BYTES) // each_bytes)


def _task_bytes(spec: DatasetSpec) -> int:
    """Memory of a task, which holds the shard that it has drawn."""
    return drawing_bytes(spec) + spec.shard_drops * drop_bytes(spec)


def _require_memory(ray: Any, spec: DatasetSpec) -> None:
    """DataError where a task would wait for ever."""
    most = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if most < _task_bytes(spec):
        raise DataError(
            f"a shard of {spec.name} needs {_task_bytes(spec) / 2**20:.0f} MiB, and the Ray cluster's "
            f"largest machine lends {most / 2**20:.0f} MiB; take fewer shard_drops, or a machine with more"
        )


def _local_options(spec: DatasetSpec, num_cpus: int) -> dict[str, Any]:
    """What a Ray that is started on this machine needs for so many tasks at a time."""
    shards_bytes = num_cpus * spec.shard_drops * drop_bytes(spec)
    return {
        "num_cpus": num_cpus,
        "_memory": num_cpus * _task_bytes(spec),  # the budget has bounded the tasks
        "object_store_memory": max(LEAST_STORE_BYTES, 3 * shards_bytes // 2),
    }
