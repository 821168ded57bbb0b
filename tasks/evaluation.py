"""Evaluates a run: prediction error beside every classical method, then coded blocks over the link."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from airlam.datasets.layout import software_versions
from airlam.datasets.store import ChannelDataset
from airlam.radio.metrics import LinkErrors, compare_nmse, summarise_nmse
from airlam.radio.prediction import classical_predictors
from airlam.radio.prediction.base import Predictor
from airlam.report import write_report
from airlam.results import (
    POOLED_NMSE,
    CostRow,
    EvaluationResult,
    GainRow,
    Method,
    NetworkRow,
    PredictionRow,
    TrainingRow,
)
from airlam.specs import RunSpec
from airlam.tasks.channel_prediction import DatasetLinks, Progress, quiet
from airlam.tasks.comparison import BATCH_LINKS, Comparison, compare, observe, training_links
from airlam.tasks.guarded import guarded_lam
from airlam.tasks.run_guard import write_guard
from airlam.tasks.runs import check_data, load_lam, read_run, run_to_dict, summary_of
from airlam.tasks.task import Run, task_of
from airlam.training.loop import METRICS_FILE
from airlam.training.metrics import read_metrics
from airlam.units import KMH_PER_M_PER_S

if TYPE_CHECKING:
    from airlam.tasks.link_level import LinkResult

MAX_TRAINING_LINKS = 512  # covariances of classical predictors have settled by then
NUM_SPEED_BINS = 3
LAM = "lam"
GENIE = "genie"
LABELS = {
    "hold": "Hold the last slot",
    "linear": "Linear extrapolation",
    "per_antenna_ar": "AR per antenna",
    "kalman_jakes": "Kalman, Jakes",
    "kalman_ar": "Kalman, fitted AR",
    "population_wiener": "Wiener, population",
    "vector_prony": "Vector Prony",
    "pad": "PAD",
    "reduced_rank_ar": "Reduced-rank AR",
    "denoise_ls": "Denoise + LS",
    "adaptive_denoise_ls": "Denoise + LS, adaptive",
    "path_eb": "Path-EB",
    "covariance_mapping": "Covariance mapping",
    "delay_esprit": "Delay ESPRIT",
    "rnn": "RNN",
    "lstm": "LSTM",
    "gru": "GRU",
    "cnn": "CNN",
    "transformer": "Transformer",
    "llm4cp": "LLM4CP shape",
    LAM: "LAM",
    GENIE: "Perfect CSI",
}
NOTES = (
    "NMSE is against the clean channel. SNRs are each link's own mean power over the noise in its history.",
    "Train, validation and test are disjoint drops. All that is fitted or tuned saw training drops only; "
    "training stopped on validation drops.",
    "The best classical method is the best one on the test drops themselves, which favours it.",
    "The LAM is guarded: at each SNR and in each third of the users by fading, training drops chose whether "
    "it predicts as tuned, as untuned, or leaves it to Path-EB; its time is that of whichever was chosen.",
    "A user's NMSE in the figure of users is the geometric mean over the SNRs.",
    "Intervals are 95 % bootstrap intervals, over test drops for prediction errors and over groups of users "
    "on the link; differences are paired.",
)
PATH_NOTE = (
    "The LAM's head corrects Path-EB, a reconstruction of empirical-Bayes path prediction, which also stands "
    "alone among the classical methods."
)
LINK_NOTES = (
    "On the link stand the last slot, the best classical prediction of those above, the LAM, and perfect "
    "CSI. Users of single-user drops are grouped at random; each one's channel is scaled to unit mean power "
    "(power control), and its first antenna receives.",
    "More users than a small array can separate are simulated as they are: such settings are overloaded.",
)


def evaluate(folder: Path, link: bool = True, on_progress: Progress = quiet) -> EvaluationResult:
    """Measures the run in ``folder`` on its dataset's test drops; metrics.json and report.html go there."""
    spec = read_run(folder)
    with ChannelDataset.open(spec.dataset) as dataset:
        check_data(folder, dataset)
        run = Run(spec=spec, dataset=dataset, folder=folder, on_progress=on_progress)
        result = task_of(spec).measure(run, link=link)
    write_report(result, folder)
    return result


