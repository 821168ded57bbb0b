"""Downlinks travel and come back equal; whatever else comes is refused with a reason and nothing worse."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from airlam.radio.channel import PredictionSetting
from airlam.serving.arrays import BINARY, JSON, BodyError
from airlam.serving.downlink_bodies import (
    Users,
    max_downlinks_bytes,
    max_users_bytes,
    read_downlinks,
    read_precoder,
    read_users,
    write_downlinks,
    write_precoder,
    write_users,
)
from airlam.serving.downlinks import Downlinks
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
MAX_COEFFICIENTS, MAX_USERS = 200, 3


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(len(shape)))


CHANNEL, NOISE = drawn(2, 3, 4), torch.tensor([0.1, 0.2])
FACTOR = drawn(2, 3, 4, 4)
ERRORS = FACTOR @ FACTOR.mH
USERS = Users(
    measurement=Measurement(lam="lam", history=drawn(3, 4, 1, 2, 3), noise_variance=torch.full((3,), 0.1)),
    receiver_noise_variance=0.5,
)


def nested(array: torch.Tensor) -> dict[str, object]:
    return {"real": array.real.tolist(), "imag": array.imag.tolist()}


def read(body: bytes, media_type: str = BINARY) -> Downlinks:
    return read_downlinks(body, media_type, "p", MAX_COEFFICIENTS)


@pytest.mark.parametrize("errors", [None, ERRORS])
def test_binary_and_json_give_the_same_downlinks(errors: torch.Tensor | None) -> None:
    sent = Downlinks(precoder="p", h=CHANNEL, noise_variance=NOISE, error_covariance=errors)
    as_json = {"channel": nested(CHANNEL), "noise_variance": NOISE.tolist()}
    if errors is not None:
        as_json["error_covariance"] = nested(errors)
    for body, media_type in ((write_downlinks(sent), BINARY), (json.dumps(as_json).encode(), JSON)):
        found = read_downlinks(body, media_type, "p", sent.size)
        assert found.size == sent.size == 42 + (0 if errors is None else 96)
        torch.testing.assert_close(found.h, CHANNEL, rtol=0, atol=0)
        torch.testing.assert_close(found.noise_variance, NOISE)
        if errors is not None:
            assert found.error_covariance is not None
            torch.testing.assert_close(found.error_covariance, errors, rtol=0, atol=0)


def test_binary_and_json_give_the_same_users() -> None:
    asked = USERS.measurement
    as_json = {
        "history": nested(asked.history),
        "noise_variance": asked.noise_variance.tolist(),
        "receiver_noise_variance": 0.5,
    }
    for body, media_type in ((write_users(USERS), BINARY), (json.dumps(as_json).encode(), JSON)):
        found = read_users(body, media_type, "lam", SETTING, MAX_USERS)
        torch.testing.assert_close(found.measurement.history, asked.history, rtol=0, atol=0)
        assert found.receiver_noise_variance == 0.5
        assert len(body) <= max_users_bytes(SETTING, MAX_USERS, media_type)


def test_a_precoder_comes_back_from_both() -> None:
    w = CHANNEL.mT  # a view that is not laid out as it reads
    torch.testing.assert_close(read_precoder(write_precoder(w, BINARY)), w, rtol=0, atol=0)
    found = json.loads(write_precoder(w, JSON))["precoder"]
    torch.testing.assert_close(torch.tensor(found["imag"]), w.imag)


def test_the_largest_body_is_within_its_bound() -> None:
    h = drawn(100, 1, 1) * 1.23456789e-9  # 200 coefficients, a noise variance for every other one
    most = Downlinks(precoder="p", h=h, noise_variance=torch.full((100,), 1.2345678e-12))
    assert len(write_downlinks(most)) <= max_downlinks_bytes(MAX_COEFFICIENTS, BINARY)
    as_json = json.dumps({"channel": nested(h), "noise_variance": most.noise_variance.tolist()})
    assert len(as_json) <= max_downlinks_bytes(MAX_COEFFICIENTS, JSON)
    assert read(as_json.encode(), JSON).size == MAX_COEFFICIENTS


NAN, GOOD = float("nan"), {"channel": CHANNEL, "noise_variance": NOISE}
SILENT = CHANNEL * torch.tensor([1, 0, 1]).view(1, 3, 1)
SKEW = ERRORS + 0.1 * ERRORS.abs().amax() * torch.eye(4).roll(1, 0)
BAD_TENSORS = {
    "axes": (GOOD | {"channel": CHANNEL[0]}, "expected complex64 (downlinks, num_users, num_bs_ant)"),
    "dtype": (GOOD | {"channel": CHANNEL.abs()}, "float32"),
    "double": (GOOD | {"noise_variance": NOISE.double()}, "float64"),
    "integers": (GOOD | {"noise_variance": torch.ones(2, dtype=torch.int64)}, "int64"),
    "counts": (GOOD | {"noise_variance": torch.ones(3)}, "expected float32 [2]"),
    "none": ({"channel": CHANNEL[:0], "noise_variance": NOISE[:0]}, "expected complex64"),
    "no users": (GOOD | {"channel": CHANNEL[:, :0]}, "expected complex64"),
    "no antennas": (GOOD | {"channel": CHANNEL[..., :0]}, "expected complex64"),
    "NaN": (GOOD | {"channel": CHANNEL * NAN}, "finite and above 0"),
    "infinite": (GOOD | {"channel": CHANNEL * torch.inf}, "finite and above 0"),
    "huge": (GOOD | {"channel": CHANNEL * 1e30}, "finite and above 0"),
    "silent": (GOOD | {"channel": SILENT}, "finite and above 0; leave others out"),
    "negative": (GOOD | {"noise_variance": -NOISE}, "finite and above 0"),
    "noiseless": (GOOD | {"noise_variance": 0 * NOISE}, "finite and above 0"),
    "many": ({"channel": drawn(101, 1, 1), "noise_variance": torch.ones(101)}, "202 coefficients"),
    "lacking": ({"channel": CHANNEL}, "error_covariance if there is any"),
    "more": (GOOD | {"x": torch.ones(1)}, "expected channel and noise_variance"),
    "errors' axes": (GOOD | {"error_covariance": ERRORS[0]}, "expected complex64 [2, 3, 4, 4]"),
    "errors' dtype": (GOOD | {"error_covariance": ERRORS.real}, "float32"),
    "errors' NaN": (GOOD | {"error_covariance": ERRORS * NAN}, "finite, Hermitian"),
    "skew errors": (GOOD | {"error_covariance": SKEW}, "finite, Hermitian"),
    "negative errors": (GOOD | {"error_covariance": -ERRORS}, "negative variance"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_refused(kind: str) -> None:
    tensors, reason = BAD_TENSORS[kind]
    with pytest.raises(BodyError) as error:
        read(save({name: value.contiguous() for name, value in tensors.items()}))
    assert error.value.status == 422 and reason in error.value.reason


@pytest.mark.parametrize("noise", [0.0, -1.0, NAN, float("inf"), 1e300])
def test_receivers_without_usable_noise_are_refused(noise: float) -> None:
    body = write_users(replace(USERS, receiver_noise_variance=noise))
    with pytest.raises(BodyError, match="expected a positive number"):
        read_users(body, BINARY, "lam", SETTING, MAX_USERS)


BAD_JSON = {
    "cut": b'{"channel": {"real": [[1,',
    "another": b"[1, 2]",
    "text": b'{"channel": {"real": ["1"], "imag": ["1"]}, "noise_variance": [1]}',
    "null": b'{"channel": null, "noise_variance": [1]}',
    "unknown key": b'{"channel": {"real": [[[1]]], "imag": [[[1]]]}, "noise_variance": [1], "pickle": 1}',
    "deep": b'{"channel": {"real": ' + b"[" * 5000 + b"]" * 5000 + b', "imag": []}, "noise_variance": [1]}',
    "odd errors": b'{"channel": {"real": [[[1]]], "imag": [[[1]]]}, "noise_variance": [1], '
    b'"error_covariance": [1]}',
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_does_not_fit_is_refused(kind: str) -> None:
    with pytest.raises(BodyError) as error:
        read(BAD_JSON[kind], JSON)
    assert error.value.status in (400, 422) and error.value.reason


VALID = write_downlinks(Downlinks(precoder="p", h=CHANNEL, noise_variance=NOISE, error_covariance=ERRORS))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_body_is_taken_or_refused(place: int, damage: bytes) -> None:
    body = VALID[:place] + damage + VALID[place + len(damage) :]
    try:
        found = read(body)
    except BodyError as error:
        assert 400 <= error.status < 500
    else:  # numbers only were changed
        assert found.h.shape == (2, 3, 4) and bool(torch.isfinite(found.h.abs()).all())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([BINARY, JSON]))
def test_any_bytes_are_refused(body: bytes, media_type: str) -> None:
    with pytest.raises(BodyError):
        read(body, media_type)
    with pytest.raises(BodyError):
        read_users(body, media_type, "lam", SETTING, MAX_USERS)


def test_a_body_cut_anywhere_is_refused() -> None:
    for body in (VALID, write_users(USERS)):
        for end in range(0, len(body), 11):
            with pytest.raises(BodyError):
                read(body[:end])
