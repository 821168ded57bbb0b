"""Ray-traced channels against closed forms and Sionna's own sums; cars, coverage, errors, reproducibility."""

import dataclasses
import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from airlam.datasets.catalog import packaged_spec
from airlam.datasets.fields import dataset_fields
from airlam.datasets.layout import batch_arrays
from airlam.datasets.shards import CANDIDATES_AT_ONCE, working_bytes
from airlam.datasets.sites import draw_trajectory, height_map
from airlam.datasets.sites.camera import Camera
from airlam.datasets.sites.draw import _batch
from airlam.datasets.sites.paths import PathFinder
from airlam.datasets.sites.response import element_positions, frequency_response, rotation
from airlam.datasets.sites.scene import Array, Cars, Scene, car_vertices_m
from airlam.datasets.sites.site import Site, open_site
from airlam.datasets.sites.tracer import mitsuba, ray_tracer
from airlam.datasets.sites.trajectory import Track
from airlam.datasets.sites.world import Drive, slots_a_trace
from airlam.datasets.stochastic.synthesis import draw_drops
from airlam.errors import DataError, SpecError
from airlam.llvm import good_llvm
from airlam.specs import (
    ArraySpec,
    CameraSpec,
    ChannelSpec,
    CsiSensorSpec,
    DatasetSpec,
    GridSpec,
    MobilitySpec,
    PositionSensorSpec,
    SensorsSpec,
    SiteSpec,
    SplitSizes,
)
from airlam.units import SPEED_OF_LIGHT_M_PER_S

pytestmark = pytest.mark.skipif(good_llvm() is None, reason="ray tracing on the CPU needs LLVM 17 or newer")

CARRIER_HZ = 3.5e9
WAVELENGTH_M = SPEED_OF_LIGHT_M_PER_S / CARRIER_HZ
ELEMENT = ArraySpec()
EMPTY = '<scene version="2.1.0"></scene>'
FLOOR = """<scene version="2.1.0">
<bsdf type="itu-radio-material" id="floor-metal">
<string name="type" value="metal"/><float name="thickness" value="1.0"/></bsdf>
<shape type="obj" id="mesh-floor"><string name="filename" value="floor.obj"/>
<boolean name="face_normals" value="true"/><ref id="floor-metal" name="bsdf"/></shape></scene>
"""
FLOOR_MESH = "v -500 -500 0\nv 500 -500 0\nv 500 500 0\nv -500 500 0\nf 1 2 3\nf 1 3 4\n"


def site_spec(scene: str = "simple_street_canyon", **changes: object) -> SiteSpec:
    values: dict[str, object] = dict(
        scene=scene,
        base_station_position_m=(-33.0, 11.0, 32.0),
        area_m=(-80.0, -20.0, 80.0, 20.0),
        max_depth=2,
        num_rays=20_000,
    )
    return SiteSpec(**(values | changes))  # type: ignore[arg-type]


