"""The nodes of a run, in this process or as Ray actors, with the run's loss and optimiser."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import nn

from airlam.model.lam import LAM
from airlam.specs import TrainingSpec
from airlam.split.node import Loss, SplitNode
from airlam.split.part import LamPart
from airlam.split.plan import SplitPlan
from airlam.split.ray_transport import RayTransport
from airlam.split.recipes import NodeRecipe, lam_recipes, name_of
from airlam.split.transport import InProcess, Transport
from airlam.training.federated.private import PrivateNode, private_node
from airlam.training.optimiser import adamw, adamw_options
from airlam.training.privacy import PrivacySpec


@dataclass(frozen=True, kw_only=True)
class NodeKit:
    """What the nodes of a plan are made of.

    loss: importable by its name, where nodes are in other processes. privacy: of the devices' gradients;
    None: they go as they are.
    """

    lam: LAM
    plan: SplitPlan
    loss: Loss
    training: TrainingSpec
    privacy: PrivacySpec | None = None


def transport_of(kit: NodeKit, ray_address: str | None = None) -> Transport:
    """Nodes in this process, or as actors of the Ray at an address."""
    if ray_address is None:
        return InProcess(kit.plan.nodes, partial(_node, kit))
    return RayTransport(ray_address, recipes_of(kit))


def recipes_of(kit: NodeKit) -> Mapping[str, NodeRecipe]:
    """The nodes, for other processes to build."""
    recipes = lam_recipes(
        kit.lam,
        kit.lam.tokenizer.setting,
        kit.plan,
        loss=name_of(kit.loss),
        optimiser=name_of(adamw),
        optimiser_options=adamw_options(kit.training),
        seed=kit.training.seed,
    )
    if kit.privacy is not None:
        for device in kit.plan.flow_names:
            arguments = {**recipes[device].arguments, "privacy": asdict(kit.privacy)}
            recipes[device] = replace(recipes[device], factory=name_of(private_node), arguments=arguments)
    return recipes


def _node(kit: NodeKit, name: str) -> SplitNode:
    part, seed = LamPart(kit.lam, kit.plan.modules_on(name)), kit.training.seed
    options = adamw_options(kit.training)

    def make_optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return adamw(parameters, **options)

    if kit.privacy is not None and name in kit.plan.flow_names:
        return PrivateNode(name, part, kit.loss, make_optimiser, privacy=kit.privacy, seed=seed)
    return SplitNode(name, part, kit.loss, make_optimiser, seed=seed)
