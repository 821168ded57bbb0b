"""The placement benchmark runs, names its figures, counts what fails, and treats all methods alike."""

import asyncio
import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from airlam.bench import placement, placement_learning, placement_runtime, run_bench
from airlam.bench.placement_figures import ratio_figures, tier_figures
from airlam.bench.placement_learning import DRAWING
from airlam.bench.placement_runtime import _between, _Loaded, _poisson_s, _Processors, _Runtime
from airlam.bench.placement_serving import DEADLINE, HARSH, harsh, steady, with_access, with_deadlines
from airlam.errors import SpecError
from airlam.model.placement_diffusion import PlacementDiffusion
from airlam.serving.measurement import Measurement
from airlam.serving.simulator import simulate
from airlam.serving.simulator_runtime import RuntimeTimes
from airlam.split.placement.drawing import Drawing
from airlam.split.placement.routing import ShortestDelayRouter
from airlam.split.placement.search import Search, greedy
from airlam.split.placement.solve import place
from airlam.split.placement.tables import Ints, Tables
from airlam.tasks.channel_prediction import quiet

SMALL = Drawing(num_servers=(3, 3), num_tasks=(1, 1), num_classes=(2, 2), branches=False)


def test_quick_run_states_every_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRLAM_CACHE", str(tmp_path))
    result = run_bench("placement", quick=True, train=False, data=None, on_progress=quiet)
    figures = result["figures"]
    assert figures["instances"] == 2 and figures["undecided"] == 0 and figures["two_tiers.skipped"] == 0
    assert figures["diffusion_feasible"] == figures["heuristic_feasible"] == 1.0
    assert 0 < figures["on_time_rate"] <= 1 and 0 < figures["on_time_rate_best_baseline"] <= 1
    for setting in ("drawn", f"drawn.{HARSH}", "two_tiers.load1"):
        rows = [row for row in result["rows"] if row.get("setting") == setting and row["kind"] == "method"]
        methods = {row["method"] for row in rows}
        assert methods >= {"ours", "monolithic", "greedy", "random", "round_robin", "least_loaded"}
        assert all(row["on_time_rate"]["low"] <= row["on_time_rate"]["high"] for row in rows)
    assert {"simulated.ours.on_time_rate", f"simulated.ours.on_time_rate_{HARSH}"} <= figures.keys()
    for row in result["rows"]:
        if row["kind"] == "instance":
            assert row["bound_s"] <= row["heuristic_s"] * (1 + 1e-6) <= row["diffusion_s"] * (1 + 1e-3)
    json.dumps(result, allow_nan=False)
    # kept: the second run trains nothing
    kept, _ = placement_learning.placer(placement.QUICK.training, quiet)
    assert len(list((tmp_path / "placement").glob("*.safetensors"))) == 1
    assert len(list((tmp_path / "placement").glob("router-*.json"))) == 2
    assert all(not weight.isnan().any() for weight in kept.parameters())


def test_a_deadline_is_a_multiple_of_what_a_class_takes_alone() -> None:
    problem = with_deadlines(DRAWING.draw(np.random.default_rng(1)))
    for one in problem.classes:
        assert 0 < one.deadline_s < 10
    tables = Tables(problem)
    priced = tables.price(greedy(tables)[None])
    deadlines = np.array([one.deadline_s for one in problem.classes])
    assert (priced.latency_s[0] > deadlines / DEADLINE * 0.999).all()


def instance_row(monkeypatch: pytest.MonkeyPatch, exact_s: float) -> dict[str, Any]:
    """The first small problem's row, with samples of a model that knows nothing."""
    monkeypatch.setattr(placement, "DRAWING", SMALL)
    scale = dataclasses.replace(placement.QUICK, exact_s=exact_s, requests=40)
    return placement._instance_row(PlacementDiffusion(seed=0), scale, 0)


def unplaced(found: Callable[..., Any]) -> Callable[..., Any]:
    """The search, as if it had found no room."""

    def best_from(self: Search, starts: list[Ints], num_kicks: int) -> tuple[tuple[float, float], Ints]:
        (excess, value_s), at = found(self, starts, num_kicks)
        return (excess + (num_kicks > 0), value_s), at

    return best_from


