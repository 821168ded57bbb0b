"""Sensor readings in a world known in closed form: clocks, losses, noise, geometry, and what drops share."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from airlam.datasets.fields import reading_fields
from airlam.datasets.motion import Motion
from airlam.datasets.sensors import read_sensors
from airlam.datasets.sensors.beams import beam_samples, dft_beams
from airlam.datasets.sensors.csi import csi_samples
from airlam.datasets.sensors.position import gauss_markov
from airlam.datasets.sensors.sampling import SamplingPlan, plan_samples
from airlam.specs import (
    ArraySpec,
    BeamSensorSpec,
    CameraSpec,
    ChannelSpec,
    CsiSensorSpec,
    DatasetSpec,
    GridSpec,
    InertialSensorSpec,
    MobilitySpec,
    PositionSensorSpec,
    RangeSensorSpec,
    SensorsSpec,
    SiteSpec,
)
from airlam.specs.sensors import SENSOR_READINGS, SamplingSpec, presence_and_age

MAST_M = (8.0, -3.0, 20.0)
SPEED_M_PER_S = 10.0
RADIUS_M = np.array([20.0, 50.0])  # of the two users' circles
HALF_WIDTH_M = 6.0  # of the corridor along x
ARRAY = ArraySpec(num_rows=2, num_cols=8, polarization="dual", polarization_type="cross")
GRID = GridSpec(subcarrier_spacing_hz=30e3, num_uplink_subcarriers=7, num_slots=2)


class FakeWorld:
    """Users on circles around the scene's origin; walls at y = +-6 m seen from y = 0; a plane wave each."""

    def __init__(self, start_s: float = -math.inf) -> None:
        self.start_s = start_s
        self.image_times_s: list[float] = []
        self.link_times_s: list[NDArray[np.float64]] = []

    def motion(self, time_s: NDArray[np.float64]) -> Motion:
        assert (time_s >= self.start_s).all()
        angle = SPEED_M_PER_S / RADIUS_M * np.asarray(time_s)[:, None]  # [n, users]
        outward = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=-1)
        along = np.stack([-np.sin(angle), np.cos(angle), np.zeros_like(angle)], axis=-1)
        return Motion(
            position_m=RADIUS_M[:, None] * outward + np.array([0.0, 0.0, 1.5]),
            velocity_m_per_s=SPEED_M_PER_S * along,
            acceleration_m_per_s2=-(SPEED_M_PER_S**2) / RADIUS_M[:, None] * outward,
            heading_rad=angle + math.pi / 2,
            turn_rate_rad_per_s=np.broadcast_to(SPEED_M_PER_S / RADIUS_M, angle.shape),
        )

    def image(self, time_s: float, camera: CameraSpec) -> NDArray[np.uint8]:
        self.image_times_s.append(time_s)
        return np.full((camera.height_px, camera.width_px, 3), round(100 + 10 * time_s), np.uint8)

    def ranges_m(
        self, time_s: float, azimuth_rad: NDArray[np.float64], height_m: float, max_range_m: float
    ) -> NDArray[np.float64]:
        across = np.abs(np.sin(azimuth_rad))
        return np.minimum(HALF_WIDTH_M / np.maximum(across, 1e-9), max_range_m)

    def links(self, time_s: NDArray[np.float64]) -> torch.Tensor:
        self.link_times_s.append(time_s)
        phase = time_s[:, None, None, None, None] + np.arange(ARRAY.num_ports)[:, None]
        return torch.from_numpy(np.exp(1j * np.broadcast_to(phase, (len(time_s), 2, 1, 32, 7)))).to(
            torch.complex64
        )


ALL_SENSORS = SensorsSpec(
    position=PositionSensorSpec(rate_hz=5.0),
    inertial=InertialSensorSpec(num_samples=6),
    camera=CameraSpec(width_px=12, height_px=8, rate_hz=3.0),
    range_scan=RangeSensorSpec(num_directions=16),
    beams=BeamSensorSpec(num_beams=8, num_past=3),
    csi=CsiSensorSpec(comb=2),
)


def dataset(sensors: SensorsSpec) -> DatasetSpec:
    return DatasetSpec(
        name="fake",
        channel=ChannelSpec(model="ray_traced", carrier_frequency_hz=3.5e9),
        base_station=ARRAY,
        site=SiteSpec(scene="fake", base_station_position_m=MAST_M),
        sensors=sensors,
        mobility=MobilitySpec(min_speed_m_per_s=10.0, max_speed_m_per_s=10.0),
        grid=GRID,
        num_users=2,
    )


