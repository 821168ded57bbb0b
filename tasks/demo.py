"""The main job from end to end on packaged specs."""

import dataclasses
from importlib.resources import files
from pathlib import Path

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.generate import generate
from airlam.results import EvaluationResult
from airlam.specs import RunSpec, parse_spec
from airlam.tasks.channel_prediction import Progress, quiet
from airlam.tasks.evaluation import evaluate
from airlam.tasks.runs import finetune


def packaged_run(name: str) -> RunSpec:
    """The run spec in ``tasks/<name>.toml``: demo or demo_quick."""
    return parse_spec(RunSpec, files("airlam.tasks").joinpath(f"{name}.toml").read_text(), f"{name}.toml")


def run_demo(
    output: Path, small: bool = False, on_progress: Progress = quiet
) -> tuple[EvaluationResult, Path]:
    """Draws channels, fine-tunes, evaluates; returns the result and the run's folder.

    What is already in ``output`` is not made again, so an interrupted demo goes on.
    """
    run = packaged_run("demo_quick" if small else "demo")
    data = output / run.dataset
    if not data.exists():
        generate(packaged_spec(data.stem), data, on_progress=on_progress)
    folder = finetune(dataclasses.replace(run, dataset=data.name), output, output, on_progress)
    return evaluate(folder, on_progress=on_progress), folder
