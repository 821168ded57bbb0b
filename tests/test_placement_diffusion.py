"""The diffusion model treats calls and nodes alike, learns placements, and its samples become feasible."""

import numpy as np
import pytest
import torch

from airlam.model.placement_diffusion import Condition, PlacementDiffusion
from airlam.serving.learned_placement import Example, best_repaired, condition_of, propose, train_placer
from airlam.split.placement.drawing import Drawing
from airlam.split.placement.search import Search, greedy, spread
from airlam.split.placement.tables import Tables

DRAWING = Drawing(num_classes=(2, 2), num_servers=(4, 4))


def example(seed: int) -> tuple[Tables, Example] | None:
    rng = np.random.default_rng(seed)
    tables = Tables(DRAWING.draw(rng))
    (excess, _), at = Search(tables, rng, time_limit_s=20).best_from([greedy(tables)], 2)
    return (tables, Example(condition=condition_of(tables), at=at)) if excess == 0 else None


@pytest.fixture(scope="module")
def examples() -> list[tuple[Tables, Example]]:
    return [found for seed in range(14) if (found := example(seed)) is not None][:10]


def test_nodes_and_calls_have_no_order(examples: list[tuple[Tables, Example]]) -> None:
    condition = examples[0][1].condition
    calls, nodes = condition.allowed.shape
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.randperm(calls, generator=generator), torch.randperm(nodes, generator=generator)
    place_of = torch.argsort(rows)
    moved = Condition(
        pairs=condition.pairs[rows][:, columns],
        allowed=condition.allowed[rows][:, columns],
        load=condition.load[rows][:, columns],
        size=condition.size[rows][:, columns],
        same=condition.same[rows][:, rows],
        legs=place_of[condition.legs],
        leg_time=condition.leg_time[:, columns][:, :, columns],
    )
    model = PlacementDiffusion(seed=1)
    noisy, time = torch.randn(3, calls, nodes, generator=generator), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        plain, permuted = model(noisy, time, condition), model(noisy[:, rows][:, :, columns], time, moved)
    torch.testing.assert_close(permuted, plain[:, rows][:, :, columns], rtol=1e-4, atol=1e-4)


def test_it_learns_and_its_samples_are_better_than_chance(examples: list[tuple[Tables, Example]]) -> None:
    told: list[float] = []
    model = train_placer(
        [found for _, found in examples],
        num_steps=301,
        seed=2,
        on_progress=lambda step, steps, loss: told.append(loss),
    )
    assert told[-1] < 0.75 * told[0]
    ratios = []
    for tables, found in examples[:5]:
        at = propose(model, tables, seed=3)
        rng = np.random.default_rng(3)
        guessed = best_repaired(tables, np.stack([spread(tables, rng) for _ in range(32)]))
        assert at is not None and guessed is not None
        search = Search(tables, rng)
        best = search.score(found.at)[1]
        assert search.score(at)[0] == 0
        ratios.append((search.score(at)[1] / best, search.score(guessed)[1] / best))
    assert np.mean(ratios, axis=0)[0] < np.mean(ratios, axis=0)[1]


def test_samples_keep_to_allowed_nodes_and_follow_their_seed(examples: list[tuple[Tables, Example]]) -> None:
    condition = examples[0][1].condition
    pinned = Condition(
        pairs=condition.pairs,
        allowed=torch.nn.functional.one_hot(
            torch.zeros(len(condition.allowed), dtype=torch.int64), 4
        ).float(),
        load=condition.load,
        size=condition.size,
        same=condition.same,
        legs=condition.legs,
        leg_time=condition.leg_time,
    )
    model = PlacementDiffusion(seed=0)
    assert not model.sample(pinned, 5, torch.Generator().manual_seed(0)).any()
    first, again, other = (
        model.sample(condition, 5, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