def drops(num: int = 40, interval_s: float = 0.1) -> NDArray[np.float64]:
    return interval_s * np.arange(num)


def only(**sensors: SamplingSpec) -> DatasetSpec:
    return dataset(SensorsSpec(**sensors))  # type: ignore[arg-type]


# clocks, losses, ages


def plan(sensor: SamplingSpec, times_s: NDArray[np.float64], *, seed: int = 3) -> SamplingPlan:
    return plan_samples(sensor, times_s, np.random.default_rng(seed), phase=0.25, num_sources=2)


def test_without_losses_the_latest_tick_is_carried() -> None:
    times_s = drops(200, 0.013)
    found = plan(SamplingSpec(rate_hz=10.0), times_s)
    expected = times_s - (0.025 + np.floor((times_s - 0.025) * 10) / 10)
    assert found.present.all()
    np.testing.assert_allclose(found.age_s, np.stack([expected, expected], axis=1), atol=1e-6)
    np.testing.assert_allclose(
        times_s[:, None] - found.time_s[found.place[..., 0]], found.age_s, rtol=0, atol=1e-6
    )


def test_a_tick_at_the_time_of_a_drop_counts() -> None:
    times_s = (np.arange(40) + 0.25) / 10
    np.testing.assert_allclose(plan(SamplingSpec(), times_s).age_s, 0, atol=1e-9)


def test_losses_are_geometric() -> None:
    """With loss p the carried sample is k ticks old with probability (1 - p) p^k."""
    times_s = (np.arange(20_000) + 0.25) / 10
    lost = 0.4
    age_s = plan(SamplingSpec(missing_probability=lost, max_age_s=30.0), times_s).age_s
    ticks = np.rint(age_s * 10).astype(int)
    share = np.bincount(ticks.ravel(), minlength=5)[:5] / ticks.size
    np.testing.assert_allclose(share, (1 - lost) * lost ** np.arange(5), atol=0.01)
    assert abs(np.corrcoef(ticks[:, 0], ticks[:, 1])[0, 1]) < 0.03  # users lose theirs independently


def test_too_old_is_missing_and_zero() -> None:
    times_s = drops(5_000)
    sensor = SamplingSpec(missing_probability=0.7, max_age_s=0.28)
    found = plan(sensor, times_s)
    assert abs(found.present.mean() - (1 - 0.7**3)) < 0.02  # ticks 0.075, 0.175 and 0.275 s before
    assert (found.age_s[~found.present] == np.float32(0.28)).all() and (found.age_s <= np.float32(0.28)).all()
    picked = found.pick(np.ones((len(found.time_s), 2, 4)))
    assert (picked[found.present] == 1).all() and (picked[~found.present] == 0).all()


def test_windows_end_at_the_latest_sample_and_hold_over_losses() -> None:
    times_s = drops(300)
    lossless = plan(BeamSensorSpec(num_past=4), times_s)
    steps_s = np.diff(lossless.time_s[lossless.place], axis=-1)
    np.testing.assert_allclose(steps_s, 0.1)
    lossy = plan(BeamSensorSpec(num_past=4, missing_probability=0.3, max_age_s=10.0), times_s)
    newest = lossy.place[..., -1:]
    assert lossy.present.all() and (lossy.place >= 0).all()
    ticks = np.rint((lossy.time_s - lossy.time_s[0]) * 10).astype(int)
    behind = ticks[newest] - ticks[lossy.place]  # of each place, in ticks
    assert (behind >= np.arange(4)[::-1]).all() and (np.diff(behind, axis=-1) <= 0).all()
    assert (behind > np.arange(4)[::-1]).any()  # some place holds an older sample


@pytest.mark.parametrize(
    "sensor",
    [
        SamplingSpec(rate_hz=0.2, max_age_s=5.0),
        SamplingSpec(rate_hz=3.0, max_age_s=0.34),
        BeamSensorSpec(rate_hz=1.0, num_past=20),
        InertialSensorSpec(num_samples=500),
    ],
)
@pytest.mark.parametrize("phase", [0.0, 0.5, 0.999])
def test_the_first_drop_lacks_nothing_that_was_not_lost(sensor: SamplingSpec, phase: float) -> None:
    found = plan_samples(sensor, drops(5), np.random.default_rng(0), phase=phase, num_sources=2)
    assert found.present.all() and (found.place >= 0).all()
    assert found.time_s[0] >= sensor.start_s


