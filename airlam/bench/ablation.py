"""What a backbone, its pretraining, LoRA, attention and the physics stage are worth.

Variants of the LAM that differ in one of these, trained on the same noisy views of the same drops (the
training drops of ``airlam bench prediction``, directional and omnidirectional users mixed), in the same
order, for the same number of steps; measured on the same test drops with the same noise. Two variants are
compared by paired bootstrap. ``ablation_settings`` has them in the other settings of that benchmark.

Everything is kept in the cache folder under a digest of what decides it: an interrupted run goes on, and a
run after a new backbone has come trains that one only.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airlam.bench import ablation_settings, trained
from airlam.bench.ablation_training import Trained, Workshop
from airlam.bench.ablation_variants import CONTRASTS, FULL, QUICK, Scale, variants
from airlam.bench.kept import OnceTokenizer, as_dict, ready
from airlam.bench.prediction import OF_FOREIGN_DATA, choose
from airlam.bench.prediction.sources import load_foreign
from airlam.datasets.store import ChannelDataset
from airlam.model.lam import LAM, count_parameters
from airlam.radio.metrics import LinkErrors, compare_nmse, summarise_nmse
from airlam.radio.prediction.base import Predictor
from airlam.specs import spec_to_dict
from airlam.tasks.channel_prediction import DatasetLinks, LamPredictor, Progress
from airlam.tasks.comparison import Comparison, compare

SNRS_DB = (0.0, 10.0, 20.0, 30.0)
REFERENCE = "path_eb"


def run(
    *, quick: bool, on_progress: Progress, data: Path | None = None, only: Sequence[str] = ()
) -> dict[str, Any]:
    """The table: settings, figures and rows.

    Rows of the two UMa settings are of a variant or of a contrast; those of the other settings are as in
    ``airlam bench prediction``. ``data`` is the file of the two QuaDRiGa settings, which are left out without
    it; ``only`` names the settings to measure in. SpecError for one that is not there, or lacks its data.
    """
    scale = QUICK if quick else FULL
    chosen = choose((*trained.SETTINGS, *ablation_settings.SETTINGS), only, data)
    if data is not None:
        load_foreign(data, "tdd")  # a file that is not there is known before hours of work
    with ExitStack() as stack:

        def opened(setting: str, purpose: str) -> ChannelDataset:
            return stack.enter_context(trained.cached_dataset(setting, scale.data, purpose, on_progress))

        workshop = Workshop(scale, [opened(setting, "train") for setting in trained.SETTINGS], on_progress)
        found, skipped = workshop.train_all()
        comparisons = {
            setting: _measure(
                found, workshop.untrained("path"), opened(setting, "test"), scale.num_test, on_progress
            )
            for setting in trained.SETTINGS
            if setting in chosen
        }
    lams = {name: each.lam for name, each in found.items()}
    parts = ablation_settings.measure(chosen, lams, scale, data, on_progress)
    rows = [row for s, measured in comparisons.items() for row in _variant_rows(s, found, measured)]
    worth = [row for s, measured in comparisons.items() for row in _contrast_rows(s, measured.comparison)]
    no_data = {name: "no --data" for name in OF_FOREIGN_DATA if name not in chosen and not only}
    return {
        "settings": {
            **_card(scale),
            "variants": {v.name: v.about for v in variants(scale) if v.name in found},
            "skipped": skipped | no_data,
            "data": [part.about for part in parts],
        },
        "figures": {
            **_variant_figures(rows),
            **_contrast_figures(worth),
            **{name: value for part in parts for name, value in part.figures.items()},
        },
        "rows": [*rows, *worth, *ablation_settings.rows_of(parts)],
    }


def _card(scale: Scale) -> dict[str, Any]:
    """What all variants have in common."""
    training = scale.training
    return {
        "scale": scale.name,
        "training_drops": f"{scale.data.train} of each of {', '.join(trained.SETTINGS)}",
        "test_drops": f"{scale.num_test} of each",
        "training": f"{training.num_steps} steps x {training.batch_size} of {training.num_samples} views, "
        "the same for all",
        "training_spec": spec_to_dict(training),
        "prediction": spec_to_dict(trained.PREDICTION),
        "nmse": "pooled over links, against the clean channel; intervals are paired bootstraps over drops",
        "network_ms_per_link": "after the tokens, in batches of 32",
        "ratio": "below 1: the variant's error is the lower",
        "reference": "the untrained head, which predicts what Path-EB does",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """All variants on one setting's test drops."""

    comparison: Comparison
    network_ms: dict[str, float]  # a link, after its tokens


