"""The synthesis benchmark: its settings, arithmetic, what its workers measure, and the figures it names."""

import pytest

from airlam.bench import synthesis
from airlam.bench.synthesis import QUICK, Crew, flop, settings

NAMED = {"cdl_c.speedup", "uma.speedup", "large.speedup", "max_relative_error", "cdl_c.peak_memory_ratio"}


def test_settings_are_the_sizes_named() -> None:
    sizes = {
        name: (spec.base_station.num_ports, spec.grid.num_subcarriers, spec.grid.num_slots)
        for name, spec in settings().items()
    }
    assert sizes == {"cdl_c": (32, 96, 20), "uma": (32, 96, 20), "large": (64, 273, 20)}


def test_flop_counts_both_products() -> None:
    found = settings()
    assert flop(found["cdl_c"]) == 8 * 32 * 20 * (480 + 24 * 96)  # 24 clusters of 20 rays
    assert flop(found["uma"]) == 8 * 32 * 20 * (400 + 24 * 96)  # 20 clusters and 4 sub-clusters


@pytest.mark.parametrize("engine", synthesis.ENGINES)
def test_a_worker_measures_rates(engine: str) -> None:
    assert synthesis._rate(settings()["uma"], engine, 2, 0.01) > 0


def test_a_fresh_worker_measures_memory() -> None:
    """The channels themselves, at least."""
    with Crew(1) as crew:
        assert crew.one("memory", settings()["uma"], "airlam", 32) > 32 * (32 * 20 * 96 * 8)


def test_a_worker_measures_stages_and_errors() -> None:
    spec = settings()["cdl_c"]
    stages = synthesis._stages(spec, 4, 0.05)
    assert stages["ray sum"] > stages["of which paths into subcarriers"] > 0
    to_sionna, to_double, sionnas = synthesis._errors(spec, 2)
    assert 0 < to_sionna < 1e-5 and 0 < to_double <= sionnas + 1e-6


def test_repeating_stops_after_the_time_and_changes_the_number() -> None:
    seen: list[int] = []
    calls, elapsed = synthesis._repeat(seen.append, 0.05)
    assert elapsed >= 0.05 and seen == list(range(calls + 1))
    assert synthesis._repeat(seen.append, 0.0)[0] == 1


def test_a_run_names_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed is what was measured."""
    monkeypatch.setattr(synthesis, "num_cores", lambda: 1)
    monkeypatch.setattr(synthesis, "Crew", InProcess)
    result = synthesis.run(True, lambda *_: None)
    figures = result["figures"]
    assert {*NAMED, "cdl_c.share_of_sgemm"} <= set(figures)
    assert result["settings"]["batches"] == QUICK.batches and result["settings"]["workers"] == 1
    rates = [row for row in result["rows"] if row["setting"] == "uma" and row.get("engine") == "sionna"]
    assert figures["uma.sionna_drops_per_s"] == max(row["drops_per_s"] for row in rates)
    ratio = figures["uma.drops_per_s"] / figures["uma.sionna_drops_per_s"]
    assert figures["uma.speedup"] == pytest.approx(ratio)


class InProcess:
    """A crew of one that does its tasks here, where memory cannot be told apart."""

    def __init__(self, size: int) -> None:
        assert size == 1

    def one(self, task: str, *arguments: object) -> object:
        if task == "memory":
            return 1e6
        return getattr(synthesis, {"sgemm": "_sgemm_gflop_per_s"}.get(task, f"_{task}"))(*arguments)

    def all(self, task: str, *arguments: object) -> list[object]:
        return [self.one(task, *arguments)]

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def test_a_crew_works_side_by_side_and_tells_of_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with Crew(2) as crew:
        rates = crew.all("sgemm", 0.01)
        assert len(rates) == 2 and min(rates) > 0.1
        with pytest.raises(RuntimeError, match="a worker failed at 'nothing'"):
            crew.one("nothing")
    assert "KeyError" in capfd.readouterr().err