def test_a_window_with_nothing_to_hold_is_missing() -> None:
    """Present are windows that are full, and those alone."""
    sensor = BeamSensorSpec(num_past=3, missing_probability=0.8, max_age_s=0.2)
    for seed in range(200):
        found = plan(sensor, drops(2), seed=seed)
        assert (found.present[..., None] == (found.place >= 0)).all()
    whole = [plan(sensor, drops(1), seed=seed).present.mean() for seed in range(2000)]
    # of five ticks before the drop, the newest that is kept is the n-th, n <= 1 (the next is 0.275 s old),
    # and one is kept of those that the oldest place may hold, the (n + 2)-th to the last
    expected = sum(0.2 * 0.8**n * (1 - 0.8 ** (3 - n)) for n in range(2))
    assert abs(np.mean(whole) - expected) < 0.02


def test_sensors_of_one_rate_and_phase_tick_together() -> None:
    """However far back their windows reach."""
    short = plan(SamplingSpec(rate_hz=3.0), drops(10))
    long = plan(BeamSensorSpec(rate_hz=3.0, num_past=7), drops(10))
    assert np.isin(short.time_s, long.time_s).all()


def test_only_samples_that_drops_carry_are_taken() -> None:
    found = plan(SamplingSpec(rate_hz=1000.0), drops(10))
    assert len(found.time_s) == 10
    world = FakeWorld()
    read_sensors(only(camera=CameraSpec(width_px=4, height_px=4, rate_hz=2.0)), world, drops(10), 1)
    assert len(world.image_times_s) <= 3  # 0.9 s at 2 Hz


# all readings


def test_readings_are_the_fields_of_the_spec() -> None:
    spec = dataset(ALL_SENSORS)
    readings = read_sensors(spec, FakeWorld(), drops(), 1)
    motion = {"trajectory", "time_s", "velocity_m_per_s"}
    fields = {name: field for name, field in reading_fields(spec).items() if name not in motion}
    assert list(readings) == list(fields)
    for name, field in fields.items():
        assert readings[name].shape == (40, *field.shape), name
        assert readings[name].numpy().dtype == field.dtype, name


def test_the_same_seed_gives_the_same_readings_and_another_others() -> None:
    spec = dataset(ALL_SENSORS)
    first, again = (read_sensors(spec, FakeWorld(), drops(), 7) for _ in range(2))
    other = read_sensors(spec, FakeWorld(), drops(), 8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in SENSOR_READINGS.values())


@pytest.mark.parametrize("name", SENSOR_READINGS)
def test_a_sensor_reads_the_same_alone(name: str) -> None:
    together = read_sensors(dataset(ALL_SENSORS), FakeWorld(), drops(), 7)
    alone = read_sensors(only(**{name: getattr(ALL_SENSORS, name)}), FakeWorld(), drops(), 7)
    assert len(alone) == 3 and all(torch.equal(alone[key], together[key]) for key in alone)


@pytest.mark.parametrize("name", SENSOR_READINGS)
def test_drops_that_share_a_sample_share_its_noise(name: str) -> None:
    sensor = dataclasses.replace(getattr(ALL_SENSORS, name), rate_hz=1.0, max_age_s=2.0)
    readings = read_sensors(only(**{name: sensor}), FakeWorld(), drops(), 5)
    values = readings[SENSOR_READINGS[name]]
    age_s = readings[presence_and_age(SENSOR_READINGS[name])[1]].reshape(40, -1)[:, 0]
    for k in range(39):
        assert torch.equal(values[k], values[k + 1]) == bool(age_s[k + 1] > age_s[k])


@pytest.mark.parametrize("name", SENSOR_READINGS)
def test_all_lost_is_missing_everywhere(name: str) -> None:
    sensor = dataclasses.replace(getattr(ALL_SENSORS, name), missing_probability=1.0)
    readings = read_sensors(only(**{name: sensor}), FakeWorld(), drops(), 5)
    present, age_s = presence_and_age(SENSOR_READINGS[name])
    assert not readings[present].any() and (readings[age_s] == sensor.max_age_s).all()
    assert (readings[SENSOR_READINGS[name]] == 0).all()


