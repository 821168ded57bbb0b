"""The 27 cells of CSI-4CAST's grid at 20 dB: CDL-A, C and D, three delay spreads, three speeds.

Their metric is the mean over samples, antennas and steps of the NMSE over subcarriers, against clean targets.
The bar of a cell is the lower of two: what their RNN scored on their own draws of it (a log that came with
their code, 156 million parameters), and denoise + LS on the drops at hand. At 30 m/s Doppler aliases. Noise
20 dB below each link's own power, and Sionna 2.2 in place of 1.x, are a reconstruction.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from airlam.bench import trained
from airlam.bench.prediction.job import Job
from airlam.bench.prediction.sources import HeldLinks, drawn_links
from airlam.bench.prediction.table import (
    POOLED,
    Field,
    Part,
    Row,
    over_classical,
    pooled_row,
)
from airlam.datasets.catalog import CSI4CAST_CELLS, csi4cast_cell
from airlam.radio.metrics import LinkErrors, link_errors, mean_interval
from airlam.radio.prediction.base import Predictor, TrainingLinks
from airlam.radio.prediction.naive import Hold
from airlam.radio.prediction.path_eb import PathEb
from airlam.radio.prediction.selection import add_noise
from airlam.radio.prediction.tdd import adaptive_denoise_ls, denoise_ls
from airlam.radio.prediction.wiener import PopulationWiener
from airlam.specs import DatasetSpec, SplitSizes
from airlam.tasks.comparison import BATCH_LINKS, observe

SETTING = "csi4cast"
SNR_DB = 20.0
SEED = 21
METRIC = "nmse_mean_of_vectors"
OVER_BAR = "over_bar"
BASELINE = "denoise_ls"
PUBLISHED = "rnn_published"
PUBLISHED_PARAMETERS = 156_000_000
# by profile and speed, for delay spreads of 30, 100 and 300 ns
PUBLISHED_RNN = {
    ("cdl_a", 1): (0.0076, 0.0108, 0.0125),
    ("cdl_a", 10): (0.098, 0.075, 0.082),
    ("cdl_a", 30): (0.495, 0.439, 0.432),
    ("cdl_c", 1): (0.0121, 0.0128, 0.0355),
    ("cdl_c", 10): (0.157, 0.124, 0.104),
    ("cdl_c", 30): (0.713, 0.534, 0.409),
    ("cdl_d", 1): (0.0049, 0.0102, 0.0293),
    ("cdl_d", 10): (0.019, 0.026, 0.044),
    ("cdl_d", 30): (0.078, 0.072, 0.075),
}
DELAY_SPREADS_NS = (30, 100, 300)


def measure(job: Job) -> Part:
    """Every cell; ``cells_won`` counts those where the LAM, or another, is below both bars."""
    rows: list[Row] = []
    for index, cell in enumerate(CSI4CAST_CELLS):
        job.on_progress(f"{SETTING}: cells", index, len(CSI4CAST_CELLS), cell)
        rows += _cell_rows(job, cell)
    over: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == OVER_BAR:
            over.setdefault(row.predictor, []).append(row.value)
    won = {name: sum(value < 1 for value in values) for name, values in over.items()}
    figures = {
        f"{SETTING}.cells_won": won.pop(trained.LAM),
        f"{SETTING}.cells": len(over[trained.LAM]),
        f"{SETTING}.worst_lam_over_bar": max(over[trained.LAM]),
        **{f"{SETTING}.{name}.cells_won": count for name, count in won.items()},
    }
    about = {
        "setting": SETTING,
        "snr_db": SNR_DB,
        "fitting_drops": job.sizes.csi4cast_fit,
        "test_drops": job.sizes.csi4cast_test,
        "subcarriers": job.sizes.csi4cast_subcarriers,
        "seed": SEED,
        "nmse": "mean over samples, antennas and steps of the NMSE over subcarriers; clean targets",
        "published": f"their RNN of {PUBLISHED_PARAMETERS} parameters, on their own draws",
    }
    return Part(figures=figures, rows=rows, about=about)


def _cell_rows(job: Job, cell: str) -> list[Row]:
    """Everyone in one cell, the published RNN, and the learned over the bar and over the best classical."""
    with _aliasing_expected():
        spec = cell_spec(
            cell, job.sizes.csi4cast_fit, job.sizes.csi4cast_test, job.sizes.csi4cast_subcarriers
        )
        fitting = drawn_links(spec, "train", trained.PREDICTION)
        test = drawn_links(spec, "test", trained.PREDICTION)
    training = fitting.training()
    # the others take minutes a cell to tune on 300 subcarriers
    classical: list[Predictor] = [
        Hold.for_setting(test.setting),
        PopulationWiener.fit(test.setting, training),
        denoise_ls(test.setting, training),
        adaptive_denoise_ls(test.setting, training),
        PathEb(test.setting),
    ]
    learned = [job.guarded_lam(test.setting, training, (SNR_DB,)), *job.others(test.setting)]
    who = Field(
        classical=with_step_gains(classical, training, SNR_DB),
        learned=with_step_gains(learned, training, SNR_DB),
        bounds=(),
        trainable=trained.trainable_of(learned),
    )
    by_link, by_vector = _errors(who, test)
    common: dict[str, Any] = {"setting": SETTING, "group": cell, "snr_db": SNR_DB}
    rows = []
    for name, nmse in by_vector.items():
        own = who.shared(name, **common)
        rows += [_vector_row(nmse, own), pooled_row(by_link[name], POOLED, own)]
    score = {row.predictor: row for row in rows if row.metric == METRIC}
    published = published_rnn(cell)
    bar = min(published, score[BASELINE].value)
    return [
        *rows,
        Row(
            **common,
            predictor=PUBLISHED,
            kind="published",
            metric=METRIC,
            value=published,
            trainable_parameters=PUBLISHED_PARAMETERS,
        ),
        *(
            _over_bar(score[name], bar, BASELINE if bar < published else PUBLISHED)
            for name in who.learned_names
        ),
        *over_classical(by_link, who, common),
    ]


def cell_spec(cell: str, num_fit: int, num_test: int, num_subcarriers: int) -> DatasetSpec:
    """A cell's uplink band, at the published width with so many subcarriers."""
    spec = csi4cast_cell(*CSI4CAST_CELLS[cell])
    width_hz = spec.grid.num_uplink_subcarriers * spec.grid.subcarrier_spacing_hz
    grid = dataclasses.replace(
        spec.grid,
        num_uplink_subcarriers=num_subcarriers,
        num_downlink_subcarriers=0,
        gap_subcarriers=0,
        subcarrier_spacing_hz=width_hz / num_subcarriers,
    )
    sizes = SplitSizes(train=num_fit, validation=0, test=num_test)
    return dataclasses.replace(spec, grid=grid, drops=sizes, seed=SEED)


