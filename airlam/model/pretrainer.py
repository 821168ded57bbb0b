"""What trains in pretraining: one LAM over many prediction settings, and the filling in of hidden tokens.

Each setting has a head of its own shape in time and frequency, made of the same trained weights. That a
hidden token keeps its place in delay and angle, without which nobody could know which of a set it is, is a
reconstruction: published masked modelling of channels hides patches of a grid.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import nn

from airlam.model.backbone import seeded
from airlam.model.lam import LAM
from airlam.model.storage import check_tensors

_VALIDATION_SEED = 0  # the same tokens are hidden in every validation
_SMALLEST_DEVIATION = 0.5  # of a feature: they have about 1, and what few settings use is not blown up


class Pretrainer(nn.Module):
    """LAMs of several settings as one: embedding, backbone and head weights are those of the first.

    lams: one for each setting, of one spec. mean, deviation: float32 [num_features], of the real tokens.
    told: bool [num_features], features that a hidden token keeps: where its path lies, and the setting.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    told: torch.Tensor

    def __init__(
        self,
        lams: Sequence[LAM],
        *,
        mean: torch.Tensor,
        deviation: torch.Tensor,
        told: torch.Tensor,
        masked_share: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.lam = lams[0]
        self._views = (lams[0], *(_sharing(lam, lams[0]) for lam in lams[1:]))  # not registered again
        self.masked_share = masked_share
        width = self.lam.backbone.width
        with seeded(seed):
            self.mask_embedding = nn.Parameter(0.02 * torch.randn(width))
            self.reconstruction = nn.Linear(width, len(mean))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation.clamp_min(_SMALLEST_DEVIATION), persistent=False)
        self.register_buffer("told", told, persistent=False)

    def view(self, setting_index: int) -> LAM:
        """The LAM of a setting."""
        return self._views[setting_index]

    def masked_error(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the hidden features, each in units of its deviation: float32 [batch].

        A share of each link's tokens is hidden: their features but for ``told`` are zeroed and a learned
        embedding is added. features, mask: as in ``TokenBatch``.
        """
        hidden = self._hide(mask).unsqueeze(-1)  # [batch, num_tokens, 1]
        seen = torch.where(hidden & ~self.told, 0.0, features)
        embedded = self.lam.embedding(seen) + hidden * self.mask_embedding  # [batch, num_tokens, width]
        guess = self.reconstruction(self.lam.backbone(embedded, mask))  # [batch, num_tokens, num_features]
        wanted = (features - self.mean) / self.deviation
        counted = hidden & ~self.told
        error = torch.where(counted, guess - wanted, 0.0).square().sum((1, 2))  # [batch]
        return error / counted.sum((1, 2)).clamp_min(1)

    def _hide(self, mask: torch.Tensor) -> torch.Tensor:
        """Which tokens are hidden, bool as ``mask``: at random in training, always the same in validation."""
        generator = None if self.training else torch.Generator().manual_seed(_VALIDATION_SEED)
        scores = torch.rand(mask.shape, generator=generator).to(mask.device).masked_fill(~mask, 2.0)
        count = (self.masked_share * mask.sum(1, keepdim=True)).ceil()  # [batch, 1]
        return scores.argsort(dim=1).argsort(dim=1) < count

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Moves the other settings' heads along, whose constants are registered nowhere."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for lam in self._views[1:]:
            lam.heads._apply(fn)  # type: ignore[no-untyped-call]
        return self


def _sharing(lam: LAM, first: LAM) -> LAM:
    """``lam`` with the weights of ``first`` in place of its own; DataError where their shapes differ."""
    own, shared = dict(lam.named_parameters()), dict(first.named_parameters())
    check_tensors(own, shared, "this mixture's first setting")
    lam.embedding, lam.backbone = first.embedding, first.backbone
    for path, parameter in first.heads.named_parameters():
        parent, _, name = path.rpartition(".")
        setattr(lam.heads.get_submodule(parent), name, parameter)
    return lam
