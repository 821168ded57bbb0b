"""A surface's phases and a base station's precoder: the surface precoder beside alternating optimisation.

Every method sees the same drops, perfect channels and power (``ris_channels``). Phases that are not joint
with a precoder are served by regularised zero forcing and by WMMSE. Alternating optimisation goes from its
best start, one element after another and accelerated; the rates after each iteration stand beside, so that it
is seen what iterations buy. Times are the processor's for one thread, of 64 drops together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from airlam.bench.beamforming.ris_channels import Shape, draw_links
from airlam.bench.beamforming.ris_training import SurfaceTraining, trained_surface_precoder
from airlam.bench.kept import as_dict
from airlam.bench.timing import best_times_ms
from airlam.model.graph_precoder import GraphPrecoder
from airlam.model.ris_precoder import SurfacePrecoder, SurfacePrecoderSpec
from airlam.radio.beamforming import wmmse
from airlam.radio.metrics import mean_interval
from airlam.radio.precoding import regularized_zero_forcing, sum_rate_bit_per_s_per_hz
from airlam.radio.ris import (
    JointPrecoder,
    SurfaceLinks,
    accelerated,
    alternating,
    beam_aligned_reflection,
    random_reflection,
    strongest_reflection,
)
from airlam.specs import TrainingSpec
from airlam.tasks.channel_prediction import Progress

Case = tuple[int, Shape, Shape]  # users; rows and columns of the array, and of the surface
SEEN: dict[str, Case] = {"ris": (4, (2, 4), (8, 8))}
UNSEEN: dict[str, Case] = {  # numbers of users and elements that no training sample has
    "ris_unseen_n81k5": (5, (2, 4), (9, 9)),
    "ris_unseen_n196k7": (7, (3, 4), (14, 14)),
}
LEARNED, REFERENCE = "surface_precoder", "alternating"
"""The learned one, and textbook alternating optimisation, which shares are of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceScale:
    """Sizes of a run. num_iterations: of WMMSE and of both optimisations; num_starts: of the best of many."""

    name: str
    training: SurfaceTraining
    test_drops: int
    num_iterations: int
    num_starts: int
    timed_drops: int
    repeats: int


FULL = SurfaceScale(
    name="full",
    training=SurfaceTraining(
        spec=SurfacePrecoderSpec(),
        pool_drops=800,
        num_groups=60,
        group_size=2048,
        training=TrainingSpec(
            num_steps=2500,
            batch_size=48,
            learning_rate=3e-3,
            weight_decay=1e-3,
            validation_every_steps=250,
            checkpoint_every_steps=250,
            patience=100,
        ),
    ),
    test_drops=200,
    num_iterations=100,
    num_starts=8,
    timed_drops=64,
    repeats=5,
)
QUICK = SurfaceScale(
    name="quick",
    training=SurfaceTraining(
        spec=SurfacePrecoderSpec(num_stages=3, width=8),
        pool_drops=8,
        num_groups=6,
        group_size=16,
        training=TrainingSpec(
            num_steps=4, batch_size=4, learning_rate=1e-3, validation_every_steps=4, checkpoint_every_steps=4
        ),
    ),
    test_drops=4,
    num_iterations=4,
    num_starts=2,
    timed_drops=4,
    repeats=1,
)


