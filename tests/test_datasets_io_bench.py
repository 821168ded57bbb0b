"""The dataset-io benchmark runs and states its ratio."""

from airlam.bench import dataset_io


def test_quick_run_states_the_ratio() -> None:
    result = dataset_io.run(quick=True)
    assert result["bench"] == "dataset-io" and len(result["rows"]) == result["settings"]["repeats"]
    figures = result["figures"]
    assert figures["ratio_to_raw_read"] == figures["batches_mb_per_s"] / figures["raw_mb_per_s"] > 0
