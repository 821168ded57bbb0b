"""Files that appear whole or not at all."""

import errno
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # what file systems without it answer


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is synced and renamed to ``path``.

    On any exception the temporary file is removed and ``path`` stays as it was; what a killed writer of
    ``path`` left goes first.
    """
    temporary = _beside(path, "part")
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``; on success it takes the place of ``path``.

    A full folder cannot be replaced in one step: a kill between the two leaves the old one beside the
    name, and ``recover``, which the next writer calls, brings it back.
    """
    temporary, old = _beside(path, "part"), _beside(path, "old")
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        if path.exists():
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover(path: Path) -> None:
    """Puts right what killed writers of ``path`` left: its old folder returns, half-written ones go.

    What belongs to another running process of this machine is left alone. Readers of a folder that others
    may have been writing call this first.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.(part|old)")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        found = ours.fullmatch(leftover.name)
        if found is None or _runs_elsewhere(int(found[1])):
            continue
        if found[2] == "old" and not path.exists():
            os.replace(leftover, path)
        elif leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _beside(path: Path, kind: str) -> Path:
    """A name of this process for a leftover of ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


def _runs_elsewhere(process: int) -> bool:
    """Whether another process has that number; what bears our own is of a dead one that had it before."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; no process number at all
        return True
    return True


def reserve(handle: int, num_bytes: int) -> None:
    """Takes disk blocks for the first ``num_bytes`` of an open file, so that writing them finds room.

    OSError where there is no room, and the file is then empty. Without effect where the file system cannot
    reserve.
    """
    if not hasattr(os, "posix_fallocate"):  # as on macOS
        return
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except OSError as error:
        if error.errno in CANNOT_RESERVE:
            return
        os.ftruncate(handle, 0)
        raise


def sync(path: Path) -> None:
    """Asks the kernel to put a file or folder on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole; NaN and infinity are refused because JSON has none."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
