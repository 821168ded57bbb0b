"""What nodes send each other: named tensors under a typed header, as safetensors bytes, never a pickle.

A message from elsewhere is checked in this order: its size, its header, the dtypes that it declares, then, by
whoever asked for it, the shape of each tensor, and that its numbers are finite (``check_tensor``).
"""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from airlam.errors import DataError
from airlam.split.graph import PRECISION_BYTES, Precision

Tensors = dict[str, torch.Tensor]
MAX_MESSAGE_BYTES = 2**30
MAX_HEADER_BYTES = 2**20
_PREFIX_BYTES = 8  # safetensors: the header's length, little endian
_NOTE = "airlam"  # where the header stands in safetensors' metadata
_TUPLES = ("modules", "flows", "wants")


class MessageError(DataError):
    """A message is not what its receiver can take; the sender is to be told, or struck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a node is asked to do, or what it answers.

    flow: the device whose samples these are. step: of the run, so that late answers are told from fresh ones.
    modules: the stage to run. wants: what the answer should carry beside its result. precision: of the floats
    in the answer. flows: those that a ``step`` averages. text: what an ``error`` says.
    """

    operation: str
    flow: str = ""
    step: int = 0
    modules: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    flows: tuple[str, ...] = ()
    precision: Precision = "fp32"
    training: bool = True
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A header and tensors by name."""

    header: Header
    tensors: Tensors = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorField:
    """What a tensor must be; None in ``shape`` stands for any size."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, dtype: torch.dtype, *shape: int | None) -> Self:
        """The field of this dtype and shape."""
        return cls(dtype=dtype, shape=shape)


def payload_bits(tensor: torch.Tensor) -> int:
    """Elements times bits of an element."""
    return tensor.numel() * tensor.element_size() * 8


def encode(message: Message) -> bytes:
    """The message as safetensors bytes; the header travels in safetensors' own metadata."""
    own: Tensors = {}
    taken: set[int] = set()
    for name, value in message.tensors.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        own[name] = value.clone() if place in taken else value  # safetensors refuses shared storages
        taken.add(place)
    return save(own, {_NOTE: json.dumps(asdict(message.header))})


def decode(data: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> Message:
    """The message in some bytes; MessageError where they are too many or no message.

    Takes no more memory than the bytes themselves: safetensors refuses a header that claims other sizes.
    """
    if len(data) > max_bytes:
        raise MessageError(f"a message has {len(data)} bytes; at most {max_bytes} are taken")
    header = _header(data)
    try:
        return Message(header=header, tensors=load(data))
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch has not
        raise MessageError(f"a message's tensors cannot be read: {str(error).splitlines()[0]}") from None


def header_bytes(data: bytes) -> int:
    """How many of an encoded message's bytes are not payload."""
    return _PREFIX_BYTES + int.from_bytes(data[:_PREFIX_BYTES], "little")


def check_tensor(name: str, value: torch.Tensor, expected: TensorField) -> None:
    """MessageError unless dtype and shape are those expected, and the numbers finite."""
    same = len(value.shape) == len(expected.shape) and all(
        size in (None, own) for own, size in zip(value.shape, expected.shape, strict=True)
    )
    if value.dtype != expected.dtype or not same:
        sizes = ", ".join("any" if size is None else str(size) for size in expected.shape)
        raise MessageError(
            f"{name} is {tuple(value.shape)} {value.dtype}; expected ({sizes}) {expected.dtype}"
        )
    if (value.is_floating_point() or value.is_complex()) and not torch.isfinite(value.sum()):
        raise MessageError(f"{name} holds NaN, infinite or huge numbers")


def _header(data: bytes) -> Header:
    length = header_bytes(data) - _PREFIX_BYTES
    if len(data) < _PREFIX_BYTES or length > min(MAX_HEADER_BYTES, len(data) - _PREFIX_BYTES):
        raise MessageError(f"{len(data)} bytes are no message: their header would have {length} bytes")
    try:
        values = json.loads(json.loads(data[_PREFIX_BYTES : _PREFIX_BYTES + length])["__metadata__"][_NOTE])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MessageError("a message's header cannot be read") from None
    return _typed(values)


def _typed(values: Any) -> Header:
    """The header of JSON values; MessageError unless each has its field's type."""
    if not isinstance(values, dict) or set(values) != {item.name for item in fields(Header)}:
        raise MessageError("a message's header has other fields than ours; run one version on all nodes")
    for name in _TUPLES:
        if not isinstance(values[name], list) or not all(isinstance(item, str) for item in values[name]):
            raise MessageError(f"a message's {name} is {values[name]!r}; expected a list of names")
    values |= {name: tuple(values[name]) for name in _TUPLES}
    for item in fields(Header):
        if item.name in ("operation", "flow", "text") and not isinstance(values[item.name], str):
            raise MessageError(f"a message's {item.name} is {values[item.name]!r}; expected text")
    if type(values["step"]) is not int or type(values["training"]) is not bool:
        raise MessageError("a message's step or training flag is of another type")
    if values["precision"] not in PRECISION_BYTES:
        raise MessageError(f"a message asks for precision {values['precision']!r}")
    return Header(**values)
