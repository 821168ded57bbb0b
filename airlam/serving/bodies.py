"""What travels over HTTP: safetensors or JSON in, safetensors or JSON out, never a pickle.

A body's size is checked before it is read, its dtypes and shapes before they are used, its numbers before
they are computed with. ``BodyError`` says what is wrong, with the status that HTTP has for it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from airlam.radio.channel import PredictionSetting
from airlam.serving.measurement import Measurement, slot_shape

BINARY, JSON = "application/x-safetensors", "application/json"
_HEADER_BYTES = 2**14  # of a safetensors body, and what JSON has besides numbers
_JSON_BYTES_PER_NUMBER = 32  # with sign, exponent, comma and some space
_FUTURE_OF = "future."  # before a LAM's name
_LEAST_POWER, _MOST_POWER = 1e-30, 1e30  # of single precision's 1e-38 to 1e38
Array = npt.NDArray[Any]

Model = TypeVar("Model", bound=BaseModel)


class BodyError(Exception):
    """A body that cannot be taken; status: 4xx."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class JsonArray(BaseModel):
    """A complex array: two nested lists of numbers of one shape."""

    model_config = ConfigDict(extra="forbid")
    real: list[Any]
    imag: list[Any]


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
    return _HEADER_BYTES + numbers * (4 if media_type == BINARY else _JSON_BYTES_PER_NUMBER)


def media_type_of(header: str | None) -> str:
    """Of a Content-Type header; BodyError where it is none of ours."""
    found = (header or "").partition(";")[0].strip().lower()
    if found not in (BINARY, JSON):
        raise BodyError(415, f"Content-Type is {found[:80]!r}; send {BINARY} or {JSON}")
    return found


def read_measurement(
    body: bytes, media_type: str, lam: str, setting: PredictionSetting, max_links: int
) -> Measurement:
    """The links of a request to ``lam``."""
    if media_type == BINARY:
        arrays = _arrays(body, ("history", "noise_variance"))
    else:
        given = _parsed(JsonMeasurement, body)
        arrays = {"history": _complex(given.history), "noise_variance": _real(given.noise_variance)}
    history, variance = arrays["history"], arrays["noise_variance"]
    _check("history", history, np.complex64, (None, *slot_shape(setting, setting.num_history)))
    if not 1 <= len(history) <= max_links:
        raise BodyError(422, f"history has {len(history)} links; expected 1 to {max_links}")
    _check("noise_variance", variance, np.float32, (len(history),))
    _check_powers(history, variance)
    return Measurement(lam=lam, history=torch.from_numpy(history), noise_variance=torch.from_numpy(variance))


def read_slot(body: bytes, media_type: str, setting: PredictionSetting) -> tuple[torch.Tensor, float]:
    """One slot's channel, complex64 [num_user_ant, num_bs_ant, num_subcarriers], and its noise variance."""
    if media_type == BINARY:
        arrays = _arrays(body, ("channel", "noise_variance"))
    else:
        given = _parsed(JsonSlot, body)
        arrays = {"channel": _complex(given.channel), "noise_variance": _real(given.noise_variance)}
    channel, variance = arrays["channel"], arrays["noise_variance"]
    _check("channel", channel, np.complex64, slot_shape(setting))
    _check("noise_variance", variance, np.float32, ())
    _check_powers(channel[None], variance.reshape(1))
    return torch.from_numpy(channel), variance.item()


def write_measurement(measurement: Measurement) -> bytes:
    """A request's body, as safetensors."""
    return _saved(history=measurement.history, noise_variance=measurement.noise_variance)


def write_slot(channel: torch.Tensor, noise_variance: float) -> bytes:
    """A slot's body, as safetensors."""
    return _saved(channel=channel, noise_variance=torch.tensor(noise_variance))


def write_future(future: torch.Tensor, media_type: str) -> bytes:
    """An answer's body; future: complex64 [links, num_horizon, num_user_ant, num_bs_ant, num_subcarriers]."""
    if media_type == BINARY:
        return _saved(future=future)
    nested = {"real": future.real.tolist(), "imag": future.imag.tolist()}
    return json.dumps({"future": nested}, allow_nan=False).encode()


