"""What training changes at a node, as named tensors: weights, the optimiser's moments, what rounding took."""

import torch

from airlam.model.storage import assign_tensors
from airlam.split.messages import Tensors
from airlam.split.part import LamPart
from airlam.split.payload import ErrorFeedback

_WEIGHTS, _MOMENTS, _RESIDUALS = "weights/", "optimiser/", "feedback/"


def state_tensors(
    part: LamPart, optimiser: torch.optim.Optimizer | None, feedback: dict[str, ErrorFeedback]
) -> Tensors:
    """Copies of all that changes; ``restore_state`` puts them back."""
    state = {_WEIGHTS + name: value for name, value in part.changing.items()}
    if optimiser is not None:
        for index, values in optimiser.state_dict()["state"].items():
            state |= {f"{_MOMENTS}{index}/{name}": v for name, v in values.items() if v is not None}
    for place, residuals in feedback.items():
        state |= {f"{_RESIDUALS}{place}/{name}": value for name, value in residuals.state().items()}
    return {name: value.detach().clone() for name, value in state.items()}


def restore_state(
    part: LamPart, optimiser: torch.optim.Optimizer | None, state: Tensors, where: str
) -> dict[str, ErrorFeedback]:
    """Puts weights and moments back and returns the residuals; DataError where they are another part's."""
    assign_tensors(part.changing, under(state, _WEIGHTS), f"the state that {where} is sent")
    if optimiser is not None:
        _restore_moments(optimiser, under(state, _MOMENTS))
    residuals: dict[str, Tensors] = {}
    for key, value in under(state, _RESIDUALS).items():
        place, _, name = key.rpartition("/")
        residuals.setdefault(place, {})[name] = value
    return {place: ErrorFeedback.of(kept) for place, kept in residuals.items()}


def under(tensors: Tensors, prefix: str) -> Tensors:
    """Tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}


def _restore_moments(optimiser: torch.optim.Optimizer, moments: Tensors) -> None:
    state = optimiser.state_dict()
    state["state"] = {}
    for key, value in moments.items():
        index, _, name = key.partition("/")
        state["state"].setdefault(int(index), {})[name] = value.clone()
    optimiser.load_state_dict(state)