def run_ris(
    scale: SurfaceScale, precoder: GraphPrecoder, on_progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and figures. precoder: trained, for channels without a surface.

    ``SETTING.share_of_alternating`` and ``speedup_vs_alternating`` are of ``num_iterations``, element by
    element, ``speedup_at_the_same_rate`` of as many as ``accelerated`` takes to the learned one's rate.
    """
    model = trained_surface_precoder(scale.name, scale.training, precoder, on_progress)
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    settings = SEEN | UNSEEN
    for number, (setting, (num_users, array, surface)) in enumerate(settings.items()):
        on_progress("surfaces", number, len(settings), setting)
        links = draw_links(num_users, array, surface, scale.test_drops, seed=9100 + number)
        rates, courses = rates_of(links, model, scale)
        rows += [_row(setting, name, found, rates) for name, found in rates.items()]
        figures |= _figures(setting, rates)
        if setting in SEEN:
            row, speedups = _times(setting, model, scale, rates[LEARNED], courses)
            rows, figures = [*rows, row], figures | speedups
    figures["ris_unseen.share_of_alternating"] = min(
        figures[f"{name}.share_of_alternating"] for name in UNSEEN
    )
    return rows, figures


def rates_of(
    links: SurfaceLinks, model: SurfacePrecoder, scale: SurfaceScale
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Sum rate of each drop by method, float32 [drops], and of both optimisations after each iteration,
    float32 [num_iterations, drops]; bit/s/Hz.
    """
    draw = torch.Generator().manual_seed(0)
    fixed = {
        "no_surface": torch.zeros_like(links.surface_users[:, 0]),
        "random": random_reflection(links, draw),
        "strongest": strongest_reflection(links),
        "beam_aligned": beam_aligned_reflection(links, 1.0),
    }
    rates: dict[str, torch.Tensor] = {}
    for name, reflection in fixed.items():
        h = links.effective(reflection)
        rates[f"{name}_rzf"] = sum_rate_bit_per_s_per_hz(h, regularized_zero_forcing(h, 1.0), 1.0)
        w = wmmse(h, 1.0, num_iterations=scale.num_iterations)
        rates[f"{name}_wmmse"] = sum_rate_bit_per_s_per_hz(h, w, 1.0)
    optimise = partial(_joint_rates, links, scale.num_iterations)
    courses = {REFERENCE: optimise(alternating), "accelerated": optimise(accelerated)}
    rates |= {name: course[-1] for name, course in courses.items()}
    starts = [random_reflection(links, draw) for _ in range(scale.num_starts)]
    again = torch.stack([optimise(accelerated, start=start)[-1] for start in starts])
    rates[f"accelerated_best_of_{scale.num_starts + 1}"] = torch.cat(
        [again, courses["accelerated"][-1:]]
    ).amax(0)
    free = accelerated(links, 1.0, num_iterations=scale.num_iterations).reflection
    for bits in (1, 2):
        rates[f"alternating_{bits}_bit"] = optimise(alternating, num_bits=bits)[-1]
        rates[f"accelerated_then_{bits}_bit"] = optimise(alternating, num_bits=bits, start=free)[-1]
        rates[f"{LEARNED}_{bits}_bit"] = _learned_rate(links, model, bits)
    rates[LEARNED] = _learned_rate(links, model, None)
    return rates, courses


def _joint_rates(
    links: SurfaceLinks, num_iterations: int, optimise: Callable[..., JointPrecoder], **options: Any
) -> torch.Tensor:
    return optimise(links, 1.0, num_iterations=num_iterations, **options).rates


def _learned_rate(links: SurfaceLinks, model: SurfacePrecoder, num_bits: int | None) -> torch.Tensor:
    with torch.inference_mode():
        w, reflection = model.precode(links, torch.ones(len(links.direct)), num_bits=num_bits)
        return sum_rate_bit_per_s_per_hz(links.effective(reflection), w, 1.0)


def _figures(setting: str, rates: dict[str, torch.Tensor]) -> dict[str, float]:
    learned = rates[LEARNED]
    return {
        f"{setting}.share_of_alternating": mean_interval(learned, rates[REFERENCE]).value,
        f"{setting}.share_of_accelerated": mean_interval(learned, rates["accelerated"]).value,
        f"{setting}.gain_over_random_phases": mean_interval(learned, rates["random_wmmse"]).value - 1,
        f"{setting}.gain_over_no_surface": mean_interval(learned, rates["no_surface_wmmse"]).value - 1,
    }


def _row(setting: str, name: str, found: torch.Tensor, rates: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "setting": setting,
        "method": name,
        "drops": len(found),
        "sum_rate_bit_per_s_per_hz": float(found.mean()),
        "share_of_alternating": as_dict(mean_interval(found, rates[REFERENCE])),
        "over_random_phases": as_dict(mean_interval(found, rates["random_wmmse"])),
    }


def _times(
    setting: str,
    model: SurfacePrecoder,
    scale: SurfaceScale,
    learned: torch.Tensor,
    courses: dict[str, torch.Tensor],
) -> tuple[dict[str, Any], dict[str, float]]:
    """A row of times and of rates by iteration, and the ratios of times."""
    num_users, array, surface = SEEN[setting]
    links = draw_links(num_users, array, surface, scale.timed_drops, seed=9099)
    reached = {name: iterations_to(course, learned) for name, course in courses.items()}
    work: dict[str, Callable[[], object]] = {
        LEARNED: partial(model.precode, links, torch.ones(scale.timed_drops)),
        REFERENCE: partial(alternating, links, 1.0, num_iterations=scale.num_iterations),
        "accelerated": partial(accelerated, links, 1.0, num_iterations=scale.num_iterations),
        "accelerated_to_the_same_rate": partial(
            accelerated, links, 1.0, num_iterations=reached["accelerated"] or scale.num_iterations
        ),
    }
    times = best_times_ms(work, scale.repeats)
    row = {
        "setting": setting,
        "batch": scale.timed_drops,
        "times_ms": times,
        "iterations_to_the_learned_rate": reached,
        "sum_rate_by_iteration": {name: course.mean(-1).tolist() for name, course in courses.items()},
    }
    figures = {
        f"{setting}.speedup_vs_{name}": times[name] / times[LEARNED] for name in (REFERENCE, "accelerated")
    }
    if reached["accelerated"] is not None:
        figures[f"{setting}.speedup_at_the_same_rate"] = (
            times["accelerated_to_the_same_rate"] / times[LEARNED]
        )
    return row, figures


def iterations_to(course: torch.Tensor, rates: torch.Tensor) -> int | None:
    """After how many iterations the mean over drops reaches that of ``rates``; None where it never does.

    course: float [num_iterations, drops]; rates: float [drops].
    """
    enough = (course.mean(-1) >= rates.mean()).nonzero()
    return int(enough[0]) + 1 if len(enough) else None
