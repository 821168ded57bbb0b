"""Sensor readings beside the channel; a table that is absent means a sensor that is not there."""

import math
from dataclasses import dataclass, fields

from airlam.specs.reading import require, require_finite
from airlam.units import db_to_linear

SENSOR_READINGS = {  # what each sensor's array is called in a dataset
    "position": "gnss_position_m",
    "inertial": "inertial_reading",
    "camera": "camera_image",
    "range_scan": "range_scan_m",
    "beams": "beam_power",
    "csi": "csi_measurement",
}
SHARED_SENSORS = frozenset({"camera"})  # one reading a drop; of the others every user has its own
MAX_RATE_HZ = 10_000.0
MAX_PAST_S = 60.0  # that a drive is driven before its first drop
MAX_CAMERA_SIDE_PX = 4096
MAX_CAMERA_PIXELS = 2**22  # each of which takes about 200 bytes while an image renders
MAX_CAMERA_RAYS = 2**25  # of an image: seconds of rendering
MAX_PAST_SWEEPS = 64  # each of them is a token
MAX_SNR_DB, MAX_PATH_LOSS_DB = 200.0, 300.0


def presence_and_age(reading: str) -> tuple[str, str]:
    """The names of the two arrays beside a sensor's: whether it is there, and how old it is."""
    stem = reading.split("_")[0]
    return f"{stem}_present", f"{stem}_age_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpec:
    """When a sensor measures: on its own clock of ``rate_hz``, each sample lost with a probability.

    A drop carries the latest sample at or before it that was not lost, and its age; older than
    ``max_age_s``, which is at least a period, the reading counts as missing. Where a drop carries several,
    a lost one among them is filled by the one before it; where there is none, the reading is missing, too.
    Sensors are on long enough before the first drop (``start_s``) that nothing is missing but by loss.
    """

    rate_hz: float = 10.0
    missing_probability: float = 0.0
    max_age_s: float = 1.0

    def __post_init__(self) -> None:
        require_finite(self)
        require(
            0 < self.rate_hz <= MAX_RATE_HZ,
            f"rate_hz must be positive and at most {MAX_RATE_HZ:g}, got {self.rate_hz}",
        )
        require(
            self.max_age_s * self.rate_hz >= 1,
            f"max_age_s is {self.max_age_s:g}, less than a period at rate_hz = {self.rate_hz:g}: no drop "
            "would be sure of a sample; take at least 1 / rate_hz",
        )
        require(
            0 <= self.missing_probability <= 1,
            f"missing_probability is {self.missing_probability}; expected 0 to 1",
        )

    @property
    def window(self) -> int:
        """How many samples a drop carries."""
        return 1

    @property
    def num_early_ticks(self) -> int:
        """Ticks before time 0: those of the oldest reading that counts at the first drop, and one more."""
        return math.ceil(self.max_age_s * self.rate_hz) + self.window

    @property
    def start_s(self) -> float:
        """When the sensor is switched on, before the first drop at 0."""
        return -self.num_early_ticks / self.rate_hz


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionSensorSpec(SamplingSpec):
    """GNSS: each user's position with a slowly varying error (first-order Gauss-Markov) and white noise."""

    bias_std_m: float = 1.5  # a coordinate
    bias_correlation_s: float = 60.0
    noise_std_m: float = 0.5

    def __post_init__(self) -> None:
        SamplingSpec.__post_init__(self)
        require(
            self.bias_std_m >= 0 and self.noise_std_m >= 0,
            f"bias_std_m and noise_std_m are {self.bias_std_m} and {self.noise_std_m}; none may be negative",
        )
        require(
            self.bias_correlation_s > 0,
            f"bias_correlation_s must be positive, got {self.bias_correlation_s}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InertialSensorSpec(SamplingSpec):
    """Accelerometer and gyroscope in the user's own frame, the last ``num_samples`` at ``rate_hz``."""

    rate_hz: float = 100.0
    num_samples: int = 10
    acceleration_noise_std_m_per_s2: float = 0.05
    turn_rate_noise_std_rad_per_s: float = 0.01

    def __post_init__(self) -> None:
        SamplingSpec.__post_init__(self)
        require(self.num_samples >= 1, f"num_samples must be at least 1, got {self.num_samples}")
        noises = (self.acceleration_noise_std_m_per_s2, self.turn_rate_noise_std_rad_per_s)
        require(min(noises) >= 0, f"noise standard deviations are {noises}; none may be negative")

    @property
    def window(self) -> int:
        """How many samples a drop carries."""
        return self.num_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraSpec(SamplingSpec):
    """A camera at the base station, looking along its boresight.

    An image has at most 2^22 pixels, which take about 0.8 GB while it renders, and with
    ``samples_per_pixel`` at most 2^25 rays, which take seconds.
    """

    width_px: int = 96
    height_px: int = 64
    field_of_view_deg: float = 90.0
    samples_per_pixel: int = 8
    noise_std: float = 0.01  # of full scale
    tilt_deg: float = 15.0  # downwards

    def __post_init__(self) -> None:
        SamplingSpec.__post_init__(self)
        sizes = (self.width_px, self.height_px, self.samples_per_pixel)
        require(
            min(sizes) >= 1, f"width_px, height_px and samples_per_pixel are {sizes}; expected at least 1"
        )
        require(
            max(sizes[:2]) <= MAX_CAMERA_SIDE_PX and math.prod(sizes[:2]) <= MAX_CAMERA_PIXELS,
            f"the image is {self.width_px} x {self.height_px}; at most {MAX_CAMERA_SIDE_PX} each and "
            f"{MAX_CAMERA_PIXELS} pixels",
        )
        require(
            math.prod(sizes) <= MAX_CAMERA_RAYS,
            f"an image of {self.width_px} x {self.height_px} pixels with samples_per_pixel = "
            f"{self.samples_per_pixel} takes {math.prod(sizes)} rays; at most {MAX_CAMERA_RAYS}",
        )
        require(abs(self.tilt_deg) < 90, f"tilt_deg is {self.tilt_deg:g}; expected above -90 and below 90")
        require(
            0 < self.field_of_view_deg < 180,
            f"field_of_view_deg is {self.field_of_view_deg}; expected above 0 and below 180",
        )
        require(self.noise_std >= 0, f"noise_std must not be negative, got {self.noise_std}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeSensorSpec(SamplingSpec):
    """A horizontal range scan around each user: distance to what a ray meets, at most ``max_range_m``.

    It meets buildings and the other cars, not the other users' own.
    """

    num_directions: int = 32
    height_m: float = 0.7  # above the ground, about a car's bumper
    max_range_m: float = 100.0
    noise_std_m: float = 0.05

    def __post_init__(self) -> None:
        SamplingSpec.__post_init__(self)
        require(self.num_directions >= 1, f"num_directions must be at least 1, got {self.num_directions}")
        require(
            min(self.max_range_m, self.height_m) > 0 and self.noise_std_m >= 0,
            f"max_range_m is {self.max_range_m}, height_m {self.height_m}, noise_std_m {self.noise_std_m}; "
            "expected > 0, > 0 and >= 0",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RadioSensorSpec(SamplingSpec):
    """What the base station hears of each user in the uplink band, over its own fixed receiver noise.

    The noise is the same at all times and for all users, so a stronger link has the higher SNR. Where the
    channel is brought to unit gain (``path_loss = false``), ``snr_db`` is the SNR of a coefficient of unit
    gain; where it keeps its path loss, that of a link which loses ``reference_path_loss_db``.
    """

    snr_db: float = 20.0  # a base station port, before what the array gains
    reference_path_loss_db: float = 100.0

    def __post_init__(self) -> None:
        SamplingSpec.__post_init__(self)
        require(
            abs(self.snr_db) <= MAX_SNR_DB,
            f"snr_db is {self.snr_db:g}; expected -{MAX_SNR_DB:g} to {MAX_SNR_DB:g}",
        )
        require(
            0 <= self.reference_path_loss_db <= MAX_PATH_LOSS_DB,
            f"reference_path_loss_db is {self.reference_path_loss_db:g}; expected 0 to {MAX_PATH_LOSS_DB:g}",
        )

    def noise_variance(self, path_loss: bool) -> float:
        """E|z|^2 of the noise on a channel coefficient; path_loss: whether the channel keeps its own."""
        return db_to_linear(-self.snr_db - (self.reference_path_loss_db if path_loss else 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSensorSpec(RadioSensorSpec):
    """Received powers of the last ``num_past`` sweeps over a codebook of DFT beams, in the uplink band.

    Beams have unit norm, so that each port's noise is a beam's, and a beam gains up to the number of the
    array's elements on ``snr_db``.
    """

    num_beams: int = 32
    num_past: int = 5
    snr_db: float = 10.0

    def __post_init__(self) -> None:
        RadioSensorSpec.__post_init__(self)
        require(self.num_beams >= 1, f"num_beams must be at least 1, got {self.num_beams}")
        require(
            1 <= self.num_past <= MAX_PAST_SWEEPS,
            f"num_past is {self.num_past}; expected 1 to {MAX_PAST_SWEEPS}",
        )

    @property
    def window(self) -> int:
        """How many samples a drop carries."""
        return self.num_past


@dataclass(frozen=True, slots=True, kw_only=True)
class CsiSensorSpec(RadioSensorSpec):
    """A noisy measurement on every ``comb``-th subcarrier of the uplink band, at the sensor's own times."""

    comb: int = 1

    def __post_init__(self) -> None:
        RadioSensorSpec.__post_init__(self)
        require(self.comb >= 1, f"comb must be at least 1, got {self.comb}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorsSpec:
    """Which sensors a ray-traced dataset carries."""

    position: PositionSensorSpec | None = None
    inertial: InertialSensorSpec | None = None
    camera: CameraSpec | None = None
    range_scan: RangeSensorSpec | None = None
    beams: BeamSensorSpec | None = None
    csi: CsiSensorSpec | None = None

    def __post_init__(self) -> None:
        for name, sensor in self.present.items():
            require(
                -sensor.start_s <= MAX_PAST_S,
                f"{name} reaches back {-sensor.start_s:g} s with max_age_s = {sensor.max_age_s:g} and "
                f"{sensor.window} samples at rate_hz = {sensor.rate_hz:g}; at most {MAX_PAST_S:g} s",
            )

    @property
    def start_s(self) -> float:
        """When the first sensor is switched on, before the first drop at 0; 0 without sensors."""
        return min((sensor.start_s for sensor in self.present.values()), default=0.0)

    @property
    def present(self) -> dict[str, SamplingSpec]:
        """The sensors that are there, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: sensor for name, sensor in found.items() if sensor is not None}
