"""Files appear whole or not at all."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from airlam import files
from airlam.files import recover, reserve, whole_file, whole_folder, write_json


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
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    with whole_file(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_what_is_not_a_dead_writers_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    kept = [
        tmp_path / name
        for name in (
            f".file.{os.getppid()}.part",  # of a process that runs
            ".file.99999999999999999999.part",  # no number of a process
            ".file.notes.part",
            ".other.1.part",
            f".file.{os.getppid()}.old",
        )
    ]
    for each in kept:
        each.touch()
    write_json(path, 1)
    assert set(tmp_path.iterdir()) == {path, *kept}


def killed_in_the_middle(path: Path) -> None:
    """Writes a folder twice in another process, which dies between taking the first away and the second."""
    code = (
        "import os, signal, sys; from pathlib import Path; from airlam import files\n"
        "path, replace = Path(sys.argv[1]), os.replace\n"
        "def dying(source, target):\n"
        "    replace(source, target)\n"
        "    if str(target).endswith('.old'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = dying\n"
        "for text in ('old', 'new'):\n"
        "    with files.whole_folder(path) as t: (t / 'file').write_text(text)\n"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code, str(path)]).returncode == -9
    assert not path.exists()


def test_a_folder_killed_between_old_and_new_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    killed_in_the_middle(path)
    recover(path)
    assert (path / "file").read_text() == "old" and list(tmp_path.iterdir()) == [path]
    recover(path)
    killed_in_the_middle(path := tmp_path / "another")
    with pytest.raises(RuntimeError), whole_folder(path) as temporary:
        (temporary / "file").write_text("half")
        raise RuntimeError
    assert (path / "file").read_text() == "old"


def test_room_that_is_not_there_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("wb") as file:
        reserve(file.fileno(), 50_000)
        assert path.stat().st_size == 50_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(OSError) as caught:
                reserve(file.fileno(), 200_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and path.stat().st_size == 0


def test_file_systems_that_cannot_reserve_are_let_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(files.os, "posix_fallocate", unsupported)
    with (tmp_path / "file").open("wb") as file:
        file.write(b"kept")
        file.flush()
        reserve(file.fileno(), 10)
    assert (tmp_path / "file").read_bytes() == b"kept"