def published_rnn(cell: str) -> float:
    """What CSI-4CAST's RNN scored in a cell at 20 dB."""
    model, delay_spread_ns, speed = CSI4CAST_CELLS[cell]
    return PUBLISHED_RNN[model, speed][DELAY_SPREADS_NS.index(delay_spread_ns)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGains:
    """A predictor whose every step is scaled for this metric, which weak fields weigh down.

    The mean of |y - g x|^2 / |y|^2 over fields y and their predictions x is least at
    g = sum(Re x^H y / |y|^2) / sum(|x|^2 / |y|^2); gains: float32 [num_horizon], in [0, 1].
    """

    predictor: Predictor
    gains: torch.Tensor

    @property
    def name(self) -> str:
        """The predictor's own."""
        return self.predictor.name

    def predict(self, history: torch.Tensor, noise_variance: torch.Tensor) -> torch.Tensor:
        """See ``Predictor.predict``."""
        return self.predictor.predict(history, noise_variance) * self.gains.view(1, -1, 1, 1, 1)


def with_step_gains(
    predictors: Sequence[Predictor], training: TrainingLinks, snr_db: float
) -> list[StepGains]:
    """Each predictor with gains from training links, all under the same noise."""
    noisy, noise_variance = add_noise(training.history, snr_db, torch.Generator().manual_seed(SEED))
    return [
        StepGains(predictor=each, gains=_gains(each.predict(noisy, noise_variance), training.future))
        for each in predictors
    ]


def _gains(estimate: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
    """See ``StepGains``; both complex64 [num_links, num_horizon, user_ant, bs_ant, num_subcarriers]."""
    energy = future.abs().square().sum(-1)  # [num_links, horizon, user, bs]
    along = (estimate.conj() * future).real.sum(-1) / energy
    power = estimate.abs().square().sum(-1) / energy
    gains = along.sum((0, 2, 3)) / power.sum((0, 2, 3)).clamp_min(1e-12)  # [horizon]
    return gains.clamp(0, 1)


@contextmanager
def _aliasing_expected() -> Iterator[None]:
    """Without the warning that 30 m/s aliases, which is the point of those cells."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Doppler aliases")
        yield


def _errors(who: Field, test: HeldLinks) -> tuple[dict[str, LinkErrors], dict[str, torch.Tensor]]:
    """Everyone's errors link by link, and their ``vector_nmse``."""
    by_link: dict[str, list[LinkErrors]] = {predictor.name: [] for predictor in who.everyone}
    by_vector: dict[str, list[torch.Tensor]] = {predictor.name: [] for predictor in who.everyone}
    for start in range(0, len(test), BATCH_LINKS):
        indices = np.arange(start, min(start + BATCH_LINKS, len(test)))
        seen = observe(test.read(indices), test, SNR_DB, start)
        for predictor in who.everyone:
            estimate = predictor.predict(seen.history, seen.noise_variance)
            by_link[predictor.name].append(link_errors(estimate, seen.future, torch.from_numpy(indices)))
            by_vector[predictor.name].append(vector_nmse(estimate, seen.future))
    return (
        {name: LinkErrors.concatenate(parts) for name, parts in by_link.items()},
        {name: torch.cat(parts) for name, parts in by_vector.items()},
    )


def vector_nmse(estimate: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean over antenna pairs of each pair's NMSE over subcarriers: float64 [num_links, num_horizon].

    estimate and truth: complex [num_links, num_horizon, num_user_ant, num_bs_ant, num_subcarriers].
    """
    error = (estimate - truth).abs().square().sum(-1, dtype=torch.float64)  # [links, horizon, user, bs]
    energy = truth.abs().square().sum(-1, dtype=torch.float64)
    return (error / energy).mean((2, 3))  # [num_links, num_horizon]


def _vector_row(nmse: torch.Tensor, common: Mapping[str, Any]) -> Row:
    """The mean of [num_links, num_horizon]."""
    steps = tuple(nmse.mean(0).tolist())
    interval = dataclasses.asdict(mean_interval(nmse.mean(1)))
    return Row(metric=METRIC, num_links=len(nmse), per_step=steps, **common, **interval)


def _over_bar(score: Row, bar: float, reference: str) -> Row:
    """A score over a bar that is a number: the interval is the score's own."""
    assert score.low is not None and score.high is not None
    return dataclasses.replace(
        score,
        metric=OVER_BAR,
        value=score.value / bar,
        low=score.low / bar,
        high=score.high / bar,
        per_step=(),
        reference=reference,
    )
