"""Sensor tokens: inverses where nothing is lost, scales from the spec, and masks for what is missing."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch

from airlam.datasets.fields import reading_fields
from airlam.errors import DataError, SpecError
from airlam.radio.channel import ChannelBatch
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
from airlam.tokens.beams import BeamTokenizer
from airlam.tokens.csi_reading import CsiReadingTokenizer
from airlam.tokens.image import ImageTokenizer
from airlam.tokens.inertial import InertialTokenizer
from airlam.tokens.modality import ModalityTokens
from airlam.tokens.position import PositionTokenizer
from airlam.tokens.range_scan import RangeScanTokenizer
from airlam.tokens.sensors import SensorTokenizer, drop_modalities

NUM_DROPS, NUM_USERS = 4, 3
SENSORS = SensorsSpec(
    position=PositionSensorSpec(),
    inertial=InertialSensorSpec(num_samples=7),
    camera=CameraSpec(width_px=40, height_px=24),
    range_scan=RangeSensorSpec(num_directions=20),
    beams=BeamSensorSpec(num_beams=8, num_past=3),
    csi=CsiSensorSpec(comb=2),
)


def dataset(sensors: SensorsSpec = SENSORS) -> DatasetSpec:
    return DatasetSpec(
        name="fake",
        channel=ChannelSpec(model="ray_traced", carrier_frequency_hz=3.5e9),
        base_station=ArraySpec(num_rows=2, num_cols=4, polarization="dual", polarization_type="VH"),
        site=SiteSpec(
            scene="fake",
            base_station_position_m=(10.0, 20.0, 25.0),
            base_station_yaw_deg=30.0,
            area_m=(-100.0, -50.0, 140.0, 70.0),
        ),
        sensors=sensors,
        mobility=MobilitySpec(min_speed_m_per_s=1.0, max_speed_m_per_s=10.0),
        grid=GridSpec(subcarrier_spacing_hz=30e3, num_uplink_subcarriers=9, num_slots=2),
        num_users=NUM_USERS,
    )


def random_readings(spec: DatasetSpec | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every sensor's fields at random, all present and half their largest age old."""
    spec, rng, found = spec or dataset(), np.random.default_rng(seed), {}
    fields = reading_fields(spec)
    for name, sensor in spec.sensors.present.items():
        reading = SENSOR_READINGS[name]
        present, age_s = presence_and_age(reading)
        shape = (NUM_DROPS, *fields[reading].shape)
        values = (
            rng.uniform(0.1, 60, shape) if fields[reading].dtype != "uint8" else rng.integers(256, size=shape)
        )
        if fields[reading].dtype == "complex64":
            values = values * np.exp(1j * rng.uniform(0, 7, shape))
        found[reading] = torch.from_numpy(values.astype(fields[reading].dtype))
        found[present] = torch.ones(NUM_DROPS, *fields[present].shape, dtype=torch.bool)
        found[age_s] = torch.full((NUM_DROPS, *fields[age_s].shape), sensor.max_age_s / 2)
    return found


def tokens_of(readings: dict[str, torch.Tensor], **options: object) -> dict[str, ModalityTokens]:
    return SensorTokenizer.from_spec(dataset(), **options).tokenise_readings(  # type: ignore[arg-type]
        readings, NUM_DROPS, NUM_USERS
    )


# modalities one by one

SITE = dataset().site
assert SITE is not None


