"""LLM4CP's two tables on QuaDRiGa channels that somebody else drew: TDD as published, FDD without noise.

TDD: noise on history and target, 18 dB below the mean power of the links of the same speed, as the authors'
test script has it: nobody can go below 0.0156. FDD: the downlink's future from the uplink's history. Errors
are pooled over the links of each speed, then averaged over speeds. The learned predictors were trained on
other channels, and are tested as they are; without noise, they and Path-EB are told of some (``with_floor``).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from airlam.bench import trained
from airlam.bench.prediction.job import Job
from airlam.bench.prediction.sources import HeldLinks, link_power, load_foreign
from airlam.bench.prediction.table import (
    OTHER_RATIO,
    POOLED,
    POOLED_NOISY,
    RATIO,
    Field,
    Part,
    Row,
    bootstrap,
    guard_note,
    interval_figures,
    pooled,
    pooled_row,
    ratio_metric,
)
from airlam.radio.metrics import Interval, LinkErrors, link_errors
from airlam.radio.prediction import classical_predictors
from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.guard import guarded
from airlam.radio.prediction.path_eb import PathEb
from airlam.radio.prediction.selection import spread_links
from airlam.tasks.comparison import Comparison, compare
from airlam.tasks.guarded import with_fallbacks
from airlam.units import KMH_PER_M_PER_S, db_to_linear

TDD, FDD = "quadriga", "quadriga_fdd"
PUBLISHED_SNR_DB = 18.0  # of LLM4CP's TDD table
TOP_SPEED_KMH = 100
PUBLISHED = "llm4cp_published"
PUBLISHED_TDD, PUBLISHED_FDD = 0.0345, 0.38  # on its authors' own users; the second read off a figure
FLOORS_DB = (20.0, 25.0, 30.0, 40.0)
FLOOR_LINKS = 20
NOISE_FREE_DB = 80.0  # below every floor
MEAN_OVER_SPEEDS = "mean_over_speeds_of_"


def measure_tdd(job: Job) -> Part:
    """``quadriga.as_published.<predictor>`` against noisy targets, ``quadriga.clean.<predictor>`` beside."""
    test, fitting = load_foreign(job.data_file(), "tdd")
    job.on_progress(f"{TDD}: fitting the classical predictors", 0, 1, "")
    training = fitting.training()
    learned = job.learned(test.setting, training)
    who = Field.of(classical_predictors(test.setting, training), learned)
    power = _mean_by_speed(link_power(test), test.speed_m_per_s)
    comparison = compare(who.everyone, test, [PUBLISHED_SNR_DB], job.on_progress, power=power)
    scored = comparison.scored[PUBLISHED_SNR_DB]
    views = {
        "as_published": (POOLED_NOISY, {name: each.noisy for name, each in scored.items()}),
        "clean": (POOLED, {name: each.clean for name, each in scored.items()}),
    }
    figures: dict[str, float] = {}
    rows: list[Row] = []
    for view, (metric, errors) in views.items():
        found = _table(TDD, metric, errors, who, comparison, PUBLISHED_SNR_DB)
        rows += found
        means = _means(found)
        figures |= {f"{TDD}.{view}.{name}": value for name, value in means.items()}
        figures[f"{TDD}.{view}.best_classical"] = min(means[name] for name in who.classical_names)
        figures |= _ratio_figures(f"{TDD}.{view}", found)
        for row in found:
            if (row.predictor, row.metric, row.group) == (trained.LAM, metric, f"speed_kmh={TOP_SPEED_KMH}"):
                figures[f"{TDD}.{view}.lam_{TOP_SPEED_KMH}kmh"] = row.value
    figures[f"{TDD}.trainable_parameters"] = who.trainable[trained.LAM]
    rows.append(_published(TDD, POOLED_NOISY, PUBLISHED_TDD, PUBLISHED_SNR_DB))
    about = _about(job, TDD, test, fitting) | guard_note(learned)
    return Part(figures=figures, rows=rows, about=about)


def measure_fdd(job: Job) -> Part:
    """``quadriga_fdd.lam`` beside Path-EB, delay ESPRIT, covariance mapping and the hold."""
    test, fitting = load_foreign(job.data_file(), "fdd")
    job.on_progress(f"{FDD}: fitting the classical predictors", 0, 1, "")
    training = fitting.training()
    classical = [
        with_floor(predictor, training) if isinstance(predictor, PathEb) else predictor
        for predictor in classical_predictors(test.setting, training)
    ]
    lam = job.lam(test.setting)
    floored = [with_floor(each, training) for each in with_fallbacks(lam, test.setting, job.lam_seed)]
    others = job.others(test.setting)
    who = Field(
        classical=classical,
        learned=[
            guarded(trained.LAM, floored, training, levels_db=(NOISE_FREE_DB,)),
            *(with_floor(each, training) for each in others),
        ],
        bounds=(),
        trainable=trained.trainable_of([lam, *others]),
    )
    level_db = 0.0  # against no power at all: no noise
    comparison = compare(who.everyone, test, [level_db], job.on_progress, power=torch.zeros(len(test)))
    errors = {name: each.clean for name, each in comparison.scored[level_db].items()}
    rows = _table(FDD, POOLED, errors, who, comparison, None)
    means = _means(rows)
    figures = {f"{FDD}.{name}": value for name, value in means.items()}
    figures[f"{FDD}.best_classical"] = min(means[name] for name in who.classical_names)
    figures |= _ratio_figures(FDD, rows)
    rows.append(_published(FDD, POOLED, PUBLISHED_FDD, None))
    about = _about(job, FDD, test, fitting) | guard_note(who.learned)
    return Part(figures=figures, rows=rows, about=about)


@dataclass(frozen=True, slots=True, kw_only=True)
class Floored:
    """A predictor that is told of at least so much noise: ``floor_db`` below the history's power.

    Without noise, what a model of paths does not cover would be taken for paths.
    """

    predictor: Predictor
    floor_db: float

    @property
    def name(self) -> str:
        """The predictor's own."""
        return self.predictor.name

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        power = history.abs().square().mean((1, 2, 3, 4))  # [batch]
        floor = power * db_to_linear(-self.floor_db)
        return self.predictor.predict(history, torch.maximum(noise_variance, floor))