def test_what_the_search_misses_counts_against_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "best_from", unplaced(Search.best_from))
    row = instance_row(monkeypatch, exact_s=20.0)
    assert row["kind"] == "instance" and row["is_proven"]
    assert row["heuristic_s"] is None and row["diffusion_s"] >= row["exact_s"] * (1 - 1e-3)
    figures = ratio_figures([row, {"kind": "undecided", "seed": 1}, {"kind": "infeasible", "seed": 2}])
    assert figures["heuristic_feasible"] == 0 and figures["diffusion_feasible"] == 1
    assert "heuristic_over_exact" not in figures and figures["proven"] == 1
    assert figures["undecided"] == figures["infeasible"] == 1


def test_only_a_proven_optimum_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    row = instance_row(monkeypatch, exact_s=1e-6)
    assert row["kind"] == "instance" and not row["is_proven"]
    monkeypatch.setattr(Search, "best_from", unplaced(Search.best_from))
    monkeypatch.setattr(placement, "propose", lambda *_, **__: None)
    monkeypatch.setattr(placement, "best_repaired", lambda *_, **__: None)
    assert instance_row(monkeypatch, exact_s=1e-6) == {"kind": "undecided", "seed": 0}


def test_draws_without_room_end_and_are_told() -> None:
    with pytest.raises(SpecError, match="none of 20 draws for tiers"):
        placement._drawn("tiers", 2, quiet, lambda seed: {"kind": "skipped", "seed": seed})
    kinds = ["skipped", "tiers", "skipped", "tiers"]
    rows = placement._drawn("tiers", 2, quiet, lambda seed: {"kind": kinds[seed], "seed": seed})
    assert [row["kind"] for row in rows] == kinds
    few = placement._drawn("tiers", 2, quiet, lambda seed: {"kind": "tiers" if seed == 7 else "skipped"})
    assert len(few) == 20
    crowded = placement._tier_row(1e6, 2, 0)
    assert crowded["kind"] == "skipped" and "room" in crowded["reason"]
    measured = {
        "kind": "tiers",
        "load": 1e6,
        "access_bound": 1.0,
        **{what: {"ours": 1.0, "ours_by_mean": 1.0, "random": 0.5} for what in ("on_time_rate", "cost")},
    }
    assert tier_figures([crowded, measured])["two_tiers.skipped.load1e+06"] == 1


def test_harsh_conditions_are_the_same_problem_with_links_that_fade_and_nodes_that_fail() -> None:
    problem = with_deadlines(DRAWING.draw(np.random.default_rng(1)))
    tables, scenario = harsh(problem, 300, 1)
    calm = steady(Tables(problem), 300, 1)
    assert (scenario.duration_s, scenario.seed, calm.bursts) == (calm.duration_s, calm.seed, None)
    assert scenario.bursts is not None
    servers = problem.network.servers
    assert tables.problem.network.servers == servers and tables.problem.graph == problem.graph
    for before, after in itertools.pairwise(scenario.outages):
        assert before.start_s + before.duration_s <= after.start_s
    for outage in scenario.outages:
        assert outage.node in servers and 0 <= outage.start_s <= scenario.duration_s - outage.duration_s
    networks = [moment.tables.problem.network for moment in scenario.moments]
    gains = [link.gain for network in networks for link in network.radio_links]
    assert 0.7 < np.mean(gains) < 1.3 and np.std(gains) == pytest.approx(0.5**0.5, abs=0.25)
    cells = {tuple(link.server for link in network.radio_links) for network in networks}
    assert len(cells) > 1
    _, same = harsh(problem, 300, 1)
    assert same.outages == scenario.outages
    assert [m.tables.problem for m in same.moments] == [m.tables.problem for m in scenario.moments]


def test_access_links_have_room_for_their_classes() -> None:
    problem = DRAWING.draw(np.random.default_rng(4))
    mobile = with_access(problem)
    loads = []
    for one, before in zip(mobile.classes, problem.classes, strict=True):
        link = mobile.network.radio_of[one.home]
        assert link.server == before.home
        share = mobile.shares.allocations[one.home].uplink_share
        cell = mobile.network.cell_of[link.server]
        band_hz = share * cell.uplink_bandwidth_hz
        rate_bps = band_hz * math.log2(1 + link.tx_power_w / (band_hz * cell.noise_psd_w_per_hz))
        loads.append(8 * one.arrival_per_s * one.input_bytes / rate_bps)
    assert 0 < max(loads) <= 0.2 + 1e-9