def uniform(*shape: int, high: float = 60.0) -> torch.Tensor:
    return high * torch.rand(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("tokenizer", "reading"),
    [
        (PositionTokenizer.from_site(SITE), uniform(5, 3)),
        (InertialTokenizer(num_samples=7), uniform(5, 7, 3)),
        (InertialTokenizer(num_samples=10), uniform(5, 10, 3)),
        (InertialTokenizer(num_samples=3, samples_per_token=1), uniform(5, 3, 3)),
        (ImageTokenizer(height_px=24, width_px=40), uniform(5, 24, 40, 3, high=255).to(torch.uint8)),
        (ImageTokenizer(height_px=8, width_px=8, patch_px=4), uniform(5, 8, 8, 3, high=255).to(torch.uint8)),
        (RangeScanTokenizer(num_directions=20, max_range_m=60.0), uniform(5, 20)),
        (RangeScanTokenizer(num_directions=16, max_range_m=60.0), uniform(5, 16)),
        (
            CsiReadingTokenizer.from_spec(dataset(), CsiSensorSpec(comb=2)),
            1e-5 * torch.complex(uniform(5, 1, 16, 5), uniform(5, 1, 16, 5)),
        ),
    ],
)
def test_the_inverse_gives_the_reading_back(tokenizer: object, reading: torch.Tensor) -> None:
    tokens = tokenizer.tokenise(reading)  # type: ignore[attr-defined]
    assert reading.shape[1:] == tokenizer.reading_shape  # type: ignore[attr-defined]
    shape = (5, tokenizer.num_tokens, tokenizer.num_features)  # type: ignore[attr-defined]
    assert tokens.features.shape == shape and tokens.features.dtype == torch.float32
    assert tokens.mask.all() and tokens.mask.shape == shape[:2]
    back = tokenizer.inverse(tokens)  # type: ignore[attr-defined]
    assert back.dtype == reading.dtype
    torch.testing.assert_close(back, reading, rtol=1e-5, atol=1e-5 * float(reading.abs().max()))


def test_every_colour_comes_back() -> None:
    tokenizer = ImageTokenizer(height_px=16, width_px=16)
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert torch.equal(tokenizer.inverse(tokenizer.tokenise(image)), image)


def test_a_patch_holds_its_own_pixels() -> None:
    tokenizer = ImageTokenizer(height_px=32, width_px=48)
    image = torch.zeros(1, 32, 48, 3, dtype=torch.uint8)
    image[0, 16:, 32:] = 255  # second row, third column of patches
    features = tokenizer.tokenise(image).features[0]
    assert (features[5] == 1).all() and (features[:5] == -1).all()


