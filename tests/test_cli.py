"""The command line: what it prints, and how it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airlam import cli
from airlam.console import Progress
from airlam.datasets.catalog import packaged_spec
from airlam.specs import DatasetSpec, parse_spec, spec_to_toml


def airlam(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the command in this process and returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["airlam", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec of a few drops."""
    text = spec_to_toml(packaged_spec("quickstart"))
    path = tmp_path / "few.toml"
    path.write_text(text.replace("train = 64", "train = 4").replace("validation = 16", "validation = 2"))
    return path


def test_specs_are_listed_and_printed(monkeypatch: Any, capsys: Any) -> None:
    assert airlam(monkeypatch, "specs") == 0
    listed = capsys.readouterr().out
    assert "llm4cp_uma_omni" in listed and "csi4cast_c_300ns_30mps" in listed
    assert airlam(monkeypatch, "specs", "quickstart") == 0
    assert parse_spec(DatasetSpec, capsys.readouterr().out) == packaged_spec("quickstart")


def test_a_dataset_is_made_described_checked_and_exported(
    monkeypatch: Any, capsys: Any, tmp_path: Path, spec: Path
) -> None:
    data = tmp_path / "d.h5"
    assert airlam(monkeypatch, "generate", spec, "-o", data) == 0
    assert airlam(monkeypatch, "dataset", "info", data) == 0
    assert "quickstart" in capsys.readouterr().out
    assert airlam(monkeypatch, "dataset", "verify", data) == 0
    assert json.loads(capsys.readouterr().out)
    assert airlam(monkeypatch, "dataset", "export", data, "-o", tmp_path / "d.npz") == 0
    with np.load(tmp_path / "d.npz", allow_pickle=False) as arrays:
        assert any(name.endswith("h_freq") for name in arrays)
    before = data.read_bytes()
    assert airlam(monkeypatch, "generate", spec, "-o", data) == 2
    assert "exists" in capsys.readouterr().err and data.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("carrier_frequency_hz", "carier_frequency_hz"), "did you mean 'carrier_frequency_hz'"),
        (("max_speed_m_per_s = 15.0", "max_speed_m_per_s = -15.0"), "expected 0 <= min <= max"),
        (('model = "uma"', 'model = "umx"'), "umx"),
    ],
)
def test_a_bad_spec_is_one_line_and_status_2(
    monkeypatch: Any, capsys: Any, tmp_path: Path, spec: Path, change: tuple[str, str], words: str
) -> None:
    spec.write_text(spec.read_text().replace(*change))
    assert airlam(monkeypatch, "generate", spec, "-o", tmp_path / "d.h5") == 2
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1 and said.startswith("airlam: ")
    assert list(tmp_path.iterdir()) == [spec]


@pytest.mark.parametrize(
    "arguments",
    [
        ("dataset", "info", "absent.h5"),
        ("dataset", "verify", "absent.h5"),
        ("dataset", "export", "absent.h5", "-o", "x.npz"),
        ("dataset", "import", "absent.mat", "-o", "x.h5"),
        ("finetune", "absent.toml"),
        ("evaluate", "absent"),
        ("generate", "no_such_spec", "-o", "x.h5"),
        ("specs", "no_such_spec"),
        ("bench", "no_such_bench"),
        ("bench", "prediction", "--data", "absent.npz"),
    ],
)
def test_what_is_not_there_is_one_line_and_status_2(
    monkeypatch: Any, capsys: Any, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert airlam(monkeypatch, *arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_foreign_and_truncated_files_are_refused(
    monkeypatch: Any, capsys: Any, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "d.h5").write_bytes(content)
    assert airlam(monkeypatch, "dataset", "info", tmp_path / "d.h5") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_ctrl_c_says_how_to_go_on(monkeypatch: Any, capsys: Any) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert airlam(monkeypatch) == cli.INTERRUPTED
    assert "go on" in capsys.readouterr().err


def test_progress_off_a_terminal_is_plain_lines(capsys: Any) -> None:
    with Progress() as progress:
        for done in range(1, 101):
            progress("drawing", done, 100, "x")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("drawing: 1/100") and lines[-1].startswith("drawing: 100/100 in 0:00")
    assert len(lines) == 2 and "\r" not in "".join(lines)
