"""Beam selection from all sensors of a ray-traced site, or from some of them.

A window has past sweeps and fixes, and what the other sensors read at its last sweep. A LAM sees the tokens
of its own sensors, and what regressions expect that use no other: of sweeps, of positions, of both, or, where
it has neither, no more than each beam's mean power.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from airlam.datasets.store import ChannelDataset
from airlam.errors import DataError
from airlam.model.beam_selection import BeamLAM
from airlam.model.sensor_beams import build_sensor_beam_lam
from airlam.radio.beam_regression import KERNELS, PowerKernel, PowerStack
from airlam.radio.beam_selection import BeamWindows, cut_windows, window_starts
from airlam.specs import ModelSpec, TrainingSpec
from airlam.specs.sensors import SENSOR_READINGS, presence_and_age
from airlam.tasks.beam_selection import BeamSamples, fit_or_keep, held_out_passes, recording_of
from airlam.tokens.beam_history import BeamScales, tokenise_history
from airlam.tokens.modality import ModalityTokens
from airlam.tokens.sensors import SensorTokenizer

HISTORY_SENSORS = ("beams", "position")  # whose past a window has
POSITION_KERNELS = tuple(
    PowerKernel(pattern=0.0, line=0.0, place=place, noise=0.03, around_line=False) for place in (0.01, 0.05)
)
MEAN_KERNEL = PowerKernel(pattern=0.0, line=0.0, place=0.0, noise=1.0, around_line=False)
_LEAST_DEVIATION = 0.1  # what hardly varies, an image's background, is not blown up to unit variance
_PREDICT_BATCH = 512
Tokens = Mapping[str, ModalityTokens]


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorWindows:
    """Windows, and the tokens of the sensors without a past as they read at the last known sweep."""

    windows: BeamWindows
    tokens: Tokens
    tokenizer: SensorTokenizer  # that made the tokens

    def __len__(self) -> int:
        return len(self.windows)


def sensor_windows(dataset: ChannelDataset, split: str, *, num_past: int, num_ahead: int) -> SensorWindows:
    """All windows of a split's drives, one pass a user and drive.

    DataError where a sweep or a fix is missing, or no drive is long enough.
    """
    recording = recording_of(dataset, split)
    num_drops, num_users = dataset.num_drops(split), dataset.spec.num_users
    if len(recording.power) != num_drops * num_users:
        raise DataError(f"{dataset.spec.name} lacks sweeps or fixes; draw it with none missing")
    starts = window_starts(recording, num_past=num_past, num_ahead=num_ahead)
    if not len(starts):
        raise DataError(f"no drive of {dataset.spec.name} has {num_past + num_ahead} drops; draw longer ones")
    last = starts + num_past - 1
    rows = (last % num_drops) * num_users + last // num_drops  # sweeps lie user by user, tokens drop by drop
    names = [name for name in dataset.spec.sensors.present if name not in HISTORY_SENSORS]
    tokenizer = SensorTokenizer.from_spec(dataset.spec, names) if names else SensorTokenizer({}, {})
    tokens = tokenizer.tokenise_readings(_readings(dataset, split, names), num_drops, num_users)
    return SensorWindows(
        windows=cut_windows(recording, num_past=num_past, num_ahead=num_ahead),
        tokens={name: each.select(rows) for name, each in tokens.items()},
        tokenizer=tokenizer,
    )


def _readings(dataset: ChannelDataset, split: str, sensors: Sequence[str]) -> dict[str, torch.Tensor]:
    """What these sensors read, with presence and age, by field."""
    readings = [SENSOR_READINGS[name] for name in sensors]
    fields = [field for reading in readings for field in (reading, *presence_and_age(reading))]
    return {field: dataset.field(split, field) for field in fields}


def kernels_of(sensors: Sequence[str]) -> tuple[PowerKernel, ...]:
    """Of the regressions that need no other sensors than these."""
    if "beams" in sensors:
        return KERNELS if "position" in sensors else tuple(kernel for kernel in KERNELS if not kernel.place)
    return POSITION_KERNELS if "position" in sensors else (MEAN_KERNEL,)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScales:
    """Mean and deviation over training windows of each feature of each token, by modality."""

    mean: Mapping[str, torch.Tensor]
    deviation: Mapping[str, torch.Tensor]

    @staticmethod
    def of(tokens: Tokens) -> "TokenScales":
        """Of the windows whose reading is there."""
        there = {name: each.features[each.mask.any(dim=1)] for name, each in tokens.items()}
        return TokenScales(
            mean={name: values.mean(dim=0) for name, values in there.items()},
            deviation={n: values.std(dim=0).clamp_min(_LEAST_DEVIATION) for n, values in there.items()},
        )

    def apply(self, tokens: Tokens) -> dict[str, ModalityTokens]:
        """Tokens of zero mean and about unit deviation; what is missing stays zero."""
        found = {}
        for name, each in tokens.items():
            features = (each.features - self.mean[name]) / self.deviation[name]
            found[name] = ModalityTokens(features=features.where(each.mask[..., None], 0.0), mask=each.mask)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorReader:
    """What a LAM of some sensors is given of a window: tokens, and what its regressions expect."""

    sensors: tuple[str, ...]
    stack: PowerStack
    history: SensorTokenizer
    tokenizer: SensorTokenizer  # of all the sensors, for the shapes of their tokens

    @staticmethod
    def fitted(training: SensorWindows, sensors: Sequence[str]) -> "SensorReader":
        """With the regressions that these sensors allow."""
        windows = training.windows
        history = BeamScales.of(windows).tokenizer()
        every = {**history.tokenizers, **training.tokenizer.tokenizers}
        return SensorReader(
            sensors=tuple(sensors),
            stack=PowerStack.fitted(windows, kernels_of(sensors)),
            history=history,
            tokenizer=SensorTokenizer({n: every[n] for n in sensors}, dict.fromkeys(sensors, 1.0)),
        )

    def tokens(self, given: SensorWindows, expected: torch.Tensor) -> dict[str, ModalityTokens]:
        """By sensor; expected: float64 [n, experts, num_ahead, num_beams]."""
        combined = self.stack.combine(expected)
        found = {**tokenise_history(self.history, given.windows.history, combined), **given.tokens}
        return {name: found[name] for name in self.sensors}


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorBeams:
    """A tuned LAM of some sensors."""

    reader: SensorReader
    scales: TokenScales
    lam: BeamLAM

    def predict(self, given: SensorWindows) -> torch.Tensor:
        """Log-odds of the beams: float64 [n, num_ahead, num_beams]."""
        expected = self.reader.stack.expect(given.windows.history)
        tokens = self.scales.apply(self.reader.tokens(given, expected))
        scores = []
        self.lam.eval()
        with torch.no_grad():
            for index in torch.split(torch.arange(len(given)), _PREDICT_BATCH):
                some = {name: each.select(index) for name, each in tokens.items()}
                scores.append(self.lam(some, expected[index].float()).double())
        return torch.cat(scores)


def tune_sensor_beams(
    training: SensorWindows,
    sensors: Sequence[str],
    model: ModelSpec,
    spec: TrainingSpec,
    folder: Path,
    on_progress: Callable[[str, int, int, str], None],
) -> SensorBeams:
    """A LAM of some sensors, tuned on a site's training drives, a fifth of which chooses the weights.

    The untuned weights, with which it chooses as its regressions' stack does, are among the choices.
    ``folder`` receives the training loop's files.
    """
    windows = training.windows
    reader = SensorReader.fitted(training, sensors)
    expected = reader.stack.left_out
    raw = reader.tokens(training, expected)
    scales = TokenScales.of(raw)
    samples = BeamSamples(
        tokens=scales.apply(raw),
        expected=expected.float(),
        relative_power=windows.relative_power.float(),
    )
    lam = build_sensor_beam_lam(
        model,
        reader.tokenizer,
        num_ahead=windows.num_ahead,
        num_beams=windows.num_beams,
        weights=reader.stack.weights,
        seed=spec.seed,
    )
    held_out = held_out_passes(windows, spec.seed)
    fit_or_keep(lam, samples.select(~held_out), samples.select(held_out), spec, folder, on_progress)
    return SensorBeams(reader=reader, scales=scales, lam=lam)
