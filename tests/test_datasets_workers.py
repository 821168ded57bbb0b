"""Many processes, the same bytes: whoever draws, whoever is killed, and nobody stays behind."""

import dataclasses
import errno
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from airlam import cli
from airlam.datasets import cluster, machine, workers
from airlam.datasets import generate as module
from airlam.datasets.card import verify
from airlam.datasets.catalog import packaged_spec
from airlam.datasets.fields import BATCH_BYTES, dataset_fields, drop_bytes
from airlam.datasets.generate import generate
from airlam.datasets.shards import drawing_bytes, plan_shards
from airlam.errors import DataError, SpecError
from airlam.radio.channel import ChannelBatch
from airlam.specs import ChannelSpec, DatasetSpec, SiteSpec, SplitSizes, spec_to_toml

PACKAGED = packaged_spec("uma_multiuser")
SPEC = dataclasses.replace(
    PACKAGED,
    grid=dataclasses.replace(PACKAGED.grid, num_slots=3 * PACKAGED.grid.num_slots),
    drops=SplitSizes(train=45, validation=15, test=7),
    shard_drops=15,
)
SETTLE_S = 20.0
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def run_generate(spec: Path, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: one that imports Ray here would settle how every later test lets others in."""
    command = [sys.executable, "-P", "-m", "airlam", "generate", str(spec), "-o", str(path), *options]
    return subprocess.run(command, capture_output=True, text=True)


ORPHANING = """
import pathlib, sys, time
from airlam.datasets.generate import generate
from airlam.specs import DatasetSpec, read_spec
def on_progress(what, done, total, detail):
    if done > 30: # a third shard is under way, so one of two is finished
        print(done, flush=True)
        time.sleep(60)
generate(read_spec(DatasetSpec, pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), workers=2,
         on_progress=on_progress)
"""


def running_children(parent: int) -> list[int]:
    """Its processes that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(ppid) == parent and state != "Z":
            found.append(int(stat.parent.name))
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that one process writes."""
    path = tmp_path_factory.mktemp("whole") / "set.h5"
    generate(SPEC, path, workers=1)
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts another program in a worker's place."""

    def put(code: str) -> None:
        monkeypatch.setattr(workers, "PROGRAM", (sys.executable, "-c", "import sys, os, json\n" + code))

    return put


def test_shards_have_several_blocks() -> None:
    """As the tests below need, where a worker is to be killed in the middle of one."""
    assert BATCH_BYTES // drop_bytes(SPEC) <= 5


def test_a_shard_of_a_killed_worker_is_drawn_again(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    def on_progress(what: str, done: int, total: int, detail: str) -> None:
        if done and not any(seen):  # the first block of a shard of three
            for child in running_children(os.getpid()):
                os.kill(child, signal.SIGKILL)
        seen.append(done)

    generate(SPEC, tmp_path / "set.h5", workers=2, on_progress=on_progress)
    assert caplog.text.count("lost its process by SIGKILL and is drawn again") == 2
    assert 0 in seen[2:] and seen[-1] == 67  # what was drawn of the shard no longer counts
    assert len(seen) > len(plan_shards(SPEC)) + 2  # it is told after each block
    assert (tmp_path / "set.h5").read_bytes() == whole.read_bytes()
    assert list(tmp_path.iterdir()) == [tmp_path / "set.h5"] and not running_children(os.getpid())


def test_no_worker_outlives_a_killed_caller_and_four_others_go_on(whole: Path, tmp_path: Path) -> None:
    (spec := tmp_path / "spec.toml").write_text(spec_to_toml(SPEC))
    path = tmp_path / "set.h5"
    caller = subprocess.Popen(
        [sys.executable, "-c", ORPHANING, str(spec), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout is not None and int(caller.stdout.readline()) > 30
    orphans = running_children(caller.pid)
    assert len(orphans) == 2
    caller.kill()
    caller.wait()
    caller.stdout.close()
    until = time.monotonic() + SETTLE_S
    while any(map(is_running, orphans)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(is_running, orphans)) and not path.exists()
    seen: list[int] = []
    generate(SPEC, path, workers=4, on_progress=lambda what, done, *_: seen.append(done))
    assert seen[0] in (15, 30) and seen == sorted(seen) and seen[-1] == 67
    assert path.read_bytes() == whole.read_bytes()


def test_an_interrupted_caller_takes_its_workers_along(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.h5"

    def interrupt(what: str, done: int, total: int, detail: str) -> None:
        if done > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(SPEC, path, workers=2, on_progress=interrupt)
    assert not running_children(os.getpid()) and not path.exists()
    generate(SPEC, path, workers=1)
    assert path.read_bytes() == whole.read_bytes()


@needs_ray
def test_ray_writes_what_one_process_writes(whole: Path, tmp_path: Path) -> None:
    (spec := tmp_path / "spec.toml").write_text(spec_to_toml(SPEC))
    path = tmp_path / "set.h5"
    done = run_generate(spec, path, "--ray", "local", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == whole.read_bytes()


def test_ray_stops_where_no_machine_has_a_task_s_memory() -> None:
    """Ray itself would wait for ever."""
    machines = [{"Alive": True, "Resources": {"memory": 2.0**20}}, {"Alive": False, "Resources": {}}]
    ray = types.SimpleNamespace(nodes=lambda: machines)
    with pytest.raises(DataError, match="largest machine lends 1 MiB; take fewer shard_drops"):
        cluster._require_memory(ray, SPEC)
    machines.append({"Alive": True, "Resources": {"memory": float(cluster._task_bytes(SPEC))}})
    cluster._require_memory(ray, SPEC)
    assert cluster._task_bytes(SPEC) == drawing_bytes(SPEC) + 15 * drop_bytes(SPEC)


def test_a_cluster_that_would_draw_other_bytes_is_told_what_differs() -> None:
    ours = cluster._made_with(SPEC)
    cluster._require_same(dict(ours), ours)
    assert {"torch", "sionna", "processor"} <= ours.keys() and "scene" in cluster._made_with(traced_spec())
    with pytest.raises(DataError, match=r"other bytes: torch 1.0 instead of .*, processor arm64 instead of"):
        cluster._require_same({**ours, "torch": "1.0", "processor": "arm64"}, ours)


def test_a_scene_of_one_s_own_stays_on_this_machine() -> None:
    traced = traced_spec()
    own = dataclasses.replace(traced, site=SiteSpec(scene="my.xml", base_station_position_m=(0.0, 0.0, 9.0)))
    with pytest.raises(SpecError, match=r"scene 'my.xml' is a file, which other machines lack"):
        cluster.draw_with_ray(own, None, "10.0.0.1:6379", None, 2**40)  # type: ignore[arg-type]


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere"])
def test_a_ray_cluster_out_of_reach_is_one_line(address: str, tmp_path: Path) -> None:
    (spec := tmp_path / "spec.toml").write_text(spec_to_toml(SPEC))
    done = run_generate(spec, tmp_path / "set.h5", "--ray", address)
    assert done.returncode == 2
    assert re.search(
        f"airlam: no Ray cluster at {address!r} .* ray start --head", done.stderr.splitlines()[-1]
    )
    assert list(tmp_path.iterdir()) == [spec]


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install 'airlam\[ray\]'"):
        generate(SPEC, tmp_path / "set.h5", ray_address="local")
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_worker_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tdl = dataclasses.replace(packaged_spec("tdl_a"), base_station=SPEC.base_station, shard_drops=2)
    (spec := tmp_path / "spec.toml").write_text(spec_to_toml(tdl))
    command = ["airlam", "generate", spec, "-o", tmp_path / "set.h5", "--workers", 2]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    *progress, last = capfd.readouterr().err.splitlines()
    assert leaving.value.code == 2 and "take a cdl model for arrays" in last
    assert all(line.startswith("drops: ") for line in progress)
    assert list(tmp_path.iterdir()) == [spec]


def test_a_worker_that_is_always_lost_ends_the_run(tmp_path: Path, command: Any) -> None:
    command("os.kill(os.getpid(), 9)")
    with pytest.raises(
        DataError, match=r"train shard \d lost its process 3 times, at last by SIGKILL; .* fewer workers"
    ):
        generate(SPEC, tmp_path / "set.h5", workers=2)
    assert list(tmp_path.iterdir()) == [] and not running_children(os.getpid())


def test_a_worker_that_fails_by_itself_is_not_tried_again(tmp_path: Path, command: Any) -> None:
    command("sys.stdin.readline(); sys.exit(1)")
    with pytest.raises(RuntimeError, match=r"drew train shard \d ended with status 1; see above"):
        generate(SPEC, tmp_path / "set.h5", workers=2)
    assert not running_children(os.getpid())


def test_what_a_worker_raises_is_raised_with_its_kind(tmp_path: Path, command: Any) -> None:
    full = {"error": "OSError", "errno": errno.ENOSPC, "text": "No space left on device", "file": None}
    command(f"print({json.dumps(full)!r})")
    with pytest.raises(DataError, match=r"set.h5 is full; free some space"):
        generate(SPEC, tmp_path / "set.h5", workers=2)
    command("""print('{"error": "SpecError", "text": "no such physics"}'); sys.stdin.read()""")
    with pytest.raises(SpecError, match=r"^no such physics$"):
        generate(SPEC, tmp_path / "set.h5", workers=2)
    assert list(tmp_path.iterdir()) == []


def test_the_budget_bounds_the_workers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shards = plan_shards(SPEC)
    for_two = module.caller_bytes(SPEC) + 2 * drawing_bytes(SPEC)
    assert module._num_workers(SPEC, shards, 2, for_two) == 2 and not caplog.text
    assert module._num_workers(SPEC, shards, 4, for_two) == 2
    assert "2 workers instead of 4" in caplog.text
    assert module._num_workers(SPEC, shards, 4, drawing_bytes(SPEC)) == 1  # this process itself
    assert module._num_workers(SPEC, shards[:3], 4, 2**40) == 3  # no more than have a shard
    monkeypatch.setattr(module, "num_cores", lambda: 8)
    assert module._num_workers(SPEC, shards, None, 2**40) == 1  # drawn before a worker would start
    large = dataclasses.replace(SPEC, drops=SplitSizes(train=4000))
    assert module._num_workers(large, plan_shards(large), None, 2**40) > 1


def test_ray_tasks_fit_the_budget() -> None:
    local, far = (cluster._room(SPEC, address, 8 * 2**30) for address in ("local", "10.0.0.1:6379"))
    assert 1 <= local < far  # far tasks take memory elsewhere
    assert local * drawing_bytes(SPEC) < 8 * 2**30
    assert cluster._room(SPEC, "local", 0) == 1


def test_no_workers_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="workers is 0; expected 1 or more"):
        generate(SPEC, tmp_path / "set.h5", workers=0)


def test_a_container_has_less_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    cores, memory = machine.num_cores(), machine.memory_bytes()
    assert cores >= 1 and memory > 2**28
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (machine.num_cores(), machine.memory_bytes()) == (cores, memory)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("268435456\n")
    assert (machine.num_cores(), machine.memory_bytes()) == (1, 2**28)


def traced_spec() -> DatasetSpec:
    base = packaged_spec("quickstart")
    return DatasetSpec(
        name="traced",
        channel=ChannelSpec(model="ray_traced", carrier_frequency_hz=3.5e9),
        base_station=base.base_station,
        site=SiteSpec(scene="munich", base_station_position_m=(10.0, 20.0, 30.0)),
        mobility=base.mobility,
        grid=base.grid,
        drops=SplitSizes(train=5, validation=0, test=3),
        shard_drops=3,
    )


def test_a_site_is_drawn_by_trajectory_and_its_map_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, drawn = traced_spec(), []

    def draw_trajectory(spec: DatasetSpec, split: str, index: int, seed: int, num_drops: int) -> ChannelBatch:
        drawn.append((split, index, num_drops))
        random = torch.Generator().manual_seed(seed)
        values = {
            name: torch.rand((num_drops, *field.shape), generator=random)
            for name, field in dataset_fields(spec).items()
        }
        own = ("h_freq", "speed_m_per_s", "position_m", "los", "path_loss_db")
        readings = {name: value for name, value in values.items() if name not in own}
        values["h_freq"] = values["h_freq"].to(torch.complex64)
        values["los"] = values["los"] > 0.5
        return ChannelBatch(direction="uplink", readings=readings, **{name: values[name] for name in own})

    heights_m = np.arange(6, dtype=np.float32).reshape(2, 3)
    fake = types.ModuleType("airlam.datasets.sites")
    fake.draw_trajectory = draw_trajectory  # type: ignore[attr-defined]
    fake.height_map = lambda spec: (heights_m, (-60.0, -40.0, 60.0, 40.0))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "airlam.datasets.sites", fake)
    generate(spec, tmp_path / "set.h5", workers=1)
    assert drawn == [("train", 0, 3), ("train", 1, 2), ("test", 0, 3)]
    verify(tmp_path / "set.h5")
    with h5py.File(tmp_path / "set.h5") as file:
        assert (file["site_height_m"][()] == heights_m).all()
        assert file["site_height_m"].attrs["extent_m"].tolist() == [-70.0, -60.0, 50.0, 20.0]
