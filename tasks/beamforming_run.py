"""Beamforming as a task of runs: the graph precoder trained on a dataset's downlinks.

Its first part imitates WMMSE, with metrics and checkpoints in the run's folder ``imitation``; the second
raises the sum rate. ``lam/`` holds the precoder. On predicted channels there is no imitation, the LAM that
predicts is tuned, too, and ``lam/`` holds both.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from airlam.model.graph_precoder import GraphPrecoder, build_precoder
from airlam.model.precoder_chain import PrecoderLam, load_precoder
from airlam.model.predictive_precoder import PredictivePrecoder, precoder_folder
from airlam.model.storage import assign_tensors, fingerprint
from airlam.results import EvaluationResult
from airlam.specs import PrecoderSpec, RunSpec, require
from airlam.tasks import beamforming_evaluation, beamforming_predicted_evaluation
from airlam.tasks.beamforming import tune_precoder
from airlam.tasks.beamforming_data import Source, all_drops, read_views
from airlam.tasks.beamforming_predicted import (
    REGROUPED,
    VALIDATION_SAMPLES,
    PredictedDownlinks,
    predicted_downlinks,
    tune_jointly,
)
from airlam.tasks.channel_prediction import DatasetLinks
from airlam.tasks.run_setting import write_setting
from airlam.tasks.runs import LAM_FOLDER, load_lam, read_run, tokens_folder
from airlam.tasks.task import Outcome, Run

__all__ = ["fine_tune", "measure", "precoder_lam", "run_precoders"]


def fine_tune(run: Run) -> Outcome:
    """See ``Task.fine_tune``: on one machine, or by the devices of the run's network."""
    spec, training = run.spec, run.spec.training
    own = spec.downlink
    if own.csi == "predicted":
        return _tune_with_predictor(run)
    drops = {split: all_drops(run.dataset, split) for split in ("train", "validation")}
    drops["train"] = drops["train"][: training.num_samples]
    views = {split: read_views(run.dataset, split, drops[split], run.on_progress) for split in drops}
    lam = precoder_lam(spec)
    if own.start is not None:
        run = dataclasses.replace(run, identity=run.identity + fingerprint(lam.precoder.state_dict()))
    if spec.network is not None:
        from airlam.tasks.beamforming_federated import tune_together

        return tune_together(run, lam, views["train"], views["validation"])
    train = Source.of(run.dataset, views["train"], own)
    validation = Source.of(run.dataset, views["validation"], own, train.pilots)
    summary = tune_precoder(
        lam.precoder,
        train.training(training, seed=2 * training.seed),
        validation.validation(seed=2 * training.seed + 1),
        training,
        run.folder,
        imitation_steps=own.imitation_steps if own.start is None else 0,
        on_progress=run.on_progress,
        identity=run.identity,
    )
    return Outcome(model=lam.cpu(), summary=summary)


def measure(run: Run, *, link: bool) -> EvaluationResult:
    """See ``Task.measure``."""
    if run.spec.downlink.csi == "predicted":
        return beamforming_predicted_evaluation.measure(run, link=link)
    return beamforming_evaluation.measure(run, link=link)


def _tune_with_predictor(run: Run) -> Outcome:
    """The precoder and the LAM of the run that the spec names, through the rate."""
    spec, training, own = run.spec, run.spec.training, run.spec.beamforming
    assert own is not None and own.predictor is not None
    before = read_run(Path(own.predictor), task="channel_prediction")
    links = {split: DatasetLinks(run.dataset, split, before.prediction) for split in ("train", "validation")}
    lam = load_lam(Path(own.predictor), links["train"].setting).lam
    model = PredictivePrecoder(lam, precoder_lam(spec).precoder, links["train"].setting)
    identity = run.identity + fingerprint(model.state_dict())

    def samples(split: str, num_views: int, num_samples: int, seed: int) -> PredictedDownlinks:
        place = tokens_folder(run.folder, identity) / split
        return predicted_downlinks(
            lam, links[split], before.prediction, own, num_views, num_samples, seed, place, run.on_progress
        )

    train = samples("train", training.num_samples, REGROUPED * training.num_samples, 2 * training.seed)
    validation = samples("validation", VALIDATION_SAMPLES, VALIDATION_SAMPLES, 2 * training.seed + 1)
    write_setting(run.folder, links["train"].setting)  # by which it is served; after all that may be refused
    summary, given = tune_jointly(
        model,
        train,
        validation,
        training,
        run.folder,
        on_progress=run.on_progress,
        identity=identity,
    )
    return Outcome(model=model.cpu(), summary=summary, own={"validation_loss_of_what_was_given": given})


def run_precoders(folders: Sequence[Path]) -> dict[str, GraphPrecoder]:
    """The tuned precoders of some runs' folders, by the runs' names, as ``precode`` serves them.

    DataError where a folder holds no finished run of this task; SpecError where two runs have one name.
    """
    found: dict[str, GraphPrecoder] = {}
    for folder in folders:
        spec = read_run(folder, task="beamforming")
        require(spec.name not in found, f"two runs are called {spec.name!r}; take one of them, or rename one")
        own, place = spec.downlink, folder / LAM_FOLDER
        found[spec.name] = load_precoder(precoder_folder(place) if own.csi == "predicted" else place)
    return found


def precoder_lam(spec: RunSpec) -> PrecoderLam:
    """The precoder that a run tunes: untrained, or that of the run to start from.

    SpecError where the two differ in more than that only this one has a backbone.
    """
    own = spec.downlink
    if own.start is None:
        precoder = build_precoder(spec.precoder or PrecoderSpec(), seed=spec.training.seed)
    else:
        (before,) = run_precoders([Path(own.start)]).values()
        precoder = _tuned_on(before, spec)
    return PrecoderLam(precoder, max_users=own.max_users)


def _tuned_on(before: GraphPrecoder, spec: RunSpec) -> GraphPrecoder:
    """``before`` itself, or its weights with the backbone that the run's precoder adds."""
    wanted = spec.precoder or before.spec
    if wanted == before.spec:
        return before
    require(
        dataclasses.replace(wanted, backbone=None) == before.spec,
        f"the precoder to start from is {before.spec}, the run's {wanted}; drop [precoder], or take the same "
        "and add a backbone",
    )
    precoder = build_precoder(wanted, seed=spec.training.seed)
    given = before.state_dict()
    assign_tensors({name: precoder.state_dict()[name] for name in given}, given, "the precoder to start from")
    return precoder
