"""What beams are asked by and answered with over HTTP, as arrays in a body."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from airlam.radio.beam_selection import BeamHistory
from airlam.serving.arrays import BINARY, BodyError, arrays_of, body_bytes, check, parsed, real_of, saved
from airlam.serving.measurement import Sweeps
from airlam.tokens.beam_history import BeamScales

_LEAST_POWER, _MOST_POWER, _FARTHEST_M = 1e-30, 1e30, 1e6


class JsonSweeps(BaseModel):
    """power: [windows, num_past, num_beams], linear, oldest sweep first; position_m: [windows, num_past, 3],
    the user's measured positions at these sweeps, from the site's origin.
    """

    model_config = ConfigDict(extra="forbid")
    power: list[Any]
    position_m: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamChoice:
    """The beams to sweep first, the likeliest first, of each sweep ahead.

    beam: int64 [windows, num_ahead, top], from 0. share: float32 of the same shape, each beam's in the LAM's
    choice; of all beams the sum is 1.
    """

    beam: torch.Tensor
    share: torch.Tensor

    @staticmethod
    def of(shares: torch.Tensor, top: int) -> "BeamChoice":
        """The first ``top`` beams; shares: float32 [windows, num_ahead, num_beams]."""
        found = shares.topk(top, dim=-1)
        return BeamChoice(beam=found.indices, share=found.values)


def max_sweeps_bytes(setting: BeamScales, max_windows: int, media_type: str) -> int:
    """What the largest body of a LAM can have."""
    return body_bytes(max_windows * setting.num_past * (setting.num_beams + 3), media_type)


def read_sweeps(
    body: bytes | bytearray, media_type: str, lam: str, setting: BeamScales, max_windows: int
) -> Sweeps:
    """The windows of a request to ``lam``."""
    if media_type == BINARY:
        arrays = arrays_of(body, ("power", "position_m"))
    else:
        given = parsed(JsonSweeps, body)
        arrays = {"power": real_of(given.power), "position_m": real_of(given.position_m)}
    power, position_m = arrays["power"], arrays["position_m"]
    check("power", power, np.float32, ("windows", setting.num_past, setting.num_beams))
    if not 1 <= len(power) <= max_windows:
        raise BodyError(422, f"power has {len(power)} windows; expected 1 to {max_windows}")
    check("position_m", position_m, np.float32, (len(power), setting.num_past, 3))
    if not (power.min() > _LEAST_POWER and power.max() < _MOST_POWER):  # NaN is neither
        raise BodyError(
            422, f"a power is NaN or out of range; expected {_LEAST_POWER:g} to {_MOST_POWER:g} for each beam"
        )
    if not np.abs(position_m).max() < _FARTHEST_M:
        raise BodyError(422, f"a position is NaN or out of range; expected less than {_FARTHEST_M:g} m")
    history = BeamHistory(
        power=torch.from_numpy(power).double(), position_m=torch.from_numpy(position_m).double()
    )
    return Sweeps(lam=lam, history=history)


def write_sweeps(history: BeamHistory) -> bytes:
    """A request's body, as safetensors."""
    return saved(power=history.power.float(), position_m=history.position_m.float())


def write_choice(choice: BeamChoice, media_type: str) -> bytes:
    """An answer's body."""
    if media_type == BINARY:
        return saved(beam=choice.beam, share=choice.share)
    return json.dumps({"beam": choice.beam.tolist(), "share": choice.share.tolist()}).encode()


def read_choice(body: bytes | bytearray) -> BeamChoice:
    """The beams in a safetensors answer."""
    arrays = arrays_of(body, ("beam", "share"))
    return BeamChoice(beam=torch.from_numpy(arrays["beam"]), share=torch.from_numpy(arrays["share"]))
