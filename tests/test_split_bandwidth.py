"""Shares of the band: Lambert's W, limits, and the least delay against root finding and CVXPY."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import lambertw

from airlam.errors import SpecError
from airlam.split.bandwidth import (
    Uplinks,
    equal_share_delay,
    least_delay,
    nats_per_symbol,
    needed_shares,
    upload_s,
)

BANDWIDTH_HZ = 1e7


def draw(num_devices: int, seed: int, snr_db: tuple[float, float] = (-15.0, 30.0)) -> Uplinks:
    """Devices whose SNRs, payloads and fixed delays spread widely."""
    generator = np.random.default_rng([num_devices, seed])
    return Uplinks.of(
        fixed_delay_s=generator.uniform(0.1, 0.5, num_devices),
        payload_bits=generator.uniform(2e5, 2e6, num_devices),
        full_band_snr=10 ** (generator.uniform(*snr_db, num_devices) / 10),
        bandwidth_hz=BANDWIDTH_HZ,
    )


def least_delay_by_bisection(uplinks: Uplinks) -> float:
    """The textbook way: shares by scipy's Lambert W, Brent's method over the delay."""
    fixed, snr, floor = uplinks.fixed_delay_s, uplinks.full_band_snr, uplinks.wideband_upload_s

    def excess(delay: float) -> float:
        load = floor / (delay - fixed)
        u = -lambertw(-load * np.exp(-load), -1).real / load
        return float((snr / (u - 1)).sum()) - 1

    low = float((fixed + upload_s(uplinks, 1.0)).max())
    return float(brentq(excess, low * (1 + 1e-9), 2 * equal_share_delay(uplinks)[0], xtol=1e-15, rtol=1e-14))


def test_nats_per_symbol_is_lamberts_w() -> None:
    load = np.linspace(0.001, 0.98, 500)
    expected = -lambertw(-load * np.exp(-load), -1).real - load
    assert nats_per_symbol(load) == pytest.approx(expected, rel=1e-12)


@given(z=st.floats(1e-3, 600))
@settings(max_examples=200, deadline=None)
def test_nats_per_symbol_inverts_its_equation(z: float) -> None:
    """Also at low SNR, where the branches of W meet."""
    load = np.array([z / math.expm1(z)])
    assert nats_per_symbol(load)[0] == pytest.approx(z, rel=1e-12 + 1e-15 / z)


def test_a_needed_share_gives_the_rate_of_shannons_formula() -> None:
    uplinks, delay = draw(6, 1), 3.0
    share = needed_shares(uplinks, delay)
    payload_bits = uplinks.wideband_upload_s * BANDWIDTH_HZ * uplinks.full_band_snr / math.log(2)
    rate_bps = share * BANDWIDTH_HZ * np.log2(1 + uplinks.full_band_snr / share)
    assert uplinks.fixed_delay_s + payload_bits / rate_bps == pytest.approx(np.full(6, delay), rel=1e-12)
    assert uplinks.fixed_delay_s + upload_s(uplinks, share) == pytest.approx(np.full(6, delay), rel=1e-12)


def test_double_the_band_and_half_the_snr_in_it_halve_the_upload() -> None:
    fields = {"fixed_delay_s": np.zeros(1), "full_band_snr": np.array([4.0])}
    one = Uplinks.of(**fields, payload_bits=np.array([1e6]), bandwidth_hz=1e7)
    two = Uplinks.of(**fields, payload_bits=np.array([1e6]), bandwidth_hz=2e7)
    assert upload_s(two, 1.0) == pytest.approx(upload_s(one, 1.0) / 2)
    assert upload_s(one, 1.0)[0] == pytest.approx(1e6 / (1e7 * math.log2(5)))


@pytest.mark.parametrize("num_devices", [1, 2, 7, 40, 300])
@pytest.mark.parametrize("seed", range(4))
def test_least_delay_equals_bisection_and_all_are_done_together(num_devices: int, seed: int) -> None:
    uplinks = draw(num_devices, seed)
    delay, shares = least_delay(uplinks)
    if num_devices > 1:
        assert delay == pytest.approx(least_delay_by_bisection(uplinks), rel=1e-11)
    assert shares.sum() == pytest.approx(1, abs=1e-9) and shares.sum() <= 1 + 1e-12
    done = uplinks.fixed_delay_s + upload_s(uplinks, shares)
    assert done == pytest.approx(np.full(num_devices, delay), rel=1e-9)


@given(num_devices=st.integers(1, 12), seed=st.integers(0, 10**6), low=st.floats(-80, 60))
@settings(max_examples=150, deadline=None)
def test_least_delay_is_never_above_equal_shares_and_holds_the_band(
    num_devices: int, seed: int, low: float
) -> None:
    """Deep fades and high SNRs included."""
    uplinks = draw(num_devices, seed, (low, low + 40))
    delay, shares = least_delay(uplinks)
    assert delay <= equal_share_delay(uplinks)[0] * (1 + 1e-12)
    assert shares.sum() <= 1 + 1e-12 and (shares > 0).all()
    assert (uplinks.fixed_delay_s + upload_s(uplinks, shares)).max() == pytest.approx(delay, rel=1e-12)
    at_most = needed_shares(uplinks, delay * (1 - 1e-7)).sum()
    assert at_most > 1 - 1e-9  # no faster


def test_devices_with_nothing_to_send_take_no_band() -> None:
    uplinks = Uplinks.of(
        fixed_delay_s=np.array([5.0, 0.1, 0.2]),
        payload_bits=np.array([0.0, 1e6, 0.0]),
        full_band_snr=np.array([0.0, 10.0, 3.0]),
        bandwidth_hz=BANDWIDTH_HZ,
    )
    delay, shares = least_delay(uplinks)
    assert delay == pytest.approx(5.0, rel=1e-14) and 0 < shares[1] <= 1
    assert shares[[0, 2]].tolist() == [0, 0]
    assert needed_shares(uplinks, 1.0)[0] == math.inf and needed_shares(uplinks, 5.0)[0] == 0
    assert least_delay(uplinks.take(np.array([1])))[0] == pytest.approx(0.1 + 0.1 / math.log2(11))
    assert least_delay(uplinks.take(np.array([1, 2])))[0] == pytest.approx(0.2)
    assert least_delay(uplinks.take(np.array([0, 2])))[0] == 5.0


def test_a_device_without_channel_cannot_be_reached() -> None:
    uplinks = Uplinks.of(
        fixed_delay_s=np.zeros(2),
        payload_bits=np.ones(2),
        full_band_snr=np.array([0.0, 1.0]),
        bandwidth_hz=1.0,
    )
    assert uplinks.reachable.tolist() == [False, True]
    assert least_delay(uplinks)[0] == math.inf and needed_shares(uplinks, 1e9)[0] == math.inf
    assert upload_s(uplinks, 1.0)[0] == math.inf
    assert least_delay(uplinks.take(np.array([], dtype=int)))[0] == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fixed_delay_s", [-1.0], "fixed_delay_s of device 0 is -1"),
        ("payload_bits", [math.nan], "payload_bits of device 0 is nan"),
        ("full_band_snr", [1.0, 2.0], "shapes differ"),
        ("full_band_snr", [[1.0]], "one entry a device"),
    ],
)
def test_impossible_values_are_refused(name: str, value: list[float], message: str) -> None:
    fields = {"fixed_delay_s": [1.0], "payload_bits": [1.0], "full_band_snr": [1.0], name: value}
    with pytest.raises(SpecError, match=message):
        Uplinks.of(**{key: np.array(values) for key, values in fields.items()}, bandwidth_hz=1.0)
    with pytest.raises(SpecError, match="bandwidth_hz"):
        Uplinks.of(
            fixed_delay_s=np.ones(1), payload_bits=np.ones(1), full_band_snr=np.ones(1), bandwidth_hz=0.0
        )
