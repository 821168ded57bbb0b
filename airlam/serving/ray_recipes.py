"""LAMs as another process needs them to serve them: JSON for their shapes, safetensors for their weights.

Weights that several LAMs have in common, as those of one backbone, travel once.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.model.storage import fingerprint
from airlam.radio.channel import PredictionSetting
from airlam.serving.foresight import foreseeing, foresees
from airlam.specs import ModelSpec, spec_from_dict, spec_to_dict
from airlam.split.messages import Header, Message, decode, encode


@dataclass(frozen=True, slots=True, kw_only=True)
class LamsRecipe:
    """shapes: JSON, of each LAM its spec, its setting, whether it foresees, and the keys of its weights.
    weights: a message.
    """

    shapes: str
    weights: bytes


def recipe_of(lams: Mapping[str, LAM]) -> LamsRecipe:
    """What ``lams_of`` makes the same LAMs of."""
    weights: dict[str, torch.Tensor] = {}
    shapes = {}
    for name, lam in lams.items():
        keys = {own: fingerprint({"": tensor}) for own, tensor in lam.state_dict().items()}
        weights |= {keys[own]: tensor for own, tensor in lam.state_dict().items()}
        spec, setting = spec_to_dict(lam.spec), spec_to_dict(lam.tokenizer.setting)
        shapes[name] = {"model": spec, "setting": setting, "foresees": foresees(lam), "weights": keys}
    message = Message(header=Header(operation="weights"), tensors=weights)
    return LamsRecipe(shapes=json.dumps(shapes), weights=encode(message))


def lams_of(recipe: LamsRecipe) -> dict[str, LAM]:
    """The LAMs of a recipe, ready to predict; nothing is read from disk."""
    weights = decode(recipe.weights, max_bytes=len(recipe.weights)).tensors  # ours, however many
    lams = {}
    for name, shape in json.loads(recipe.shapes).items():
        spec = spec_from_dict(ModelSpec, shape["model"])
        setting = spec_from_dict(PredictionSetting, shape["setting"])
        lam = lam_for(dataclasses.replace(spec, random_weights=True), setting, seed=0)
        if shape["foresees"]:
            foreseeing(lam, torch.ones(setting.num_horizon))
        lam.load_state_dict({own: weights[key] for own, key in shape["weights"].items()})
        lam.spec = spec
        lams[name] = lam.eval()
    return lams
