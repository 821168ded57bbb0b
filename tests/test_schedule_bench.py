"""The scheduling benchmark names its figures, and says what it lacks."""

import sys

import pytest

from airlam.bench import run_bench, schedule
from airlam.errors import SpecError


def quiet(*_: object) -> None:
    """No progress."""


def test_figures_and_gap() -> None:
    pytest.importorskip("cvxpy")
    result = run_bench("schedule", quick=True, train=False, data=None, on_progress=quiet)
    figures = result["figures"]
    assert figures["k20.objective_gap"] < 1e-6 and figures["k20.priced_objective_gap"] < 1e-6
    assert figures["k20.speedup_vs_cvxpy"] > 1 and figures["k20.clarabel_failures"] == 0
    assert figures["k20.certified_gap"] < 1e-11
    assert figures["k20.speedup_vs_cvxpy"] == figures["k20.cvxpy_ms"] / figures["k20.solve_ms"]
    assert len(result["rows"]) == 3


def test_what_clarabel_did_not_solve_is_counted_and_left_out() -> None:
    row = {name: 2.0 for name in ("solve_ms", "round_ms", "cvxpy_ms", "clarabel_ms", "objective_gap")}
    failed = {**row, "solve_ms": 4.0, "cvxpy_ms": None, "clarabel_ms": None, "objective_gap": None}
    rows = [{**r, "priced_objective_gap": None, "certified_gap": 1e-14} for r in (row, row, failed)]
    figures = schedule._figures(rows)
    assert figures["clarabel_failures"] == 1 and figures["objective_gap"] == 2.0
    assert figures["cvxpy_ms"] == 2.0 and "priced_objective_gap" not in figures


def test_without_cvxpy_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(SpecError, match=r"pip install 'airlam\[bench\]'"):
        run_bench("schedule", quick=True, train=False, data=None, on_progress=quiet)
    with pytest.raises(SpecError, match="schedule does not take --train; drop it"):
        run_bench("schedule", quick=True, train=True, data=None, on_progress=quiet)
