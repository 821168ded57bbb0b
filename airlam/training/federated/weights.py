"""Weights of which every device trains a copy: handed out before a round, checked and averaged after it."""

import math
import statistics
from collections.abc import Collection, Mapping

import torch

from airlam.model.lam import LAM
from airlam.split.failures import NodeFailure
from airlam.split.flow_state import tensor_of
from airlam.split.messages import Header, Message, MessageError, TensorField, Tensors
from airlam.split.part import owner_of
from airlam.split.run import Session
from airlam.split.transport import ask
from airlam.training.federated.layout import Layout
from airlam.training.heterogeneous_ranks import (
    LoraFactors,
    average_by_svd,
    average_padded,
    product_gap,
)

DOWN, UP = ".lora_A.", ".lora_B."
_COUNTED = "weights/"  # as which they are counted


class SharedWeights:
    """The server's copy, and which version of it each device has.

    ranks: LoRA rank of each device where they differ. A device of a smaller rank trains the model's factors
    with zeros beyond its rank, whose gradients are zero, and sends and is sent its own rows only.
    """

    def __init__(
        self,
        lam: LAM,
        layout: Layout,
        session: Session,
        *,
        ranks: Mapping[str, int] | None = None,
        merge: str = "pad",
    ) -> None:
        self.layout, self.session, self.ranks, self.merge_by = layout, session, ranks or {}, merge
        self.value: Tensors = {
            name: p.detach().clone()
            for name, p in lam.named_parameters()
            if p.requires_grad and owner_of(lam, name) in layout.shared
        }
        self.version = 0
        largest = lam.spec.lora_rank
        self._held = {
            flow: 0 if self.ranks.get(flow, largest) == largest else -1 for flow in layout.plan.flow_names
        }
        self.product_gap = math.nan  # of the last merge, largest of all LoRA pairs

    def upload_bytes(self, flow: str) -> int:
        """What a device sends up in a round."""
        return sum(self._own_rows(flow, name, value).nbytes for name, value in self.value.items())

    def broadcast_bytes(self) -> int:
        """What starts a round: the shared weights, once for all; 0 while every device has them."""
        if all(held == self.version for held in self._held.values()):
            return 0
        return sum(value.nbytes for value in self.value.values())

    def broadcast(self, flows: Collection[str], seconds: float) -> None:
        """Puts the shared weights on the air, where any device lacks them; devices then ``take_up``."""
        if self.broadcast_bytes():
            sent = {_COUNTED + name: value for name, value in self.value.items()}
            self.session.air.broadcast(sent, sender=self.layout.server, flows=flows, seconds=seconds)

    def take_up(self, step: int, flow: str) -> None:
        """A device that lacks them takes the shared weights that it heard; NodeFailure where it is lost."""
        if not self.value or self._held[flow] == self.version:
            return
        whole = {n: _as_large(self._own_rows(flow, n, value), value) for n, value in self.value.items()}
        header = Header(
            operation="assign", flow=flow, step=step, modules=self.layout.shared, wants=("trained",)
        )
        ask(self.session.transport, flow, Message(header=header, tensors=whole))
        self._held[flow] = self.version

    def collect(self, step: int, flow: str) -> Tensors:
        """What a device has trained; NodeFailure where it is lost or sends something else.

        From here on the device is not up to date, whatever becomes of what it sent.
        """
        self._held[flow] = -1
        header = Header(
            operation="weights", flow=flow, step=step, modules=self.layout.shared, wants=("trained",)
        )
        given = ask(self.session.transport, flow, Message(header=header)).tensors
        try:
            for name, value in self.value.items():
                tensor_of(given, name, TensorField.of(value.dtype, *value.shape))
            extra = sorted(given.keys() - self.value.keys())
            if extra:
                raise MessageError(f"it sent {extra[0]!r}, unasked")
        except MessageError as error:
            raise NodeFailure(node=flow, kind="rejected", reason=str(error)) from None
        rows = {_COUNTED + n: self._own_rows(flow, n, value) for n, value in given.items()}
        server = self.layout.server
        arrived = self.session.air.carry(rows, flow=flow, step=step, sender=flow, receiver=server)
        return {n: _as_large(arrived[_COUNTED + n], value) for n, value in self.value.items()}

    def too_far(self, found: Mapping[str, Tensors], max_ratio: float) -> dict[str, str]:
        """Devices whose update is more than so many times the median one, and why."""
        norms = {flow: self._update_norm(given) for flow, given in found.items()}
        return outliers(norms, max_ratio, "update")

    def merge(self, found: Mapping[str, Tensors], num_samples: Mapping[str, int]) -> None:
        """The mean of what came, weighed by samples, is the next version.

        Rows of LoRA factors beyond the largest rank among these devices stay as they were.
        """
        total = sum(num_samples[flow] for flow in found)
        weights = [num_samples[flow] / total for flow in found]
        merged = {
            name: torch.stack(
                [w * given[name] for w, given in zip(weights, found.values(), strict=True)]
            ).sum(0)
            for name in self.value
        }
        if self.ranks:
            merged |= self._merged_factors(found, weights)
        self.value = merged
        self.version += 1

    def state(self) -> tuple[Tensors, dict[str, int]]:
        """For a checkpoint: the value, and versions by device with the server's own under its name."""
        return dict(self.value), {**self._held, self.layout.server: self.version}

    def restore(self, value: Tensors, versions: Mapping[str, int]) -> None:
        """Goes on from ``state``."""
        self.value = dict(value)
        self.version = versions[self.layout.server]
        self._held = {flow: versions[flow] for flow in self._held}

    def _merged_factors(self, found: Mapping[str, Tensors], weights: list[float]) -> Tensors:
        """The LoRA factors of a round in which ranks differ."""
        merged: Tensors = {}
        gaps = [0.0]
        for name in [n for n in self.value if DOWN in n]:
            twin = name.replace(DOWN, UP)
            before = LoraFactors(down=self.value[name], up=self.value[twin])
            given = [
                LoraFactors(down=t[name], up=t[twin]).at_rank(self.ranks.get(flow, before.rank))
                for flow, t in found.items()
            ]
            top = max(one.rank for one in given)
            mean = (
                average_by_svd(given, weights, top)
                if self.merge_by == "svd"
                else average_padded(given, weights)
            )
            gaps.append(product_gap(mean, given, weights))
            merged[name] = torch.cat([mean.down, before.down[top:]])  # [rank, num_in]
            merged[twin] = torch.cat([mean.up, before.up[:, top:]], dim=1)  # [num_out, rank]
        self.product_gap = max(gaps)
        return merged

    def _own_rows(self, flow: str, name: str, value: torch.Tensor) -> torch.Tensor:
        """What of a tensor a device has: of LoRA factors, those up to its rank."""
        rank = self.ranks.get(flow)
        if rank is None or not (DOWN in name or UP in name):
            return value
        return value[:rank] if DOWN in name else value[:, :rank]

    def _update_norm(self, given: Tensors) -> float:
        squares = [(given[name] - value).double().square().sum().item() for name, value in self.value.items()]
        return math.sqrt(sum(squares))


def outliers(norms: Mapping[str, float], max_ratio: float, what: str) -> dict[str, str]:
    """Those whose norm is not finite or more than ``max_ratio`` times the median of the finite ones."""
    finite = [norm for norm in norms.values() if math.isfinite(norm)]
    median = statistics.median(finite) if finite else 0.0
    return {
        name: f"its {what} is {norm:.3g} long, the median {median:.3g}"
        for name, norm in norms.items()
        if not norm <= max_ratio * median
    }


def _as_large(value: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A tensor with zeros in the place of rows and columns that it lacks."""
    if value.shape == whole.shape:
        return value
    filled = torch.zeros_like(whole)
    filled[tuple(slice(size) for size in value.shape)] = value
    return filled
