"""The ray sum: Sionna's channel from Sionna's draws, over its models and options."""

import logging
import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sionna.phy import config
from sionna.phy.channel import cir_to_ofdm_channel
from sionna.phy.channel.tr38901 import CDL, HandheldUTArray, PanelArray, UMa, UMi

from airlam.datasets.stochastic.directions import rotation
from airlam.datasets.stochastic.models import place_users
from airlam.datasets.stochastic.raydraw import RayDraw, draw_rays
from airlam.datasets.stochastic.raysum import frequency_response
from airlam.datasets.stochastic.response import model_call, model_response, slot_times_s
from airlam.datasets.stochastic.synthesis import draw_drops, draw_drops_by_sionna, draw_links
from airlam.errors import SpecError
from airlam.specs import ArraySpec, ChannelSpec, DatasetSpec, GridSpec, MobilitySpec, PlacementSpec

TARGET = 1e-5  # of each drop's norm, in single precision

arrays = st.builds(
    lambda rows, cols, dual, pattern, spacing, kind: ArraySpec(
        num_rows=rows,
        num_cols=cols,
        polarization="dual" if dual else "single",
        polarization_type=kind[1] if dual else kind[0],
        antenna_pattern=pattern,
        spacing_wavelengths=spacing,
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["omni", "38.901"]),
    st.sampled_from([0.5, 0.7]),
    st.sampled_from([("V", "VH"), ("H", "cross")]),
)
grids = st.builds(
    GridSpec,
    subcarrier_spacing_hz=st.sampled_from([30e3, 180e3]),
    num_uplink_subcarriers=st.integers(1, 5),
    num_downlink_subcarriers=st.integers(0, 3),
    gap_subcarriers=st.integers(0, 2),
    num_slots=st.sampled_from([1, 2, 7, 20]),
    slot_duration_s=st.sampled_from([0.1e-3, 0.5e-3]),
)


@st.composite
def specs(draw: st.DrawFn) -> DatasetSpec:
    """Any spec of a model with rays."""
    model: Any = draw(st.sampled_from(["cdl_a", "cdl_b", "cdl_c", "cdl_d", "cdl_e", "umi", "uma", "rma"]))
    link_level = model.startswith("cdl")
    direction: Literal["uplink", "downlink"] = draw(st.sampled_from(["uplink", "downlink"]))
    options: dict[str, Any] = {"spec_version": draw(st.sampled_from(["19.2", "16.1"]))}
    if link_level:
        options["delay_spread_s"] = draw(st.sampled_from([30e-9, 300e-9]))
    else:
        options |= {
            "los": draw(st.sampled_from(["los", "nlos", "mixed"])),
            "indoor_probability": draw(st.sampled_from([0.0, 0.5])),
            "path_loss": draw(st.booleans()),
            "shadow_fading": draw(st.booleans()),
            "blockage": draw(st.sampled_from([None, "portrait", "landscape"])),
            "spatial_consistency": draw(st.booleans()),
        }
    placement = PlacementSpec(
        base_station_downtilt_deg=draw(st.sampled_from([0.0, 9.0])),
        user_orientation=draw(st.sampled_from(["fixed", "heading"])),
    )
    return DatasetSpec(
        name=model,
        channel=ChannelSpec(model=model, carrier_frequency_hz=3.5e9, direction=direction, **options),
        base_station=draw(arrays),
        user=draw(arrays),
        placement=PlacementSpec() if link_level else placement,
        mobility=MobilitySpec(min_speed_m_per_s=0.0, max_speed_m_per_s=draw(st.sampled_from([0.0, 40.0]))),
        grid=draw(grids),
        num_users=draw(st.integers(1, 3)),
    )


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest relative error of a drop."""
    error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    return float(error.max())


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs(), seed=st.integers(0, 2**31))
def test_the_ray_sum_equals_sionna(spec: DatasetSpec, seed: int) -> None:
    fast, slow = draw_drops(spec, seed, 3), draw_drops_by_sionna(spec, seed, 3)
    assert fast.h_freq.shape == slow.h_freq.shape and fast.h_freq.dtype == slow.h_freq.dtype
    assert torch.equal(fast.path_loss_db, slow.path_loss_db) and torch.equal(fast.los, slow.los)
    assert worst(fast.h_freq, slow.h_freq) <= TARGET


def panel(**changes: Any) -> PanelArray:
    options: dict[str, Any] = {
        "num_rows_per_panel": 2,
        "num_cols_per_panel": 2,
        "polarization": "dual",
        "polarization_type": "cross",
        "antenna_pattern": "38.901",
        "carrier_frequency": 3.5e9,
    }
    return PanelArray(**(options | changes))


def uma(kind: type = UMa, **changes: Any) -> Any:
    """A model of Sionna's own making, with three users around it."""
    options: dict[str, Any] = {
        "carrier_frequency": 3.5e9,
        "o2i_model": "low",
        "ut_array": panel(num_rows_per_panel=1, num_cols_per_panel=1, antenna_pattern="omni"),
        "bs_array": panel(num_rows=2, num_cols=2),
        "direction": "uplink",
    }
    model = kind(**(options | changes))
    places = torch.tensor([[[80.0, 10.0, 1.5], [60.0, -70.0, 1.5], [-50.0, 90.0, 1.5]]])
    turns = torch.tensor([[[0.3, 0.2, -0.4], [1.0, 0.0, 0.5], [2.0, -0.3, 0.1]]])
    model.set_topology(
        ut_loc=places.to(model.dtype).expand(4, 3, 3),
        bs_loc=torch.tensor([[[0.0, 0.0, 25.0]]], dtype=model.dtype).expand(4, 1, 3),
        ut_orientations=turns.to(model.dtype).expand(4, 3, 3),
        bs_orientations=torch.tensor([[[0.2, 0.1, 0.3]]], dtype=model.dtype).expand(4, 1, 3),
        ut_velocities=torch.tensor([[[8.0, 3.0, 0.5]]], dtype=model.dtype).expand(4, 3, 3),
        in_state=torch.zeros(4, 3, dtype=torch.bool),
    )
    return model


