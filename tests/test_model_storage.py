"""Weights are checked before they are assigned."""

from pathlib import Path

import pytest
import torch

from airlam.errors import DataError
from airlam.model.storage import assign_tensors, read_tensors, trainable_tensors, write_tensors


def test_written_tensors_are_read_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {"a": shared[:3], "b": shared[::2], "c": torch.tensor(7)}  # views, and a scalar
    write_tensors(tmp_path / "w", tensors)
    back = read_tensors(tmp_path / "w")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip", b"\xff" * 8, b"\x10\x00\x00\x00\x00\x00\x00\x00{"]
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(DataError, match="expected a whole safetensors file"):
        read_tensors(tmp_path / "w")


def test_truncated_and_missing_files_are_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w", {"a": torch.zeros(100)})
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-4])
    for name in ("w", "nothing"):
        with pytest.raises(DataError, match="cannot read weights"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": torch.ones(2)}, "lacks 'b'"),
        ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, "has 'c'"),
        ({"a": torch.ones(2), "b": torch.ones(1)}, r"b is \(1,\)"),
        ({"a": torch.ones(2), "b": torch.ones(3, dtype=torch.float64)}, "float64"),
    ],
)
def test_what_does_not_fit_assigns_nothing(given: dict[str, torch.Tensor], message: str) -> None:
    own = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(DataError, match=message):
        assign_tensors(own, given, "here")
    assert own["a"].sum() == 0


def test_a_disk_that_refuses_is_an_error_of_the_system(tmp_path: Path) -> None:
    """As a full disk is, which the command line reports in one line."""
    with pytest.raises(OSError, match=r"cannot write weights to .*nowhere"):
        write_tensors(tmp_path / "nowhere" / "w", {"a": torch.zeros(3)})


def test_trainable_tensors_are_gradients_and_buffers() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    net[0].bias.requires_grad_(False)
    assert set(trainable_tensors(net)) == {
        "0.weight",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
