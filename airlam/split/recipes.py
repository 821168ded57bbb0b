"""What another process needs to hold part of a LAM: plain values for its shape, then its own weights.

Functions are named as ``package.module:name`` and found by import, so none travels as code.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.specs import ModelSpec, spec_from_dict, spec_to_dict
from airlam.split.messages import Tensors
from airlam.split.node import MakeOptimiser, SplitNode
from airlam.split.part import LamPart, owner_of
from airlam.split.plan import SplitPlan

NMSE_LOSS = "airlam.split.node:nmse_loss"
ADAMW = "torch.optim:AdamW"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecipe:
    """How another process builds a node.

    factory: named function, importable there, that takes ``arguments`` (plain JSON values) and the node's
    ``name`` and returns a SplitNode of the right shape. weights: all tensors of its modules, assigned then.
    """

    factory: str
    arguments: Mapping[str, Any]
    weights: Tensors


def lam_recipes(
    lam: LAM,
    setting: PredictionSetting,
    plan: SplitPlan,
    *,
    loss: str = NMSE_LOSS,
    optimiser: str = ADAMW,
    optimiser_options: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, NodeRecipe]:
    """Recipes for every node of a plan, with this LAM's weights, for ``lam_node`` to follow.

    setting: what the LAM's tokeniser was made for. loss: a ``Loss``; optimiser: takes parameters, and the
    options as keywords; both by name.
    """
    common = {
        "model": spec_to_dict(lam.spec),
        "setting": asdict(setting),
        "trainable": [name for name, p in lam.named_parameters() if p.requires_grad],
        "loss": loss,
        "optimiser": optimiser,
        "optimiser_options": dict(optimiser_options or {}),
        "seed": seed,
    }
    owners = {name: owner_of(lam, name) for name in lam.state_dict()}
    recipes = {}
    for node in plan.nodes:
        modules = plan.modules_on(node)
        weights = {name: value for name, value in lam.state_dict().items() if owners[name] in modules}
        arguments = common | {"modules": list(modules)}
        recipes[node] = NodeRecipe(
            factory="airlam.split.recipes:lam_node", arguments=arguments, weights=weights
        )
    return recipes


def lam_node(
    *,
    name: str,
    modules: Sequence[str],
    model: Mapping[str, Any],
    setting: Mapping[str, Any],
    trainable: Sequence[str],
    loss: str,
    optimiser: str,
    optimiser_options: Mapping[str, float],
    seed: int,
) -> SplitNode:
    """A node of ``lam_recipes``, its weights still at random."""
    part = part_of_shape(model, setting, trainable, modules)
    return SplitNode(name, part, named(loss), maker_of(optimiser, optimiser_options), seed=seed)


def part_of_shape(
    model: Mapping[str, Any], setting: Mapping[str, Any], trainable: Sequence[str], modules: Sequence[str]
) -> LamPart:
    """Some modules of a LAM, at random.

    The whole LAM's shape is built once, without reading weights, and all but these modules are dropped again.
    """
    spec = dataclasses.replace(spec_from_dict(ModelSpec, dict(model)), random_weights=True)
    lam = lam_for(spec, spec_from_dict(PredictionSetting, dict(setting)), seed=0)
    for own, parameter in lam.named_parameters():
        parameter.requires_grad_(own in set(trainable))
    return LamPart(lam, modules)


def maker_of(optimiser: str, options: Mapping[str, float]) -> MakeOptimiser:
    """Makes the named optimiser with these options."""
    make = named(optimiser)

    def make_optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = make(parameters, **options)
        return made

    return make_optimiser


def name_of(function: Callable[..., Any]) -> str:
    """``package.module:name``, under which ``named`` finds it again."""
    return f"{function.__module__}:{function.__qualname__}"


def named(reference: str) -> Any:
    """What ``package.module:name`` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