def test_harsh_conditions_cost_every_request_something_and_lose_none() -> None:
    problem = with_deadlines(DRAWING.draw(np.random.default_rng(1)))
    found = place(problem, method="search", with_bound=False, time_limit_s=5.0)
    tables, scenario = harsh(problem, 200, 1)
    answered = simulate(tables, lambda now, sight: ShortestDelayRouter(now, found.placement), scenario)
    quiet_scenario = dataclasses.replace(scenario, outages=(), moments=())
    calmer = simulate(tables, lambda now, sight: ShortestDelayRouter(now, found.placement), quiet_scenario)
    assert len(answered.latency_s) == len(calmer.latency_s) > 100
    assert answered.latency_s.mean() > calmer.latency_s.mean()


def test_the_share_of_others_is_a_share() -> None:
    began = _Processors.now()
    if began is None:
        pytest.skip("this system does not tell what its processors do")
    began = dataclasses.replace(began, clock_s=began.clock_s - 1.0)  # a second at least
    assert 0 <= began.others_share() <= 1.1


class Counting:
    """Answers at once, and keeps what each batch asked."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def predict(self, requests: Sequence[Measurement]) -> list[torch.Tensor]:
        self.batches.append(tuple(int(request.noise_variance) for request in requests))
        return [torch.zeros(1, dtype=torch.complex64) for _ in requests]


def timed(num_links: int) -> tuple[list[tuple[int, ...]], RuntimeTimes]:
    """What is asked, without other arrivals than two, and the times that come of it."""
    services = Counting()
    asked = [
        Measurement(lam="a", history=torch.zeros(1, 1), noise_variance=torch.tensor([float(number)]))
        for number in range(num_links)
    ]

    async def found() -> RuntimeTimes:
        runtime = _Runtime(services, asked)  # type: ignore[arg-type]
        times = await runtime.times(np.random.default_rng(0), 0.0)
        await runtime.drain()
        return times

    return services.batches, asyncio.run(found())


@pytest.mark.parametrize("num_links", [2, 16])
def test_batches_of_every_size_are_timed_and_ask_all_links_alike(num_links: int) -> None:
    batches, times = timed(num_links)
    sizes = Counter(len(batch) for batch in batches)
    assert sizes.keys() >= times.batch_s.keys() and min(times.batch_s) == 1
    assert max(times.batch_s) == max(sizes) == times.max_batch_links
    for size in times.batch_s:
        assert size * sizes[size] >= num_links
    # one after another, so that none is asked for twice before all were asked for
    alone = [link for batch in batches for link in batch][:-2]
    assert alone == [number % num_links for number in range(len(alone))]
    assert all(batch_s > 0 for batch_s in times.batch_s.values())
    assert times.hand_over_s > 0 and times.timer_s > 0


def test_times_lie_between_those_before_and_after() -> None:
    before = RuntimeTimes(batch_s={1: 1.0, 2: 2.0}, max_batch_links=2, hand_over_s=0.1, timer_s=0.3)
    after = RuntimeTimes(batch_s={1: 2.0, 2: 2.0}, max_batch_links=2, hand_over_s=0.3, timer_s=0.1)
    times = _between(before, after)
    assert times.batch_s == {1: 1.5, 2: 2.0} and times.max_batch_links == 2
    assert (times.hand_over_s, times.timer_s) == pytest.approx((0.2, 0.2))
    run = _Loaded(sent_s=np.zeros(3), latency_s=np.zeros(3), batches=[(1, 3.0), (2, 4.0)])
    assert run.over(times) == pytest.approx(7.0 / 3.5)
    assert placement_runtime._at_pace(times, 2.0).batch_s == {1: 3.0, 2: 4.0}


def test_arrivals_are_poisson() -> None:
    arrival_s = _poisson_s(np.random.default_rng(4), 50.0, 400.0)
    gaps_s = np.diff(arrival_s, prepend=0.0)
    assert len(arrival_s) == 20_000 and (gaps_s > 0).all()
    assert gaps_s.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps_s.std() == pytest.approx(0.02, rel=0.03)
