"""Sensor readings beside the channel, from the same scene and time."""

from airlam.datasets.sensors.reading import read_sensors
from airlam.datasets.sensors.world import World

__all__ = ["World", "read_sensors"]
