"""Sionna's ray tracer, loaded once, with an LLVM library that does not abort the process."""

import functools
import importlib
from typing import Any

from airlam.errors import DataError
from airlam.llvm import LLVM_MINIMUM, LLVM_REMEDY, choose_llvm, describe_llvm

CPU_VARIANT, GPU_VARIANT = "llvm_ad_mono_polarized", "cuda_ad_mono_polarized"


@functools.cache
def ray_tracer() -> Any:
    """The module ``sionna.rt``, on the CPU and in one thread, so that the same scene gives the same bits.

    A GPU is used where the caller has chosen Mitsuba's variant for it beforehand, or where there is no LLVM
    library that is good enough. DataError in one line where there is neither.
    """
    llvm = choose_llvm()  # before Dr.Jit is imported, which looks for a library of its own otherwise
    drjit, mitsuba = importlib.import_module("drjit"), importlib.import_module("mitsuba")
    if mitsuba.variant() != GPU_VARIANT:
        if llvm is None and not drjit.has_backend(drjit.JitBackend.CUDA):
            raise DataError(f"ray tracing on the CPU finds {describe_llvm()}; {LLVM_REMEDY}")
        mitsuba.set_variant(CPU_VARIANT if llvm else GPU_VARIANT)
    if mitsuba.variant() == CPU_VARIANT:
        _refuse_old_llvm(drjit.detail.llvm_version())
        drjit.set_thread_count(1)
    return importlib.import_module("sionna.rt")


def _refuse_old_llvm(version: tuple[int, ...]) -> None:
    """DataError where Dr.Jit was imported earlier, with a library that would abort at the first kernel."""
    if version[0] < LLVM_MINIMUM:
        raise DataError(
            f"Dr.Jit was loaded with LLVM {version[0]}, too old for ray tracing; {LLVM_REMEDY}, or name "
            "one in DRJIT_LIBLLVM_PATH before Python starts"
        )


def mitsuba() -> Any:
    """The module ``mitsuba`` under Sionna's ray tracer."""
    ray_tracer()
    return importlib.import_module("mitsuba")
