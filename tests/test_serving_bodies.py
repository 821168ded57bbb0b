"""What travels comes back equal; whatever else comes is refused with a reason and nothing worse."""

import json
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from airlam.radio.channel import PredictionSetting
from airlam.serving.arrays import BINARY, JSON, BodyError, arrays_of, media_type_of, saved
from airlam.serving.bodies import (
    max_body_bytes,
    read_future,
    read_measurement,
    read_slot,
    write_future,
    write_measurement,
    write_slot,
)
from airlam.serving.measurement import Measurement
from airlam.specs import ArraySpec

SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=1, num_cols=2),
    num_user_antennas=1,
    history_frequencies_hz=(0.0, 180e3, 360e3),
    target_frequencies_hz=(0.0, 180e3, 360e3),
    slot_duration_s=0.5e-3,
    num_history=4,
    num_horizon=1,
    max_doppler_hz=100.0,
)
MAX_LINKS = 5


def history(num_links: int = 2) -> torch.Tensor:
    random = torch.Generator().manual_seed(num_links)
    return torch.randn(num_links, 4, 1, 2, 3, dtype=torch.complex64, generator=random)


def read(body: bytes, media_type: str = BINARY) -> Measurement:
    return read_measurement(body, media_type, "lam", SETTING, MAX_LINKS)


def as_json(channel: torch.Tensor, noise_variance: Any, name: str = "history") -> bytes:
    parts = {"real": channel.real.tolist(), "imag": channel.imag.tolist()}
    return json.dumps({name: parts, "noise_variance": noise_variance}).encode()


def refused(body: bytes, media_type: str = BINARY) -> BodyError:
    with pytest.raises(BodyError) as error:
        read(body, media_type)
    assert 400 <= error.value.status < 500 and error.value.reason
    return error.value


def test_binary_and_json_give_the_same_measurement() -> None:
    sent = Measurement(lam="lam", history=history(), noise_variance=torch.tensor([0.1, 0.2]))
    for body, media_type in (
        (write_measurement(sent), BINARY),
        (as_json(sent.history, [0.1, 0.2]), JSON),
    ):
        found = read(body, media_type)
        torch.testing.assert_close(found.history, sent.history, rtol=0, atol=0)
        torch.testing.assert_close(found.noise_variance, sent.noise_variance)


def test_a_slot_comes_back_from_both() -> None:
    channel = history()[0, 0]
    for body, media_type in ((write_slot(channel, 0.5), BINARY), (as_json(channel, 0.5, "channel"), JSON)):
        found, variance = read_slot(body, media_type, SETTING)
        torch.testing.assert_close(found, channel, rtol=0, atol=0)
        assert variance == 0.5


def test_a_future_comes_back_from_both() -> None:
    future = history().transpose(1, 3)  # a view that is not laid out as it reads
    torch.testing.assert_close(read_future(write_future(future, BINARY)), future, rtol=0, atol=0)
    nested = json.loads(write_future(future, JSON))["future"]
    np.testing.assert_array_equal(np.array(nested["real"]), future.real.numpy())


def test_the_largest_body_is_within_its_bound() -> None:
    most = history(MAX_LINKS) * 1.23456789e-9
    variance = torch.full((MAX_LINKS,), 1.2345678e-12)
    body = write_measurement(Measurement(lam="lam", history=most, noise_variance=variance))
    assert len(body) <= max_body_bytes(SETTING, MAX_LINKS, BINARY)
    assert len(as_json(most, variance.tolist())) <= max_body_bytes(SETTING, MAX_LINKS, JSON)


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 2), (1,)])
def test_tensors_are_written_as_safetensors_writes_them(shape: tuple[int, ...]) -> None:
    dtypes = (torch.bool, torch.float32, torch.complex64, torch.float64, torch.int8)
    tensors = {f"{dtype}"[6:]: torch.ones(shape, dtype=dtype) for dtype in dtypes}
    for _ in range(2):  # the second time from what is remembered
        assert saved(**tensors) == save(tensors)
    found = arrays_of(save(tensors), tuple(tensors))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), strict=True)
        assert found[name].flags.writeable


def test_a_known_header_before_another_number_of_bytes_is_refused() -> None:
    body = write_measurement(Measurement(lam="lam", history=history(), noise_variance=torch.ones(2)))
    read(body)
    for other in (body[:-4], body + bytes(4)):
        assert refused(other).status == 400
    read(body)


def test_arrays_behind_a_long_or_odd_header_are_read_as_well() -> None:
    body = write_measurement(Measurement(lam="lam", history=history(), noise_variance=torch.ones(2)))
    (size,) = struct.unpack("<Q", body[:8])
    for more in (1, 2000):
        told = struct.pack("<Q", size + more) + body[8 : 8 + size] + b" " * more + body[8 + size :]
        torch.testing.assert_close(read(told).history, history(), rtol=0, atol=0)


