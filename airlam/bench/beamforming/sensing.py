"""Sum rate against illumination of targets: learned precoder, alternating optimisation, projections, splits.

The sum rates' setting, 16 antennas and 8 users, with one target or two in front of the array, each to get the
same share of the most that all can have at once, which is total power times antennas for one. One set of
weights serves all shares, none included, and numbers of users, antennas and targets that it was not trained
on (``unseen``). All methods know the channels and the targets' directions.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from airlam.bench.beamforming.sensing_training import SensingScale, draw_targets, trained_sensing_precoder
from airlam.bench.beamforming.settings import NOISE_VARIANCE, Case, downlink_channels
from airlam.bench.beamforming.sumrate import TIMED_DROPS
from airlam.bench.kept import as_dict
from airlam.bench.timing import best_times_ms
from airlam.model.graph_precoder import GraphPrecoder
from airlam.model.sensing_precoder import SensingPrecoder
from airlam.radio.beamforming import wmmse
from airlam.radio.isac.beam import full_power_beam, largest_illumination
from airlam.radio.isac.illumination import beam_share, illuminate, illumination_of, with_sensing_stream
from airlam.radio.isac.wmmse import sensing_wmmse
from airlam.radio.metrics import mean_interval
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.specs import ArraySpec, PrecoderSpec, TrainingSpec
from airlam.tasks.channel_prediction import Progress

SHARES = (0.0, 0.1, 0.2, 0.4, 0.6)
REFERENCE, LEARNED, PLAIN = "alternating_100", "graph_sensing", "graph"
_ITERATIONS = (1, 5, 100)
_TIMED_SHARE = 0.4
SEEN: dict[str, tuple[Case, int]] = {
    "n16k8_1target": (("uma", 8, (2, 8)), 1),
    "n16k8_2targets": (("uma", 8, (2, 8)), 2),
}
UNSEEN: dict[str, tuple[Case, int]] = {  # four targets, too, no training sample has
    "unseen_n24k9_1target": (("uma", 9, (3, 8)), 1),
    "unseen_n12k5_umi_2targets": (("umi", 5, (2, 6)), 2),
    "unseen_n40k20_4targets": (("uma", 20, (5, 8)), 4),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Downlinks with targets: complex64 [drops, num_users or num_targets, num_bs_ant].

    illumination: asked of each target, float32 [drops, num_targets], ``share`` of the most.
    """

    setting: str
    share: float
    h: torch.Tensor
    targets: torch.Tensor
    illumination: torch.Tensor


FULL = SensingScale(
    name="full",
    pool_drops=1500,
    num_groups=40,
    group_size=1024,
    most_targets=3,
    test_drops=400,
    repeats=15,
    spec=PrecoderSpec(num_stages=3),
    training=TrainingSpec(
        num_steps=3000,
        batch_size=128,
        learning_rate=5e-3,
        weight_decay=1e-3,
        validation_every_steps=500,
        checkpoint_every_steps=2000,
        patience=100,
    ),
)
QUICK = dataclasses.replace(
    FULL,
    name="quick",
    pool_drops=4,
    num_groups=4,
    group_size=8,
    test_drops=4,
    repeats=1,
    training=TrainingSpec(
        num_steps=4, batch_size=4, learning_rate=1e-3, validation_every_steps=4, checkpoint_every_steps=4
    ),
)


