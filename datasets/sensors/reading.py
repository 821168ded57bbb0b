"""All readings of a trajectory: which samples its drops carry, and what the sensors measured then."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airlam.datasets.fields import reading_fields
from airlam.datasets.sensors.beams import beam_samples
from airlam.datasets.sensors.camera import camera_images
from airlam.datasets.sensors.csi import csi_samples
from airlam.datasets.sensors.inertial import inertial_samples
from airlam.datasets.sensors.position import position_samples_m
from airlam.datasets.sensors.range_scan import range_samples_m
from airlam.datasets.sensors.sampling import SamplingPlan, plan_samples
from airlam.datasets.sensors.world import World
from airlam.specs import (
    BeamSensorSpec,
    CameraSpec,
    CsiSensorSpec,
    DatasetSpec,
    InertialSensorSpec,
    PositionSensorSpec,
    RangeSensorSpec,
)
from airlam.specs.sensors import SENSOR_READINGS, SHARED_SENSORS, presence_and_age

RADIO = ("beams", "csi")  # measured by the base station on one clock

Links = NDArray[np.complex64]


def read_sensors(
    spec: DatasetSpec, world: World, times_s: NDArray[np.float64], rng: np.random.Generator | int
) -> dict[str, torch.Tensor]:
    """What the spec's sensors give the drops of one trajectory: the sensor fields of ``reading_fields``.

    Every sensor ticks on its own clock from its ``start_s`` on, at a phase drawn for the trajectory; beams
    and CSI share one, so that at equal rates the world is asked for their links once. A sample's noise is
    its own: drops that share a sample share its noise. A sensor's readings do not depend on which others
    are there. times_s: float64 [drops], not before 0. rng: a generator or a seed.
    """
    of_phases, *of_sensors = np.random.default_rng(rng).spawn(1 + len(SENSOR_READINGS))
    streams = dict(zip(SENSOR_READINGS, of_sensors, strict=True))
    phases = dict(zip(SENSOR_READINGS, of_phases.random(len(SENSOR_READINGS)), strict=True))
    plans = {
        name: plan_samples(
            sensor,
            times_s,
            streams[name],
            phase=phases[RADIO[0] if name in RADIO else name],
            num_sources=1 if name in SHARED_SENSORS else spec.num_users,
        )
        for name, sensor in spec.sensors.present.items()
    }
    links = _uplink_links(spec, world, plans)
    found: dict[str, torch.Tensor] = {}
    for name, plan in plans.items():
        any_left = len(plan.time_s) > 0
        samples = _samples(spec, world, name, plan, links, streams[name]) if any_left else None
        found |= _readings(spec, name, plan, samples)
    return found


def _uplink_links(spec: DatasetSpec, world: World, plans: Mapping[str, SamplingPlan]) -> dict[str, Links]:
    """The links at each radio sensor's samples, complex64 [n, users, user_ant, bs_ant, uplink subcarriers].

    The base station hears the uplink band only: in FDD the downlink's channel is what is to be found.
    """
    asked = {name: plans[name].time_s for name in RADIO if name in plans and len(plans[name].time_s)}
    if not asked:
        return {}
    times_s = np.unique(np.concatenate(list(asked.values())))
    links = world.links(times_s).numpy()[..., : spec.grid.num_uplink_subcarriers]
    return {name: links[np.searchsorted(times_s, wanted)] for name, wanted in asked.items()}


def _samples(
    spec: DatasetSpec,
    world: World,
    name: str,
    plan: SamplingPlan,
    links: Mapping[str, Links],
    rng: np.random.Generator,
) -> NDArray[Any]:
    """What a sensor measured at the plan's times: [samples, sources, ...]."""
    sensor, time_s = spec.sensors.present[name], plan.time_s
    match sensor:
        case PositionSensorSpec():
            assert spec.site is not None  # the spec has sensors
            return position_samples_m(sensor, spec.site, world, time_s, rng)
        case InertialSensorSpec():
            return inertial_samples(sensor, world, time_s, rng)
        case CameraSpec():
            return camera_images(sensor, world, time_s, rng)[:, None]  # [samples, 1, rows, columns, 3]
        case RangeSensorSpec():
            return range_samples_m(sensor, world, time_s, rng)
        case BeamSensorSpec():
            noise_variance = sensor.noise_variance(spec.channel.path_loss)
            return beam_samples(sensor, spec.base_station, links[name], noise_variance, rng)
        case CsiSensorSpec():
            return csi_samples(sensor, links[name], sensor.noise_variance(spec.channel.path_loss), rng)
        case _:
            raise TypeError(f"no readings of a {type(sensor).__name__}")


def _readings(
    spec: DatasetSpec, name: str, plan: SamplingPlan, samples: NDArray[Any] | None
) -> dict[str, torch.Tensor]:
    """A sensor's fields; zeros where every sample was lost (None)."""
    reading = SENSOR_READINGS[name]
    present, age_s = presence_and_age(reading)
    fields, num_drops = reading_fields(spec), len(plan.present)
    values = {present: plan.present, age_s: plan.age_s}
    if samples is None:
        values[reading] = np.zeros((num_drops, *fields[reading].shape))
    else:
        values[reading] = plan.pick(samples)  # [drops, sources, window, ...]
    return {
        key: torch.from_numpy(
            np.ascontiguousarray(
                values[key].reshape(num_drops, *fields[key].shape), dtype=np.dtype(fields[key].dtype)
            )
        )
        for key in (reading, present, age_s)
    }
