"""Sionna's draws: equal to Sionna's own path, with the powers, delays and Doppler that theory asks for."""

import dataclasses
import math
import warnings
from typing import Any

import pytest
import torch
from scipy.special import j0
from sionna.phy import config

from airlam.datasets.card import delay_spread_s
from airlam.datasets.catalog import packaged_spec, packaged_specs
from airlam.datasets.stochastic import synthesis
from airlam.datasets.stochastic.rays import RaySet
from airlam.datasets.stochastic.synthesis import draw_batches, draw_drops, draw_drops_with_rays
from airlam.errors import SpecError
from airlam.specs import (
    ArraySpec,
    ChannelSpec,
    DatasetSpec,
    GridSpec,
    MobilitySpec,
    PlacementSpec,
    spec_from_dict,
    spec_to_dict,
)
from airlam.units import SPEED_OF_LIGHT_M_PER_S

PANEL = ArraySpec(
    num_rows=2, num_cols=2, polarization="dual", polarization_type="cross", antenna_pattern="38.901"
)
DUAL_USER = ArraySpec(polarization="dual", polarization_type="VH", antenna_pattern="38.901")


def small(model: str, **changes: Any) -> DatasetSpec:
    """A small spec; ``changes`` replace its fields, those of ``channel`` one by one."""
    channel: dict[str, Any] = {"model": model, "carrier_frequency_hz": 2.4e9}
    link_level = model[:3] in ("cdl", "tdl")
    channel |= {"delay_spread_s": 100e-9} if link_level else {"los": "nlos"}
    channel |= changes.pop("channel", {})
    fields: dict[str, Any] = {
        "name": model,
        "base_station": ArraySpec() if model.startswith("tdl") else PANEL,
        "placement": PlacementSpec(base_station_downtilt_deg=0.0 if link_level else 7.0),
        "mobility": MobilitySpec(min_speed_m_per_s=5.0, max_speed_m_per_s=25.0),
        "grid": GridSpec(
            subcarrier_spacing_hz=180e3,
            num_uplink_subcarriers=6,
            num_downlink_subcarriers=4,
            gap_subcarriers=3,
            num_slots=8,
        ),
    }
    return DatasetSpec(channel=ChannelSpec(**channel), **(fields | changes))


@pytest.mark.parametrize("model", ["uma", "cdl_c", "tdl_a"])
def test_seeds_decide_and_nothing_global_moves(model: str) -> None:
    spec = small(model)
    before = torch.get_rng_state(), config.torch_rng("cpu").get_state(), config.seed, config.precision
    first, again, other = (draw_drops(spec, seed, 2) for seed in (1, 1, 2))
    torch.rand(3)
    assert torch.equal(first.h_freq, again.h_freq) and torch.equal(first.speed_m_per_s, again.speed_m_per_s)
    assert not torch.equal(first.h_freq, other.h_freq)
    torch.set_rng_state(before[0])
    assert torch.equal(config.torch_rng("cpu").get_state(), before[1])
    assert (config.seed, config.precision) == before[2:]


def test_drops_stay_the_same_with_sionna_in_double_precision() -> None:
    spec = small("uma")
    single = draw_drops(spec, 1, 2).h_freq
    config.precision = "double"
    try:
        assert torch.equal(draw_drops(spec, 1, 2).h_freq, single)
    finally:
        config.precision = "single"


def test_batches_are_the_drops_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (small("uma", num_users=2), small("cdl_d", num_users=3)):
        whole = draw_drops(spec, 1, 7)
        monkeypatch.setattr(synthesis, "BATCH_BYTES", 3 * whole.h_freq[0].numel() * 8)
        parts = list(draw_batches(spec, 1, 7))
        assert [len(part.h_freq) for part in parts] == [3, 3, 1]
        assert torch.equal(torch.cat([part.los for part in parts]), whole.los)
        joined = torch.cat([part.h_freq for part in parts])
        assert (joined - whole.h_freq).norm() < 1e-6 * whole.h_freq.norm()


@pytest.mark.parametrize("direction", ["uplink", "downlink"])
def test_axes_are_sionnas(direction: str) -> None:
    spec = small("uma", num_users=3, user=DUAL_USER, channel={"direction": direction})
    batch = draw_drops(spec, 1, 2)
    shape = (2, 1, 8, 3, 2, 8, 10) if direction == "uplink" else (2, 3, 2, 1, 8, 8, 10)
    assert batch.h_freq.shape == shape and batch.h_freq.dtype == torch.complex64
    assert batch.links().shape == (2, 3, 8, 2, 8, 10)
    assert batch.position_m.shape == (2, 3, 3) and batch.los.dtype == torch.bool


