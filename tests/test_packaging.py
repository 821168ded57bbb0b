"""The package list is whole, and imports point down the house only."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
UPPER = ("airlam.datasets", "airlam.tasks", "airlam.cli", "airlam.bench", "sionna")
# planning and scheduling: numpy and scipy only, so that they start at once and can be tried by the million
PLANNING = (
    *(
        "graph",
        "network",
        "network_spec",
        "plan",
        "resources",
        "timeline",
        "ledger",
        "cost",
        "exchange",
        "pace",
    ),
    *(
        "planner",
        "planner_problem",
        "planner_chain",
        "planner_milp",
        "planner_search",
        "fleet",
        "plan_report",
    ),
    "linear_program",
    *("bandwidth", "selection", "knapsack", "energy", "energy_selection", "block_allocation", "convergence"),
    *("queues", "rounds", "policies", "rehearsal", "failures", "streams"),
)
RUNNING = (
    *("flops", "flow_state", "messages", "node", "node_state", "part", "passes", "payload", "profile"),
    *("radio_link", "ray_transport", "recipes", "routes", "run", "sample_cache", "transport"),
)
ABOVE_PLANNING = (
    *(f"airlam.split.{name}" for name in RUNNING),
    *("airlam.radio", "airlam.tokens", "airlam.model", "airlam.training", *UPPER),
)
# each room, with what it may not import
FORBIDDEN = {
    "airlam/specs": ("torch", "airlam.radio", "airlam.tokens", "airlam.model", "airlam.training", *UPPER),
    "airlam/units.py": ("torch", "airlam."),
    "airlam/radio": (
        "airlam.tokens",
        "airlam.model",
        "airlam.split",
        "airlam.training",
        "transformers",
        "peft",
        *UPPER,
    ),
    "airlam/tokens": ("airlam.model", "airlam.split", "airlam.training", "transformers", "peft", *UPPER),
    "airlam/model": ("airlam.split", "airlam.training", *UPPER),
    "airlam/training": UPPER,
    "airlam/ray_cluster.py": ("torch", "airlam.radio", "airlam.split", "airlam.training", *UPPER),
    "airlam/split": ("airlam.training", *UPPER),
    **{f"airlam/split/{name}.py": ("torch", *ABOVE_PLANNING) for name in PLANNING},
    "airlam/split/placement": ("torch", *ABOVE_PLANNING),
    "airlam/serving": ("airlam.training", "peft", *UPPER),
    "airlam/export": ("airlam.training", "airlam.serving", "transformers", "peft", *UPPER),
    **{
        f"airlam/export/{name}.py": ("torch", "airlam.radio", "airlam.tokens", "airlam.model", "airlam.split")
        for name in ("manifest", "runtime")  # which run where no torch is
    },
    "airlam/results.py": ("torch", "airlam.radio", "airlam.model", "airlam.training", *UPPER),
    "airlam/pictures.py": ("torch", "airlam.radio", "airlam.model", "airlam.training", *UPPER),
    "airlam/report.py": ("airlam.model", "airlam.training", *UPPER),
    "airlam/panels.py": ("torch", "matplotlib", "airlam."),
    "airlam/panel_drawing.py": ("torch", "h5py", "airlam.radio", "airlam.model", "airlam.training", *UPPER),
    "airlam/portrait_picture.py": (
        "torch",
        "h5py",
        "airlam.radio",
        "airlam.model",
        "airlam.training",
        *UPPER,
    ),
    "datasets": (
        "airlam.tokens",
        "airlam.model",
        "airlam.split",
        "airlam.training",
        "airlam.results",
        "airlam.pictures",
        "airlam.panel_drawing",
        "airlam.portrait_picture",
        "airlam.report",
        "airlam.tasks",
        "airlam.bench",
        "airlam.cli",
        "matplotlib",
    ),
    "tasks": ("airlam.cli", "airlam.bench"),
}
SOLE_IMPORTERS = {
    "peft": {"airlam/model/lora.py"},
    "ray": {"airlam/ray_cluster.py"},
    "dp_accounting": {"airlam/training/privacy.py"},
    "cvxpy": {"airlam/bench/schedule.py"},
    "tensorflow": {"airlam/export/litert_file.py", "datasets/export.py"},
    "ai_edge_litert": {"airlam/export/runtime.py"},
    "onnx": {"airlam/export/onnx_file.py"},
    "onnxruntime": {"airlam/export/runtime.py"},
    "simpy": {"airlam/serving/simulator.py", "airlam/serving/simulator_tiers.py"},
}
HTTP_LIBRARIES = ("fastapi", "starlette", "uvicorn", "prometheus_client")
SIONNA_ROOMS = ("datasets/", "tasks/link_level.py")


def sources(folder: str) -> list[Path]:
    path = ROOT / folder
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def test_every_package_is_listed() -> None:
    found = set()
    for folder in ("airlam", "datasets", "tasks"):
        for init in (ROOT / folder).rglob("__init__.py"):
            name = init.parent.relative_to(ROOT).as_posix().replace("/", ".")
            found.add(name if folder == "airlam" else f"airlam.{name}")
    assert found == set(CONFIG["packages"])


def test_every_module_of_split_plans_or_runs() -> None:
    found = {path.stem for path in (ROOT / "airlam/split").glob("*.py")} - {"__init__"}
    assert found == {*PLANNING, *RUNNING}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_downwards(folder: str) -> None:
    for path in sources(folder):
        for name in imported(path):
            assert not name.startswith(FORBIDDEN[folder]), f"{path} imports {name}"


def test_heavy_libraries_stay_in_their_rooms() -> None:
    for path in [*sources("airlam"), *sources("datasets"), *sources("tasks")]:
        place = path.relative_to(ROOT).as_posix()
        for name in imported(path):
            library = name.split(".")[0]
            assert place in SOLE_IMPORTERS.get(library, {place}), f"{place} imports {name}"
            assert library not in HTTP_LIBRARIES or place.startswith("airlam/serving/"), (
                f"{place} imports {name}"
            )
            assert library != "sionna" or place.startswith(SIONNA_ROOMS), f"{place} imports {name}"


def test_nothing_unpickles() -> None:
    for path in [*sources("airlam"), *sources("datasets"), *sources("tasks")]:
        text = path.read_text()
        assert "allow_pickle=True" not in text and "weights_only=False" not in text, path
        assert not {"pickle", "dill", "joblib"} & {name.split(".")[0] for name in imported(path)}, path


def test_a_bare_import_of_the_folder_is_refused() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import datasets"], cwd=ROOT, capture_output=True, text=True, env={}
    )
    assert "import airlam.datasets" in run.stderr


def test_the_command_line_starts_without_heavy_libraries() -> None:
    code = (
        "import sys, airlam.cli\n"
        "heavy = {'torch', 'sionna', 'transformers', 'peft', 'tensorflow', 'ray', 'matplotlib', 'h5py'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)\n"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
