"""Beam selection from sensors: past sweeps and positions to the beams of the sweeps to come.

Each window of sweeps carries what several regressions of powers expect next; for windows that they were
fitted to, what the fit to all other passes expects, since a network that sees a fit's own training values
learns to believe it too much. Everything is fitted and chosen on training passes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat

from airlam.datasets.store import ChannelDataset
from airlam.model.beam_selection import BeamHead, BeamLAM, build_beam_lam
from airlam.model.storage import assign_tensors, trainable_tensors
from airlam.radio.beam_fitted import Fingerprint, KalmanBeam, PositionMap
from airlam.radio.beam_regression import PowerStack
from airlam.radio.beam_selection import (
    BeamHistory,
    BeamPredictor,
    BeamRecording,
    BeamWindows,
    Persistence,
    StraightLine,
    split_by_pass,
)
from airlam.specs import ModelSpec, TrainingSpec
from airlam.tokens.beams import BeamTokenizer
from airlam.tokens.modality import ModalityTokens
from airlam.tokens.position import PositionTokenizer
from airlam.tokens.sensors import SensorTokenizer
from airlam.tokens.track import TrackTokenizer
from airlam.training.loop import fit

FLOOR_DB = 12.0  # below the strongest beam of a measured sweep little but side lobes and noise is left
NUM_VALIDATION_PARTS = 5  # one in so many training passes is held out to choose the weights
_LEAST_EXPECTED = 1e-3  # a regression may expect less than no power
_NEAREST_M = 1.0
_PREDICT_BATCH = 512


def classical_predictors(training: BeamWindows, stack: PowerStack) -> list[BeamPredictor]:
    """All classical ones, fitted to training passes; ``stack`` was, too."""
    return [
        Persistence(num_ahead=training.num_ahead),
        StraightLine(num_ahead=training.num_ahead),
        StraightLine(num_ahead=training.num_ahead, num_points=5),
        KalmanBeam.fitted(training),
        PositionMap.fitted(training),
        Fingerprint.fitted(training),
        stack.best,
        stack,
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamBatch:
    """Tokens by modality, and relative powers.

    expected: float32 [batch, experts, num_ahead, num_beams]; relative_power: float32 [batch, num_ahead,
    num_beams], the true one.
    """

    tokens: Mapping[str, ModalityTokens]
    expected: torch.Tensor
    relative_power: torch.Tensor

    def to(self, device: torch.device) -> "BeamBatch":
        """The same on another device."""
        return BeamBatch(
            tokens={name: tokens.to(device) for name, tokens in self.tokens.items()},
            expected=self.expected.to(device),
            relative_power=self.relative_power.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSamples:
    """All windows' tokens in memory; implements ``Samples``."""

    tokens: Mapping[str, ModalityTokens]
    expected: torch.Tensor
    relative_power: torch.Tensor

    @staticmethod
    def of(training: BeamWindows, stack: PowerStack, tokenizer: SensorTokenizer) -> "BeamSamples":
        """Of the windows that the stack was fitted to."""
        expected = stack.left_out  # [n, experts, num_ahead, num_beams]
        return BeamSamples(
            tokens=tokenise_history(tokenizer, training.history, stack.combine(expected)),
            expected=expected.float(),
            relative_power=training.relative_power.float(),
        )

    def __len__(self) -> int:
        return len(self.expected)

    def batch(self, indices: torch.Tensor) -> BeamBatch:
        """The windows at ``indices``, int64 or bool."""
        return BeamBatch(
            tokens={name: tokens.select(indices) for name, tokens in self.tokens.items()},
            expected=self.expected[indices],
            relative_power=self.relative_power[indices],
        )

    def select(self, indices: torch.Tensor) -> "BeamSamples":
        """The windows at ``indices``, int64 or bool."""
        part = self.batch(indices)
        return BeamSamples(tokens=part.tokens, expected=part.expected, relative_power=part.relative_power)


