"""The split benchmark runs, states its ratios, and its bytes are those of theory."""

from airlam.bench import split


def test_quick_run_states_the_ratio_and_counts_what_theory_says() -> None:
    result = split.run(quick=True, on_progress=lambda *_: None)
    figures = result["figures"]
    assert figures["bytes_error"] == 0
    assert figures["inprocess.step_ratio"] > 0 and figures["inprocess.step_s"] > 0
    precisions = [row for row in result["rows"] if "precision" in row]
    counted = {row["precision"]: row["counted_bytes"] for row in precisions}
    assert counted["int8"] < counted["bf16"] < counted["fp32"]
    assert result["settings"]["skipped"].keys() == {"ray"}
