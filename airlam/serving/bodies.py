"""What predictions are asked by and answered with over HTTP, as arrays in a body (``airlam.serving.arrays``).

Numbers are checked before they are computed with.
"""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from airlam.radio.channel import PredictionSetting
from airlam.serving.arrays import (
    BINARY,
    Array,
    BodyError,
    JsonArray,
    arrays_of,
    body_bytes,
    check,
    complex_of,
    nested,
    parsed,
    real_of,
    saved,
    saved_parts,
    written,
)
from airlam.serving.measurement import Measurement, slot_shape

_FUTURE_OF = "future."  # before a LAM's name
_LEAST_POWER, _MOST_POWER = 1e-30, 1e30  # of single precision's 1e-38 to 1e38


class JsonMeasurement(BaseModel):
    """history: [links, num_history, num_user_ant, num_bs_ant, num_subcarriers]; noise_variance: [links]."""

    model_config = ConfigDict(extra="forbid")
    history: JsonArray
    noise_variance: list[float]


class JsonSlot(BaseModel):
    """channel: [num_user_ant, num_bs_ant, num_history_subcarriers]; noise_variance: of each coefficient."""

    model_config = ConfigDict(extra="forbid")
    channel: JsonArray
    noise_variance: float


def max_body_bytes(setting: PredictionSetting, max_links: int, media_type: str) -> int:
    """What the largest body of a LAM can have: ``max_links`` whole histories."""
    numbers = 2 * max_links * math.prod(slot_shape(setting, setting.num_history)) + max_links
    return body_bytes(numbers, media_type)


def read_measurement(
    body: bytes | bytearray, media_type: str, lam: str, setting: PredictionSetting, max_links: int
) -> Measurement:
    """The links of a request to ``lam``."""
    if media_type == BINARY:
        arrays = arrays_of(body, ("history", "noise_variance"))
    else:
        given = parsed(JsonMeasurement, body)
        arrays = {"history": complex_of(given.history), "noise_variance": real_of(given.noise_variance)}
    return checked_measurement(arrays["history"], arrays["noise_variance"], lam, setting, max_links)


def checked_measurement(
    history: Array, variance: Array, lam: str, setting: PredictionSetting, max_links: int
) -> Measurement:
    """The links that arrays of a body hold; BodyError where these are none for ``lam``."""
    check("history", history, np.complex64, ("links", *slot_shape(setting, setting.num_history)))
    if not 1 <= len(history) <= max_links:
        raise BodyError(422, f"history has {len(history)} links; expected 1 to {max_links}")
    check("noise_variance", variance, np.float32, (len(history),))
    _check_powers(history, variance)
    return Measurement(lam=lam, history=torch.from_numpy(history), noise_variance=torch.from_numpy(variance))


def read_slot(
    body: bytes | bytearray, media_type: str, setting: PredictionSetting
) -> tuple[torch.Tensor, float]:
    """One slot's channel, complex64 [num_user_ant, num_bs_ant, num_subcarriers], and its noise variance."""
    if media_type == BINARY:
        arrays = arrays_of(body, ("channel", "noise_variance"))
    else:
        given = parsed(JsonSlot, body)
        arrays = {"channel": complex_of(given.channel), "noise_variance": real_of(given.noise_variance)}
    channel, variance = arrays["channel"], arrays["noise_variance"]
    check("channel", channel, np.complex64, slot_shape(setting))
    check("noise_variance", variance, np.float32, ())
    _check_powers(channel[None], variance.reshape(1))
    return torch.from_numpy(channel), variance.item()


def write_measurement(measurement: Measurement) -> bytes:
    """A request's body, as safetensors."""
    return b"".join(measurement_parts(measurement))


def measurement_parts(measurement: Measurement) -> list[bytes | memoryview]:
    """The same in parts, the history where it is."""
    return saved_parts(history=measurement.history, noise_variance=measurement.noise_variance)


def write_slot(channel: torch.Tensor, noise_variance: float) -> bytes:
    """A slot's body, as safetensors."""
    return saved(channel=channel, noise_variance=torch.tensor(noise_variance))


def write_future(future: torch.Tensor, media_type: str) -> bytes:
    """An answer's body; future: complex64 [links, num_horizon, num_user_ant, num_bs_ant, num_subcarriers]."""
    return written("future", future, media_type)


def write_futures(futures: Mapping[str, torch.Tensor], media_type: str) -> bytes:
    """An answer of several LAMs, by their names; shapes as in ``write_future``."""
    if media_type == BINARY:
        return saved(**{_FUTURE_OF + lam: future for lam, future in futures.items()})
    return json.dumps(
        {"futures": {lam: nested(future) for lam, future in futures.items()}}, allow_nan=False
    ).encode()


def read_futures(body: bytes | bytearray, lams: Sequence[str]) -> dict[str, torch.Tensor]:
    """The futures in a safetensors answer of several LAMs."""
    arrays = arrays_of(body, tuple(_FUTURE_OF + lam for lam in lams))
    return {lam: torch.from_numpy(arrays[_FUTURE_OF + lam]) for lam in lams}


def read_future(body: bytes | bytearray) -> torch.Tensor:
    """The future in a safetensors answer."""
    return torch.from_numpy(arrays_of(body, ("future",))["future"])


def _check_powers(history: Array, noise_variance: Array) -> None:
    """Both must be powers that single precision can hold, so that nobody's numbers spoil a batch.

    history: links first, any shape; noise_variance: of each link. A link's power is NaN or infinite where any
    of its numbers is.
    """
    flat = history.reshape(len(history), -1)  # [links, numbers]
    powers = [np.vdot(link, link).real / flat.shape[1] for link in flat]
    for name, found in (("the power of the channel", powers), ("noise_variance", noise_variance.tolist())):
        if not all(_LEAST_POWER < power < _MOST_POWER for power in found):
            raise BodyError(
                422,
                f"{name} is NaN or out of range; expected {_LEAST_POWER:g} to {_MOST_POWER:g} for each link",
            )
