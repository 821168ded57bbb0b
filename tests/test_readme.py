"""What the README says to type works, in the order in which it says it."""

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from airlam import cli
from airlam.llvm import good_llvm

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README's commands read, as the working directory."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_command_runs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("airlam ")]
    assert len(commands) >= 10
    for command in commands:
        if good_llvm() is None and any(word.startswith("street") for word in command):
            continue  # ray tracing
        if "litert" in command and importlib.util.find_spec("tensorflow") is None:
            continue  # an extra
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        assert not leaving.value.code, command
    assert (checkout / "runs" / "quickstart" / "report.html").exists()


def test_the_ten_lines_run(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})
    assert "best classical method" in capsys.readouterr().out


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z]+)", README))
    assert targets >= {"demo", "test", "env"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
