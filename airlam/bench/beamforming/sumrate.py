"""Sum rate of the graph precoder against linear precoders, WMMSE and the dirty-paper bound; perfect channels.

Sionna UMa without line of sight, users all round a base station of 38.901 elements, each at unit mean power,
0 dBW over -10 dBW: the peers' setting as far as it is told, geometry and array being a reconstruction.
Numbers of users and antennas that no training sample had stand under ``unseen``. One set of weights serves
all rows, with the backbone and without. Times are of one thread, precoders of 64 drops, from channels to W.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from airlam.bench.kept import as_dict, digest
from airlam.bench.trained import cache_folder
from airlam.files import whole_file, write_json
from airlam.model.graph_precoder import GraphPrecoder, build_precoder
from airlam.model.lam import count_parameters
from airlam.model.storage import assign_tensors, read_tensors, trainable_tensors, write_tensors
from airlam.radio.beamforming import Cells, dirty_paper_bound, multicell_wmmse, wmmse
from airlam.radio.metrics import QUANTILES, Interval
from airlam.radio.precoding import (
    maximum_ratio,
    regularized_zero_forcing,
    sum_rate_bit_per_s_per_hz,
    zero_forcing,
)
from airlam.specs import ChannelModel, ModelSpec, PlacementSpec, PrecoderSpec, TrainingSpec, spec_to_dict
from airlam.tasks.beamforming import (
    DownlinkSamples,
    UserChannels,
    downlink_spec,
    draw_users,
    tune_precoder,
    unit_power,
)
from airlam.tasks.channel_prediction import Progress

NOISE_VARIANCE = 0.1
ALL_ROUND = PlacementSpec(
    user_center_m=(0.0, 0.0), min_radius_m=35.0, max_radius_m=250.0, arc_deg=(-180.0, 180.0)
)
GRAPH, GRAPH_LAM, REFERENCE = "graph", "graph_lam", "wmmse_100"
BEST = GRAPH
TIMED_DROPS = 64
PRECODERS: dict[str, PrecoderSpec] = {
    GRAPH: PrecoderSpec(),
    GRAPH_LAM: PrecoderSpec(backbone=ModelSpec(backbone="airlam", num_layers=2, lora_rank=4)),
}
Case = tuple[ChannelModel, int, tuple[int, int]]  # model, users, rows and columns of the array
SEEN: dict[str, Case] = {"n16k8": ("uma", 8, (2, 8)), "n16k16": ("uma", 16, (2, 8))}
UNSEEN: dict[str, Case] = {  # numbers of users and of antennas that no training sample has
    "unseen_n24k9": ("uma", 9, (3, 8)),
    "unseen_n40k20": ("uma", 20, (5, 8)),
    "unseen_n12k5_umi": ("umi", 5, (2, 6)),
    "unseen_n128k24_umi": ("umi", 24, (8, 16)),
}
TRAINED_USERS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of a run. num_groups: pairs of a number of users and an array in training."""

    name: str
    pool_drops: int
    num_groups: int
    group_size: int
    imitation_steps: int
    training: TrainingSpec
    test_drops: int
    repeats: int


FULL = Scale(
    name="full",
    pool_drops=1500,
    num_groups=120,
    group_size=1024,
    imitation_steps=300,
    training=TrainingSpec(
        num_steps=3000,
        batch_size=128,
        learning_rate=3e-3,
        weight_decay=1e-3,
        validation_every_steps=500,
        checkpoint_every_steps=500,
        patience=100,
    ),
    test_drops=400,
    repeats=9,
)
QUICK = Scale(
    name="quick",
    pool_drops=4,
    num_groups=4,
    group_size=8,
    imitation_steps=2,
    training=TrainingSpec(
        num_steps=4, batch_size=4, learning_rate=1e-3, validation_every_steps=4, checkpoint_every_steps=4
    ),
    test_drops=4,
    repeats=1,
)


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
            share = share_of(rates[name], rates[REFERENCE]).value
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


