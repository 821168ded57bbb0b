"""Evaluates a run that tuned predictor and precoder together: sum rates, then coded blocks over the link.

All predict from the same noisy histories of the same test drops. Beside the tuned pair stand the predictor
as it was given, with zero forcing that is told of its errors and without; Path-EB likewise; the last
measurement; and perfect knowledge, as the limit.
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from airlam.datasets.layout import software_versions
from airlam.model.predictive_precoder import PredictivePrecoder
from airlam.radio.metrics import mean_interval
from airlam.radio.prediction.base import Predictor
from airlam.radio.prediction.naive import Hold
from airlam.radio.prediction.path_eb import PathEb
from airlam.results import SUM_RATE, EvaluationResult, GainRow, Kind, LinkRow, Method
from airlam.tasks.beamforming_evaluation import check_groups
from airlam.tasks.channel_prediction import DatasetLinks
from airlam.tasks.evaluation import settings_of, training_costs, training_rows
from airlam.tasks.predicted_channels import CLASSICAL_ERROR, LAM_ERROR, TRUTH, Foreseen, foresee, user_rows
from airlam.tasks.predicted_precoders import (
    LearnedPrecoder,
    PredictionError,
    RobustZeroForcing,
    group_rates,
    zero_forcing,
)
from airlam.tasks.runs import LAM_FOLDER, load_lam, read_run
from airlam.tasks.task import Run
from airlam.units import db_to_linear

if TYPE_CHECKING:
    from airlam.tasks.link_level import LinkResult, Precode

LAM, CHAIN, CHAIN_TOLD = "lam", "chain_rzf", "chain_robust_rzf"
PATH_EB, PATH_EB_TOLD, STALE, PERFECT = "path_eb_rzf", "path_eb_robust_rzf", "hold_rzf", "perfect_rzf"
MAX_GROUPS = 64  # of users; their errors' covariances are held in memory
_TUNED, _GIVEN = "tuned", "lam"  # in what is foreseen
_BELIEVED = {
    LAM: _TUNED,
    CHAIN: _GIVEN,
    CHAIN_TOLD: _GIVEN,
    PATH_EB: PathEb.name,
    PATH_EB_TOLD: PathEb.name,
    STALE: "hold",
    PERFECT: TRUTH,
}
_SHOWN: dict[str, tuple[Kind, str]] = {
    LAM: ("lam", "Predictor and graph precoder, tuned together"),
    CHAIN_TOLD: ("learned", "The predictor as given, robust RZF"),
    CHAIN: ("learned", "The predictor as given, RZF"),
    PATH_EB_TOLD: ("classical", "Path-EB, robust RZF"),
    PATH_EB: ("classical", "Path-EB, RZF"),
    STALE: ("classical", "The last measurement, RZF"),
    PERFECT: ("bound", "Perfect channels, RZF"),
}
NOTES = (
    "Sum rates are from the SINR, before any overhead, with the total power over noise that is given, mean "
    "over the slots ahead and the subcarriers; each user's channel is scaled to unit mean power (power "
    "control), and its first antenna receives.",
    "Train, validation and test are disjoint drops. All that is tuned saw training drops only; training "
    "stopped on validation drops, and what was given is kept where nothing did better there.",
    "Intervals are 95 % bootstrap intervals over test drops; differences are paired.",
    "Robust zero forcing and the tuned precoder are told the covariance of the prediction's errors over the "
    "array, which the classical front end has in closed form.",
    "Training predictor and precoder together is a reconstruction.",
)


def measure(run: Run, *, link: bool) -> EvaluationResult:
    """See ``Task.measure``, for beamforming on predicted channels."""
    check_groups(run, link=link)
    spec = run.spec
    tuned, foreseen = _foreseen(run)
    rows_of = user_rows(len(foreseen), spec.link.num_users, spec.training.seed, run.dataset.spec.num_users)
    grouped = {name: links[rows_of] for name, links in foreseen.futures.items()}
    precoders = _precoders(tuned, {name: each[rows_of] for name, each in foreseen.errors.items()})
    estimates = {name: grouped[_BELIEVED[name]] for name in precoders}
    rates = {
        snr_db: group_rates(grouped[TRUTH], estimates, precoders, db_to_linear(-snr_db))
        for snr_db in spec.link.snr_db
    }
    rows, gains = _rate_rows(rates), _gain_rows(rates)
    settings = settings_of(run)
    parts: dict[str, Any] = {}
    if link:
        sent = _send(run, grouped[TRUTH], estimates, precoders)
        rows += [row for row in sent.rows() if row.metric != SUM_RATE]
        gains += [row for row in sent.gain_rows(LAM, PATH_EB_TOLD) if row.metric != SUM_RATE]
        parts["snr_db_at_target_bler"] = sent.snr_db_at_target_bler
        settings["link level"] = sent.settings
    return EvaluationResult(
        task="beamforming",
        settings=settings,
        methods=tuple(Method(name=n, label=_SHOWN[n][1], kind=_SHOWN[n][0]) for n in precoders),
        link=tuple(rows),
        gains=tuple(gains),
        training=training_rows(run.folder),
        cost=tuple(training_costs(run.folder, "training, tokens made before")),
        versions=software_versions(),
        notes=NOTES,
        **parts,
    )


def _foreseen(run: Run) -> tuple[PredictivePrecoder, Foreseen]:
    """The tuned pair, and what everybody makes of the test links' histories."""
    own, users = run.spec.beamforming, run.dataset.spec.num_users
    assert own is not None and own.predictor is not None
    before = read_run(Path(own.predictor), task="channel_prediction")
    test = DatasetLinks(run.dataset, "test", before.prediction)
    tuned = PredictivePrecoder.load(run.folder / LAM_FOLDER, test.setting, before.training.seed)
    given = load_lam(Path(own.predictor), test.setting)
    predictors: list[Predictor] = [Hold.for_setting(test.setting), PathEb(test.setting), given]
    num_links = min(len(test), MAX_GROUPS * max(run.spec.link.num_users, users))
    snr_db = run.spec.link.csi_snr_db
    own_tuned = {_TUNED: tuned}
    return tuned, foresee(test, predictors, tuned.lam, own_tuned, snr_db, num_links, run.on_progress)


