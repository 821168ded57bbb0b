"""Beamforming: precoders from perfect, piloted and predicted channels, and beams chosen from sensors."""

from pathlib import Path
from typing import Any

from airlam.bench.beamforming import (
    deepsense,
    pilots,
    predicted,
    raytraced,
    ris,
    ris_guo,
    sensing,
    settings,
    sumrate,
)
from airlam.bench.beamforming.foreign import FILE, gcnwmmse_figures
from airlam.bench.beamforming.training import trained_precoder
from airlam.llvm import LLVM_REMEDY, good_llvm
from airlam.tasks.channel_prediction import Progress

_WMMSE_ITERATIONS = 100


def run(*, quick: bool, data: Path | None, on_progress: Progress) -> dict[str, Any]:
    """The benchmark's JSON object, without the machine.

    data: a folder with a user's copy of GCN-WMMSE's example, of Guo et al.'s channels, of DeepSense arrays in
    ``deepsense/``, or several; without it these parts are left out. Precoders that the cache lacks are
    trained first; channels are predicted by the LAM of the prediction benchmark, as it ships.
    ``SETTING.share_of_wmmse100``, ``SETTING.speedup_vs_wmmse100`` and the others are of the graph precoder
    alone (``settings.BEST``), ``SETTING.graph_lam...`` of the one with a backbone.
    """
    scale = settings.QUICK if quick else settings.FULL
    precoders = {name: trained_precoder(name, scale, on_progress) for name in settings.PRECODERS}
    rows, figures = sumrate.run_sum_rates(scale, precoders, on_progress)
    more, gains = pilots.run_pilots(pilots.QUICK if quick else pilots.FULL, precoders, on_progress)
    rows, figures = rows + more, figures | gains
    more, gains = predicted.run_predicted(
        predicted.QUICK if quick else predicted.FULL, precoders[settings.GRAPH], on_progress
    )
    rows, figures = rows + more, figures | gains
    more, gains = sensing.run_sensing(
        sensing.QUICK if quick else sensing.FULL, on_progress, precoders[settings.GRAPH]
    )
    rows, figures = rows + more, figures | gains
    more, gains = ris.run_ris(ris.QUICK if quick else ris.FULL, precoders[settings.GRAPH], on_progress)
    rows, figures = rows + more, figures | gains
    skipped: dict[str, str] = {}
    if data is not None and (data / FILE).exists():
        figures |= gcnwmmse_figures(data / FILE, _WMMSE_ITERATIONS)
    else:
        skipped["gcnwmmse"] = f"--data names no folder with {FILE}"
    if data is not None and (data / ris_guo.FILE).exists():
        figures |= ris_guo.guo_figures(data / ris_guo.FILE, ris_guo.NUM_ITERATIONS)
    else:
        skipped["ris_guo"] = f"--data names no folder with {ris_guo.FILE}"
    if data is not None and (data / "deepsense").is_dir():
        selected = deepsense.run(data / "deepsense", quick, on_progress)
        rows, figures = rows + selected["rows"], figures | selected["figures"]
    else:
        skipped["deepsense"] = "--data names no folder with deepsense/"
    if good_llvm() is None:
        skipped["raytraced"] = f"ray tracing needs LLVM; {LLVM_REMEDY}"
    elif quick:
        skipped["raytraced"] = "ray tracing takes longer than --quick allows"
    else:
        selected = raytraced.run(quick=False, on_progress=on_progress)
        rows, figures = rows + selected["rows"], figures | selected["figures"]
    return {
        "settings": {"test_drops": scale.test_drops, "skipped": skipped},
        "figures": figures,
        "rows": rows,
    }
