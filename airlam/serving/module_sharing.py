"""Which modules of some LAMs are the same, so that they are loaded and run once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from airlam.model.chain import Backbone
from airlam.model.lam import CHANNEL_PREDICTION, LAM
from airlam.model.lam_beams import LamBeams
from airlam.model.storage import fingerprint
from airlam.serving.service_graph import TaskModules
from airlam.serving.shared_backbone import frozen_parts
from airlam.serving.shared_tokens import tokens_identity
from airlam.specs import ModelSpec

HEAD = "head." + CHANNEL_PREDICTION
BEAM_HEAD = "head.beam_selection"
EXPERTS = "experts"  # regressions of powers, and the tokens of what they expect
EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class Tuned:
    """What decides whether LAMs share a backbone."""

    spec: ModelSpec
    backbone: Backbone

    @property
    def is_shareable(self) -> bool:
        return self.spec.tuning in ("lora", "head")

    def parts(self) -> dict[str, str]:
        """What must agree for two LAMs to run on one backbone."""
        model = type(self.backbone.model).__name__
        kind = (self.spec.backbone, model, self.backbone.ordered, self.is_shareable)
        return {"kind": str(kind)} | frozen_parts(self.backbone)


def backbone_groups(lams: Mapping[str, Tuned]) -> list[list[str]]:
    """Names of the LAMs of each backbone, the deepest first."""
    deepest_first = sorted(lams, key=lambda name: -lams[name].backbone.num_blocks)
    parts = {name: one.parts() for name, one in lams.items()}
    groups: list[list[str]] = []
    for name in deepest_first:
        fitting = (names for names in groups if parts[name].items() <= parts[names[0]].items())
        group = next(fitting, None) if lams[name].is_shareable else None
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


def lam_tasks(lams: Mapping[str, LAM], backbone_of: Mapping[str, str]) -> dict[str, TaskModules]:
    """Each LAM's chain, with identities that agree where modules can be shared."""
    return {name: TaskModules.chain(_identities(lam, backbone_of[name])) for name, lam in lams.items()}


def beam_tasks(beams: Mapping[str, LamBeams], backbone_of: Mapping[str, str]) -> dict[str, TaskModules]:
    """The same of LAMs of beam selection: their head takes what experts expect, too."""
    found = {}
    for name, own in beams.items():
        blocks = (f"block.{index}" for index in range(own.lam.backbone.num_blocks))
        identity = {
            EXPERTS: f"{own.scales} {fingerprint(own.stack.tensors())}",
            EMBEDDING: fingerprint(own.lam.embedding.state_dict()),
            **dict.fromkeys((*blocks, "norm"), backbone_of[name]),
            BEAM_HEAD: fingerprint(own.lam.head.state_dict()),
        }
        chain = TaskModules.chain(identity)
        found[name] = replace(chain, edges=(*chain.edges, (EXPERTS, BEAM_HEAD)))
    return found


def _identities(lam: LAM, backbone: str) -> dict[str, str]:
    identity: dict[str, str] = {}
    for module in lam.module_names:
        if module.startswith("tokenizer."):
            identity[module] = tokens_identity(lam)
        elif module == EMBEDDING:
            identity[module] = fingerprint(lam.embedding.state_dict())
        elif module.startswith("head."):
            identity[module] = f"{lam.tokenizer.setting} {fingerprint(lam.heads.state_dict())}"
        else:
            identity[module] = backbone
    return identity
