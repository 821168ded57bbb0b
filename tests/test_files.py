"""Files appear whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from airlam.files import whole_file, whole_folder, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n' and list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for text in ("old", "new"):
        with whole_folder(path) as temporary:
            (temporary / "file").write_text(text)
        assert (path / "file").read_text() == text
    with pytest.raises(RuntimeError), whole_folder(path) as temporary:
        (temporary / "file").write_text("half")
        raise RuntimeError
    assert (path / "file").read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_killed_write_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from airlam.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "file"
    assert subprocess.run([sys.executable, "-P", "-c", code, str(path)]).returncode == -9
    assert not path.exists()
    with whole_file(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