def beam_tokenizer(training: BeamWindows) -> SensorTokenizer:
    """The sensor-to-token mapper of the task, its scales those of the training positions.

    A token is a sweep, those ahead as the stack expects them, or the user's track.
    """
    history = training.history
    position_m = history.position_m[..., :2].flatten(0, 1)  # [n * num_past, 2]
    low, high = position_m.amin(dim=0), position_m.amax(dim=0)
    center, half = (low + high) / 2, ((high - low) / 2).clamp_min(_NEAREST_M)
    step_m = (history.position_m[:, -1] - history.position_m[:, 0]).norm(dim=-1).mean().item()
    num_past = history.power.shape[1]
    position = PositionTokenizer(
        center_m=(center[0].item(), center[1].item(), 0.0),
        scale_m=(half[0].item(), half[1].item(), _NEAREST_M),
        array_height_m=0.0,
        array_yaw_rad=0.0,
    )
    return SensorTokenizer(
        {
            "beams": BeamTokenizer(
                num_past=num_past + training.num_ahead, num_beams=training.num_beams, floor_db=FLOOR_DB
            ),
            "position": TrackTokenizer(position=position, num_past=num_past, step_m=max(step_m, _NEAREST_M)),
        },
        {"beams": 1.0, "position": 1.0},
    )


def tokenise_history(
    tokenizer: SensorTokenizer, history: BeamHistory, expected: torch.Tensor
) -> dict[str, ModalityTokens]:
    """Tokens of past sweeps, of expected ones, and of the track; expected: float64 [n, num_ahead, beams]."""
    past = history.power / history.power.amax(dim=(1, 2), keepdim=True)
    sweeps = torch.cat([past, expected.clamp_min(_LEAST_EXPECTED)], dim=1).float()
    num_windows = len(history)
    readings: dict[str, torch.Tensor] = {
        "beam_power": sweeps[:, None],
        "gnss_position_m": history.position_m.float()[:, None],
    }
    for stem in ("beam", "gnss"):
        readings[f"{stem}_present"] = torch.ones(num_windows, 1, dtype=torch.bool)
        readings[f"{stem}_age_s"] = torch.zeros(num_windows, 1)
    return tokenizer.tokenise_readings(readings, num_windows, 1)


def beam_loss(model: torch.nn.Module, batch: BeamBatch) -> torch.Tensor:
    """The expected share of power lost, were the beam drawn from the LAM's distribution.

    loss = 1 - mean over the steps ahead of sum_b softmax(z)_b P_b / max P. Returns float32 [batch].
    """
    share = model(batch.tokens, batch.expected).softmax(dim=-1)  # [batch, num_ahead, num_beams]
    kept: torch.Tensor = (share * batch.relative_power).sum(dim=-1).mean(dim=-1)  # [batch]
    return 1 - kept


@dataclass(frozen=True, slots=True, kw_only=True)
class LamBeams:
    """The LAM behind its experts; implements ``BeamPredictor``."""

    stack: PowerStack
    tokenizer: SensorTokenizer
    lam: BeamLAM
    name: str = "lam"

    def predict(self, history: BeamHistory) -> torch.Tensor:
        """See ``BeamPredictor``; scores are log-odds."""
        expected = self.stack.expect(history)  # [n, experts, num_ahead, num_beams]
        tokens = tokenise_history(self.tokenizer, history, self.stack.combine(expected))
        scores = torch.empty(len(history), *expected.shape[2:], dtype=torch.float64)
        self.lam.eval()
        with torch.no_grad():
            for start in range(0, len(history), _PREDICT_BATCH):
                index = torch.arange(start, min(start + _PREDICT_BATCH, len(history)))
                some = {name: each.select(index) for name, each in tokens.items()}
                scores[index] = self.lam(some, expected[index].float()).double()
        return scores


