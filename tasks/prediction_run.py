"""Channel prediction as a task of runs."""

from typing import Any

from airlam.model.build import lam_for
from airlam.tasks.channel_prediction import DatasetLinks
from airlam.tasks.evaluation import measure
from airlam.tasks.run_setting import write_setting
from airlam.tasks.runs import tokens_folder, tune
from airlam.tasks.task import Outcome, Run

__all__ = ["fine_tune", "measure"]


def fine_tune(run: Run) -> Outcome:
    """See ``Task.fine_tune``: on one machine, or by the devices of the run's network."""
    spec = run.spec
    sources = {split: DatasetLinks(run.dataset, split, spec.prediction) for split in ("train", "validation")}
    write_setting(run.folder, sources["train"].setting)
    lam = lam_for(spec.model, sources["train"].setting, spec.training.seed)
    own: dict[str, Any] = {}
    if spec.network is None:
        summary = tune(
            lam, sources, spec.prediction, spec.training, run.folder, run.on_progress, run.identity
        )
    else:
        from airlam.tasks.federated import tune_together

        place = tokens_folder(run.folder, run.identity)
        summary, own = tune_together(
            spec, lam, sources, run.folder, place, run.on_progress, run.identity, run.ray_address
        )
    return Outcome(model=lam, summary=summary, own=own)
