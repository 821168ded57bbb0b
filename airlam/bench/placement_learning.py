"""The placement benchmark's diffusion model: its examples, its training, its weights kept in the cache."""

import time
from dataclasses import dataclass

import numpy as np

from airlam.bench.kept import digest
from airlam.bench.trained import cache_folder
from airlam.files import whole_file
from airlam.model.placement_diffusion import PlacementDiffusion
from airlam.model.storage import assign_tensors, read_metadata, read_tensors, write_tensors
from airlam.serving.learned_placement import Example, condition_of, train_placer
from airlam.split.placement.drawing import Drawing
from airlam.split.placement.search import Search, greedy
from airlam.split.placement.tables import Tables
from airlam.tasks.channel_prediction import Progress

DRAWING = Drawing(num_classes=(2, 3))
_FIRST_SEED = 1_000_001  # of training problems; the benchmark's own begin at 0
_NUM_KICKS = 3
_SEARCH_S = 5.0
_VERSION = 1  # of what decides the weights beside the numbers below


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingScale:
    """How much the model learns from."""

    num_examples: int
    num_steps: int
    seed: int = 0


def placer(scale: TrainingScale, on_progress: Progress) -> tuple[PlacementDiffusion, float]:
    """The trained model, and the processor seconds of its examples and training when it was made."""
    key = digest(_VERSION, _FIRST_SEED, repr(DRAWING), repr(scale))
    path = cache_folder() / "placement" / f"{key}.safetensors"
    if path.exists():
        model = PlacementDiffusion(seed=scale.seed)
        assign_tensors(dict(model.named_parameters()), read_tensors(path), str(path))
        return model.eval(), float(read_metadata(path)["seconds"])
    began_s = time.process_time()
    examples = draw_examples(scale.num_examples, on_progress)
    model = train_placer(
        examples,
        num_steps=scale.num_steps,
        seed=scale.seed,
        on_progress=lambda step, steps, loss: on_progress("diffusion", step, steps, f"loss {loss:.3f}"),
    )
    seconds = time.process_time() - began_s
    with whole_file(path) as temporary:
        write_tensors(temporary, dict(model.named_parameters()), {"seconds": f"{seconds:.1f}"})
    return model, seconds


def draw_examples(count: int, on_progress: Progress) -> list[Example]:
    """Drawn problems with what the search made of them; those it could not place are left out."""
    examples: list[Example] = []
    seed = _FIRST_SEED
    while len(examples) < count:
        rng = np.random.default_rng(seed)
        tables = Tables(DRAWING.draw(rng))
        search = Search(tables, rng, time_limit_s=_SEARCH_S)
        (excess, _), at = search.best_from([greedy(tables)], _NUM_KICKS)
        if excess == 0:
            examples.append(Example(condition=condition_of(tables), at=at))
        seed += 1
        if seed % 10 == 0:
            on_progress("examples", len(examples), count, "")
    return examples