def measure(run: Run, *, link: bool) -> EvaluationResult:
    """See ``Task.measure``, for channel prediction."""
    spec, dataset, folder, on_progress = run.spec, run.dataset, run.folder, run.on_progress
    test = DatasetLinks(dataset, "test", spec.prediction)
    if link:
        from airlam.tasks.link_level import check_link

        check_link(spec.link, len(test), dataset.spec.num_users, len(test.setting.target_frequencies_hz))
    training = training_links(
        DatasetLinks(dataset, "train", spec.prediction), MAX_TRAINING_LINKS, spec.training.seed
    )
    tuned = load_lam(folder, test.setting)
    on_progress("guarding the LAM", 0, 1, "")
    lam = guarded_lam(tuned, test.setting, training, seed=spec.training.seed)
    write_guard(folder, lam)
    on_progress("fitting the classical predictors", 0, 1, "")
    classical = classical_predictors(test.setting, training)
    ends = (spec.prediction.min_snr_db, spec.prediction.max_snr_db)
    snrs_db = sorted(set(np.linspace(*ends, 4).tolist()))
    comparison = compare([*classical, lam], test, snrs_db, on_progress)
    names = [predictor.name for predictor in classical]
    settings, notes = settings_of(run), list(NOTES)
    settings["the LAM's guard, from slow fading to fast"] = lam.choices()
    if spec.model.tokenizer == "path":
        notes.append(PATH_NOTE)
    parts: dict[str, Any] = {"gains": tuple(gain_rows(comparison, names))}
    if link:
        sent, best = send_over_link(spec, dataset, test, classical, lam, comparison, on_progress)
        parts["gains"] += tuple(sent.gain_rows(LAM, best))
        parts |= {"link": tuple(sent.rows()), "snr_db_at_target_bler": sent.snr_db_at_target_bler}
        settings["link level"] = sent.settings
        notes += LINK_NOTES
    return EvaluationResult(
        task="channel prediction",
        settings=settings,
        methods=_methods(names, link),
        prediction=tuple(prediction_rows(comparison)),
        user_nmse=user_nmse(comparison, [*names, LAM]),
        training=training_rows(folder),
        network=network_rows(folder),
        cost=tuple(_cost_rows(folder, comparison)),
        versions=software_versions(),
        notes=tuple(notes),
        **parts,
    )


def settings_of(run: Run) -> dict[str, Any]:
    """Spec and data, for a report."""
    dataset = run.dataset
    drops = dataset.spec.drops
    return {
        "run": run_to_dict(run.spec),
        "dataset": {
            "name": dataset.spec.name,
            "description": dataset.spec.description,
            "seed": dataset.spec.seed,
            "drops": f"{drops.train} train, {drops.validation} validation, {drops.test} test",
        },
    }


def _methods(classical: Sequence[str], with_link: bool) -> tuple[Method, ...]:
    methods = [Method(name=name, label=LABELS.get(name, name), kind="classical") for name in classical]
    methods.append(Method(name=LAM, label=LABELS[LAM], kind="lam"))
    if with_link:
        methods.append(Method(name=GENIE, label=LABELS[GENIE], kind="bound"))
    return tuple(methods)


def prediction_rows(comparison: Comparison) -> list[PredictionRow]:
    """Errors of every predictor at every SNR: over all links, by speed, and by step of the horizon."""
    groups = speed_groups(comparison.speed_m_per_s)
    rows = []
    for snr_db, named in comparison.scored.items():
        for name, scored in named.items():
            for group, members in groups.items():
                rows += _summary_rows(name, snr_db, group, scored.clean.select(members))
            for step in range(scored.clean.error.shape[1]):
                part = dataclasses.replace(
                    scored.clean,
                    error=scored.clean.error[:, step : step + 1],
                    energy=scored.clean.energy[:, step : step + 1],
                )
                rows += _summary_rows(name, snr_db, f"step={step + 1}", part)
    return rows


def _summary_rows(method: str, snr_db: float, group: str, errors: LinkErrors) -> list[PredictionRow]:
    summary = summarise_nmse(errors)
    averages = {"nmse_pooled": summary.pooled, "nmse_mean": summary.mean, "nmse_median": summary.median}
    return [
        PredictionRow(
            method=method,
            snr_db=snr_db,
            group=group,
            metric=metric,
            value=interval.value,
            low=interval.low,
            high=interval.high,
        )
        for metric, interval in averages.items()
    ]


def speed_groups(speed_m_per_s: torch.Tensor) -> dict[str, torch.Tensor]:
    """All links, and those of each third of the speed range: name -> bool [num_links]."""
    speed_kmh = speed_m_per_s * KMH_PER_M_PER_S
    edges = torch.linspace(float(speed_kmh.min()), float(speed_kmh.max()) + 1e-3, NUM_SPEED_BINS + 1)
    groups = {"all": torch.ones(len(speed_kmh), dtype=torch.bool)}
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        members = (speed_kmh >= low) & (speed_kmh < high)
        if members.any():
            groups[f"speed_kmh={(low + high) / 2:.3g}"] = members
    return groups


def gain_rows(comparison: Comparison, classical: Sequence[str]) -> list[GainRow]:
    """LAM minus the best classical predictor at each SNR: paired difference of pooled NMSE.

    The interval is that of the paired ratio, times the reference's error.
    """
    rows = []
    for snr_db, named in comparison.scored.items():
        reference = comparison.best(classical, snr_db)
        base = summarise_nmse(named[reference].clean).pooled.value
        ratio = compare_nmse(named[LAM].clean, named[reference].clean).pooled
        value, low, high = (base * (r - 1) for r in (ratio.value, ratio.low, ratio.high))
        rows.append(
            GainRow(
                method=LAM,
                reference=reference,
                snr_db=snr_db,
                metric="nmse_pooled",
                value=value,
                low=low,
                high=high,
            )
        )
    return rows


