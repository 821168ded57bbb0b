"""What precoders are asked by and answered with over HTTP, as arrays in a body."""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from airlam.errors import SpecError
from airlam.radio.channel import PredictionSetting
from airlam.serving.arrays import (
    BINARY,
    BodyError,
    JsonArray,
    arrays_of,
    body_bytes,
    check,
    complex_of,
    parsed,
    real_of,
    saved,
    written,
)
from airlam.serving.bodies import checked_measurement, max_body_bytes
from airlam.serving.downlinks import Downlinks
from airlam.serving.measurement import Measurement

_NUMBERS_PER_COEFFICIENT = (
    3  # real and imaginary part, and a noise variance for each downlink, which has some
)
_ERRORS = "error_covariance"


class JsonDownlinks(BaseModel):
    """channel: [downlinks, num_users, num_bs_ant]; noise_variance: [downlinks], of the users' receivers over
    a total power of 1; error_covariance: [downlinks, num_users, num_ports, num_ports], of channels known up
    to an error, ports being all antennas or those of one polarisation.
    """

    model_config = ConfigDict(extra="forbid")
    channel: JsonArray
    noise_variance: list[float]
    error_covariance: JsonArray | None = None


class JsonUsers(BaseModel):
    """history: [users, num_history, num_user_ant, num_bs_ant, num_subcarriers]; noise_variance: [users], of
    the history; receiver_noise_variance: of the users' receivers over a total power of 1.
    """

    model_config = ConfigDict(extra="forbid")
    history: JsonArray
    noise_variance: list[float]
    receiver_noise_variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """Users to be served together: histories, and the noise of their receivers over a total power of 1."""

    measurement: Measurement
    receiver_noise_variance: float


def max_downlinks_bytes(max_coefficients: int, media_type: str) -> int:
    """What the largest body of downlinks can have."""
    return body_bytes(_NUMBERS_PER_COEFFICIENT * max_coefficients, media_type)


def max_users_bytes(setting: PredictionSetting, max_users: int, media_type: str) -> int:
    """What the largest body of users can have."""
    return max_body_bytes(setting, max_users + 1, media_type)  # one more than their noise takes


def read_downlinks(
    body: bytes | bytearray, media_type: str, precoder: str, max_coefficients: int
) -> Downlinks:
    """The downlinks of a request to ``precoder``."""
    if media_type == BINARY:
        arrays = arrays_of(body, ("channel", "noise_variance"), (_ERRORS,))
    else:
        given = parsed(JsonDownlinks, body)
        arrays = {"channel": complex_of(given.channel), "noise_variance": real_of(given.noise_variance)}
        if given.error_covariance is not None:
            arrays[_ERRORS] = complex_of(given.error_covariance)
    check("channel", arrays["channel"], np.complex64, ("downlinks", "num_users", "num_bs_ant"))
    check("noise_variance", arrays["noise_variance"], np.float32, ("downlinks",))
    errors = arrays.get(_ERRORS)
    try:
        found = Downlinks(
            precoder=precoder,
            h=torch.from_numpy(arrays["channel"]),
            noise_variance=torch.from_numpy(arrays["noise_variance"]),
            error_covariance=None if errors is None else torch.from_numpy(errors),
        )
    except SpecError as error:
        raise BodyError(422, str(error)) from None
    if found.size > max_coefficients:
        raise BodyError(
            422,
            f"the downlinks have {found.size} coefficients with those between users; expected at most "
            f"{max_coefficients}",
        )
    return found


def read_users(
    body: bytes | bytearray, media_type: str, lam: str, setting: PredictionSetting, max_users: int
) -> Users:
    """Users whose channels ``lam`` is to predict."""
    if media_type == BINARY:
        arrays = arrays_of(body, ("history", "noise_variance", "receiver_noise_variance"))
    else:
        given = parsed(JsonUsers, body)
        arrays = {
            "history": complex_of(given.history),
            "noise_variance": real_of(given.noise_variance),
            "receiver_noise_variance": real_of(given.receiver_noise_variance),
        }
    measurement = checked_measurement(arrays["history"], arrays["noise_variance"], lam, setting, max_users)
    check("receiver_noise_variance", arrays["receiver_noise_variance"], np.float32, ())
    receiver_noise_variance = float(arrays["receiver_noise_variance"])
    if not 0 < receiver_noise_variance < np.inf:
        raise BodyError(
            422, f"receiver_noise_variance is {receiver_noise_variance}; expected a positive number"
        )
    return Users(measurement=measurement, receiver_noise_variance=receiver_noise_variance)


def write_downlinks(downlinks: Downlinks) -> bytes:
    """A request's body, as safetensors."""
    errors = downlinks.error_covariance
    more = {} if errors is None else {_ERRORS: errors}
    return saved(channel=downlinks.h, noise_variance=downlinks.noise_variance, **more)


def write_users(users: Users) -> bytes:
    """A request's body, as safetensors."""
    asked = users.measurement
    return saved(
        history=asked.history,
        noise_variance=asked.noise_variance,
        receiver_noise_variance=torch.tensor(users.receiver_noise_variance),
    )


def write_precoder(w: torch.Tensor, media_type: str) -> bytes:
    """An answer's body; w: complex64 [..., num_bs_ant, num_users]."""
    return written("precoder", w, media_type)


def read_precoder(body: bytes | bytearray) -> torch.Tensor:
    """The precoder in a safetensors answer."""
    return torch.from_numpy(arrays_of(body, ("precoder",))["precoder"])
