"""Checkpoints appear whole, the newest is read, another run's and damaged ones are refused."""

import os
from pathlib import Path

import pytest
import torch

from airlam.errors import DataError
from airlam.training.checkpoint import Checkpoint, check_settings, newest_checkpoint, save_checkpoint


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        tensors={"weights/a": torch.full((3,), float(step)), "sampler/place": torch.tensor(step)},
        progress={"step": step, "best": None},
        settings={"learning_rate": 1e-3, "shapes": {"a" * 80: [1, 2], "b": [3]}},
    )


def test_the_newest_is_read_and_two_are_kept(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (2, 9, 10):
        save_checkpoint(tmp_path, checkpoint(step))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.step == 10 and newest.progress == {"step": 10, "best": None}
    assert newest.part("weights")["a"].tolist() == [10.0] * 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000009", "step_00000010"]


def test_a_killed_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    half = tmp_path / f".step_00000002.{os.getpid()}.part"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.step == 1
    assert not half.exists()


def test_one_that_a_killed_writer_had_moved_aside_comes_back(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step))
    aside = f".{{}}.{os.getpid()}.old"
    os.replace(tmp_path / "step_00000002", tmp_path / aside.format("step_00000002"))
    (tmp_path / aside.format("step_00000001")).mkdir()  # its name is taken: this one had been replaced
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.step == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]"])
def test_a_damaged_one_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    file = save_checkpoint(tmp_path, checkpoint(1)) / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(DataError, match=r"step_00000001 is no whole checkpoint \(.*\); remove it"):
        newest_checkpoint(tmp_path)


def test_another_run_is_refused_and_told_apart(tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-3, "shapes": {"a" * 80: (1, 2), "b": (3,)}}
    check_settings(checkpoint(1), settings, tmp_path)
    with pytest.raises(DataError, match=r"learning_rate was 0\.001, now it is 0\.01"):
        check_settings(checkpoint(1), settings | {"learning_rate": 1e-2}, tmp_path)
    with pytest.raises(DataError, match="seed was None, now it is 3"):
        check_settings(checkpoint(1), settings | {"seed": 3}, tmp_path)
    shapes = {"a" * 80: (1, 2), "b": (4,)}
    with pytest.raises(DataError, match=r"shapes: b was \[3\], now it is \[4\]"):
        check_settings(checkpoint(1), settings | {"shapes": shapes}, tmp_path)