def test_the_channel_is_reciprocal_in_its_statistics() -> None:
    powers = [
        draw_drops(small("cdl_c", channel={"direction": d}), 1, 64).links().abs().square().mean()
        for d in ("uplink", "downlink")
    ]
    assert powers[0] == pytest.approx(float(powers[1]), rel=0.1)


def test_cdl_with_omni_antennas_has_unit_power_and_its_delay_spread() -> None:
    grid = GridSpec(subcarrier_spacing_hz=100e3, num_uplink_subcarriers=64, num_slots=4)
    for model in ("cdl_a", "cdl_c"):
        spec = small(model, base_station=ArraySpec(), grid=grid)
        links = draw_drops(spec, 1, 400).links()
        assert float(links.abs().square().mean()) == pytest.approx(1.0, rel=0.1)
        pooled = links.reshape(1, 1, -1, 1, 1, 64)
        assert float(delay_spread_s(pooled, 100e3)) == pytest.approx(100e-9, rel=0.1)


def test_tdl_moves_as_clarke_says_at_the_speed_in_the_batch() -> None:
    grid = GridSpec(subcarrier_spacing_hz=15e3, num_uplink_subcarriers=8, num_slots=12)
    batch = draw_drops(small("tdl_a", grid=grid), 1, 1500)
    links = batch.links()[:, 0]
    assert float(links.abs().square().mean()) == pytest.approx(1.0, rel=0.06)
    doppler_hz = batch.speed_m_per_s[:, 0].double() * 2.4e9 / SPEED_OF_LIGHT_M_PER_S
    for fast in (doppler_hz < 100, doppler_hz >= 100):  # speeds belong to their drops, not just to the set
        error = (links[fast, 4:] - links[fast, :-4]).abs().square().mean()
        theory = (2 - 2 * j0(2 * math.pi * doppler_hz[fast].numpy() * 4 * 0.5e-3)).mean()
        assert float(error) == pytest.approx(theory, rel=0.08)


def test_users_stand_and_move_as_the_spec_says() -> None:
    place = PlacementSpec(
        user_center_m=(100.0, 10.0), min_radius_m=5.0, max_radius_m=9.0, arc_deg=(0.0, 90.0)
    )
    batch = draw_drops(small("uma", placement=place, num_users=4), 2, 32)
    offset = batch.position_m[..., :2] - torch.tensor([100.0, 10.0])
    radius = offset.norm(dim=-1)
    assert 5.0 <= radius.min() and radius.max() <= 9.0 and offset.min() >= -1e-4
    assert 5.0 <= batch.speed_m_per_s.min() and batch.speed_m_per_s.max() <= 25.0
    assert (batch.position_m[..., 2] == 1.5).all() and not batch.los.any()


def test_a_cdl_with_equal_ends_moves_at_that_speed() -> None:
    """Sionna's own default would draw the speed from 0 up to the minimum."""
    speeds = MobilitySpec(min_speed_m_per_s=10.0, max_speed_m_per_s=10.0)
    assert (draw_drops(small("cdl_d", mobility=speeds), 1, 8).speed_m_per_s == 10.0).all()


def test_path_loss_is_stated_and_applied() -> None:
    batch = draw_drops(small("uma", channel={"path_loss": True}), 1, 64)
    assert 70 < batch.path_loss_db.min() and batch.path_loss_db.max() < 160
    gain_db = 10 * batch.h_freq.abs().square().mean(dim=(1, 2, 3, 4, 5, 6)).log10()
    free = draw_drops(small("uma"), 1, 64).h_freq.abs().square().mean(dim=(1, 2, 3, 4, 5, 6)).log10() * 10
    assert torch.allclose(free - gain_db, batch.path_loss_db[:, 0], atol=1e-2)


def test_users_heading_matters_for_a_directional_element_only() -> None:
    def hold_nmse(pattern: str, orientation: str) -> float:
        spec = small(
            "uma",
            base_station=ArraySpec(),
            user=ArraySpec(antenna_pattern=pattern),  # type: ignore[arg-type]
            placement=PlacementSpec(user_orientation=orientation),  # type: ignore[arg-type]
        )
        links = draw_drops(spec, 1, 200).links()
        return float(
            (links[:, :, 1:] - links[:, :, :-1]).abs().square().sum() / links[:, :, 1:].abs().square().sum()
        )

    assert hold_nmse("omni", "heading") == pytest.approx(hold_nmse("omni", "fixed"), rel=1e-3)
    assert hold_nmse("38.901", "heading") > 1.2 * hold_nmse("omni", "heading")


