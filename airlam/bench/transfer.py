"""How far a LAM carries: trained on Sionna's UMa, tested elsewhere, as it is and after a few drops.

Targets: 38.901 UMi without line of sight, ray-traced Munich, and a QuaDRiGa set that somebody else drew. On
each the LAM is measured as it comes (zero-shot) and after LoRA fine-tuning on 10, 100 and 1,000 drops
(few-shot, the smaller sets within the larger), beside every classical predictor; those are fitted on all of
these drops.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from airlam.bench import trained
from airlam.bench.few_shot import few_shot_training, tune_on_few
from airlam.bench.kept import OnceTokenizer, Shelf, as_dict, ready
from airlam.bench.transfer_targets import FULL, QUICK, Scale, Target, find_targets
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.radio.metrics import LinkErrors, compare_nmse, summarise_nmse
from airlam.radio.prediction import classical_predictors
from airlam.specs import spec_to_dict
from airlam.tasks.channel_prediction import LamPredictor, Progress
from airlam.tasks.comparison import Comparison, compare, training_links

SNRS_DB = (10.0, 20.0)
ZERO_SHOT = "zero_shot"
LoadLam = Callable[[PredictionSetting], LAM]


def run(*, quick: bool, data: Path | None, on_progress: Progress) -> dict[str, Any]:
    """The table: settings, figures, rows. ``data``: a QuaDRiGa ``*_dev.npz``, ``*_train.npz`` beside it."""
    scale = QUICK if quick else FULL
    with ExitStack() as stack:
        load, about = _untrained_lam() if quick else _shipped_lam()
        targets, skipped = find_targets(scale, data, stack, on_progress)
        found = [_transfer(target, scale, load, on_progress) for target in targets]
    return {
        "settings": {
            "scale": scale.name,
            "lam": about,
            "targets": {target.name: target.about for target in targets},
            "skipped": skipped,
            "few_shot": "a fifth of the drops is held out; fine-tuning starts at the zero-shot weights and "
            "keeps what is best on the held-out drops, the weights that it started from included",
            "classical": f"fitted on {scale.shots[-1]} drops, or as many as there are, at most 512",
            "nmse": "pooled over links, against the clean channel; intervals are paired bootstraps over "
            "drops, in Munich over drives",
        },
        "figures": {name: value for part in found for name, value in part["figures"].items()},
        "rows": [row for part in found for row in part["rows"]],
    }


def _shipped_lam() -> tuple[LoadLam, dict[str, Any]]:
    """The benchmark's LAM for any setting; what it is."""
    folder = trained.models_folder(trained.FULL)
    card = trained.read_card(folder)

    def load(setting: PredictionSetting) -> LAM:
        return trained.load_lam(folder, setting).lam

    return load, {"data": card["data"], "model": card["model"], "training": card["lam_training"]}


def _untrained_lam() -> tuple[LoadLam, dict[str, Any]]:
    """For a quick look: a small LAM that predicts what Path-EB does."""
    spec, seed = trained.QUICK.model, trained.QUICK.lam.seed
    return lambda setting: lam_for(spec, setting, seed), {"model": spec_to_dict(spec), "training": None}


def _transfer(target: Target, scale: Scale, load: LoadLam, on_progress: Progress) -> dict[str, Any]:
    """Zero-shot, few-shot and classical on one target."""
    shelf = Shelf(folder=trained.cache_folder() / "transfer" / scale.name / target.name)
    shots = sorted({min(shot, len(target.few)) for shot in scale.shots})
    zero = ready(load(target.test.setting))
    lams, notes = {ZERO_SHOT: zero}, {}
    for shot in shots:
        lam = load(target.test.setting)
        notes[f"few_shot_{shot}"] = tune_on_few(
            lam, target, few_shot_training(shot, scale.steps_per_root_drop), shot, shelf, on_progress
        )
        lams[f"few_shot_{shot}"] = lam
    on_progress(f"{target.name}: fitting the classical predictors", 0, 1, "")
    classical = classical_predictors(target.test.setting, training_links(target.few, shots[-1], seed=1))
    tokens = OnceTokenizer(zero.tokenizer)
    predictors = [LamPredictor(tokenizer=tokens, lam=lam, name=name) for name, lam in lams.items()]
    comparison = compare([*classical, *predictors], target.test, SNRS_DB, on_progress)
    rows = _rows(target, comparison, [predictor.name for predictor in classical], notes)
    return {"rows": rows, "figures": _figures(rows)}


def _rows(
    target: Target, comparison: Comparison, classical: Sequence[str], notes: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One row a predictor and SNR."""
    rows = []
    group = torch.from_numpy(target.test_group)
    for snr_db, scored in comparison.scored.items():
        best = comparison.best(classical, snr_db)
        errors = {name: _grouped(each.clean, group) for name, each in scored.items()}
        for name, each in errors.items():
            lam = name not in classical
            rows.append(
                {
                    "target": target.name,
                    "snr_db": snr_db,
                    "predictor": name,
                    "kind": "lam" if lam else "classical",
                    "best_classical": best,
                    "nmse_pooled": as_dict(summarise_nmse(each).pooled),
                    "over_best_classical": as_dict(compare_nmse(each, errors[best]).pooled),
                    **(
                        {"over_zero_shot": as_dict(compare_nmse(each, errors[ZERO_SHOT]).pooled)}
                        if lam
                        else {}
                    ),
                    **({"fine_tuning": notes[name]} if name in notes else {}),
                }
            )
    return rows


def _grouped(errors: LinkErrors, group: torch.Tensor) -> LinkErrors:
    """The same errors with intervals over groups."""
    return LinkErrors(error=errors.error, energy=errors.energy, drop=group)


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The best classical predictor and every LAM, and their ratios with the ends of their intervals."""
    figures: dict[str, float] = {}
    for row in rows:
        place = f"{row['target']}.{row['snr_db']:g}db"
        if row["predictor"] == row["best_classical"]:
            figures[f"{place}.best_classical"] = row["nmse_pooled"]["value"]
        if row["kind"] != "lam":
            continue
        name, ratio = f"{place}.{row['predictor']}", row["over_best_classical"]
        figures[name] = row["nmse_pooled"]["value"]
        figures[f"{name}_over_best_classical"] = ratio["value"]
        figures[f"{name}_over_best_classical_low"] = ratio["low"]
        figures[f"{name}_over_best_classical_high"] = ratio["high"]
    return figures
