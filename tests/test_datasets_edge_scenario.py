"""Drawn gains of an edge network: closed forms of path loss and fading, and the same from the same seed."""

import dataclasses
import math

import numpy as np
import pytest

from airlam.datasets.edge_scenario import draw_scenario
from airlam.specs import DeviceSpec, NetworkSpec, ScenarioSpec, ServerSpec


def spec(count: int = 400, **scenario: object) -> NetworkSpec:
    return NetworkSpec(
        name="test",
        servers=(ServerSpec(name="edge", compute_flops_per_s=1e12, memory_bytes=1e9),),
        devices=(DeviceSpec(name="phone", compute_flops_per_s=1e9, memory_bytes=1e9, count=count),),
        scenario=ScenarioSpec(**scenario),  # type: ignore[arg-type]
    )


def test_log_distance_has_its_closed_form() -> None:
    drawn = draw_scenario(spec(model="log_distance", antenna_gain_db=5.0))
    expected = 128.1 + 37.6 * np.log10(drawn.distance_m / 1000)
    np.testing.assert_allclose(drawn.path_loss_db, expected, rtol=1e-12)
    assert drawn.shadowing_db.std() == pytest.approx(8, rel=0.15)
    np.testing.assert_allclose(
        10 * np.log10(drawn.mean_gain), 5.0 - drawn.path_loss_db + drawn.shadowing_db, rtol=1e-12
    )


def test_devices_stand_uniformly_in_area() -> None:
    drawn = draw_scenario(spec(4000, model="log_distance", min_radius_m=50.0, max_radius_m=200.0))
    assert drawn.distance_m.min() >= 50
    assert drawn.distance_m.max() <= 200
    assert (drawn.distance_m**2).mean() == pytest.approx((50**2 + 200**2) / 2, rel=0.03)


def test_rayleigh_power_is_exponential_with_the_mean_gain() -> None:
    drawn = draw_scenario(spec(50, model="log_distance", fading="rayleigh"))
    rounds = [list(drawn.gains(index).values()) for index in range(400)]
    power = np.array(rounds) / drawn.mean_gain  # [rounds, devices]
    assert power.mean() == pytest.approx(1, rel=0.03)
    assert power.var() == pytest.approx(1, rel=0.08)
    assert (power < math.log(2)).mean() == pytest.approx(0.5, abs=0.01)


def test_rician_power_varies_as_its_factor_says() -> None:
    drawn = draw_scenario(spec(40, model="umi", max_radius_m=60.0))
    assert (drawn.rician_factor > 0).sum() > 5  # some have line of sight that near
    strong = dataclasses.replace(drawn, rician_factor=np.full(40, 10.0))
    rounds = [list(strong.gains(index).values()) for index in range(400)]
    power = np.array(rounds) / strong.mean_gain
    assert power.mean() == pytest.approx(1, rel=0.01)
    assert power.var() == pytest.approx((2 * 10 + 1) / 11**2, rel=0.08)


def test_umas_path_loss_is_38901s() -> None:
    """Line of sight before the break point, and the larger of both laws without it (table 7.4.1-1)."""
    drawn = draw_scenario(spec(max_radius_m=250.0, shadow_fading=False))
    height_m = 25.0 - 1.5
    distance_m = np.hypot(drawn.distance_m, height_m)
    los = 28.0 + 22 * np.log10(distance_m) + 20 * math.log10(3.5)
    nlos = np.maximum(los, 13.54 + 39.08 * np.log10(distance_m) + 20 * math.log10(3.5))
    sees = drawn.rician_factor > 0
    assert 0 < sees.sum() < len(sees)
    np.testing.assert_allclose(drawn.path_loss_db[sees], los[sees], atol=0.05)
    np.testing.assert_allclose(drawn.path_loss_db[~sees], nlos[~sees], atol=0.05)
    assert (drawn.shadowing_db == 0).all()


def test_shadowing_of_uma_has_its_spread() -> None:
    drawn = draw_scenario(spec(800, fading="rayleigh"))
    assert 4 < drawn.shadowing_db.std() < 6.5  # 4 dB with line of sight, 6 without
    assert (drawn.rician_factor == 0).all()


@pytest.mark.parametrize("model", ["uma", "umi", "rma", "log_distance"])
def test_the_same_seed_gives_the_same(model: str) -> None:
    first, again = (draw_scenario(spec(6, model=model)) for _ in range(2))
    other = draw_scenario(spec(6, model=model, seed=2))
    assert first.gains(7) == again.gains(7)
    assert first.gains(7) != first.gains(8)
    assert first.mean_gains() != other.mean_gains()
    assert all(gain > 0 for gain in first.gains(0).values())


def test_without_fading_rounds_are_alike() -> None:
    drawn = draw_scenario(spec(6, fading="none"))
    assert drawn.gains(0) == drawn.gains(1) == drawn.mean_gains()


def test_a_gain_of_its_own_is_kept() -> None:
    base = spec(2)
    fixed = DeviceSpec(name="wall", compute_flops_per_s=1e9, memory_bytes=1e9, path_gain_db=-90.0)
    drawn = draw_scenario(dataclasses.replace(base, devices=(*base.devices, fixed)))
    assert drawn.mean_gains()["wall"] == pytest.approx(1e-9)
    assert math.isnan(drawn.distance_m[2])