def tune_beams(
    training: BeamWindows,
    stack: PowerStack,
    model: ModelSpec,
    spec: TrainingSpec,
    folder: Path,
    on_progress: Callable[[str, int, int, str], None],
) -> LamBeams:
    """A LAM tuned on a site's training passes, around the stack fitted to them.

    A fifth of the passes, at least one, chooses the weights; those that the LAM started with are among the
    choices. ``folder`` receives the training loop's files.
    """
    tokenizer = beam_tokenizer(training)
    lam = build_beam_lam(
        model,
        tokenizer,
        lambda width: BeamHead(width=width, num_ahead=training.num_ahead, weights=stack.weights),
        seed=spec.seed,
    )
    num_passes = len(training.sequence.unique())  # type: ignore[no-untyped-call]
    held_out = split_by_pass(training.sequence, min(NUM_VALIDATION_PARTS, num_passes), spec.seed)[0]
    fit_or_keep(lam, BeamSamples.of(training, stack, tokenizer), held_out, spec, folder, on_progress)
    return LamBeams(stack=stack, tokenizer=tokenizer, lam=lam)


def fit_or_keep(
    lam: BeamLAM,
    samples: BeamSamples,
    held_out: torch.Tensor,
    spec: TrainingSpec,
    folder: Path,
    on_progress: Callable[[str, int, int, str], None],
) -> None:
    """Tunes in place on all samples but those held out (bool [n]), unless it does worse on these then."""
    validation = samples.select(held_out)
    before = {name: value.clone() for name, value in trainable_tensors(lam).items()}
    loss_before = mean_loss(lam, validation)
    summary = fit(
        lam,
        beam_loss,
        samples.select(~held_out),
        validation,
        spec,
        folder,
        lambda step: on_progress("tuning on beams", step.step, step.num_steps, f"loss {step.loss:.4f}"),
    )
    if summary.stop_reason == "interrupted":
        raise KeyboardInterrupt
    if mean_loss(lam, validation) >= loss_before:
        assign_tensors(trainable_tensors(lam), before, "the weights before tuning")


def mean_loss(lam: BeamLAM, samples: BeamSamples) -> float:
    """``beam_loss`` over all samples, without dropout."""
    lam.eval()
    with torch.no_grad():
        parts = [
            beam_loss(lam, samples.batch(torch.arange(start, min(start + _PREDICT_BATCH, len(samples)))))
            for start in range(0, len(samples), _PREDICT_BATCH)
        ]
    return torch.cat(parts).mean().item()


def recording_of(dataset: ChannelDataset, split: str) -> BeamRecording:
    """The sweeps of a ray-traced dataset's drops, user by user: the latest of each drop, and the GNSS fix.

    A pass is one user on one trajectory; it is cut where a sweep or a fix is missing. Drops lie as far apart
    as the site's ``position_interval_s``, which should be the sensor's period. The base station is the
    positions' origin, on the ground. DataError where the dataset lacks either sensor.
    """
    power = dataset.field(split, "beam_power")[:, :, -1].double()  # [drops, users, beams]
    position_m = dataset.field(split, "gnss_position_m").double()  # [drops, users, 3]
    present = dataset.field(split, "beam_present") & dataset.field(split, "gnss_present")  # [drops, users]
    num_drops, num_users = present.shape
    trajectory = repeat(dataset.field(split, "trajectory").long(), "d -> (u d)", u=num_users)
    there = rearrange(present, "d u -> (u d)")
    user = repeat(torch.arange(num_users), "u -> (u d)", d=num_drops)
    gaps = (~there).cumsum(dim=0)  # a new pass behind each missing sweep
    names = torch.stack([user, trajectory, gaps], dim=1)[there]
    sequence: torch.Tensor = names.unique(dim=0, return_inverse=True)[1]  # type: ignore[no-untyped-call]
    return BeamRecording(
        name=f"{dataset.spec.name}_{split}",
        power=rearrange(power, "d u b -> (u d) b")[there],
        position_m=rearrange(position_m, "d u xyz -> (u d) xyz")[there],
        sequence=sequence,
    )
