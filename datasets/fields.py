"""What a dataset holds of each drop: every array with its axes, unit, shape and dtype."""

import math
from dataclasses import dataclass

import numpy as np

from airlam.specs import CsiSensorSpec, DatasetSpec
from airlam.specs.sensors import SENSOR_READINGS, SHARED_SENSORS, presence_and_age

# of channels made at once: they stay in the cache until they are written, and the next find their place there
BATCH_BYTES = 4 * 2**20
AXES = ("drop", "num_rx", "num_rx_ant", "num_tx", "num_tx_ant", "num_ofdm_symbols", "num_subcarriers")
USER_FIELDS = ("speed_m_per_s", "position_m", "los", "path_loss_db")  # of ``ChannelBatch`` itself
POSITION_UNIT = "m, base station mast at the origin"
SCENE_POSITION_UNIT = f"{POSITION_UNIT}, heights above z = 0 of the scene"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One array of a split; ``shape`` is one drop's."""

    dtype: str
    unit: str
    axes: tuple[str, ...]  # the first is the drop
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of one drop."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def dataset_fields(spec: DatasetSpec) -> dict[str, Field]:
    """Every field of the spec's datasets by name, in the order of the file; ``h_freq`` is the first."""
    users = (spec.num_users,)
    fields = {
        "h_freq": Field(
            dtype="complex64",
            unit="1 (amplitude gain, transmitter to receiver)",
            axes=AXES,
            shape=drop_shape(spec),
        ),
        "speed_m_per_s": Field(dtype="float32", unit="m/s", axes=("drop", "user"), shape=users),
        "position_m": Field(
            dtype="float32",
            unit=SCENE_POSITION_UNIT if spec.channel.is_ray_traced else POSITION_UNIT,
            axes=("drop", "user", "xyz"),
            shape=(*users, 3),
        ),
        "los": Field(dtype="bool", unit="1 (line of sight)", axes=("drop", "user"), shape=users),
        "path_loss_db": Field(
            dtype="float32", unit="dB, 0 where the model has none", axes=("drop", "user"), shape=users
        ),
    }
    return fields | reading_fields(spec)


def reading_fields(spec: DatasetSpec) -> dict[str, Field]:
    """The fields that travel as ``ChannelBatch.readings``: motion along a trajectory, then the sensors'.

    Empty unless the channel is ray-traced. Each sensor has its reading, zero where it is missing, and the
    two arrays of ``presence_and_age``.
    """
    if not spec.channel.is_ray_traced:
        return {}
    users = (spec.num_users,)
    fields = {
        "trajectory": Field(dtype="int32", unit="1 (number within the split)", axes=("drop",), shape=()),
        "time_s": Field(dtype="float64", unit="s along the trajectory", axes=("drop",), shape=()),
        "velocity_m_per_s": Field(
            dtype="float32", unit="m/s", axes=("drop", "user", "xyz"), shape=(*users, 3)
        ),
    }
    readings = _sensor_readings(spec)
    for sensor in spec.sensors.present:
        seen_by = () if sensor in SHARED_SENSORS else users
        axes = ("drop", "user") if seen_by else ("drop",)
        name = SENSOR_READINGS[sensor]
        present, age_s = presence_and_age(name)
        fields[name] = readings[name]
        fields[present] = Field(dtype="bool", unit="1 (not missing)", axes=axes, shape=seen_by)
        fields[age_s] = Field(dtype="float32", unit="s before the drop", axes=axes, shape=seen_by)
    return fields


def _sensor_readings(spec: DatasetSpec) -> dict[str, Field]:
    """Each sensor's own array; zero where it is missing."""
    sensors, users = spec.sensors, (spec.num_users,)
    found = {}
    if sensors.position is not None:
        found["gnss_position_m"] = Field(
            dtype="float32",
            unit=SCENE_POSITION_UNIT,
            axes=("drop", "user", "xyz"),
            shape=(*users, 3),
        )
    if sensors.inertial is not None:
        found["inertial_reading"] = Field(
            dtype="float32",
            unit="m/s^2 forwards and to the left, rad/s about the vertical",
            axes=("drop", "user", "sample", "quantity"),
            shape=(*users, sensors.inertial.num_samples, 3),
        )
    if sensors.camera is not None:
        found["camera_image"] = Field(
            dtype="uint8",
            unit="1 (sRGB)",
            axes=("drop", "row", "column", "colour"),
            shape=(sensors.camera.height_px, sensors.camera.width_px, 3),
        )
    if sensors.range_scan is not None:
        found["range_scan_m"] = Field(
            dtype="float32",
            unit="m, counter-clockwise from the heading",
            axes=("drop", "user", "direction"),
            shape=(*users, sensors.range_scan.num_directions),
        )
    if sensors.beams is not None:
        found["beam_power"] = Field(
            dtype="float32",
            unit="1 (power gain of each beam), oldest first",
            axes=("drop", "user", "past", "beam"),
            shape=(*users, sensors.beams.num_past, sensors.beams.num_beams),
        )
    if sensors.csi is not None:
        found["csi_measurement"] = _csi_field(spec, sensors.csi)
    return found


def _csi_field(spec: DatasetSpec, sensor: CsiSensorSpec) -> Field:
    ports = (spec.num_users, spec.user.num_ports, spec.base_station.num_ports)
    return Field(
        dtype="complex64",
        unit="1 (amplitude gain, uplink band)",
        axes=("drop", "user", "user_ant", "bs_ant", "subcarrier"),
        shape=(*ports, math.ceil(spec.grid.num_uplink_subcarriers / sensor.comb)),
    )


def drop_shape(spec: DatasetSpec) -> tuple[int, ...]:
    """Shape of one drop's h_freq: (num_rx, num_rx_ant, num_tx, num_tx_ant, num_slots, num_subcarriers)."""
    users, base_station = (spec.num_users, spec.user.num_ports), (1, spec.base_station.num_ports)
    ends = (*base_station, *users) if spec.channel.direction == "uplink" else (*users, *base_station)
    return (*ends, spec.grid.num_slots, spec.grid.num_subcarriers)


def drop_bytes(spec: DatasetSpec) -> int:
    """Bytes that one drop takes in the file."""
    return sum(field.num_bytes for field in dataset_fields(spec).values())
