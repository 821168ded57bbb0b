"""Named arrays as HTTP bodies: safetensors or JSON in, safetensors or JSON out, never a pickle.

A body's size is checked before it is read, its dtypes and shapes before they are used. ``BodyError`` says
what is wrong, with the status that HTTP has for it.
"""

import functools
import json
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

BINARY, JSON = "application/x-safetensors", "application/json"
_HEADER_BYTES = 2**14  # of a safetensors body, and what JSON has besides numbers
_JSON_BYTES_PER_NUMBER = 32  # with sign, exponent, comma and some space
_KNOWN, _KNOWN_BYTES = 256, 1024  # headers of bodies that are remembered, and how long one may be
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


def body_bytes(numbers: int, media_type: str) -> int:
    """What a body of so many real numbers can have at most."""
    return _HEADER_BYTES + numbers * (4 if media_type == BINARY else _JSON_BYTES_PER_NUMBER)


def written(name: str, tensor: torch.Tensor, media_type: str) -> bytes:
    """An answer's body of one complex tensor."""
    if media_type == BINARY:
        return saved(**{name: tensor})
    return json.dumps({name: nested(tensor)}, allow_nan=False).encode()


def nested(tensor: torch.Tensor) -> dict[str, Any]:
    """A complex tensor as ``JsonArray`` has it."""
    return {"real": tensor.real.tolist(), "imag": tensor.imag.tolist()}


def media_type_of(header: str | None) -> str:
    """Of a Content-Type header; BodyError where it is none of ours."""
    found = (header or "").partition(";")[0].strip().lower()
    if found not in (BINARY, JSON):
        raise BodyError(415, f"Content-Type is {found[:80]!r}; send {BINARY} or {JSON}")
    return found


def saved(**tensors: torch.Tensor) -> bytes:
    """Tensors of any device and layout, by name, as safetensors."""
    return b"".join(saved_parts(**tensors))


def saved_parts(**tensors: torch.Tensor) -> list[bytes | memoryview]:
    """What ``saved`` gives, in parts: the tensors' own memory where they are laid out as they read."""
    # as numpy has it, a view that is not laid out as it reads is copied
    arrays = {name: np.asarray(value.numpy(force=True), order="C") for name, value in tensors.items()}
    header, order = _header(tuple((name, array.dtype, array.shape) for name, array in arrays.items()))
    return [header, *(arrays[name].data for name in order)]


@functools.lru_cache(_KNOWN)
def _header(layout: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]) -> tuple[bytes, list[str]]:
    """What safetensors puts before arrays of these names, dtypes and shapes, and the order of these."""
    header = _header_of(save({name: np.zeros(shape, dtype) for name, dtype, shape in layout}))
    offsets = _offsets(header)
    return header, sorted(offsets, key=lambda name: offsets[name])


def arrays_of(
    body: bytes | bytearray, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Array]:
    """Exactly these arrays, and of the optional ones those that are there; all writable.

    safetensors holds its header to the body's size before it reads on. A bytearray is not copied.
    """
    try:
        arrays = _arrays(body if isinstance(body, bytearray) else bytearray(body))
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that numpy has not
        raise BodyError(400, f"the body is no safetensors file: {str(error).splitlines()[0][:200]}") from None
    if not set(names) <= set(arrays) <= {*names, *optional}:
        found = ", ".join(sorted(arrays))[:200] or "nothing"
        more = f", {' and '.join(optional)} if there is any" if optional else ""
        raise BodyError(422, f"the body holds {found}; expected {' and '.join(names)}{more}")
    return arrays


def _arrays(body: bytearray) -> dict[str, Array]:
    header = _header_of(body)
    if len(header) > min(len(body), _KNOWN_BYTES) or len(header) % 8:  # then arrays begin where they should
        return load(bytes(body))
    layout = _layout(header, len(body) - len(header))
    return {
        name: np.ndarray(shape, dtype, body, len(header) + offset) for name, dtype, shape, offset in layout
    }


@functools.lru_cache(_KNOWN)
def _layout(header: bytes, num_bytes: int) -> list[tuple[str, np.dtype[Any], tuple[int, ...], int]]:
    """Name, dtype, shape and offset of each array behind a header that safetensors takes before so much."""
    arrays, offsets = load(header + bytes(num_bytes)), _offsets(header)
    return [(name, array.dtype, array.shape, offsets[name][0]) for name, array in arrays.items()]


def _header_of(body: bytes | bytearray) -> bytes:
    """Its length and itself, as far as the body goes."""
    return bytes(body[: 8 + int.from_bytes(body[:8], "little")])


def _offsets(header: bytes) -> dict[str, list[int]]:
    """Where each array begins and ends behind a header that safetensors takes."""
    entries = json.loads(header[8:])
    return {name: entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__"}


def parsed(kind: type[Model], body: bytes | bytearray) -> Model:
    """A JSON body as what it has to be."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))[:80]
        status = 400 if first["type"] == "json_invalid" else 422
        raise BodyError(status, f"{place or 'the body'}: {first['msg'][:200]}") from None


def complex_of(given: JsonArray) -> Array:
    """complex64 of whatever shape the lists have."""
    real, imag = real_of(given.real), real_of(given.imag)
    if real.shape != imag.shape:
        raise BodyError(422, f"real is {real.shape}, imag {imag.shape}; they must agree")
    array = np.empty(real.shape, np.complex64)
    array.real, array.imag = real, imag
    return array


def real_of(values: Any) -> Array:
    """float32 of whatever shape the lists have."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise BodyError(422, "an array's lists differ in length") from None
    if array.dtype.kind not in "if":
        raise BodyError(422, "an array holds something else than numbers")
    with np.errstate(over="ignore"):  # what single precision cannot hold is infinite, and refused as such
        return array.astype(np.float32)


def check(name: str, value: Array, dtype: type, shape: tuple[int | str, ...]) -> None:
    """BodyError where an array is of another dtype or shape; an axis that has a name may be of any size."""
    same = value.ndim == len(shape) and all(
        isinstance(size, str) or own == size for own, size in zip(value.shape, shape, strict=True)
    )
    if value.dtype != dtype or not same:
        sizes = ", ".join(map(str, shape))
        raise BodyError(422, f"{name} is {value.dtype} {value.shape}; expected {np.dtype(dtype)} ({sizes})")
