"""Sum rate of the graph precoder against linear precoders, WMMSE and the dirty-paper bound; perfect channels.

Numbers of users and antennas that no training sample had stand under ``unseen``. One set of weights serves
all rows, with the backbone and without. Times are the processor's for one thread and the best of some turns,
since whatever else runs can only add to them: precoders of 64 drops, from channels to W.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from airlam.bench.beamforming.settings import (
    BEST,
    NOISE_VARIANCE,
    REFERENCE,
    SEEN,
    UNSEEN,
    Scale,
    downlink_channels,
)
from airlam.bench.kept import as_dict
from airlam.bench.timing import best_times_ms
from airlam.model.graph_precoder import GraphPrecoder
from airlam.radio.beamforming import Cells, dirty_paper_bound, multicell_wmmse, wmmse
from airlam.radio.metrics import mean_interval
from airlam.radio.precoding import (
    maximum_ratio,
    regularized_zero_forcing,
    sum_rate_bit_per_s_per_hz,
    zero_forcing,
)
from airlam.tasks.channel_prediction import Progress

TIMED_DROPS = 64


def run_sum_rates(
    scale: Scale, precoders: Mapping[str, GraphPrecoder], on_progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and figures."""
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    settings = SEEN | UNSEEN
    for number, (setting, (model, num_users, array)) in enumerate(settings.items()):
        on_progress("sum rates", number, len(settings), setting)
        h = downlink_channels(model, num_users, array, scale.test_drops, seed=7000 + number)
        rates = rates_of(h, precoders)
        rows += [_row(setting, name, found, rates) for name, found in rates.items()]
        for name in precoders:
            share = mean_interval(rates[name], rates[REFERENCE]).value
            key = f"{setting}.share_of_wmmse100"
            figures[key if name == BEST else f"{setting}.{name}.share_of_wmmse100"] = share
    figures["unseen.share_of_wmmse100"] = min(figures[f"{name}.share_of_wmmse100"] for name in UNSEEN)
    for setting, (model, num_users, array) in SEEN.items():
        h = downlink_channels(model, num_users, array, TIMED_DROPS, seed=6999)
        times = times_ms(h, precoders, scale.repeats)
        rows.append({"setting": setting, "batch": TIMED_DROPS, "times_ms": times})
        for name in precoders:
            prefix = setting if name == BEST else f"{setting}.{name}"
            figures[f"{prefix}.speedup_vs_wmmse100"] = times[REFERENCE] / times[name]
            figures[f"{prefix}.speedup_vs_searched_wmmse100"] = times["wmmse_100_searched"] / times[name]
    return rows, figures


def rates_of(h: torch.Tensor, precoders: Mapping[str, GraphPrecoder]) -> dict[str, torch.Tensor]:
    """Sum rate of each drop by method, bit/s/Hz: float32 [drops] each."""
    found = {
        "mrt": maximum_ratio(h),
        "zf": zero_forcing(h) if h.shape[1] <= h.shape[2] else None,
        "rzf": regularized_zero_forcing(h, NOISE_VARIANCE),
        "wmmse_5": wmmse(h, NOISE_VARIANCE, num_iterations=5),
        REFERENCE: wmmse(h, NOISE_VARIANCE, num_iterations=100),
    }
    noise = torch.full((len(h),), NOISE_VARIANCE)
    with torch.no_grad():
        found |= {name: precoder.precode(h, noise) for name, precoder in precoders.items()}
    rates = {
        name: sum_rate_bit_per_s_per_hz(h, w, NOISE_VARIANCE) for name, w in found.items() if w is not None
    }
    return rates | {"dirty_paper_bound": dirty_paper_bound(h, NOISE_VARIANCE, 1.0)}


def times_ms(h: torch.Tensor, precoders: Mapping[str, GraphPrecoder], repeats: int) -> dict[str, float]:
    """From channels to W, processor time of one thread, best turn: milliseconds for all drops together.

    ``wmmse_100_searched`` searches the power's multiplier in every iteration, as the published
    algorithm does, but is of the code for many cells and user antennas, which costs it time of its own.
    """
    noise = torch.full((len(h),), NOISE_VARIANCE)
    cells = Cells(
        h=h[:, None, :, None, :],
        serving_index=torch.zeros(h.shape[1], dtype=torch.long),
        noise_variance=torch.tensor(NOISE_VARIANCE),
        station_power=torch.tensor(1.0),
    )
    work: dict[str, Callable[[], object]] = {
        name: partial(precoder.precode, h, noise) for name, precoder in precoders.items()
    }
    work |= {
        "rzf": lambda: regularized_zero_forcing(h, NOISE_VARIANCE),
        "wmmse_5": lambda: wmmse(h, NOISE_VARIANCE, num_iterations=5),
        REFERENCE: lambda: wmmse(h, NOISE_VARIANCE, num_iterations=100),
        "wmmse_100_searched": lambda: multicell_wmmse(cells, num_iterations=100),
    }
    return best_times_ms(work, repeats)


def _row(setting: str, name: str, found: torch.Tensor, rates: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "setting": setting,
        "method": name,
        "drops": len(found),
        "sum_rate_bit_per_s_per_hz": float(found.mean()),
        "share_of_wmmse100": as_dict(mean_interval(found, rates[REFERENCE])),
    }
