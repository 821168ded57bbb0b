"""Messages come back as they were; what is no message, or not the one expected, is refused before use."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from airlam.split.messages import (
    Header,
    Message,
    MessageError,
    TensorField,
    check_tensor,
    decode,
    encode,
    header_bytes,
    payload_bits,
)

HEADER = Header(
    operation="forward", flow="d0", step=3, modules=("block.0", "norm"), wants=("mask",), text="ä"
)
DTYPES = (torch.float32, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64, torch.float64)


@given(shape=st.lists(st.integers(0, 4), max_size=3), dtype=st.sampled_from(DTYPES))
@settings(max_examples=40, deadline=None)
def test_a_message_comes_back_and_its_bytes_are_shape_times_bits(
    shape: list[int], dtype: torch.dtype
) -> None:
    value = (torch.randn(shape) * 3).to(dtype)
    data = encode(
        Message(header=HEADER, tensors={"x": value, "y": value.T.clone() if len(shape) == 2 else value})
    )
    found = decode(data)
    assert found.header == HEADER and torch.equal(found.tensors["x"], value)
    assert len(data) - header_bytes(data) == 2 * payload_bits(value) / 8


def test_a_message_may_hold_no_tensors() -> None:
    assert decode(encode(Message(header=HEADER))) == Message(header=HEADER)


def test_too_many_bytes_are_refused_unread() -> None:
    data = encode(Message(header=HEADER, tensors={"x": torch.zeros(100)}))
    with pytest.raises(MessageError, match=f"has {len(data)} bytes; at most 400"):
        decode(data, max_bytes=400)


def test_what_is_cut_short_or_damaged_is_refused() -> None:
    data = encode(Message(header=HEADER, tensors={"x": torch.arange(4.0)}))
    for length in (0, 4, 8, 20, len(data) - 1):
        with pytest.raises(MessageError):
            decode(data[:length])
    with pytest.raises(MessageError, match="cannot be read"):
        decode(data + b"more")
    with pytest.raises(MessageError, match="are no message"):
        decode((2**60).to_bytes(8, "little") + data[8:])
    with pytest.raises(MessageError):
        decode(data.replace(b'"shape":[4]', b'"shape":[9]'))
    with pytest.raises(MessageError, match="header cannot be read"):
        decode(save({"x": torch.zeros(1)}))
    with pytest.raises(MessageError, match="are no message"):
        decode(b"\x80\x04\x95" + 100 * b".")  # how a pickle starts


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", "3"),
        ("step", True),
        ("training", 1),
        ("modules", "block.0"),
        ("wants", [1]),
        ("flow", None),
        ("precision", "fp64"),
        ("more", 1),
    ],
)
def test_a_header_of_other_types_is_refused(field: str, value: object) -> None:
    values = json.loads(json.dumps({name: getattr(HEADER, name) for name in HEADER.__slots__})) | {
        field: value
    }
    with pytest.raises(MessageError):
        decode(save({}, {"airlam": json.dumps(values)}))


def test_shapes_dtypes_and_numbers_are_checked() -> None:
    expected = TensorField.of(torch.float32, None, 3)
    check_tensor("x", torch.zeros(5, 3), expected)
    for wrong in (torch.zeros(3), torch.zeros(5, 4), torch.zeros(5, 3, dtype=torch.float64)):
        with pytest.raises(MessageError, match=r"expected \(any, 3\) torch.float32"):
            check_tensor("x", wrong, expected)
    for number in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(MessageError, match="x holds NaN, infinite or huge"):
            check_tensor("x", torch.full((2, 3), number), expected)


def test_headers_tell_messages_apart() -> None:
    assert decode(encode(Message(header=replace(HEADER, step=4)))).header.step == 4
