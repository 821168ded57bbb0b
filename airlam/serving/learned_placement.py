"""Placements proposed by the diffusion model: conditions from problems, its training, samples made feasible.

Trained on placements that the search found of drawn problems; a sample that breaks a limit is repaired by
moves that lower what it exceeds, nothing else, and the best of the samples is taken.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from airlam.model.placement_diffusion import NUM_PAIR_FEATURES, Condition, PlacementDiffusion
from airlam.split.placement.search import Search
from airlam.split.placement.tables import Floats, Ints, Tables

NUM_SAMPLES = 32
_NUM_REPAIRED = 8  # of the samples, those that exceed least
_BATCH = 16  # times and noises of one problem in a step
_FARTHEST = 50.0  # of a typical time, where there is no way
_REPAIR_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A problem and a good placement of it: at [num_calls]."""

    condition: Condition
    at: Ints


def condition_of(tables: Tables) -> Condition:
    """What the model is told of a problem; times in units of the classes' mean fastest work."""
    fastest = np.array([row[np.isfinite(row)].min() for row in tables.work_s])
    unit_s = float(fastest.mean()) or 1.0
    allowed = np.zeros_like(tables.work_s)
    for k, nodes in enumerate(tables.allowed):
        allowed[k, nodes] = 1.0
    work = np.where(allowed > 0, tables.work_s, 0.0)
    load = tables.rate[tables.call_class][:, None] * work
    size = (tables.instance_bytes[:, None] / tables.memory)[tables.call_service]  # [num_calls, num_nodes]
    inner = [leg for leg in tables.legs if min(leg.source, leg.target) >= 0]
    features = [
        np.log1p(np.minimum(work / unit_s, _FARTHEST)),
        np.log1p(np.minimum(_home_s(tables) / unit_s, _FARTHEST)),
        load,
        np.minimum(size, 2.0),
        allowed,
        np.broadcast_to(load.sum(axis=0) / len(tables.calls), work.shape),
        np.broadcast_to(fastest[:, None] / unit_s, work.shape),
        np.broadcast_to(_room(tables), work.shape),
    ]
    assert len(features) == NUM_PAIR_FEATURES
    same = tables.call_service[:, None] == tables.call_service
    leg_s = [_leg_s(tables, leg.payload_bytes) / unit_s for leg in inner]
    count = len(tables.nodes)
    return Condition(
        pairs=_tensor(np.stack(features, axis=-1)),
        allowed=_tensor(allowed),
        load=_tensor(load),
        size=_tensor(size),
        same=_tensor(same),
        legs=torch.tensor([[leg.source, leg.target] for leg in inner], dtype=torch.int64).reshape(-1, 2),
        leg_time=_tensor(np.array(leg_s).reshape(-1, count, count)),
    )


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _room(tables: Tables) -> Floats:
    """Memory of each node in units of all replicas wanted: [num_nodes]."""
    return np.minimum(tables.memory / float(tables.instance_bytes @ tables.wanted + 1), 2.0)


def _home_s(tables: Tables) -> Floats:
    """Messages between a call and its home, on an idle network: [num_calls, num_nodes]."""
    count, found = len(tables.nodes), np.zeros_like(tables.work_s)
    for leg in tables.legs:
        if min(leg.source, leg.target) < 0:
            seconds, home = _leg_s(tables, leg.payload_bytes), tables.home[leg.class_index]
            if leg.source < 0:
                found[leg.target] += seconds[home]
            else:
                found[leg.source] += seconds[:, home]
    assert found.shape[1] == count
    return found


def _leg_s(tables: Tables, payload_bytes: int) -> Floats:
    """A message from node to node on an idle network: [num_nodes, num_nodes]."""
    count = len(tables.nodes)
    seconds = tables.way_latency_s + payload_bytes * (tables.way @ tables.byte_s)
    joined: Floats = np.where(tables.reaches, seconds, 1e9).reshape(count, count)
    return joined


def train_placer(
    examples: Sequence[Example],
    *,
    num_steps: int,
    seed: int = 0,
    learning_rate: float = 2e-3,
    on_progress: Callable[[int, int, float], None] = lambda *_: None,
) -> PlacementDiffusion:
    """A model of these examples; one of them a step, with many times and noises.

    on_progress: told the step, their number, and the mean loss of late.
    """
    model = PlacementDiffusion(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=num_steps)
    recent = math.nan
    for step in range(num_steps):
        example = examples[int(torch.randint(len(examples), (), generator=generator))]
        chosen = torch.from_numpy(example.at).expand(_BATCH, -1)
        loss = model.loss(chosen, example.condition, generator)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        value = loss.item()
        recent = value if math.isnan(recent) else 0.99 * recent + 0.01 * value
        if step % 100 == 0:
            on_progress(step, num_steps, recent)
    return model.eval()


def propose(
    model: PlacementDiffusion, tables: Tables, *, seed: int = 0, num_samples: int = NUM_SAMPLES
) -> Ints | None:
    """The best of repaired samples, at [num_calls]; None where none could be repaired."""
    generator = torch.Generator().manual_seed(seed)
    found = model.sample(condition_of(tables), num_samples, generator).numpy()  # [num_samples, num_calls]
    return best_repaired(tables, found, seed=seed)


def best_repaired(tables: Tables, candidates: Ints, *, seed: int = 0) -> Ints | None:
    """Of the candidates that exceed the limits least, repaired, the one of lowest value."""
    different = np.unique(candidates, axis=0)
    priced = tables.price(different)
    search = Search(tables, np.random.default_rng(seed), time_limit_s=_REPAIR_S)
    best: tuple[tuple[float, float], Ints] | None = None
    for index in np.lexsort((priced.value_s, priced.excess))[:_NUM_REPAIRED]:
        score, at = search.repaired(different[index])
        if score[0] == 0 and (best is None or score < best[0]):
            best = score, at
    return best[1] if best is not None else None
