"""Rounded payloads: errors within half a quantum, none in the long run with feedback, bits as stated."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airlam.split.messages import MessageError, payload_bits
from airlam.split.payload import ErrorFeedback, pack, unpack


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6))
@settings(max_examples=50, deadline=None)
def test_int8_is_within_half_a_quantum_of_its_row(seed: int, scale: float) -> None:
    value = scale * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed))
    packed = pack("x", value, "int8")
    half = value.abs().amax(-1, keepdim=True) / 254
    assert ((unpack(packed, "x") - value).abs() <= half * (1 + 1e-3)).all()


def test_fp32_is_the_tensor_itself_and_bf16_its_nearest() -> None:
    value = torch.randn(2, 3)
    assert pack("x", value, "fp32")["x"] is value
    assert torch.equal(unpack(pack("x", value, "bf16"), "x"), value.bfloat16().float())


def test_rows_of_zeros_stay_zeros() -> None:
    value = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    assert torch.equal(unpack(pack("x", value, "int8"), "x"), value)


@pytest.mark.parametrize(("precision", "bits"), [("fp32", 32), ("bf16", 16), ("int8", 8)])
def test_bits_are_shape_times_bits_and_a_scale_a_row(precision: str, bits: int) -> None:
    packed = pack("x", torch.randn(4, 6, 8), precision)  # type: ignore[arg-type]
    assert payload_bits(packed["x"]) == 4 * 6 * 8 * bits
    scales = [payload_bits(value) for name, value in packed.items() if name != "x"]
    assert scales == ([4 * 6 * 32] if precision == "int8" else [])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_with_feedback_the_mean_of_what_arrives_is_the_mean_of_what_was_sent(precision: str) -> None:
    random, feedback = torch.Generator().manual_seed(1), ErrorFeedback()
    ids, num = torch.tensor([4, 7]), 50
    fixed, sent, received = torch.randn(2, 3, 8, generator=random), 0.0, 0.0
    for _ in range(num):
        value = fixed + 0.1 * torch.randn(2, 3, 8, generator=random)
        sent = sent + value
        received = received + unpack(pack("g", value, precision, feedback, ids), "g")  # type: ignore[arg-type]
    lost = torch.as_tensor(sent - received)
    largest = 4.0  # of |value|, so that a quantum is at most this over 127
    assert lost.abs().max() < largest / 127
    torch.testing.assert_close(feedback.state()["rows"], lost, rtol=0, atol=1e-4)


def test_residuals_belong_to_samples() -> None:
    feedback = ErrorFeedback()
    value = torch.tensor([[1.0, 0.3]])
    pack("g", value, "int8", feedback, torch.tensor([1]))
    other = pack("g", value, "int8", feedback, torch.tensor([2]))
    assert torch.equal(unpack(other, "g"), unpack(pack("g", value, "int8"), "g"))
    again = ErrorFeedback.of(feedback.state()).added_to(value, torch.tensor([1]))
    assert torch.equal(again, feedback.added_to(value, torch.tensor([1]))) and not torch.equal(again, value)


def test_scales_that_do_not_fit_are_refused() -> None:
    packed = pack("x", torch.randn(2, 3), "int8")
    with pytest.raises(MessageError, match="lacks the scales of 'x'"):
        unpack({"x": packed["x"]}, "x")
    with pytest.raises(MessageError, match=r"x\.scale is"):
        unpack({"x": packed["x"], "x.scale": torch.ones(3)}, "x")
    with pytest.raises(MessageError, match="lacks 'y'"):
        unpack(packed, "y")
