"""Every spec: frozen dataclasses with units in their names, read from TOML and written back."""

from airlam.specs.beam_selection import BeamSelectionSpec
from airlam.specs.beamforming import BeamformingSpec
from airlam.specs.channel import (
    ArraySpec,
    ChannelModel,
    ChannelSpec,
    GridSpec,
    MobilitySpec,
    PlacementSpec,
)
from airlam.specs.dataset import DatasetSpec, SplitSizes
from airlam.specs.federated import FaultSpec, FederatedSpec
from airlam.specs.model import ModelSpec
from airlam.specs.network import CellSpec, DeviceSpec, NetworkSpec, ScenarioSpec, ServerSpec, WireSpec
from airlam.specs.precoding import PrecoderSpec
from airlam.specs.pretraining import MixtureSpec, PretrainingSpec
from airlam.specs.reading import parse_spec, read_spec, require, spec_from_dict, spec_to_dict, spec_to_toml
from airlam.specs.run import LinkSpec, PredictionSpec, RunSpec, TrainingSpec
from airlam.specs.sensors import (
    BeamSensorSpec,
    CameraSpec,
    CsiSensorSpec,
    InertialSensorSpec,
    PositionSensorSpec,
    RangeSensorSpec,
    SensorsSpec,
)
from airlam.specs.serving import ServingSpec
from airlam.specs.site import SiteSpec

__all__ = [
    "ArraySpec",
    "BeamSelectionSpec",
    "BeamSensorSpec",
    "BeamformingSpec",
    "CameraSpec",
    "CellSpec",
    "ChannelModel",
    "ChannelSpec",
    "CsiSensorSpec",
    "DatasetSpec",
    "DeviceSpec",
    "FaultSpec",
    "FederatedSpec",
    "GridSpec",
    "InertialSensorSpec",
    "LinkSpec",
    "MixtureSpec",
    "MobilitySpec",
    "ModelSpec",
    "NetworkSpec",
    "PlacementSpec",
    "PositionSensorSpec",
    "PrecoderSpec",
    "PredictionSpec",
    "PretrainingSpec",
    "RangeSensorSpec",
    "RunSpec",
    "ScenarioSpec",
    "SensorsSpec",
    "ServerSpec",
    "ServingSpec",
    "SiteSpec",
    "SplitSizes",
    "TrainingSpec",
    "WireSpec",
    "parse_spec",
    "read_spec",
    "require",
    "spec_from_dict",
    "spec_to_dict",
    "spec_to_toml",
]
