"""Writes a dataset shard by shard, by one process or many, so that a killed run goes on where it stopped.

The file is laid out in ``.NAME.unfinished`` beside the target and filled there; it takes the target's name
when all shards are in it, so the target appears whole. The bytes depend on the spec, the versions of the
software and the kind of processor, whose vector instructions round in their own order, and on nothing else:
neither on interruptions nor on the budget, nor on who draws which shard.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, cast

import torch

from airlam.datasets.cluster import draw_with_ray
from airlam.datasets.fields import drop_bytes
from airlam.datasets.layout import refuse_existing, refuse_folder, software_versions, total_drops
from airlam.datasets.machine import memory_bytes, num_cores
from airlam.datasets.scene_files import scene_digest
from airlam.datasets.shards import (
    Arrays,
    Progress,
    Shard,
    Tally,
    caller_bytes,
    draw_blocks,
    drawing_bytes,
    drops_per_block,
    one_thread,
    plan_shards,
    write_shard,
)
from airlam.datasets.store import ChannelDataset
from airlam.datasets.unfinished import UnfinishedFile
from airlam.datasets.workers import draw_with_workers
from airlam.errors import DataError, SpecError
from airlam.files import recover, sync
from airlam.llvm import good_llvm, llvm_major
from airlam.specs import DatasetSpec, spec_to_toml

LEAST_BUDGET_BYTES = 2 * 2**30
WORTH_A_WORKER_BYTES = 4 * 2**30  # of channels: drawing them takes longer than starting a process
DISK_SLACK = 1.02
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

END = object()

logger = logging.getLogger(__name__)


def generate(
    spec: DatasetSpec,
    path: Path,
    *,
    workers: int | None = None,
    ray_address: str | None = None,
    memory_budget_bytes: int | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> None:
    """Draws the spec's drops with Sionna into an HDF5 file; a second call after an interruption goes on.

    workers: processes that draw; None is one a core, as far as there is work that pays for starting them.
    One draws in this process. A shard whose worker is killed is drawn again.
    ray_address: draws with Ray tasks instead, on the cluster there (``HOST:PORT``, ``auto`` for the one that
    runs on this machine) or on one started here (``local``); ``workers`` then bounds the tasks at a time.
    memory_budget_bytes: of all processes on this machine together, libraries included, which may reduce the
    workers; None is half the machine's memory, and at least 2 GiB.
    on_progress(what, done, total, detail) is called at the start and after each block of drops. Meanwhile
    nothing else in this process may draw from Sionna's generator.

    Same spec, same versions, same kind of processor: same bytes, whatever the other arguments.
    SpecError where one block does not fit the budget or the model cannot do what the spec asks; DataError
    where the target exists, another process is writing it, the disk is too small, or a shard loses its
    worker time and again.
    """
    refuse_folder(path)
    budget = memory_budget_bytes or max(LEAST_BUDGET_BYTES, memory_bytes() // 2)
    _require_memory(spec, budget)
    if workers is not None and workers < 1:
        raise SpecError(f"workers is {workers}; expected 1 or more, or None for one a core")
    folder = path.with_name(f".{path.name}.unfinished")
    was_there = folder.exists()
    with _held(folder, path):
        unfinished = folder / f"{_fingerprint(spec)}.h5"
        if was_there and not overwrite and not unfinished.exists() and _is_made(spec, path):
            return  # killed when the file had its name and before the folder was gone
        refuse_existing(path, overwrite)
        recover(path)
        with _full_disk_told(path):
            _lay_out(spec, path, unfinished)
            _draw(spec, unfinished, workers, ray_address, budget, on_progress or (lambda *_: None))
            os.replace(unfinished, path)
            sync(path.parent)


def _require_memory(spec: DatasetSpec, budget: int) -> None:
    """SpecError with the numbers where a block of drops does not fit the budget."""
    needed = drawing_bytes(spec)
    if needed > budget:
        raise SpecError(
            f"{spec.name} draws {drops_per_block(spec)} drops at once and needs {needed / 2**20:.0f} MiB, "
            f"beyond the budget of {budget / 2**20:.0f} MiB; allow more, or take fewer subcarriers, slots, "
            "antennas or users"
        )


@contextmanager
def _held(folder: Path, path: Path) -> Iterator[None]:
    """The folder of the unfinished file, for this process alone; it stays only where such a file is in it."""
    with _locked(folder, path):
        try:
            yield
        finally:
            if not any(folder.glob("*.h5")):
                shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path, path: Path) -> IO[str]:
    """The folder's lock, held until it is closed; DataError where another process has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / "lock").open("w")
        except FileNotFoundError:  # who held it has just removed the folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / "lock")):
                return lock
        except BlockingIOError:
            lock.close()
            raise DataError(f"another process is writing {path}; wait for it or stop it") from None
        except FileNotFoundError:
            pass
        lock.close()


