"""Rows and figures of beam selection, alike for measured and for ray-traced sweeps."""

from collections.abc import Mapping
from typing import Any

from airlam.bench.kept import as_dict
from airlam.radio.beam_selection import BeamScores, compare_loss, summarise_beams

LAM = "lam"  # the one that is compared with all others; names of further ones begin with it
METRICS = ("power_loss_db", "within_one", "top1", "top3")


def rows_of(setting: str, scores: Mapping[str, BeamScores], step: int) -> list[dict[str, Any]]:
    """A row a predictor and metric at one step ahead, with intervals over passes."""
    rows = []
    for name, each in scores.items():
        summary = summarise_beams(each, step)
        for metric in METRICS:
            rows.append(
                {
                    "setting": setting,
                    "predictor": name,
                    "kind": "lam" if name.startswith(LAM) else "classical",
                    "metric": metric,
                    **as_dict(getattr(summary, metric)),
                    "num_windows": summary.num_windows,
                    "num_passes": summary.num_passes,
                }
            )
    return rows


def figures_of(
    setting: str, rows: list[dict[str, Any]], scores: Mapping[str, BeamScores], step: int
) -> dict[str, float]:
    """``SETTING.[PREDICTOR.]METRIC`` of one step ahead, and the LAM's loss less the best classical one's."""
    figures = {}
    for row in rows:
        who = "" if row["predictor"] == LAM else f"{row['predictor']}."
        figures[f"{setting}.{who}{row['metric']}"] = row["value"]
    lost = {
        row["predictor"]: row["value"]
        for row in rows
        if row["metric"] == "power_loss_db" and row["kind"] == "classical"
    }
    best = min(lost, key=lambda name: lost[name])
    figures[f"{setting}.best_classical.power_loss_db"] = lost[best]
    return figures | difference_figures(f"{setting}.lam_minus_best_classical_db", scores, best, step)


def difference_figures(key: str, scores: Mapping[str, BeamScores], rival: str, step: int) -> dict[str, float]:
    """The LAM's power loss less a rival's, in dB, with its interval."""
    difference = compare_loss(scores[LAM], scores[rival], step)
    return {key: difference.value, f"{key}.low": difference.low, f"{key}.high": difference.high}
