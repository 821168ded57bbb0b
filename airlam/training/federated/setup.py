"""Everything that takes part in a run of rounds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from airlam.model.lam import LAM
from airlam.specs import FederatedSpec, TrainingSpec
from airlam.split.graph import ModuleGraph
from airlam.split.network import EdgeNetwork
from airlam.split.node import Loss
from airlam.split.policies import Policy
from airlam.split.streams import stream_seed
from airlam.tokens.base import TokenBatch
from airlam.training.federated.layout import Layout
from airlam.training.privacy import PrivacySpec

MAX_GRADIENT_NORM = 1.0  # of each node's mean gradient
Gains = Callable[[int], Mapping[str, float]]
"""Round index -> power gains |h|^2 of the devices by name."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What takes part.

    lam: prepared (``layout.prepare``); its weights are the start, and stay as they are. graph: its profile
    for one device's batch. network: with any gains; gains: of each round. samples: by device, with targets.
    loss: see ``airlam.split.node.Loss``. ray_address: of the Ray whose actors the nodes are; None: this
    process.
    """

    lam: LAM
    layout: Layout
    graph: ModuleGraph
    network: EdgeNetwork
    gains: Gains
    samples: Mapping[str, TokenBatch]
    policy: Policy
    loss: Loss
    federated: FederatedSpec
    training: TrainingSpec
    ray_address: str | None = None

    @property
    def num_rounds(self) -> int:
        """Of the whole run."""
        return self.training.num_steps // self.federated.steps_per_round

    @property
    def privacy(self) -> PrivacySpec | None:
        """None where gradients leave devices as they are."""
        clip = self.federated.clip_norm
        if clip is None:
            return None
        return PrivacySpec(clip_norm=clip, noise_multiplier=self.federated.noise_multiplier)


def device_batches(setup: Setup, step: int) -> dict[str, torch.Tensor]:
    """Each device's samples of a step, int64 [batch], whether or not it will take part."""
    found = {}
    for device, tokens in setup.samples.items():
        draw = torch.Generator().manual_seed(stream_seed(setup.training.seed, step, device, "batch"))
        size = min(setup.training.batch_size, len(tokens))
        found[device] = torch.randperm(len(tokens), generator=draw)[:size]
    return found