NAN = float("nan")
BAD_TENSORS = {
    "shape": (
        {"history": history()[:, :3], "noise_variance": torch.ones(2)},
        422,
        "expected complex64 (links, 4",
    ),
    "axes": ({"history": history()[0], "noise_variance": torch.ones(2)}, 422, "expected complex64"),
    "dtype": ({"history": history().abs(), "noise_variance": torch.ones(2)}, 422, "float32"),
    "bfloat16": ({"history": history().abs().bfloat16(), "noise_variance": torch.ones(2)}, None, ""),
    "integers": ({"history": history(), "noise_variance": torch.ones(2, dtype=torch.int64)}, 422, "int64"),
    "counts": ({"history": history(), "noise_variance": torch.ones(3)}, 422, "expected float32 (2)"),
    "too many": ({"history": history(6), "noise_variance": torch.ones(6)}, 422, "1 to 5"),
    "none": ({"history": history()[:0], "noise_variance": torch.ones(0)}, 422, "1 to 5"),
    "NaN": ({"history": history() * NAN, "noise_variance": torch.ones(2)}, 422, "NaN"),
    "infinite": ({"history": history() * torch.inf, "noise_variance": torch.ones(2)}, 422, "NaN or out of"),
    "huge": ({"history": history() * 1e30, "noise_variance": torch.ones(2)}, 422, "out of range"),
    "silent": ({"history": history() * 0, "noise_variance": torch.ones(2)}, 422, "out of range"),
    "negative": ({"history": history(), "noise_variance": -torch.ones(2)}, 422, "noise_variance"),
    "lacking": ({"history": history()}, 422, "expected history and noise_variance"),
    "more": (
        {"history": history(), "noise_variance": torch.ones(2), "x": torch.ones(1)},
        422,
        "expected history",
    ),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_refused(kind: str) -> None:
    tensors, status, reason = BAD_TENSORS[kind]
    error = refused(save({name: value.contiguous() for name, value in tensors.items()}))
    assert reason in error.reason
    assert status in (None, error.status)


def lying(header: Any, payload: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def test_a_header_that_lies_is_refused_before_memory_is_taken() -> None:
    huge = {"dtype": "C64", "shape": [2**40, 4, 1, 2, 3], "data_offsets": [0, 2**46]}
    overlap = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for body in (
        lying({"history": huge, "noise_variance": overlap}, b"0" * 64),
        lying({"history": overlap, "noise_variance": overlap}, b"0" * 8),
        lying({"history": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}, b"0" * 4),
        struct.pack("<Q", 2**62) + b"{}",
        b"",
        b"\x80\x04pickle",
    ):
        assert refused(body).status == 400


def test_a_body_cut_anywhere_is_refused() -> None:
    whole = write_measurement(Measurement(lam="lam", history=history(), noise_variance=torch.ones(2)))
    for end in range(0, len(whole), 7):
        refused(whole[:end])


BAD_JSON = {
    "cut": b'{"history": {"real": [[1,',
    "another": b"[1, 2]",
    "ragged": b'{"history": {"real": [[1, 2], [3]], "imag": [[1, 2], [3]]}, "noise_variance": [1]}',
    "text": b'{"history": {"real": ["1"], "imag": ["1"]}, "noise_variance": [1]}',
    "null": b'{"history": {"real": [null], "imag": [null]}, "noise_variance": [1]}',
    "parts": b'{"history": {"real": [1, 2], "imag": [1]}, "noise_variance": [1]}',
    "unknown key": b'{"history": {"real": [1], "imag": [1]}, "noise_variance": [1], "pickle": 1}',
    "deep": b'{"history": {"real": ' + b"[" * 5000 + b"]" * 5000 + b', "imag": []}, "noise_variance": [1]}',
    "deep enough": b'{"history": {"real": '
    + b"[" * 70
    + b"]" * 70
    + b', "imag": []}, "noise_variance": [1]}',
    "huge integer": b'{"history": {"real": [' + b"9" * 400 + b'], "imag": [1]}, "noise_variance": [1]}',
    "no text": b"\xff\xfe{}",
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_does_not_fit_is_refused(kind: str) -> None:
    refused(BAD_JSON[kind], JSON)


def test_json_with_nan_or_numbers_beyond_single_precision_is_refused() -> None:
    for value in ("NaN", "Infinity", "1e300"):
        body = as_json(history(), [0.1, 0.2]).replace(b'"imag": [[[[[', f'"imag": [[[[[{value}, '.encode(), 1)
        values = json.loads(body)
        values["history"]["imag"][0][0][0][0].pop()  # one number was put before three
        assert "out of range" in refused(json.dumps(values).encode(), JSON).reason


def test_other_media_are_refused() -> None:
    assert media_type_of("application/json; charset=utf-8") == JSON
    for header in (None, "", "text/plain", "application/octet-stream", "multipart/form-data", "x" * 10**5):
        with pytest.raises(BodyError) as error:
            media_type_of(header)
        assert error.value.status == 415 and len(error.value.reason) < 300


VALID = write_measurement(Measurement(lam="lam", history=history(), noise_variance=torch.ones(2)))


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([BINARY, JSON]))
def test_any_bytes_are_taken_or_refused(body: bytes, media_type: str) -> None:
    with pytest.raises(BodyError):
        read(body, media_type)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_body_is_taken_or_refused(place: int, damage: bytes) -> None:
    body = VALID[:place] + damage + VALID[place + len(damage) :]
    try:
        found = read(body)
    except BodyError as error:
        assert 400 <= error.status < 500
    else:  # numbers only were changed
        assert found.history.shape == (2, 4, 1, 2, 3) and bool(torch.isfinite(found.history.abs()).all())