def test_the_radio_asks_for_its_links_once_and_shares_them() -> None:
    world = FakeWorld()
    read_sensors(dataset(ALL_SENSORS), world, drops(), 1)
    (asked_s,) = world.link_times_s
    np.testing.assert_allclose(np.diff(asked_s), 0.1)  # beams and CSI tick as one; two sweeps more of past


def test_nothing_is_asked_of_the_world_before_the_sensors_are_on() -> None:
    spec = dataset(ALL_SENSORS)
    world = FakeWorld(spec.sensors.start_s)
    for seed in range(20):
        read_sensors(spec, world, drops(3), seed)
    assert min(world.image_times_s) >= spec.sensors.start_s
    assert min(times_s.min() for times_s in world.link_times_s) >= spec.sensors.start_s


# each sensor's own physics


def test_position_counts_from_the_foot_of_the_mast() -> None:
    exact = PositionSensorSpec(bias_std_m=0.0, noise_std_m=0.0)
    readings = read_sensors(only(position=exact), FakeWorld(), drops(), 1)
    sampled_s = drops()[:, None] - readings["gnss_age_s"].numpy()
    truth_m = FakeWorld().motion(sampled_s[:, 0]).position_m - [8.0, -3.0, 0.0]
    np.testing.assert_allclose(readings["gnss_position_m"].numpy(), truth_m, atol=1e-4)


def test_gauss_markov_has_its_autocorrelation_at_any_spacing() -> None:
    time_s = np.cumsum(np.array([0.0, 0.5, 3.0, 1.0]))
    bias = gauss_markov(time_s, (200_000,), 1.5, 2.0, np.random.default_rng(0))
    expected = 1.5**2 * np.exp(-np.abs(time_s[:, None] - time_s) / 2.0)
    np.testing.assert_allclose(bias @ bias.T / 200_000, expected, atol=0.03)


def test_position_error_is_bias_and_noise() -> None:
    sensor = PositionSensorSpec(bias_std_m=2.0, bias_correlation_s=1e-3, noise_std_m=1.0)
    readings = read_sensors(only(position=sensor), FakeWorld(), drops(3000), 1)
    exact = dataclasses.replace(sensor, bias_std_m=0.0, noise_std_m=0.0)
    truth = read_sensors(only(position=exact), FakeWorld(), drops(3000), 1)
    error_m = readings["gnss_position_m"] - truth["gnss_position_m"]
    assert abs(error_m.std().item() - math.sqrt(5)) < 0.05


def test_every_user_and_coordinate_has_a_position_error_of_its_own() -> None:
    sensor = PositionSensorSpec(bias_std_m=2.0, bias_correlation_s=0.5, noise_std_m=0.0)
    readings = read_sensors(only(position=sensor), FakeWorld(), drops(4000, 1.0), 1)
    exact = dataclasses.replace(sensor, bias_std_m=0.0)
    truth = read_sensors(only(position=exact), FakeWorld(), drops(4000, 1.0), 1)
    error_m = (readings["gnss_position_m"] - truth["gnss_position_m"]).reshape(4000, -1)  # [drops, user xyz]
    np.testing.assert_allclose(np.corrcoef(error_m.T), np.eye(6), atol=0.08)


def test_a_circle_accelerates_to_the_left() -> None:
    """v^2 / r to the inside, nothing forwards, turn rate v / r."""
    sensor = InertialSensorSpec(acceleration_noise_std_m_per_s2=0.0, turn_rate_noise_std_rad_per_s=0.0)
    readings = read_sensors(only(inertial=sensor), FakeWorld(), drops(), 1)["inertial_reading"]
    expected = np.stack([0 * RADIUS_M, SPEED_M_PER_S**2 / RADIUS_M, SPEED_M_PER_S / RADIUS_M], axis=-1)
    np.testing.assert_allclose(readings, np.broadcast_to(expected[:, None], (40, 2, 10, 3)), atol=1e-5)


def test_inertial_noise_has_its_own_size_by_quantity() -> None:
    sensor = InertialSensorSpec(acceleration_noise_std_m_per_s2=0.5, turn_rate_noise_std_rad_per_s=0.02)
    readings = read_sensors(only(inertial=sensor), FakeWorld(), drops(200), 1)["inertial_reading"]
    spread = readings.std(dim=(0, 2)).mean(dim=0)  # [quantity]
    np.testing.assert_allclose(spread, [0.5, 0.5, 0.02], rtol=0.1)


