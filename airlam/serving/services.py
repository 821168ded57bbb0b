"""What the server wants of whatever predicts behind it."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch

from airlam.radio.channel import PredictionSetting
from airlam.serving.downlinks import Csi, Downlinks
from airlam.serving.measurement import Question
from airlam.serving.service_graph import ServiceGraph
from airlam.tokens.beam_history import BeamScales


class Services(Protocol):
    """LAMs by name, behind one ``predict``."""

    @property
    def settings(self) -> Mapping[str, PredictionSetting]:
        """What each LAM of channel prediction takes and gives, by its name."""
        ...

    @property
    def beam_settings(self) -> Mapping[str, BeamScales]:
        """The same of LAMs of beam selection."""
        ...

    @property
    def graph(self) -> ServiceGraph:
        """What runs, and who shares it."""
        ...

    def warm(self) -> None:
        """Has each LAM predict something: first passes take longer than all later ones."""
        ...

    def close(self) -> None:
        """Ends what runs for them in other processes; nothing is asked of them any more."""
        ...

    def predict(self, requests: Sequence[Question]) -> list[torch.Tensor]:
        """The future that each request asks for: complex64 [links, num_horizon, num_user_ant, num_bs_ant,
        num_target_subcarriers], or ``Foresight.packed`` where its errors are asked for, too.

        Of sweeps it is the LAM's share for each beam, of sum 1 over beams: float32 [windows, num_ahead,
        num_beams].
        """
        ...


@runtime_checkable
class PrecodingServices(Services, Protocol):
    """LAMs, if there are any, and precoders by name behind one ``precode``."""

    @property
    def csi(self) -> Mapping[str, Csi]:
        """What each precoder was trained on, by its name."""
        ...

    def precode(self, requests: Sequence[Downlinks]) -> list[torch.Tensor]:
        """Precoders of total power 1 for each request: complex64 [downlinks, num_bs_ant, num_users]."""
        ...
