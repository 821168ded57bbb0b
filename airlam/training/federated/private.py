"""A device whose gradients leave it clipped and noised."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from airlam.split.flow_state import FlowState
from airlam.split.messages import Header, Tensors
from airlam.split.node import Loss, MakeOptimiser, SplitNode
from airlam.split.part import LamPart
from airlam.split.recipes import maker_of, named, part_of_shape
from airlam.split.streams import stream_seed
from airlam.training.privacy import PrivacySpec, privatise


class PrivateNode(SplitNode):
    """A ``SplitNode`` that puts every gradient it sends through ``privatise``; coded links add no noise.

    A batch's gradient is of its mean loss, so each sample's is multiplied by the batch size before it is
    clipped to C, and divided by it afterwards: C is of the gradient of one sample's own loss.
    """

    def __init__(
        self,
        name: str,
        part: LamPart,
        loss: Loss,
        make_optimiser: MakeOptimiser,
        *,
        privacy: PrivacySpec,
        seed: int = 0,
    ) -> None:
        super().__init__(name, part, loss, make_optimiser, seed=seed)
        self.privacy, self._noise_seed = privacy, seed

    def _packed_gradient(self, header: Header, flow: FlowState, gradient: torch.Tensor) -> Tensors:
        if not bool(gradient.isfinite().all()):  # nothing could be clipped; the server will refuse it
            return super()._packed_gradient(header, flow, gradient)
        size = len(gradient)
        draw = torch.Generator().manual_seed(
            stream_seed(self._noise_seed, header.step, header.flow, header.modules[0], "noise")
        )
        private = privatise(gradient * size, self.privacy, draw) / size
        return super()._packed_gradient(header, flow, private)


def private_node(
    *,
    name: str,
    privacy: Mapping[str, float],
    modules: Sequence[str],
    model: Mapping[str, Any],
    setting: Mapping[str, Any],
    trainable: Sequence[str],
    loss: str,
    optimiser: str,
    optimiser_options: Mapping[str, float],
    seed: int,
) -> PrivateNode:
    """A node of ``airlam.split.recipes`` that protects what it sends; privacy: a PrivacySpec's fields."""
    return PrivateNode(
        name,
        part_of_shape(model, setting, trainable, modules),
        named(loss),
        maker_of(optimiser, optimiser_options),
        privacy=PrivacySpec(**privacy),
        seed=seed,
    )
