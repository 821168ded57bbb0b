"""Sensor readings beside the channel; a table that is absent means a sensor that is not there."""

import math
from dataclasses import dataclass, fields

from airlam.specs.reading import require


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpec:
    """When a sensor measures: on its own clock of ``rate_hz``, each sample lost with a probability.

    A drop carries the latest sample before it that was not lost, and its age; older than ``max_age_s``, the
    reading counts as missing.
    """

    rate_hz: float = 10.0
    missing_probability: float = 0.0
    max_age_s: float = 1.0

    def __post_init__(self) -> None:
        require(self.rate_hz > 0, f"rate_hz must be positive, got {self.rate_hz}")
        require(self.max_age_s >= 0, f"max_age_s must not be negative, got {self.max_age_s}")
        require(
            0 <= self.missing_probability <= 1,
            f"missing_probability is {self.missing_probability}; expected 0 to 1",
        )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraSpec(SamplingSpec):
    """A camera at the base station, looking along its boresight."""

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
        require(max(sizes[:2]) <= 4096, f"the image is {self.width_px} x {self.height_px}; at most 4096 each")
        require(
            0 < self.field_of_view_deg < 180,
            f"field_of_view_deg is {self.field_of_view_deg}; expected above 0 and below 180",
        )
        require(self.noise_std >= 0, f"noise_std must not be negative, got {self.noise_std}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeSensorSpec(SamplingSpec):
    """A horizontal range scan around each user: distance to what a ray meets, at most ``max_range_m``."""

    num_directions: int = 32
    max_range_m: float = 100.0
    noise_std_m: float = 0.05

    def __post_init__(self) -> None:
        SamplingSpec.__post_init__(self)
        require(self.num_directions >= 1, f"num_directions must be at least 1, got {self.num_directions}")
        require(
            self.max_range_m > 0 and self.noise_std_m >= 0,
            f"max_range_m is {self.max_range_m}, noise_std_m {self.noise_std_m}; expected > 0 and >= 0",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSensorSpec(SamplingSpec):
    """Received powers of the last ``num_past`` sweeps over a codebook of DFT beams."""

    num_beams: int = 32
    num_past: int = 5
    snr_db: float = 20.0  # of the strongest beam, mean over the trajectory

    def __post_init__(self) -> None:
        SamplingSpec.__post_init__(self)
        require(
            self.num_beams >= 1 and self.num_past >= 1,
            f"num_beams and num_past are {self.num_beams} and {self.num_past}; expected at least 1",
        )
        require(math.isfinite(self.snr_db), f"snr_db is {self.snr_db}; expected a number of dB")


@dataclass(frozen=True, slots=True, kw_only=True)
class CsiSensorSpec(SamplingSpec):
    """A noisy measurement of the channel on every ``comb``-th subcarrier, at the sensor's own times."""

    comb: int = 1
    snr_db: float = 20.0  # mean over the trajectory

    def __post_init__(self) -> None:
        SamplingSpec.__post_init__(self)
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

    @property
    def present(self) -> dict[str, SamplingSpec]:
        """The sensors that are there, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: sensor for name, sensor in found.items() if sensor is not None}