def test_the_camera_shows_its_time_with_noise() -> None:
    camera = dataclasses.replace(ALL_SENSORS.camera, noise_std=0.02, width_px=64, height_px=64)
    world = FakeWorld()
    readings = read_sensors(only(camera=camera), world, drops(), 1)
    images = readings["camera_image"].double()
    sampled_s = drops() - readings["camera_age_s"].numpy()
    np.testing.assert_allclose(images.mean(dim=(1, 2, 3)), np.rint(100 + 10 * sampled_s), atol=0.3)
    assert abs(images.std(dim=(1, 2, 3)).mean().item() - 0.02 * 255) < 0.2


def test_a_corridor_scanned_from_its_middle() -> None:
    sensor = RangeSensorSpec(num_directions=8, max_range_m=15.0, noise_std_m=0.0)
    readings = read_sensors(only(range_scan=sensor), FakeWorld(), drops(), 1)
    sampled_s = drops() - readings["range_age_s"].numpy()[:, 0]
    heading = FakeWorld().motion(sampled_s).heading_rad[..., None]
    across = np.abs(np.sin(heading + 2 * np.pi * np.arange(8) / 8))
    expected = np.minimum(HALF_WIDTH_M / np.maximum(across, 1e-9), 15.0)
    np.testing.assert_allclose(readings["range_scan_m"], expected, rtol=1e-3, atol=1e-3)


def test_range_noise_stays_within_the_range() -> None:
    sensor = RangeSensorSpec(num_directions=64, max_range_m=7.0, noise_std_m=3.0)
    ranges_m = read_sensors(only(range_scan=sensor), FakeWorld(), drops(), 1)["range_scan_m"]
    assert ranges_m.min() >= 0 and ranges_m.max() == 7.0 and ranges_m.std() > 1


def plane_wave(azimuth_rad: float, array: ArraySpec) -> NDArray[np.complex64]:
    """[1, 1, 1, bs_ant, 3]: a wave along the boresight's elevation, arriving from an azimuth."""
    column = np.arange(array.num_ports) // array.num_rows % array.num_cols
    response = np.exp(2j * np.pi * array.spacing_wavelengths * np.sin(azimuth_rad) * column)
    return np.broadcast_to(response[:, None], (1, 1, 1, array.num_ports, 3)).astype(np.complex64)


def noiseless_beams(num_beams: int, azimuth_rad: float) -> NDArray[np.float32]:
    links = plane_wave(azimuth_rad, ARRAY)
    return beam_samples(BeamSensorSpec(num_beams=num_beams), ARRAY, links, 0.0, np.random.default_rng(0))[
        0, 0
    ]


@pytest.mark.parametrize("num_beams", [8, 16, 32])
def test_a_plane_wave_peaks_at_its_beam_with_the_arrays_gain(num_beams: int) -> None:
    for beam in range(num_beams):
        power = noiseless_beams(num_beams, math.asin(2 * ((beam + 0.5) / num_beams - 0.5)))
        assert power.argmax() == beam
        assert power[beam] == pytest.approx(2 * 16, rel=1e-4)  # two polarisations, 16 elements each
        if num_beams == ARRAY.num_cols:
            assert np.delete(power, beam).max() < 1e-4  # orthogonal


def test_as_many_beams_as_columns_are_a_unitary_transform() -> None:
    array = ArraySpec(num_cols=8)
    weights = dft_beams(array, 8)
    np.testing.assert_allclose(weights @ weights.conj().T, np.eye(8), atol=1e-6)


def test_a_beam_has_the_noise_of_a_port_in_every_branch() -> None:
    links = np.repeat(plane_wave(math.asin(2 * (0.5 / 8 - 0.5)), ARRAY), 4000, axis=0)
    power = beam_samples(BeamSensorSpec(num_beams=8), ARRAY, links, 0.5, np.random.default_rng(0))[:, 0]
    assert power[:, 0].mean() == pytest.approx(32 + 2 * 0.5, rel=0.01)  # two polarisations
    assert power[:, 1:].mean() == pytest.approx(2 * 0.5, rel=0.02)


