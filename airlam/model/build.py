"""The LAM of a spec for a setting: its tokeniser and its head put around its backbone."""

from airlam.model.heads import PatchHead
from airlam.model.lam import LAM, build_lam
from airlam.model.path_head import PathHead
from airlam.radio.channel import PredictionSetting
from airlam.specs import ModelSpec
from airlam.tokens.patch import PatchTokenizer
from airlam.tokens.path import PathTokenizer


def lam_for(spec: ModelSpec, setting: PredictionSetting, seed: int) -> LAM:
    """The LAM of a spec, untuned, for one setting; what is random in it is drawn from ``seed``."""
    if spec.tokenizer == "patch":
        patches = PatchTokenizer(setting)
        return build_lam(spec, patches, lambda width: PatchHead(patches, width), seed=seed)
    paths = PathTokenizer(setting, num_paths=spec.num_paths)
    return build_lam(spec, paths, lambda width: PathHead(setting, width), seed=seed)
