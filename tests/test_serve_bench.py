"""The serving benchmark runs in small and gives the figures that it names."""

from airlam.bench import serve


def test_a_quick_run_gives_every_figure() -> None:
    result = serve.run(True, lambda *what: None)
    figures = result["figures"]
    assert figures["sustained.errors"] == 0 and figures["sustained.requests"] > 0
    assert (
        0 < figures["shared.memory_ratio"] < 1
        and figures["shared.services"] < figures["shared.modules_alone"]
    )
    assert 0 < figures["shared.tasks_memory_ratio"] < 1 and figures["shared.tasks_throughput_ratio"] > 0
    assert figures["noop_p50_ms"] > 0 and figures["besides_p50_ms"] > 0
    assert figures["shared.one_measurement_ratio"] > 0
    assert {"added_p50_ms", "batching_share_of_offline", "sustained.p99_ms"} <= set(figures)
    assert figures["shared.throughput_ratio"] > 0 and figures["served_per_s"] > 0
