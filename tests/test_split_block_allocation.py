"""Blocks on devices: equal to brute force over all assignments, alone and with the band."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airlam.errors import SpecError
from airlam.split.bandwidth import Uplinks, equal_share_delay, least_delay
from airlam.split.block_allocation import allocate_blocks, match_blocks

SIZES = st.integers(1, 5).flatmap(lambda k: st.tuples(st.just(k), st.integers(1, k)))


@given(sizes=SIZES, seed=st.integers(0, 10**6), coarse=st.booleans())
@settings(max_examples=120, deadline=None)
def test_matching_equals_brute_force(sizes: tuple[int, int], seed: int, coarse: bool) -> None:
    """With ties too."""
    num_devices, num_blocks = sizes
    generator = np.random.default_rng(seed)
    steps = generator.integers(0, 4, sizes) if coarse else generator.uniform(0, 1, sizes)
    delay_s = np.cumsum(steps, axis=1).astype(float)
    depths = np.arange(num_blocks)
    orders = itertools.permutations(range(num_devices), num_blocks)
    best = min(delay_s[list(order), depths].max() for order in orders)
    device_of, delay = match_blocks(delay_s)
    assert delay == best == delay_s[device_of, depths].max()
    assert len(set(device_of.tolist())) == num_blocks


@given(sizes=SIZES, seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_blocks_and_band_together_equal_brute_force(sizes: tuple[int, int], seed: int) -> None:
    num_devices, num_blocks = sizes
    generator = np.random.default_rng(seed)
    fixed = np.cumsum(generator.uniform(0, 0.3, sizes), axis=1)
    payload = np.repeat(generator.uniform(2e5, 2e6, (num_devices, 1)), num_blocks, axis=1)
    snr = 10 ** generator.uniform(-1, 2.5, num_devices)
    found = allocate_blocks(fixed_delay_s=fixed, payload_bits=payload, full_band_snr=snr, bandwidth_hz=1e7)
    depths, delays, equals = np.arange(num_blocks), [], []
    for order in itertools.permutations(range(num_devices), num_blocks):
        uplinks = Uplinks.of(
            fixed_delay_s=fixed[list(order), depths],
            payload_bits=payload[list(order), depths],
            full_band_snr=snr[list(order)],
            bandwidth_hz=1e7,
        )
        delays.append(least_delay(uplinks)[0])
        equals.append(equal_share_delay(uplinks)[0])
    assert found.delay_s == pytest.approx(min(delays), rel=1e-9)
    assert found.delay_s <= min(equals) * (1 + 1e-12)
    assert found.shares.sum() <= 1 + 1e-12 and len(set(found.device_of.tolist())) == num_blocks


def test_what_cannot_be_matched_is_named() -> None:
    with pytest.raises(SpecError, match="3 devices must be able to tune depth 0 or deeper; 2 are"):
        match_blocks(np.ones((2, 3)))
    deep = np.array([[1.0, math.inf], [1.0, math.inf], [1.0, math.inf]])
    with pytest.raises(SpecError, match="1 devices must be able to tune depth 1 or deeper; 0 are"):
        match_blocks(deep)
    with pytest.raises(SpecError, match="device 1 fall with depth"):
        match_blocks(np.array([[1.0, 2.0], [2.0, 1.0]]))
