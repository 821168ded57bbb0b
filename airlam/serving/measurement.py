"""What a request asks of a LAM, and the shapes of what goes in."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from airlam.radio.beam_selection import BeamHistory
from airlam.radio.channel import PredictionSetting


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one request asks: the future of some links, by one LAM.

    history: complex64 [links, num_history, num_user_ant, num_bs_ant, num_history_subcarriers], noisy.
    noise_variance: float32 [links]. with_errors: whether the answer has to tell how far it may be wrong, as
    ``Foresight.packed``; of LAMs that can.
    """

    lam: str
    history: torch.Tensor
    noise_variance: torch.Tensor
    with_errors: bool = False

    def __len__(self) -> int:
        return len(self.history)

    @property
    def name(self) -> str:
        """Of whom it asks."""
        return self.lam

    @property
    def size(self) -> int:
        """Links."""
        return len(self.history)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeps:
    """What one request asks: beams of the sweeps after some windows, by one LAM for beam selection."""

    lam: str
    history: BeamHistory
    with_errors: ClassVar[bool] = False  # it has none to tell

    def __len__(self) -> int:
        return len(self.history)

    @property
    def name(self) -> str:
        """Of whom it asks."""
        return self.lam

    @property
    def size(self) -> int:
        """Windows, of which each takes a row of a batch as a link does."""
        return len(self.history)


Question = Measurement | Sweeps


def tells_errors(requests: Iterable[Question]) -> bool:
    """Whether a LAM that has these requests has to tell its errors."""
    return any(request.with_errors for request in requests)


def history_of(setting: PredictionSetting) -> PredictionSetting:
    """What of a setting a measurement has to agree with: all but what is to be predicted."""
    return replace(setting, target_frequencies_hz=setting.history_frequencies_hz, num_horizon=1)


def slot_shape(setting: PredictionSetting, *leading: int) -> tuple[int, ...]:
    """Sizes of one slot's channel [num_user_ant, num_bs_ant, num_history_subcarriers], behind ``leading``."""
    num_bs = setting.base_station.num_ports
    return (*leading, setting.num_user_antennas, num_bs, len(setting.history_frequencies_hz))


def future_shape(setting: PredictionSetting, *leading: int) -> tuple[int, ...]:
    """Sizes of one link's future [num_horizon, num_user_ant, num_bs_ant, num_target_subcarriers]."""
    num_bs = setting.base_station.num_ports
    ports = (setting.num_user_antennas, num_bs)
    return (*leading, setting.num_horizon, *ports, len(setting.target_frequencies_hz))