def both(model: Any, num_slots: int = 5, batch_size: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Our response and Sionna's own from the same random numbers."""
    frequencies_hz = torch.linspace(-5e6, 5e6, 9, dtype=torch.float64)
    generator = config.torch_rng("cpu")
    before = generator.get_state()
    ours = model_response(model, num_slots, 1e-3, frequencies_hz, batch_size)
    after = generator.get_state()
    generator.set_state(before)
    gains, delays_s = model_call(model, batch_size)(num_slots, 1e3)
    assert torch.equal(generator.get_state(), after)
    return ours, cir_to_ofdm_channel(frequencies_hz, gains, delays_s)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: uma(direction="downlink"), id="several panels, any orientation"),
        pytest.param(lambda: uma(UMi, enable_blockage=True, blockage_self_blocking="none"), id="blockage A"),
        pytest.param(
            lambda: uma(
                enable_blockage=True,
                blockage_model="B",
                blockage_screen_centers=[[60.0, 5.0, 5.0]],
                blockage_screen_widths=[20.0],
                blockage_screen_heights=[10.0],
            ),
            id="blockage B",
        ),
        pytest.param(lambda: uma(enable_spatial_consistency=True), id="spatial consistency"),
    ],
)
def test_models_made_with_sionna_go_through(model: Any) -> None:
    ours, sionnas = both(model())
    assert worst(ours, sionnas) <= TARGET


def test_double_precision_is_kept() -> None:
    ours, sionnas = both(
        uma(
            precision="double",
            ut_array=panel(num_rows_per_panel=1, num_cols_per_panel=1, precision="double"),
            bs_array=panel(precision="double"),
        )
    )
    assert ours.dtype == torch.complex128
    assert worst(ours, sionnas) < 1e-12


def test_a_cdl_of_sionnas_draws_its_own_speeds() -> None:
    model = CDL("D", 100e-9, 3.5e9, panel(), panel(), "downlink", min_speed=3.0, max_speed=30.0)
    ours, sionnas = both(model, batch_size=6)
    assert ours.shape[:3] == (6, 1, 8) and worst(ours, sionnas) <= TARGET
    with pytest.raises(SpecError, match="batch_size is None"):
        model_response(model, 1, 1e-3, torch.zeros(1, dtype=torch.float64))


def test_what_is_not_supported_goes_through_sionna_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = uma(ut_array=HandheldUTArray(3.5e9))
    with caplog.at_level(logging.WARNING):
        ours, sionnas = both(model)
    assert "HandheldUTArray" in caplog.text and "slower" in caplog.text
    assert worst(ours, sionnas) <= TARGET


def one_draw() -> Any:
    spec = DatasetSpec(
        name="track",
        channel=ChannelSpec(model="umi", carrier_frequency_hz=3.5e9),
        base_station=ArraySpec(num_cols=2),
        mobility=MobilitySpec(min_speed_m_per_s=1.0, max_speed_m_per_s=30.0),
        grid=GridSpec(subcarrier_spacing_hz=180e3, num_uplink_subcarriers=4),
    )
    config.torch_rng("cpu").manual_seed(1)
    placed = place_users(spec, torch.Generator().manual_seed(1), 3)
    return draw_rays(placed.model, model_call(placed.model, None))


def test_one_draw_gives_a_track_of_any_length() -> None:
    """More slots of the same rays: pieces of the track agree with the whole, whatever the sampling."""
    draw = one_draw()
    frequencies_hz = torch.linspace(-1e6, 1e6, 4, dtype=torch.float64)
    times_s = slot_times_s(200, 0.5e-3)
    whole = frequency_response(draw, times_s, frequencies_hz)
    for part in (slice(0, 20), slice(70, 71), slice(120, 200)):
        piece = frequency_response(draw, times_s[part], frequencies_hz)
        assert worst(piece, whole[..., part, :]) < TARGET
    some = frequency_response(draw[1:3], times_s[:5], frequencies_hz)
    assert worst(some, whole[1:3, ..., :5, :]) < TARGET


