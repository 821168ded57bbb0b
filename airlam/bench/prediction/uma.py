"""LLM4CP's setting drawn with Sionna, directional and omnidirectional users, at 0 to 30 dB and as published.

Beside the predictors stands the genie bound, on the first of the same test drops.
"""

from typing import Any

import numpy as np
import torch

from airlam.bench import trained
from airlam.bench.prediction.job import Job
from airlam.bench.prediction.sources import link_power
from airlam.bench.prediction.table import (
    ALL,
    RATIO,
    Field,
    Groups,
    Part,
    Row,
    contest_figures,
    group_rows,
    guard_note,
    nmse_rows,
    pooled,
    pooled_by_name,
    ratio_rows,
)
from airlam.datasets.shards import one_thread, plan_blocks, plan_shards
from airlam.datasets.stochastic.synthesis import draw_drops_with_rays
from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.radio.channel import PredictionSetting
from airlam.radio.metrics import LinkErrors
from airlam.radio.prediction import classical_predictors
from airlam.radio.prediction.genie import genie_bound
from airlam.tasks.channel_prediction import DatasetLinks, Progress
from airlam.tasks.comparison import compare, training_links
from airlam.tasks.evaluation import speed_groups
from airlam.units import db_to_linear

SNRS_DB = (0.0, 10.0, 20.0, 30.0)
PUBLISHED_SNR_DB = 18.0  # of LLM4CP's tables
BOUND = "genie"


def measure(job: Job, setting: str) -> Part:
    """``uma_omni`` or ``uma_directional``: at each SNR, and as published at 18 dB below the set's power."""
    scale, on_progress = job.scale, job.on_progress
    with trained.cached_dataset(setting, scale, "test", on_progress) as dataset:
        fitting = DatasetLinks(dataset, "train", trained.PREDICTION)
        test = DatasetLinks(dataset, "test", trained.PREDICTION)
        on_progress(f"{setting}: fitting the classical predictors", 0, 1, "")
        training = training_links(fitting, scale.fit, seed=1)
        learned = job.learned(test.setting, training)
        who = Field.of(classical_predictors(test.setting, training), learned)
        comparison = compare(who.everyone, test, SNRS_DB, on_progress)
        power = link_power(test).mean().expand(len(test))
        published = compare(who.everyone, test, [PUBLISHED_SNR_DB], on_progress, power=power)
        bounds = _genie(dataset, test.setting, scale.genie, on_progress)
    groups = speed_groups(comparison.speed_m_per_s)
    ratios = ratio_rows(setting, comparison, who, groups)
    figures: dict[str, float] = {}
    for snr_db, row in _of_all_links(ratios).items():
        nmse = pooled_by_name(comparison.scored[snr_db])
        figures |= contest_figures(f"{setting}.{snr_db:g}db", nmse, who, row)
        figures[f"{setting}.{snr_db:g}db.{BOUND}"] = pooled(bounds[snr_db])
    as_published = pooled_by_name(published.scored[PUBLISHED_SNR_DB], noisy=True)
    figures |= {f"{setting}.as_published.{name}": value for name, value in as_published.items()}
    rows = [
        *nmse_rows(setting, comparison, who, groups),
        *nmse_rows(f"{setting}, noise against the set's power", published, who, groups, noisy=True),
        *_bound_rows(setting, bounds, groups),
        *ratios,
    ]
    return Part(
        figures=figures,
        rows=rows,
        about=_about(setting, dataset, test, fitting, scale.genie) | guard_note(learned),
    )


def _of_all_links(ratios: list[Row]) -> dict[float, Row]:
    """The LAM's ratios over all links, by SNR."""
    return {
        row.snr_db: row
        for row in ratios
        if row.group == ALL and row.metric == RATIO and row.snr_db is not None
    }


def _about(
    setting: str, dataset: ChannelDataset, test: DatasetLinks, fitting: DatasetLinks, genie_drops: int
) -> dict[str, Any]:
    return {
        "setting": setting,
        "dataset": dataset.spec.name,
        "test_drops": len(test),
        "fitting_drops": len(fitting),
        "seed": dataset.spec.seed,
        "genie_drops": genie_drops,
        "nmse": "pooled over links, against the clean channel; the genie's over the first of them",
    }


def _bound_rows(setting: str, bounds: dict[float, LinkErrors], groups: Groups) -> list[Row]:
    """The bound at every SNR, over its drops and those of each group among them."""
    rows = []
    for snr_db, errors in bounds.items():
        inside = {group: members[: len(errors)] for group, members in groups.items()}
        inside = {group: members for group, members in inside.items() if members.any()}
        common = {"setting": setting, "predictor": BOUND, "kind": "bound", "snr_db": snr_db}
        rows += group_rows(errors, inside, common)
    return rows


def _genie(
    dataset: ChannelDataset, setting: PredictionSetting, num_drops: int, on_progress: Progress
) -> dict[float, LinkErrors]:
    """By SNR, the error on the first test drops that knowing every ray but its amplitude would leave."""
    shard = next(shard for shard in plan_shards(dataset.spec) if shard.split == "test")
    error: list[torch.Tensor] = []
    energy: list[torch.Tensor] = []
    for seed, size in plan_blocks(dataset.spec, shard):
        with one_thread():  # as the file was drawn
            batch, rays = draw_drops_with_rays(dataset.spec, seed, size)
        stored = dataset.batch("test", np.arange(len(error), len(error) + size)).h_freq
        if not torch.equal(stored, batch.h_freq):
            raise DataError(f"{dataset.path} was drawn by other software; remove it to have it drawn anew")
        histories = batch.links()[:, 0, : setting.num_history]  # [size, slots, 1, ports, subcarriers]
        for drop, history in zip(rays, histories, strict=True):
            power = float(history.abs().square().mean())
            levels = [power * db_to_linear(-snr) for snr in SNRS_DB]
            bound = genie_bound(drop, levels, setting)
            error.append(bound.error)  # [snrs, horizon]
            energy.append(bound.energy)  # [horizon]
            on_progress("genie bound", len(error), num_drops, "")
            if len(error) == num_drops:
                by_snr = torch.stack(error, dim=1)  # [snrs, num_drops, horizon]
                every = torch.stack(energy)  # [num_drops, horizon]
                bounds = [LinkErrors(error=one, energy=every) for one in by_snr]
                return dict(zip(SNRS_DB, bounds, strict=True))
    raise DataError(f"the first test shard holds fewer than {num_drops} drops")