@pytest.mark.parametrize(
    "spec",
    [
        small("uma"),
        small("umi", channel={"direction": "downlink"}, user=ArraySpec(num_cols=2, antenna_pattern="38.901")),
        small("rma", user=DUAL_USER),
        small("cdl_a"),
    ],
    ids=lambda spec: spec.name,
)
def test_rays_span_the_channel(spec: DatasetSpec) -> None:
    batch, rays = draw_drops_with_rays(spec, 5, 2)
    assert torch.equal(batch.h_freq, draw_drops(spec, 5, 2).h_freq)
    frequencies = torch.tensor(spec.grid.frequencies_hz, dtype=torch.float64)
    for drop, ray_set in enumerate(rays):
        channel = batch.links()[drop, 0].flatten(1, 2).to(torch.complex128)  # [slots, antennas, subcarriers]
        assert _unexplained(channel, ray_set, frequencies) < 1e-4


def _unexplained(channel: torch.Tensor, rays: RaySet, frequencies_hz: torch.Tensor) -> float:
    """Relative residual of the least-squares fit on the rays' responses."""
    delay = torch.exp(-2j * math.pi * rays.delay_s[:, None] * frequencies_hz)
    responses = torch.einsum("qt,qa,qf->tafq", rays.time_response, rays.spatial_response, delay).flatten(0, 2)
    responses = responses * rays.power.sqrt()
    target = channel.flatten()[:, None]
    fit = torch.linalg.lstsq(responses, target, driver="gelsd").solution
    return float((responses @ fit - target).norm() / target.norm())


def test_ray_powers_are_the_channels_second_moments() -> None:
    """E|h|^2 from the rays against the draws; a CDL's rays have the same powers in each drop."""
    spec = small("cdl_a")
    batch, rays = draw_drops_with_rays(spec, 1, 200)
    expected = torch.stack(
        [(r.power[:, None] * r.spatial_response.abs().square()).sum(0) for r in rays]
    ).mean(0)
    measured = batch.links().abs().square().mean(dim=(0, 1, 2, 5)).flatten()
    assert float((measured.double() / expected).mean()) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (small("cdl_d"), "diffuse"),
        (small("uma", channel={"los": "mixed"}), "los = 'nlos'"),
        (small("uma", num_users=2), "num_users is 2"),
        (small("uma", channel={"path_loss": True}), "path_loss"),
    ],
)
def test_rays_are_refused_where_they_do_not_exist(spec: DatasetSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        draw_drops_with_rays(spec, 1, 1)


def test_ray_traced_specs_are_drawn_elsewhere() -> None:
    with pytest.raises(SpecError, match="ray-traced, not drawn from a model"):
        draw_drops(packaged_spec("munich"), 1, 1)


def test_no_drops_are_refused() -> None:
    with pytest.raises(SpecError, match="num_drops is 0"):
        draw_drops(small("uma"), 1, 0)


def test_tdl_takes_single_antennas() -> None:
    with pytest.raises(SpecError, match="not 8 and 1; take a cdl"):
        draw_drops(small("tdl_b", base_station=PANEL), 1, 1)


def test_every_packaged_spec_draws() -> None:
    """Each stochastic one with its model, array and users, on a smaller grid; of CSI-4CAST's cells, one."""
    one_of_the_grid = "csi4cast_d_30ns_1mps"
    for name in packaged_specs():
        if name.startswith("csi4cast") and name != one_of_the_grid:
            continue
        spec = packaged_spec(name)
        if spec.channel.is_ray_traced:
            continue
        grid = dataclasses.replace(
            spec.grid, num_uplink_subcarriers=2, num_downlink_subcarriers=0, num_slots=3
        )
        batch = draw_drops(dataclasses.replace(spec, grid=grid), 1, 2)
        assert torch.isfinite(torch.view_as_real(batch.h_freq)).all(), name
        assert float((batch.h_freq[..., 1:, :] - batch.h_freq[..., :-1, :]).abs().max()) > 0, name


def test_every_packaged_spec_survives_toml() -> None:
    for name in packaged_specs():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CSI-4CAST's fast cells alias, and say so
            spec = packaged_spec(name)
            assert spec.name == name
            assert spec_from_dict(DatasetSpec, spec_to_dict(spec)) == spec