def trained_precoder(name: str, scale: Scale, on_progress: Progress) -> GraphPrecoder:
    """From the cache, where everything that decides it is the same; else trained into it."""
    spec = PRECODERS[name]
    precoder = build_precoder(spec, seed=scale.training.seed)
    folder = cache_folder() / "beamforming" / scale.name
    key = digest(spec_to_dict(spec), spec_to_dict(scale.training), _data_key(scale))
    note, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    if note.exists() and json.loads(note.read_text()).get("key") == key:
        assign_tensors(trainable_tensors(precoder), read_tensors(weights), str(weights))
        return precoder.eval()
    samples, validation = _samples(scale)
    began = time.monotonic()
    tune_precoder(
        precoder,
        samples,
        validation,
        scale.training,
        folder / "work" / f"{name}-{key}",
        imitation_steps=scale.imitation_steps,
        on_progress=on_progress,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(weights) as temporary:
        write_tensors(temporary, trainable_tensors(precoder))
    counts = count_parameters(precoder)
    cost = {"trainable": counts.trainable, "parameters": counts.total, "seconds": time.monotonic() - began}
    write_json(note, {"key": key, **cost})
    return precoder.eval()


def _data_key(scale: Scale) -> list[Any]:
    return [scale.pool_drops, scale.num_groups, scale.group_size, scale.imitation_steps, TRAINED_USERS]


def _samples(scale: Scale) -> tuple[DownlinkSamples, DownlinkSamples]:
    """Training and validation, of drops of their own; arrays of up to 8 x 8, none of a test's size."""
    kinds = (
        downlink_spec("uma", 16, (8, 8)),
        downlink_spec("uma", 16, (8, 8), los="mixed", pattern="38.901"),
        downlink_spec("umi", 16, (8, 8)),
    )
    found = []
    for seed, drops in ((1, scale.pool_drops), (2, max(2, scale.pool_drops // 10))):
        pool: list[UserChannels] = [
            draw_users(spec, drops, 10 * seed + kind) for kind, spec in enumerate(kinds)
        ]
        num_groups = scale.num_groups if seed == 1 else min(len(TRAINED_USERS), scale.num_groups)
        users = tuple(TRAINED_USERS[group % len(TRAINED_USERS)] for group in range(num_groups))
        size = scale.group_size if seed == 1 else max(4, scale.group_size // 16)
        found.append(
            DownlinkSamples(pool=pool, num_users=users, group_size=size, seed=seed, left_out=_TEST_SIZES)
        )
    return found[0], found[1]


_TEST_SIZES = tuple(rows * columns for _, _, (rows, columns) in UNSEEN.values())


def downlink_channels(
    model: ChannelModel, num_users: int, array: tuple[int, int], drops: int, seed: int
) -> torch.Tensor:
    """complex64 [drops, num_users, num_bs_ant], each user at unit mean power."""
    placement = ALL_ROUND if model == "uma" else None
    spec = downlink_spec(model, num_users, array, pattern="38.901", placement=placement)
    rows, columns = array
    return unit_power(draw_users(spec, drops, seed).sub_array(columns, rows))


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
    """From channels to W, one thread, median of turns: milliseconds for all drops together.

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
    spent: dict[str, list[float]] = {name: [] for name in work}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(repeats + 1):
                for name, act in work.items():
                    start = time.perf_counter()
                    act()
                    spent[name].append(1e3 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(turns[1:]) for name, turns in spent.items()}


def share_of(ours: torch.Tensor, reference: torch.Tensor, num_resamples: int = 1000) -> Interval:
    """Ratio of the means over drops, with its 95 % bootstrap interval."""
    both = torch.stack([ours, reference]).double()  # [2, drops]
    draw = torch.Generator().manual_seed(0)
    again = torch.randint(both.shape[1], (num_resamples, both.shape[1]), generator=draw)
    means = both[:, again].mean(dim=-1)  # [2, num_resamples]
    low, high = (means[0] / means[1]).quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    value = both.mean(dim=-1)
    return Interval(value=float(value[0] / value[1]), low=low, high=high)


def _row(setting: str, name: str, found: torch.Tensor, rates: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "setting": setting,
        "method": name,
        "drops": len(found),
        "sum_rate_bit_per_s_per_hz": float(found.mean()),
        "share_of_wmmse100": as_dict(share_of(found, rates[REFERENCE])),
    }
