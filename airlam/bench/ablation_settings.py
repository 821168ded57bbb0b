"""The ablation's variants, trained on UMa, in the other settings of ``airlam bench prediction``.

All stand beside the LAM as it is used and beside every classical predictor, on the links and the noise of
that benchmark. The LAM is guarded there; a variant is not, for its guard would hide it behind Path-EB. What a
setting does for every predictor (CSI-4CAST's gains) or for those that model paths (a noise floor in FDD) it
does for variants too. Path tokens fit every setting; patches fit only settings that are shaped as the
training's: elsewhere ``no_physics`` is left out.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from airlam.bench import prediction, trained
from airlam.bench.ablation_variants import QUICK, Scale
from airlam.bench.kept import OnceTokenizer, ready
from airlam.bench.prediction import csi4cast, quadriga, sca, sumrate
from airlam.bench.prediction.job import FULL_SIZES, QUICK_SIZES, Job
from airlam.bench.prediction.table import OTHER_RATIO, RATIO, Part, Row
from airlam.errors import DataError
from airlam.model.build import lam_for
from airlam.model.heads import PatchHead
from airlam.model.lam import CHANNEL_PREDICTION, LAM
from airlam.model.path_head import PathHead
from airlam.model.storage import assign_tensors
from airlam.radio.channel import PredictionSetting
from airlam.tasks.channel_prediction import LamPredictor, Progress
from airlam.tokens.base import CsiTokenizer
from airlam.tokens.patch import PatchTokenizer
from airlam.tokens.path import PathTokenizer

SETTINGS = (csi4cast.SETTING, sca.SETTING, quadriga.TDD, quadriga.FDD, sumrate.SETTING)


def measure(
    chosen: Sequence[str],
    lams: Mapping[str, LAM],
    scale: Scale,
    data: Path | None,
    on_progress: Progress,
) -> list[Part]:
    """The chosen ones of ``SETTINGS`` with every variant in them; ``about`` names those that do not fit."""
    load, seed = _untrained_lam() if scale is QUICK else _shipped_lam()
    job = Job(
        scale=scale.data,
        sizes=QUICK_SIZES if scale is QUICK else FULL_SIZES,
        lam=load,
        lam_seed=seed,
        others=partial(variants_in, lams),
        data=data,
        on_progress=on_progress,
    )
    return [_with_summary(prediction.SETTINGS[name](job), lams) for name in chosen if name in SETTINGS]


def _shipped_lam() -> tuple[Callable[[PredictionSetting], LamPredictor], int]:
    """The LAM of ``airlam bench prediction`` for any setting, and its seed."""
    folder = trained.models_folder(trained.FULL)
    return partial(trained.load_lam, folder), trained.read_card(folder)["lam_training"]["seed"]


def _untrained_lam() -> tuple[Callable[[PredictionSetting], LamPredictor], int]:
    """For a quick look, for which none is shipped: a small LAM that predicts what Path-EB does."""
    spec, seed = trained.QUICK.model, trained.QUICK.lam.seed

    def load(setting: PredictionSetting) -> LamPredictor:
        lam = lam_for(spec, setting, seed).eval()
        return LamPredictor(tokenizer=lam.tokenizer, lam=lam)

    return load, seed


def variants_in(lams: Mapping[str, LAM], setting: PredictionSetting) -> list[LamPredictor]:
    """Those variants that fit a setting, as predictors that make their tokens once a batch."""
    shared: dict[str, CsiTokenizer] = {}
    predictors = []
    for name, lam in lams.items():
        try:
            there = moved(lam, setting)
        except DataError:
            continue
        tokenizer = there.tokenizer
        if not setting.is_fdd:  # there each is told of a noise of its own, so that tokens differ
            tokenizer = shared.setdefault(lam.spec.tokenizer, OnceTokenizer(tokenizer))
        predictors.append(LamPredictor(tokenizer=tokenizer, lam=there, name=name))
    return predictors


def moved(lam: LAM, setting: PredictionSetting) -> LAM:
    """A LAM in another setting: its own backbone, its embedding and head with the same weights.

    DataError where these have other shapes there.
    """
    tokenizer, head = _ends(lam, setting)
    there = LAM(lam.spec, tokenizer, lam.backbone, {CHANNEL_PREDICTION: head})
    assign_tensors(there.tensors_around(), lam.tensors_around(), "a LAM of another setting")
    return ready(there)


def _ends(lam: LAM, setting: PredictionSetting) -> tuple[CsiTokenizer, PatchHead | PathHead]:
    """Tokeniser and head around a LAM's backbone."""
    if lam.spec.tokenizer == "patch":
        patches = PatchTokenizer(setting)
        return patches, PatchHead(patches, lam.backbone.width)
    paths = PathTokenizer(setting, num_paths=lam.spec.num_paths)
    return paths, PathHead(setting, lam.backbone.width)


def _with_summary(part: Part, lams: Mapping[str, LAM]) -> Part:
    """With the ratios' mean over cells, the variants left out, and no times: who waits for tokens varies."""
    measured = {row.predictor for row in part.rows}
    left_out = [name for name in lams if name not in measured]
    return Part(
        figures=part.figures | _mean_ratios(part.rows),
        rows=[dataclasses.replace(row, ms_per_link=None) for row in part.rows],
        about={**part.about, "left_out": left_out} if left_out else part.about,
    )


def _mean_ratios(rows: Sequence[Row]) -> dict[str, float]:
    """``csi4cast.<name>_over_best_classical``: the geometric mean over cells."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row.setting == csi4cast.SETTING and row.metric in (RATIO, OTHER_RATIO):
            ratios.setdefault(f"{row.setting}.{row.predictor}_over_best_classical", []).append(row.value)
    return {name: math.exp(sum(map(math.log, values)) / len(values)) for name, values in ratios.items()}


def rows_of(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Every part's rows, as ``airlam bench prediction`` has them."""
    return [dataclasses.asdict(row) for part in parts for row in part.rows]
