"""The sensor-to-token mapper: readings of any of the sensors to tokens, what is missing masked.

The papers name a sensor-to-token mapping and do not describe it: this one is a reconstruction. Each modality
stands on its own, so that in a graph of modules ``tokenizer.<modality>`` and ``embedding.<modality>`` can run
where the sensor is; ``airlam.model.sensor_embedding`` goes on from here.
"""

import difflib
from collections.abc import Mapping, Sequence

import torch
from einops import rearrange

from airlam.errors import DataError, SpecError
from airlam.radio.channel import ChannelBatch
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
from airlam.tokens.beams import BeamTokenizer
from airlam.tokens.csi_reading import CsiReadingTokenizer
from airlam.tokens.image import ImageTokenizer
from airlam.tokens.inertial import InertialTokenizer
from airlam.tokens.modality import ModalityTokens, ReadingTokenizer
from airlam.tokens.position import PositionTokenizer
from airlam.tokens.range_scan import RangeScanTokenizer

Readings = Mapping[str, torch.Tensor]


class SensorTokenizer:
    """Readings to tokens by modality; every modality gives its tokens for every link, real or missing.

    A link is a user of a drop; links are ordered drop by drop. The tokens of what the users share (the base
    station's camera) are repeated for each. A modality's last feature is the reading's age over the sensor's
    ``max_age_s``.
    """

    def __init__(self, tokenizers: Mapping[str, ReadingTokenizer], max_age_s: Mapping[str, float]) -> None:
        self.tokenizers = dict(tokenizers)
        self.max_age_s = dict(max_age_s)

    @staticmethod
    def from_spec(spec: DatasetSpec, modalities: Sequence[str] | None = None) -> "SensorTokenizer":
        """For a dataset's sensors, all or some; SpecError names one that the dataset has not.

        modalities: names of sensors (``SensorsSpec``). Scales come from the spec, so that they are the same
        for every split.
        """
        sensors = spec.sensors.present
        chosen = tuple(sensors) if modalities is None else tuple(modalities)
        for name in chosen:
            if name not in sensors:
                raise SpecError(_no_such_modality(name, spec))
        if not chosen:
            raise SpecError(f"no modalities chosen of {spec.name}; name at least one of {_listed(sensors)}")
        return SensorTokenizer(
            {name: _tokenizer(spec, name) for name in chosen},
            {name: sensors[name].max_age_s for name in chosen},
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names, in the order of their tokens."""
        return tuple(self.tokenizers)

    @property
    def num_tokens(self) -> dict[str, int]:
        """Tokens of a link, by modality."""
        return {name: tokenizer.num_tokens for name, tokenizer in self.tokenizers.items()}

    @property
    def num_features(self) -> dict[str, int]:
        """Features of a token, by modality, the age included."""
        return {name: tokenizer.num_features + 1 for name, tokenizer in self.tokenizers.items()}

    def tokenise(self, batch: ChannelBatch) -> dict[str, ModalityTokens]:
        """Tokens of a batch's readings, by modality; [batch * users, num_tokens, num_features] each."""
        num_drops, num_users = batch.speed_m_per_s.shape
        return self.tokenise_readings(batch.readings, num_drops, num_users)

    def tokenise_readings(
        self, readings: Readings, num_drops: int, num_users: int
    ) -> dict[str, ModalityTokens]:
        """As ``tokenise``, of readings by field name, drops first; those of absent modalities may lack."""
        return {
            name: self.tokenise_modality(name, readings, num_drops, num_users) for name in self.tokenizers
        }

    def tokenise_modality(
        self, name: str, readings: Readings, num_drops: int, num_users: int
    ) -> ModalityTokens:
        """Tokens of one modality: the graph's module ``tokenizer.<name>``.

        A reading that is absent from ``readings`` is missing for every link. DataError where it has another
        shape than the dataset's spec says, or comes without its presence and age.
        """
        tokenizer, reading = self.tokenizers[name], SENSOR_READINGS[name]
        if reading not in readings:
            return _all_missing(num_drops * num_users, tokenizer, _device(readings))
        is_shared = name in SHARED_SENSORS
        sources = (num_drops,) if is_shared else (num_drops, num_users)
        values, present, age_s = (
            _by_source(readings, key, sources, shape)
            for key, shape in zip(
                (reading, *presence_and_age(reading)), (tokenizer.reading_shape, (), ()), strict=True
            )
        )
        tokens = tokenizer.tokenise(values)
        age = (age_s / self.max_age_s[name]).clamp(0, 1)  # [sources]
        features = torch.cat(
            [tokens.features, age[:, None, None].expand(-1, tokenizer.num_tokens, 1)], dim=-1
        )  # [sources, num_tokens, num_features]
        known = ModalityTokens(features=features, mask=tokens.mask).kept(present)
        return known.repeated(num_users) if is_shared else known


def drop_modalities(
    tokens: Mapping[str, ModalityTokens], probability: float, generator: torch.Generator
) -> dict[str, ModalityTokens]:
    """Hides modalities at random, for training: a model then learns to do without any of them.

    Each link loses each modality independently, but keeps one, drawn evenly, of those it has where it would
    lose them all. probability: from 0 to 1.
    """
    if not 0 <= probability <= 1:
        raise SpecError(f"probability of dropping a modality is {probability}; expected 0 to 1")
    has = torch.stack([t.mask.any(dim=1) for t in tokens.values()])  # [modalities, links]
    draw = torch.rand(has.shape, generator=generator).to(has.device).where(has, -1.0)
    keep = (draw >= probability) | (draw == draw.amax(dim=0))
    return {name: t.kept(k) for (name, t), k in zip(tokens.items(), keep, strict=True)}


def _all_missing(num_links: int, tokenizer: ReadingTokenizer, device: torch.device) -> ModalityTokens:
    shape = (num_links, tokenizer.num_tokens)
    return ModalityTokens(
        features=torch.zeros(*shape, tokenizer.num_features + 1, device=device),
        mask=torch.zeros(shape, dtype=torch.bool, device=device),
    )


def _device(readings: Readings) -> torch.device:
    """Where the readings are."""
    return next(iter(readings.values())).device if readings else torch.device("cpu")


def _by_source(
    readings: Readings, key: str, sources: tuple[int, ...], shape: tuple[int, ...]
) -> torch.Tensor:
    """A field [*sources, *shape] as [all sources, *shape]; a source is a drop's user, or a drop."""
    if key not in readings:
        raise DataError(f"a sensor's reading came without {key}; ask the dataset for it too")
    values = readings[key]
    if values.shape != (*sources, *shape):
        raise DataError(
            f"{key} has shape {tuple(values.shape)}; this tokeniser takes {(*sources, *shape)}: make one "
            "from the spec of the dataset at hand"
        )
    return values if len(sources) == 1 else rearrange(values, "b u ... -> (b u) ...")


def _tokenizer(spec: DatasetSpec, name: str) -> ReadingTokenizer:
    """The tokeniser of a sensor that the spec has."""
    sensor, site = spec.sensors.present[name], spec.site
    match sensor:
        case PositionSensorSpec():
            assert site is not None  # the spec has sensors
            return PositionTokenizer.from_site(site)
        case InertialSensorSpec():
            return InertialTokenizer.from_sensor(sensor)
        case CameraSpec():
            return ImageTokenizer.from_sensor(sensor)
        case RangeSensorSpec():
            return RangeScanTokenizer.from_sensor(sensor)
        case BeamSensorSpec():
            return BeamTokenizer.from_sensor(sensor, spec.base_station)
        case CsiSensorSpec():
            return CsiReadingTokenizer.from_spec(spec, sensor)
        case _:
            raise TypeError(f"no tokens of a {type(sensor).__name__}")


def _no_such_modality(name: str, spec: DatasetSpec) -> str:
    near = difflib.get_close_matches(name, SENSOR_READINGS, n=1)
    if name not in SENSOR_READINGS:
        hint = f"did you mean {near[0]!r}?" if near else f"known: {_listed(SENSOR_READINGS)}"
        return f"no modality {name!r}; {hint}"
    return f"{spec.name} has no {name} sensor; it has {_listed(spec.sensors.present)}"


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "none"