def _is_made(spec: DatasetSpec, path: Path) -> bool:
    """Whether the target is there, drawn from this spec by this software."""
    if not path.is_file():
        return False
    try:
        dataset = ChannelDataset.open(path)
    except DataError:  # some other file
        return False
    made_by = {name: dataset.attributes.get(f"version_{name}") for name in software_versions()}
    return dataset.spec == spec and made_by == software_versions()


def _fingerprint(spec: DatasetSpec) -> str:
    """Names what decides a shard's bytes: the spec, the software, and a scene's own files."""
    text = spec_to_toml(spec) + json.dumps(software_versions(), sort_keys=True)
    if spec.site is not None:
        text += f"{scene_digest(spec.site.scene)} LLVM {llvm_major(os.path.realpath(good_llvm() or ''))}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    """DataError where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise DataError(f"the disk of {path} is full; free some space and run it again to go on") from None


def _lay_out(spec: DatasetSpec, path: Path, unfinished: Path) -> None:
    """An empty file with room for everything, unless it waits there; those of other specs go."""
    for file in unfinished.parent.glob("*.h5"):
        if file != unfinished:
            file.unlink()
    recover(unfinished)
    if not unfinished.exists():
        _require_disk(spec, path)
        UnfinishedFile.create(unfinished, spec)


def _require_disk(spec: DatasetSpec, path: Path) -> None:
    """DataError where the file does not fit the disk."""
    needed = int(DISK_SLACK * drop_bytes(spec) * total_drops(spec))
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DataError(
            f"{path} needs {needed} bytes of disk, but {free} are free; free some space or take fewer drops"
        )


def _draw(
    spec: DatasetSpec,
    unfinished: Path,
    workers: int | None,
    ray_address: str | None,
    budget: int,
    on_progress: Progress,
) -> None:
    """Draws each shard that the file lacks: in this process, in others, or with Ray."""
    shards = plan_shards(spec)
    with UnfinishedFile.open(unfinished, spec) as file, _left_in_order(file, shards):
        tally = Tally(file, shards, on_progress)
        if ray_address is not None:
            draw_with_ray(spec, tally, ray_address, workers, budget)
        elif (count := _num_workers(spec, tally.missing, workers, budget)) > 1:
            draw_with_workers(spec, tally, count)
        else:
            _draw_here(spec, tally)
        file.sync()  # the last checksums


@contextmanager
def _left_in_order(file: UnfinishedFile, shards: list[Shard]) -> Iterator[None]:
    """After Ctrl-C says how much is done; a file without a finished shard is not kept."""
    try:
        yield
    except KeyboardInterrupt:
        done = _num_finished(file, shards)
        logger.warning("stopped with %d of %d shards done; run it again to go on", done, len(shards))
        raise
    finally:
        if not _num_finished(file, shards):
            file.path.unlink()


def _num_finished(file: UnfinishedFile, shards: list[Shard]) -> int:
    return sum(file.is_finished(shard.split, shard.index) for shard in shards)


def _draw_here(spec: DatasetSpec, tally: Tally) -> None:
    """Shard by shard, in this process: a thread draws while what it drew before is written.

    A ray tracer stays in the thread that loaded it.
    """
    missing = tally.missing
    drawn = (arrays for shard in missing for arrays in itertools.chain(draw_blocks(spec, shard), [None]))
    with one_thread(), closing(drawn if spec.channel.is_ray_traced else _ahead(drawn)) as blocks:
        for shard in missing:
            of_shard = iter(blocks.__next__, None)
            sha256 = write_shard(spec, shard, of_shard, tally.file, partial(tally.add, shard))
            tally.finish(shard, sha256)


def _ahead(items: Iterator[Arrays | None]) -> Generator[Arrays | None]:
    """The items, each made by a thread while the one before is in use; its errors come out here."""
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
        coming = thread.submit(next, items, END)
        while (item := coming.result()) is not END:
            coming = thread.submit(next, items, END)
            yield cast(Arrays | None, item)


def _num_workers(spec: DatasetSpec, missing: list[Shard], wanted: int | None, budget: int) -> int:
    """As many as are wanted, have a shard to draw and fit the budget."""
    most = min(wanted or _num_worthwhile(spec, missing), len(missing))
    room = max(1, (budget - caller_bytes(spec)) // drawing_bytes(spec))
    if room < most:
        logger.warning(
            "%d workers instead of %d: each needs %d MiB, and the memory budget is %d MiB",
            *(room, most, drawing_bytes(spec) >> 20, budget >> 20),
        )
    return min(most, room)


def _num_worthwhile(spec: DatasetSpec, missing: list[Shard]) -> int:
    """One a core, but none that would end before it had started; tracing rays is always worth a start."""
    if spec.channel.is_ray_traced:
        return num_cores()
    work_bytes = drop_bytes(spec) * sum(shard.num_drops for shard in missing)
    return min(num_cores(), max(1, work_bytes // WORTH_A_WORKER_BYTES))
