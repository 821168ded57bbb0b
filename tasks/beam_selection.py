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
from airlam.model.beam_selection import BeamLAM
from airlam.model.lam_beams import LamBeams
from airlam.model.storage import assign_tensors, trainable_tensors
from airlam.radio.beam_fitted import Fingerprint, KalmanBeam, PositionMap
from airlam.radio.beam_regression import PowerStack
from airlam.radio.beam_selection import (
    BeamPredictor,
    BeamRecording,
    BeamWindows,
    Persistence,
    StraightLine,
    split_by_pass,
)
from airlam.specs import ModelSpec, TrainingSpec
from airlam.tasks.runs import describe
from airlam.tokens.beam_history import BeamScales, tokenise_history
from airlam.tokens.modality import ModalityTokens
from airlam.tokens.sensors import SensorTokenizer
from airlam.training.loop import fit
from airlam.training.metrics import TrainingSummary

NUM_VALIDATION_PARTS = 5  # one in so many training passes is held out to choose the weights
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
    def of(
        windows: BeamWindows,
        stack: PowerStack,
        tokenizer: SensorTokenizer,
        expected: torch.Tensor | None = None,
    ) -> "BeamSamples":
        """expected: what the stack's regressions expect, float64 [n, experts, num_ahead, num_beams]; None: of
        the windows that they were fitted to, what is expected without their own pass.
        """
        if expected is None:
            expected = stack.left_out
        return BeamSamples(
            tokens=tokenise_history(tokenizer, windows.history, stack.combine(expected)),
            expected=expected.float(),
            relative_power=windows.relative_power.float(),
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


def beam_loss(model: torch.nn.Module, batch: BeamBatch) -> torch.Tensor:
    """The expected share of power lost, were the beam drawn from the LAM's distribution.

    loss = 1 - mean over the steps ahead of sum_b softmax(z)_b P_b / max P. Returns float32 [batch].
    """
    share = model(batch.tokens, batch.expected).softmax(dim=-1)  # [batch, num_ahead, num_beams]
    kept: torch.Tensor = (share * batch.relative_power).sum(dim=-1).mean(dim=-1)  # [batch]
    return 1 - kept


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
    found = LamBeams.untuned(stack, BeamScales.of(training), model, seed=spec.seed)
    held_out = held_out_passes(training, spec.seed)
    samples = BeamSamples.of(training, stack, found.scales.tokenizer())
    parts = samples.select(~held_out), samples.select(held_out)
    fit_or_keep(found.lam, *parts, spec, folder, on_progress)
    return found


def held_out_passes(training: BeamWindows, seed: int) -> torch.Tensor:
    """Windows of the training passes that choose the weights, a fifth or at least one: bool [n]."""
    num_passes = len(training.sequence.unique())  # type: ignore[no-untyped-call]
    return split_by_pass(training.sequence, min(NUM_VALIDATION_PARTS, num_passes), seed)[0]


def fit_or_keep(
    lam: BeamLAM,
    training: BeamSamples,
    validation: BeamSamples,
    spec: TrainingSpec,
    folder: Path,
    on_progress: Callable[[str, int, int, str], None],
    identity: str = "",
) -> tuple[TrainingSummary, bool]:
    """Tunes in place, unless it does worse on validation samples then; whether the tuned weights stayed.

    identity: see ``fit``. KeyboardInterrupt, with a checkpoint, where the user interrupts.
    """
    before = {name: value.clone() for name, value in trainable_tensors(lam).items()}
    loss_before = mean_loss(lam, validation)
    summary = fit(
        lam,
        beam_loss,
        training,
        validation,
        spec,
        folder,
        lambda step: on_progress("tuning on beams", step.step, step.num_steps, describe(step)),
        identity=identity,
    )
    if summary.stop_reason == "interrupted":
        raise KeyboardInterrupt
    lam.cpu()
    is_better = mean_loss(lam, validation) < loss_before
    if not is_better:
        assign_tensors(trainable_tensors(lam), before, "the weights before tuning")
    return summary, is_better


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