def write_futures(futures: Mapping[str, torch.Tensor], media_type: str) -> bytes:
    """An answer of several LAMs, by their names; shapes as in ``write_future``."""
    if media_type == BINARY:
        return _saved(**{_FUTURE_OF + lam: future for lam, future in futures.items()})
    nested = {lam: {"real": f.real.tolist(), "imag": f.imag.tolist()} for lam, f in futures.items()}
    return json.dumps({"futures": nested}, allow_nan=False).encode()


def read_futures(body: bytes, lams: Sequence[str]) -> dict[str, torch.Tensor]:
    """The futures in a safetensors answer of several LAMs."""
    arrays = _arrays(body, tuple(_FUTURE_OF + lam for lam in lams))
    return {lam: torch.from_numpy(arrays[_FUTURE_OF + lam]) for lam in lams}


def read_future(body: bytes) -> torch.Tensor:
    """The future in a safetensors answer."""
    return torch.from_numpy(_arrays(body, ("future",))["future"])


def _saved(**tensors: torch.Tensor) -> bytes:
    # a tensor, unlike an array, may be a view that is not laid out as it reads
    return save({name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()})


def _arrays(body: bytes, names: tuple[str, ...]) -> dict[str, Array]:
    """Exactly these arrays, writable; safetensors holds its header to the body's size before it reads on."""
    try:
        arrays: dict[str, Array] = load(body)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that numpy has not
        raise BodyError(400, f"the body is no safetensors file: {str(error).splitlines()[0][:200]}") from None
    if set(arrays) != set(names):
        found = ", ".join(sorted(arrays))[:200] or "nothing"
        raise BodyError(422, f"the body holds {found}; expected {' and '.join(names)}")
    return arrays


def _parsed(kind: type[Model], body: bytes) -> Model:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))[:80]
        status = 400 if first["type"] == "json_invalid" else 422
        raise BodyError(status, f"{place or 'the body'}: {first['msg'][:200]}") from None


def _complex(given: JsonArray) -> Array:
    """complex64 of whatever shape the lists have."""
    real, imag = _real(given.real), _real(given.imag)
    if real.shape != imag.shape:
        raise BodyError(422, f"real is {real.shape}, imag {imag.shape}; they must agree")
    array = np.empty(real.shape, np.complex64)
    array.real, array.imag = real, imag
    return array


def _real(values: Any) -> Array:
    """float32 of whatever shape the lists have."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise BodyError(422, "an array's lists differ in length") from None
    if array.dtype.kind not in "if":
        raise BodyError(422, "an array holds something else than numbers")
    with np.errstate(over="ignore"):  # what single precision cannot hold is infinite, and refused as such
        return array.astype(np.float32)


def _check(name: str, value: Array, dtype: type, shape: tuple[int | None, ...]) -> None:
    same = value.ndim == len(shape) and all(
        size in (None, own) for own, size in zip(value.shape, shape, strict=True)
    )
    if value.dtype != dtype or not same:
        sizes = ", ".join("links" if size is None else str(size) for size in shape)
        raise BodyError(422, f"{name} is {value.dtype} {value.shape}; expected {np.dtype(dtype)} ({sizes})")


def _check_powers(history: Array, noise_variance: Array) -> None:
    """Both must be powers that single precision can hold, so that nobody's numbers spoil a batch.

    A link's power is NaN or infinite where any of its numbers is.
    """
    flat = history.reshape(len(history), -1)  # [links, numbers]
    powers = [np.vdot(link, link).real / flat.shape[1] for link in flat]
    for name, found in (("the power of the channel", powers), ("noise_variance", noise_variance.tolist())):
        if not all(_LEAST_POWER < power < _MOST_POWER for power in found):
            raise BodyError(
                422,
                f"{name} is NaN or out of range; expected {_LEAST_POWER:g} to {_MOST_POWER:g} for each link",
            )
