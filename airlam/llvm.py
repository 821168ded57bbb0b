"""Finds the LLVM library that ray tracing on the CPU compiles its kernels with.

Dr.Jit, under Sionna RT, loads what DRJIT_LIBLLVM_PATH names, or the first library it finds; one older than
``LLVM_MINIMUM`` aborts the process at the first kernel. So the library is chosen here, by its version, before
Dr.Jit is imported.
"""

import glob
import logging
import os
import re

LLVM_MINIMUM = 17
LLVM_PATTERNS = (
    "/usr/lib/llvm-*/lib/libLLVM*.so*",
    "/usr/lib/*-linux-gnu/libLLVM*.so*",
    "/usr/lib64/libLLVM*.so*",
    "/usr/local/lib/libLLVM*.so*",
    "/opt/homebrew/opt/llvm*/lib/libLLVM*.dylib",
)
LLVM_VARIABLE = "DRJIT_LIBLLVM_PATH"
LLVM_REMEDY = f"install LLVM {LLVM_MINIMUM} or newer (Debian, Ubuntu: apt-get install libllvm19)"

logger = logging.getLogger(__name__)


def llvm_libraries() -> list[tuple[int, str]]:
    """(major version, path) of each LLVM library: what DRJIT_LIBLLVM_PATH names, then the newest first."""
    named = os.environ.get(LLVM_VARIABLE)
    paths = {os.path.realpath(path) for pattern in LLVM_PATTERNS for path in glob.glob(pattern)}
    found = sorted(((llvm_major(path), path) for path in paths if llvm_major(path)), reverse=True)
    return [(llvm_major(os.path.realpath(named)), named), *found] if named else found


def llvm_major(path: str) -> int:
    """Major version read off a file name such as libLLVM-17.so.1 or libLLVM.so.19.1; 0 where none is seen."""
    match = re.search(r"(?:libLLVM-|llvm-|llvm@|libLLVM\.so\.)(\d+)", path)
    return int(match.group(1)) if match else 0


def good_llvm() -> str | None:
    """The library to use: the one DRJIT_LIBLLVM_PATH names where it is good, else the newest good one."""
    for major, path in llvm_libraries():
        if major >= LLVM_MINIMUM and os.path.isfile(path):
            return path
    return None


def choose_llvm() -> str | None:
    """Sets DRJIT_LIBLLVM_PATH to a good library and returns it; None, nothing set, where there is none."""
    path, named = good_llvm(), os.environ.get(LLVM_VARIABLE)
    if path is not None and path != named:
        if named:
            logger.warning(
                "%s names %s, no LLVM of version %d or newer; %s is used",
                LLVM_VARIABLE,
                named,
                LLVM_MINIMUM,
                path,
            )
        os.environ[LLVM_VARIABLE] = path
    return path


def describe_llvm() -> str:
    """What was found, for a person: the versions and paths, or that there is none."""
    found = [f"LLVM {major or 'of unknown version'} at {path}" for major, path in llvm_libraries()]
    return ", ".join(found[:3]) or "no LLVM library"
