"""Generation: the same bytes whatever happens on the way, within budget, and never half a file."""

import dataclasses
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from airlam.datasets import generate as module
from airlam.datasets.card import verify
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.generate import generate
from airlam.datasets.shards import (
    Shard,
    drops_per_block,
    plan_shards,
    working_bytes,
)
from airlam.datasets.stochastic import synthesis
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError, SpecError
from airlam.radio.channel import ChannelBatch
from airlam.specs import DatasetSpec, SplitSizes, spec_to_toml

SPEC = dataclasses.replace(
    packaged_spec("quickstart"), drops=SplitSizes(train=10, validation=3, test=4), shard_drops=4
)

KILLED = """
import dataclasses, os, pathlib, shutil, signal, sys, time
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.generate import generate
from airlam.specs import SplitSizes
spec = dataclasses.replace(
    packaged_spec("quickstart"), drops=SplitSizes(train=10, validation=3, test=4), shard_drops=4
)
"""
WAITING = (
    KILLED
    + """
def on_progress(what, done, total, detail):
    print(done, flush=True)
    if done > 4:
        time.sleep(60)
generate(spec, pathlib.Path(sys.argv[1]), on_progress=on_progress)
"""
)
AT_THE_LAST_STEP = (
    KILLED
    + """
remove = shutil.rmtree
def dying(path, *rest, **options):
    if str(path).endswith('.unfinished'): os.kill(os.getpid(), signal.SIGKILL)
    remove(path, *rest, **options)
shutil.rmtree = dying
generate(spec, pathlib.Path(sys.argv[1]))
"""
)
WHILE_LAYING_OUT = (
    KILLED
    + """
import airlam.files
airlam.files.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
generate(spec, pathlib.Path(sys.argv[1]))
"""
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole") / "set.h5"
    generate(SPEC, path)
    return path


def test_only_the_file_remains(whole: Path) -> None:
    assert [file.name for file in whole.parent.iterdir()] == ["set.h5"]


def test_killed_and_resumed_equals_never_killed(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "other name.h5"
    process = subprocess.Popen([sys.executable, "-c", WAITING, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) > 4:  # within the second shard
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    seen: list[int] = []
    generate(SPEC, path, on_progress=lambda what, done, total, detail: seen.append(done))
    assert seen == [4, 8, 10, 13, 17]  # the finished shard was not drawn again
    assert path.read_bytes() == whole.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_killed_before_the_folder_was_gone_goes_on(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    run = subprocess.run([sys.executable, "-c", AT_THE_LAST_STEP, str(path)])
    assert run.returncode == -signal.SIGKILL and path.exists() and len(list(tmp_path.iterdir())) == 2
    shutil.copytree(tmp_path, copy := tmp_path / "copy")
    generate(SPEC, path)  # the same command
    assert path.read_bytes() == whole.read_bytes() and set(tmp_path.iterdir()) == {path, copy}
    with pytest.raises(DataError, match="exists"):  # another spec would overwrite it
        generate(dataclasses.replace(SPEC, seed=2), copy / "set.h5")
    assert (copy / "set.h5").read_bytes() == whole.read_bytes()
    (copy / "set.h5").write_text("mine")  # nor is another file taken for what was generated
    with pytest.raises(DataError, match="exists"):
        generate(SPEC, copy / "set.h5")
    assert (copy / "set.h5").read_text() == "mine"


def test_killed_while_laying_out_leaves_no_orphan(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    run = subprocess.run([sys.executable, "-c", WHILE_LAYING_OUT, str(path)])
    assert run.returncode == -signal.SIGKILL
    assert [file.suffix for file in tmp_path.glob(".set.h5.unfinished/.*")] == [".part"]
    generate(SPEC, path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == whole.read_bytes()


def test_progress_starts_where_work_starts_and_ends_once(tmp_path: Path) -> None:
    seen: list[int] = []
    generate(SPEC, tmp_path / "set.h5", on_progress=lambda what, done, total, detail: seen.append(done))
    assert seen == [0, 4, 8, 10, 13, 17]


def test_an_error_keeps_the_shards_before_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard is noted as finished before anything of the next one can go wrong."""
    path, real = tmp_path / "set.h5", module.draw_blocks

    def draw_blocks(spec: DatasetSpec, shard: Shard) -> Iterator[Any]:
        if shard.index == 1:
            raise DataError("the second shard fails")
        yield from real(spec, shard)

    monkeypatch.setattr(module, "draw_blocks", draw_blocks)
    with pytest.raises(DataError, match="the second shard fails"):
        generate(SPEC, path, workers=1)
    monkeypatch.undo()
    seen: list[int] = []
    generate(SPEC, path, on_progress=lambda what, done, total, detail: seen.append(done))
    assert seen[0] == 4 and path.read_bytes() == whole.read_bytes()


def test_the_lock_is_never_taken_on_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever held it removes it between our opening the lock and locking it: we start over."""
    folder, calls = tmp_path / "folder", []
    real = module.fcntl.flock

    def flock(lock: Any, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            shutil.rmtree(folder)
        real(lock, how)

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with module._held(folder, tmp_path / "set.h5"):
        assert len(calls) == 2 and (folder / "lock").exists()
    assert not folder.exists()


def test_ctrl_c_keeps_what_is_finished_and_says_so(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "set.h5"

    def interrupt(what: str, done: int, total: int, detail: str) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(SPEC, path, on_progress=interrupt)
    assert "1 of 5 shards done; run it again to go on" in caplog.text and not path.exists()
    generate(SPEC, path)
    assert path.read_bytes() == whole.read_bytes()


def test_the_budget_leaves_the_bytes_alone(whole: Path, tmp_path: Path) -> None:
    generate(SPEC, tmp_path / "set.h5", memory_budget_bytes=2**40)
    assert (tmp_path / "set.h5").read_bytes() == whole.read_bytes()


def test_thread_count_leaves_the_bytes_alone(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each drop is drawn on one thread, however many torch may use; afterwards it may as before."""
    real, used = synthesis.draw_batches, []

    def draw_batches(spec: DatasetSpec, seed: int, num_drops: int) -> Iterator[ChannelBatch]:
        for batch in real(spec, seed, num_drops):
            used.append(torch.get_num_threads())
            yield batch

    monkeypatch.setattr(synthesis, "draw_batches", draw_batches)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        generate(SPEC, tmp_path / "set.h5")
        assert torch.get_num_threads() == 3 and set(used) == {1}
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "set.h5").read_bytes() == whole.read_bytes()


def test_shards_and_splits_are_independent(whole: Path, tmp_path: Path) -> None:
    """Another number of training drops leaves validation and test as they are, and whole shards too."""
    wider = dataclasses.replace(SPEC, drops=SplitSizes(train=13, validation=3, test=4))
    generate(wider, tmp_path / "wider.h5")
    with ChannelDataset.open(whole) as narrow, ChannelDataset.open(tmp_path / "wider.h5") as wide:
        for split, count in (("train", 8), ("validation", 3), ("test", 4)):
            ours, theirs = (d.batch(split, np.arange(count)).h_freq for d in (narrow, wide))
            assert (ours == theirs).all(), split


def test_no_two_shards_share_a_seed_or_a_drop(whole: Path) -> None:
    shards = plan_shards(dataclasses.replace(SPEC, drops=SplitSizes(train=4000, validation=4000, test=4000)))
    assert len({shard.seed for shard in shards}) == len(shards) == 3000
    with ChannelDataset.open(whole) as dataset:
        drops = [
            dataset.batch(split, slice(None)).h_freq[i].numpy().tobytes()
            for split in ("train", "validation", "test")
            for i in range(dataset.num_drops(split))
        ]
    assert len(set(drops)) == 17


def test_the_file_verifies(whole: Path) -> None:
    assert verify(whole).num_drops == {"train": 10, "validation": 3, "test": 4}


def test_shards_of_another_spec_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"

    def interrupt(what: str, done: int, total: int, detail: str) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(SPEC, path, on_progress=interrupt)
    reseeded = dataclasses.replace(SPEC, seed=2)
    generate(reseeded, path)
    generate(reseeded, tmp_path / "fresh.h5")
    assert path.read_bytes() == (tmp_path / "fresh.h5").read_bytes()


def test_an_existing_target_needs_leave(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.h5"
    path.write_text("mine")
    with pytest.raises(DataError, match="exists"):
        generate(SPEC, path)
    assert path.read_text() == "mine"
    generate(SPEC, path, overwrite=True)
    assert path.read_bytes() == whole.read_bytes()


def test_a_budget_too_small_for_one_block(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="MiB, beyond the budget of 100 MiB"):
        generate(SPEC, tmp_path / "set.h5", memory_budget_bytes=100 * 2**20)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 5, 5))
    with pytest.raises(DataError, match=r"needs .* but 5 are free"):
        generate(SPEC, tmp_path / "set.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_in_truth(tmp_path: Path) -> None:
    """HDF5 itself would crash as the process ends; the room is taken before anything is drawn."""
    (spec := tmp_path / "spec.toml").write_text(spec_to_toml(SPEC))
    path, room = tmp_path / "set.h5", 600_000  # not for the whole
    done = subprocess.run(
        [sys.executable, "-P", "-m", "airlam", "generate", str(spec), "-o", str(path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        2,
        f"airlam: the disk of {path} is full; free some space and run it again to go on\n",
    )
    assert list(tmp_path.iterdir()) == [spec]


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "set.h5").mkdir()
    for path in (tmp_path / "set.h5", Path(".")):
        with pytest.raises(DataError, match="is a folder; name a file"):
            generate(SPEC, path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["set.h5"]


@pytest.mark.parametrize("num_shards", [0, 2])
def test_a_disk_that_fills_up(
    num_shards: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the file system cannot reserve room; the shards that fitted are kept for the next attempt."""
    path = tmp_path / "set.h5"
    real, drawn = module.write_shard, []

    def full(spec: DatasetSpec, shard: Shard, *rest: Any) -> str:
        drawn.append(shard)
        if len(drawn) > num_shards:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(spec, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_shard", full)
        with pytest.raises(DataError, match="full; free some space"):
            generate(SPEC, path)
    assert not path.exists() and len(list(tmp_path.iterdir())) == min(num_shards, 1)
    seen: list[int] = []
    generate(SPEC, path, on_progress=lambda what, done, total, detail: seen.append(done))
    assert seen[0] == 4 * num_shards and path.read_bytes() == whole.read_bytes()


def test_two_at_once_on_one_target(tmp_path: Path) -> None:
    path = tmp_path / "set.h5"

    def second(what: str, done: int, total: int, detail: str) -> None:
        with pytest.raises(DataError, match="another process is writing"):
            generate(SPEC, path)

    generate(SPEC, path, on_progress=second)


def test_impossible_physics_leaves_no_file(tmp_path: Path) -> None:
    tdl = dataclasses.replace(packaged_spec("tdl_a"), base_station=SPEC.base_station)
    with pytest.raises(SpecError, match="take a cdl"):
        generate(tdl, tmp_path / "set.h5")
    assert list(tmp_path.iterdir()) == []


def test_blocks_follow_from_the_spec(tmp_path: Path) -> None:
    big: DatasetSpec = packaged_spec("llm4cp_uma_omni")
    assert drops_per_block(big) == big.shard_drops
    assert drops_per_block(dataclasses.replace(SPEC, shard_drops=2)) == 2
    assert 1 <= drops_per_block(dataclasses.replace(big, num_users=64)) < big.shard_drops


def test_memory_stays_below_the_estimate() -> None:
    """Peak memory of drawing blocks in a fresh process, over what the imports took."""
    code = (
        "import resource\n"
        "from airlam.datasets.catalog import packaged_spec\n"
        "from airlam.datasets.shards import draw_blocks, plan_shards\n"
        "spec = packaged_spec('llm4cp_uma_omni')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for shard in plan_shards(spec)[:3]:\n"
        "    for arrays in draw_blocks(spec, shard): pass\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    spec = packaged_spec("llm4cp_uma_omni")
    tables = 100 * 2**20  # torch and Sionna on first use, part of PROCESS_BYTES
    assert int(done.stdout) <= tables + working_bytes(spec)


def test_nothing_in_the_file_depends_on_the_clock(whole: Path) -> None:
    with h5py.File(whole) as file:
        assert h5py.h5o.get_info(file["train/h_freq"].id).mtime == 0