def with_floor(predictor: Predictor, training: TrainingLinks) -> Floored:
    """The floor of ``FLOORS_DB`` with the least pooled NMSE on noise-free training links."""
    links = spread_links(training, FLOOR_LINKS)
    silence = torch.zeros(len(links.history))
    candidates = [Floored(predictor=predictor, floor_db=floor_db) for floor_db in FLOORS_DB]
    errors = [link_errors(each.predict(links.history, silence), links.future) for each in candidates]
    return min(zip(candidates, errors, strict=True), key=lambda pair: pooled(pair[1]))[0]


def _about(job: Job, setting: str, test: HeldLinks, fitting: HeldLinks) -> dict[str, Any]:
    return {
        "setting": setting,
        "file": job.data_file().name,
        "fitting_drops": len(fitting),
        "test_drops": len(test),
        "nmse": "pooled over the links of each speed, then the mean over speeds",
        "learned": "trained on other channels, tested here as they are",
        "published": "LLM4CP's own model on its authors' users",
    }


def _table(
    setting: str,
    metric: str,
    errors: Mapping[str, LinkErrors],
    who: Field,
    comparison: Comparison,
    snr_db: float | None,
) -> list[Row]:
    """Everyone at every speed and on average over speeds, and the learned over the best classical one."""
    strata = _by_speed(comparison.speed_m_per_s)
    rows: list[Row] = []
    for name, each in errors.items():
        ms = 1000 * comparison.seconds_per_link[name]
        common = who.shared(name, setting=setting, snr_db=snr_db, ms_per_link=ms)
        rows += [
            pooled_row(each.select(links), metric, {**common, "group": f"speed_kmh={speed}"})
            for speed, links in strata.items()
        ]
        mean = dataclasses.asdict(mean_over_speeds(each, list(strata.values())))
        rows.append(Row(metric=MEAN_OVER_SPEEDS + metric, num_links=len(each), **common, **mean))
    return [*rows, *_ratio_rows(setting, errors, who, _means(rows), list(strata.values()), snr_db)]


def _ratio_rows(
    setting: str,
    errors: Mapping[str, LinkErrors],
    who: Field,
    means: Mapping[str, float],
    strata: Sequence[torch.Tensor],
    snr_db: float | None,
) -> list[Row]:
    """Each learned predictor over the best classical one, paired."""
    best = min(who.classical_names, key=lambda name: means[name])
    return [
        Row(
            metric=ratio_metric(name),
            num_links=len(errors[best]),
            reference=best,
            **who.shared(name, setting=setting, snr_db=snr_db),
            **dataclasses.asdict(mean_over_speeds(errors[name], strata, over=errors[best])),
        )
        for name in who.learned_names
    ]


def mean_over_speeds(
    errors: LinkErrors, strata: Sequence[torch.Tensor], over: LinkErrors | None = None
) -> Interval:
    """Mean over the strata of their pooled NMSE, or its ratio to that of ``over`` on the same resamples."""

    def mean(weights: torch.Tensor, of: LinkErrors) -> torch.Tensor:
        error, energy = of.error.sum(1), of.energy.sum(1)  # [num_links]
        ratios = [(weights[:, s] @ error[s]) / (weights[:, s] @ energy[s]) for s in strata]
        return torch.stack(ratios).mean(0)  # [num_resamples]

    if over is None:
        return bootstrap(lambda weights: mean(weights, errors), strata)
    return bootstrap(lambda weights: mean(weights, errors) / mean(weights, over), strata)


def _means(rows: Sequence[Row]) -> dict[str, float]:
    """Everyone's mean over speeds."""
    return {row.predictor: row.value for row in rows if row.metric.startswith(MEAN_OVER_SPEEDS)}


def _ratio_figures(prefix: str, rows: Sequence[Row]) -> dict[str, float]:
    """``<prefix>.<name>_over_best_classical`` of every learned predictor, with its interval."""
    figures: dict[str, float] = {}
    for row in rows:
        if row.metric in (RATIO, OTHER_RATIO):
            figures |= interval_figures(f"{prefix}.{row.predictor}_{OTHER_RATIO}", row)
    return figures


def _published(setting: str, metric: str, value: float, snr_db: float | None) -> Row:
    metric = MEAN_OVER_SPEEDS + metric
    return Row(
        setting=setting, predictor=PUBLISHED, kind="published", metric=metric, value=value, snr_db=snr_db
    )


def _mean_by_speed(power: torch.Tensor, speed_m_per_s: torch.Tensor) -> torch.Tensor:
    """For each link the mean over the links of its speed, float32 [num_links]."""
    same = speed_m_per_s[:, None] == speed_m_per_s  # [num_links, num_links]
    return (same * power).sum(1) / same.sum(1)


def _by_speed(speed_m_per_s: torch.Tensor) -> dict[int, torch.Tensor]:
    """The links of each speed in km/h, int64 [n]."""
    speed_kmh = (speed_m_per_s * KMH_PER_M_PER_S).round().int()
    return {speed: (speed_kmh == speed).nonzero()[:, 0] for speed in sorted(set(speed_kmh.tolist()))}
