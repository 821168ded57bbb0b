"""Beamforming: precoders from perfect, piloted and predicted channels, and beams chosen from sensors."""

from pathlib import Path
from typing import Any

from airlam.bench import prediction
from airlam.bench.beamforming import deepsense, pilots, sumrate
from airlam.bench.beamforming.foreign import FILE, gcnwmmse_figures
from airlam.tasks.channel_prediction import Progress

_WMMSE_ITERATIONS = 100
_PREDICTED = "sumrate"  # of the prediction benchmark: four users, 32 antennas, 60 km/h, RZF


def run(*, quick: bool, data: Path | None, on_progress: Progress) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine.

    data: a folder with a user's copy of GCN-WMMSE's example, of DeepSense arrays in ``deepsense/``, or both;
    without it these parts are left out. The graph precoder that the cache lacks is trained first.
    ``SETTING.share_of_wmmse100``, ``SETTING.speedup_vs_wmmse100`` and the others are of the graph precoder
    alone (``sumrate.BEST``), ``SETTING.graph_lam...`` of the one with a backbone.
    """
    scale = sumrate.QUICK if quick else sumrate.FULL
    precoders = {name: sumrate.trained_precoder(name, scale, on_progress) for name in sumrate.PRECODERS}
    rows, figures = sumrate.run_sum_rates(scale, precoders, on_progress)
    more, gains = pilots.run_pilots(pilots.QUICK if quick else pilots.FULL, precoders, on_progress)
    rows, figures = rows + more, figures | gains
    skipped: dict[str, str] = {}
    if quick:
        skipped["predicted_60kmh"] = "a quick run has no tuned LAM to predict with"
    else:
        predicted = prediction.run(
            quick=False, train=False, data=None, only=(_PREDICTED,), peers=False, on_progress=on_progress
        )
        rows, figures = rows + predicted["rows"], figures | _predicted_figures(predicted["figures"])
    if data is not None and (data / FILE).exists():
        figures |= gcnwmmse_figures(data / FILE, _WMMSE_ITERATIONS)
    else:
        skipped["gcnwmmse"] = f"--data names no folder with {FILE}"
    if data is not None and (data / "deepsense").is_dir():
        selected = deepsense.run(data / "deepsense", quick, on_progress)
        rows, figures = rows + selected["rows"], figures | selected["figures"]
    else:
        skipped["deepsense"] = "--data names no folder with deepsense/"
    return {
        "settings": {"test_drops": scale.test_drops, "skipped": skipped},
        "figures": figures,
        "rows": rows,
    }


def _predicted_figures(found: dict[str, float]) -> dict[str, float]:
    """``predicted_60kmh.sum_rate`` on the LAM's predictions, and on others'."""
    names = {"sum_rate": "lam", "best_classical": "best_classical", "stale": "hold", "perfect": "genie"}
    return {f"predicted_60kmh.{ours}": found[f"sumrate_60kmh.{theirs}"] for ours, theirs in names.items()}