def _precoders(tuned: PredictivePrecoder, errors: Mapping[str, torch.Tensor]) -> dict[str, "Precode"]:
    """By method, in the order in which they are shown."""
    polarizations = tuned.setting.base_station.num_polarizations
    even = torch.ones_like(tuned.levels)
    classical, told, learned = (
        PredictionError(ports=errors[name], levels=levels, num_polarizations=polarizations)
        for name, levels in (
            (CLASSICAL_ERROR, even),
            (LAM_ERROR, even),
            (LAM_ERROR, tuned.levels.detach()),
        )
    )
    own: dict[str, Precode] = {
        LAM: LearnedPrecoder(graph=tuned.precoder, error=learned),
        CHAIN_TOLD: RobustZeroForcing(error=told),
        PATH_EB_TOLD: RobustZeroForcing(error=classical),
    }
    return {name: own.get(name, zero_forcing) for name in _SHOWN}


def _send(
    run: Run, h: torch.Tensor, estimates: dict[str, torch.Tensor], precoders: Mapping[str, "Precode"]
) -> "LinkResult":
    from airlam.tasks.link_level import evaluate_link

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small arrays are loaded on purpose in small settings
        return evaluate_link(
            h,
            estimates,
            run.spec.link,
            seed=run.spec.training.seed,
            on_progress=lambda share: run.on_progress("sending coded blocks", round(100 * share), 100, ""),
            precoders=precoders,
        )


def _rate_rows(rates: Mapping[float, Mapping[str, torch.Tensor]]) -> list[LinkRow]:
    return [
        LinkRow(method=name, snr_db=snr_db, metric=SUM_RATE, **asdict(mean_interval(own)))
        for snr_db, found in rates.items()
        for name, own in found.items()
    ]


def _gain_rows(rates: Mapping[float, Mapping[str, torch.Tensor]]) -> list[GainRow]:
    """The tuned pair minus the best classical method there, and minus the predictor as given, told or not."""
    rows = []
    for snr_db, found in rates.items():
        best = max((PATH_EB_TOLD, PATH_EB, STALE), key=lambda name: float(found[name].mean()))
        for reference in (best, CHAIN_TOLD, CHAIN):
            gain = asdict(mean_interval(found[LAM] - found[reference]))
            rows.append(GainRow(method=LAM, reference=reference, snr_db=snr_db, metric=SUM_RATE, **gain))
    return rows
