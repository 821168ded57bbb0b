"""What the server wants of whatever predicts behind it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from airlam.radio.channel import PredictionSetting
from airlam.serving.measurement import Measurement
from airlam.serving.service_graph import ServiceGraph


class Services(Protocol):
    """LAMs by name, behind one ``predict``."""

    @property
    def settings(self) -> Mapping[str, PredictionSetting]:
        """What each LAM takes and gives, by its name."""
        ...

    @property
    def graph(self) -> ServiceGraph:
        """What runs, and who shares it."""
        ...

    def warm(self) -> None:
        """Has each LAM predict something: first passes take longer than all later ones."""
        ...

    def predict(self, requests: Sequence[Measurement]) -> list[torch.Tensor]:
        """The future that each request asks for: complex64 [links, num_horizon, num_user_ant, num_bs_ant,
        num_target_subcarriers].
        """
        ...