def test_position_features_stay_in_the_area_between_one_and_minus_one() -> None:
    tokenizer = PositionTokenizer.from_site(SITE)
    corners_m = torch.tensor([[x - 10.0, y - 20.0, 25.0] for x in (-100.0, 140.0) for y in (-50.0, 70.0)])
    scaled = tokenizer.tokenise(corners_m).features[:, 0, :3]
    expected = torch.tensor([[x, y, 1.0] for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
    torch.testing.assert_close(scaled, expected)


def test_position_is_seen_in_the_axes_of_the_array() -> None:
    """100 m ahead of the boresight, to its left, and down at the mast's foot."""
    yaw = math.radians(30.0)
    places_m = torch.tensor(
        [
            [100 * math.cos(yaw), 100 * math.sin(yaw), 25.0],
            [-100 * math.sin(yaw), 100 * math.cos(yaw), 25.0],
            [0.0, 0.0, 0.0],
        ]
    )
    seen = PositionTokenizer.from_site(SITE).tokenise(places_m).features[:, 0, 3:7]
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    torch.testing.assert_close(seen[:, :3], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(seen[0, 3].item(), math.log(100 / math.hypot(120, 60)), atol=1e-6, rtol=0)


def test_a_position_at_the_array_itself_stays_finite() -> None:
    features = PositionTokenizer.from_site(SITE).tokenise(torch.tensor([[0.0, 0.0, 25.0]])).features
    assert torch.isfinite(features).all()


def test_beam_features_say_which_beam_is_how_far_down() -> None:
    tokenizer = BeamTokenizer(num_past=2, num_beams=3, floor_db=40.0)
    power = 1e-9 * torch.tensor([[[1.0, 0.1, 0.0], [0.01, 1e-9, 0.5]]])
    tokens = tokenizer.tokenise(power)
    expected = torch.tensor([[1.0, 0.75, 0.0], [0.5, 0.0, 1 + 10 * math.log10(0.5) / 40]])
    torch.testing.assert_close(tokens.features[0, :, :3], expected)
    torch.testing.assert_close(tokens.features[0, :, 3], torch.full((2,), -0.9))
    assert tokens.mask.all()


@pytest.mark.parametrize(
    ("snr_db", "floor_db"), [(10.0, 20 + 10 * math.log10(8)), (-40.0, 10.0), (0.0, 10 + 10 * math.log10(8))]
)
def test_the_floor_of_beams_lies_below_their_noise(snr_db: float, floor_db: float) -> None:
    """10 dB below the noise of a beam that collects a link's power with eight elements."""
    found = BeamTokenizer.from_sensor(BeamSensorSpec(snr_db=snr_db), dataset().base_station)
    assert found.floor_db == pytest.approx(floor_db)


def test_position_features_end_in_octaves_of_both_coordinates() -> None:
    """sin and cos of pi 2^k u: the scaled coordinates of this place are 1/4 and -1/2."""
    place_m = torch.tensor([[10.0 + 120 / 4, -10.0 - 60 / 2, 1.5]])
    found = PositionTokenizer.from_site(SITE).tokenise(place_m).features[0, 0, 7:]
    angles = torch.tensor([u * math.pi * 2**k for u in (0.25, -0.5) for k in range(4)])
    torch.testing.assert_close(found, torch.cat([angles.sin(), angles.cos()]), atol=1e-5, rtol=0)


def test_inertial_features_are_one_at_hard_braking_and_tight_bends() -> None:
    reading = torch.tensor([3.0, 3.0, 0.5]).expand(1, 5, 3)
    assert (InertialTokenizer(num_samples=5).tokenise(reading).features == 1).all()


@pytest.mark.parametrize(("path_loss", "noise_db"), [(False, -20.0), (True, -120.0)])
def test_csi_features_tell_the_noises_share_of_this_measurement(path_loss: bool, noise_db: float) -> None:
    """log10 of the fixed noise over the measured power: it differs from link to link."""
    spec = dataset()
    spec = dataclasses.replace(spec, channel=dataclasses.replace(spec.channel, path_loss=path_loss))
    tokenizer = CsiReadingTokenizer.from_spec(spec, CsiSensorSpec(snr_db=20.0, comb=2))
    above_db = torch.tensor([0.0, 3.0, 30.0])
    amplitude = 10 ** ((noise_db + above_db) / 20)
    features = tokenizer.tokenise(amplitude[:, None, None, None] * torch.ones(3, 1, 16, 5) + 0j).features
    expected = (-above_db / 10)[:, None].expand(-1, tokenizer.num_tokens)
    torch.testing.assert_close(features[..., -2], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(features[:, 0, -1], amplitude.log10())


def test_csi_tokens_are_of_the_uplink_band() -> None:
    spec = dataset()
    grid = dataclasses.replace(spec.grid, num_downlink_subcarriers=9, gap_subcarriers=4)
    fdd = dataclasses.replace(spec, grid=grid)
    tokenizer = SensorTokenizer.from_spec(fdd).tokenizers["csi"]
    assert tokenizer.reading_shape == reading_fields(fdd)["csi_measurement"].shape[1:]
    assert isinstance(tokenizer, CsiReadingTokenizer)
    steps_hz = np.diff(tokenizer.setting.history_frequencies_hz)
    np.testing.assert_allclose(steps_hz, 2 * grid.subcarrier_spacing_hz)  # no hole: delays are an IFFT's


@pytest.mark.parametrize(
    ("name", "sensor", "most"),
    [
        ("camera", CameraSpec(width_px=1920, height_px=1080), 64),
        ("camera", CameraSpec(width_px=4096, height_px=1, samples_per_pixel=1), 64),
        ("inertial", InertialSensorSpec(num_samples=1001), 32),
        ("range_scan", RangeSensorSpec(num_directions=3600), 32),
    ],
)
def test_large_readings_have_larger_tokens_but_not_more(name: str, sensor: SamplingSpec, most: int) -> None:
    tokenizer = SensorTokenizer.from_spec(dataset(SensorsSpec(**{name: sensor}))).tokenizers[name]  # type: ignore[arg-type]
    assert most / 2 < tokenizer.num_tokens <= most


def test_patches_grow_no_further_than_they_must() -> None:
    assert ImageTokenizer.from_sensor(CameraSpec()).patch_px == 16
    tokenizer = ImageTokenizer.from_sensor(CameraSpec(width_px=1920, height_px=1080))
    assert (tokenizer.patch_px, tokenizer.num_tokens) == (192, 60)  # 176 would make 77


# all together


def test_tokens_have_the_sizes_that_are_promised() -> None:
    tokenizer = SensorTokenizer.from_spec(dataset())
    assert tokenizer.modalities == tuple(SENSOR_READINGS)
    for name, tokens in tokens_of(random_readings()).items():
        shape = (NUM_DROPS * NUM_USERS, tokenizer.num_tokens[name], tokenizer.num_features[name])
        assert tokens.features.shape == shape and tokens.features.dtype == torch.float32, name
        assert tokens.mask.all() and torch.isfinite(tokens.features).all(), name
        assert (tokens.features[..., -1] == 0.5).all(), name  # the age


def test_features_are_of_order_one_whatever_the_path_loss() -> None:
    readings = random_readings()
    readings["csi_measurement"] *= 1e-6
    readings["beam_power"] *= 1e-12
    for name, tokens in tokens_of(readings, modalities=("beams", "csi")).items():
        assert tokens.features.abs().max() < 25 and tokens.features.square().mean() < 10, name


def test_a_batch_of_channels_gives_the_tokens_of_its_readings() -> None:
    readings = random_readings()
    users = torch.zeros(NUM_DROPS, NUM_USERS)
    batch = ChannelBatch(
        h_freq=torch.zeros(NUM_DROPS, 1, 16, NUM_USERS, 1, 2, 9, dtype=torch.complex64),
        direction="uplink",
        speed_m_per_s=users,
        position_m=users[..., None].expand(-1, -1, 3),
        los=users.bool(),
        path_loss_db=users,
        readings=readings,
    )
    expected = tokens_of(readings)
    for name, tokens in SensorTokenizer.from_spec(dataset()).tokenise(batch).items():
        assert torch.equal(tokens.features, expected[name].features)


def test_links_go_drop_by_drop_and_share_the_camera() -> None:
    readings = random_readings()
    tokens = tokens_of(readings)
    back = PositionTokenizer.from_site(SITE).inverse(tokens["position"])
    torch.testing.assert_close(back, readings["gnss_position_m"].flatten(0, 1), atol=1e-4, rtol=0)
    image = tokens["camera"].features.unflatten(0, (NUM_DROPS, NUM_USERS))
    assert torch.equal(image[:, 0], image[:, 1]) and not torch.equal(image[0], image[1])


class CountingTokenizer(ImageTokenizer):
    """Notes how many images it is given."""

    counts: ClassVar[list[int]] = []

    def tokenise(self, reading: torch.Tensor) -> ModalityTokens:
        self.counts.append(len(reading))
        return ImageTokenizer.tokenise(self, reading)


def test_what_users_share_is_tokenised_once() -> None:
    tokenizer = SensorTokenizer.from_spec(dataset(), ("camera",))
    tokenizer.tokenizers["camera"] = CountingTokenizer(height_px=24, width_px=40)
    tokens = tokenizer.tokenise_readings(random_readings(), NUM_DROPS, NUM_USERS)["camera"]
    assert CountingTokenizer.counts == [NUM_DROPS]
    assert torch.equal(tokens.features, tokens_of(random_readings())["camera"].features)


def test_permuting_users_permutes_their_tokens() -> None:
    readings, order = random_readings(), torch.tensor([2, 0, 1])
    turned = {k: v if k.startswith("camera") else v[:, order] for k, v in readings.items()}
    links = torch.arange(NUM_DROPS * NUM_USERS).reshape(NUM_DROPS, NUM_USERS)[:, order].flatten()
    for name, tokens in tokens_of(turned).items():
        assert torch.equal(tokens.features, tokens_of(readings)[name].select(links).features)


@pytest.mark.parametrize("name", SENSOR_READINGS)
def test_a_missing_reading_is_masked_and_zero_and_touches_nothing_else(name: str) -> None:
    readings = random_readings()
    expected = tokens_of(readings)
    reading = SENSOR_READINGS[name]
    readings[reading][1] = 0  # as the dataset writes it
    readings[presence_and_age(reading)[0]][1] = False
    lost = torch.arange(NUM_DROPS * NUM_USERS) // NUM_USERS == 1
    for other, tokens in tokens_of(readings).items():
        if other == name:
            assert not tokens.mask[lost].any() and (tokens.features[lost] == 0).all()
        untouched = ~lost if other == name else slice(None)
        assert tokens.mask[untouched].all()
        torch.testing.assert_close(tokens.features[untouched], expected[other].features[untouched])


def test_a_modality_that_a_dataset_lacks_is_missing_for_all() -> None:
    readings = random_readings()
    for key in ("camera_image", "camera_present", "camera_age_s"):
        del readings[key]
    tokens = tokens_of(readings)["camera"]
    assert tokens.features.shape == tokens_of(random_readings())["camera"].features.shape
    assert not tokens.mask.any() and (tokens.features == 0).all()
    assert not any(t.mask.any() for t in tokens_of({}).values())


def test_some_modalities_can_be_chosen() -> None:
    assert list(tokens_of(random_readings(), modalities=("csi", "position"))) == ["csi", "position"]


def test_scales_do_not_depend_on_the_data() -> None:
    few, many = random_readings(), random_readings(seed=1)
    both = {key: torch.cat([few[key], many[key]]) for key in few}
    together = SensorTokenizer.from_spec(dataset()).tokenise_readings(both, 2 * NUM_DROPS, NUM_USERS)
    for name, tokens in tokens_of(few).items():
        torch.testing.assert_close(together[name].features[: len(tokens)], tokens.features)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tokens_of({}, modalities=("cemara",)), SpecError, "did you mean 'camera'"),
        (lambda: tokens_of({}, modalities=()), SpecError, "no modalities"),
        (
            lambda: SensorTokenizer.from_spec(dataset(SensorsSpec(csi=CsiSensorSpec())), ("beams",)),
            SpecError,
            "no beams sensor; it has csi",
        ),
        (
            lambda: tokens_of({"gnss_position_m": torch.zeros(NUM_DROPS, NUM_USERS, 3)}),
            DataError,
            "without gnss_present",
        ),
        (
            lambda: tokens_of(random_readings() | {"beam_power": torch.zeros(NUM_DROPS, NUM_USERS, 3, 9)}),
            DataError,
            "beam_power has shape",
        ),
        (
            lambda: tokens_of(random_readings() | {"beam_power": torch.zeros(NUM_DROPS, 3, 8)}),
            DataError,
            r"beam_power has shape \(4, 3, 8\); this tokeniser takes \(4, 3, 3, 8\)",
        ),
        (
            lambda: tokens_of(random_readings() | {"gnss_present": torch.ones(NUM_DROPS, dtype=torch.bool)}),
            DataError,
            "gnss_present has shape",
        ),
        (
            lambda: tokens_of(
                random_readings()
                | {"camera_image": torch.zeros(NUM_DROPS, NUM_USERS, 24, 40, 3, dtype=torch.uint8)}
            ),
            DataError,
            "camera_image has shape",
        ),
        (
            lambda: drop_modalities(tokens_of({}), 1.5, torch.Generator()),
            SpecError,
            "1.5; expected 0 to 1",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


# modality dropout


def many_tokens(num_links: int = 20_000) -> dict[str, ModalityTokens]:
    ones = torch.ones(num_links, 2, dtype=torch.bool)
    return {name: ModalityTokens(features=ones[..., None].float(), mask=ones) for name in ("a", "b", "c")}


def test_dropout_hides_each_modality_with_its_probability_but_never_all() -> None:
    dropped = drop_modalities(many_tokens(), 0.6, torch.Generator().manual_seed(0))
    keeps = torch.stack([tokens.mask.all(dim=1) for tokens in dropped.values()])  # [modalities, links]
    assert keeps.any(dim=0).all()
    share = keeps.float().mean(dim=1)  # 0.4, and a third of the links that would have lost all
    torch.testing.assert_close(share, torch.full((3,), 0.4 + 0.6**3 / 3), atol=0.02, rtol=0)
    assert all((t.features == t.mask[..., None]).all() for t in dropped.values())


def test_dropout_spares_the_only_modality_that_is_there() -> None:
    tokens = many_tokens(100)
    nothing = torch.zeros(100, dtype=torch.bool)
    tokens |= {"a": tokens["a"].kept(nothing), "b": tokens["b"].kept(nothing)}
    dropped = drop_modalities(tokens, 1.0, torch.Generator().manual_seed(0))
    assert dropped["c"].mask.all() and not dropped["a"].mask.any() and not dropped["b"].mask.any()


def test_no_dropout_changes_nothing_and_a_seed_repeats() -> None:
    tokens = tokens_of(random_readings())
    same = drop_modalities(tokens, 0.0, torch.Generator())
    assert all(torch.equal(same[name].mask, tokens[name].mask) for name in tokens)
    first, again = (drop_modalities(tokens, 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(first[name].mask, again[name].mask) for name in tokens)
    assert any(not first[name].mask.all() for name in tokens)