def random_links(num: int = 50) -> NDArray[np.complex64]:
    rng, shape = np.random.default_rng(0), (num, 2, 1, 32, 7)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def test_csi_is_the_comb_with_noise_of_its_variance() -> None:
    links = random_links()
    measured = csi_samples(CsiSensorSpec(comb=3), links, 0.2, np.random.default_rng(1))
    assert measured.shape == (50, 2, 1, 32, 3)
    noise = measured - links[..., ::3]
    assert np.square(np.abs(noise)).mean() == pytest.approx(0.2, rel=0.03)
    assert np.abs(np.square(noise).mean()) < 0.01  # circular
    first, second = noise[:, 0].ravel(), noise[:, 1].ravel()
    assert abs(np.vdot(first, second)) / first.size < 0.02  # users' receivers have noises of their own


@pytest.mark.parametrize("later", [1e-3, 1e3])
def test_noise_knows_neither_the_future_nor_the_other_users(later: float) -> None:
    """Whatever comes later, and however strong the second user is, the first reading stays the same."""
    links, other = random_links(), random_links()
    other[1:] *= np.float32(later)
    other[:, 1] *= np.float32(later)
    csi, beams = CsiSensorSpec(), BeamSensorSpec(num_beams=8)
    for sample in (
        lambda h: csi_samples(csi, h, 0.1, np.random.default_rng(1)),
        lambda h: beam_samples(beams, ARRAY, h, 0.1, np.random.default_rng(1)),
    ):
        np.testing.assert_array_equal(sample(links)[0, 0], sample(other)[0, 0])


@pytest.mark.parametrize(("path_loss", "variance"), [(False, 0.01), (True, 1e-11)])
def test_receiver_noise_is_fixed_by_the_spec(path_loss: bool, variance: float) -> None:
    """20 dB below unit gain, or below a link that loses 90 dB; the world's links have unit gain."""
    reference = {"reference_path_loss_db": 90.0} if path_loss else {}
    sensors = SensorsSpec(
        csi=CsiSensorSpec(snr_db=20.0, **reference), beams=BeamSensorSpec(snr_db=20.0, **reference)
    )
    spec = dataset(ALL_SENSORS)
    channel = dataclasses.replace(spec.channel, path_loss=path_loss)
    spec = dataclasses.replace(spec, channel=channel, sensors=sensors)
    for sensor in (spec.sensors.csi, spec.sensors.beams):
        assert sensor is not None and sensor.noise_variance(path_loss) == pytest.approx(variance)
    world = FakeWorld()
    world.links = lambda time_s: torch.zeros(len(time_s), 2, 1, 32, 7, dtype=torch.complex64)  # type: ignore
    readings = read_sensors(spec, world, drops(), 1)
    noise = readings["csi_measurement"].abs().square().mean().item()
    assert noise == pytest.approx(variance, rel=0.05)
    assert readings["beam_power"].mean().item() == pytest.approx(2 * variance, rel=0.05)  # two polarisations


def test_the_downlink_of_fdd_is_not_heard() -> None:
    """Readings are of the uplink band: nothing is in them of the downlink's channel, which is to be found."""
    spec = only(csi=CsiSensorSpec(comb=2), beams=BeamSensorSpec(num_beams=8))
    grid = dataclasses.replace(GRID, num_uplink_subcarriers=4, num_downlink_subcarriers=3, gap_subcarriers=2)
    spec = dataclasses.replace(spec, grid=grid)
    world, altered = FakeWorld(), FakeWorld()
    links = altered.links
    altered.links = lambda time_s: torch.cat([links(time_s)[..., :4], 9 + links(time_s)[..., 4:]], -1)  # type: ignore
    expected, found = (read_sensors(spec, each, drops(), 1) for each in (world, altered))
    assert expected["csi_measurement"].shape == (40, 2, 1, 32, 2)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_csi_is_measured_at_its_own_time() -> None:
    sensor = CsiSensorSpec(rate_hz=4.0, snr_db=100.0)
    readings = read_sensors(only(csi=sensor), FakeWorld(), drops(), 1)
    sampled_s = drops() - readings["csi_age_s"].numpy()[:, 0]
    expected = FakeWorld().links(sampled_s)
    torch.testing.assert_close(readings["csi_measurement"], expected, rtol=1e-4, atol=1e-4)
