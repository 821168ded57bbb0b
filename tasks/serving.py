"""Fine-tuned runs as what a server answers with: channel predictors, precoders, and what chooses beams."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.model.lam_beams import LamBeams
from airlam.serving.foresight import foreseeing
from airlam.serving.guarding import (
    CLASSICAL,
    UNTUNED,
    GuardedServices,
    LinkGuard,
    untuned_name,
)
from airlam.serving.joint_services import JointServices
from airlam.serving.lam_services import LamServices
from airlam.serving.monitoring import Metrics
from airlam.serving.precoding import PrecoderServices
from airlam.serving.server import serve
from airlam.serving.services import Services
from airlam.specs import RunSpec, ServingSpec, require
from airlam.tasks.run_guard import read_guard
from airlam.tasks.run_setting import SETTING_FILE, read_setting
from airlam.tasks.runs import LAM_FOLDER, read_run

Predicting = Callable[[Sequence[Path], Metrics], Services]
"""(folders of runs of channel prediction and beam selection, who is told what services did) -> these."""
BEAM_SELECTION = "beam_selection"


def served_lams(folders: Sequence[Path]) -> dict[str, LAM]:
    """The LAMs of some runs' folders, by the runs' names.

    Of a run's dataset nothing is needed, unless an older version of airlam fine-tuned it. DataError where a
    folder holds no finished run; SpecError where two runs have one name.
    """
    lams: dict[str, LAM] = {}
    for folder, spec in read_runs(folders).items():
        require(
            spec.task == "channel_prediction",
            f"{folder} is a run of task {spec.task!r}; runs of 'channel_prediction' have LAMs to serve",
        )
        lams[spec.name] = _untuned(folder, spec)
        lams[spec.name].load(folder / LAM_FOLDER)
    return lams


def read_runs(folders: Sequence[Path]) -> dict[Path, RunSpec]:
    """The specs of some runs, no two of one name."""
    found: dict[Path, RunSpec] = {}
    names: set[str] = set()
    for folder in folders:
        spec = found[folder] = read_run(folder)
        require(
            spec.name not in names, f"two runs are called {spec.name!r}; serve one of them, or rename one"
        )
        names.add(spec.name)
    return found


def _untuned(folder: Path, spec: RunSpec) -> LAM:
    return lam_for(spec.model, read_setting(folder, spec), spec.training.seed).eval()


def services_of(folders: Sequence[Path], metrics: Metrics, predicting: Predicting | None = None) -> Services:
    """The services of some runs, LAMs guarded where a run has been evaluated; they report to ``metrics``.

    predicting: makes the services of runs that predict, which are those of channel prediction, of beam
    selection, and of beamforming on predicted channels; by default in this process. With runs of beamforming
    among them they are ``PrecodingServices``. Errors as of ``served_lams``.
    """
    predicting = predicting or _predicting
    specs = read_runs(folders)
    beamforming = [folder for folder in folders if specs[folder].task == "beamforming"]
    others = [folder for folder in folders if folder not in beamforming or _foresees(specs[folder])]
    if not beamforming:
        return predicting(others, metrics)
    precoders = _precoding(beamforming, specs, metrics)  # first: over Ray the others are costlier to undo
    return JointServices(predicting(others, metrics) if others else None, precoders)


def _precoding(folders: Sequence[Path], specs: Mapping[Path, RunSpec], metrics: Metrics) -> PrecoderServices:
    from airlam.tasks.beamforming_run import run_precoders  # which loads what a server of LAMs does without

    csi = {specs[folder].name: specs[folder].downlink.csi for folder in folders}
    return PrecoderServices(run_precoders(folders), metrics.service_ran, csi)


def _foresees(spec: RunSpec) -> bool:
    """Whether a run has tuned a predictor together with its precoder."""
    return spec.task == "beamforming" and spec.downlink.csi == "predicted"


def _foreseeing(folder: Path, spec: RunSpec) -> LAM:
    """The predictor of such a run."""
    from airlam.model.predictive_precoder import PredictivePrecoder

    assert spec.downlink.predictor is not None
    if (folder / SETTING_FILE).is_file():
        setting = read_setting(folder, spec)
    else:  # of an older version: that of the run that it began with
        before = Path(spec.downlink.predictor)
        setting = read_setting(before, read_run(before))
    pair = PredictivePrecoder.load(folder / LAM_FOLDER, setting, spec.training.seed)
    return foreseeing(pair.lam, pair.levels.detach())


def _predicting(folders: Sequence[Path], metrics: Metrics) -> Services:
    beams = served_beams(folders)
    lams, guards = guarded_lams(folders)
    services = LamServices(lams, metrics.service_ran, beams)
    return GuardedServices(services, guards, metrics.service_ran) if guards else services


def served_beams(folders: Sequence[Path]) -> dict[str, LamBeams]:
    """Of those folders that are runs of beam selection: what chooses, by the runs' names."""
    specs = read_runs(folders)
    return {
        spec.name: LamBeams.load(folder / LAM_FOLDER)
        for folder, spec in specs.items()
        if spec.task == BEAM_SELECTION
    }


def predicting_lams(folders: Sequence[Path]) -> dict[str, LAM]:
    """The LAMs of those folders whose runs predict channels, by the runs' names.

    Of a run of beamforming on predicted channels it is the predictor, which foresees. Errors as of
    ``served_lams``.
    """
    specs = read_runs(folders)
    alone = [folder for folder in folders if specs[folder].task == "channel_prediction"]
    lams = served_lams(alone)
    return lams | {spec.name: _foreseeing(folder, spec) for folder, spec in specs.items() if _foresees(spec)}


def guarded_lams(folders: Sequence[Path]) -> tuple[dict[str, LAM], dict[str, LinkGuard]]:
    """``predicting_lams``, those untuned that a guard uses, and the guards."""
    lams, guards = predicting_lams(folders), dict[str, LinkGuard]()
    for folder, spec in read_runs(folders).items():
        guard = read_guard(folder) if spec.task == "channel_prediction" else None
        if guard is not None and (guard.uses(UNTUNED) or guard.uses(CLASSICAL)):
            guards[spec.name] = guard
            if guard.uses(UNTUNED):
                lams[untuned_name(spec.name)] = _untuned(folder, spec)
    return lams, guards


def serve_runs(folders: Sequence[Path], spec: ServingSpec, on_listening: Callable[[str], None]) -> None:
    """Serves some runs until SIGINT or SIGTERM; SIGHUP has it read the folders anew."""
    metrics = Metrics()
    load = functools.partial(services_of, folders, metrics)
    serve(load(), spec, metrics, on_listening, load)