def run_sensing(
    scale: SensingScale, on_progress: Progress, plain: GraphPrecoder | None = None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and figures; plain: the precoder without targets, to compare with where nothing is asked."""
    precoder = trained_sensing_precoder(scale, on_progress)
    rows: list[dict[str, Any]] = []
    shares: dict[tuple[str, float], dict[str, float]] = {}
    cells = [(name, share) for name in SEEN | UNSEEN for share in SHARES]
    for number, (setting, share) in enumerate(cells):
        on_progress("rates with targets", number, len(cells), setting)
        cell = drawn_cell(setting, share, scale.test_drops)
        unlit = wmmse(cell.h, NOISE_VARIANCE, num_iterations=100)
        found = _precoders(cell, unlit, precoder, plain)
        rates = {name: _rate(cell.h, w) for name, w in found.items()}
        if share > 0:
            rates["time_split"] = _time_split(cell, unlit)
        rows += [_row(cell, name, rates, found.get(name)) for name in rates]
        shares[setting, share] = {
            name: mean_interval(rate, rates[REFERENCE]).value for name, rate in rates.items()
        }
    on_progress("rates with targets", len(cells), len(cells), "")
    times = _times_ms(drawn_cell("n16k8_1target", _TIMED_SHARE, TIMED_DROPS), precoder, scale.repeats)
    rows.append({"setting": "n16k8_1target", "share": _TIMED_SHARE, "batch": TIMED_DROPS, "times_ms": times})
    return rows, _figures(rows, shares, times)


def drawn_cell(setting: str, share: float, num_drops: int) -> Cell:
    """The same channels and targets for every share."""
    settings = SEEN | UNSEEN
    (model, num_users, (num_rows, num_cols)), num_targets = settings[setting]
    seed = 9000 + 2 * list(settings).index(setting)
    h = downlink_channels(model, num_users, (num_rows, num_cols), num_drops, seed)
    array = ArraySpec(num_rows=num_rows, num_cols=num_cols)
    targets = draw_targets(array, num_drops, num_targets, seed + 1)
    most = largest_illumination(targets)[:, None].expand(-1, num_targets)  # [drops, num_targets]
    return Cell(setting=setting, share=share, h=h, targets=targets, illumination=(share * most).float())


def _precoders(
    cell: Cell, unlit: torch.Tensor, precoder: SensingPrecoder, plain: GraphPrecoder | None
) -> dict[str, torch.Tensor]:
    """Of one precoder a drop: complex64 [drops, num_bs_ant, num_streams] each.

    unlit: WMMSE's for users alone.
    """
    h, targets, illumination = cell.h, cell.targets, cell.illumination
    rzf = regularized_zero_forcing(h, NOISE_VARIANCE)
    found = {
        "rzf_projected": illuminate(rzf, targets, illumination),
        "wmmse_100_projected": illuminate(unlit, targets, illumination),
    }
    found |= {
        f"alternating_{count}": sensing_wmmse(h, targets, illumination, NOISE_VARIANCE, num_iterations=count)
        for count in _ITERATIONS
    }
    noise = torch.full((len(h),), NOISE_VARIANCE)
    with torch.no_grad():
        found[LEARNED] = precoder.precode(h, targets, illumination, noise)
        if plain is not None and cell.share == 0:
            found[PLAIN] = plain.precode(h, noise)
    if cell.share > 0:
        beam = full_power_beam(targets, illumination, 1.0, h.shape[1])
        found["power_split"] = with_sensing_stream(unlit, beam, targets, illumination)
    return found


def _time_split(cell: Cell, unlit: torch.Tensor) -> torch.Tensor:
    """Sum rate of each drop where the beam has the time that illumination takes, ``unlit`` the rest:
    float32 [drops].
    """
    beam = full_power_beam(cell.targets, cell.illumination, 1.0, cell.h.shape[1])
    return (1 - beam_share(unlit, beam, cell.targets, cell.illumination)) * _rate(cell.h, unlit)


def _rate(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """A stream more than there are users is that of a user that hears nothing."""
    silent = h.new_zeros(len(h), w.shape[-1] - h.shape[1], h.shape[-1])
    return sum_rate_bit_per_s_per_hz(torch.cat([h, silent], dim=1), w, NOISE_VARIANCE)


def _times_ms(cell: Cell, precoder: SensingPrecoder, repeats: int) -> dict[str, float]:
    """Of all drops together, from channels and targets to W: one thread's processor time, the best turn."""
    h, targets, illumination = cell.h, cell.targets, cell.illumination
    noise = torch.full((len(h),), NOISE_VARIANCE)

    def projected() -> torch.Tensor:
        return illuminate(wmmse(h, NOISE_VARIANCE, num_iterations=100), targets, illumination)

    work: dict[str, Callable[[], object]] = {
        LEARNED: lambda: precoder.precode(h, targets, illumination, noise),
        "wmmse_100_projected": projected,
    }
    for count in _ITERATIONS:
        work[f"alternating_{count}"] = partial(
            sensing_wmmse, h, targets, illumination, NOISE_VARIANCE, num_iterations=count
        )
    return best_times_ms(work, repeats)


def _row(cell: Cell, name: str, rates: dict[str, torch.Tensor], w: torch.Tensor | None) -> dict[str, Any]:
    row = {
        "setting": cell.setting,
        "share_of_most_illumination": cell.share,
        "method": name,
        "drops": len(rates[name]),
        "sum_rate_bit_per_s_per_hz": float(rates[name].mean()),
        "share_of_alternating": as_dict(mean_interval(rates[name], rates[REFERENCE])),
    }
    if w is not None and cell.share > 0:
        over = illumination_of(cell.targets, w) / cell.illumination
        row["least_illumination_over_required"] = float(over.min())
    return row


def _figures(
    rows: list[dict[str, Any]], shares: dict[tuple[str, float], dict[str, float]], times: dict[str, float]
) -> dict[str, float]:
    """Worst of the cells, each by the means over its drops."""

    def worst(settings: dict[str, Any], name: str = LEARNED) -> float:
        return min(found[name] for (setting, _), found in shares.items() if setting in settings)

    lit = [row for row in rows if row.get("method") == LEARNED and "least_illumination_over_required" in row]
    projections = ("rzf_projected", "wmmse_100_projected", "power_split", "time_split")
    figures = {
        "sensing.share_of_alternating": worst(SEEN),
        "sensing.unseen_share_of_alternating": worst(UNSEEN),
        "sensing.alternating_5_share_of_alternating": worst(SEEN, "alternating_5"),
        "sensing.least_gain_over_projections": min(
            found[LEARNED] / max(found[name] for name in projections if name in found) - 1
            for found in shares.values()
        ),
        "sensing.least_illumination_over_required": min(
            row["least_illumination_over_required"] for row in lit
        ),
        "sensing.speedup_vs_alternating": times[REFERENCE] / times[LEARNED],
        "sensing.speedup_vs_alternating_5": times["alternating_5"] / times[LEARNED],
    }
    unasked = [found[LEARNED] / found[PLAIN] for found in shares.values() if PLAIN in found]
    return figures | ({"sensing.share_of_plain_graph_unasked": min(unasked)} if unasked else {})