def user_nmse(comparison: Comparison, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Each link's NMSE, averaged over the SNRs in dB (a geometric mean)."""
    return {
        name: tuple(
            torch.stack([named[name].clean.ratio.log() for named in comparison.scored.values()])
            .mean(0)
            .exp()
            .tolist()
        )
        for name in names
    }


def send_over_link(
    spec: RunSpec,
    dataset: ChannelDataset,
    test: DatasetLinks,
    classical: Sequence[Predictor],
    lam: Predictor,
    comparison: Comparison,
    on_progress: Progress,
) -> tuple["LinkResult", str]:
    """Coded blocks with precoders from the last slot, the best classical prediction, the LAM, the truth.

    The best classical predictor is the best at the SNR measured nearest to ``csi_snr_db``; its name is
    returned too.
    """
    from airlam.tasks.link_level import evaluate_link, group_users

    nearest = min(comparison.scored, key=lambda snr: abs(snr - spec.link.csi_snr_db))
    best = comparison.best([predictor.name for predictor in classical], nearest)
    everyone: list[Predictor] = [*classical, lam]
    compared = [predictor for predictor in everyone if predictor.name in {"hold", best, LAM}]
    num_links = min(len(test), spec.link.num_drops * max(spec.link.num_users, dataset.spec.num_users))
    true, estimates = predict_links(compared, test, num_links, spec.link.csi_snr_db, on_progress)
    users_per_drop = dataset.spec.num_users

    def grouped(links: torch.Tensor) -> torch.Tensor:
        return group_users(links, spec.link.num_users, spec.training.seed, users_per_drop)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small arrays are loaded on purpose in small settings
        result = evaluate_link(
            grouped(true),
            {**{name: grouped(links) for name, links in estimates.items()}, GENIE: grouped(true)},
            spec.link,
            seed=spec.training.seed,
            on_progress=lambda share: on_progress("sending coded blocks", round(100 * share), 100, ""),
        )
    return result, best


def predict_links(
    predictors: Sequence[Predictor], test: DatasetLinks, num_links: int, snr_db: float, on_progress: Progress
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The true futures of the first test links, and what each predictor says of them."""
    true: list[torch.Tensor] = []
    estimates: dict[str, list[torch.Tensor]] = {predictor.name: [] for predictor in predictors}
    for start in range(0, num_links, BATCH_LINKS):
        clean = test.read(np.arange(start, min(start + BATCH_LINKS, num_links)))
        seen = observe(clean, test, snr_db, start)
        true.append(seen.future)
        for predictor in predictors:
            estimates[predictor.name].append(predictor.predict(seen.history, seen.noise_variance))
        on_progress("predicting for the link", min(start + BATCH_LINKS, num_links), num_links, "")
    return torch.cat(true), {name: torch.cat(parts) for name, parts in estimates.items()}


def training_rows(folder: Path) -> tuple[TrainingRow, ...]:
    """Losses of a run."""
    lines = read_metrics(folder / METRICS_FILE)
    return tuple(
        TrainingRow(
            step=int(line["step"]), train_loss=line["loss"], validation_loss=line.get("validation_loss")
        )
        for line in lines
    )


def network_rows(folder: Path) -> tuple[NetworkRow, ...]:
    """Of a run with a network; other runs have none."""
    together = summary_of(folder).get("federated", {})
    measure = together.get("measure", POOLED_NMSE)
    return tuple(
        NetworkRow(
            now_s=point["now_s"],
            uplink_bytes=point["uplink_bytes"],
            nmse=point["nmse"],
            measure=measure,
            sum_rate_bit_per_s_per_hz=point.get("sum_rate_bit_per_s_per_hz"),
        )
        for point in together.get("curve", [])
    )


def _cost_rows(folder: Path, comparison: Comparison) -> list[CostRow]:
    return training_costs(folder, "training, tokens made before") + [
        CostRow(method=name, quantity="prediction", value=1000 * seconds, unit="ms a link")
        for name, seconds in comparison.seconds_per_link.items()
    ]


def training_costs(folder: Path, training: str) -> list[CostRow]:
    """What a run's model took; training: what its seconds are of."""
    summary = summary_of(folder)
    amounts = [
        ("parameters", float(summary["num_parameters"]), ""),
        ("trainable parameters", float(summary["num_trainable"]), ""),
        ("trainable share", 100 * summary["trainable_share"], "%"),
        (training, summary["seconds"], "s"),
        ("training per sample", summary["flops_per_sample"] / 1e6, "MFLOP"),
        ("peak memory", summary["peak_memory_bytes"] / 2**20, "MiB"),
    ]
    together = summary.get("federated")
    if together is not None:
        amounts += [
            ("virtual time of the network", together["virtual_seconds"], "s"),
            ("sent up by devices", together["uplink_bytes"] / 2**20, "MiB"),
            ("sent down to devices", together["downlink_bytes"] / 2**20, "MiB"),
            ("energy of devices", together["energy_j"], "J"),
        ]
    return [CostRow(method=LAM, quantity=name, value=value, unit=unit) for name, value, unit in amounts]
