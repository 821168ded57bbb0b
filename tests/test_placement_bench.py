"""The placement benchmark runs, names its figures, and tells methods apart on the same problems."""

import json
from pathlib import Path

import numpy as np
import pytest

from airlam.bench import placement, placement_learning, run_bench
from airlam.split.placement.tables import Tables


def quiet(*_: object) -> None:
    """No progress."""


def test_quick_run_states_every_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(tmp_path))
    result = run_bench("placement", quick=True, train=False, data=None, on_progress=quiet)
    figures = result["figures"]
    assert figures["diffusion_feasible"] == 1.0 and figures["instances"] == 2
    assert 0 < figures["on_time_rate"] <= 1 and 0 < figures["on_time_rate_best_baseline"] <= 1
    methods = {row["method"] for row in result["rows"] if row["kind"] == "method"}
    assert methods >= {"ours", "monolithic", "greedy", "random", "round_robin", "least_loaded"}
    for row in result["rows"]:
        if row["kind"] == "instance":
            assert row["bound_s"] <= row["heuristic_s"] * (1 + 1e-6) <= row["diffusion_s"] * (1 + 1e-3)
    json.dumps(result, allow_nan=False)
    # kept: the second run trains nothing
    kept, _ = placement_learning.placer(placement.QUICK.training, quiet)
    assert len(list((tmp_path / "placement").iterdir())) == 1
    assert all(not weight.isnan().any() for weight in kept.parameters())


def test_a_deadline_is_a_multiple_of_what_a_class_takes_alone() -> None:
    problem = placement.with_deadlines(placement.DRAWING.draw(np.random.default_rng(1)))
    for one in problem.classes:
        assert 0 < one.deadline_s < 10
    tables = Tables(problem)
    priced = tables.price(placement.greedy(tables)[None])
    deadlines = np.array([one.deadline_s for one in problem.classes])
    assert (priced.latency_s[0] > deadlines / placement._DEADLINE * 0.999).all()