def test_times_need_not_be_even() -> None:
    draw = one_draw()
    frequencies_hz = torch.zeros(1, dtype=torch.float64)
    times_s = torch.tensor([0.0, 0.1e-3, 2e-3, 2.1e-3, 9e-3])
    every = torch.cat(
        [frequency_response(draw, times_s[i : i + 1], frequencies_hz) for i in range(5)], dim=-2
    )
    assert worst(frequency_response(draw, times_s, frequencies_hz), every) < TARGET


def test_nothing_comes_of_nothing() -> None:
    draw = one_draw()
    none = torch.zeros(0, dtype=torch.float64)
    assert frequency_response(draw, none, torch.zeros(3)).shape[-2:] == (0, 3)
    assert frequency_response(draw, torch.zeros(3), none).shape[-2:] == (3, 0)


def test_the_error_is_single_precisions_own_whatever_the_band() -> None:
    """Against double precision from the same draw: at 400 MHz Sionna's own phases are the coarser ones."""
    spec = small_cdl(GridSpec(subcarrier_spacing_hz=4e6, num_uplink_subcarriers=100, num_slots=70))
    placed, draw = draw_links(spec, 1, 3)
    assert isinstance(draw, RayDraw) and placed.num_links == 3
    times_s = slot_times_s(70, spec.grid.slot_duration_s)
    frequencies_hz = torch.tensor(spec.grid.frequencies_hz, dtype=torch.float64)
    exact = frequency_response(draw.double(), times_s, frequencies_hz)
    ours = worst(draw_drops(spec, 1, 3).h_freq, exact)
    assert ours < 3e-6 and ours < worst(draw_drops_by_sionna(spec, 1, 3).h_freq, exact)


def small_cdl(grid: GridSpec) -> DatasetSpec:
    return DatasetSpec(
        name="cdl",
        channel=ChannelSpec(model="cdl_c", carrier_frequency_hz=3.5e9, delay_spread_s=1e-6),
        base_station=ArraySpec(num_cols=2),
        mobility=MobilitySpec(min_speed_m_per_s=1.0, max_speed_m_per_s=30.0),
        grid=grid,
    )


def test_several_base_stations() -> None:
    model = UMa(3.5e9, "low", panel(), panel(), "uplink")
    model.set_topology(
        ut_loc=torch.tensor([[80.0, 10.0, 1.5], [60.0, -70.0, 1.5]]).expand(3, 2, 3),
        bs_loc=torch.tensor([[0.0, 0.0, 25.0], [200.0, 0.0, 25.0]]).expand(3, 2, 3),
        ut_orientations=torch.zeros(3, 2, 3),
        bs_orientations=torch.zeros(3, 2, 3),
        ut_velocities=torch.ones(3, 2, 3),
        in_state=torch.tensor([True, False]).expand(3, 2),
    )
    ours, sionnas = both(model)
    assert ours.shape == (3, 2, 8, 2, 8, 5, 9) and ours.is_contiguous()
    assert worst(ours, sionnas) <= TARGET


def test_a_user_under_the_mast() -> None:
    """Seen along the array's z axis, where the polarisation's angle is undefined, and along its boresight."""
    for pitch in (0.0, math.pi / 2):
        model = UMa(3.5e9, "low", panel(), panel(), "downlink")
        model.set_topology(
            ut_loc=torch.tensor([[[0.0, 0.0, 1.5]]]),
            bs_loc=torch.tensor([[[0.0, 0.0, 25.0]]]),
            ut_orientations=torch.tensor([[[0.0, pitch, 0.0]]]),
            bs_orientations=torch.tensor([[[0.0, pitch, 0.0]]]),
            ut_velocities=torch.ones(1, 1, 3),
            in_state=torch.zeros(1, 1, dtype=torch.bool),
            los=True,
        )
        ours, sionnas = both(model)
        assert torch.isfinite(torch.view_as_real(ours)).all()
        assert not pitch or worst(ours, sionnas) <= TARGET


def test_threads_leave_the_bits_alone() -> None:
    draw, times_s = one_draw(), slot_times_s(64, 0.5e-3)
    frequencies_hz = torch.linspace(-1e6, 1e6, 50, dtype=torch.float64)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(frequency_response(draw, times_s, frequencies_hz))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_rotations_turn_axes_as_the_standard_says() -> None:
    """(7.1-4): bearing about z, downtilt about y', slant about x''."""
    quarter = math.pi / 2
    turned = rotation(torch.tensor([[quarter, 0.0, 0.0], [0.0, quarter, 0.0], [0.0, 0.0, quarter]]))
    for matrix, image in zip(turned, ([0, 1, 0], [0, 0, -1], [1, 0, 0]), strict=True):
        assert torch.allclose(matrix[:, 0], torch.tensor(image, dtype=torch.float32), atol=1e-6)
        assert torch.allclose(matrix @ matrix.T, torch.eye(3), atol=1e-6)