def _measure(
    found: Mapping[str, Trained],
    untrained: LAM,
    dataset: ChannelDataset,
    num_drops: int,
    on_progress: Progress,
) -> _Measured:
    """Errors and network times on a setting; the tokens of a batch are made once for all."""
    test = DatasetLinks(dataset, "test", trained.PREDICTION)
    shared = {"path": OnceTokenizer(untrained.tokenizer)}
    predictors: list[Predictor] = [
        LamPredictor(tokenizer=shared["path"], lam=ready(untrained), name=REFERENCE)
    ]
    first = {"path": REFERENCE}  # who waits for the tokens
    for name, each in found.items():
        kind = each.lam.spec.tokenizer
        if kind not in shared:
            shared[kind], first[kind] = OnceTokenizer(each.lam.tokenizer), name
        predictors.append(LamPredictor(tokenizer=shared[kind], lam=each.lam, name=name))
    comparison = compare(predictors, test, SNRS_DB, on_progress, max_links=num_drops)
    num_predictions = len(comparison.speed_m_per_s) * len(SNRS_DB)
    waited_s = {first[kind]: tokens.seconds / num_predictions for kind, tokens in shared.items()}
    network_ms = {
        name: 1000 * (seconds - waited_s.get(name, 0.0))
        for name, seconds in comparison.seconds_per_link.items()
    }
    return _Measured(comparison=comparison, network_ms=network_ms)


def _variant_rows(setting: str, found: Mapping[str, Trained], measured: _Measured) -> list[dict[str, Any]]:
    """One row a variant and SNR, the untrained head among them."""
    rows = []
    for snr_db, errors in _errors(measured.comparison).items():
        for name, each in errors.items():
            ratio = compare_nmse(each, errors[REFERENCE]).pooled
            rows.append(
                {
                    "setting": setting,
                    "snr_db": snr_db,
                    "variant": name,
                    "nmse_pooled": as_dict(summarise_nmse(each).pooled),
                    "over_path_eb": as_dict(ratio),
                    "network_ms_per_link": measured.network_ms[name],
                    **(_sizes(found[name]) if name in found else {}),
                }
            )
    return rows


def _sizes(each: Trained) -> dict[str, Any]:
    parameters = count_parameters(each.lam)
    return {
        "trainable_parameters": parameters.trainable,
        "total_parameters": parameters.total,
        "training_seconds": each.cost["seconds"],
        "best_step": each.cost["best_step"],
        "best_validation_loss": each.cost["best_validation_loss"],
    }


def _contrast_rows(setting: str, comparison: Comparison) -> list[dict[str, Any]]:
    """One row a contrast and SNR, where both of its variants are there."""
    return [
        {
            "setting": setting,
            "snr_db": snr_db,
            "contrast": contrast.name,
            **{key: value for key, value in asdict(contrast).items() if key != "name"},
            "nmse_ratio": as_dict(compare_nmse(errors[contrast.variant], errors[contrast.without]).pooled),
        }
        for snr_db, errors in _errors(comparison).items()
        for contrast in CONTRASTS
        if {contrast.variant, contrast.without} <= errors.keys()
    ]


def _errors(comparison: Comparison) -> dict[float, dict[str, LinkErrors]]:
    return {
        snr_db: {name: each.clean for name, each in scored.items()}
        for snr_db, scored in comparison.scored.items()
    }


def _variant_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for row in rows:
        name = f"{row['setting']}.{row['snr_db']:g}db.{row['variant']}"
        figures[name] = row["nmse_pooled"]["value"]
        if row["variant"] != REFERENCE:
            figures[f"{name}_over_path_eb"] = row["over_path_eb"]["value"]
    return figures


def _contrast_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for row in rows:
        name, ratio = f"{row['setting']}.{row['snr_db']:g}db.worth_of_{row['contrast']}", row["nmse_ratio"]
        figures |= {name: ratio["value"], f"{name}_low": ratio["low"], f"{name}_high": ratio["high"]}
    return figures
