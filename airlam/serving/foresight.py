"""A LAM that can tell how far its predictions may be wrong, served as any other LAM is.

Where errors are asked for, the future and their covariance come as one tensor, so that queue, batches, and
messages between machines are those of every LAM.
"""

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import nn

from airlam.model.base import Context, PredictionHead
from airlam.model.lam import CHANNEL_PREDICTION, LAM
from airlam.radio.channel import PredictionSetting
from airlam.serving.measurement import future_shape
from airlam.tokens.path import PathTokenizer
from airlam.tokens.path_error import PathErrorTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """What is predicted of some links, and how far it may be wrong.

    future: complex64 [links, num_horizon, num_user_ant, num_bs_ant, num_subcarriers]. error_covariance:
    complex64 [links, num_horizon, num_subcarriers, ports, ports], over the ports of one polarisation, as
    ``Downlinks`` takes it.
    """

    future: torch.Tensor
    error_covariance: torch.Tensor

    @property
    def packed(self) -> torch.Tensor:
        """Both, the future first: complex64 [links, num_horizon, numbers]."""
        return torch.cat([self.future.flatten(2), self.error_covariance.flatten(2)], dim=2)

    @staticmethod
    def unpacked(packed: torch.Tensor, setting: PredictionSetting) -> "Foresight":
        """What ``packed`` made one tensor of, as views of it."""
        _, num_user_ant, num_bs_ant, num_subcarriers = future_shape(setting)
        num_future, ports = num_user_ant * num_bs_ant * num_subcarriers, num_error_ports(setting)
        future, errors = packed[..., :num_future], packed[..., num_future:]
        return Foresight(
            future=rearrange(future, "k t (u m f) -> k t u m f", u=num_user_ant, m=num_bs_ant),
            error_covariance=rearrange(errors, "k t (f m n) -> k t f m n", m=ports, n=ports),
        )


def num_error_ports(setting: PredictionSetting) -> int:
    """Ports of one polarisation of the base station."""
    return setting.base_station.num_ports // setting.base_station.num_polarizations


class ForesightHead(nn.Module):
    """Implements ``PredictionHead``."""

    levels: torch.Tensor

    def __init__(self, head: nn.Module, paths: PathTokenizer, levels: torch.Tensor) -> None:
        """head, paths: the LAM's own. levels: of the covariance, as of ``PredictivePrecoder``."""
        super().__init__()
        self.head = head
        every = torch.arange(len(paths.setting.target_frequencies_hz))
        self._errors = PathErrorTokenizer(paths, every)
        self.register_buffer("levels", levels)

    def forward(self, hidden: torch.Tensor, context: Context) -> Context:
        """See ``PredictionHead.forward``."""
        return cast(Context, self.head(hidden, context))

    def channel(self, output: Context, context: Context) -> torch.Tensor:
        """See ``PredictionHead.channel``."""
        return cast(PredictionHead, self.head).channel(output, context)

    def foresight(self, output: Context, context: Context) -> torch.Tensor:
        """``Foresight.packed`` of all links, from what ``channel`` takes."""
        errors = self._errors.error_covariance(context).conj() * self.levels[:, None, None, None]
        return Foresight(future=self.channel(output, context), error_covariance=errors).packed

    def squared_error(self, output: Context, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``PredictionHead.squared_error``."""
        return cast(PredictionHead, self.head).squared_error(output, context)


def foreseeing(lam: LAM, levels: torch.Tensor) -> LAM:
    """The LAM itself, its head now a ``ForesightHead``; levels: float32 [num_horizon]."""
    assert isinstance(lam.tokenizer, PathTokenizer)  # nothing else is tuned together with a precoder
    lam.heads[CHANNEL_PREDICTION] = ForesightHead(lam.heads[CHANNEL_PREDICTION], lam.tokenizer, levels)
    return lam


def foresees(lam: LAM) -> bool:
    """Whether the LAM's head tells of errors."""
    return isinstance(lam.heads[CHANNEL_PREDICTION], ForesightHead)
