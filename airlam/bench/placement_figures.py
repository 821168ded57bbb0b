"""What the placement benchmark reads off its rows: figures by name, and a row of each method and setting."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from airlam.bench.kept import as_dict
from airlam.bench.placement_serving import HARSH, OURS
from airlam.radio.metrics import mean_interval

Rows = Sequence[dict[str, Any]]


def _of_kind(rows: Rows, kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind]


def ratio_figures(rows: Rows) -> dict[str, float]:
    """Who placed how many of the drawn problems, and how far from the proven optimum."""
    instances = _of_kind(rows, "instance")
    proven = [row for row in instances if row["is_proven"]]
    figures = {
        "instances": float(len(instances)),
        "infeasible": float(len(_of_kind(rows, "infeasible"))),
        "undecided": float(len(_of_kind(rows, "undecided"))),
        "proven": float(len(proven)),
    }
    for method in ("heuristic", "diffusion", "random"):
        placed = [float(row[f"{method}_s"] is not None) for row in instances]
        figures[f"{method}_feasible"] = statistics.mean(placed)
        ratios = [row[f"{method}_s"] / row["exact_s"] for row in proven if row[f"{method}_s"] is not None]
        if ratios:
            figures[f"{method}_over_exact"] = statistics.mean(ratios)
            figures[f"{method}_over_exact.worst"] = max(ratios)
    return figures


def served_figures(rows: Rows) -> dict[str, float]:
    """On-time rates of every method, under steady conditions and under harsh ones."""
    instances = _of_kind(rows, "instance")
    figures = {}
    for name in instances[0]["on_time_rate"]:
        key = f"simulated.{name}.on_time_rate"
        figures[key] = statistics.mean(row["on_time_rate"][name] for row in instances)
        figures[f"{key}_{HARSH}"] = statistics.mean(row[HARSH]["on_time_rate"][name] for row in instances)
    return figures


def large_figures(rows: Rows) -> dict[str, float]:
    """Over the problems of which a bound is known; none without any."""
    over = [row["over_bound"] for row in _of_kind(rows, "large") if row["over_bound"] is not None]
    if not over:
        return {}
    return {
        "large.heuristic_over_bound": statistics.mean(over),
        "large.draws": float(len(over)),
        "large.skipped": float(_skipped(rows)),
    }


def tier_figures(rows: Rows) -> dict[str, float]:
    """At the loads of their table without a suffix; ``.load6``: six times as many requests."""
    figures: dict[str, float] = {}
    for load in sorted({row["load"] for row in rows}):
        here = [row for row in rows if row["load"] == load]
        part = _of_kind(here, "tiers")
        suffix = "" if load == 1 else f".load{load:g}"
        means = {name: _mean(part, "on_time_rate", name) for name in part[0]["on_time_rate"]}
        baselines = [name for name in means if not name.startswith(OURS)]
        best = max(baselines, key=lambda name: means[name])
        figures |= {
            f"on_time_rate{suffix}": means[OURS],
            f"on_time_rate_best_baseline{suffix}": means[best],
            f"on_time_rate_by_mean{suffix}": means["ours_by_mean"],
            f"on_time_rate_access_bound{suffix}": statistics.mean(row["access_bound"] for row in part),
            f"cost{suffix}": _mean(part, "cost", OURS),
            f"cost_best_baseline{suffix}": _mean(part, "cost", best),
            f"two_tiers.draws{suffix}": float(len(part)),
            f"two_tiers.skipped{suffix}": float(_skipped(here)),
        }
    return figures


def _skipped(rows: Rows) -> int:
    return len(_of_kind(rows, "skipped"))


def _mean(rows: Rows, what: str, name: str) -> float:
    return statistics.mean(float(row[what][name]) for row in rows)


def method_rows(drawn: Rows, tiers: Rows) -> list[dict[str, Any]]:
    """Each method's on-time rate and geometric mean latency over problems, with 95 % intervals.

    ours_ahead: what ours has more of on-time rate on the same problems.
    """
    instances = _of_kind(drawn, "instance")
    parts = {"drawn": instances, f"drawn.{HARSH}": [row[HARSH] for row in instances]}
    for load in sorted({row["load"] for row in tiers}):
        here = [row for row in tiers if row["load"] == load]
        parts[f"two_tiers.load{load:g}"] = _of_kind(here, "tiers")
    return [
        {"kind": "method", "setting": setting, "method": name, **_of_method(part, name)}
        for setting, part in parts.items()
        for name in part[0]["on_time_rate"]
    ]


def _of_method(rows: Rows, name: str) -> dict[str, Any]:
    on_time, ours, latency_ms = (
        torch.tensor([row[what][who] for row in rows], dtype=torch.float64)
        for what, who in (("on_time_rate", name), ("on_time_rate", OURS), ("latency_ms", name))
    )
    latency = as_dict(mean_interval(latency_ms.log()))
    return {
        "on_time_rate": as_dict(mean_interval(on_time)),
        "ours_ahead": as_dict(mean_interval(ours - on_time)),
        "latency_ms": {key: float(torch.tensor(value).exp()) for key, value in latency.items()},
    }