def dataset_spec(site: SiteSpec, **changes: object) -> DatasetSpec:
    values: dict[str, object] = dict(
        name="here",
        channel=ChannelSpec(model="ray_traced", carrier_frequency_hz=CARRIER_HZ, path_loss=True),
        site=site,
        base_station=ELEMENT,
        mobility=MobilitySpec(min_speed_m_per_s=5.0, max_speed_m_per_s=15.0),
        grid=GridSpec(subcarrier_spacing_hz=1e6, num_uplink_subcarriers=5, num_slots=6),
        drops=SplitSizes(train=4, validation=0, test=0),
        shard_drops=4,
    )
    return DatasetSpec(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def open_air(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("scenes") / "empty.xml"
    path.write_text(EMPTY)
    return str(path)


@pytest.fixture(scope="module")
def metal_floor(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "floor.obj").write_text(FLOOR_MESH)
    (folder / "floor.xml").write_text(FLOOR)
    return str(folder / "floor.xml")


def straight(start_m: Array, velocity_m_per_s: Array) -> Track:
    """One user who goes straight on; at ``start_m`` at 0 s."""
    times_s = -2.5 + 0.5 * np.arange(12)  # a uniform cubic spline is at control k + 1 at its knot k
    control_m = start_m + times_s[:, None] * velocity_m_per_s
    return Track(control_m=control_m[:, None], road_heading_rad=np.zeros(1), interval_s=0.5, first_s=-2.0)


def drive(spec: DatasetSpec, start_m: list[float], velocity_m_per_s: list[float]) -> Drive:
    track = straight(np.array(start_m), np.array(velocity_m_per_s))
    return Drive(spec, open_site(spec), track, None)


def test_free_space_is_the_closed_form(open_air: str) -> None:
    """lambda / (4 pi d) exp(-j 2 pi f d / c), planar over the arrays, d shrinking at the radial speed."""
    array = ArraySpec(num_rows=2, num_cols=3)
    site = site_spec(
        open_air,
        base_station_position_m=(0.0, 0.0, 10.0),
        base_station_yaw_deg=30.0,
        base_station_downtilt_deg=8.0,
    )
    spec = dataset_spec(site, base_station=array, user=ArraySpec(num_cols=2))
    start_m, velocity = np.array([40.0, 12.0, 1.5]), np.array([-12.0, 5.0, 0.0])
    h, gain, los = drive(spec, start_m.tolist(), velocity.tolist()).window(np.zeros(1))
    offset_m = start_m - np.array(site.base_station_position_m)
    distance_m = float(np.linalg.norm(offset_m))
    ahead = offset_m / distance_m
    at_mast_m = element_positions(array) @ rotation(math.radians(30), math.radians(8)).T * WAVELENGTH_M
    heading = math.atan2(velocity[1], velocity[0])
    at_user_m = element_positions(spec.user) @ rotation(heading, 0.0).T * WAVELENGTH_M
    times_s = spec.grid.slot_duration_s * np.arange(6)
    length_m = distance_m + times_s * (ahead @ velocity)
    carrier_m = length_m + (at_user_m @ ahead)[:, None, None] - (at_mast_m @ ahead)[:, None]
    frequencies_hz = np.array(spec.grid.frequencies_hz)
    phase = CARRIER_HZ * carrier_m[..., None] + frequencies_hz * distance_m
    polarised = vertical(ahead, np.eye(3)) @ vertical(ahead, rotation(math.radians(30), math.radians(8)))
    amplitude = WAVELENGTH_M / (4 * math.pi * distance_m) * polarised
    expected = amplitude * np.exp(-2j * math.pi * phase / SPEED_OF_LIGHT_M_PER_S)
    assert los.all() and gain[0, 0] == pytest.approx(amplitude**2, rel=1e-5)
    # the phase is that of a delay in single precision
    assert np.abs(h[0, 0].numpy() / expected - 1).max() < 3e-3


def vertical(ahead: Array, turned: Array) -> Array:
    """In which a vertical antenna radiates: the zenith unit vector of a direction in a turned frame."""
    x, y, z = turned.T @ ahead
    flat = math.hypot(x, y)
    zenith: Array = turned @ np.array([z * x / flat, z * y / flat, -flat])
    return zenith


def test_both_directions_are_the_same_link(open_air: str) -> None:
    site = site_spec(open_air, base_station_position_m=(0.0, 0.0, 10.0))
    found = []
    for direction in ("uplink", "downlink"):
        channel = ChannelSpec(
            model="ray_traced",
            carrier_frequency_hz=CARRIER_HZ,
            direction=direction,  # type: ignore[arg-type]
        )
        spec = dataset_spec(site, channel=channel, base_station=ArraySpec(num_cols=4))
        world = drive(spec, [40.0, 12.0, 1.5], [-12.0, 5.0, 0.0])
        found.append(_batch(spec, world, np.zeros(1), *world.window(np.zeros(1))))
    assert found[0].h_freq.shape == (1, 1, 4, 1, 1, 6, 5) and found[1].h_freq.shape == (1, 1, 1, 1, 4, 6, 5)
    assert torch.equal(found[0].links(), found[1].links())
    assert found[0].links().abs().square().mean() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(("polarization", "direct", "mirrored"), [("V", 1.0, 1.0), ("H", -1.0, 1.0)])
def test_two_rays_over_metal(metal_floor: str, polarization: str, direct: float, mirrored: float) -> None:
    """The mirror image is in phase for vertical and in antiphase for horizontal fields.

    Horizontal antennas that face each other have their ports the opposite way round.
    """
    site = site_spec(metal_floor, base_station_position_m=(0.0, 0.0, 10.0), max_depth=1, num_rays=10_000)
    array = ArraySpec(polarization_type=polarization)  # type: ignore[arg-type]
    spec = dataset_spec(site, base_station=array, user=array)
    h, gain, _ = drive(spec, [60.0, 0.0, 1.5], [0.0, 0.0, 0.0]).window(np.zeros(1))
    direct_m, mirrored_m = math.hypot(60.0, 8.5), math.hypot(60.0, 11.5)
    frequency_hz = CARRIER_HZ + np.array(spec.grid.frequencies_hz)
    wave = [
        s * np.exp(-2j * math.pi * frequency_hz * d / SPEED_OF_LIGHT_M_PER_S) / d
        for s, d in ((direct, direct_m), (mirrored, mirrored_m))
    ]
    expected = WAVELENGTH_M / (4 * math.pi) * (wave[0] + wave[1])
    assert np.abs(h[0, 0, 0, 0, 0].numpy() - expected).max() < 5e-3 * np.abs(expected).max()
    loss = (WAVELENGTH_M / (4 * math.pi)) ** 2 * (direct_m**-2 + mirrored_m**-2)
    assert gain[0, 0] == pytest.approx(loss, rel=1e-2)


def test_ports_stand_where_sionna_phy_has_them() -> None:
    from sionna.phy.channel.tr38901 import AntennaArray

    theirs = AntennaArray(
        num_rows=3,
        num_cols=2,
        polarization="dual",
        polarization_type="cross",
        antenna_pattern="38.901",
        carrier_frequency=SPEED_OF_LIGHT_M_PER_S,
        vertical_spacing=0.5,
        horizontal_spacing=0.5,
        precision="single",
        device="cpu",
    )
    ours = element_positions(ArraySpec(num_rows=3, num_cols=2))
    places = theirs.ant_pos.numpy()
    assert np.allclose(np.concatenate([ours, ours]), places, atol=1e-5)


def test_responses_equal_sionna_s_own_arrays_and_sums() -> None:
    """The same paths with Sionna's arrays on them, summed in double precision; and its own cfr, in single."""
    rt, mi = ray_tracer(), mitsuba()
    site = site_spec(base_station_yaw_deg=-30.0, base_station_downtilt_deg=10.0)
    cross = ArraySpec(
        num_rows=2, num_cols=3, polarization="dual", polarization_type="cross", antenna_pattern="38.901"
    )
    pair = ArraySpec(num_cols=2, polarization="dual", polarization_type="VH")
    scene = Scene(site.scene, CARRIER_HZ)
    finder = PathFinder(scene, site, cross, pair)
    rng = np.random.default_rng(0)
    points = np.array([[-20.0, 2.0, 1.5], [10.0, -3.0, 1.5], [30.0, 4.0, 1.5], [50.0, 0.0, 1.5]])
    yaw, velocity = rng.uniform(-3, 3, 4), 10 * rng.normal(size=(4, 3))
    frequencies_hz, offsets_s = np.linspace(-9e6, 9e6, 7), 0.5e-3 * np.arange(4)
    h = frequency_response(
        finder.find(points, yaw, velocity),
        base_station=cross,
        base_station_angles_rad=(math.radians(-30.0), math.radians(10.0)),
        user=pair,
        user_yaw_rad=yaw,
        carrier_frequency_hz=CARRIER_HZ,
        frequencies_hz=frequencies_hz,
        offsets_s=offsets_s,
    ).numpy()
    scene.rt_scene.tx_array = rt.PlanarArray(num_rows=2, num_cols=3, pattern="tr38901", polarization="cross")
    scene.rt_scene.rx_array = rt.PlanarArray(num_rows=1, num_cols=2, pattern="iso", polarization="VH")
    paths = rt.PathSolver(True)(
        scene.rt_scene, max_depth=2, samples_per_src=20_000, refraction=False, synthetic_array=True
    )
    gain = (paths.a[0].numpy() + 1j * paths.a[1].numpy())[:, :, 0]
    delay_s, doppler_hz = (v.numpy()[:, 0].astype(float) for v in (paths.tau, paths.doppler))
    carrier = np.exp(-2j * np.pi * CARRIER_HZ * delay_s)[:, None, None]
    time = np.exp(2j * np.pi * doppler_hz[..., None] * offsets_s)
    steering = np.exp(-2j * np.pi * delay_s[..., None] * frequencies_hz)
    expected = np.einsum("nubp,npt,npf->nubtf", gain * carrier, time, steering)
    assert gain.shape[-1] >= 4
    assert np.linalg.norm(h - expected) < 1e-5 * np.linalg.norm(expected)
    theirs = paths.cfr(
        frequencies=mi.Float(frequencies_hz),
        sampling_frequency=2000.0,
        num_time_steps=4,
        normalize_delays=False,
        out_type="numpy",
    )[:, :, 0]
    assert np.linalg.norm(h - theirs) < 2e-3 * np.linalg.norm(theirs)


def test_many_paths_are_summed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataset_spec(site_spec())
    world = drive(spec, [10.0, 2.0, 1.5], [8.0, 0.0, 0.0])
    whole = world.window(np.array([0.0, 0.5]))[0]
    monkeypatch.setattr("airlam.datasets.sites.response.CHUNK_BYTES", 128)
    assert torch.allclose(world.window(np.array([0.0, 0.5]))[0], whole, rtol=1e-5, atol=1e-11)


def test_tracing_anew_within_a_window_continues_the_channel(open_air: str) -> None:
    """Between two traces a path has its Doppler only; over some centimetres that is as good as a trace."""
    near, far = (
        dataset_spec(
            site_spec(open_air, base_station_position_m=(0.0, 0.0, 10.0), retrace_distance_m=distance)
        )
        for distance in (0.016, 10.0)
    )
    assert (slots_a_trace(near), slots_a_trace(far)) == (2, 6)
    h = [drive(spec, [40.0, 12.0, 1.5], [-12.0, 5.0, 0.0]).window(np.zeros(1))[0] for spec in (near, far)]
    assert torch.equal(h[0][..., :2, :], h[1][..., :2, :])
    difference = (h[0] - h[1]).abs().max() / h[1].abs().max()
    assert 0 < difference < 5e-3


def test_cars_that_are_faster_than_users_shorten_the_time_between_traces() -> None:
    """14 m/s against 7: half as many slots."""
    slow = MobilitySpec(min_speed_m_per_s=5.0, max_speed_m_per_s=7.0)
    together = [
        slots_a_trace(dataset_spec(site_spec(retrace_distance_m=0.0145, num_cars=cars), mobility=slow))
        for cars in (0, 1)
    ]
    assert together == [4, 2]


def test_a_point_s_paths_do_not_depend_on_its_batch(
    metal_floor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where scattered paths of many points are more than the solver keeps, batches get smaller."""
    rough = Path(metal_floor).with_name("rough.xml")
    scattering = '<float name="scattering_coefficient" value="0.5"/></bsdf>'
    rough.write_text(FLOOR.replace("</bsdf>", scattering))
    site = site_spec(
        str(rough), base_station_position_m=(0.0, 0.0, 10.0), num_rays=2000, diffuse_reflection=True
    )
    finder = PathFinder(Scene(str(rough), CARRIER_HZ), site, ELEMENT, ELEMENT)
    points = np.column_stack([np.linspace(20.0, 60.0, 5), np.zeros(5), np.full(5, 1.5)])
    whole = finder.find(points, np.zeros(5), np.zeros((5, 3)))
    each = int((whole.power > 0).sum() and (np.abs(whole.gain) > 0).sum(axis=-1).min())
    assert each > 200
    monkeypatch.setattr("airlam.datasets.sites.paths.MAX_PATHS", 3 * each)
    halved = finder.find(points, np.zeros(5), np.zeros((5, 3)))
    for name in ("gain", "delay_s", "doppler_hz", "los"):
        assert np.array_equal(getattr(halved, name), getattr(whole, name)), name
    there = np.abs(whole.gain[:, 0, 0]) > 0
    assert np.array_equal(halved.bs_direction[there], whole.bs_direction[there])
    monkeypatch.setattr("airlam.datasets.sites.paths.MAX_PATHS", each // 2)
    with pytest.raises(
        SpecError, match=r"num_rays is 2000, and one user has .* leave diffuse_reflection out"
    ):
        finder.find(points, np.zeros(5), np.zeros((5, 3)))


def test_rays_that_are_kept_together_take_memory() -> None:
    """40 B each, above what is traced at once in any case."""
    few, many = (dataset_spec(site_spec(num_rays=rays, max_depth=5)) for rays in (10**4, 10**7))
    assert working_bytes(many) - working_bytes(few) == 40 * (5 * 10**7 - CANDIDATES_AT_ONCE)


def parked(position_m: list[float]) -> Cars:
    return Cars(position_m=np.array([position_m]), heading_rad=np.array([0.7]), there=np.array([True]))


def nowhere() -> Cars:
    return dataclasses.replace(parked([0.0, 0.0, 0.0]), there=np.array([False]))


def test_a_car_blocks_reflects_and_shifts(metal_floor: str) -> None:
    site = site_spec(metal_floor, base_station_position_m=(0.0, 0.0, 1.0), max_depth=1)
    scene = Scene(metal_floor, CARRIER_HZ, num_cars=1)
    finder = PathFinder(scene, site, ELEMENT, ELEMENT)
    user, still = np.array([[20.0, 0.0, 0.7]]), np.zeros((1, 3))
    scene.place_cars(nowhere(), still)
    free = finder.find(user, np.zeros(1), still)
    scene.place_cars(parked([10.0, 0.0, 0.0]), still)
    blocked = finder.find(user, np.zeros(1), still)
    assert free.los.all() and not blocked.los.any() and blocked.power[0] < free.power[0]
    down = np.array([[10.0, 0.0, 5.0]]), np.array([[0.0, 0.0, -1.0]])
    assert scene.cast(*down)[0] == pytest.approx(3.5, abs=0.1)  # the roof
    scene.place_cars(nowhere(), still)
    assert scene.cast(*down)[0] == pytest.approx(5.0, abs=1e-4)
    # a car beside the two, its flank a mirror that comes nearer: the way shortens at 4 y v / way
    speed = 10.0
    beside = dataclasses.replace(parked([10.0, 5.0, 0.0]), heading_rad=np.zeros(1))
    scene.place_cars(beside, np.array([[0.0, -speed, 0.0]]))
    flank_m = float(scene.cast(np.array([[10.0, 0.0, 0.85]]), np.array([[0.0, 1.0, 0.0]]))[0])
    mirrored = finder.find(user, np.zeros(1), still)
    shift_hz = 4 * flank_m * speed / math.hypot(20.0, 2 * flank_m) / WAVELENGTH_M
    assert np.all(free.doppler_hz == 0) and mirrored.doppler_hz.max() == pytest.approx(shift_hz, rel=0.05)


def test_line_of_sight_is_what_a_ray_says() -> None:
    spec = packaged_spec("street_canyon")
    site = open_site(spec)
    places = np.column_stack([site.ground.places_m[::40], np.full(len(site.ground.places_m[::40]), 1.5)])
    site.hide_cars()
    found = site.finder.find(places, np.zeros(len(places)), np.zeros((len(places), 3)))
    offset = places - np.array(site.spec.base_station_position_m)
    distance = np.linalg.norm(offset, axis=1)
    mast = np.broadcast_to(np.array(site.spec.base_station_position_m), offset.shape)
    sees = site.scene.cast(mast, offset / distance[:, None]) > distance - 1e-3
    assert np.array_equal(found.los, sees) and 0.1 < sees.mean() < 0.9


def test_the_camera_sees_a_car_where_it_stands(metal_floor: str) -> None:
    scene = Scene(metal_floor, CARRIER_HZ)
    lens = CameraSpec(width_px=64, height_px=48, field_of_view_deg=40.0, tilt_deg=30.0, samples_per_pixel=16)
    camera = Camera(scene, lens, position_m=np.array([0.0, 0.0, 10.0]), yaw_rad=math.pi / 2, num_cars=1)
    empty = camera.image(nowhere(), 1).astype(int)
    # in the middle of the view where the optical axis meets the ground
    middle = camera.image(parked([0.0, 10.0 / math.tan(math.radians(30.0)), 0.0]), 1).astype(int)
    right = camera.image(parked([3.0, 17.3, 0.0]), 1).astype(int)
    assert np.array_equal(empty, camera.image(nowhere(), 1)) and empty.shape == (48, 64, 3)
    spots = []
    for seen in (middle, right):
        rows, columns = np.nonzero(np.abs(seen - empty).max(axis=-1) > 60)
        spots.append((rows.mean(), columns.mean(), len(rows)))
    assert spots[0][0] == pytest.approx(23.5, abs=4) and spots[0][1] == pytest.approx(31.5, abs=3)
    assert spots[1][1] > spots[0][1] + 4 and 10 < spots[0][2] < 600
    sky = Camera(
        scene,
        dataclasses.replace(lens, tilt_deg=-60.0),
        position_m=np.array([0.0, 0.0, 10.0]),
        yaw_rad=0.0,
        num_cars=0,
    )
    assert np.unique(sky.image(dataclasses.replace(nowhere_at_all()), 1).reshape(-1, 3), axis=0).shape[0] == 1


def nowhere_at_all() -> Cars:
    return Cars(position_m=np.zeros((0, 3)), heading_rad=np.zeros(0), there=np.zeros(0, dtype=bool))


def test_ranges_are_distances_to_walls_and_cars() -> None:
    spec = dataset_spec(site_spec())
    world = drive(spec, [0.0, 0.0, 1.5], [8.0, 0.0, 0.0])
    found = world.ranges_m(0.0, np.array([[math.pi / 2, -math.pi / 2, 0.0]]), 0.7, 50.0)
    scene = open_site(spec).scene
    edge = next(
        y
        for y in np.arange(0, 30, 0.1)
        if scene.cast(np.array([[0, y, 99.0]]), np.array([[0, 0, -1.0]]))[0] < 98
    )
    assert found.shape == (1, 3) and found[0, 0] == pytest.approx(edge, abs=0.15) and found[0, 2] == 50.0
    with_car = Drive(
        dataset_spec(site_spec(num_cars=1)),
        open_site(dataset_spec(site_spec(num_cars=1))),
        straight(np.array([0.0, 0.0, 1.5]), np.array([8.0, 0.0, 0.0])),
        straight(np.array([12.0, 0.0, 0.0]), np.array([8.0, 0.0, 0.0])),
    )
    gap_m = 12.0 - np.abs(car_vertices_m()[:, 0]).max()
    ahead = np.array([[0.0]])
    assert with_car.ranges_m(0.0, ahead, 0.7, 50.0)[0, 0] == pytest.approx(gap_m, abs=0.5)
    assert with_car.ranges_m(0.0, ahead, 3.0, 50.0)[0, 0] == 50.0  # over its roof


def digest(spec: DatasetSpec, seed: int) -> str:
    arrays = batch_arrays(draw_trajectory(spec, "train", 3, seed, 3), spec)
    return hashlib.sha256(b"".join(values.tobytes() for values in arrays.values())).hexdigest()


def test_a_trajectory_has_every_field_of_its_spec() -> None:
    spec = packaged_spec("street_canyon")
    batch = draw_trajectory(spec, "train", 3, 7, 4)
    for name, values in batch_arrays(batch, spec).items():
        field = dataset_fields(spec)[name]
        assert values.shape == (4, *field.shape) and values.dtype == np.dtype(field.dtype), name
        assert np.isfinite(values).all(), name
    assert batch.readings["trajectory"].tolist() == [3] * 4
    assert batch.readings["time_s"].numpy() == pytest.approx([0.0, 0.2, 0.4, 0.6])
    velocity = batch.readings["velocity_m_per_s"]
    assert torch.allclose(velocity.norm(dim=-1), batch.speed_m_per_s)
    moved = (batch.position_m[1:] - batch.position_m[:-1]) / 0.2
    assert torch.allclose(moved, (velocity[1:] + velocity[:-1]) / 2, atol=0.3)
    assert spec.site is not None
    x_from, y_from, x_to, y_to = spec.site.area_m
    place = batch.position_m + torch.tensor(spec.site.origin_m)
    assert ((place >= torch.tensor([x_from, y_from, 0.0])) & (place <= torch.tensor([x_to, y_to, 3.0]))).all()


def test_slow_sensors_have_measured_before_the_first_drop() -> None:
    sensors = SensorsSpec(
        position=PositionSensorSpec(rate_hz=0.2, max_age_s=20.0),
        csi=CsiSensorSpec(rate_hz=0.5, max_age_s=2.0),
    )
    for seed in range(3):
        readings = draw_trajectory(dataset_spec(site_spec(), sensors=sensors), "train", 0, seed, 4).readings
        assert readings["gnss_present"].all() and readings["csi_present"].all()


def test_every_drop_has_a_path_where_only_half_the_streets_are_covered() -> None:
    """Line of sight only: users keep to where it is."""
    site = site_spec(max_depth=0, area_m=(-90.0, -45.0, 90.0, 45.0))
    spec = dataset_spec(site, num_users=3)
    assert 0.2 < open_site(spec).coverage[1].mean() < 0.8
    for seed in range(3):
        batch = draw_trajectory(spec, "train", seed, seed, 20)
        assert torch.isfinite(batch.path_loss_db).all() and batch.los.all()
        assert (batch.links().abs().amax(dim=(2, 3, 4, 5)) > 0).all()


def test_path_loss_is_what_unit_gain_takes_away() -> None:
    unit = packaged_spec("street_canyon")
    lossy = dataclasses.replace(
        dataclasses.replace(unit, channel=dataclasses.replace(unit.channel, path_loss=True))
    )
    ours, full = (draw_trajectory(spec, "test", 0, 5, 3) for spec in (unit, lossy))
    assert torch.equal(ours.path_loss_db, full.path_loss_db) and (ours.path_loss_db > 60).all()
    scale = 10 ** (-full.path_loss_db / 20)  # [drops, users]
    assert torch.allclose(ours.links() * scale[..., None, None, None, None], full.links(), rtol=1e-4, atol=0)


def test_the_seed_decides_every_bit_in_any_process() -> None:
    spec = packaged_spec("street_canyon")
    here = digest(spec, 11)
    assert here == digest(spec, 11) != digest(spec, 12)
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); torch.set_num_threads(2)\n"
        "from test_datasets_sites import digest, packaged_spec\n"
        "print(digest(packaged_spec('street_canyon'), 11))"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        env=os.environ | {"DRJIT_LIBLLVM_PATH": good_llvm() or ""},
    )
    assert run.stdout.strip() == here, run.stderr


def test_stochastic_channels_are_drawn_beside_ray_traced_ones_as_ever() -> None:
    spec = packaged_spec("quickstart")
    before = draw_drops(spec, 1, 2).h_freq
    digest(packaged_spec("street_canyon"), 11)
    assert torch.equal(draw_drops(spec, 1, 2).h_freq, before)


def test_the_height_map_is_seen_from_above() -> None:
    heights, extent = height_map(packaged_spec("street_canyon"))
    assert heights.dtype == np.float32 and heights.shape == (90, 180) and extent == (-90.0, -45.0, 90.0, 45.0)
    assert heights[45, 90] == pytest.approx(0.0, abs=0.1)  # the middle of the street
    assert heights[60, 50] == pytest.approx(29.1, abs=0.2) and heights[27, 50] == pytest.approx(21.8, abs=0.2)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (site_spec("munic"), "did you mean 'munich'"),
        (site_spec("absent.xml"), "is no file"),
        (site_spec(base_station_position_m=(-45.0, 20.0, 20.0)), "reaches up to 29.*place it at 30"),
        (site_spec(base_station_position_m=(0.0, 0.0, -3.0)), "reaches up to"),
    ],
)
def test_a_site_that_cannot_be_is_one_line(site: SiteSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        height_map(dataset_spec(site))
    assert "\n" not in str(caught.value)


def test_what_is_no_scene_is_one_line(tmp_path: Path) -> None:
    for name, text in (("words.xml", "hello"), ("empty.xml", "<scene/>"), ("odd.xml", FLOOR)):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="no Mitsuba scene that Sionna can read") as caught:
            Scene(str(tmp_path / name), CARRIER_HZ)
        assert "\n" not in str(caught.value)


def test_a_carrier_beyond_the_materials_is_one_line() -> None:
    with pytest.raises(SpecError, match=r"ITU material .* simple_street_canyon; ITU-R P\.2040"):
        Scene("simple_street_canyon", 60e9)


def test_a_base_station_that_reaches_nobody_is_one_line() -> None:
    """Behind a building, and no reflections."""
    site = site_spec(
        base_station_position_m=(-92.0, 58.0, 1.0), area_m=(-10.0, -20.0, 20.0, 20.0), max_depth=0
    )
    with pytest.raises(SpecError, match="no path reaches any"):
        draw_trajectory(dataset_spec(site), "train", 0, 1, 2)


def test_without_llvm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airlam.datasets.sites.tracer.choose_llvm", lambda: None)
    with pytest.raises(DataError, match="libllvm19"):
        ray_tracer.__wrapped__()


def test_the_ray_tracer_runs_in_one_thread() -> None:
    import drjit

    ray_tracer()
    assert drjit.thread_count() == 1


def test_a_site_stays_loaded() -> None:
    spec = packaged_spec("street_canyon")
    assert open_site(spec) is open_site(dataclasses.replace(spec, seed=5, name="other"))
    assert isinstance(open_site(spec), Site)


def test_a_scene_that_was_edited_is_loaded_anew(tmp_path: Path) -> None:
    """Its mesh counts, not the XML file alone."""
    (tmp_path / "floor.xml").write_text(FLOOR)
    (tmp_path / "floor.obj").write_text(FLOOR_MESH)
    spec = dataset_spec(site_spec(str(tmp_path / "floor.xml")))
    before = open_site(spec)
    assert before is open_site(spec) and (height_map(spec)[0] == 0.0).all()
    (tmp_path / "floor.obj").write_text(FLOOR_MESH.replace(" 0\n", " 2.5\n"))
    assert height_map(spec)[0] == pytest.approx(2.5) and open_site(spec) is not before


def test_drops_without_a_path_are_blamed_on_cars_only_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dark = torch.zeros(1), np.zeros((2, 1)), np.zeros((2, 1), dtype=bool)
    monkeypatch.setattr(Drive, "window", lambda self, time_s: dark)
    for num_cars, remedy in ((0, "take more num_rays"), (1, "take fewer cars")):
        with pytest.raises(SpecError, match=f"train trajectory 3: .* no path; {remedy}"):
            draw_trajectory(dataset_spec(site_spec(num_cars=num_cars)), "train", 3, 1, 2)


@pytest.mark.parametrize("name", ["munich", "etoile"])
def test_packaged_sites_draw(name: str) -> None:
    """Their scenes, masts, arrays and streets, with few rays and nothing else that moves or measures."""
    spec = packaged_spec(name)
    assert spec.site is not None
    x, y, _ = spec.site.base_station_position_m
    site = dataclasses.replace(
        spec.site, num_rays=2000, num_cars=0, diffraction=False, area_m=(x - 60, y - 60, x + 60, y + 60)
    )
    batch = draw_trajectory(dataclasses.replace(spec, site=site, sensors=SensorsSpec()), "train", 0, 1, 2)
    assert torch.isfinite(batch.h_freq.abs()).all() and (batch.path_loss_db < 150).all()
    assert float((batch.h_freq[..., 1:, :] - batch.h_freq[..., :-1, :]).abs().max()) > 0
