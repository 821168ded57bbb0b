"""The command line: what it prints, and how it refuses."""

import dataclasses
import json
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from airlam import cli, console
from airlam.console import Progress
from airlam.datasets.catalog import packaged_spec
from airlam.specs import ArraySpec, DatasetSpec, parse_spec, spec_to_toml


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the user's own cache out of the tests."""
    monkeypatch.setenv("AIRLAM_CACHE", str(tmp_path_factory.mktemp("cache")))


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
    said = capsys.readouterr()
    assert "every checksum holds" in said.out and "RMS Doppler" in said.out and "drops: " in said.err
    assert airlam(monkeypatch, "dataset", "verify", data, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_drops"] == {"train": 4, "validation": 2, "test": 32}
    assert airlam(monkeypatch, "dataset", "export", data, "-o", tmp_path / "d.npz") == 0
    with np.load(tmp_path / "d.npz", allow_pickle=False) as arrays:
        assert any(name.endswith("h_freq") for name in arrays)
    before = data.read_bytes()
    assert airlam(monkeypatch, "generate", spec, "-o", data) == 2
    assert "exists" in capsys.readouterr().err and data.read_bytes() == before
    assert airlam(monkeypatch, "dataset", "export", data, "-o", tmp_path / "d.npz") == 2
    assert airlam(monkeypatch, "dataset", "export", data, "-o", tmp_path / "d.npz", "--overwrite") == 0
    assert airlam(monkeypatch, "generate", spec, "-o", tmp_path, "--overwrite") == 2
    assert "is a folder" in capsys.readouterr().err


def test_foreign_channels_are_imported_by_a_given_spec(
    monkeypatch: Any, capsys: Any, tmp_path: Path, spec: Path
) -> None:
    scipy.io.savemat(tmp_path / "D1.mat", {"X_val": np.ones((3, 12, 16, 24), complex)})
    command = ("dataset", "import", tmp_path / "D1.mat", "-o", tmp_path / "d.h5")
    assert airlam(monkeypatch, *command) == 2
    assert "give a dataset spec" in capsys.readouterr().err
    assert airlam(monkeypatch, *command, "--spec", spec) == 0
    assert airlam(monkeypatch, *command, "--spec", "quickstart") == 2
    assert "exists" in capsys.readouterr().err
    assert airlam(monkeypatch, *command, "--spec", "quickstart", "--overwrite") == 0
    other = dataclasses.replace(packaged_spec("quickstart"), base_station=ArraySpec(num_cols=4))
    spec.write_text(spec_to_toml(other))
    assert airlam(monkeypatch, *command, "--spec", spec, "--overwrite") == 2
    assert "the spec asks for" in capsys.readouterr().err


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
        ("bench", "dataset-io", "--data", "absent.npz"),
        ("bench", "dataset-io", "--train"),
        ("no_such_command",),
        ("dataset", "no_such_command"),
        ("generate", "quickstart"),
        ("generate", "quickstart", "-o", "x.h5", "--no-such-option"),
        ("generate", "quickstart", "-o", "x.h5", "--memory-gib", "much"),
        ("generate", "quickstart", "-o", "x.h5", "--memory-gib", "nan"),
        ("generate", "quickstart", "-o", "x.h5", "--memory-gib", "inf"),
        ("generate", "quickstart", "-o", "x.h5", "--memory-gib", "-1"),
        ("generate", "quickstart", "-o", "/proc/absent/x.h5"),
        ("generate", "quickstart", "-o", "/dev/null/x.h5"),
        ("generate", "."),
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


def test_files_that_cannot_be_written_are_one_line(
    monkeypatch: Any, capsys: Any, tmp_path: Path, spec: Path
) -> None:
    data = tmp_path / "d.h5"
    assert airlam(monkeypatch, "generate", spec, "-o", data) == 0
    capsys.readouterr()
    for target in ("/proc/absent/x.npz", "/dev/null/x.mat"):
        assert airlam(monkeypatch, "dataset", "export", data, "-o", target) == 2
        said = capsys.readouterr().err
        assert said.startswith("airlam: [Errno") and "check the path" in said
        assert len(said.strip().splitlines()) == 1


def test_nothing_asked_for_is_answered_with_help(monkeypatch: Any, capsys: Any) -> None:
    assert airlam(monkeypatch) == 2
    said = capsys.readouterr()
    assert "generate" in said.out + said.err and "airlam: " not in said.err
    assert airlam(monkeypatch, "--help") == 0


def test_what_nobody_foresaw_is_let_through(monkeypatch: Any) -> None:
    def broken(**_: Any) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ZeroDivisionError):
        airlam(monkeypatch, "specs")


def test_aliasing_is_warned_of_in_one_line(tmp_path: Path) -> None:
    command = ["generate", "csi4cast_a_30ns_30mps", "-o", "x.h5", "--memory-gib", "0.1"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "airlam", *command], cwd=tmp_path, capture_output=True, text=True
    )
    warning, refusal = done.stderr.splitlines()
    assert warning.startswith("airlam: warning: csi4cast_a_30ns_30mps: Doppler aliases: 240 Hz")
    assert done.returncode == 2 and "beyond the budget" in refusal


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, spec: Path) -> None:
    """A real interrupt, as soon as generation has begun."""
    spec.write_text(spec.read_text().replace("train = 4", "train = 100000"))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "airlam", "generate", str(spec), "-o", str(tmp_path / "d.h5")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("drops: 0/")
    process.send_signal(signal.SIGINT)
    said = process.stderr.read().splitlines()
    process.stderr.close()
    assert process.wait() == cli.INTERRUPTED
    assert said[-1] == "airlam: interrupted; run the same command again to go on where it stopped"
    assert not any("Traceback" in line for line in said) and not (tmp_path / "d.h5").exists()


def test_the_time_left_follows_from_what_this_run_did(monkeypatch: Any, capsys: Any) -> None:
    """900 of 1000 were there; 10 more took 20 s, so the last 90 take 180 s."""
    now = [0.0]
    monkeypatch.setattr(console, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    with Progress() as progress:
        progress("steps", 900, 1000)
        now[0] = 20.0
        progress("steps", 910, 1000)
        now[0] = 40.0
        progress("steps", 100, 1000)  # another round of the same name
        now[0] = 50.0
        progress("steps", 200, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "steps: 900/1000 in 0:00",
        "steps: 910/1000 in 0:20, 3:00 left",
        "steps: 100/1000 in 0:00",
        "steps: 200/1000 in 0:10, 1:20 left",
    ]


def test_progress_off_a_terminal_is_plain_lines(capsys: Any) -> None:
    with Progress() as progress:
        for done in range(1, 101):
            progress("drawing", done, 100, "x")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("drawing: 1/100") and lines[-1].startswith("drawing: 100/100 in 0:00")
    assert len(lines) == 2 and "\r" not in "".join(lines)
